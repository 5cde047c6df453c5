"""Rounds with a secure sum: the right model, whoever drops out; failed attempts are paid and redone."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import fedavg_by_hand as by_hand
import numpy as np
import pytest
import torch
from conftest import STUDY
from consortium import NAMES, SEED, Consortium, small_hospitals, study_with_sum

from flows.rounds.statements import TooFewHospitals
from flows.rounds.sum_progress import progress
from flows.verification.check_models import model_faults
from models import checkpoints
from models import params as P
from privacy.accounting import Budget, PrivacyEvent, epsilon, noise_for
from privacy.mechanisms import mechanism_for
from privacy.noise.discrete_gaussian import discrete_gaussian
from privacy.noise.source import NoiseSource
from privacy.secure_aggregation.fixed_point import MASKED
from privacy.shared_noise import SharedGaussian
from sites.study import Study

SMALL = STUDY["preprocessing"]


@pytest.fixture
def study(small_study) -> Callable[..., Study]:
    return partial(study_with_sum, small_study)


@pytest.fixture
def consortium(tmp_path: Path) -> Callable[[Study], Consortium]:
    def make(study: Study) -> Consortium:
        wards = small_hospitals(tmp_path / "wards", NAMES, patients=10)
        return Consortium.begin(tmp_path, study, wards)

    return make


def largest_difference(a: P.Params, b: P.Params) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_a_masked_rounds_model_is_that_of_the_plain_algorithm(consortium, study) -> None:
    made = consortium(study("masked"))
    made.round(1)
    network = made.run.study.network.build(3, 3)
    P.load_into(network, made.models[0])
    privacy, training = made.run.study.privacy, made.run.study.training
    plan = by_hand.Plan(
        Budget(epsilon=privacy.epsilon, delta=privacy.delta), made.run.study.rounds + privacy.sum.spare,
        training.steps, training.lr, training.momentum, privacy.clip.norm, privacy.clip.kind, None,
    )  # fmt: skip
    twin = by_hand.federated_round(network, list(made.hospitals_by_hand(1).values()), plan)
    assert largest_difference(made.models[1], made.models[0]) > 0.01
    assert largest_difference(made.models[1], P.of(twin)) < 1e-5


def by_hand_sum(made: Consortium, number: int, survivors: tuple[str, ...]) -> P.Params:
    """Return the model after a step along the survivors' clipped gradients and their shares of noise."""
    study = made.run.study
    network = study.network.build(3, 3)
    P.load_into(network, made.models[number - 1])
    names = sorted(name for name, _ in network.named_parameters())
    weights = dict(network.named_parameters())
    numel = sum(w.numel() for w in weights.values())
    config = study.privacy.sum
    mechanism = mechanism_for(study.privacy, rounds=study.rounds, steps=1, lot=None, declared=9)
    shared = SharedGaussian(mechanism, numel, len(NAMES) - config.dropouts - config.colluding)
    total = np.zeros(numel)
    for site, hospital in made.hospitals_by_hand(number).items():
        if site not in survivors:
            continue
        own = np.zeros(numel)
        for patient in hospital.patients:
            losses = [by_hand.scan_loss(network(i[None]), t[None]) for i, t in patient]
            gradient = torch.autograd.grad(torch.stack(losses).mean(), [weights[n] for n in names])
            flat = torch.cat([each.flatten() for each in gradient]).double()
            own += (flat * (1 / (flat.norm() + 0.01))).numpy()
        total += shared.noisy(own, hospital.noise) * shared.grid
    change = -study.training.in_round(number, study.rounds).lr * total / (9 * len(survivors))
    flat = torch.from_numpy(change)
    parts = flat.split([weights[name].numel() for name in names])
    return {
        name: made.models[number - 1][name] + part.reshape(weights[name].shape).float()
        for name, part in zip(names, parts, strict=True)
    }


@pytest.mark.parametrize("lost", [(), ("south",)])
def test_a_step_along_shared_noise_is_that_of_the_plain_algorithm_whoever_drops_out(
    consortium, study, lost: tuple[str, ...]
) -> None:
    made = consortium(study("shared_noise", sum={"dropouts": 1, "colluding": 1}, fewest=4))
    made.silent = {"contribute": lost}
    record = made.round(1)
    survivors = tuple(name for name in sorted(NAMES) if name not in lost)
    assert tuple(sorted(record.releases)) == survivors
    assert largest_difference(made.models[1], made.models[0]) > 0.001
    assert largest_difference(made.models[1], by_hand_sum(made, 1, survivors)) < 1e-4
    assert list(model_faults(made.run, made.run.records())) == []


