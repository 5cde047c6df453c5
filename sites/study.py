"""Study: the settings that all hospitals agree on before round 1, checked once, frozen and hashed."""

from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from models.adversarial import AttackConfig
from models.config import Config
from models.networks import NetworkConfig
from models.objectives import LOWER_IS_BETTER, Name, TaskConfig, metric_names, spread_names
from models.prior import PriorConfig
from models.strategies import Strategy, StrategyConfig
from models.synthesis import SynthesisConfig
from privacy.distillation import DistillationConfig
from privacy.mechanisms import PrivacyConfig
from privacy.release import LARGEST_CHANGE
from privacy.signing import canonical
from sites import yaml_files
from sites.imaging.preprocessing import Patches, PreprocessingConfig
from sites.training.config import TrainingConfig


class StalenessConfig(Config):
    """Late releases: one that comes after its round counts in a later round, with a smaller weight.

    It counts only if its hospital has sent no newer release.

    Attributes:
        rounds: number of rounds that a release may be late; 1 to 10.
        power: the weight of a release that is s rounds late is multiplied by (1 + s)^-power; 0.5 by
            default (Xie et al. 2019, Asynchronous Federated Optimization, section 5.2,
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
        min: the smallest number of hospitals that take part in the run and release in each round.
        deadline_s: seconds that a round waits for a hospital's answer; 600 by default.
        staleness: rule for releases that come after their round; without it they do not count.
    """

    min: PositiveInt
    deadline_s: Annotated[float, Field(gt=0)] = 600
    staleness: StalenessConfig | None = None


class EvaluationConfig(Config):
    """Evaluation of global models: the model before training, every `every`-th one and the last one.

    Attributes:
        every: rounds from one evaluation to the next; 1 by default.
        attack: an attack on the evaluation images. Hospitals with exact metrics then also report those
            of attacked images, `attacked/<name>`. None by default.
        teachers: with `true`, hospitals with exact metrics also report those of their own teacher,
            `teacher/<name>`, and of its student before averaging, `student/<name>`. `false` by default.
        cross_site: with `true`, each hospital's released model of the last round is scored at every
            hospital that allows it. `false` by default.
    """

    every: PositiveInt = 1
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
        mean: smallest accepted mean of the metric over the hospitals.
        worst_site: smallest accepted value of the metric at each hospital that has released in the run.
        calibration_error: largest accepted mean calibration error; for classification only.
        epsilon: largest accepted epsilon that a hospital has spent in the run.
        attack_auc: largest accepted AUC of the attack in a privacy audit.
        approval_days: days for which a person's approval is valid; 30 by default.
    """

    metric: str
    mean: Share | None = None
    worst_site: Share | None = None
    calibration_error: Share | None = None
    epsilon: Annotated[float, Field(gt=0)] | None = None
    attack_auc: Share | None = None
    approval_days: Annotated[int, Field(ge=1, le=365)] = 30


class CardConfig(Config):
    """Statements for the model card that only people can make; an empty text means not stated.

    Source: Mitchell et al. 2019, Model Cards for Model Reporting, https://arxiv.org/abs/1810.03993.
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


