import math

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss
from pydantic import ValidationError

from models.objectives import MISSED_MM, Prediction, Task, build_task, one_hot, segmentation_outcome
from models.settings.metrics import metric_names
from models.settings.tasks import ClassificationConfig, RegressionConfig, SegmentationConfig

LABELS = {1: "head", 2: "tail"}


def metrics_of(task: Task, patients: list[list[Prediction]]) -> dict[str, float]:
    return task.over_patients([task.of_patient(scans) for scans in patients])


def segmentation(dims: int) -> SegmentationConfig:
    return SegmentationConfig(kind="segmentation", dims=dims, labels=LABELS)


def classification(dims: int) -> ClassificationConfig:
    return ClassificationConfig(kind="classification", dims=dims, labels={0: "normal", 1: "ill"})


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_the_loss_gives_one_number_a_scan_and_never_mixes_scans(kind: str, dims: int) -> None:
    config = segmentation(dims) if kind == "segmentation" else classification(dims)
    spatial = (6,) * dims if kind == "segmentation" else ()
    logits = torch.randn(3, config.out_channels, *spatial, requires_grad=True)
    target = torch.randint(0, config.out_channels, (3, *spatial))
    losses = build_task(config).loss(logits, target)
    assert losses.shape == (3,)
    (gradient,) = torch.autograd.grad(losses[1], logits)
    assert gradient[1].abs().sum() > 0
    assert gradient[[0, 2]].abs().sum() == 0