def of_hospitals(study: Callable[..., Study], **changes: object) -> Study:
    """Return a study in which the hospital is the unit of privacy."""
    privacy = {
        "mode": "shared_noise", "unit": "hospital", "epsilon": 20, "delta": 1e-3,
        "clip": {"kind": "flat", "norm": 0.05}, "accountants": ["rdp"], "sum": {"dropouts": 1},
    }  # fmt: skip
    training = {"steps": 3, "lr": 0.1, "lot": "all", "momentum": 0.9}
    content = {"privacy": privacy, "export": "weights", "training": training, **changes}
    return study("shared_noise", fewest=4, **content)


def changes_by_hand(made: Consortium) -> dict[str, np.ndarray]:
    """Return each hospital's change after plain steps from the first model, `(d,)` by name."""
    study, start = made.run.study, made.models[0]
    found = {}
    for site, hospital in made.hospitals_by_hand(1).items():
        network = study.network.build(3, 3)
        P.load_into(network, start)
        weights = dict(network.named_parameters())
        velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for _ in range(study.training.steps):
            losses = [
                torch.stack([by_hand.scan_loss(network(i[None]), t[None]) for i, t in patient]).mean()
                for patient in hospital.patients
            ]
            gradient = torch.autograd.grad(torch.stack(losses).mean(), list(weights.values()))
            for (name, weight), each in zip(weights.items(), gradient, strict=True):
                velocity[name] = study.training.momentum * velocity[name] + each
                weight.data -= study.training.lr * velocity[name]
        moved = [(weights[name].data - start[name]).double().flatten() for name in sorted(weights)]
        found[site] = torch.cat(moved).numpy()
    return found


@pytest.mark.parametrize("lost", [(), ("south",)])
def test_the_mean_of_hospitals_clipped_changes_is_that_of_the_plain_algorithm(
    consortium, study, lost: tuple[str, ...]
) -> None:
    made = consortium(of_hospitals(study, preprocessing={**SMALL, "augmentation": None}))
    changes, privacy = changes_by_hand(made), made.run.study.privacy
    made.silent = {"contribute": lost}
    record = made.round(1)
    survivors = [name for name in sorted(NAMES) if name not in lost]
    assert sorted(record.releases) == survivors
    norms = [np.linalg.norm(change) for change in changes.values()]
    assert min(norms) > privacy.clip.norm  # so every change is clipped
    sigma = noise_for(Budget(epsilon=20, delta=1e-3), sampling_rate=1.0, steps=3)  # 2 rounds, 1 spare
    numel = len(changes["north"])
    grid = 2.0 ** np.floor(np.log2(0.01 * 2 * privacy.clip.norm / numel**0.5))
    variance = int(np.ceil(((sigma * (2 * privacy.clip.norm / grid + numel**0.5)) ** 2 + 9) / 3))
    total = np.zeros(numel)
    for site in survivors:
        clipped = changes[site] * privacy.clip.norm / np.linalg.norm(changes[site])
        noise = NoiseSource.for_test(SEED, f"{site} {made.run.study.sha256} 1")
        total += clipped + discrete_gaussian(noise, numel, variance) * grid
    flat = np.concatenate([
        (made.models[1][name] - made.models[0][name]).double().flatten().numpy()
        for name in sorted(made.models[0])
    ])  # fmt: skip
    assert np.abs(flat - total / len(survivors)).max() < 1e-4
    assert np.abs(flat).max() > 0.01
    assert list(model_faults(made.run, made.run.records())) == []
    release = record.releases["north"].statement
    event = PrivacyEvent(sigma, 1.0, 1)  # one release, however many steps
    assert PrivacyEvent(**release.event.model_dump()) == event
    assert release.epsilon == pytest.approx(epsilon([event], 1e-3), rel=1e-6)


def test_a_hospital_whose_training_diverges_adds_zero_and_noise_and_nobody_sees_it(
    consortium, study
) -> None:
    training = {"steps": 3, "lr": 1e30, "lot": "all"}
    made = consortium(of_hospitals(study, training=training))
    record = made.round(1)
    assert sorted(record.releases) == sorted(NAMES)
    assert P.all_finite(made.models[1])


