"""Where MLflow's released models are not what people decided: versions, tags, files, the champion."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from flows.decisions import chain, release_status
from flows.decisions.release_status import ReleasedVersion
from flows.runs import artifacts
from flows.runs.records import RoundRecord
from flows.runs.run import BrokenRun, Run, StoreFailed, runs_of
from flows.tracking import metrics, registry
from flows.tracking.check_metrics import files_faults
from flows.tracking.errors import ERRORS
from flows.tracking.tracking import page_tags

CLOCKS_MS = 10 * 60 * 1000
"""How far the clocks of MLflow's server and of the coordinator may be apart."""
TOLD_LATER = "`wardround promote` under the coordinator's account tells the rest"


def released_faults(run: Run) -> Iterator[str]:
    """Yield what in MLflow does not fit the decisions about a run's models, one sentence each.

    None of it hinders a release, which may put it right: a champion whose approvals have expired waits
    for new ones.
    """
    try:
        known = chain.decisions(run)
        yield from _of_versions(MlflowClient(), run, known)
        yield from _of_candidates(MlflowClient(), run)
        yield from _of_champion(run)
        yield from _of_undecided(MlflowClient(), run)
        with artifacts.artifact_lock(run):  # nothing is half told
            told = list(_of_words(run))
        yield from told
    except (*ERRORS, StoreFailed) as error:
        yield f"MLflow can't be read: {error}"
    except BrokenRun as error:
        yield str(error)


def _of_versions(client: MlflowClient, run: Run, known: release_status.Chain) -> Iterator[str]:
    """Yield where a version is not what was decided about; an interrupted release may leave another."""
    decided = {link.outcome.version: link.outcome for link in known if link.outcome}
    stand = release_status.released(known)
    records = run.records()
    models = {record.model_sha256 for record in records}
    found = {str(v.version): v for v in registry.approved_versions(client, run, decided)}
    for number, outcome in decided.items():
        version = found.get(number)
        if version is None:
            if number in stand:
                yield f"MLflow lacks version {number} of the approved models, which was decided about"
        elif version.tags.get("wardround.sha256") != outcome.terms.model_sha256:
            yield f"version {number} of the approved models is of another model than was decided about"
        elif number in stand:
            yield from _of_version(run, records[outcome.terms.round], version, stand[number])
        elif registry.REVOKED not in version.tags:
            yield f"version {number} of the approved models was withdrawn and is not marked so"
    for number in sorted(found.keys() - decided.keys()):
        if found[number].tags.get("wardround.sha256") not in models:
            yield f"version {number} of the approved models names {run.name}, and is no model of it"


def _of_version(
    run: Run, record: RoundRecord, version: ModelVersion, stands: ReleasedVersion
) -> Iterator[str]:
    name = registry.approved(run.study.name)
    where = f"version {version.version} of the approved models"
    due = {**registry.tags_of(run, record), **stands.tags}
    for key in sorted(due.keys() | version.tags.keys()):
        if version.tags.get(key) != due.get(key):
            yield f"{where} says {key}={version.tags.get(key)}, the decisions {due.get(key)}"
    if stands.at_ms < version.creation_timestamp - CLOCKS_MS:
        yield f"{where} is younger than the decision that released it"
    with tempfile.TemporaryDirectory() as folder:
        yield from files_faults(
            run, record, name, str(version.version), Path(folder), stands.outcome.report_sha256
        )


def _of_undecided(client: MlflowClient, run: Run) -> Iterator[str]:
    """Yield the approved versions and aliases that no decision has made."""
    found = registry.all_approved(client, run.study.name)
    chains = release_status.chains_of(run.home, run.study.name)
    decided = {link.outcome.version for chain in chains for link in chain if link.outcome}
    for version in found:
        where = f"version {version.version} of {version.name}"
        if str(version.version) not in decided:
            yield f"{where} was never released; `wardround promote` goes on with it, or it is deleted"
    for alias, number in sorted(registry.aliases(client, run.study.name).items()):
        if alias != registry.CHAMPION:
            yield f"version {number} of the approved models is called {alias}, which no decision does"


def _of_candidates(client: MlflowClient, run: Run) -> Iterator[str]:
    """Yield the candidates that no run here has registered."""
    found = registry.all_candidates(client, run.study.name)
    known = {each.name: len(each.records()) for each in runs_of(run.home)}
    for version in found:
        named, round = version.tags.get("wardround.run", ""), version.tags.get("wardround.round", "")
        if not round.isdecimal() or not 0 < int(round) < known.get(named, 0):
            yield (
                f"version {version.version} of {version.name} is of no round of a run that lies here; "
                f"bring the folder of {named or 'its run'} back, or delete the version"
            )


def _of_champion(run: Run) -> Iterator[str]:
    chains = release_status.chains_of(run.home, run.study.name)
    due, told = release_status.champion(chains), registry.champion(run.study.name)
    stand = {number: each for chain in chains for number, each in release_status.released(chain).items()}
    if told and told not in stand:
        yield f"version {told} is the champion, and no decision that stands here has released it"
    elif told != due:
        yield f"version {told or 'none'} is the champion, and the decisions made it {due or 'none'}"
    elif told and stand[told].against:
        yield f"version {told} is the champion, and was taken back; `wardround review withdraw` does it"
    elif told and stand[told].until_ms <= time.time() * 1000:
        yield (
            f"version {told} is the champion, and its approvals have expired; approve it again and "
            f"promote it, or revoke it"
        )


def _of_words(run: Run) -> Iterator[str]:
    told = page_tags(run)
    for key, due in metrics.decided_tags(run).items():
        if told.get(key) != due:
            yield f"MLflow says of {run.name} {key}={told.get(key)}, the decisions {due}; {TOLD_LATER}"
