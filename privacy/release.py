"""What may cross the line between a hospital and the coordinator: signed statements and tensors.

A statement is a small JSON document of one of the kinds below. A `Release` is a statement about
tensors that lie beside it, content-addressed; a raw update has no type here and never leaves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from models import params as P
from models.checkpoints import CorruptCheckpoint, StoredParams
from models.config import Config
from models.params import Params
from privacy.accounting import LEAST_NOISE, Accountant, Budget

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Content = Literal["weights", "student", "predictions", "gradient_sum"]
Noise = Literal["system", "test", "none"]
MetricsPolicy = Literal["exact", "noised", "withheld"]
StatisticsPolicy = Literal["suppressed", "noised", "withheld"]


Count = Annotated[int, Field(ge=1, le=10**7)]
Epsilon = Annotated[float, Field(ge=0, le=1e6)]
MetricName = Annotated[str, Field(pattern=r"^[a-z0-9_]+(/[a-z0-9_-]+)?$", max_length=80)]
Bins = Annotated[list[Annotated[float, Field(ge=0, le=1)] | None], Field(max_length=100)]
MetricValue = Annotated[float, Field(ge=-1e6, le=1e6)]


class EventRecord(Config):
    """A privacy event as a manifest states it."""

    noise_multiplier: Annotated[float, Field(ge=LEAST_NOISE, le=1e6)]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    steps: Annotated[int, Field(ge=1, le=10**7)]


class _Statement(Config):
    """What every statement of a hospital says.

    Attributes:
        purpose: the act in which it ended, as the ledger names it.
        event: what that cost, None where nothing.
        charges: how many charges stand for acts of this kind in this run, this one included.
    """

    study: str
    study_sha256: Sha256
    run: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,99}$")]
    round: Annotated[int, Field(ge=0, le=10**6)]
    purpose: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,99}$")]
    site: str
    ledger_head: Sha256
    event: EventRecord | None
    charges: Annotated[int, Field(ge=0, le=10**4)]


class Acceptance(_Statement):
    """A hospital takes part, with these public numbers of patients and steps, this budget, this code.

    `cross_site` tells whether its released model may be scored at others, `group` what its scans are
    like.
    """

    kind: Literal["acceptance"]
    steps: Annotated[int, Field(ge=1, le=10**5)]
    declared_training: Count
    declared_patients: Count
    budget: Budget
    version: Annotated[str, Field(max_length=40)]
    code_sha256: Sha256
    cross_site: bool = False
    group: Annotated[str, Field(max_length=40)] | None = None


class Refusal(_Statement):
    """A hospital takes no part in the run or the round. The reason names no patient or count."""

    kind: Literal["refusal"]
    reason: Annotated[str, Field(max_length=1000)]


class Readiness(_Statement):
    """A hospital could take part as it is now."""

    kind: Literal["readiness"]


class Departure(_Statement):
    """A hospital leaves the study: from here on nothing that it has signed for this run counts."""

    kind: Literal["departure"]


class ReleaseManifest(_Statement):
    """What a release is, for a person to read and the coordinator to check.

    `epsilon` is what this run has spent at this hospital so far, at the study's `delta`, None without
    privacy; `epsilon_reported` is the same by each of the study's accountants.
    `plain_releases` were made of the same patients without privacy; no epsilon covers them.
    `chain_head` is that of the round records as the base model's statement named it: so hospitals sign
    what went before, and nobody can write it anew.
    """

    kind: Literal["release"]
    content: Content
    base_sha256: Sha256
    chain_head: Sha256
    payload_sha256: Sha256
    payload_bytes: Annotated[int, Field(ge=1, le=2**36)]
    tensors: dict[str, tuple[int, ...]]
    declared_training: Count
    epsilon: Epsilon | None
    delta: Annotated[float, Field(gt=0, lt=1)] | None
    epsilon_reported: dict[Accountant, Epsilon]
    plain_releases: Annotated[int, Field(ge=0, le=10**9)]
    noise: Noise

    @model_validator(mode="after")
    def _private_in_every_field_or_in_none(self) -> "ReleaseManifest":
        private = {self.event is not None, self.epsilon is not None, self.delta is not None,
                   bool(self.epsilon_reported), self.noise != "none"}  # fmt: skip
        if len(private) > 1:
            raise ValueError("expected an event, epsilons, a delta and noise, or none of them")
        return self


class Scores(_Statement):
    """How a global model does on a hospital's evaluation patients, who never train.

    `chain_head` as in a release's manifest.
    """

    kind: Literal["scores"]
    model_sha256: Sha256
    chain_head: Sha256
    metrics_policy: MetricsPolicy
    metrics: dict[MetricName, MetricValue]

    @model_validator(mode="after")
    def _charged_if_and_only_if_noised(self) -> "Scores":
        if (self.metrics_policy == "noised") != (self.event is not None):
            raise ValueError("expected an event exactly where metrics are noised")
        return self


class Comparison(_Statement):
    """How hospitals' released models do on this hospital's evaluation patients; nothing if withheld.

    By hospital: the sha256 of its model, and the model's metrics here.
    """

    kind: Literal["comparison"]
    models: dict[str, Sha256]
    metrics: Annotated[dict[str, dict[MetricName, MetricValue]], Field(max_length=1000)]


class Survey(_Statement):
    """What a hospital's scans are like: by histogram, the shares of the patients in its bins.

    A bin is None where it is not told; a hospital that withholds them tells no histogram.
    """

    kind: Literal["survey"]
    declared_patients: Count
    statistics_policy: StatisticsPolicy
    histograms: Annotated[dict[MetricName, Bins], Field(max_length=200)]

    @model_validator(mode="after")
    def _charged_if_and_only_if_noised(self) -> "Survey":
        if (self.statistics_policy == "noised") != (self.event is not None):
            raise ValueError("expected an event exactly where statistics are noised")
        return self


class Revocation(Config):
    """A hospital's statement, signed by a key of its own, that this key is no longer good."""

    kind: Literal["revocation"]
    site: str
    public_key: Sha256
    at_ms: int


