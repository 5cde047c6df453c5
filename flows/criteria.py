"""What the release gate asks for, by the names under which evidence is kept."""

from sites.study import Study

LINEAGE = "lineage"


def criteria_of(study: Study) -> set[str]:
    """Return the names of all evidence that a study's release needs.

    >>> LINEAGE
    'lineage'
    """
    asked = study.promotion
    if asked is None:
        return {LINEAGE}
    named = {
        f"mean {asked.metric}": asked.mean,
        f"worst hospital's {asked.metric}": asked.worst_site,
        "calibration error": asked.calibration_error,
        "epsilon": asked.epsilon,
        "attack AUC": asked.attack_auc,
    }
    return {LINEAGE, *(name for name, due in named.items() if due is not None)}
