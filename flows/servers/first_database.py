"""The empty databases with which the servers of a folder begin, as Prefect and MLflow make them.

Making one takes seconds: MLflow and Prefect take more than a hundred steps of migration. It is made once
for each version and user, and copied from then on.
"""

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from models.errors import WaitAndRepeat


class ServerError(WaitAndRepeat):
    """A server did not start; the message names its log."""


@dataclass(frozen=True)
class FirstDatabase:
    """An SQLite database that a server finds at its very first start.

    Attributes:
        path: its place.
        name: its name among the user's copies; another version has another name.
        command: makes such a database; `{path}` in it stands for the database's place.
        environment: added to the process's own; `{path}` as in `command`.
    """

    path: Path
    name: str
    command: Sequence[str]
    environment: Mapping[str, str]

    def lay(self, log: Path) -> None:
        """Put the database into its place, unless there is one.

        Raises:
            ServerError: it could not be made; `log` has the reason.
        """
        if self.path.exists():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path.parent) as folder:
            made = Path(folder) / "first.db"
            kept = user_cache() / f"{self.name}.db"
            if not _copied(kept, made):
                self._make(made, log)
                _keep(made, kept)
            made.rename(self.path)

    def _make(self, path: Path, log: Path) -> None:
        environment = {name: value.format(path=path) for name, value in self.environment.items()}
        with log.open("ab") as output:
            done = subprocess.run(
                [part.format(path=path) for part in self.command],
                env={**os.environ, **environment},
                stdout=output,
                stderr=output,
                check=False,
            )
        if done.returncode or not path.exists():
            raise ServerError(f"The database {self.path} could not be made; see {log}.")
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it


def user_cache() -> Path:
    """Return the folder of files that can be made again (`XDG_CACHE_HOME`).

    (https://specifications.freedesktop.org/basedir-spec/latest/.)
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if named else Path.home() / ".cache") / "wardround"


def _copied(kept: Path, to: Path) -> bool:
    """Return whether `to` is now a copy of the sound database `kept`; else it does not exist."""
    is_sound = False
    with suppress(OSError, sqlite3.Error):
        shutil.copyfile(kept, to)
        with closing(sqlite3.connect(to)) as database:
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
            has_version = database.execute("SELECT 1 FROM alembic_version").fetchone()
            is_sound = found == "ok" and has_version is not None
    if not is_sound:
        to.unlink(missing_ok=True)
    return is_sound


def _keep(made: Path, kept: Path) -> None:
    """Store a copy for other folders; a cache that can't be written is left as it is."""
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as copy:
            copy.write(made.read_bytes())
        Path(copy.name).rename(kept)
