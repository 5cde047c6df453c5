"""Accounts and roles of one study in a protected MLflow server.

| account      | study's experiment | candidates | approved models and their files | own experiment |
|--------------|--------------------|------------|---------------------------------|----------------|
| coordinator  | edit               | edit       | read                            |                |
| clinicians   | read               | read       | read                            |                |
| officer      | read               | read       | manage                          |                |
| a hospital   | read               |            | read                            | manage         |

The administrator makes everything before anybody works, because in MLflow the creator owns it.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient
from mlflow.tracking import MlflowClient, get_tracking_uri
from pydantic import Field, model_validator

from flows.tracking import registry
from models.config import Config
from models.settings.tasks import Name
from privacy.signing import secret_file

WORKSPACE = "default"
Grant = tuple[str, str, str]
"""A permission in MLflow's roles: resource type, resource id, level."""


class Accounts(Config):
    """An accounts file: the names under which people and programs log in to MLflow."""

    coordinator: Name
    officer: Name
    clinicians: Annotated[tuple[Name, ...], Field(min_length=1)]
    hospitals: tuple[Name, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> "Accounts":
        if len(set(self.everybody)) < len(self.everybody):
            raise ValueError("expected a different name for each account.")
        return self

    @property
    def everybody(self) -> tuple[str, ...]:
        """All names."""
        return (self.coordinator, self.officer, *self.clinicians, *self.hospitals)


def set_up(study: str, accounts: Accounts, passwords: Path) -> list[str]:
    """Make a study's accounts and roles, as the administrator; a second call adds what is missing.

    Each new account's password is made here and stored in the folder `passwords`, readable only by
    the file's owner.
    Returns the names of the new accounts.
    """
    client, auth = MlflowClient(), AuthServiceClient(get_tracking_uri())
    made = [name for name in accounts.everybody if _made(auth, name, passwords)]
    experiment = _experiment(client, study)
    store = _experiment(client, registry.approved(study))
    candidates, approved = registry.candidates(study), registry.approved(study)
    for name in (candidates, approved):
        registry.ensure_registered(client, name)
    reads = [("experiment", store, "READ"), ("registered_model", approved, "READ")]
    reads_all = [*reads, ("experiment", experiment, "READ"), ("registered_model", candidates, "READ")]
    edits = [("experiment", experiment, "EDIT"), ("registered_model", candidates, "EDIT")]
    manages = [("experiment", store, "MANAGE"), ("registered_model", approved, "MANAGE")]
    _role(auth, f"{study}-coordinator", [*reads, *edits], [accounts.coordinator])
    _role(auth, f"{study}-reader", reads_all, [accounts.officer, *accounts.clinicians])
    _role(auth, f"{study}-officer", manages, [accounts.officer])
    seen_by_hospitals = [*reads, ("experiment", experiment, "READ")]
    _role(auth, f"{study}-hospital", seen_by_hospitals, accounts.hospitals)
    for hospital in accounts.hospitals:
        own = ("experiment", _experiment(client, own_experiment(study, hospital)), "MANAGE")
        _role(auth, f"{study}-at-{hospital}", [own], [hospital])
    return made


def own_experiment(study: str, hospital: str) -> str:
    """Return the name of the experiment that one hospital alone can read and write."""
    return f"{study}-at-{hospital}"


def _made(auth: AuthServiceClient, name: str, passwords: Path) -> bool:
    is_new = not (passwords / name).exists()
    password = secret_file(passwords / name, lambda: secrets.token_urlsafe(24).encode()).decode()
    with _once():
        auth.create_user(name, password)
        return True
    if is_new:  # the account exists, its password was handed over long ago
        (passwords / name).unlink()
    return False


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def _role(auth: AuthServiceClient, name: str, grants: Sequence[Grant], members: Sequence[str]) -> None:
    known = {role.name: role for role in auth.list_roles(WORKSPACE)}
    role = known.get(name) or auth.create_role(WORKSPACE, name)
    for grant in grants:
        with _once():
            auth.add_role_permission(role.id, *grant)
    for member in members:
        with _once():
            auth.assign_role(member, role.id)


@contextmanager
def _once() -> Iterator[None]:
    """Ignore the error that something exists already."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