def test_the_segmentation_loss_of_one_scan_equals_monais() -> None:
    logits, target = torch.randn(1, 3, 6, 6, 6), torch.randint(0, 3, (1, 6, 6, 6))
    monai = DiceCELoss(include_background=False, softmax=True, to_onehot_y=True)
    # MONAI's cross-entropy counts the background as ours does; only its Dice leaves it out.
    ours = build_task(segmentation(3)).loss(logits, target)
    assert ours.item() == pytest.approx(monai(logits, target[:, None]).item(), rel=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_perfect_segmentation_scores_one_and_no_distance(dims: int) -> None:
    target = torch.zeros((8,) * dims, dtype=torch.long)
    target[2:4, 2:4], target[5:7, 5:7] = 1, 2
    scan = Prediction(one_hot(target[None], 3)[0], target, (1.0,) * dims)
    assert segmentation_outcome(scan, segmentation(target.dim())) == {
        "dice/head": 1.0, "dice/tail": 1.0, "dice": 1.0, "hd95_mm": 0.0, "surface_dice": 1.0,
    }  # fmt: skip


def test_dice_and_distance_are_those_counted_by_hand() -> None:
    target = torch.zeros(8, 8, dtype=torch.long)
    target[0, 0:4], target[7, 0:2] = 1, 2
    predicted = torch.zeros(8, 8, dtype=torch.long)
    predicted[0, 2:6], predicted[7, 0:2] = 1, 2
    scan = Prediction(one_hot(predicted[None], 3)[0], target, (1.0, 3.0))
    outcome = segmentation_outcome(scan, segmentation(target.dim()))
    assert outcome["dice/head"] == pytest.approx(2 * 2 / (4 + 4))
    assert outcome["dice/tail"] == 1.0
    assert outcome["hd95_mm"] == pytest.approx((2 * 3.0 + 0) / 2, rel=0.15)


def test_surfaces_within_the_tolerance_agree() -> None:
    target, predicted = (torch.zeros(12, 12, dtype=torch.long) for _ in range(2))
    target[3:8, 3:8], predicted[3:8, 4:9] = 1, 1
    scan = Prediction(one_hot(predicted[None], 3)[0], target, (1.0, 2.0))
    values = [
        segmentation_outcome(scan, segmentation(2).model_copy(update={"tolerance_mm": mm}))
        for mm in (0.5, 1.5, 2.5)
    ]
    overlaps = [(outcome["surface_dice"] - 0.5) * 2 for outcome in values]  # both lack the tail
    # of a contour of 30 mm, 2 x 8 mm lie on the other's, and on each side as much as is tolerated
    assert overlaps == pytest.approx([(16 + 2 * 0.5) / 30, (16 + 2 * 1.5) / 30, 1.0], abs=0.1)
    assert overlaps[0] <= overlaps[1] < overlaps[2] == 1


def test_surface_dice_counts_areas_and_not_voxels() -> None:
    """A ball that is one slice of 5 mm off; DeepMind's surface-distance gives 0.556."""
    z, y, x = np.ogrid[-50:50:5, -30:30, -30:30]
    balls = [
        torch.from_numpy(np.transpose((z - at) ** 2 + y**2 + x**2 < 15**2, (2, 1, 0)).astype(np.int64))
        for at in (0, 5)
    ]
    scan = Prediction(one_hot(balls[0][None], 2)[0], balls[1], (1.0, 1.0, 5.0))
    config = SegmentationConfig(kind="segmentation", dims=3, labels={1: "ball"})
    assert segmentation_outcome(scan, config)["surface_dice"] == pytest.approx(0.56, abs=0.02)


def test_an_empty_prediction_costs_the_images_diagonal() -> None:
    target = torch.zeros(3, 4, dtype=torch.long)
    target[1, 1] = 1
    nothing = one_hot(torch.zeros(1, 3, 4, dtype=torch.long), 3)[0]
    outcome = segmentation_outcome(Prediction(nothing, target, (2.0, 1.0)), segmentation(2))
    assert outcome["dice/head"] == 0
    assert outcome["dice/tail"] == 1  # absent in truth and in prediction
    assert outcome["hd95_mm"] == pytest.approx(math.hypot(6, 4) / 2)


def test_a_patient_counts_once_however_many_scans_he_has() -> None:
    target = torch.zeros(4, 4, dtype=torch.long)
    target[0], target[1] = 1, 2
    good = Prediction(one_hot(target[None], 3)[0], target, (1.0, 1.0))
    bad = Prediction(one_hot(torch.zeros(1, 4, 4, dtype=torch.long), 3)[0], target, (1.0, 1.0))
    metrics = metrics_of(build_task(segmentation(2)), [[good], [bad, bad, bad]])
    assert metrics["dice"] == pytest.approx(0.5)


def test_classification_metrics_are_accuracy_and_auroc_over_patients() -> None:
    def patient(p: float, truth: int) -> list[Prediction]:
        return [Prediction(torch.tensor([1 - p, p]), torch.tensor(truth), (1.0, 1.0))]

    def metrics(patients: list[list[Prediction]]) -> dict[str, float]:
        return metrics_of(build_task(classification(2)), patients)

    everybody = [patient(0.1, 0), patient(0.6, 0), patient(0.55, 1), patient(0.9, 1)]
    assert metrics(everybody) == {
        "accuracy": 0.75,
        "auroc": pytest.approx(0.75),
        "balanced_accuracy": 0.75,
        "calibration_error": pytest.approx((2 * 0.1 + 0.6 + 0.45) / 4),
    }
    ill = [*everybody, patient(0.9, 1), patient(0.8, 1)]
    assert metrics(ill)["balanced_accuracy"] == pytest.approx((1 / 2 + 1) / 2)
    one_class = metrics(everybody[:2])
    assert "auroc" not in one_class
    assert one_class["accuracy"] == one_class["balanced_accuracy"] == 0.5  # one class alone has no AUROC


@pytest.mark.parametrize("labels", [{}, {2: "tail"}, {1: "a", 2: "a"}, {1: "Not A Name"}])
def test_wrong_labels_are_refused(labels: dict[int, str]) -> None:
    with pytest.raises(ValidationError, match="labels"):
        SegmentationConfig(kind="segmentation", dims=3, labels=labels)


FINDINGS = ClassificationConfig(
    kind="classification", dims=2, labels={0: "mass", 1: "nodule", 2: "effusion"}, multi_label=True
)


def of_several(probabilities: list[float], holds: list[int]) -> list[Prediction]:
    return [Prediction(torch.tensor(probabilities), torch.tensor(holds), (1.0, 1.0))]


def test_several_labels_are_each_said_yes_or_no_to() -> None:
    task = build_task(FINDINGS)
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]], requires_grad=True)
    target = torch.tensor([[1, 0, 1], [0, 0, 1]])
    losses = task.loss(logits, target)
    p = logits.sigmoid()
    by_hand = -(target * p.log() + (1 - target) * (1 - p).log()).mean(1)
    assert torch.allclose(losses, by_hand)
    (gradient,) = torch.autograd.grad(losses[0], logits)
    assert gradient[1].abs().sum() == 0
    assert torch.allclose(task.activation(logits), p)
    assert torch.allclose(task.exclusive(logits).softmax(1)[:, 1], p)


