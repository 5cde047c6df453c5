"""The strategy section of a study, and the keys of each strategy for the reference and editors' schemas.

Which keys there are says the signature of the strategy's own function (`models.strategies`).
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError, create_model, model_validator

from models.config import Config
from models.settings.yaml_faults import closest
from models.strategies import STRATEGIES, Strategy

MEANINGS = {
    "mu (no unit)": "strength of the pull of local steps towards the global model.",
    "strength (no unit)": "strength of the pull of personal models towards the global one.",
    "momentum (share)": "share of the last round's movement that the next one keeps.",
    "lr (no unit)": "learning rate of the coordinator's step; 1 takes the mean change as it is.",
    "layers (layers)": "number of last layers that stay at each hospital.",
    "beta1 (share)": "share of the mean change that the next round keeps.",
    "beta2 (share)": "share of the mean squared change that the next round keeps.",
    "tau (no unit)": "smallest divisor of a step, in units of the parameters' change.",
    "faulty (hospitals)": "number of hospitals whose changes may be wrong in any way.",
    "chosen (changes)": "number of changes that are averaged.",
    "factor (no unit)": "longest change that counts in full, in medians of the hospitals' lengths.",
}
"""By key and unit, what each means."""


@cache
def kinds() -> tuple[type[Config], ...]:
    """Return a class for each strategy: its name, and its keys with types, defaults and meanings.

    >>> [kind.model_fields["name"].annotation for kind in kinds()][:2]
    [typing.Literal['fed_avg'], typing.Literal['fed_prox']]
    """
    return tuple(_kind(name) for name in STRATEGIES)


def _kind(name: str) -> type[Config]:
    parameters = inspect.signature(STRATEGIES[name], eval_str=True).parameters
    summary = inspect.cleandoc(STRATEGIES[name].__doc__ or "").split("\n\n")[0].replace("\n", " ")
    summary = re.sub(r" \(`_\w+`\)| \(source: [^)]*\)", "", summary)  # of the code alone
    lines = [f"    {head}: {text}" for head, text in MEANINGS.items() if head.split()[0] in parameters]
    doc = "\n".join([summary, "", "Attributes:", f"    name: {summary}", *lines])
    fields: dict[str, Any] = {"name": (Literal[name], ...)}
    fields |= {key: (each.annotation, each.default) for key, each in parameters.items()}
    return create_model(name, __base__=Config, __doc__=doc, **fields)


def _unknown(key: str, known: Sequence[str]) -> str:
    close, takes = closest(key, known), ", ".join(known) or "none"
    return f"{key}: unknown key. {f'Did you mean {close}?' if close else f'Known here: {takes}.'}"


class StrategyConfig(Config):
    """A strategy by name, with the strategy's own arguments as further keys.

    Attributes:
        name: the rule, such as `fed_avg`, `fed_avg_m`, `scaffold`, `krum`.
    """

    model_config = ConfigDict(extra="allow")

    name: str

    @model_validator(mode="after")
    def _buildable(self) -> "StrategyConfig":
        if self.name not in STRATEGIES:
            raise ValueError(f"expected a name among {sorted(STRATEGIES)}, got {self.name!r}")
        known = inspect.signature(STRATEGIES[self.name]).parameters
        faults = [_unknown(key, list(known)) for key in sorted(self._arguments.keys() - known.keys())]
        try:
            STRATEGIES[self.name](**{key: each for key, each in self._arguments.items() if key in known})
        except ValidationError as error:
            faults += [
                f"{each['loc'][-1]}: expected {each['msg'].removeprefix('Input should be ')}, "
                f"got {each['input']!r}"
                for each in error.errors()
            ]
        except (ValueError, TypeError) as error:
            faults.append(str(error))
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:  # noqa: ANN401  # of a YAML file
        if isinstance(values, Mapping) and "name" not in values:
            misspelt = [_unknown(key, ["name"]) for key in values if closest(str(key), ["name"])]
            raise ValueError("\n".join(["name: expected this key, and it is missing", *misspelt]))
        return values

    @property
    def _arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @classmethod
    def documented_as(cls) -> tuple[type[Config], ...]:
        """Return a class for each strategy, with its keys, for reference and schema."""
        return kinds()

    def build(self) -> Strategy:
        """Return the strategy."""
        return STRATEGIES[self.name](**self._arguments)
