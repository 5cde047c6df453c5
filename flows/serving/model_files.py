"""Files of a model by its name: a folder, a run, or a version in MLflow's registry."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows import served_model
from flows.decisions import release_proof, release_status
from flows.decisions.people import load_people
from flows.decisions.release_proof import ReleaseProof
from flows.runs import artifacts
from flows.runs.dates import day
from flows.runs.paths import Home
from flows.runs.record_files import BrokenRun
from flows.runs.run import named_run
from flows.servers.environment import with_mlflow
from flows.tracking import download, registry
from models.files import sha256_of
from sites.yaml_files import ConfigError


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder, and the checked proof of its release; None for a model that nobody released.

    A proof among the files of the folder counts nothing: anybody may have put it there.
    """

    folder: Path
    proof: ReleaseProof | None = None


@contextmanager
def model_files(home: Home, named: str) -> Iterator[ModelFiles]:
    """Yield the files of a model: one on disk, a run's newest, or a version in MLflow's registry.

    | `named`                    | model                                             |
    |----------------------------|---------------------------------------------------|
    | a folder with `model.json` | the one in it                                     |
    | a bundle's folder          | the one in its `models/`                          |
    | `<study>-approved`         | the champion                                      |
    | `<study>-candidates`       | the newest candidate                              |
    | either with `/3`           | that version                                      |
    | a run's name, with `:2`    | the one after its newest round, or after round 2  |

    Raises:
        ConfigError: there is no such model, it was withdrawn, or its approvals have expired.
        NotProven: `<study>-approved` names a model that the signed decisions do not release.
    """
    for place in (Path(named), Path(named) / "models"):
        if (place / served_model.DESCRIPTION).is_file():
            yield ModelFiles(place)
            return
    with tempfile.TemporaryDirectory() as folder:
        yield _of_run(home, named, Path(folder)) or _registered(home, named, Path(folder))


def _of_run(home: Home, named: str, into: Path) -> ModelFiles | None:
    name, _, round = named.partition(":")
    if not (home.runs / name / "run.json").is_file():
        return None
    try:
        run = named_run(home, name)
        records = run.records()
        record = {str(each.round): each for each in records}[round or str(records[-1].round)]
    except (BrokenRun, KeyError, IndexError) as error:
        raise ConfigError(f"{named}: expected a recorded round of this run: {error}") from error
    served_model.write(into, run.study, run.model(record))
    return ModelFiles(into)


def _registered(home: Home, named: str, into: Path) -> ModelFiles:
    name, _, wanted = named.partition("/")
    alias = registry.CHAMPION if name.endswith("-approved") else registry.CANDIDATE
    try:
        with with_mlflow(home):
            found = download.fetch(name, wanted or alias, into)
    except LookupError as error:
        raise ConfigError(
            f"{named}: expected a model's folder, a run, <study>-approved or <study>-candidates: {error}"
        ) from error
    files = download.model_in(found.folder)
    _check_released(named, found.tags)
    study = name.removesuffix("-approved")
    return ModelFiles(files, None if study == name else _checked_proof(home, study, found.folder, files))


def _checked_proof(home: Home, study: str, version: Path, files: Path) -> ReleaseProof:
    """Return the proof that people released a version as a model of a study; raise `NotProven`.

    In the home of its run the decisions are read from the run's folder; MLflow's file counts nothing.
    """
    path = version / artifacts.PROOF
    if not path.is_file() or path.stat().st_size > release_proof.MOST_BYTES:
        raise release_proof.NotProven(
            "No proof of its release is beside it in MLflow; `wardround promote` writes it."
        )
    proof = release_proof.parsed(path.read_bytes())
    if (home.runs / proof.record.run / "run.json").is_file():
        proof = release_proof.proof_of(named_run(home, proof.record.run), proof.record)
    if proof.study.name != study:
        raise release_proof.NotProven(f"It is a model of {proof.study.name}, not of {study}.")
    weights = sha256_of((files / served_model.WEIGHTS).read_bytes())
    release_proof.check_proof(proof, weights, served_model.load(files).study, load_people(home))
    return proof


def _check_released(named: str, tags: Mapping[str, str]) -> None:
    """Raise `ConfigError` where a version was withdrawn, or its approvals have expired."""
    run, round = tags.get("wardround.run"), tags.get("wardround.round")
    way_out = f"To examine it nevertheless, ask for {run}:{round} in the folder that has the run."
    if reason := tags.get(registry.REVOKED):
        raise ConfigError(f"{named}: expected a released model; it was withdrawn: {reason}. {way_out}")
    until = tags.get(release_status.APPROVED_UNTIL)
    if until and until < day(int(time.time() * 1000)):
        raise ConfigError(f"{named}: expected a released model; its approvals ended {until}. {way_out}")