def test_metrics_of_several_labels_are_means_over_those_that_occur() -> None:
    patients = [
        of_several([0.9, 0.8, 0.1], [1, 0, 0]),
        of_several([0.2, 0.3, 0.2], [0, 1, 0]),
        of_several([0.7, 0.9, 0.3], [1, 1, 0]),
    ]
    metrics = metrics_of(build_task(FINDINGS), patients)
    assert set(metrics) == metric_names(FINDINGS)
    assert metrics["accuracy"] == pytest.approx(7 / 9)
    assert metrics["balanced_accuracy"] == pytest.approx((1 + 1 + 0.5 + 0 + 1) / 5)
    assert metrics["auroc"] == pytest.approx((1 + 0.5) / 2)  # nobody has an effusion
    assert build_task(FINDINGS).bounded(patients[0])["accuracy"] == pytest.approx(2 / 3)
    nobody = metrics_of(build_task(FINDINGS), [of_several([0.1, 0.1, 0.1], [0, 0, 0])])
    assert "auroc" not in nobody


def test_one_label_is_enough_where_several_may_hold() -> None:
    one = {"kind": "classification", "dims": 2, "labels": {0: "mass"}}
    assert ClassificationConfig(**one, multi_label=True).out_channels == 1
    with pytest.raises(ValidationError, match="at least 2"):
        ClassificationConfig(**one)


@pytest.mark.parametrize("task", [segmentation(3), classification(2), FINDINGS])
def test_a_patient_without_a_usable_scan_is_a_miss(
    task: SegmentationConfig | ClassificationConfig,
) -> None:
    """The mean over a perfect patient and a miss is half of the best."""
    built, shape = build_task(task), (4,) * task.dims if task.kind == "segmentation" else ()
    if task.kind == "classification" and task.multi_label:
        scan = Prediction(torch.ones(3), torch.ones(3).long(), (1.0, 1.0))
    else:
        target = torch.ones(shape, dtype=torch.long)
        scan = Prediction(one_hot(target[None], task.out_channels)[0], target, (1.0,) * task.dims)
    metrics = metrics_of(built, [[scan], []])
    for name in metrics.keys() - {"hd95_mm", "calibration_error", "auroc", "dice", "surface_dice"}:
        assert metrics[name] == 0.5
    assert built.bounded([]) == dict.fromkeys(built.bounded([scan]), 0.0)
    if task.kind == "segmentation":
        assert metrics["hd95_mm"] == MISSED_MM / 2


AGE = RegressionConfig(kind="regression", dims=2, labels={0: "age"}, low=20.0, high=100.0, tolerance=5.0)


def said(*years: float) -> Prediction:
    """Return predictions of one scan for each number, whose truth is 60."""
    return [Prediction(torch.tensor([year]), torch.tensor(60.0), (1.0, 1.0)) for year in years]


def test_a_numbers_error_is_counted_over_patients_whatever_their_scans() -> None:
    task = build_task(AGE)
    kept = [task.of_patient(scans) for scans in (said(64.0), said(58.0, 66.0), said(40.0))]
    found = task.over_patients(kept)
    assert found == pytest.approx({"mae": (4 + 4 + 20) / 3, "within_tolerance": 2 / 3})
    assert task.bounded(said(64.0)) == {"within_tolerance": 1.0}
    assert metric_names(AGE) == set(found)
    older = Prediction(torch.tensor([30.0]), torch.tensor(30.0), (1.0, 1.0))
    assert task.of_patient([*said(60.0), older]) == 0.0  # each scan has a number of its own


def test_a_patient_without_a_usable_scan_is_wrong_by_the_whole_range() -> None:
    task = build_task(AGE)
    assert task.over_patients([task.of_patient([])]) == {"mae": 80.0, "within_tolerance": 0.0}
    assert task.bounded([]) == {"within_tolerance": 0.0}


def test_a_regressions_loss_is_one_number_for_each_scan_and_its_answers_lie_in_the_range() -> None:
    task = build_task(AGE)
    logits, target = torch.tensor([[0.5], [0.25], [7.0]]), torch.tensor([60.0, 60.0, 20.0])
    losses = task.loss(logits, target)
    assert losses.tolist() == pytest.approx([0.0, 0.25 - 0.05, 7.0 - 0.05])
    assert task.activation(logits).tolist() == [[60.0], [40.0], [100.0]]
