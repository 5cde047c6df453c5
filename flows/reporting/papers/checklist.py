"""Checklists that journals and regulators ask for, filled in from what is on record.

An answer is a fact of the run's record, or what the authors state in a file of their own; everything
else is called not recorded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from models.config import Config
from sites import yaml_files

FOLDER = Path(__file__).parent / "checklists"
NAMES = ("claim-2024", "tripod-ai", "annex-iv")
"""The checklists, in the order in which a paper has them."""
Facts = Mapping[str, str]
"""Sentences by name; an empty one is not recorded."""


class Item(Config):
    """One item of a checklist: its number in the source, what it asks, the facts that answer it."""

    number: str
    part: str
    asks: str
    facts: tuple[str, ...]


class Checklist(Config):
    """A checklist: its title and source, with a link, and its items."""

    title: str
    source: str
    link: str
    items: tuple[Item, ...]


class Answers(Config):
    """What authors state where the record is silent.

    Attributes:
        answers: by checklist, texts by the number of the item.
    """

    answers: Mapping[Literal["claim-2024", "tripod-ai", "annex-iv"], Mapping[str, str]] = Field(
        default_factory=dict
    )


@dataclass(frozen=True)
class Filled:
    """An item with its answers: those of the record, then the authors' own."""

    item: Item
    recorded: tuple[str, ...]
    stated: str

    @property
    def is_open(self) -> bool:
        """Whether nobody has recorded or stated anything."""
        return not self.recorded and not self.stated


def checklist(name: str) -> Checklist:
    """Return a checklist of `NAMES`."""
    return yaml_files.load(FOLDER / f"{name}.yaml", Checklist)


def load_answers(path: Path) -> Answers:
    """Return the authors' answers in a YAML file; raise `ConfigError` where one answers no item."""
    found = yaml_files.load(path, Answers)
    for name, answers in found.answers.items():
        known = {item.number for item in checklist(name).items}
        if unknown := sorted(answers.keys() - known):
            raise yaml_files.ConfigError(
                f"{path}: answers.{name}: expected numbers of its items, such as "
                f"{checklist(name).items[0].number!r}; {unknown[0]!r} is none."
            )
    return found


def filled(name: str, facts: Facts, answers: Answers) -> Sequence[Filled]:
    """Return a checklist's items with their answers."""
    stated = answers.answers.get(name, {})  # type: ignore[call-overload]  # a name of NAMES
    return [
        Filled(
            item, tuple(_sentence(facts[f]) for f in item.facts if facts[f]), stated.get(item.number, "")
        )
        for item in checklist(name).items
    ]


def _sentence(fact: str) -> str:
    return fact if fact.endswith((".", "?", "!")) else f"{fact}."
