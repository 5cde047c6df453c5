"""The record of a round, and what it is made of: a signed statement of each hospital, or its absence."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Discriminator, Field, Tag

from models.config import Config
from models.files import sha256_of
from privacy.signing import canonical
from privacy.statements import Acceptance, Comparison, ReleaseManifest, Scores, Sha256, Statement, Survey

GENESIS = "0" * 64
"""The predecessor of a chain's first link."""

HEADLINES = ("dice", "auroc", "accuracy", "within_tolerance")
"""Metrics that stand for a model's quality, in order of preference."""

S_co = TypeVar("S_co", bound=Statement, covariant=True)
Part = Literal["release", "scores", "comparison"]
"""The parts that a hospital has in a round."""


class Signed(Config, Generic[S_co]):
    """A hospital's statement, the sha256 of the signed file, and the public key that signed it."""

    statement: S_co
    statement_sha256: Sha256
    public_key: Sha256


class Absence(Config):
    """The reason why a hospital's statement is missing.

    Attributes:
        kind: `refused` by the hospital, in words that it has signed; `missing`: nothing came, or the
            hospital was not asked; `rejected` by the coordinator: something came and does not count.
        text: the hospital's own words for `refused`, the coordinator's for the others.
    """

    kind: Literal["refused", "missing", "rejected"]
    text: str

    def __str__(self) -> str:
        prefix = {"refused": "it refused: ", "missing": "", "rejected": "its answer was rejected: "}
        return prefix[self.kind] + self.text


class AcceptedRelease(Signed[ReleaseManifest]):
    """A release that a round accepted. `weight` already counts how late the release was."""

    weight: float


def _form(value: object) -> str:
    """Return which of two forms a part has: only an absence has a kind."""
    has_kind = "kind" in value if isinstance(value, dict) else isinstance(value, Absence)
    return "absence" if has_kind else "statement"


_Absent = Annotated[Absence, Tag("absence")]
_Form = Discriminator(_form)


class HospitalRound(Config):
    """One hospital's part of a round: statements, or why they are missing; None where none was due.

    Attributes:
        release: what it contributed.
        scores: how the round's model does on its evaluation patients.
        comparison: how hospitals' released models do there.
        seconds: how long the coordinator waited for its contribution.
    """

    release: Annotated[Annotated[AcceptedRelease, Tag("statement")] | _Absent, _Form] | None = None
    scores: Annotated[Annotated[Signed[Scores], Tag("statement")] | _Absent, _Form] | None = None
    comparison: Annotated[Annotated[Signed[Comparison], Tag("statement")] | _Absent, _Form] | None = None
    seconds: float | None = None


class SumRecord(Config):
    """A round's secure sum.

    Attributes:
        attempt: number of the attempt that ended in the sum, or of the present one.
        phases: by phase, the sha256 of each member's statement.
        relay: sha256 of the object with the statements of the newest phase.
        failed: True if too few hospitals answered in a phase of this attempt.
        absent: why hospitals are not in it, for a sum of figures.
    """

    attempt: Annotated[int, Field(ge=1)]
    phases: dict[str, dict[str, Sha256]] = Field(default_factory=dict)
    relay: str = ""
    failed: bool = False
    absent: dict[str, Absence] = Field(default_factory=dict)

    def members(self, phase: str) -> dict[str, str]:
        """Return the sha256 of each member's statement of a phase; none before it is decided."""
        return dict(self.phases.get(phase, {}))


class StageRecord(Config):
    """One stage of a start.

    Attributes:
        kind: of the study's stage.
        source: sha256 of the public material; empty for synthetic images.
        model_sha256: of the model after the stage.
        measured_on: the cases of `reached`; empty without any.
        reached: the metrics of the model after the stage.
    """

    kind: str
    source: Sha256 | Literal[""]
    model_sha256: Sha256
    measured_on: str
    reached: dict[str, float]


class StartRecord(Config):
    """How the first model was made, and the learning rate that follows from it; no patient is involved.

    Attributes:
        tolerance: standard deviation of noise on each parameter that the model bears, as measured on
            public or drawn cases; None without any.
        strength: strength of the run's signal against its noise; None without privacy.
        rate: the highest learning rate, where the study leaves it to the run.
    """

    stages: tuple[StageRecord, ...] = ()
    tolerance: float | None = None
    strength: float | None = None
    rate: float | None = None


