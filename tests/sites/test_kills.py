"""A hospital's round, killed at its writes and at random instants (see benchmarks/ledger_kill.py)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent.parent / "benchmarks" / "ledger_kill.py"
NOTHING_WRONG = {"under_counts": 0, "double_charges": 0, "chain_failures": 0}


def counts_after(*options: object) -> dict[str, int]:
    command = [sys.executable, BENCHMARK, *map(str, options), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_hundred_kills_neither_lose_nor_double_a_charge_nor_break_the_chain() -> None:
    counts = counts_after("--kills", 200)
    assert counts["kills"] >= 250  # more than 50 of them at the writes of a round, one by one
    assert counts["rounds"] >= 10
    assert counts.items() >= NOTHING_WRONG.items()


def test_a_kill_at_each_of_the_first_writes_leaves_the_ledger_right() -> None:
    counts = counts_after("--kills", 2, "--failpoints", 5)
    assert counts["kills"] == 7
    assert counts.items() >= NOTHING_WRONG.items()
