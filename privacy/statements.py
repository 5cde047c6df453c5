"""Statements that hospital and coordinator may exchange, each a small signed JSON document.

Statements about tensors name them by their sha256 (`privacy.release`). A raw update has no type here and
never leaves.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator

from models.config import Config
from models.settings.tasks import Name
from privacy.accounting import LEAST_NOISE, Accountant, Budget
from privacy.noise.noised import is_on_grid

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Content = Literal["weights", "student", "predictions", "gradient_sum"]
Noise = Literal["system", "test", "none"]
MetricsPolicy = Literal["exact", "noised", "summed", "withheld"]
StatisticsPolicy = Literal["suppressed", "noised", "summed", "withheld"]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected printable characters alone")
    return text


Text = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
"""Words of a hospital for people, on one line: no control character reaches a terminal or a page."""
Count = Annotated[int, Field(ge=1, le=10**7)]
MOST_EPSILON = 1e6
Epsilon = Annotated[float, Field(ge=0, le=MOST_EPSILON)]
TensorName = Annotated[Text, Field(max_length=200)]
Shape = Annotated[tuple[Annotated[int, Field(ge=0, le=2**40)], ...], Field(max_length=10)]
MetricName = Annotated[str, Field(pattern=r"^[a-z0-9_]+(/[a-z0-9_-]+)?$", max_length=80)]
Bins = Annotated[list[Annotated[float, Field(ge=0, le=1)] | None], Field(max_length=100)]
LARGEST_METRIC = 1e6
MetricValue = Annotated[float, Field(ge=-LARGEST_METRIC, le=LARGEST_METRIC)]


def one_line(text: str) -> str:
    r"""Return a text as one printable line of at most 1000 characters, as statements hold.

    >>> one_line("no\nroom\x1b")
    'no room?'
    """
    words = " ".join(text.split())
    return "".join(each if each.isprintable() else "?" for each in words)[:1000]


MOST_ATTEMPTS = 100
"""Attempts at a secure sum in one round."""
Attempt = Annotated[int, Field(ge=1, le=MOST_ATTEMPTS)]
Share = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_MEMBERS = Field(max_length=1000)
Hidden = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(max_length=20_000)]
"""Masked sums of a hospital's figures, on the ring."""
Members = Annotated[dict[Name, Sha256], _MEMBERS]


class EventRecord(Config):
    """A privacy event as a manifest states it."""

    noise_multiplier: Annotated[float, Field(ge=LEAST_NOISE, le=1e6)]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    steps: Annotated[int, Field(ge=1, le=10**7)]


class _Statement(Config):
    """The fields of every statement of a hospital.

    Attributes:
        purpose: the act that ended in this statement, as the ledger names it.
        event: the cost of that act, None if it cost nothing.
        charges: the number of charges in force for acts of this kind in this run, this one included.
    """

    study: Name
    study_sha256: Sha256
    run: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,99}$")]
    round: Annotated[int, Field(ge=0, le=10**6)]
    purpose: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,99}$")]
    site: Name
    ledger_head: Sha256
    event: EventRecord | None
    charges: Annotated[int, Field(ge=0, le=10**4)]


class Acceptance(_Statement):
    """A hospital takes part, with these public numbers of patients and steps, this budget, this code.

    `cross_site` states whether its released model may be scored at other hospitals, `group` the kind of
    its scans, `lacks` the study's channels that none of its listed cases has.
    """

    kind: Literal["acceptance"]
    steps: Annotated[int, Field(ge=1, le=10**5)]
    declared_training: Count
    declared_patients: Count
    budget: Budget
    version: Annotated[Text, Field(max_length=40)]
    code_sha256: Sha256
    cross_site: bool = False
    group: Name | None = None
    lacks: Annotated[tuple[Name, ...], Field(max_length=32)] = ()


class Refusal(_Statement):
    """A hospital takes no part in the run or the round. The reason names no patient or count."""

    kind: Literal["refusal"]
    reason: Text


class Readiness(_Statement):
    """A hospital could take part as it is now."""

    kind: Literal["readiness"]


class Departure(_Statement):
    """A hospital leaves the study: from now on nothing that it has signed for this run counts."""

    kind: Literal["departure"]


