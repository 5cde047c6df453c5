"""A check of an MLflow store: the file is one, and the installed MLflow can use it."""

import re
import sqlite3
from contextlib import closing
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sites.yaml_files import ConfigError

AWAY = (
    "Move it away with its artifacts; a new store is made. `wardround relog RUN` logs each recorded run "
    "there, and `wardround promote` the released model."
)


def check_store(path: Path) -> None:
    """Raise `ConfigError` if the installed MLflow can't use the file as it is.

    | the file                    | result                                    |
    |-----------------------------|-------------------------------------------|
    | does not exist              | nothing: a new store is made              |
    | is damaged, or not SQLite   | an error                                  |
    | is another program's        | an error                                  |
    | is of an earlier MLflow     | an error, with the command to upgrade it  |
    | is of a later MLflow        | an error                                  |
    """
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as store:
            names = {name for (name,) in store.execute("SELECT name FROM sqlite_master")}
            if not {"alembic_version", "experiments"} <= names:
                raise ConfigError(f"{path}: expected MLflow's store, got another database. {AWAY}")
            found = {name for (name,) in store.execute("SELECT version_num FROM alembic_version")}
            (sound,) = store.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        raise ConfigError(f"{path}: MLflow's store is in use or not readable ({error}).") from error
    except sqlite3.DatabaseError as error:
        raise ConfigError(f"{path}: expected MLflow's store, got: {error}. {AWAY}") from error
    if sound != "ok":
        raise ConfigError(f"{path}: expected a sound store; SQLite finds it damaged ({sound}). {AWAY}")
    revisions, head = _revisions()
    if not found <= revisions:
        raise ConfigError(f"{path}: this store was written by a later MLflow; install that one.")
    if found != {head}:
        raise ConfigError(
            f"{path}: this store was written by an earlier MLflow. Copy it, then run "
            f"`mlflow db upgrade sqlite:///{path.resolve()}`."
        )


@cache
def _revisions() -> tuple[frozenset[str], str]:
    """Return every revision of the store that the installed MLflow knows, and the newest.

    They are read as text, because importing MLflow takes seconds.
    """
    spec = find_spec("mlflow")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("mlflow")
    folder = Path(spec.origin).parent / "store" / "db_migrations" / "versions"
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))]
    revisions = {_named("revision", text) for text in texts} - {""}
    (head,) = revisions - {_named("down_revision", text) for text in texts}
    return frozenset(revisions), head


def _named(name: str, text: str) -> str:
    found = re.search(rf"^{name}(?:: [^=]*)?\s*=\s*[\"'](\w+)[\"']", text, re.MULTILINE)
    return found[1] if found else ""
