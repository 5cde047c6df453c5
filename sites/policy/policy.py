"""The hospital's own limits (`site.yaml`), which no study can widen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from models.config import Config
from models.networks import NETWORKS, NetworkConfig
from models.objectives import Name
from privacy.accounting import Budget, Filter
from sites import yaml_files
from sites.imaging.checks import Check, Severity, severities
from sites.policy.opening_hours import Span


class Refused(Exception):
    """The hospital takes no part. The message leaves the hospital: it tells of no patient."""


class DeviceConfig(Config):
    """Where training runs, and how.

    Attributes:
        index: which of the machine's accelerators; one hospital at a time trains on each.
        threads: of the CPU.
        memory_mb: what the hospital's process may have, if limited.
        most_steps: how many steps a round may take, if limited.
        checkpoint_s: how often it is kept how far a training has come: so much work a kill may cost.
    """

    kind: Literal["cpu", "cuda"] = "cpu"
    index: Annotated[int, Field(ge=0)] = 0
    memory_mb: PositiveInt | None = None
    threads: PositiveInt = 1
    most_steps: PositiveInt | None = None
    checkpoint_s: Annotated[float, Field(ge=0)] = 30


class ApprovalConfig(Config):
    """Who lets the hospital join a study and a release leave: `auto`, the policy alone, or a person.

    Metrics and surveys leave as `metrics` and `statistics` say, without anybody's word.
    """

    join: Literal["auto", "manual"] = "auto"
    export: Literal["auto", "manual"] = "auto"


class CoordinatorConfig(Config):
    """The coordinator that a hospital works for.

    Attributes:
        key: its public key; nobody else's orders and models count.
        exchange: where this hospital finds its orders and lays down its answers.
        api: where Prefect's API answers, to say that there is work; over https, as its password needs.
    """

    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    exchange: str
    api: Annotated[str, Field(pattern=r"^(https://|http://(127\.0\.0\.1|localhost)[:/])")]


class NoisedMetrics(Config):
    """What the metrics of one run may cost an evaluation patient, over so many evaluations.

    Later evaluations of the run are withheld.
    """

    epsilon: Annotated[float, Field(gt=0)]
    evaluations: PositiveInt


class SuppressedStatistics(Config):
    """Surveys tell what `smallest` patients or more have in common. That is no differential privacy."""

    kind: Literal["suppressed"]
    smallest: Annotated[int, Field(ge=3)] = 10


class NoisedStatistics(Config):
    """Every survey costs each patient this epsilon at the budget's delta."""

    kind: Literal["noised"]
    epsilon: Annotated[float, Field(gt=0)]


