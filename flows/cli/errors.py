"""Errors at the command line: our own become one message and an exit code, others are our faults."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

BAD_INPUT = 2
"""The exit code where a study, a policy or an argument is at fault and nothing was done."""


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn our own errors into one message and an exit code; anything else is a fault of ours."""
    from flows.decisions.chain import NotReleased, NotTakenBack
    from flows.decisions.verdicts import BadVerdict
    from flows.rounds.statements import TooFewHospitals
    from flows.runs.run import BrokenRun, NotAllowed, RunBusy, StoreFailed
    from flows.servers.loopback import ServerError
    from models.checkpoints import CorruptCheckpoint
    from privacy.ledger import LedgerError
    from sites.exchange.storage import StorageFailed
    from sites.protocol.order_inbox import BadOrder
    from sites.yaml_files import ConfigError

    try:
        yield
    except (ConfigError, BadVerdict) as error:
        stop(str(error), BAD_INPUT)
    except TooFewHospitals as error:
        hint = "\nThe same command goes on from the last finished round, `--new` begins another run."
        stop(f"{error}{hint}" if error.begun else str(error), 1 if error.begun else BAD_INPUT)
    except (StorageFailed, StoreFailed) as error:
        stop(f"{error}. Nothing is lost: the same command goes on from here.", 1)
    except NotAllowed as error:
        account = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        stop(f"{error} With that account's {account} the same command goes on.", 1)
    except NotReleased as error:
        stop(f"Not released. {error}", 1)
    except (
        BrokenRun, RunBusy, ServerError, LedgerError, CorruptCheckpoint, BadOrder, NotTakenBack,
    ) as error:  # fmt: skip
        stop(str(error), 1)


def stop(message: str, code: int) -> NoReturn:
    """Print a message and end the command with an exit code."""
    typer.echo(message, err=True)
    raise typer.Exit(code)
