"""Terms of a secure sum: who takes part in an attempt, how many may drop out or collude."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from models.config import Config


class SumConfig(Config):
    """How many hospitals may fail or turn against the others, in a study with a secure sum.

    Attributes:
        dropouts (hospitals): hospitals that may fall silent in a round without loss of the round; 0 by
            default.
        colluding (hospitals): hospitals that may pool what they know with the coordinator; 0 by default.
            Noise is sized so that the others' shares suffice.
        spare (attempts): attempts that may fail in a run, over all rounds, and are paid for as rounds
            are; 1 by default.
    """

    dropouts: Annotated[int, Field(ge=0, le=1000)] = 0
    colluding: Annotated[int, Field(ge=0, le=1000)] = 0
    spare: Annotated[int, Field(ge=0, le=1000)] = 1


class BadTerms(ValueError):
    """The numbers of members, dropouts and colluding hospitals allow no secure sum."""


@dataclass(frozen=True)
class Terms:
    """One attempt at a secure sum.

    Guarantees:
        - fewer than `threshold` members open nothing of anybody;
        - two different lists of survivors can't both find `threshold` members who sign them, as long as
          each member outside the `colluding` signs one: 2 threshold > members + colluding;
        - the shares of noise of `threshold - colluding` members reach the promised noise.

    Attributes:
        name: what the attempt is for, such as the run, the round and the number of the attempt; every
            key that is derived depends on it.
        members: number of hospitals in the roster (K).
        dropouts (hospitals): how many of them may fail (t).
        colluding: how many of them may collude (c).
    """

    name: str
    members: int
    dropouts: int
    colluding: int

    def __post_init__(self) -> None:
        few = self.members < 2 or self.threshold - self.colluding < 1
        if few or 2 * self.threshold <= self.members + self.colluding:
            raise BadTerms(
                f"Expected 2 (hospitals - dropouts) > hospitals + colluding for a secure sum, got "
                f"{self.members} hospitals, {self.dropouts} dropouts and {self.colluding} colluding. "
                f"More hospitals are needed, or fewer that may drop out or collude."
            )

    @property
    def threshold(self) -> int:
        """Members whose shares open a secret, and the fewest survivors (s = K - t)."""
        return self.members - self.dropouts

    @property
    def honest(self) -> int:
        """Members whose shares of noise are counted on (s - c)."""
        return self.threshold - self.colluding
