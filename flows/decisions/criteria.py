"""Criteria of the release gate: the names under which evidence is stored."""

from sites.study import Study
from sites.study_sections import PromotionConfig

LINEAGE, GAIN, CALIBRATION, EPSILON, ATTACK = (
    "lineage", "gain over the start", "calibration error", "epsilon", "attack AUC",
)  # fmt: skip


def mean_of(asked: PromotionConfig) -> str:
    """Return the criterion of the mean over the hospitals."""
    return f"mean {asked.metric}"


def worst_of(asked: PromotionConfig) -> str:
    """Return the criterion of the worst hospital."""
    return f"worst hospital's {asked.metric}"


def criteria_of(study: Study) -> set[str]:
    """Return the names of all evidence that a study's release needs.

    >>> LINEAGE
    'lineage'
    """
    asked = study.promotion
    if asked is None:
        return {LINEAGE}
    named = {
        mean_of(asked): asked.mean,
        GAIN: asked.gain,
        worst_of(asked): asked.worst_site,
        CALIBRATION: asked.calibration_error,
        EPSILON: asked.epsilon,
        ATTACK: asked.attack_auc,
    }
    return {LINEAGE, *(name for name, due in named.items() if due is not None)}