class ModelManifest(Config):
    """The coordinator's statement about a global model; round 0 is the one before training.

    `chain_head` is that of the round records when the model was made, the newest of which is the round's
    before. `of` is the hospital whose released model it is, empty for the global one.
    """

    kind: Literal["model"]
    study: str
    study_sha256: Sha256
    run: str
    round: Annotated[int, Field(ge=0)]
    model_sha256: Sha256
    chain_head: Sha256
    of: str = ""


class HeadManifest(Config):
    """The coordinator's statement about a finished round: the head of the chain of its records."""

    kind: Literal["head"]
    run: str
    round: Annotated[int, Field(ge=0)]
    record_sha256: Sha256


Statement = Readiness | Acceptance | Refusal | Departure | ReleaseManifest | Scores | Comparison | Survey
_STATEMENT: TypeAdapter[Statement] = TypeAdapter(Annotated[Statement, Field(discriminator="kind")])


class RejectedRelease(ValueError):
    """The coordinator takes no account of a statement; the message says what does not fit."""


@dataclass(frozen=True)
class Release:
    """A hospital's release as the coordinator uses it: its manifest and its tensors, read lazily."""

    manifest: ReleaseManifest
    tensors: StoredParams


def parse_statement(fields: Mapping[str, Any]) -> Statement:
    """Return the statement in `fields`.

    Raises:
        RejectedRelease: it is none of the known kinds, or a field is missing, wrong or unknown.
    """
    try:
        return _STATEMENT.validate_python(fields)
    except (ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise RejectedRelease("it is nested too deeply") from error
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RejectedRelease(f"{where}: {first['msg']}") from error


def check_release(release: Release, template: Params) -> None:
    """Check a release's tensors against its own manifest and the study's network.

    Raises:
        RejectedRelease: a name, shape or dtype is wrong, or a value is not finite.
    """
    try:
        P.check_like(release.tensors, template)
        if dict(release.manifest.tensors) != release.tensors.shapes:
            raise ValueError("The manifest lists other tensors than the file holds.")
        if not P.all_finite(release.tensors):
            raise ValueError("A value is NaN or infinite.")
    except (ValueError, CorruptCheckpoint) as error:
        raise RejectedRelease(f"{release.manifest.site}: {error}") from error
