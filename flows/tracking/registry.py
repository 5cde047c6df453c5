"""Models in MLflow's registry: each round's as a candidate, released ones as approved.

`<study>-candidates` is the coordinator's; in a protected server only the data-protection officer's
account can write `<study>-approved`. No model is pickled: installed code and safetensors
(`flows.served_model`).
"""

import tempfile
import warnings
from collections.abc import Container, Mapping
from pathlib import Path

import mlflow
import numpy as np
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.tracking import MlflowClient
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

from flows import served_model
from flows.runs import artifacts
from flows.runs.records import RoundRecord
from flows.runs.run import Run, StoreFailed, runs_of
from flows.runs.versions import installed
from flows.tracking.download import fetch
from flows.tracking.errors import NOT_THERE, reading, writing
from models.files import sha256_of
from models.settings.tasks import TaskConfig
from privacy.signing import canonical

OFFICERS = "the data-protection officer's"
CHAMPION, CANDIDATE = "champion", "candidate"
REVOKED = "wardround.revoked"


def candidates(study: str) -> str:
    """Return the name of the registered model that holds a version of every round."""
    return f"{study}-candidates"


def approved(study: str) -> str:
    """Return the name of the registered model that holds the released models."""
    return f"{study}-approved"


def candidate(client: MlflowClient, run: Run, round: int) -> ModelVersion | None:
    """Return the version that holds a round's model, None where there is none."""
    found = candidates_of(client, run, round)
    return found[0] if found else None


def candidates_of(client: MlflowClient, run: Run, round: int) -> list[ModelVersion]:
    """Return the versions whose tags name a round's model; Wardround makes at most one."""
    found = client.search_model_versions(
        f"name = '{candidates(run.study.name)}' and tags.`wardround.run` = '{run.name}' "
        f"and tags.`wardround.round` = '{round}'"
    )
    return sorted(found, key=lambda version: int(version.version))


def all_candidates(client: MlflowClient, study: str) -> list[ModelVersion]:
    """Return every version of `<study>-candidates`, of any run."""
    return _versions(client, candidates(study))


def all_approved(client: MlflowClient, study: str) -> list[ModelVersion]:
    """Return every version of `<study>-approved`, of any run."""
    return _versions(client, approved(study))


def aliases(client: MlflowClient, study: str) -> Mapping[str, str]:
    """Return the aliases of versions of `<study>-approved`, empty where it does not exist."""
    try:
        return dict(client.get_registered_model(approved(study)).aliases)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        return {}


def register(client: MlflowClient, run: Run, record: RoundRecord, parent: str) -> None:
    """Register a round's model as a version of `<study>-candidates`, the newest `candidate`.

    A run that continues after a later one has started leaves the alias with the later run's version.
    """
    name = candidates(run.study.name)
    ensure_registered(client, name)
    known = candidate(client, run, record.round)
    if known is None:
        model = _log_model(run, record, parent)
        known = client.create_model_version(
            name,
            source=model.model_uri,
            run_id=parent,
            model_id=model.model_id,
            tags=tags_of(run, record),
            await_creation_for=0,
        )
        artifacts.drop(run, f"{artifacts.VERSIONS}/{name}/{known.version}")  # of a store that is gone
    _sign(run, name, str(known.version))
    if newest_candidate(client, run) <= (run.description.started_ms, record.round):
        client.set_registered_model_alias(name, CANDIDATE, known.version)


def newest_candidate(client: MlflowClient, run: Run) -> tuple[int, int]:
    """Return the start time of the run whose model `candidate` names, and the model's round.

    Both are 0 where it names no model, or one of no run that is stored here.
    """
    try:
        found = client.get_model_version_by_alias(candidates(run.study.name), CANDIDATE)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        return 0, 0
    begun = {each.name: each.description.started_ms for each in runs_of(run.home)}
    named = begun.get(found.tags.get("wardround.run", ""), 0)
    round = found.tags.get("wardround.round", "")
    return (named, int(round)) if named and round.isdecimal() else (0, 0)


def _sign(run: Run, name: str, version: str) -> None:
    """Sign the files of a version as MLflow has them, once; raise `StoreFailed` if it lacks them."""
    path = f"{artifacts.VERSIONS}/{name}/{version}"
    if artifacts.is_signed(run, path):
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            artifacts.keep(run, path, listing(fetch(name, version, Path(folder)).folder))
        except LookupError as error:
            raise StoreFailed(f"MLflow lacks files of a registered model: {error}") from error


