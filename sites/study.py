"""The study: what everybody agrees on before round 1, checked once, frozen, hashed."""

from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from models.adversarial import AttackConfig
from models.config import Config
from models.networks import NetworkConfig
from models.objectives import Name, TaskConfig, metric_names
from models.strategies import Strategy, StrategyConfig
from privacy.distillation import DistillationConfig
from privacy.mechanisms import PrivacyConfig
from privacy.signing import canonical
from sites import documents
from sites.preprocessing import Patches, PreprocessingConfig
from sites.training import TrainingConfig


class QuorumConfig(Config):
    """How many hospitals a round needs, and how long it waits for each."""

    min: PositiveInt
    deadline_s: Annotated[float, Field(gt=0)] = 600


class EvaluationConfig(Config):
    """Evaluate the first model, every `every`-th one and the last.

    With an `attack`, hospitals with exact metrics also tell those of attacked images, `attacked/<name>`.
    """

    every: PositiveInt = 1
    attack: AttackConfig | None = None


class Study(Config):
    """A study file's content. Every field is public: it may be printed, logged and tracked."""

    name: Name
    purpose: str = ""
    task: TaskConfig
    network: NetworkConfig
    rounds: Annotated[int, Field(ge=1, le=1000)]
    sites: QuorumConfig
    preprocessing: PreprocessingConfig
    training: TrainingConfig
    privacy: PrivacyConfig
    distillation: DistillationConfig | None = None
    export: Literal["student", "weights"]
    strategy: StrategyConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _fits_together(self) -> "Study":
        shape, dims, kind = self.preprocessing.shape, self.task.dims, self.task.kind
        spacing = self.preprocessing.spacing_mm
        for key, sides in (("shape", shape), ("spacing_mm", spacing)):
            if sides is not None and len(sides) != dims:
                raise ValueError(
                    f"preprocessing.{key}: expected {dims} sides as task.dims says, got {list(sides)}."
                )
        if isinstance(self.preprocessing.fit, Patches) and kind != "segmentation":
            raise ValueError("preprocessing.fit: expected patches for segmentation alone.")
        augmentation = self.preprocessing.augmentation
        if augmentation and any(axis >= dims for axis in augmentation.flip):
            raise ValueError(
                f"preprocessing.augmentation.flip: expected axes below {dims}, "
                f"got {list(augmentation.flip)}."
            )
        if (self.export == "student") != (self.distillation is not None):
            raise ValueError(
                "distillation: expected exactly where export is student; add it, or export weights."
            )
        fewest = self.strategy.build().fewest
        if self.sites.min < fewest:
            raise ValueError(
                f"sites.min: expected at least {fewest}, which {self.strategy.name} needs, "
                f"got {self.sites.min}."
            )
        if self.strategy.build().corrects and self.distillation and self.distillation.teacher:
            raise ValueError(
                "strategy: expected no distillation.teacher with scaffold, whose corrections have the "
                "shapes of the study's own network; remove it."
            )
        teacher = self.distillation.teacher if self.distillation else None
        for key, network in (("network", self.network), ("distillation.teacher", teacher)):
            if network is None:
                continue
            if network.kind != kind:
                raise ValueError(
                    f"{key}: expected a network for {kind}, got {network.name} for {network.kind}."
                )
            if any(side % network.divisor for side in shape):
                raise ValueError(
                    f"preprocessing.shape: expected multiples of {network.divisor} as {key} "
                    f"{network.name} needs, got {list(shape)}."
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
        if self.evaluation.attack is None:
            return names
        return names | {f"attacked/{name}" for name in names if "/" not in name}

    def bound_strategy(self) -> Strategy:
        """Return the strategy, which knows the parameters of the study's network."""
        strategy = self.strategy.build()
        if strategy.local_of is None:
            return strategy
        return strategy.bound_to(self.network.build(self.task.dims, self.task.out_channels))

    def seed_for(self, round: int, site: str, purpose: str) -> int:
        """Return the seed of one public use of randomness; noise for patients never has one."""
        text = f"{self.seed} {round} {site} {purpose}"
        return int.from_bytes(sha256(text.encode()).digest()[:6])

    def is_evaluated(self, round: int) -> bool:
        """Return whether the model after `round` is evaluated; 0 is the model before training."""
        return round in (0, self.rounds) or round % self.evaluation.every == 0


def load_study(path: Path) -> Study:
    """Return the study in a YAML file, or raise `ConfigError`."""
    return documents.load(path, Study)
