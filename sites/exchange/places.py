"""Places in the exchange: one type that builds each name and parses it.

| kind       | name                                          | written by      |
|------------|-----------------------------------------------|-----------------|
| statement  | `statements/SITE/RUN.003.ACT[.MARK]`          | the hospital    |
| revocation | `statements/SITE/revoked.KEY[.MARK]`          | the hospital    |
| order      | `orders/SITE/RUN.003.PHASE.ATTEMPT`           | the coordinator |
| model      | `models/RUN.003`                              | the coordinator |
| released   | `models/RUN.003.of-SITE`                      | the coordinator |
| head       | `models/RUN.003.head`                         | the coordinator |
| decision   | `models/RUN.decision-0007`                    | the coordinator |
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal["statement", "revocation", "order", "model", "released", "head", "decision"]

KEY_DIGITS = 32
"""Number of digits of a public key in the name of its revocation."""

_RUN, _SITE = r"(?P<run>[a-z0-9][a-z0-9_-]*)", r"(?P<site>[^/]+)"
_MARK = r"(?:\.(?P<mark>[0-9a-f]{12}))?"
_ROUND, _ACT = r"(?P<round>\d{3,})", r"(?P<act>[a-z][a-z0-9-]*)"
_FORMS: Mapping[Kind, tuple[str, re.Pattern[str]]] = {
    "revocation": (
        "statements/{site}/revoked.{key}",
        re.compile(rf"statements/{_SITE}/revoked\.(?P<key>[0-9a-f]{{{KEY_DIGITS}}}){_MARK}"),
    ),
    "statement": (
        "statements/{site}/{run}.{round:03d}.{act}",
        re.compile(rf"statements/{_SITE}/{_RUN}\.{_ROUND}\.{_ACT}{_MARK}"),
    ),
    "order": (
        "orders/{site}/{run}.{round:03d}.{act}.{attempt}",
        re.compile(rf"orders/{_SITE}/{_RUN}\.{_ROUND}\.{_ACT}\.(?P<attempt>\d+)"),
    ),
    "model": ("models/{run}.{round:03d}", re.compile(rf"models/{_RUN}\.{_ROUND}")),
    "released": (
        "models/{run}.{round:03d}.of-{site}",
        re.compile(rf"models/{_RUN}\.{_ROUND}\.of-(?P<site>[^/]+)"),
    ),
    "head": ("models/{run}.{round:03d}.head", re.compile(rf"models/{_RUN}\.{_ROUND}\.head")),
    "decision": (
        "models/{run}.decision-{number:04d}",
        re.compile(rf"models/{_RUN}\.decision-(?P<number>\d{{4,}})"),
    ),
}
_NUMBERS = frozenset({"round", "attempt", "number"})


@dataclass(frozen=True, order=True)
class Place:
    """A named place in the exchange; fields that its kind does not use keep their defaults.

    >>> place = Place.statement("small-1", 3, "contribute", "north")
    >>> str(place)
    'statements/north/small-1.003.contribute'
    >>> Place.parse(str(place)) == place
    True
    """

    kind: Kind
    site: str = ""
    run: str = ""
    round: int = 0
    act: str = ""
    attempt: int = 0
    number: int = 0
    key: str = ""
    mark: str = ""

    @classmethod
    def statement(cls, run: str, round: int, act: str, site: str) -> "Place":
        """Return the place of a hospital's statement on an act of a round."""
        return cls("statement", site=site, run=run, round=round, act=act)

    @classmethod
    def revocation(cls, site: str, public_key: str) -> "Place":
        """Return the place of a hospital's revocation of one of its keys."""
        return cls("revocation", site=site, key=public_key[:KEY_DIGITS])

    @classmethod
    def order(cls, run: str, round: int, phase: str, attempt: int, site: str) -> "Place":
        """Return the place of the coordinator's order for a phase of a round."""
        return cls("order", site=site, run=run, round=round, act=phase, attempt=attempt)

    @classmethod
    def model(cls, run: str, round: int) -> "Place":
        """Return the place of the coordinator's statement about a global model."""
        return cls("model", run=run, round=round)

    @classmethod
    def released(cls, run: str, round: int, site: str) -> "Place":
        """Return the place of the coordinator's statement about a hospital's released model."""
        return cls("released", site=site, run=run, round=round)

    @classmethod
    def head(cls, run: str, round: int) -> "Place":
        """Return the place of the coordinator's statement about the record of a finished round."""
        return cls("head", run=run, round=round)

    @classmethod
    def decision(cls, run: str, number: int) -> "Place":
        """Return the place of a recorded decision about a run's models."""
        return cls("decision", run=run, number=number)

    @classmethod
    def parse(cls, name: str) -> "Place | None":
        """Return the place with this name, None if it is no name of a place."""
        for kind, (_, form) in _FORMS.items():
            if found := form.fullmatch(name):
                named = ((k, v) for k, v in found.groupdict().items() if v is not None)
                fields = {k: int(v) if k in _NUMBERS else v for k, v in named}
                place = cls(kind, **fields)  # type: ignore[arg-type]  # by its pattern
                return place if str(place) == name else None
        return None

    def __str__(self) -> str:
        template, _ = _FORMS[self.kind]
        name = template.format(**vars(self))
        return f"{name}.{self.mark}" if self.mark else name

    def marked(self, sha256: str) -> "Place":
        """Return another name for the statement with this sha256, which nobody can occupy beforehand.

        A file that somebody else left at a hospital's place does not occupy the place therefore.
        """
        return replace(self, mark=sha256[:12])

    @classmethod
    def of_statement(cls, fields: Mapping[str, Any]) -> "Place | None":
        """Return the place of a hospital's statement by its own fields, None if they name none."""
        try:
            site = str(fields["site"])
            if fields.get("kind") == "revocation":
                return cls.revocation(site, str(fields["public_key"]))
            return cls.statement(str(fields["run"]), int(fields["round"]), str(fields["purpose"]), site)
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def folder(self) -> str:
        """The folder of the exchange that contains the place."""
        return str(self).rpartition("/")[0]
