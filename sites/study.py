"""Study: the settings that all hospitals agree on before round 1, checked once, frozen and hashed."""

from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from models.config import Config
from models.networks.choice import NetworkConfig
from models.settings.distillation import DistillationConfig
from models.settings.images import PreprocessingConfig
from models.settings.metrics import metric_names, spread_names
from models.settings.starts import PUBLIC_AUGMENTATION, StartStage, ValidationConfig
from models.settings.strategies import StrategyConfig
from models.settings.tasks import Name, TaskConfig
from models.strategies import Strategy
from models.synthesis import SynthesisConfig
from privacy.mechanisms import PrivacyConfig
from privacy.signing import canonical
from privacy.statements import LARGEST_CHANGE
from sites import yaml_files
from sites.study_rules import faults_of
from sites.study_sections import (
    CardConfig,
    EvaluationConfig,
    PromotionConfig,
    QuorumConfig,
    SummedConfig,
)
from sites.training.config import TrainingConfig

if TYPE_CHECKING:
    from torch import nn


LATER = (("release_bits", 32),)
"""Defaults of keys that came later; they leave the hash of a study as it was."""


def _or_one(schema: dict[str, Any]) -> None:
    """Let editors accept one value in place of a list of one."""
    schema["anyOf"] = [schema["items"], {"type": "array", "items": schema.pop("items")}]
    del schema["type"]


