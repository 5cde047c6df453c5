"""Signed artifacts: the sha256 of each file that a run has in MLflow, signed by the coordinator.

A report or a picture can't be made again for a comparison: other versions of drawing libraries draw
differently, and MLflow writes files of its own beside a model. So the coordinator signs each file that
it has published, in the run's own folder.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from flows.runs.locks import waiting_for
from flows.runs.record_files import BrokenRun
from flows.runs.run import Run
from models.config import Config
from models.files import sha256_of, write_atomically
from privacy.signing import sign
from privacy.statements import Sha256

REPORT = "report.html"
PAPERS: Mapping[Literal["dpo", "regulator"], str] = {
    "dpo": "papers/data-protection.html",
    "regulator": "papers/regulator.html",
}
"""By reader, the papers of a run whose rounds are all recorded."""
PROOF = "release.json"
"""The proof of a release, beside an approved version's files."""
PICTURES = "images"
VERSIONS = "model versions"
"""Stands before the name and number of a registered model, for all of its files together."""


class SignedArtifact(Config):
    """A file that a run has published: its path among the run's artifacts, and its sha256."""

    kind: Literal["artifact"] = "artifact"
    run: str
    path: str
    sha256: Sha256


def artifact_lock(run: Run) -> AbstractContextManager[None]:
    """Wait until no other process publishes artifacts: a training may end while people decide."""
    return waiting_for(run.folder / "artifacts.lock")


def keep(run: Run, path: str, data: bytes) -> None:
    """Sign the file at a path, in place of the file that was there before."""
    artifact = SignedArtifact(run=run.name, path=path, sha256=sha256_of(data))
    signed = sign(artifact.model_dump(mode="json"), "coordinator", run.key)
    write_atomically(_place(run, path), signed)


def drop(run: Run, path: str) -> None:
    """Delete the signature of the file at a path."""
    _place(run, path).unlink(missing_ok=True)


def is_signed(run: Run, path: str) -> bool:
    """Return whether the coordinator has signed the file at a path."""
    return _place(run, path).exists()


def signed_for(run: Run) -> dict[str, str]:
    """Return by path the sha256 of each signed file.

    Raises:
        BrokenRun: the coordinator did not sign one, or signed it for another run or path.
    """
    found = {}
    for file in sorted(_folder(run).glob("*.json")):
        try:
            artifact = SignedArtifact.model_validate(run.coordinators(file.read_bytes()))
        except ValueError as error:
            raise BrokenRun(f"{file}: {error}") from error
        if (artifact.run, quote(artifact.path, safe="")) != (run.name, file.stem):
            raise BrokenRun(f"{file} is about another file or run.")
        found[artifact.path] = artifact.sha256
    return found


def _place(run: Run, path: str) -> Path:
    return _folder(run) / f"{quote(path, safe='')}.json"


def _folder(run: Run) -> Path:
    return run.folder / "artifacts"
