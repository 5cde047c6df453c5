"""Orders of the coordinator to hospitals. An order holds public values only."""

import time
from typing import Annotated

from pydantic import Field

from models.config import Config
from models.settings.tasks import Name
from privacy.statements import Attempt
from sites.exchange.phases import SUM_KINDS, SUMS, Phase, RunName, SumKind, SumPhases, act_of
from sites.study import Study

PROTOCOL = 6
"""Version of the format of orders and statements. It is raised with each change that a hospital and a
coordinator with different code could misunderstand; both then wait until the older one is upgraded."""


def sum_of(study: Study, phase: Phase) -> SumKind | None:
    """Return what the secure sum is of that a phase of a study belongs to; None for none."""
    return next((kind for kind in sums_of(study) if phase in SUMS[kind]), None)


def sums_of(study: Study) -> tuple[SumKind, ...]:
    """Return what a study's secure sums are of: the releases, metrics, a survey."""
    asked = (study.is_summed, study.evaluation.summed, study.survey)
    return tuple(kind for kind, has in zip(SUM_KINDS, asked, strict=True) if has)


class SumOrder(Config):
    """What an order says about a secure sum.

    Attributes:
        attempt: number of the attempt in its round.
        relay: sha256 of the exchange's object with the members' signed statements of the phase before,
            which the coordinator passes on; empty for the first phase.
    """

    attempt: Attempt
    relay: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""


class Order(Config):
    """A request of the coordinator to one hospital, with public values only.

    Attributes:
        phase: the work that is asked for. `check`: could the hospital join the run as it is now?
            `survey`: report on its scans; `join`: accept the run or refuse it; `contribute`: train and
            release; `evaluate`: score the global model; `compare`: score the models of other hospitals;
            `audit`: attack the global model; `sum-...`, `metrics-...`, `survey-...`: the exchange of
            keys, shares and lists around a secure sum.
        study: the whole study.
        site: name of the hospital that is asked.
        run: name of the run.
        round: number of the round, from 0.
        attempt: number of the coordinator's start of this run, from 1. A refusal is valid only for its
            attempt, so a hospital that solved its problem can take part when the run continues.
        exchange: address of the exchange that holds the global model and receives the answer.
        coordinator: the coordinator's public key. The hospital's policy names it; otherwise the hospital
            stores it on first contact.
        protocol: the coordinator's version of the format of orders and statements.
        public_cases: sha256 of the exchange's object with the hashes of the coordinator's public cases,
            among which a hospital looks for its own patients; empty without such cases.
        models: the hospitals whose released models are compared; used in the phases `compare` and
            `audit`.
        sum: the attempt at a secure sum that the order is part of; None without one.
        expires_ms: time from which an answer is too late, in milliseconds since 1970; None if the
            coordinator waits for the answer without a limit.
    """

    phase: Phase
    study: Study
    site: Name
    run: RunName
    round: Annotated[int, Field(ge=0)]
    attempt: Annotated[int, Field(ge=1)]
    exchange: str
    coordinator: str
    protocol: int = PROTOCOL
    public_cases: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    models: tuple[Name, ...] = ()
    sum: SumOrder | None = None
    expires_ms: int | None = None

    @property
    def act(self) -> str:
        """The purpose of the answer in the ledger and the exchange."""
        return act_of(self.phase, self.sum_attempt)

    @property
    def sum_attempt(self) -> int:
        """The number of the attempt at a secure sum; 1 without one."""
        return self.sum.attempt if self.sum else 1

    @property
    def sum_kind(self) -> SumKind:
        """What the order's secure sum is of; raises ValueError if it is part of none."""
        kind = sum_of(self.study, self.phase)
        if kind is None:
            raise ValueError(f"The phase {self.phase} is part of no secure sum of the study.")
        return kind

    @property
    def sum_phases(self) -> SumPhases:
        """The phases of the secure sum that the order is part of."""
        return SUMS[self.sum_kind]

    @property
    def noise_purpose(self) -> str:
        """What the noise of a contribution is for; each attempt at a secure sum has its own."""
        again = f" {self.act}" if self.sum_attempt > 1 else ""
        return f"{self.study.sha256} {self.round}{again}"


class Expired(Exception):
    """An answer to the order would be too late, so nothing is started and nothing is charged."""


def check_in_time(order: Order) -> None:
    """Raise `Expired` if an answer to the order would be too late."""
    if order.expires_ms is not None and time.time() * 1000 >= order.expires_ms:
        raise Expired("the order has expired")