class Masked(Config):
    """How a release is masked: it can be read only in the sum over `members`, less those who drop out.

    Attributes:
        attempt: number of the attempt in its round.
        members: the members who share masks, with the sha256 of their sealed shares.
        rate: the learning rate that came with the base model, where the study leaves it to the run.
        honest: members whose noise together is charged as the event; None with the full noise.
        own_epsilon: what the run would have cost so far if only the hospital's own share of the noise
            protected it; None with the full noise.
    """

    attempt: Attempt
    members: Members
    rate: Annotated[float, Field(gt=0, le=1000)] | None = None
    honest: Annotated[int, Field(ge=1, le=1000)] | None = None
    own_epsilon: Epsilon | None = None


class ReleaseManifest(_Statement):
    """The description of a release, for a person to read and the coordinator to check.

    `epsilon` is the amount that this run has spent at this hospital so far, at the study's `delta`, None
    without privacy; `epsilon_reported` is the same by each of the study's accountants.
    `plain_releases` counts releases from the same patients without privacy; no epsilon covers them.
    `chain_head` is the head of the round records that the base model's statement named. Hospitals thus
    sign the earlier rounds, and nobody can rewrite them.
    """

    kind: Literal["release"]
    content: Content
    base_sha256: Sha256
    chain_head: Sha256
    payload_sha256: Sha256
    payload_bytes: Annotated[int, Field(ge=1, le=2**36)]
    tensors: Annotated[dict[TensorName, Shape], Field(max_length=10**5)]
    declared_training: Count
    epsilon: Epsilon | None
    delta: Annotated[float, Field(gt=0, lt=1)] | None
    epsilon_reported: dict[Accountant, Epsilon]
    plain_releases: Annotated[int, Field(ge=0, le=10**9)]
    noise: Noise
    masked: Masked | None = None

    @model_validator(mode="after")
    def _private_in_every_field_or_in_none(self) -> "ReleaseManifest":
        private = {self.event is not None, self.epsilon is not None, self.delta is not None,
                   bool(self.epsilon_reported), self.noise != "none"}  # fmt: skip
        if len(private) > 1:
            raise ValueError("expected an event, epsilons, a delta and noise, or none of them")
        return self


class SumKeys(_Statement):
    """A hospital's fresh public keys for one attempt at a secure sum, and its weight in it.

    `weight` is the declared number of patients of whom the sum is: who train, evaluate, or all.
    """

    kind: Literal["sum_keys"]
    attempt: Attempt
    weight: Count
    pair: Sha256
    box: Sha256


class SumShares(_Statement):
    """Sealed shares of a hospital's secrets for the members of an attempt, one for each.

    `members` has the sha256 of each member's keys, as this hospital saw them; `commitment` binds its own
    mask.
    """

    kind: Literal["sum_shares"]
    attempt: Attempt
    members: Members
    boxes: Annotated[dict[Name, Annotated[str, Field(pattern=r"^[0-9a-f]{96}$")]], _MEMBERS]
    commitment: Sha256


class SumSurvivors(_Statement):
    """The hospitals whose masked vectors are summed, with the sha256 of each one's release.

    A hospital signs one list in an attempt.
    """

    kind: Literal["sum_survivors"]
    attempt: Attempt
    survivors: Members


class SumOpening(_Statement):
    """A hospital's shares that unmask a sum: of survivors' own masks, of the others' pair secrets."""

    kind: Literal["sum_opening"]
    attempt: Attempt
    own: Annotated[dict[Name, Share], _MEMBERS]
    pair: Annotated[dict[Name, Share], _MEMBERS]


def _check_hidden(policy: str, statement: "Scores | Survey", *, is_empty: bool) -> None:
    """Raise ValueError unless figures are charged, hidden and left out as their policy says."""
    if (policy in ("noised", "summed")) != (statement.event is not None):
        raise ValueError("expected an event if and only if figures are noised")
    is_hidden = policy == "summed"
    if (statement.masked is not None, bool(statement.hidden)) != (is_hidden, is_hidden):
        raise ValueError("expected masked sums if and only if figures are summed")
    if is_hidden and not is_empty:
        raise ValueError("expected no figures beside their masked sums")


class Scores(_Statement):
    """The metrics of a global model on a hospital's evaluation patients, who never train.

    `chain_head` is the same as in a release's manifest. Where metrics are summed over hospitals,
    `hidden` has this hospital's sums, `masked` how they are hidden.
    """

    kind: Literal["scores"]
    model_sha256: Sha256
    chain_head: Sha256
    metrics_policy: MetricsPolicy
    metrics: dict[MetricName, MetricValue]
    masked: Masked | None = None
    hidden: Hidden = ()

    @model_validator(mode="after")
    def _charged_if_and_only_if_noised(self) -> "Scores":
        _check_hidden(self.metrics_policy, self, is_empty=not self.metrics)
        if self.metrics_policy == "noised" and not all(map(is_on_grid, self.metrics.values())):
            raise ValueError("expected noised metrics on the public grid")
        return self