def listing(folder: Path) -> bytes:
    """Return the sha256 of a version's files by path, without those that its release adds."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    added = (artifacts.REPORT, artifacts.PROOF)
    return canonical(
        {path: sha256_of(file.read_bytes()) for path, file in files.items() if path not in added}
    )


def tags_of(run: Run, record: RoundRecord) -> dict[str, str]:
    """Return the tags of a version about its model."""
    epsilons = [release.statement.epsilon for release in record.releases.values()]
    spent = [epsilon for epsilon in epsilons if epsilon is not None]
    return {
        "wardround.study": run.study.name,
        "wardround.run": run.name,
        "wardround.round": str(record.round),
        "wardround.sha256": record.model_sha256,
        "wardround.chain_head": record.sha256,
        **{f"val/{name}": f"{value:.4f}" for name, value in record.quality.items()},
        **({"privacy/epsilon": f"{max(spent):.4f}"} if spent else {"dp": "false"}),
        **_local_layers_tag(run, record),
    }


def write_approved(run: Run, record: RoundRecord, tags: Mapping[str, str], report: bytes) -> str:
    """Write a round's model, from the run's own folder, to `<study>-approved`; return its version.

    Its files go where the coordinator's account can't write, with the report beside them. A second call
    changes only the tags and the report; a mark of revocation stays until it is the champion again.

    Raises:
        NotAllowed: this account may not write the approved models.
        StoreFailed: MLflow has not stored all of it.
    """
    client, name = MlflowClient(), approved(run.study.name)
    with writing(f"the released model of round {record.round} in {name}", OFFICERS):
        ensure_registered(client, name)
        known = _approved_version(client, run, record)
        if known is None:
            known = _written(client, run, record)
            artifacts.drop(
                run, f"{artifacts.VERSIONS}/{name}/{known.version}"
            )  # of a store that is gone
        _sign(run, name, str(known.version))
        _attach(client, known, artifacts.REPORT, report)
        for key, value in tags.items():
            client.set_model_version_tag(name, known.version, key, value)
    return str(known.version)


def make_champion(study: str, version: str) -> None:
    """Make a version of `<study>-approved` the champion; remove it where `version` is empty.

    Raises:
        NotAllowed: this account may not write the approved models.
        StoreFailed: MLflow has not stored it.
    """
    client, name = MlflowClient(), approved(study)
    with writing(f"the champion of {name}", OFFICERS):
        if version:
            if REVOKED in client.get_model_version(name, version).tags:
                client.delete_model_version_tag(name, version, REVOKED)
            client.set_registered_model_alias(name, CHAMPION, version)
        elif champion(study):
            client.delete_registered_model_alias(name, CHAMPION)


def _written(client: MlflowClient, run: Run, record: RoundRecord) -> ModelVersion:
    name = approved(run.study.name)
    experiment = client.get_experiment_by_name(name)
    store = experiment.experiment_id if experiment else client.create_experiment(name)
    parent = client.create_run(store, run_name=f"{run.name} round {record.round}").info.run_id
    model = _log_model(run, record, parent)
    client.set_terminated(parent)
    return client.create_model_version(
        name,
        source=model.model_uri,
        model_id=model.model_id,
        tags=tags_of(run, record),
        await_creation_for=0,
    )


def _attach(client: MlflowClient, known: ModelVersion, name: str, data: bytes) -> None:
    """Put a file beside a version's files, in place of an earlier one."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(data)
        client.log_model_artifact(str(known.source).removeprefix("models:/"), str(Path(folder) / name))


def attach_proof(study: str, version: str, proof: bytes) -> None:
    """Put the proof of its release beside a version of `<study>-approved`.

    Raises:
        NotAllowed: this account may not write the approved models.
        StoreFailed: MLflow has not stored it.
    """
    client, name = MlflowClient(), approved(study)
    with writing(f"the proof of the release of version {version} of {name}", OFFICERS):
        _attach(client, client.get_model_version(name, version), artifacts.PROOF, proof)


