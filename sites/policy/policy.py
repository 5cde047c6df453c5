"""Policy of a hospital (`site.yaml`): limits that no study can widen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from models.config import Config
from models.networks.choice import NETWORKS, NetworkConfig
from models.settings.tasks import Name
from privacy.accounting import Budget, Filter
from sites import yaml_files
from sites.policy.cluster import ClusterConfig
from sites.policy.opening_hours import Span
from sites.policy.security_log import DAYS
from sites.policy.severities import Check, Severity, severities

PublicKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Refused(Exception):
    """The hospital takes no part. The message leaves the hospital: it must name no patient."""


class DeviceConfig(Config):
    """Device for training, and limits on its use.

    Attributes:
        kind: `cpu` (default), or `cuda` for an NVIDIA GPU.
        index (number of a GPU): number of the GPU, from 0 (default). One hospital at a time trains on
            each GPU.
        memory_mb (MiB): most memory of the hospital's process, in MiB; no limit by default.
        threads (threads): number of CPU threads; 1 by default.
        most_steps (steps): most optimizer steps in a round; no limit by default.
        checkpoint_s (seconds): seconds between two saved states of a training; 30 by default. If the
            process is killed, about this much work is lost.
        cluster: the hospital's own Dask cluster, whose machines or GPUs share the work of private
            training; none by default. Plain training, distillation and scores stay on this machine.
    """

    kind: Literal["cpu", "cuda"] = "cpu"
    index: Annotated[int, Field(ge=0)] = 0
    memory_mb: PositiveInt | None = None
    threads: PositiveInt = 1
    most_steps: PositiveInt | None = None
    checkpoint_s: Annotated[float, Field(ge=0)] = 30
    cluster: ClusterConfig | None = None


class ApprovalConfig(Config):
    """Approval of runs and releases by the policy alone (`auto`, default) or by a person (`manual`).

    Metrics and surveys need no approval; `metrics` and `statistics` decide what leaves.

    Attributes:
        check: approval to answer whether the hospital could take part in a run.
        join: approval to take part in a run. If any check has the severity `stop`, a person is always
            asked, so that nobody outside sees whether that check found anything.
        export: approval of each release, before it leaves.
    """

    check: Literal["auto", "manual"] = "auto"
    join: Literal["auto", "manual"] = "auto"
    export: Literal["auto", "manual"] = "auto"


class CoordinatorConfig(Config):
    """The coordinator whose orders a hospital carries out.

    Attributes:
        key: its public key, 64 hexadecimal digits; only orders and models signed with it are accepted.
        exchange: address of the exchange from which the hospital reads its orders and to which it writes
            its answers.
        api: address of Prefect's API, which reports that there is work. It must begin with `https://`,
            which protects the password, or name this machine.
    """

    key: PublicKey
    exchange: str
    api: Annotated[str, Field(pattern=r"^(https://|http://(127\.0\.0\.1|localhost)[:/])")]


class NoisedMetrics(Config):
    """Cost of noised metrics to the evaluation patients.

    Attributes:
        epsilon (no unit): what all noised evaluations of one run together may cost an evaluation
            patient, at the budget's delta.
        evaluations (evaluations): number of evaluations of a run among which it is divided; later ones
            are withheld.
    """

    epsilon: Annotated[float, Field(gt=0)]
    evaluations: PositiveInt


class SuppressedStatistics(Config):
    """Surveys report bins with enough patients only; this is not differential privacy.

    Attributes:
        smallest (patients): smallest number of patients in a reported bin; 10 by default, at least 3.
    """

    kind: Literal["suppressed"]
    smallest: Annotated[int, Field(ge=3)] = 10


class NoisedStatistics(Config):
    """Surveys with noise.

    Attributes:
        epsilon (no unit): what each survey costs every patient, at the budget's delta.
        per_study (surveys): most surveys of one study; 3 by default. Later ones are withheld.
        per_week (surveys): most surveys of all studies in seven days; 2 by default. Later ones are
            withheld.
    """

    kind: Literal["noised"]
    epsilon: Annotated[float, Field(gt=0)]
    per_study: PositiveInt = 3
    per_week: PositiveInt = 2


class SharedNoiseConfig(Config):
    """Limits on studies in which this hospital adds only a share of the noise.

    Attributes:
        colluding (hospitals): the least number of hospitals that a study must expect to side with the
            coordinator; 1 by default. With 0, one other hospital that tells what it added makes the sum
            less private.
        own_epsilon (no unit): the most that a whole run may cost a patient, at the budget's delta, if
            nobody but this hospital added noise; no limit by default.
    """

    colluding: Annotated[int, Field(ge=0)] = 1
    own_epsilon: Annotated[float, Field(gt=0)] | None = None


class AuditConfig(Config):
    """Audit of a run's models at this hospital, after training, and what of it may leave.

    The report with all attacks stays in `state/audits/`. What leaves is one number with noise: how well
    the global model's losses tell who trained it (`docs/audits.md`).

    Attributes:
        epsilon (no unit): what all audits of one run together may cost a training patient, at the
            budget's delta.
        shadows (trainings): twins of the training, of each kind, for the likelihood-ratio attack; 8 by
            default.
        plain_steps (steps): steps of a twin without privacy; 60 by default.
        canaries (gradients): gradients that are planted in the audit of one training; 10,000 by default,
            0 for none.
    """

    epsilon: Annotated[float, Field(gt=0)]
    shadows: Annotated[int, Field(ge=4, le=256)] = 8
    plain_steps: PositiveInt = 60
    canaries: Annotated[int, Field(ge=0, le=10**6)] = 10_000


class Policy(Config):
    """Content of a `site.yaml`.

    Attributes:
        name: the hospital's name in the federation.
        data: folder with the scans and their list, relative to `site.yaml`; by default its own folder.
        channels: by the name of a study's channel, the list's own name for it, such as `{t1: T1w}`; none
            by default, where both are the same. `image` is a list's one image without a name.
        label_map (values of labels): by a value or a name of a label in the hospital's data, the value
            that studies have for it, such as `{4: 3}`; none by default.
        declared_patients (patients): public number of patients, rounded by the hospital; every weight
            and divisor uses it, never the true count.
        min_patients (patients): smallest number of listed training patients with which the hospital
            takes part. Without privacy, so many scans must also be usable.
        min_evaluation_patients (patients): smallest number of listed evaluation patients with which
            metrics leave. One without a usable scan counts as a miss.
        evaluation_fraction (share): share of the patients who only evaluate, chosen by keyed hash; they
            never train in any study. 0.25 by default.
        budget: the most that all studies together may spend on any patient (epsilon, delta).
        networks: names of the networks that may train here.
        teacher: the hospital's own network for studies with distillation whose task is of its kind; by
            default the study's.
        metrics: `exact` metrics of evaluation patients leave, without any privacy guarantee: those of
            classes rounded to what the declared number of evaluation patients could give, those of
            segmentations to three digits, which may still show how many patients have a label. `noised`
            metrics leave, and the ledger is charged as `noised_metrics` states; or they are `withheld`.
        noised_metrics: cost of noised metrics; expected exactly if `metrics` is `noised`.
        worst_case: `tell` also publishes the metrics of the worst evaluation patient beside the exact
            means; `withhold` (default) does not.
        cross_site: in studies that compare models, `allow` lets other hospitals score this hospital's
            released model, and scores theirs on its evaluation patients where metrics are exact.
            `refuse` by default.
        group: a public name for the kind of the hospital's scans, by which reports compare; none by
            default.
        statistics: what a survey of the scans may report: `withheld` (default), suppressed or noised.
        audit: audits of the models that this hospital trained, which take minutes: `withheld` (default)
            does none, else `{epsilon: ...}`; needs `metrics: exact`.
        plain_studies: `allow` lets studies without differential privacy train here; `refuse` by default.
        sampled_steps: `allow` lets studies sample the patients of a step; `refuse` by default. With
            `allow` every charge is counted by Renyi DP, full batches included (about 13 % more). Choose
            before the first charge.
        approve: approval of runs and releases by a person; by default by the policy alone.
        free_answers_per_week (answers): most answers in seven days that cost nothing: to `check`, `join`
            and `survey`, and scores for runs that the hospital has not joined; 100 by default.
        on_broken_case: `skip` leaves out a case that can't be used; `stop` also asks a person before the
            hospital joins a study.
        checks: consequence of single findings (`stop`, `skip`, `warn`) that replaces the default in
            `sites.imaging.checks`.
        cache_mb (MiB): largest size of the cache of read scans, in MiB; 4096 by default.
        disk_mb (MiB): largest size of `state/` with the cache, in MiB; without room no round is joined.
            No limit by default.
        hours: spans in which the hospital works, such as `20:00-06:00`, in its machine's local time;
            always by default. A training that has started continues in the next span if the round still
            waits for it.
        device: device for training, and limits on its use.
        security_log_days (days): days for which security events are kept (`wardround site events`); 2192
            by default, six years.
        peers: the other hospitals' public keys by name, 64 hexadecimal digits each, as `wardround site
            init` prints them there. Needed for studies with a secure sum: only hospitals listed here are
            members, so nobody can invent some. None by default.
        shared_noise: `refuse` (default) studies with `privacy.mode: shared_noise`, or the limits within
            which the hospital takes part in them.
        coordinator: the coordinator whose orders the hospital fetches; not needed if both are on one
            machine.
        phantom: `true` marks made-up patients; only then may noise be repeatable for tests. `false` by
            default.
    """

    name: Name
    data: str = "."
    channels: Mapping[Name, str] = Field(default_factory=dict)
    label_map: Mapping[int | str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
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
    statistics: (
        Literal["withheld"]
        | Annotated[SuppressedStatistics | NoisedStatistics, Field(discriminator="kind")]
    ) = "withheld"
    audit: Literal["withheld"] | AuditConfig = "withheld"
    plain_studies: Literal["refuse", "allow"] = "refuse"
    sampled_steps: Literal["refuse", "allow"] = "refuse"
    approve: ApprovalConfig = ApprovalConfig()
    free_answers_per_week: PositiveInt = 100
    on_broken_case: Literal["skip", "stop"]
    checks: Mapping[Check, Severity] = Field(default_factory=dict)
    cache_mb: Annotated[int, Field(ge=0)] = 4096
    disk_mb: PositiveInt | None = None
    hours: tuple[Span, ...] = ()
    device: DeviceConfig = DeviceConfig()
    security_log_days: Annotated[int, Field(ge=1, le=36500)] = DAYS
    peers: Mapping[Name, PublicKey] = Field(default_factory=dict)
    shared_noise: Literal["refuse"] | SharedNoiseConfig = "refuse"
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
                f"worst_case: expected withhold, as metrics is {self.metrics}; one patient's metrics "
                f"leave exactly or not at all."
            )
        return self

    @model_validator(mode="after")
    def _audits_of_exact_metrics(self) -> "Policy":
        if self.audit != "withheld" and self.metrics != "exact":
            raise ValueError(
                f"audit: expected withheld, as metrics is {self.metrics}: an audit's noise protects "
                f"training patients, and compares them with evaluation patients as exact metrics do."
            )
        return self

    @model_validator(mode="after")
    def _room_beside_the_cache(self) -> "Policy":
        if self.disk_mb is not None and self.disk_mb <= self.cache_mb:
            raise ValueError(
                f"disk_mb: expected more than cache_mb = {self.cache_mb}, which is part of it, "
                f"got {self.disk_mb}."
            )
        return self

    @model_validator(mode="after")
    def _peers_apart(self) -> "Policy":
        if len(set(self.peers.values())) < len(self.peers):
            raise ValueError(
                "peers: expected a key of its own for each hospital, one stands there twice."
            )
        return self

    @model_validator(mode="after")
    def _sensible_severities(self) -> "Policy":
        _ = self.severities
        return self

    @property
    def severities(self) -> dict[str, Severity]:
        """The consequence of each finding of the checks: `stop`, `skip` or `warn`."""
        return severities(self.checks, self.on_broken_case)

    @property
    def person_joins(self) -> bool:
        """Whether a person of the hospital decides on joining a study."""
        return self.approve.join == "manual" or "stop" in self.severities.values()

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
        """The public number of patients who train: `declared_patients` less the share who evaluate."""
        return max(1, round(self.declared_patients * (1 - self.evaluation_fraction)))


def load_policy(folder: Path) -> Policy:
    """Return the policy of the hospital in `folder`, or raise `ConfigError`."""
    path = folder / "site.yaml"
    policy = yaml_files.load(path, Policy)
    if not (folder / policy.data).is_dir():
        raise yaml_files.ConfigError(
            f"{path}: data: expected a folder, got {policy.data!r}, which is none. "
            f"Give the folder with the list of scans, relative to site.yaml."
        )
    return policy