class RoundRecord(Config):
    """A finished round, chained to the one before by `previous`, its sha256.

    Round 0 is the model before training.

    Attributes:
        base_sha256: of the model that the round started from.
        model_sha256: of the model that it ended with.
        hospitals: each hospital's part.
        quality: each metric's mean over the hospitals that published it, by declared patients.
        software: the versions of the coordinator's libraries.
        start: how the first model was made; in round 0 alone.
        sum: the secure sum of the round's releases, where the study has one.
        metrics_sum: that of the metrics of the round's model.
    """

    study: str
    study_sha256: Sha256
    run: str
    round: int
    previous: Sha256
    base_sha256: Sha256
    model_sha256: Sha256
    hospitals: dict[str, HospitalRound]
    quality: dict[str, float]
    seconds: float
    finished_ms: int
    software: dict[str, str]
    start: StartRecord | None = None
    sum: SumRecord | None = None
    metrics_sum: SumRecord | None = None

    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> "RoundRecord":
        """Return a copy with changes; nothing that was computed from the fields before is in it."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    @cached_property
    def data(self) -> bytes:
        """The record's one JSON text."""
        return canonical(self.model_dump(mode="json"))

    @cached_property
    def sha256(self) -> str:
        """The head of the chain while this record is the newest."""
        return sha256_of(self.data)

    @cached_property
    def start_rate(self) -> float | None:
        """The run's learning rate, in the record of round 0 where the study leaves it to the run."""
        return self.start.rate if self.start else None

    @cached_property
    def releases(self) -> dict[str, AcceptedRelease]:
        """The accepted releases by hospital."""
        found = {site: each.release for site, each in self.hospitals.items()}
        return {site: r for site, r in found.items() if isinstance(r, AcceptedRelease)}

    @cached_property
    def scores(self) -> dict[str, Signed[Scores]]:
        """The hospitals' signed scores of the round's model."""
        found = {site: each.scores for site, each in self.hospitals.items()}
        return {site: s for site, s in found.items() if isinstance(s, Signed)}

    @cached_property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The metrics of the round's model by hospital."""
        return {site: dict(signed.statement.metrics) for site, signed in self.scores.items()}

    @cached_property
    def comparisons(self) -> dict[str, Signed[Comparison]]:
        """The hospitals' signed comparisons of released models; a withheld one is left out."""
        found = {site: each.comparison for site, each in self.hospitals.items()}
        return {site: c for site, c in found.items() if isinstance(c, Signed) and c.statement.metrics}

    @cached_property
    def cross_site(self) -> dict[str, dict[str, dict[str, float]]]:
        """By hospital: how each hospital's released model does there."""
        return {
            site: {of: dict(metrics) for of, metrics in signed.statement.metrics.items()}
            for site, signed in self.comparisons.items()
        }

    @cached_property
    def headline(self) -> str | None:
        """The metric that stands for the model's quality, None if no hospital published any."""
        return next((name for name in HEADLINES if name in self.quality), None)

    def absences(self, part: Part) -> dict[str, Absence]:
        """Return by hospital why a part is missing."""
        found = {site: getattr(each, part) for site, each in sorted(self.hospitals.items())}
        return {site: why for site, why in found.items() if isinstance(why, Absence)}


def head_before(records: Sequence[RoundRecord], round: int) -> str:
    """Return the head of the chain when a round's model was published."""
    return records[round - 1].sha256 if round else GENESIS


class Participant(Signed[Acceptance]):
    """A hospital that takes part: its signed acceptance, the key that signs for it now, its first round.

    `public_key` signed the acceptance; `key` may have replaced it since.
    """

    key: Sha256
    since: int = 1


DRIFTED = 0.25
"""From this drift on a person should look at a histogram."""


class SurveyRecord(Config):
    """A survey: each hospital's answer, and how far it is from the hospital's answer before.

    A drift is 0 where a histogram is unchanged, 1 where old and new share nothing. `total` has the
    histograms of all hospitals together, where a study sums them.
    """

    study: str
    run: str
    number: int
    started_ms: int
    surveys: dict[str, Survey]
    absent: dict[str, Absence]
    drift: dict[str, dict[str, float]]
    total: dict[str, list[float | None]] = Field(default_factory=dict)

    @property
    def drifted(self) -> Mapping[str, list[str]]:
        """By hospital the histograms that a person should look at."""
        found = {
            site: [name for name, moved in each.items() if moved >= DRIFTED]
            for site, each in self.drift.items()
        }
        return {site: names for site, names in found.items() if names}


def newest_scored(records: Sequence[RoundRecord]) -> RoundRecord:
    """Return the newest record that has scores, the newest of all where none has."""
    return next((record for record in reversed(records) if record.scores), records[-1])
