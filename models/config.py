"""The base class of all settings read from a study or a policy: frozen, strict, no unknown keys."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen record of plain values; an unknown key, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)