def test_any_phase_can_lose_as_many_as_the_study_allows(consortium, study) -> None:
    made = consortium(study("shared_noise", sum={"dropouts": 1}))
    made.silent = {"sum-keys": ("north",)}
    assert set(made.round(1).releases) == {"east", "south", "west"}
    made.silent = {"sum-survivors": ("east",)}
    assert set(made.round(2).releases) == set(NAMES)
    assert list(model_faults(made.run, made.run.records())) == []


def test_a_failed_attempt_stays_charged_and_the_next_has_fresh_masks_noise_and_charge(
    consortium, study
) -> None:
    made = consortium(study("shared_noise"))
    asked = made.ask

    def silent_once(run, number, phase, sites):
        lost = phase == "sum-opening" and progress(run, number).attempt == 1
        return asked(run, number, phase, [site for site in sites if not (lost and site == "west")])

    made.ask = silent_once
    record = made.round(1)
    assert record.sum.attempt == 2
    for hospital in made.hospitals.values():
        charged = [c.purpose for c in hospital.ledger.charges(made.run.name) if c.event]
        assert charged == ["contribute", "contribute-try-2"]
    release = record.releases["north"].statement
    event = PrivacyEvent(**release.event.model_dump())
    assert release.epsilon == pytest.approx(epsilon([event] * 2, 1e-3), rel=1e-6)
    assert release.charges == 2
    objects = made.run.home.folder / ".wardround" / "exchange" / "objects" / "north"
    vectors = [checkpoints.StoredParams(path)[MASKED] for path in objects.iterdir()]
    assert len(vectors) == 2 and not torch.equal(*vectors)
    assert list(model_faults(made.run, made.run.records())) == []


def test_the_spare_attempts_are_paid_for_by_the_studys_budget_and_no_more_are(consortium, study) -> None:
    made = consortium(study("shared_noise", rounds=1, sum={"spare": 1}))
    made.silent = {"sum-opening": ("west",)}
    with pytest.raises(TooFewHospitals, match="at least 4 hospitals in round 1"):
        made.contribute(1)
    spent = [hospital.ledger.spent(1e-3) for hospital in made.hospitals.values()]
    assert spent == pytest.approx([20.0] * 4, rel=1e-3)
    made.silent = {}
    with pytest.raises(TooFewHospitals, match="Expected epsilon of at most 20"):
        made.contribute(1)
    assert [h.ledger.spent(1e-3) for h in made.hospitals.values()] == spent


def test_an_interrupted_attempt_goes_on_with_the_same_bytes_at_no_further_cost(
    consortium, study
) -> None:
    made = consortium(study("shared_noise", sum={"dropouts": 1}))
    asked, phases = made.ask, []

    def stopped(run, number, phase, sites):
        found = asked(run, number, phase, sites)
        phases.append(phase)
        if phase == "sum-survivors" and phases.count(phase) == 1:
            raise KeyboardInterrupt
        return found

    made.ask = stopped
    with pytest.raises(KeyboardInterrupt):
        made.contribute(1)
    before = progress(made.run, 1)
    spent = [hospital.ledger.spent(1e-3) for hospital in made.hospitals.values()]
    made.run.begin_attempt()
    record = made.round(1)
    assert record.sum.attempt == 1
    assert record.sum.members("contribute") == before.members("contribute")
    assert [hospital.ledger.spent(1e-3) for hospital in made.hospitals.values()] == spent


def test_what_a_hospital_would_have_spent_alone_stands_beside_what_the_sum_costs(
    consortium, study
) -> None:
    made = consortium(study("shared_noise", sum={"dropouts": 1, "colluding": 1}, fewest=4))
    statement = made.round(1).releases["north"].statement
    sigma = noise_for(Budget(epsilon=20, delta=1e-3), sampling_rate=1.0, steps=3)
    assert statement.masked.honest == 2
    assert statement.epsilon == pytest.approx(epsilon([PrivacyEvent(sigma, 1.0, 1)], 1e-3), rel=1e-3)
    alone = epsilon([PrivacyEvent(sigma / 2**0.5, 1.0, 1)], 1e-3)
    assert statement.masked.own_epsilon == pytest.approx(alone, rel=0.01)
