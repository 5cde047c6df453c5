"""The phases of a round: what a hospital can be asked to do, and the names of what it answers."""

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import Field

SumKind = Literal["update", "metrics", "survey"]

SUM_KINDS: tuple[SumKind, ...] = get_args(SumKind)
"""What a secure sum may be of."""

Phase = Literal[
    "check", "survey", "join", "contribute", "evaluate", "compare", "audit",
    "sum-keys", "sum-shares", "sum-survivors", "sum-opening",
    "metrics-keys", "metrics-shares", "metrics-survivors", "metrics-opening",
    "survey-keys", "survey-shares", "survey-survivors", "survey-opening",
]  # fmt: skip


RunName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,99}$")]


class SumPhases(NamedTuple):
    """The phases of a secure sum, one after the other; `vector` is that of the masked vectors."""

    keys: Phase
    shares: Phase
    vector: Phase
    survivors: Phase
    opening: Phase

    def part_of(self, phase: Phase) -> str:
        """Return which of these phases one is, by its name here.

        >>> SUMS["metrics"].part_of("evaluate")
        'vector'
        """
        return self._fields[self.index(phase)]


SUMS: Mapping[SumKind, SumPhases] = {
    "update": SumPhases("sum-keys", "sum-shares", "contribute", "sum-survivors", "sum-opening"),
    "metrics": SumPhases(
        "metrics-keys", "metrics-shares", "evaluate", "metrics-survivors", "metrics-opening"
    ),
    "survey": SumPhases("survey-keys", "survey-shares", "survey", "survey-survivors", "survey-opening"),
}
"""The phases of a secure sum of each kind."""


SUM_MESSAGES: tuple[Phase, ...] = tuple(
    phase for phases in SUMS.values() for phase in phases if phase != phases.vector
)
"""The phases around the masked vectors, whose answers are one short message each."""


def act_of(phase: Phase, sum_attempt: int = 1) -> str:
    """Return the purpose under which the ledger and the exchange store the answer to a phase.

    A further attempt at a secure sum is an act of its own, with its own charge.

    >>> act_of("contribute"), act_of("contribute", 2)
    ('contribute', 'contribute-try-2')
    """
    return phase if sum_attempt == 1 else f"{phase}-try-{sum_attempt}"


def refusal_of(act: str, attempt: int) -> str:
    """Return the purpose under which the ledger and the exchange store a refusal of an act.

    >>> refusal_of("contribute", 2)
    'contribute-refused-2'
    """
    return f"{act}-refused-{attempt}"
