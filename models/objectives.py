"""A task's mathematics: loss per scan, activation, metrics. Segmentation and classification.

The loss returns one number per scan and never mixes scans, which per-patient clipping needs
(MONAI's own losses do not all promise it: reductions and broadcasting can mix a batch).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from monai.losses.dice import DiceLoss
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.rocauc import compute_roc_auc
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from models.config import Config

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]


class _TaskConfig(Config):
    dims: Literal[2, 3]
    labels: dict[int, Name]

    @field_validator("labels")
    @classmethod
    def _distinct_names(cls, labels: dict[int, str]) -> dict[int, str]:
        if len(set(labels.values())) != len(labels):
            raise ValueError("expected distinct names for the labels")
        return dict(sorted(labels.items()))


class SegmentationConfig(_TaskConfig):
    """Voxel-wise labels: 0 is background, `labels` names 1, 2, ... in order."""

    kind: Literal["segmentation"]

    @field_validator("labels")
    @classmethod
    def _contiguous_from_one(cls, labels: dict[int, str]) -> dict[int, str]:
        if not labels or list(labels) != list(range(1, len(labels) + 1)):
            raise ValueError("expected the labels 1, 2, ... without a gap (0 is background)")
        return labels

    @property
    def out_channels(self) -> int:
        """Background and one channel per label."""
        return len(self.labels) + 1


class ClassificationConfig(_TaskConfig):
    """One class per scan: `labels` names 0, 1, ... in order."""

    kind: Literal["classification"]

    @field_validator("labels")
    @classmethod
    def _contiguous_from_zero(cls, labels: dict[int, str]) -> dict[int, str]:
        if len(labels) < 2 or list(labels) != list(range(len(labels))):
            raise ValueError("expected at least the labels 0 and 1, without a gap")
        return labels

    @property
    def out_channels(self) -> int:
        """One channel per class."""
        return len(self.labels)


TaskConfig = Annotated[SegmentationConfig | ClassificationConfig, Field(discriminator="kind")]

Outcome = Mapping[str, float]


@dataclass(frozen=True)
class Prediction:
    """What a network said of one scan, beside the truth: probabilities `(C, *spatial)` or `(C,)`,
    target `(*spatial)` or `()`, voxel spacing in mm."""

    probabilities: Tensor
    target: Tensor
    spacing_mm: tuple[float, ...]


@dataclass(frozen=True)
class Task:
    """The functions of a task.

    `loss(logits (N, C, ...), target (N, ...)) -> (N,)`; `activation(logits) -> probabilities`;
    `metrics(patients) -> {name: value}` where `patients` lists each patient's predictions: a
    patient counts once, however many scans he has. `bounded(scans) -> {name: value}` gives those of
    one patient's metrics that always lie in [0, 1] and whose mean over patients is the metric.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    activation: Callable[[Tensor], Tensor]
    metrics: Callable[[Sequence[Sequence[Prediction]]], dict[str, float]]
    bounded: Callable[[Sequence[Prediction]], dict[str, float]]


def build_task(config: SegmentationConfig | ClassificationConfig) -> Task:
    """Return the functions of the task that a study describes."""
    if config.kind == "segmentation":
        return Task(
            dice_and_cross_entropy,
            _softmax,
            _segmentation_metrics(config.labels),
            _dice_of_labels(config.labels),
        )
    return Task(_cross_entropy, _softmax, _classification_metrics, _is_right)


def metric_names(config: SegmentationConfig | ClassificationConfig) -> frozenset[str]:
    """Return the metrics that a task can have.

    >>> sorted(metric_names(SegmentationConfig(kind="segmentation", dims=3, labels={1: "head"})))
    ['dice', 'dice/head', 'hd95_mm']
    """
    if config.kind == "segmentation":
        return frozenset({"dice", "hd95_mm", *(f"dice/{name}" for name in config.labels.values())})
    return frozenset({"accuracy", "auroc", "balanced_accuracy", "calibration_error"})


def one_hot(target: Tensor, num_classes: int) -> Tensor:
    """Return `(N, C, ...)` from integer labels `(N, ...)`; unlike torch's it works under vmap."""
    classes = torch.arange(num_classes, device=target.device)
    return (target.unsqueeze(1) == classes.view(-1, *[1] * (target.dim() - 1))).float()


_soft_dice = DiceLoss(include_background=False, softmax=True, reduction="none")


