"""Errors at the command line: one message, one next step, the exit code of their family."""

import importlib
import pkgutil
import subprocess
import sys
import time

import pytest
import typer
from typer.testing import CliRunner

from flows.cli.errors import cli_errors
from flows.rounds.statements import SILENT, TooFewHospitals
from models import errors
from models.errors import AskSomebody, FixYourInput, ReportToUs, WaitAndRepeat, WardroundError
from sites.exchange.storage import StorageFailed
from sites.yaml_files import ConfigError

FAMILIES = (FixYourInput, AskSomebody, WaitAndRepeat, ReportToUs)


def every_error() -> set[type[WardroundError]]:
    """Return each class of error that has a family."""
    for room in ("flows", "sites", "privacy", "models"):
        for module in pkgutil.walk_packages(importlib.import_module(room).__path__, f"{room}."):
            if not module.name.endswith(("__main__", "loopback", "worker")):
                importlib.import_module(module.name)
    found, waiting = set(), list(FAMILIES)
    while waiting:
        each = waiting.pop()
        found.add(each)
        waiting += each.__subclasses__()
    return found


def outcome(error: Exception) -> tuple[int, list[str]]:
    """Return the exit code of a command that raises an error, and the lines that it prints."""
    app = typer.Typer()

    @app.command()
    def command() -> None:
        with cli_errors():
            raise error

    done = CliRunner().invoke(app, [])
    return done.exit_code, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("study.yaml: rounds: expected a number."), 2),
        (StorageFailed("the exchange answered 503"), 4),
        (AskSomebody("north has to act."), 3),
        (ReportToUs("The chain is broken."), 1),
    ],
)
def test_an_error_ends_with_its_familys_code_and_what_to_do_next(
    error: WardroundError, code: int
) -> None:
    found, lines = outcome(error)
    assert found == code
    assert lines[0] == str(error)
    assert lines[-1] == f"What to do next: {error.next_step}"


def test_too_few_hospitals_say_whether_the_run_goes_on(study_with) -> None:
    for round, words in ((None, "nothing was recorded or spent"), (3, "`--new` begins another run")):
        code, lines = outcome(TooFewHospitals(1, study_with(), {"south": SILENT}, round))
        assert code == 3
        assert "south: it did not answer" in "\n".join(lines)
        assert words in lines[-1]


def test_another_error_is_a_fault_of_ours_and_keeps_its_traceback() -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def command() -> None:
        with cli_errors():
            raise KeyError("a fault")

    assert isinstance(CliRunner().invoke(app, []).exception, KeyError)


def test_ctrl_c_says_that_the_same_command_goes_on() -> None:
    app = typer.Typer()

    @app.command()
    def command() -> None:
        with cli_errors():
            raise KeyboardInterrupt

    done = CliRunner().invoke(app, [])
    assert done.exit_code == 130
    assert "the same command goes on from where it stands" in done.stderr


def test_each_family_has_an_exit_code_of_its_own() -> None:
    assert sorted(family.exit_code for family in FAMILIES) == [1, 2, 3, 4]
    assert all(str(family.exit_code) in (errors.__doc__ or "") for family in FAMILIES)


def test_each_error_has_a_family_code_and_a_next_step_that_is_a_sentence() -> None:
    found = every_error()
    assert len(found) > 15
    for each in found:
        assert each.exit_code == next(f for f in FAMILIES if issubclass(each, f)).exit_code
        assert each.next_step.endswith("."), each


def test_a_thread_that_still_works_does_not_keep_an_interrupted_command_alive() -> None:
    script = """
import threading, time
from flows.cli.errors import cli_errors
threading.Thread(target=time.sleep, args=(60,)).start()
with cli_errors():
    raise KeyboardInterrupt
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert done.returncode == 130 and "goes on from where it stands" in done.stderr
    assert time.monotonic() - started < 40
