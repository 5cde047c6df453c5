"""The study: what everybody agrees on before round 1, checked once, frozen, hashed."""

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
from privacy.signing import canonical
from sites import yaml_files
from sites.imaging.preprocessing import Patches, PreprocessingConfig
from sites.training.config import TrainingConfig


class StalenessConfig(Config):
    """Releases that come after their round count in a later one, if their hospital has sent none since.

    Attributes:
        rounds: how many rounds late a release may be.
        power: a release that is s rounds late counts (1 + s)^-power (Xie et al. 2019, section 5.2).
    """

    rounds: Annotated[int, Field(ge=1, le=10)]
    power: Annotated[float, Field(ge=0)] = 0.5

    def share(self, late: int) -> float:
        """Return what is left of the weight of a release that is so many rounds late.

        >>> StalenessConfig(rounds=3).share(3)
        0.5
        """
        return float((1 + late) ** -self.power)


class QuorumConfig(Config):
    """How many hospitals a round needs, and how long it waits for each.

    Attributes:
        staleness: what becomes of releases that come later; None refuses them.
    """

    min: PositiveInt
    deadline_s: Annotated[float, Field(gt=0)] = 600
    staleness: StalenessConfig | None = None


class EvaluationConfig(Config):
    """Evaluate the first model, every `every`-th one and the last.

    With an `attack`, hospitals with exact metrics also tell those of attacked images, `attacked/<name>`;
    with `teachers`, those of their own teacher, `teacher/<name>`, and of its student before anything was
    averaged, `student/<name>`. With `cross_site` each hospital's released model of the last round is
    scored at every hospital that allows it.
    """

    every: PositiveInt = 1
    attack: AttackConfig | None = None
    teachers: bool = False
    cross_site: bool = False


Share = Annotated[float, Field(ge=0, le=1)]


class PromotionConfig(Config):
    """What a model needs before people may release it. Evidence that is missing counts as failed.

    Attributes:
        metric: in which quality is measured, one of which more is better.
        mean: the least declared-n mean over the hospitals.
        worst_site: the least at every hospital that has released anything in the run.
        calibration_error: the largest declared-n mean; for classification.
        epsilon: the largest that any hospital has spent in the run.
        attack_auc: the largest AUC of a privacy audit's attack.
        approval_days: for how long a person's approval counts.
    """

    metric: str
    mean: Share | None = None
    worst_site: Share | None = None
    calibration_error: Share | None = None
    epsilon: Annotated[float, Field(gt=0)] | None = None
    attack_auc: Share | None = None
    approval_days: Annotated[int, Field(ge=1, le=365)] = 30


class CardConfig(Config):
    """What only people can say of a model, for its card (Mitchell et al. 2019); '' is not stated."""

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
    """A study file's content. Every field is public: it may be printed, logged and tracked."""

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
                raise ValueError(f"{key}: expected {dims} numbers as task.dims says, got {list(sides)}.")
        augmentation = self.preprocessing.augmentation
        if augmentation and any(axis >= dims for axis in augmentation.flip):
            raise ValueError(
                f"preprocessing.augmentation.flip: expected axes below {dims}, "
                f"got {list(augmentation.flip)}."
            )
        if isinstance(self.preprocessing.fit, Patches) and kind != "segmentation":
            raise ValueError("preprocessing.fit: expected patches for segmentation alone.")
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
                f"strategy: expected fed_avg where predictions leave, of which one ensemble is made, "
                f"got {self.strategy.name}."
            )
        if self.export == "predictions" and self.sites.staleness:
            raise ValueError(
                "sites.staleness: expected none where predictions leave, of which each round makes one "
                "ensemble; remove it."
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
                f"strategy: expected {self.strategy.name} with export: weights alone; how far a student "
                f"goes does not depend on its teacher's steps."
            )
        most = 2 * (1 + self.training.momentum) / self.training.lr
        if strategy.pull >= most:
            raise ValueError(
                f"strategy: expected a pull below {most:g}, from which on steps of this rate overshoot, "
                f"got {strategy.pull:g}."
            )
        if strategy.corrects and self.distillation and self.distillation.teacher:
            raise ValueError(
                "strategy: expected no distillation.teacher with scaffold, whose corrections have the "
                "shapes of the study's own network; remove it."
            )
        if self.sites.staleness and (not strategy.weighs or strategy.corrects):
            raise ValueError(
                f"sites.staleness: expected none with {self.strategy.name}, in which late releases "
                f"can't count less; remove it."
            )
        if strategy.corrects and self.training.fewest_steps is not None:
            raise ValueError(
                "training.fewest_steps: expected none with scaffold, whose common variate follows from "
                "equal numbers of steps; remove it."
            )
        if self.training.membership and self.privacy.mode != "none":
            raise ValueError(
                "training.membership: expected none under differential privacy; its attacker learns "
                "from patients without noise, which nothing pays for."
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
        """The hash by which every statement of a run names the study."""
        return sha256(canonical(self.model_dump(mode="json"))).hexdigest()

    @property
    def metric_names(self) -> frozenset[str]:
        """The metrics that a hospital's scores may have."""
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
        """Return the strategy, which knows the parameters of the study's network."""
        strategy = self.strategy.build()
        if strategy.local_of is None:
            return strategy
        return _bound(self.strategy, self.network, self.task.dims, self.task.out_channels)

    def seed_for(self, round: int, site: str, purpose: str) -> int:
        """Return the seed of one public use of randomness; noise for patients never has one."""
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
    """Raise ValueError, which names `key`, unless a network fits a study's task and images."""
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