class Policy(Config):
    """A `site.yaml`.

    Attributes:
        declared_patients: public number of patients, rounded by the hospital; every weight and
            divisor uses it, never the true count.
        evaluation_fraction: of the patients, chosen by keyed hash; they never train in any study.
        teacher: the hospital's own network, in studies that distil and are of its kind; by default the
            study's.
        metrics: `exact` figures of evaluation patients leave (no privacy is promised to them);
            `noised` ones do, charged to the ledger as `noised_metrics` says; or they are `withheld`.
        worst_case: whether the worst evaluation patient's figures leave beside the exact means.
        cross_site: whether, in studies that compare, the hospital's released model is scored at other
            hospitals, and theirs on its evaluation patients, where metrics are exact.
        group: a public word for what the hospital's scans are like, by which reports compare.
        statistics: what a survey may tell of the scans.
        plain_studies: whether studies without differential privacy may train here.
        sampled_steps: whether studies may sample patients for a step. With `allow` every charge is
            counted by Renyi DP, full batches too (some 13 % more); choose before the first charge.
        checks: what becomes of a finding (`stop`, `skip`, `warn`), where `sites.imaging.checks` has
        another
            default.
        cache_mb: how large the cache of read scans may grow.
        disk_mb: how large `state/` may grow with the cache; without room no round is joined.
        hours: when the hospital works, such as `20:00-06:00` in its machine's time; always, if empty.
            A training that has begun goes on in the next hours, if the round waits for it so long.
        coordinator: whom the hospital works for; not needed on one machine with the coordinator.
        phantom: made-up patients; only then may noise be repeatable for tests.
    """

    name: Name
    data: str = "."
    declared_patients: PositiveInt
    min_patients: PositiveInt
    min_evaluation_patients: PositiveInt
    evaluation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    budget: Budget
    networks: Annotated[tuple[str, ...], Field(min_length=1)]
    teacher: NetworkConfig | None = None
    metrics: Literal["exact", "noised", "withheld"]
    noised_metrics: NoisedMetrics | None = None
    worst_case: Literal["withhold", "tell"] = "withhold"
    cross_site: Literal["refuse", "allow"] = "refuse"
    group: Name | None = None
    statistics: Literal["withheld"] | SuppressedStatistics | NoisedStatistics = "withheld"
    plain_studies: Literal["refuse", "allow"] = "refuse"
    sampled_steps: Literal["refuse", "allow"] = "refuse"
    approve: ApprovalConfig = ApprovalConfig()
    on_broken_case: Literal["skip", "stop"]
    checks: Mapping[Check, Severity] = Field(default_factory=dict)
    cache_mb: Annotated[int, Field(ge=0)] = 4096
    disk_mb: PositiveInt | None = None
    hours: tuple[Span, ...] = ()
    device: DeviceConfig = DeviceConfig()
    coordinator: CoordinatorConfig | None = None
    phantom: bool = False

    @model_validator(mode="after")
    def _known_networks(self) -> "Policy":
        if unknown := sorted(set(self.networks) - NETWORKS):
            raise ValueError(
                f"networks: expected some of {sorted(NETWORKS)}; {unknown[0]!r} is none of them."
            )
        if self.teacher and self.teacher.name not in self.networks:
            raise ValueError(
                f"teacher: expected one of the policy's networks {list(self.networks)}, got "
                f"{self.teacher.name!r}."
            )
        return self

    @model_validator(mode="after")
    def _noise_where_it_is_asked_for(self) -> "Policy":
        if (self.metrics == "noised") != (self.noised_metrics is not None):
            raise ValueError(
                "noised_metrics: expected {epsilon, evaluations} exactly where metrics is noised."
            )
        if self.worst_case == "tell" and self.metrics != "exact":
            raise ValueError(
                f"worst_case: expected withhold, as metrics is {self.metrics}; one patient's figures "
                f"leave as they are or not at all."
            )
        return self

    @model_validator(mode="after")
    def _room_beside_the_cache(self) -> "Policy":
        if self.disk_mb is not None and self.disk_mb <= self.cache_mb:
            raise ValueError(
                f"disk_mb: expected more than cache_mb, {self.cache_mb}, which is part of it, "
                f"got {self.disk_mb}."
            )
        return self

    @model_validator(mode="after")
    def _sensible_severities(self) -> "Policy":
        _ = self.severities
        return self

    @property
    def severities(self) -> dict[str, Severity]:
        """What becomes of each finding of the checks."""
        return severities(self.checks, self.on_broken_case)

    @property
    def rule(self) -> Filter:
        """The filter that enforces the budget, chosen before the first charge."""
        return "renyi" if self.sampled_steps == "allow" else "gaussian"

    @property
    def declared_evaluation(self) -> int:
        """The public number of patients who evaluate."""
        return max(1, self.declared_patients - self.declared_training)

    @property
    def declared_training(self) -> int:
        """The public number of patients who train: the declared ones less the evaluated share."""
        return max(1, round(self.declared_patients * (1 - self.evaluation_fraction)))


def load_policy(folder: Path) -> Policy:
    """Return the policy of the hospital in `folder`, or raise `ConfigError`."""
    path = folder / "site.yaml"
    policy = yaml_files.load(path, Policy)
    if not (folder / policy.data).is_dir():
        raise yaml_files.ConfigError(
            f"{path}: data: expected a folder, got {policy.data!r}, which is none. "
            f"Give the folder with dataset.json, relative to site.yaml."
        )
    return policy