class Study(Config):
    """Content of a study file. Every field is public: it may be printed, logged and tracked.

    Attributes:
        name: name of the study: at most 40 lower-case letters, digits, `_` or `-`.
        purpose: purpose of the study in plain text; empty by default.
        task: segmentation or classification, the dimensions of the images, and the labels.
        network: the network of the global model.
        rounds: number of rounds, 1 to 1000.
        sites: number of hospitals that a round needs, and its deadline.
        preprocessing: steps from a scan to the input of the network.
        synthesis: appearance of synthetic images.
        prior: training of the first model on synthetic images. None by default: the first parameters
            are drawn from the seed.
        training: local training at a hospital in one round.
        privacy: differential privacy of the training, or none.
        distillation: distillation of the teacher into the student; None if and only if `export` is
            `weights`.
        export: content of a release: the change of the `student`, the change of the trained `weights`,
            or the `predictions` on the transfer images.
        largest_change: largest L2 norm of a hospital's change of the parameters in a round; a larger one
            is rejected. 1000 by default. Where trained weights leave under privacy, the mechanism's own
            bound holds too.
        strategy: rule that makes the next global model from the releases.
        evaluation: schedule and kinds of evaluation.
        promotion: criteria for a release of the model; None by default, which allows no release.
        card: texts for the model card.
        seed: seed of all public randomness; 0 by default. Noise for patients never depends on it.
    """

    name: Name
    purpose: str = ""
    task: TaskConfig
    network: NetworkConfig
    rounds: Annotated[int, Field(ge=1, le=1000)]
    sites: QuorumConfig
    preprocessing: PreprocessingConfig
    synthesis: SynthesisConfig = SynthesisConfig()
    prior: PriorConfig | None = None
    training: TrainingConfig
    privacy: PrivacyConfig
    distillation: DistillationConfig | None = None
    export: Literal["student", "weights", "predictions"]
    largest_change: Annotated[float, Field(gt=0)] = LARGEST_CHANGE
    strategy: StrategyConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    promotion: PromotionConfig | None = None
    card: CardConfig = CardConfig()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _images_fit_the_task(self) -> "Study":
        dims, kind = self.task.dims, self.task.kind
        for key, sides in (
            ("preprocessing.shape", self.preprocessing.shape),
            ("preprocessing.spacing_mm", self.preprocessing.spacing_mm),
            ("synthesis.along", self.synthesis.along),
        ):
            if sides is not None and len(sides) != dims:
                raise ValueError(f"{key}: expected task.dims = {dims} numbers, got {list(sides)}.")
        augmentation = self.preprocessing.augmentation
        if augmentation and any(axis >= dims for axis in augmentation.flip):
            raise ValueError(
                f"preprocessing.augmentation.flip: expected axes below {dims}, "
                f"got {list(augmentation.flip)}."
            )
        if isinstance(self.preprocessing.fit, Patches) and kind != "segmentation":
            raise ValueError("preprocessing.fit: expected patches for segmentation only.")
        if self.prior and kind != "segmentation":
            raise ValueError(
                "prior: expected none; synthetic images have shapes to segment, and no classes."
            )
        return self

    @model_validator(mode="after")
    def _networks_fit_the_images(self) -> "Study":
        check_network(self, "network", self.network)
        if self.distillation and self.distillation.teacher:
            check_network(self, "distillation.teacher", self.distillation.teacher)
        return self

    @model_validator(mode="after")
    def _export_has_what_it_needs(self) -> "Study":
        if (self.export == "weights") != (self.distillation is None):
            raise ValueError(
                "distillation: expected exactly where export is student or predictions; add it, or "
                "export weights."
            )
        if self.export == "predictions" and self.strategy.name != "fed_avg":
            raise ValueError(
                f"strategy: expected fed_avg where predictions leave, as they are combined into one "
                f"ensemble, got {self.strategy.name}."
            )
        if self.export == "predictions" and self.sites.staleness:
            raise ValueError(
                "sites.staleness: expected none where predictions leave, which each round combines "
                "into one ensemble; remove it."
            )
        if self.evaluation.teachers and not self.distillation:
            raise ValueError("evaluation.teachers: expected false; without distillation there are none.")
        if self.evaluation.cross_site and self.export == "predictions":
            raise ValueError("evaluation.cross_site: expected false; no model leaves with predictions.")
        return self

    @model_validator(mode="after")
    def _strategy_fits(self) -> "Study":
        strategy = self.strategy.build()
        try:
            self.bound_strategy()
        except ValueError as error:
            raise ValueError(
                f"strategy: {self.strategy.name}: {error}; take another network."
            ) from error
        if self.sites.min < strategy.fewest:
            raise ValueError(
                f"sites.min: expected at least {strategy.fewest}, which {self.strategy.name} needs, "
                f"got {self.sites.min}."
            )
        if strategy.counts_steps and self.export != "weights":
            raise ValueError(
                f"strategy: expected {self.strategy.name} with export: weights only; how far a student "
                f"moves does not depend on its teacher's steps."
            )
        most = 2 * (1 + self.training.momentum) / self.training.lr
        if strategy.pull >= most:
            raise ValueError(
                f"strategy: expected a pull below {most:g}, got {strategy.pull:g}. Steps of this "
                f"rate would overshoot; choose a weaker pull or a smaller training.lr."
            )
        if strategy.corrects and self.distillation and self.distillation.teacher:
            raise ValueError(
                "strategy: expected no distillation.teacher with scaffold, whose corrections have the "
                "shapes of the study's own network; remove it."
            )
        if self.sites.staleness and (not strategy.weighs or strategy.corrects):
            raise ValueError(
                f"sites.staleness: expected none with {self.strategy.name}, which can't give late "
                f"releases a smaller weight; remove it."
            )
        if strategy.corrects and self.training.fewest_steps is not None:
            raise ValueError(
                "training.fewest_steps: expected none with scaffold, whose common variate needs equal "
                "numbers of steps; remove it."
            )
        if self.training.membership and self.privacy.mode != "none":
            raise ValueError(
                "training.membership: expected none under differential privacy; its attacker learns "
                "from patients without noise, and no charge covers that."
            )
        return self

    @model_validator(mode="after")
    def _promotion_is_measured(self) -> "Study":
        promotion, names = self.promotion, metric_names(self.task)
        if promotion is None:
            return self
        good = sorted(name for name in names if name not in LOWER_IS_BETTER)
        if promotion.metric not in good:
            raise ValueError(f"promotion.metric: expected one of {good}, got {promotion.metric!r}.")
        if promotion.calibration_error is not None and "calibration_error" not in names:
            raise ValueError(
                "promotion.calibration_error: expected none; segmentation has no such metric."
            )
        if promotion.epsilon is not None and self.privacy.mode == "none":
            raise ValueError(
                "promotion.epsilon: expected none in a study without privacy, which has no epsilon."
            )
        return self

    @property
    def sha256(self) -> str:
        """The hash that every statement of a run names as its study."""
        return sha256(canonical(self.model_dump(mode="json"))).hexdigest()

    @property
    def metric_names(self) -> frozenset[str]:
        """The names of the metrics that a hospital's scores may contain."""
        names = metric_names(self.task)
        others = [
            *(["attacked"] if self.evaluation.attack else []),
            *(["teacher", "student"] if self.evaluation.teachers else []),
            *(["personal"] if self.strategy.build().personal_loss else []),
        ]
        overall = [name for name in names if "/" not in name]
        named = {f"{other}/{name}" for other in others for name in overall}
        return names | named | spread_names(names)

    def bound_strategy(self) -> Strategy:
        """Return the strategy, bound to the parameters of the study's network."""
        strategy = self.strategy.build()
        if strategy.local_of is None:
            return strategy
        return _bound(self.strategy, self.network, self.task.dims, self.task.out_channels)

    def seed_for(self, round: int, site: str, purpose: str) -> int:
        """Return the seed of one public use of randomness; noise for patients never uses it."""
        text = f"{self.seed} {round} {site} {purpose}"
        return int.from_bytes(sha256(text.encode()).digest()[:6])

    def is_compared(self, round: int) -> bool:
        """Return whether the hospitals' own models after `round` are compared."""
        return self.evaluation.cross_site and round == self.rounds

    def is_evaluated(self, round: int) -> bool:
        """Return whether the model after `round` is evaluated; 0 is the model before training."""
        return round in (0, self.rounds) or round % self.evaluation.every == 0


@lru_cache(maxsize=16)
def _bound(strategy: StrategyConfig, network: NetworkConfig, dims: int, channels: int) -> Strategy:
    return strategy.build().bound_to(network.build(dims, channels))


def check_network(study: Study, key: str, network: NetworkConfig) -> None:
    """Raise ValueError, which names `key`, if a network does not fit a study's task or image shape."""
    kind, shape = study.task.kind, study.preprocessing.shape
    if network.kind != kind:
        raise ValueError(f"{key}: expected a network for {kind}, got {network.name} for {network.kind}.")
    if any(side % network.divisor for side in shape):
        raise ValueError(
            f"preprocessing.shape: expected multiples of {network.divisor} as {key} {network.name} "
            f"needs, got {list(shape)}."
        )


def load_study(path: Path) -> Study:
    """Return the study in a YAML file, or raise `ConfigError`."""
    return yaml_files.load(path, Study)
