"""Sections of a study beside its training: quorum, evaluation, criteria of a release, model card."""

from typing import Annotated

from pydantic import Field, PositiveInt

from models.adversarial import AttackConfig
from models.config import Config


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
        gain: smallest accepted gain of that mean over the model before training, 0 or more; a model that
            is not better than its start never passes.
        worst_site: smallest accepted value of the metric at each hospital that has released in the run.
        calibration_error: largest accepted mean calibration error; for classification only.
        epsilon: largest accepted epsilon that a hospital has spent in the run.
        attack_auc: largest accepted AUC of the attack in a privacy audit.
        approval_days: days for which a person's approval is valid; 30 by default.
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
