"""What people are shown in MLflow beside numbers: the sha256 of each file, signed by the coordinator.

A report or a picture can't be made anew to compare it: drawing libraries of another version draw
otherwise, and MLflow writes files of its own beside a model. So the coordinator signs for what it has
shown, in the run's own folder.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from flows.runs.locks import waiting_for
from flows.runs.run import BrokenRun, Run
from models.config import Config
from models.files import sha256_of, write_atomically
from privacy.release import Sha256
from privacy.signing import sign

REPORT = "report.html"
PICTURES = "images"
VERSIONS = "model versions"
"""Stands before the name and number of a registered model, for all of its files together."""


class Shown(Config):
    """A file that a run shows: its path among the artifacts of the run, and its sha256."""

    kind: Literal["shown"] = "shown"
    run: str
    path: str
    sha256: Sha256


def alone(run: Run) -> AbstractContextManager[None]:
    """Wait until no other process shows something else: a training may end while people decide."""
    return waiting_for(run.folder / "shown.lock")


def keep(run: Run, path: str, data: bytes) -> None:
    """Sign for what a run shows at a path, in the place of what it showed there before."""
    said = Shown(run=run.name, path=path, sha256=sha256_of(data))
    signed = sign(said.model_dump(mode="json"), "coordinator", run.key)
    write_atomically(_place(run, path), signed)


def drop(run: Run, path: str) -> None:
    """Sign no more for what a run showed at a path."""
    _place(run, path).unlink(missing_ok=True)


def is_signed(run: Run, path: str) -> bool:
    """Return whether the coordinator has signed for what a run shows at a path."""
    return _place(run, path).exists()


def signed_for(run: Run) -> dict[str, str]:
    """Return by path the sha256 of whatever a run shows.

    Raises:
        BrokenRun: the coordinator did not sign one, or for another run or path.
    """
    found = {}
    for file in sorted(_folder(run).glob("*.json")):
        try:
            said = Shown.model_validate(run.coordinators(file.read_bytes()))
        except ValueError as error:
            raise BrokenRun(f"{file}: {error}") from error
        if (said.run, quote(said.path, safe="")) != (run.name, file.stem):
            raise BrokenRun(f"{file} is about another file or run.")
        found[said.path] = said.sha256
    return found


def _place(run: Run, path: str) -> Path:
    return _folder(run) / f"{quote(path, safe='')}.json"


def _folder(run: Run) -> Path:
    return run.folder / "shown"
