"""Aggregation: the next global model of a round's releases, one release in memory at a time."""

from flows.rounds import ensemble_distillation
from flows.rounds.releases import change_of, weight_of
from flows.rounds.secure_sum import mean_change
from flows.rounds.statements import Answers
from flows.runs.records import RoundRecord
from flows.runs.run import Run
from flows.starts.choice import chosen
from models import checkpoints
from models.checkpoints import StoredParams
from models.params import Params
from models.spans import spanned
from models.strategies import Contribution
from privacy.statements import ReleaseManifest


@spanned("aggregate")
def aggregate(run: Run, round: int, base: RoundRecord, taken: Answers) -> Params:
    """Return the next global model, and store the strategy's state beside it."""
    path = run.state_path(round - 1)
    before = StoredParams(path) if path.exists() else None
    params, state = next_model(run, round, run.model(base), before, taken)
    if state:
        checkpoints.write(run.state_path(round), state)
    return params


def next_model(
    run: Run, round: int, params: Params, state: Params | None, taken: Answers
) -> tuple[Params, Params]:
    """Return the next global model and the strategy's state: the strategy over the round's releases.

    Weights are the declared numbers of training patients; tensors are read one at a time. After the last
    round it is the best of the rounds' models on the study's validation cases, if it has any.

    Args:
        state: of the round before, None before the first.
    """
    strategy = run.study.bound_strategy()
    releases = (
        [Contribution(1.0, mean_change(run, round, strategy.shared(params)))]
        if run.study.is_summed
        else _contributions(run, round, taken)
    )
    if run.study.export == "predictions":
        return ensemble_distillation.student_of(run, round, params, releases), {}
    if state is None:
        state = strategy.init(strategy.shared(params))
    made, state = strategy.next_params(params, state, releases)
    if round == run.study.rounds:
        return chosen(run, _last(run, made)), state
    return made, state


def _last(run: Run, made: Params) -> Params:
    """Return the last model; where hospitals train no teacher, a student that has learned from it."""
    if run.study.shares_noise and run.study.distillation:
        return ensemble_distillation.student_of_last(run, made)
    return made


def _contributions(run: Run, round: int, taken: Answers) -> list[Contribution]:
    return [
        _contribution(run, round, signed.statement)
        for _, signed in sorted(taken.taken.items())
        if isinstance(signed.statement, ReleaseManifest)
    ]


def _contribution(run: Run, round: int, manifest: ReleaseManifest) -> Contribution:
    steps = run.description.member(manifest.site, manifest.round).statement.steps
    training = run.study.training.at_rate(run.rate).model_copy(update={"steps": steps})
    return Contribution(
        weight_of(run, round, manifest),
        change_of(run, round, manifest.site),
        training.length(manifest.round, run.study.rounds),
    )
