"""Checks of MLflow's released models against the decisions: versions, tags, files, the champion."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from flows.decisions import chain, release_status
from flows.decisions.release_status import ReleasedVersion
from flows.runs import artifacts
from flows.runs.record_files import BrokenRun
from flows.runs.records import RoundRecord
from flows.runs.run import Run, StoreFailed, runs_of
from flows.tracking import metrics, registry
from flows.tracking.check_metrics import files_faults
from flows.tracking.errors import ERRORS
from flows.tracking.tracking import page_tags

CLOCKS_MS = 10 * 60 * 1000
"""The largest accepted difference between the clocks of MLflow's server and of the coordinator."""
LOG_LATER = "`wardround promote` under the coordinator's account logs the rest"


def released_faults(run: Run) -> Iterator[str]:
    """Yield the faults of released models in MLflow against the decisions, one sentence each.

    No such fault prevents a release, which may correct it: a champion whose approvals have expired waits
    for new ones.
    """
    try:
        known = chain.decisions(run)
        yield from _approved_faults(MlflowClient(), run, known)
        yield from _candidate_faults(MlflowClient(), run)
        yield from _champion_faults(run)
        yield from _undecided_faults(MlflowClient(), run)
        with artifacts.artifact_lock(run):  # the page is not half written
            found = list(_page_faults(run))
        yield from found
    except (*ERRORS, StoreFailed) as error:
        yield f"MLflow can't be read: {error}"
    except BrokenRun as error:
        yield str(error)


def _approved_faults(client: MlflowClient, run: Run, known: release_status.Chain) -> Iterator[str]:
    """Yield the faults of approved versions. An interrupted release may leave one without a decision."""
    decided = {link.outcome.version: link.outcome for link in known if link.outcome}
    in_force = release_status.released(known)
    records = run.records()
    models = {record.model_sha256 for record in records}
    found = {str(v.version): v for v in registry.approved_versions(client, run, decided)}
    for number, outcome in decided.items():
        version = found.get(number)
        if version is None:
            if number in in_force:
                yield f"MLflow lacks version {number} of the approved models, which a decision names"
        elif version.tags.get("wardround.sha256") != outcome.terms.model_sha256:
            yield f"version {number} of the approved models is of another model than its decision"
        elif number in in_force:
            yield from _version_faults(run, records[outcome.terms.round], version, in_force[number])
        elif registry.REVOKED not in version.tags:
            yield f"version {number} of the approved models was withdrawn and is not marked as revoked"
    for number in sorted(found.keys() - decided.keys()):
        if found[number].tags.get("wardround.sha256") not in models:
            yield f"version {number} of the approved models names {run.name}, and is no model of it"


def _version_faults(
    run: Run, record: RoundRecord, version: ModelVersion, released: ReleasedVersion
) -> Iterator[str]:
    name = registry.approved(run.study.name)
    where = f"version {version.version} of the approved models"
    tags = {**registry.tags_of(run, record), **released.tags}
    for key in sorted(tags.keys() | version.tags.keys()):
        if version.tags.get(key) != tags.get(key):
            found = version.tags.get(key)
            yield f"{where} has {key}={found}, the decisions have {tags.get(key)}"
    if released.at_ms < version.creation_timestamp - CLOCKS_MS:
        yield f"{where} is younger than the decision that released it"
    with tempfile.TemporaryDirectory() as folder:
        yield from files_faults(
            run, record, name, str(version.version), Path(folder), released.outcome.report_sha256
        )


def _undecided_faults(client: MlflowClient, run: Run) -> Iterator[str]:
    """Yield a fault for each approved version and alias that no decision has made."""
    found = registry.all_approved(client, run.study.name)
    chains = release_status.chains_of(run.home, run.study.name)
    decided = {link.outcome.version for chain in chains for link in chain if link.outcome}
    for version in found:
        where = f"version {version.version} of {version.name}"
        if str(version.version) not in decided:
            yield f"{where} was never released; continue with `wardround promote`, or delete it"
    for alias, number in sorted(registry.aliases(client, run.study.name).items()):
        if alias != registry.CHAMPION:
            where = f"version {number} of the approved models"
            yield f"{where} has the alias {alias}, which no decision gave"


def _candidate_faults(client: MlflowClient, run: Run) -> Iterator[str]:
    """Yield a fault for each candidate that no run here has registered."""
    found = registry.all_candidates(client, run.study.name)
    known = {each.name: len(each.records()) for each in runs_of(run.home)}
    for version in found:
        named, round = version.tags.get("wardround.run", ""), version.tags.get("wardround.round", "")
        if not round.isdecimal() or not 0 < int(round) < known.get(named, 0):
            yield (
                f"version {version.version} of {version.name} is of no round of a run stored here; "
                f"restore the folder of {named or 'its run'}, or delete the version"
            )


def _champion_faults(run: Run) -> Iterator[str]:
    """Yield the fault of the study's champion, if it has one."""
    chains = release_status.chains_of(run.home, run.study.name)
    decided, found = release_status.champion(chains), registry.champion(run.study.name)
    in_force = {v: each for known in chains for v, each in release_status.released(known).items()}
    if found and found not in in_force:
        yield f"version {found} is the champion, and no decision in force here has released it"
    elif found != decided:
        yield f"version {found or 'none'} is the champion, the decisions name {decided or 'none'}"
    elif found and in_force[found].against:
        yield (
            f"version {found} is the champion, and has an objection against it; "
            f"`wardround review withdraw` takes it back"
        )
    elif found and in_force[found].until_ms <= time.time() * 1000:
        yield (
            f"version {found} is the champion, and its approvals have expired; approve it again and "
            f"promote it, or revoke it"
        )


def _page_faults(run: Run) -> Iterator[str]:
    """Yield the faults of the tags about decisions on the run's page."""
    found = page_tags(run)
    for key, value in metrics.decided_tags(run).items():
        if found.get(key) != value:
            yield (
                f"In MLflow {run.name} has {key}={found.get(key)}, the decisions have {value}; "
                f"{LOG_LATER}"
            )
