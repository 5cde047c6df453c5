"""Verification of a run: every signature, every link, every number, and the models re-computed.

No claim of the coordinator is accepted where a hospital's signature can show the fact. Each check yields
faults in the order in which a round comes about; the first one is where to look.

| checked             | against                                                                  |
|---------------------|--------------------------------------------------------------------------|
| records             | their chain, its heads as the coordinator and the hospitals signed them  |
| models              | their sha256, the coordinator's statements, the strategy over releases   |
| orders, acceptances | signatures, the study's hash, the acceptances in `run.json`              |
| releases            | signatures, sha256, base, declared numbers, cost, none counted twice     |
| secure sums         | each member's statement in each phase, the terms, the releases summed    |
| scores              | signatures, the record's numbers and their declared-n mean               |
| decisions           | their chain, each person's signature, the exchange                       |
| refusals            | signatures, the reasons in `run.json` and the records                    |
| comparisons         | signatures, the record's numbers, the models that hospitals released     |
| MLflow              | every number, record, picture and file of a model                        |
| MLflow's releases   | the decisions: versions, tags, reports, the champion                     |

Not checked: the bytes of models and releases in the exchange, which their readers compare with the
signed sha256 (the copies in the run's folder are checked); in MLflow the study's own note and views;
the seconds that a record states.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from flows.decisions import chain
from flows.decisions.people import People
from flows.runs.artifacts import artifact_lock
from flows.runs.record_files import BrokenRun
from flows.runs.run import Run
from flows.tracking.check_metrics import metric_faults
from flows.tracking.check_registry import released_faults
from flows.verification.check_chain import chain_faults, key_faults, member_faults
from flows.verification.check_decisions import decision_faults
from flows.verification.check_evaluations import comparison_faults, score_faults
from flows.verification.check_models import model_faults
from flows.verification.check_releases import release_faults, repeated_releases
from flows.verification.check_statements import acceptance_faults, order_faults, refusal_faults
from flows.verification.check_sums import sum_faults
from models.files import sha256_of
from privacy.signing import Roster
from sites.yaml_files import ConfigError


@dataclass(frozen=True)
class Anchors:
    """Facts that the reader knows, and need not take from the coordinator.

    Attributes:
        roster: the hospitals' keys; with it, signatures of other keys are faults.
        people: who may decide, in place of the coordinator's `people.yaml`.
        decision: the sha256 of a decision, as `wardround review` printed it when it was recorded; the
            run must still have it.
    """

    roster: Roster | None = None
    people: People | None = None
    decision: str = ""


NO_ANCHORS = Anchors()


def faults(run: Run, anchors: Anchors = NO_ANCHORS) -> Iterator[str]:
    """Yield the faults of a run, one sentence each; none if everything fits.

    Re-computing takes as long as the run's aggregations did, and as the first model's prior.
    """
    yield from lineage_faults(run, anchors)
    yield from released_faults(run)


def lineage_faults(run: Run, anchors: Anchors = NO_ANCHORS) -> Iterator[str]:
    """Yield the faults of a run's models and of the decisions about them.

    The released versions in MLflow are left out: a release corrects them. A run that goes on meanwhile
    is read anew.
    """
    seen = _state(run)
    for fault in _caught(run, anchors):
        if _state(run) != seen:
            yield from lineage_faults(run.again(), anchors)
            return
        yield fault


def _state(run: Run) -> str:
    """Return a hash of everything that a run's folder states now."""
    files = [run.folder / "run.json", *run.folder.glob("rounds/*"), *run.folder.glob("decisions/*.json")]
    return sha256_of(b"".join(path.read_bytes() for path in sorted(files) if path.exists()))


def _caught(run: Run, anchors: Anchors) -> Iterator[str]:
    try:
        yield from _faults(run, anchors)
    except BrokenRun as error:
        yield str(error)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, ConfigError) as error:
        yield f"{run.name} can't be checked any further: {type(error).__name__}: {error}"


def _faults(run: Run, anchors: Anchors) -> Iterator[str]:
    with artifact_lock(run):  # a round that is being published has its record, and not yet its head
        records = run.records()
    roster, known = anchors.roster, chain.decisions(run)
    if not records:
        yield f"{run.name} has no record."
        return
    yield from chain_faults(run, records)
    yield from member_faults(run, records)
    if roster is not None:
        yield from key_faults(run, records, roster)
    yield from order_faults(run)
    yield from acceptance_faults(run, roster)
    yield from refusal_faults(run, records, roster)
    for before, record in pairwise(records):
        yield from release_faults(run, records, before, record)
    yield from repeated_releases(records)
    for record in records:
        yield from score_faults(run, records, record)
    yield from sum_faults(run, records)
    yield from model_faults(run, records)
    for before, record in pairwise(records):
        yield from comparison_faults(run, before, record)
    yield from decision_faults(run, records, known, anchors.people, anchors.decision)
    with artifact_lock(run):  # no round is half published
        found = list(metric_faults(run, records))
    yield from found
