"""A run's session in this process: the hospitals that its tasks can ask, and a call for each round.

Prefect's tasks take plain values only, so a task finds its session by the run's name.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from flows.runs.records import RoundRecord
from flows.runs.run import Run
from sites.orders import Order

OnRecord = Callable[[Run, RoundRecord], None]


class Reachable(Protocol):
    """A hospital that can be asked, wherever it is."""

    def carry_out(self, order: Order, timeout_s: float) -> None:
        """Have an order carried out; its outcome is in the exchange afterwards.

        Raises:
            HospitalLeftOut: it took longer than `timeout_s`, or its work was cancelled.
            HospitalFailed: it could not do it, and may be asked again.
        """
        ...

    def invite(self, order: Order) -> None:
        """Have an order carried out without waiting, while the run lasts; a second call adds nothing."""
        ...


def _ignore(_run: Run, _record: RoundRecord) -> None:
    """Ignore a recorded round."""


@dataclass(frozen=True)
class Session:
    """The hospitals of a run by name, and a function that is called with each recorded round."""

    hospitals: Mapping[str, Reachable]
    on_record: OnRecord = _ignore


_OPEN: dict[str, Session] = {}


@contextmanager
def session(
    run: Run, hospitals: Mapping[str, Reachable], on_record: OnRecord = _ignore
) -> Iterator[Session]:
    """Open a run's session for a while."""
    _OPEN[run.name] = Session(hospitals, on_record)
    try:
        yield _OPEN[run.name]
    finally:
        del _OPEN[run.name]


def session_of(run: Run) -> Session:
    """Return the open session of a run.

    Raises:
        LookupError: this process has none, as where a flow is started by itself.
    """
    if run.name not in _OPEN:
        raise LookupError(
            f"Expected an open session of run {run.name} in this process, found none; start it with "
            f"`wardround run`."
        )
    return _OPEN[run.name]
