"""The model that a run ends with, chosen on public cases among rounds and between start and end."""

import statistics
from pathlib import Path

import pytest
import torch
from public_cases import labelled
from puppets import SITES, Federation

from flows.starts.choice import BETWEEN, beats, chosen
from flows.starts.first_model import first_model
from flows.starts.measures import loss_of
from flows.starts.public_sets import public_set
from models import params as P
from models.objectives import build_task
from privacy.accounting import epsilon
from sites.local_models import CPU, network_for
from sites.study import Study


@pytest.fixture
def federation(tmp_path: Path, study_with) -> Federation:
    labelled(tmp_path / "public" / "others", 3)
    start = {"kind": "public", "folder": "others", "steps": 40, "batch": 3, "lr": 0.01}
    study = study_with(start=start, validation={"folder": "others"}, rounds=2)
    return Federation(tmp_path, study)


@pytest.fixture
def weak(tmp_path: Path, study_with) -> Federation:
    """A federation whose start knows nothing yet."""
    labelled(tmp_path / "public" / "others", 3)
    return Federation(tmp_path, study_with(validation={"folder": "others"}, rounds=2))


def trained(federation: Federation, steps: int) -> P.Params:
    """Return a model that has learned from the public cases themselves."""
    stage = {"kind": "public", "folder": "others", "steps": steps, "batch": 3, "lr": 0.01}
    study = federation.run.study
    return first_model(
        Study.model_validate({**study.model_dump(), "start": [stage]}), federation.run.home
    ).params


def loss(federation: Federation, params: P.Params) -> float:
    run = federation.run
    cases = public_set(run.home.public, "others", run.study).cases
    network = network_for(run.study.network, run.study, CPU, params).eval()
    return loss_of(network, build_task(run.study.task), run.study, cases)


def test_a_training_that_destroyed_the_start_ends_no_worse_than_the_start(
    federation: Federation,
) -> None:
    start = federation.run.model(federation.base)
    for round in (1, 2):
        for site in SITES:
            rng = torch.Generator().manual_seed(round)
            noise = {n: 3 * torch.randn(t.shape, generator=rng) for n, t in start.items()}
            spent = epsilon([federation.event] * round, 1e-3)
            federation.release(site, noise, round=round, epsilon=spent)
        federation.finish(round)
    last = federation.run.model(federation.run.records()[-1])
    assert loss(federation, last) <= loss(federation, start)


def moved(start: P.Params, scale: float) -> P.Params:
    rng = torch.Generator().manual_seed(1)
    return {n: t + scale * torch.randn(t.shape, generator=rng) for n, t in start.items()}


def test_the_candidate_of_the_smallest_loss_is_chosen(weak: Federation) -> None:
    start, good = dict(weak.run.model(weak.base)), trained(weak, steps=60)
    for scale in (0.0, 0.01, 0.1):
        last = moved(good, scale)
        between = [
            {n: start[n] + share * (last[n] - start[n]) for n in start} for share in (0.0, *BETWEEN, 1.0)
        ]
        least = min(loss(weak, each) for each in between)
        assert least < 0.9 * loss(weak, start)
        assert loss(weak, chosen(weak.run, last)) == pytest.approx(least)


def test_the_start_stays_where_no_candidate_is_better_by_more_than_a_standard_error(
    federation: Federation,
) -> None:
    start = dict(federation.run.model(federation.base))
    for scale in (1e-6, 1.0):
        found = chosen(federation.run, moved(start, scale))
        assert all(torch.equal(found[n], start[n]) for n in start)


def test_one_standard_error_is_the_bound() -> None:
    losses, gains = torch.zeros(4, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    error = statistics.stdev(gains.tolist()) / 2
    assert beats(losses, gains - gains.mean() + 1.001 * error)
    assert not beats(losses, gains - gains.mean() + 0.999 * error)


def test_one_case_alone_is_never_enough_and_what_is_no_number_beats_nothing() -> None:
    inf = torch.tensor([float("inf"), 1.0])
    assert not beats(torch.tensor([0.1]), torch.tensor([9.0]))
    assert not beats(inf, torch.tensor([9.0, 9.0]))
    assert beats(torch.tensor([9.0, 9.0]), inf)


def test_a_candidate_that_beats_the_start_is_taken_though_a_better_one_on_average_does_not(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, found = federation.run.model(federation.base), iter(
        [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 2.4]), torch.tensor([0.8, 0.9, 0.8])]
        + [torch.tensor([2.0, 2.0, 2.0])] * 9
    )  # fmt: skip
    monkeypatch.setattr("flows.starts.choice.losses_by_case", lambda *_: next(found))
    last = moved(start, 1.0)
    taken = chosen(federation.run, last)  # the second candidate: three quarters of the way
    share = 0.75
    assert all(torch.allclose(taken[n], start[n] + share * (last[n] - start[n])) for n in start)


def test_without_validation_cases_or_where_the_study_does_not_choose_the_last_model_stays(
    tmp_path: Path, study_with
) -> None:
    labelled(tmp_path / "public" / "others", 2)
    for k, changes in enumerate(({}, {"validation": {"folder": "others", "choose": False}})):
        run = Federation(tmp_path, study_with(**changes, name=f"small-{k}")).run
        last = {n: t + 5 for n, t in run.model(run.records()[0]).items()}
        assert chosen(run, last) is last


def test_only_the_last_round_chooses(federation: Federation) -> None:
    start = federation.run.model(federation.base)
    for site in SITES:
        federation.release(site, federation.change(9.0))
    federation.finish(1)
    moved = P.subtract(federation.run.model(federation.run.records()[1]), start)
    assert all(torch.allclose(each, torch.full_like(each, 9.0), atol=1e-3) for each in moved.values())