class Comparison(_Statement):
    """The metrics of hospitals' released models on this hospital's evaluation patients.

    By hospital: the sha256 of its model, and the model's metrics here; no metrics if they are withheld.
    """

    kind: Literal["comparison"]
    models: Annotated[dict[Name, Sha256], Field(max_length=1000)]
    metrics: Annotated[dict[Name, dict[MetricName, MetricValue]], Field(max_length=1000)]


class AuditFigures(_Statement):
    """What an attack on a global model found at a hospital, with noise; no figures if withheld.

    `figures` has the AUC of the membership attack with the interval of its noise, and the
    share of evaluation patients whose hospital the released models' outputs give away.
    """

    kind: Literal["audit"]
    model_sha256: Sha256
    figures: dict[MetricName, MetricValue]

    @model_validator(mode="after")
    def _charged_if_and_only_if_figures(self) -> "AuditFigures":
        if bool(self.figures) != (self.event is not None):
            raise ValueError("expected an event if and only if there are figures")
        noised = [name for name in self.figures if name.endswith("mia_auc")]
        if self.figures and sorted(noised) != ["high/mia_auc", "low/mia_auc", "mia_auc"]:
            raise ValueError("expected an AUC with both ends of its interval")
        if not all(is_on_grid(self.figures[name]) for name in noised):
            raise ValueError("expected noised figures on the public grid")
        return self


class Survey(_Statement):
    """Statistics of a hospital's scans: by histogram, the share of the patients in each bin.

    A bin is None if it is suppressed. A hospital that withholds its statistics states no histogram.
    """

    kind: Literal["survey"]
    declared_patients: Count
    statistics_policy: StatisticsPolicy
    histograms: Annotated[dict[MetricName, Bins], Field(max_length=200)]
    masked: Masked | None = None
    hidden: Hidden = ()

    @model_validator(mode="after")
    def _charged_if_and_only_if_noised(self) -> "Survey":
        _check_hidden(self.statistics_policy, self, is_empty=not self.histograms)
        bins = (each for histogram in self.histograms.values() for each in histogram)
        if self.statistics_policy == "noised" and not all(
            each is not None and is_on_grid(each) for each in bins
        ):
            raise ValueError("expected noised statistics on the public grid")
        return self


class Revocation(Config):
    """A hospital's statement, signed with its own key, that this key is no longer valid."""

    kind: Literal["revocation"]
    site: Name
    public_key: Sha256
    at_ms: int


class ModelManifest(Config):
    """The coordinator's statement about a global model; round 0 is the one before training.

    `chain_head` is the head of the round records at the time of the model; the newest record is that of
    the round before. `of` is the hospital that released the model, empty for the global model. `rate` is
    the run's learning rate, where the study leaves it to the run.
    """

    kind: Literal["model"]
    study: str
    study_sha256: Sha256
    run: str
    round: Annotated[int, Field(ge=0)]
    model_sha256: Sha256
    chain_head: Sha256
    of: str = ""
    rate: Annotated[float, Field(gt=0, le=1000)] | None = None


class HeadManifest(Config):
    """The coordinator's statement about a finished round: the head of the chain of its records."""

    kind: Literal["head"]
    run: str
    round: Annotated[int, Field(ge=0)]
    record_sha256: Sha256


SumStatement = SumKeys | SumShares | SumSurvivors | SumOpening
Statement = (
    Readiness | Acceptance | Refusal | Departure | ReleaseManifest | Scores | Comparison | Survey
    | AuditFigures | SumStatement
)  # fmt: skip
_STATEMENT: TypeAdapter[Statement] = TypeAdapter(Annotated[Statement, Field(discriminator="kind")])


class RejectedRelease(ValueError):
    """A statement that the coordinator rejects; the message names the reason."""


def parse_statement(fields: Mapping[str, Any]) -> Statement:
    """Return the statement in `fields`.

    Raises:
        RejectedRelease: its kind is unknown, or a field is missing, wrong or unknown.
    """
    try:
        return _STATEMENT.validate_python(fields)
    except (ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise RejectedRelease("it is nested too deeply") from error
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RejectedRelease(one_line(f"{where}: {first['msg']}")) from error


LARGEST_CHANGE = 1000.0
"""Default of the largest L2 norm of a hospital's change in a round; usual ones are below 100."""
