"""The mathematics of a task: loss per scan, activation, metrics. Segmentation and classification.

The loss returns one number per scan and never mixes scans, which per-patient clipping needs
(not all of MONAI's losses guarantee it: reductions and broadcasting can mix a batch).
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from monai.data.meta_obj import get_track_meta, set_track_meta
from monai.losses.dice import DiceLoss
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.rocauc import compute_roc_auc
from monai.metrics.surface_dice import compute_surface_dice
from torch import Tensor
from torch.nn import functional

from models.settings.tasks import RegressionConfig, SegmentationConfig, TaskConfig

MISSED_MM = 374.0
"""HD95 of a patient without a prediction, in mm, as the BraTS challenge counts a missed lesion
(https://synapse.org/Synapse:syn51156910/discussion/threadId=10357)."""


Outcome = Mapping[str, float]


@dataclass(frozen=True)
class Prediction:
    """A network's answer for one scan, with the truth.

    `probabilities` are `(C, *spatial)` or `(C,)`; `target` is `(*spatial)`, `()` or, with several
    labels, `(C,)`; `spacing_mm` is the voxel spacing.
    """

    probabilities: Tensor
    target: Tensor
    spacing_mm: tuple[float, ...]


@dataclass(frozen=True)
class Task:
    """The functions of a task.

    `loss(logits (N, C, ...), target (N, ...)) -> (N,)`; `activation(logits) -> probabilities`;
    `of_patient(scans) -> kept` returns the small part of one patient's predictions that the metrics
    need; `over_patients([kept, ...]) -> {name: value}` returns the metrics: a patient counts once,
    with any number of scans. `bounded(scans) -> {name: value}` returns those of one patient's metrics
    that are always in [0, 1] and whose mean over patients is the metric. A patient without scans is a
    miss: Dice 0, HD95 `MISSED_MM`, every answer wrong. `exclusive(logits) -> (N, C, ...)` returns
    logits whose softmax gives the probabilities.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    activation: Callable[[Tensor], Tensor]
    of_patient: Callable[[Iterable[Prediction]], Any]
    over_patients: Callable[[Sequence[Any]], dict[str, float]]
    bounded: Callable[[Iterable[Prediction]], dict[str, float]]
    exclusive: Callable[[Tensor], Tensor] = lambda logits: logits


def build_task(config: TaskConfig) -> Task:
    """Return the functions of the task that `config` describes."""
    if config.kind == "segmentation":
        return Task(
            dice_and_cross_entropy,
            _softmax,
            partial(_of_segmented, config),
            _mean_outcome,
            partial(_dice_of_labels, config),
        )
    if config.kind == "regression":
        return _regression(config)
    count = config.out_channels
    if config.multi_label:
        of_patient = partial(_answer, (torch.zeros(count), torch.ones(count).long()))
        return Task(
            _binary_cross_entropy,
            torch.sigmoid,
            of_patient,
            _multi_label_metrics,
            lambda scans: _share_right(of_patient(scans)),
            _yes_and_no,
        )
    of_patient = partial(_answer, (torch.arange(count).clamp(max=1) / (count - 1), torch.tensor(0)))
    return Task(
        _cross_entropy,
        _softmax,
        of_patient,
        _classification_metrics,
        lambda scans: _is_right(of_patient(scans)),
    )


def _regression(config: RegressionConfig) -> Task:
    of_patient = partial(_mean_error, config.high - config.low)
    return Task(
        partial(_scaled_error, config),
        partial(_in_range, config),
        of_patient,
        partial(_regression_metrics, config.tolerance),
        lambda scans: {"within_tolerance": float(of_patient(scans) <= config.tolerance)},
    )


def answer_shape(
    config: TaskConfig, shape: tuple[int, ...]
) -> tuple[int, ...]:  # fmt: skip
    """Return the shape of `Task.exclusive`'s answer for one image of `shape`."""
    if config.kind == "segmentation":
        return (config.out_channels, *shape)
    several = config.kind == "classification" and config.multi_label
    return (2, config.out_channels) if several else (config.out_channels,)


def one_hot(target: Tensor, num_classes: int) -> Tensor:
    """Return `(N, C, ...)` from integer labels `(N, ...)`; unlike torch's it works under vmap."""
    classes = torch.arange(num_classes, device=target.device)
    return (target.unsqueeze(1) == classes.view(-1, *[1] * (target.dim() - 1))).float()


_soft_dice = DiceLoss(include_background=False, softmax=True, reduction="none")


def dice_and_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return each scan's soft Dice loss over the foreground plus its mean cross-entropy, `(N,)`.

    (Milletari et al. 2016, V-Net, https://arxiv.org/abs/1606.04797; the sum as in Isensee et al. 2021,
    nnU-Net, https://doi.org/10.1038/s41592-020-01008-z.)
    """
    dice: Tensor = _soft_dice(logits, one_hot(target, logits.shape[1])).flatten(1).mean(1)
    return dice + functional.cross_entropy(logits, target, reduction="none").flatten(1).mean(1)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits, target, reduction="none")


def _binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    every = functional.binary_cross_entropy_with_logits(logits, target.to(logits), reduction="none")
    return every.mean(1)


def _scaled_error(config: RegressionConfig, logits: Tensor, target: Tensor) -> Tensor:
    """Return each scan's error as a share of the range, squared where it is small, `(N,)`.

    (Huber 1964, Robust Estimation of a Location Parameter, https://doi.org/10.1214/aoms/1177703732.)
    """
    share = (target - config.low) / (config.high - config.low)
    return functional.smooth_l1_loss(logits[:, 0], share.to(logits), beta=0.1, reduction="none")


def _in_range(config: RegressionConfig, logits: Tensor) -> Tensor:
    """Return the numbers that outputs from 0 to 1 stand for, `(N, 1)`."""
    return config.low + (config.high - config.low) * logits.clamp(0, 1)


def _yes_and_no(logits: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(logits), logits], 1)


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_outcome(outcomes: Sequence[Outcome]) -> dict[str, float]:
    return {name: _mean([outcome[name] for outcome in outcomes]) for name in outcomes[0]}


def _of_segmented(config: SegmentationConfig, scans: Iterable[Prediction]) -> dict[str, float]:
    missed = {f"dice/{name}": 0.0 for name in config.labels.values()}
    missed |= {"dice": 0.0, "hd95_mm": MISSED_MM, "surface_dice": 0.0}
    return _mean_outcome([segmentation_outcome(scan, config) for scan in scans] or [missed])


def _dice_of_labels(config: SegmentationConfig, scans: Iterable[Prediction]) -> dict[str, float]:
    outcome = _of_segmented(config, scans)
    return {name: value for name, value in outcome.items() if name.startswith("dice/")}


def dice_outcome(scan: Prediction, config: SegmentationConfig) -> dict[str, float]:
    """Return one scan's `dice/<label>` and their mean `dice`; Dice is 1 if both masks are empty."""
    predicted, truth = _masks(scan, config)
    dice = compute_dice(predicted, truth, include_background=False, ignore_empty=False)[0]
    outcome = {f"dice/{name}": float(dice[i]) for i, name in enumerate(config.labels.values())}
    return {**outcome, "dice": _mean(list(outcome.values()))}


def _masks(scan: Prediction, config: SegmentationConfig) -> tuple[Tensor, Tensor]:
    """Return prediction and truth as `(1, C, *spatial)`."""
    num_classes = len(config.labels) + 1
    predicted = one_hot(scan.probabilities.argmax(0)[None], num_classes)
    return predicted, one_hot(scan.target[None], num_classes)


def segmentation_outcome(scan: Prediction, config: SegmentationConfig) -> dict[str, float]:
    """Return one scan's `dice/<label>`, and `dice`, `hd95_mm`, `surface_dice` as means over labels.

    `surface_dice` is the share of both surfaces within `tolerance_mm` of each other (Nikolov et al.
    2021, Clinically Applicable Segmentation of Head and Neck Anatomy for Radiotherapy,
    https://arxiv.org/abs/1809.04430).

    | truth, prediction | Dice, surface Dice | HD95                        |
    |-------------------|--------------------|-----------------------------|
    | both empty        | 1                  | 0                           |
    | one of them empty | 0                  | the image's diagonal in mm  |
    """
    predicted, truth = _masks(scan, config)
    num_classes = predicted.shape[1]
    outcome = dice_outcome(scan, config)
    surfaces = [
        _of_surfaces(predicted[:, c, None], truth[:, c, None], scan.spacing_mm, config.tolerance_mm)
        for c in range(1, num_classes)
    ]
    outcome["hd95_mm"] = _mean([hd95_mm for hd95_mm, _ in surfaces])
    outcome["surface_dice"] = _mean([overlap for _, overlap in surfaces])
    return outcome


def _of_surfaces(
    predicted: Tensor, truth: Tensor, spacing_mm: tuple[float, ...], tolerance_mm: float
) -> tuple[float, float]:
    """Return HD95 in mm and the surface Dice of two masks `(1, 1, *spatial)`."""
    is_empty = [not bool(mask.any()) for mask in (predicted, truth)]
    if all(is_empty):
        return 0.0, 1.0
    if any(is_empty):
        sides = zip(truth.shape[2:], spacing_mm, strict=True)
        return float(sum((n * mm) ** 2 for n, mm in sides) ** 0.5), 0.0
    spacing = list(spacing_mm)
    with _plain_tensors():
        distance = compute_hausdorff_distance(
            predicted, truth, include_background=True, percentile=95, spacing=spacing
        )
        overlap = compute_surface_dice(
            predicted,
            truth,
            [tolerance_mm],
            include_background=True,
            spacing=spacing,
            use_subvoxels=True,  # areas, as Nikolov et al. count them, and not voxels
        )
    return float(distance), float(overlap)


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """Have MONAI crop plain tensors: notes on where each came from take a third of the time."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        with warnings.catch_warnings():  # MONAI 1.6 warns of an argument that it gives itself
            warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
            yield
    finally:
        set_track_meta(before)


Answer = tuple[Tensor, Tensor]
"""A patient's probabilities, and the target."""


def _answer(missed: Answer, scans: Iterable[Prediction]) -> Answer:
    """Return the mean probabilities over a patient's scans, and the target of the first scan."""
    if not (listed := list(scans)):
        return missed
    return torch.stack([scan.probabilities for scan in listed]).mean(0), listed[0].target


def _stacked(patients: Sequence[Answer]) -> tuple[Tensor, Tensor]:
    probabilities, targets = zip(*patients, strict=True)
    return torch.stack(probabilities), torch.stack(targets)


def _is_right(answer: Answer) -> dict[str, float]:
    probabilities, target = answer
    return {"accuracy": float(probabilities.argmax() == target)}


def _share_right(answer: Answer) -> dict[str, float]:
    probabilities, target = answer
    return {"accuracy": float(((probabilities >= 0.5) == (target > 0)).float().mean())}


def _multi_label_metrics(patients: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return the metrics of `_classification_metrics` as means over the labels, each answered yes or no.

    `auroc` leaves out a label that is true for no patient, or for all of them.
    """
    probabilities, target = _stacked(patients)
    predicted, holds = probabilities >= 0.5, target > 0
    is_right = (predicted == holds).float()
    found = [
        float(is_right[:, c][holds[:, c] == value].mean())
        for c in range(target.shape[1])
        for value in set(holds[:, c].tolist())
    ]
    confidence = torch.where(predicted, probabilities, 1 - probabilities)
    outcome = {
        "accuracy": float(is_right.mean()),
        "balanced_accuracy": _mean(found),
        "calibration_error": _calibration_error(confidence.flatten(), is_right.flatten()),
    }
    both = [c for c in range(target.shape[1]) if len(set(holds[:, c].tolist())) == 2]
    if both:
        areas = [float(compute_roc_auc(probabilities[:, c], holds[:, c].float())) for c in both]
        outcome["auroc"] = _mean(areas)
    return outcome


def _classification_metrics(patients: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return `accuracy`, `balanced_accuracy`, `calibration_error` and, where it is defined, `auroc`.

    Over patients: a patient's probabilities are the mean over the patient's scans; the class is that of
    the first scan. `balanced_accuracy` is the mean, over the classes that occur, of the share found.
    `calibration_error` is the expected calibration error in ten bins of confidence (Guo et al. 2017, On
    Calibration of Modern Neural Networks, equation 3, https://arxiv.org/abs/1706.04599). `auroc` is the
    mean of one class against the rest; it is defined if every class occurs.
    """
    probabilities, target = _stacked(patients)
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


def _mean_error(missed: float, scans: Iterable[Prediction]) -> float:
    """Return a patient's mean absolute error over scans; the whole range without a scan."""
    errors = [abs(float(scan.probabilities[0]) - float(scan.target)) for scan in scans]
    return _mean(errors) if errors else missed


def _regression_metrics(tolerance: float, errors: Sequence[float]) -> dict[str, float]:
    """Return the mean absolute error, and the share of patients whose error is within the tolerance."""
    within = [float(error <= tolerance) for error in errors]
    return {"mae": _mean(errors), "within_tolerance": _mean(within)}


def _calibration_error(confidence: Tensor, is_right: Tensor) -> float:
    """Return the gap between confidence and accuracy `(N,)`, averaged over ten bins by their sizes."""
    bins = (confidence * 10).long().clamp(max=9)
    gaps = torch.zeros(10).index_add_(0, bins, confidence.float() - is_right)
    return float(gaps.abs().sum() / len(confidence))