def withdraw(study: str, version: str, reason: str, follower: str) -> None:
    """Mark a released version as revoked; a champion is replaced by `follower`, if not empty.

    Raises:
        NotAllowed: this account may not write the approved models.
        StoreFailed: MLflow has not stored it.
    """
    name = approved(study)
    with writing(f"the revocation of version {version} of {name}", OFFICERS):
        MlflowClient().set_model_version_tag(name, version, REVOKED, reason[:500] or "yes")
    if champion(study) == version:
        make_champion(study, follower)


def champion(study: str) -> str:
    """Return the version of `<study>-approved` that is released now, empty if none is.

    Raises:
        StoreFailed: MLflow can't be reached.
    """
    with reading(f"the champion of {study}"):
        try:
            return str(MlflowClient().get_model_version_by_alias(approved(study), CHAMPION).version)
        except MlflowException as error:
            if error.error_code not in NOT_THERE:
                raise
            return ""


def has_approved(run: Run, version: str) -> bool:
    """Return whether `<study>-approved` has this version, made by a run; raise as `champion` does."""
    with reading(f"version {version} of {approved(run.study.name)}"):
        try:
            found = MlflowClient().get_model_version(approved(run.study.name), version)
        except MlflowException as error:
            if error.error_code not in NOT_THERE:
                raise
            return False
        return bool(found.tags.get("wardround.run") == run.name)


def described(name: str, version: str) -> str:
    """Return the descriptions in MLflow of a version and of its registered model, as one text."""
    client = MlflowClient()
    texts = (
        client.get_model_version(name, version).description,
        client.get_registered_model(name).description,
    )
    return "".join(text or "" for text in texts)


def approved_versions(client: MlflowClient, run: Run, decided: Container[str]) -> list[ModelVersion]:
    """Return the versions of `<study>-approved` that name a run or one of its decisions."""
    every = _versions(client, approved(run.study.name))
    return [v for v in every if v.tags.get("wardround.run") == run.name or str(v.version) in decided]


def ensure_registered(client: MlflowClient, name: str) -> None:
    """Make a registered model, if there is none."""
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name)


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    found = client.search_model_versions(f"name = '{name}'")
    return sorted(found, key=lambda version: int(version.version))


def _approved_version(client: MlflowClient, run: Run, record: RoundRecord) -> ModelVersion | None:
    """Return the version of a round's released model, None where it was never written."""
    tags = {"sha256": record.model_sha256, "run": run.name, "round": str(record.round)}
    named = [
        version
        for version in _versions(client, approved(run.study.name))
        if all(version.tags.get(f"wardround.{key}") == value for key, value in tags.items())
    ]
    return named[-1] if named else None


def _local_layers_tag(run: Run, record: RoundRecord) -> dict[str, str]:
    """Return a warning tag where a model lacks the layers that hospitals keep."""
    params = run.model(record)
    missing = sorted(params.keys() - run.study.bound_strategy().shared(params).keys())
    if not missing:
        return {}
    return {"wardround.local_layers": f"untrained here, kept at hospitals: {', '.join(missing)}"[:500]}


def _signature(task: TaskConfig) -> ModelSignature:
    """Return a model's inputs and outputs: probabilities, unless labels are requested.

    MLflow compares an array's type with one type of the signature, and casts none. `object` with one
    axis is what it lets through; the model itself checks its images, in whichever type of number.
    """
    answers = (-1, -1) if task.network_kind == "classification" else (-1, -1, *(-1,) * task.dims)
    inputs = Schema([TensorSpec(np.dtype(object), (-1,))])
    outputs = Schema([TensorSpec(np.dtype(np.float32), answers)])
    spacing = ParamSpec("spacing_mm", DataType.double, [1.0] * task.dims, shape=(-1,))
    return ModelSignature(
        inputs, outputs, ParamSchema([spacing, ParamSpec("output", DataType.string, "probabilities")])
    )


def _log_model(run: Run, record: RoundRecord, parent: str) -> ModelInfo:
    study = run.study
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # MLflow wants an example; that would be a patient's image, or of no use.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        served_model.write(Path(folder), study, run.model(record))
        mlflow.start_run(run_id=parent)
        try:
            return mlflow.pyfunc.log_model(
                name=f"round-{record.round:03d}",
                loader_module="flows.served_model",
                data_path=folder,
                signature=_signature(study.task),
                pip_requirements=[f"{name}=={number}" for name, number in installed().items()],
                step=record.round,
            )
        finally:
            mlflow.end_run("RUNNING")
