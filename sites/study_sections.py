"""Sections of a study beside its training, and whether its sections fit each other."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, PositiveInt

from models.config import Config
from models.networks.choice import NetworkConfig
from models.networks.network import Images
from models.settings.images import PreprocessingConfig
from models.settings.metrics import LOWER_IS_BETTER, bounded_names, metric_names
from models.settings.opponents import AttackConfig
from models.settings.strategies import StrategyConfig
from models.settings.tasks import TaskConfig
from privacy.mechanisms import MaskedPrivacy, PrivacyConfig, SharedNoise
from privacy.secure_aggregation.terms import BadTerms, Terms
from sites.training.config import TrainingConfig


class StalenessConfig(Config):
    """Late releases: one that comes after its round counts in a later round, with a smaller weight.

    It counts only if its hospital has sent no newer release.

    Attributes:
        rounds (rounds): number of rounds that a release may be late; 1 to 10.
        power (no unit): the weight of a release that is s rounds late is multiplied by (1 + s)^-power;
            0.5 by default (Xie et al. 2019, Asynchronous Federated Optimization, section 5.2,
            https://arxiv.org/abs/1903.03934).
    """

    rounds: Annotated[int, Field(ge=1, le=10)]
    power: Annotated[float, Field(ge=0)] = 0.5

    def share(self, late: int) -> float:
        """Return the factor on the weight of a release that is `late` rounds late.

        >>> StalenessConfig(rounds=3).share(3)
        0.5
        """
        return float((1 + late) ** -self.power)


class QuorumConfig(Config):
    """The number of hospitals that a round needs, and the time that it waits for them.

    Attributes:
        min (hospitals): the smallest number of hospitals that take part in the run and release in each
            round.
        deadline_s (seconds): seconds that a round waits for a hospital's answer; 600 by default.
        staleness: rule for releases that come after their round; without it they do not count.
    """

    min: PositiveInt
    deadline_s: Annotated[float, Field(gt=0)] = 600
    staleness: StalenessConfig | None = None


class SummedConfig(Config):
    """Figures of all hospitals together, noised and readable in their sum alone.

    Attributes:
        epsilon (no unit): what they cost a patient, at the study's delta.
    """

    epsilon: Annotated[float, Field(gt=0)]


class EvaluationConfig(Config):
    """Evaluation of global models: the model before training, every `every`-th one and the last one.

    Attributes:
        every (rounds): rounds from one evaluation to the next; 1 by default.
        attack: an attack on the evaluation images. Hospitals with exact metrics then also report those
            of attacked images, `attacked/<name>`. None by default.
        teachers: with `true`, hospitals with exact metrics also report those of their own teacher,
            `teacher/<name>`, and of its student before averaging, `student/<name>`. `false` by default.
        cross_site: with `true`, each hospital's released model of the last round is scored at every
            hospital that allows it. `false` by default.
        summed: noised metrics are summed over all hospitals in a secure sum, and no hospital's own
            leave; for studies with one. `epsilon` is what all evaluations of a run cost a patient.
    """

    every: PositiveInt = 1
    summed: SummedConfig | None = None
    attack: AttackConfig | None = None
    teachers: bool = False
    cross_site: bool = False


Share = Annotated[float, Field(ge=0, le=1)]


class PromotionConfig(Config):
    """Criteria that a model has to meet before people may release it.

    A criterion that is left out is not checked. Evidence that is missing counts as failed. A mean over
    hospitals is weighted by their declared numbers of training patients.

    Attributes:
        metric: the metric of quality; a larger value must be better.
        mean (no unit): smallest accepted mean of the metric over the hospitals.
        gain (no unit): smallest accepted gain of that mean over the model before training, 0 or more; a
            model that is not better than its start never passes.
        worst_site (no unit): smallest accepted value of the metric at each hospital that has released in
            the run.
        calibration_error (no unit): largest accepted mean calibration error; for classification only.
        epsilon (no unit): largest accepted epsilon that a hospital has spent in the run.
        attack_auc (no unit): largest accepted AUC of the attack in a privacy audit.
        approval_days (days): days for which a person's approval is valid; 30 by default.
    """

    metric: str
    mean: Share | None = None
    gain: Share | None = None
    worst_site: Share | None = None
    calibration_error: Share | None = None
    epsilon: Annotated[float, Field(gt=0)] | None = None
    attack_auc: Share | None = None
    approval_days: Annotated[int, Field(ge=1, le=365)] = 30


class CardConfig(Config):
    """Statements for the model card that only people can make; an empty text means not stated.

    Source: Mitchell et al. 2019, Model Cards for Model Reporting, https://arxiv.org/abs/1810.03993.

    Attributes:
        authors: who made the model.
        licence: licence of the model.
        contact: whom to ask.
        intended_use: what the model is for.
        intended_users: who is to use it.
        out_of_scope: what it must not be used for.
        factors: groups, devices and settings by which quality may differ.
        training_data: where the training data come from.
        evaluation_data: where the evaluation data come from.
        ethical_considerations: consents, risks, mitigations.
        caveats: what else a user has to know.
    """

    authors: str = ""
    licence: str = ""
    contact: str = ""
    intended_use: str = ""
    intended_users: str = ""
    out_of_scope: str = ""
    factors: str = ""
    training_data: str = ""
    evaluation_data: str = ""
    ethical_considerations: str = ""
    caveats: str = ""


def sum_faults(
    privacy: PrivacyConfig,
    *,
    export: str,
    strategy: StrategyConfig,
    training: TrainingConfig,
    sites: QuorumConfig,
    evaluation: EvaluationConfig,
    survey: SummedConfig | None,
) -> Iterator[str]:
    """Yield why a study can't have its secure sums, or no clipped sum without one."""
    cross_site = evaluation.cross_site
    yield from _export_faults(privacy, export)
    if not isinstance(privacy, MaskedPrivacy | SharedNoise):
        if evaluation.summed or survey:
            yield (
                f"evaluation.summed, survey: expected privacy.mode: masked or shared_noise, whose `sum` "
                f"says how many hospitals may drop out and collude; got {privacy.mode}."
            )
        return
    if evaluation.summed and (evaluation.attack or evaluation.teachers):
        yield "evaluation.summed: expected no attack and no teachers, whose metrics no noise covers."
    if export == "predictions":
        yield "privacy.mode: expected local where predictions leave; their ensemble is no plain sum."
    if strategy.build().needs_each or sites.staleness or cross_site:
        yield (
            f"privacy.mode: expected local with {strategy.name}, sites.staleness or "
            f"evaluation.cross_site where they look at single releases; in a secure sum nobody can. "
            f"Take fed_avg, fed_avg_m, fed_adam, fed_yogi or fed_adagrad, and neither of the others."
        )
    if privacy.mode == "shared_noise" and privacy.unit == "patient":
        yield from _step_faults(training, strategy)
    if privacy.mode == "shared_noise" and privacy.unit == "hospital":
        yield from _change_faults(strategy)
    try:
        Terms("", sites.min, privacy.sum.dropouts, privacy.sum.colluding)
    except BadTerms as error:
        yield f"privacy.sum, with sites.min = {sites.min} hospitals: {error}"


def _export_faults(privacy: PrivacyConfig, export: str) -> Iterator[str]:
    """Yield why a mode and an export do not fit: a share of the noise protects one clipped sum only."""
    if privacy.mode == "shared_noise" and privacy.unit == "hospital":
        if export != "weights":
            yield (
                f"export: expected weights with privacy.unit: hospital, whose clipped changes are "
                f"summed, got {export}."
            )
    elif (privacy.mode == "shared_noise") != (export == "gradient_sum"):
        yield (
            f"privacy.mode: expected shared_noise exactly with export: gradient_sum, got {privacy.mode} "
            f"with {export}; a share of the noise protects one sum of clipped gradients only, and no "
            f"student, weights or predictions. Take `masked`, which has the full noise, for these, or "
            f"privacy.unit: hospital for a sum of clipped changes of the weights."
        )


def _step_faults(training: TrainingConfig, strategy: StrategyConfig) -> Iterator[str]:
    if not (training.steps == 1 and training.lot == "all" and not training.momentum):
        yield (
            "training: expected steps: 1, lot: all and momentum: 0 with shared_noise; each round is one "
            "step over all patients, and fed_avg_m has the momentum of the rounds."
        )
    built = strategy.build()
    if built.local_loss or built.personal_loss or built.local_of:
        yield (
            f"strategy: expected one without local steps or layers for shared_noise, got "
            f"{strategy.name}."
        )


def _change_faults(strategy: StrategyConfig) -> Iterator[str]:
    built = strategy.build()
    if built.local_of or built.personal_loss:
        yield (
            f"strategy: expected one without local or personal layers for privacy.unit: hospital, got "
            f"{strategy.name}; no noise covers what stays in them and shows in metrics."
        )


def check_network(
    task: TaskConfig, preprocessing: PreprocessingConfig, key: str, network: NetworkConfig
) -> None:
    """Raise ValueError, which names `key`, if a network does not fit a study's task or images."""
    if network.kind != (kind := task.network_kind):
        raise ValueError(f"{key}: expected a network for {kind}, got {network.name} for {network.kind}.")
    network.check_input(key, Images(preprocessing.shape, preprocessing.spacing_mm))


def eight_bit_faults(export: str, strategy: StrategyConfig, *, is_summed: bool) -> Iterator[str]:
    """Yield why a study's releases can't leave in eight bits."""
    if is_summed or export == "predictions":
        yield (
            "release_bits: expected 32 where releases are masked sums or predictions, which have whole "
            "numbers of their own; remove it."
        )
    if strategy.build().corrects:
        yield (
            f"release_bits: expected 32 with {strategy.name}, whose corrections follow from the "
            f"releases to their last bit; remove it."
        )


def promotion_faults(
    promotion: PromotionConfig | None, task: TaskConfig, *, is_private: bool, is_summed: bool
) -> Iterator[str]:
    """Yield why a study can't measure the criteria of its release."""
    if promotion is None:
        return
    if is_summed and promotion.worst_site is not None:
        yield "promotion.worst_site: expected none with evaluation.summed, where no hospital's is known."
    names = set(metric_names(task))
    if is_summed:  # those that each patient has
        names &= {*bounded_names(task), "dice"}
    good = sorted(name for name in names if name not in LOWER_IS_BETTER)
    if promotion.metric not in good:
        yield f"promotion.metric: expected one of {good}, got {promotion.metric!r}."
    if promotion.calibration_error is not None and "calibration_error" not in names:
        yield f"promotion.calibration_error: expected none; {task.kind} has no such metric."
    if promotion.epsilon is not None and not is_private:
        yield "promotion.epsilon: expected none in a study without privacy, which has no epsilon."
