"""People who may decide about models: `people.yaml`, with the public key of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from flows.runs.paths import Home
from models.config import Config
from models.settings.tasks import Name
from privacy.statements import Sha256
from sites import yaml_files

Role = Literal["clinician", "officer"]
ROLES: Sequence[Role] = get_args(Role)
"""The roles that have to approve: a clinician, and a data-protection officer."""


def _as_list(found: object) -> object:
    return found if isinstance(found, list | tuple) else [found]


class Person(Config):
    """A person who may decide: their role, and the public key that verifies their signature."""

    role: Role
    key: Sha256


class People(Config):
    """A `people.yaml`.

    Attributes:
        people: who may decide now, by name.
        former: earlier roles and keys. A name has one entry, or a list of them: a person may change key
            or role repeatedly.
    """

    people: Annotated[dict[Name, Person], Field(min_length=1)]
    former: dict[Name, Annotated[tuple[Person, ...], BeforeValidator(_as_list)]] = Field(
        default_factory=dict
    )

    def knows(self, name: str, role: Role, key: str) -> bool:
        """Return whether a person may decide, or once might, in a role with a key."""
        known = Person(role=role, key=key)
        return known in (self.people.get(name), *self.former.get(name, ()))

    def may(self, name: str, role: Role, key: str) -> bool:
        """Return whether a person may decide in a role with a key now."""
        return self.people.get(name) == Person(role=role, key=key)

    @model_validator(mode="after")
    def _one_key_each(self) -> "People":
        owners: dict[str, str] = {}
        before = ((name, each) for name, former in self.former.items() for each in former)
        for name, person in (*self.people.items(), *before):
            if owners.setdefault(person.key, name) != name:
                raise ValueError(
                    f"expected another key for each person, got one key for {owners[person.key]} and "
                    f"{name}; nobody decides under two names."
                )
        return self


def load_people(home: Home) -> People:
    """Return who may decide, or raise `ConfigError`."""
    path = home.folder / "people.yaml"
    if not path.exists():
        raise yaml_files.ConfigError(
            f"{path}: no such file. It lists the people who may decide: under `people:` the line that "
            f"`wardround review key` prints for each of them."
        )
    return people_in(path)


def people_in(path: Path) -> People:
    """Return who may decide by a file of the reader's own, or raise `ConfigError`."""
    return yaml_files.load(path, People)