def dice_and_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return each scan's soft Dice loss over the foreground plus its mean cross-entropy, `(N,)`.

    (Milletari et al. 2016; the sum as in nnU-Net, Isensee et al. 2021.)
    """
    dice: Tensor = _soft_dice(logits, one_hot(target, logits.shape[1])).flatten(1).mean(1)
    return dice + functional.cross_entropy(logits, target, reduction="none").flatten(1).mean(1)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits, target, reduction="none")


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_outcome(outcomes: Sequence[Outcome]) -> dict[str, float]:
    return {name: _mean([outcome[name] for outcome in outcomes]) for name in outcomes[0]}


def _segmentation_metrics(
    labels: Mapping[int, str],
) -> Callable[[Sequence[Sequence[Prediction]]], dict[str, float]]:
    def metrics(patients: Sequence[Sequence[Prediction]]) -> dict[str, float]:
        per_patient = [
            _mean_outcome([segmentation_outcome(scan, labels) for scan in scans]) for scans in patients
        ]
        return _mean_outcome(per_patient)

    return metrics


def _dice_of_labels(
    labels: Mapping[int, str],
) -> Callable[[Sequence[Prediction]], dict[str, float]]:
    def bounded(scans: Sequence[Prediction]) -> dict[str, float]:
        outcome = _mean_outcome([segmentation_outcome(scan, labels) for scan in scans])
        return {name: value for name, value in outcome.items() if name.startswith("dice/")}

    return bounded


def segmentation_outcome(scan: Prediction, labels: Mapping[int, str]) -> dict[str, float]:
    """Return one scan's `dice`, `dice/<label>` and `hd95_mm`, the means over the labels.

    | truth, prediction | Dice | HD95                        |
    |-------------------|------|-----------------------------|
    | both empty        | 1    | 0                           |
    | one of them empty | 0    | the image's diagonal in mm  |
    """
    num_classes = len(labels) + 1
    predicted = one_hot(scan.probabilities.argmax(0)[None], num_classes)
    truth = one_hot(scan.target[None], num_classes)
    dice = compute_dice(predicted, truth, include_background=False, ignore_empty=False)[0]
    outcome = {f"dice/{name}": float(dice[i]) for i, name in enumerate(labels.values())}
    outcome["dice"] = _mean(list(outcome.values()))
    outcome["hd95_mm"] = _mean(
        [_hd95_mm(predicted[:, c, None], truth[:, c, None], scan.spacing_mm)
         for c in range(1, num_classes)]
    )  # fmt: skip
    return outcome


def _hd95_mm(predicted: Tensor, truth: Tensor, spacing_mm: tuple[float, ...]) -> float:
    is_empty = [not bool(mask.any()) for mask in (predicted, truth)]
    if all(is_empty):
        return 0.0
    if any(is_empty):
        sides = zip(truth.shape[2:], spacing_mm, strict=True)
        return float(sum((n * mm) ** 2 for n, mm in sides) ** 0.5)
    distance = compute_hausdorff_distance(
        predicted, truth, include_background=True, percentile=95, spacing=list(spacing_mm)
    )
    return float(distance)


def _is_right(scans: Sequence[Prediction]) -> dict[str, float]:
    probabilities = torch.stack([scan.probabilities for scan in scans]).mean(0)
    return {"accuracy": float(probabilities.argmax() == scans[0].target)}


def _classification_metrics(patients: Sequence[Sequence[Prediction]]) -> dict[str, float]:
    """Return `accuracy`, `balanced_accuracy`, `calibration_error` and, where it is defined, `auroc`.

    Over patients: a patient's probabilities are the mean over his scans; his class is his first scan's.
    `balanced_accuracy` is the mean over the classes that occur of the share found, `calibration_error`
    the expected one in ten bins of confidence (Guo et al. 2017, equation 3), `auroc` the mean one
    against the rest, where every class occurs.
    """
    probabilities = torch.stack(
        [torch.stack([scan.probabilities for scan in scans]).mean(0) for scans in patients]
    )
    target = torch.stack([scans[0].target for scans in patients])
    is_right = (probabilities.argmax(1) == target).float()
    found = [float(is_right[target == value].mean()) for value in sorted(set(target.tolist()))]
    outcome = {
        "accuracy": float(is_right.mean()),
        "balanced_accuracy": _mean(found),
        "calibration_error": _calibration_error(probabilities.amax(1), is_right),
    }
    if len(set(target.tolist())) == probabilities.shape[1]:
        auroc = compute_roc_auc(probabilities, one_hot(target, probabilities.shape[1]))
        outcome["auroc"] = float(auroc)
    return outcome


def _calibration_error(confidence: Tensor, is_right: Tensor) -> float:
    """Return the mean gap between confidence and accuracy over ten bins, by the bins' sizes, `(N,)`."""
    bins = (confidence * 10).long().clamp(max=9)
    gaps = torch.zeros(10).index_add_(0, bins, confidence.float() - is_right)
    return float(gaps.abs().sum() / len(confidence))
