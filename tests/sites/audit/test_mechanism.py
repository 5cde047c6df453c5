"""Checks of a mechanism: quiet on right code, each planted bug caught by the check that is for it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.objectives import Task, build_task, dice_and_cross_entropy
from privacy import accounting, mechanisms
from privacy.noise.source import NoiseSource
from privacy.optimizer import PatientOptimizer
from privacy.per_patient import clipped_sums
from sites.audit.made_up import DECLARED, Bench, NothingToAudit, made_up_patient
from sites.audit.mechanism import CHECKS, Measured, examine
from sites.cohort import Patient
from sites.study import Study
from sites.training import dp_sgd, lot_sums
from sites.training.examples import Examples, prepare

CONTENT = {
    "name": "small",
    "task": {"kind": "segmentation", "dims": 2, "labels": {1: "a"}},
    "network": {"name": "UNet", "channels": [4, 8]},
    "rounds": 3,
    "sites": {"min": 1, "deadline_s": 60},
    "preprocessing": {"shape": [16, 16]},
    "training": {"steps": 2, "lr": 0.1, "lot": "all"},
    "privacy": {
        "mode": "local", "unit": "patient", "epsilon": 4, "delta": 1e-5,
        "clip": {"kind": "flat", "norm": 0.05}, "accountants": ["rdp"],
    },
    "export": "weights",
    "strategy": {"name": "fed_avg"},
}  # fmt: skip
SAMPLED = CONTENT | {"training": {"steps": 2, "lr": 0.1, "lot": 3}}
ADAPTIVE = CONTENT | {
    "privacy": CONTENT["privacy"] | {"clip": {"kind": "adaptive", "norm": 0.05}},
}
SHARED = CONTENT | {
    "privacy": CONTENT["privacy"] | {"mode": "shared_noise"},
    "training": {"steps": 1, "lr": 0.1, "lot": "all", "momentum": 0},
    "export": "gradient_sum",
    "sites": {"min": 4, "deadline_s": 60},
}


def bench_of(content: dict) -> Bench:
    return Bench.of(Study.model_validate(content))


def measured(content: dict, *names: str, seed: int = 0) -> dict[str, Measured]:
    """Return the results of the tests that are named, all by default."""
    bench = bench_of(content)
    if not names:
        return {each.name: each for each in examine(bench, seed)}
    return {name: CHECKS[name](bench, np.random.default_rng(seed)) for name in names}


def alarms(found: dict[str, Measured]) -> set[str]:
    return {name for name, each in found.items() if not each.holds}


def test_right_code_raises_no_alarm_and_the_white_box_proves_a_good_part_of_the_claim() -> None:
    found = measured(CONTENT)
    assert list(found) == list(CHECKS)
    assert alarms(found) == set()
    assert 0.9 < found["white box"].epsilon <= 4


@pytest.mark.parametrize("content", [SAMPLED, SHARED, ADAPTIVE], ids=["sampled", "shared", "adaptive"])
def test_right_code_raises_no_alarm_with_sampled_steps_shared_noise_or_an_adaptive_norm(
    content: dict,
) -> None:
    assert alarms(measured(content, *(name for name in CHECKS if name != "white box"))) == set()


def test_a_patient_at_the_bound_moves_the_sum_by_the_clip_norm() -> None:
    assert float(measured(CONTENT, "sensitivity")["sensitivity"].found.split()[0]) == pytest.approx(
        1, rel=1e-3
    )


def test_what_trained_parameters_show_is_the_sum_written_out() -> None:
    """Without noise, a patient's part is the patient's own clipped gradient."""
    bench = bench_of(CONTENT)
    patients = [
        made_up_patient(bench.study, f"p{k}", np.random.default_rng(k), scans=2) for k in range(3)
    ]
    network, examples = (
        bench.network(),
        prepare(patients, bench.study.preprocessing, torch.device("cpu"), 0),
    )
    images, targets = examples.draw(1, 0)
    loss = build_task(bench.study.task).loss(network(images), targets).mean()
    gradients = dict(
        zip(
            dict(network.named_parameters()),
            torch.autograd.grad(loss, list(network.parameters())),
            strict=True,
        )
    )
    due = torch.cat([gradients[name].ravel() for name in sorted(gradients)])
    due = due * min(1.0, 0.05 / float(due.norm()))
    assert torch.allclose(bench.contribution(patients, 1).float(), due, atol=1e-6)


Plant = Callable[[pytest.MonkeyPatch], None]


def _half_the_noise(patch: pytest.MonkeyPatch) -> None:
    right = mechanisms.Mechanism.noise_std.fget
    patch.setattr(mechanisms.Mechanism, "noise_std", property(lambda self: right(self) / 2))


def _one_layer_unclipped(patch: pytest.MonkeyPatch) -> None:
    def sums(network, loss, images, targets, patient_of, factors):
        clipped = clipped_sums(network, loss, images, targets, patient_of, factors)
        plain = clipped_sums(network, loss, images, targets, patient_of, torch.ones_like)
        last = list(clipped)[-1]
        return {**clipped, last: plain[last]}

    patch.setattr(lot_sums, "clipped_sums", sums)


def _dice_over_the_batch(patch: pytest.MonkeyPatch) -> None:
    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        shown, truth = logits.softmax(1)[:, 1], (targets == 1).float()
        dice = 1 - 2 * (shown * truth).sum() / (shown.sum() + truth.sum() + 1e-5)
        return dice_and_cross_entropy(logits, targets) + dice

    def task_of(self: Bench) -> Task:
        return replace(build_task(self.study.task), loss=loss)

    patch.setattr(Bench, "task", property(task_of))


def _scans_instead_of_patients(patch: pytest.MonkeyPatch) -> None:
    def by_scan(patients, config, device, seed) -> Examples:
        scans = [
            Patient(f"{p.pseudonym} {k}", (scan,)) for p in patients for k, scan in enumerate(p.scans)
        ]
        return prepare(scans, config, device, seed)

    patch.setattr("sites.audit.made_up.prepare", by_scan)


def _an_accountant_for_each_round(patch: pytest.MonkeyPatch) -> None:
    def of_the_last(events, delta, rule=None) -> float:
        return accounting.epsilon(list(events)[-1:], delta, rule)

    patch.setattr("privacy.ledger.epsilon", of_the_last)


def _the_length_of_the_list_as_rate(patch: pytest.MonkeyPatch) -> None:
    right = dp_sgd.poisson_lot
    patch.setattr(
        dp_sgd,
        "poisson_lot",
        lambda count, rate, noise: right(count, min(1.0, rate * DECLARED / max(count, 1)), noise),
    )


def _weights_after_clipping(patch: pytest.MonkeyPatch) -> None:
    def sums(network, loss, images, targets, patient_of, factors):
        scans = torch.bincount(patient_of)
        return clipped_sums(
            network, loss, images, targets, patient_of, lambda norms: factors(norms) * scans
        )

    patch.setattr(lot_sums, "clipped_sums", sums)


def _noise_again_after_a_restart(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NoiseSource, "skip_to", lambda self, drawn: None)
    patch.setattr(NoiseSource, "from_system", classmethod(lambda cls: cls(bytes(32))))


def _noise_in_the_first_step_alone(patch: pytest.MonkeyPatch) -> None:
    right = mechanisms.Mechanism.noise_std.fget
    drawn: list[int] = []

    def add_noise(self) -> None:
        drawn.append(1)
        first = len(drawn) % 3 == 1
        patch.setattr(
            mechanisms.Mechanism, "noise_std",
            property(lambda m: right(m) if first else right(m) / 10),
        )  # fmt: skip
        plain(self)

    plain = PatientOptimizer.add_noise
    patch.setattr(PatientOptimizer, "add_noise", add_noise)


def _later_microbatches_unclipped(patch: pytest.MonkeyPatch) -> None:
    right = lot_sums.OwnSums._of

    class Unclipped(mechanisms.Mechanism):
        def clip_factors(self, norms: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(norms)

    def of(self, network, patients, step, mechanism) -> lot_sums.LotSum:
        known = mechanism if patients[0] == 0 else Unclipped(**vars(mechanism))
        return right(self, network, patients, step, known)

    patch.setattr(lot_sums.OwnSums, "_of", of)


def _a_count_without_noise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mechanisms, "grid_noise", lambda source, count, std, grid: np.zeros(count))


def _no_noise_after_a_restart(patch: pytest.MonkeyPatch) -> None:
    right = dp_sgd._Training.resume

    def resume(self, stored):
        patch.setattr("privacy.optimizer.grid_noise", lambda source, count, std, grid: np.zeros(count))
        return right(self, stored)

    patch.setattr(dp_sgd._Training, "resume", resume)


BUGS: list[tuple[str, Plant, dict]] = [
    ("noise", _half_the_noise, CONTENT),
    ("sensitivity", _one_layer_unclipped, CONTENT),
    ("patients apart", _dice_over_the_batch, CONTENT),
    ("one unit", _scans_instead_of_patients, CONTENT),
    ("sampling", _scans_instead_of_patients, SAMPLED),
    ("composition", _an_accountant_for_each_round, CONTENT),
    ("sampling", _the_length_of_the_list_as_rate, SAMPLED),
    ("one unit", _weights_after_clipping, CONTENT),
    ("sensitivity", _weights_after_clipping, CONTENT),
    ("fresh noise", _noise_again_after_a_restart, CONTENT),
    ("noise", _noise_in_the_first_step_alone, CONTENT),
    ("sensitivity", _later_microbatches_unclipped, CONTENT),
    ("count noise", _a_count_without_noise, ADAPTIVE),
    ("fresh noise", _no_noise_after_a_restart, CONTENT),
]


@pytest.mark.parametrize(
    ("name", "plant", "content"), BUGS, ids=[f"{p.__name__[1:]}-by-{n}" for n, p, _ in BUGS]
)
def test_a_planted_bug_is_caught_by_the_check_that_is_for_it(
    name: str, plant: Plant, content: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert alarms(measured(content, name)) == {name}


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [CONTENT, SAMPLED, SHARED, ADAPTIVE],
    ids=["local", "sampled", "shared", "adaptive"],
)
def test_right_code_raises_no_alarm_over_twenty_seeds(content: dict) -> None:
    bench = bench_of(content)
    found = [
        [each.name for each in examine(bench, seed, trials=100) if not each.holds] for seed in range(20)
    ]
    assert found == [[]] * 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "content"),
    [(p, c) for n, p, c in BUGS],
    ids=[f"{p.__name__[1:]}-{n}" for n, p, _ in BUGS],
)
def test_all_checks_together_catch_each_bug(
    plant: Plant, content: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    due = {n for n, p, c in BUGS if p is plant and c is content}
    plant(monkeypatch)
    assert due <= alarms(measured(content))


def test_a_study_without_privacy_or_with_hospitals_as_unit_has_nothing_to_audit() -> None:
    plain = CONTENT | {"privacy": {"mode": "none"}}
    with pytest.raises(NothingToAudit, match="promises none"):
        bench_of(plain)


def test_a_large_delta_of_a_small_study_is_reduced_and_audited() -> None:
    content = CONTENT | {"privacy": CONTENT["privacy"] | {"delta": 0.2}}
    assert alarms(measured(content, "noise", "composition")) == set()