class Study(Config):
    """Content of a study file. Every field is public: it may be printed, logged and tracked.

    Attributes:
        name: name of the study: at most 40 lower-case letters, digits, `_` or `-`.
        purpose: purpose of the study in plain text; empty by default.
        task: segmentation or classification, the dimensions and channels of the images, and the labels.
        network: the network of the global model.
        rounds (rounds): number of rounds, 1 to 1000.
        sites: number of hospitals that a round needs, and its deadline.
        preprocessing: steps from a scan to the input of the network.
        synthesis: appearance of synthetic images.
        start: what the first model learns from, stage by stage, before any patient is used: synthetic
            images, images drawn from label maps, public scans, weights in a file or a MONAI bundle, or a
            released model. Empty by default: the first parameters are drawn from the seed.
        validation: public cases on which the coordinator measures models; None by default.
        training: local training at a hospital in one round.
        privacy: differential privacy of the training, or none.
        distillation: distillation of the teacher into the student; None if and only if `export` is
            `weights`.
        export: content of a release: the change of the `student`, the change of the trained `weights`,
            the `predictions` on the transfer images, or with `privacy.mode: shared_noise` the sum of the
            patients' clipped gradients (`gradient_sum`), after which the global model alone distils.
            `privacy.unit: hospital` sums clipped changes of the `weights`, after plain training.
        largest_change (no unit): largest L2 norm of a hospital's change of the parameters in a round; a
            larger one is rejected. 1000 by default. Where trained weights leave under privacy, the
            mechanism's own bound holds too.
        release_bits (bits): bits of each number of a release: 32 (default), or 8: a change of the
            student or the weights is rounded after its noise, without bias, to a quarter of the bytes.
        strategy: rule that makes the next global model from the releases.
        evaluation: schedule and kinds of evaluation.
        survey: statistics of scans are summed over all hospitals, and no hospital's own leave.
        promotion: criteria for a release of the model; None by default, which allows no release.
        card: texts for the model card.
        seed (no unit): seed of all public randomness; 0 by default. Noise for patients never depends on
            it.
    """

    name: Name
    purpose: str = ""
    task: TaskConfig
    network: NetworkConfig
    rounds: Annotated[int, Field(ge=1, le=1000)]
    sites: QuorumConfig
    preprocessing: PreprocessingConfig
    synthesis: SynthesisConfig = SynthesisConfig()
    start: Annotated[tuple[StartStage, ...], Field(json_schema_extra=_or_one)] = ()
    validation: ValidationConfig | None = None
    training: TrainingConfig
    privacy: PrivacyConfig
    distillation: DistillationConfig | None = None
    export: Literal["student", "weights", "predictions", "gradient_sum"]
    largest_change: Annotated[float, Field(gt=0)] = LARGEST_CHANGE
    release_bits: Literal[8, 32] = 32
    strategy: StrategyConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    survey: SummedConfig | None = None
    promotion: PromotionConfig | None = None
    card: CardConfig = CardConfig()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _fits_together(self) -> "Study":
        if faults := faults_of(self):
            raise ValueError("\n".join(faults))
        return self

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, values: Any) -> Any:  # noqa: ANN401  # whatever a file holds
        """Take one stage for a list of one; augment plain training unless the study says otherwise."""
        if not isinstance(values, dict):
            return values
        if "prior" in values:
            raise ValueError("prior: write `start: {kind: synthetic, steps: ...}` in its place.")
        filled = dict(values)
        if isinstance(filled.get("start"), dict):
            filled["start"] = [filled["start"]]
        prepared, privacy = filled.get("preprocessing"), filled.get("privacy")
        is_plain = isinstance(privacy, dict) and (
            privacy.get("mode") == "none" or privacy.get("unit") == "hospital"
        )
        if is_plain and isinstance(prepared, dict) and "augmentation" not in prepared:
            filled["preprocessing"] = {**prepared, "augmentation": PUBLIC_AUGMENTATION.model_dump()}
        return filled

    @property
    def sha256(self) -> str:
        """The hash that every statement of a run names as its study."""
        content = self.model_dump(mode="json")
        told = {key: value for key, value in content.items() if (key, value) not in LATER}
        return sha256(canonical(told)).hexdigest()

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
        sizes = (self.task.dims, self.task.out_channels, self.task.in_channels)
        return _bound(self.strategy, self.network, sizes)

    def built(self, network: NetworkConfig | None = None) -> "nn.Module":
        """Return the study's network, or another one for its task, with fresh parameters."""
        task, config = self.task, network or self.network
        return config.build(task.dims, task.out_channels, task.in_channels)

    def seed_for(self, round: int, site: str, purpose: str) -> int:
        """Return the seed of one public use of randomness; noise for patients never uses it."""
        text = f"{self.seed} {round} {site} {purpose}"
        return int.from_bytes(sha256(text.encode()).digest()[:6])

    def content_of(self, round: int) -> Literal["student", "weights", "predictions", "gradient_sum"]:
        """Return what leaves in a round."""
        waits = self.distillation is not None and self.distillation.rounds == "last"
        if waits and round < self.rounds and self.export == "student":
            return "weights"
        return self.export

    @property
    def is_summed(self) -> bool:
        """True if releases are masked and only their sum can be read."""
        return self.privacy.mode in ("masked", "shared_noise")

    @property
    def spare(self) -> int:
        """Attempts at a secure sum that are paid for beyond one a round."""
        return self.privacy.spare if self.privacy.mode != "none" else 0

    @property
    def shares_noise(self) -> bool:
        """True if a hospital adds only its share of the noise, and the global model alone distils."""
        return self.privacy.mode == "shared_noise"

    @property
    def clips_patients(self) -> bool:
        """True if each patient's gradient is clipped; else training is plain."""
        return self.privacy.mode != "none" and self.privacy.unit == "patient"

    @property
    def samples_patients(self) -> bool:
        """True if chance decides which patients are in a step, and the charge counts that."""
        return self.clips_patients and self.training.lot_size is not None

    def is_compared(self, round: int) -> bool:
        """Return whether the hospitals' own models after `round` are compared."""
        return self.evaluation.cross_site and round == self.rounds

    def is_evaluated(self, round: int) -> bool:
        """Return whether the model after `round` is evaluated; 0 is the model before training."""
        return round in (0, self.rounds) or round % self.evaluation.every == 0


@lru_cache(maxsize=16)
def _bound(strategy: StrategyConfig, network: NetworkConfig, sizes: tuple[int, int, int]) -> Strategy:
    return strategy.build().bound_to(network.build(*sizes))


def load_study(path: Path) -> Study:
    """Return the study in a YAML file, or raise `ConfigError`."""
    return yaml_files.load(path, Study)
