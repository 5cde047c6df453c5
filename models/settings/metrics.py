"""The names of metrics."""

from collections.abc import Iterable

from models.settings.tasks import TaskConfig

LOWER_IS_BETTER = frozenset({"hd95_mm", "calibration_error", "mae"})
"""The metrics for which a smaller value is better; for all others a larger one is."""


SPREAD = ("low", "high", "worst_case")
"""Values reported beside the mean of a metric; averages of these over hospitals mean nothing."""


def metric_names(config: TaskConfig) -> frozenset[str]:
    """Return the metrics that a task can have.

    >>> from models.settings.tasks import SegmentationConfig
    >>> sorted(metric_names(SegmentationConfig(kind="segmentation", dims=3, labels={1: "head"})))
    ['dice', 'dice/head', 'hd95_mm', 'surface_dice']
    """
    if config.kind == "segmentation":
        by_label = (f"dice/{name}" for name in config.labels.values())
        return frozenset({"dice", "hd95_mm", "surface_dice", *by_label})
    if config.kind == "regression":
        return frozenset({"mae", "within_tolerance"})
    return frozenset({"accuracy", "auroc", "balanced_accuracy", "calibration_error"})


def spread_names(names: Iterable[str]) -> frozenset[str]:
    """Return the metrics that `intervals` and `worst_case` can add to these.

    >>> sorted(spread_names(["dice/head"]))
    ['high/dice-head', 'low/dice-head', 'worst_case/dice-head']
    """
    return frozenset(f"{kind}/{flat(name)}" for name in names for kind in SPREAD)


def flat(name: str) -> str:
    """Return a metric's name without slashes, for use after another slash."""
    return name.replace("/", "-")


def bounded_names(config: TaskConfig) -> frozenset[str]:
    """Return the metrics of one patient that are always from 0 to 1 (`Task.bounded`).

    >>> from models.settings.tasks import SegmentationConfig
    >>> sorted(bounded_names(SegmentationConfig(kind="segmentation", dims=3, labels={1: "head"})))
    ['dice/head']
    """
    if config.kind == "segmentation":
        return frozenset(f"dice/{name}" for name in config.labels.values())
    return frozenset({"within_tolerance" if config.kind == "regression" else "accuracy"})
