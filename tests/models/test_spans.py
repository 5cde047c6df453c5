"""Spans are recorded where somebody asked for them, and cost nothing elsewhere."""

import json
import subprocess
import sys
from pathlib import Path

from models.spans import span, spanned

SCRIPT = """
import sys, time
from pathlib import Path
from models.spans import record_to, span, spanned
record_to(Path(sys.argv[1]))

@spanned("inner")
def inner():
    time.sleep(0.05)
    raise ValueError("as it may happen")

try:
    with span("outer", round=3):
        inner()
except ValueError:
    print("raised")
"""


def test_spans_nest_and_end_where_an_error_passes_through(tmp_path: Path) -> None:
    out = tmp_path / "spans.jsonl"
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(out)], capture_output=True, check=True)
    inner, outer = (json.loads(line) for line in out.read_text().splitlines())
    assert done.stdout == b"raised\n"
    assert (inner["name"], outer["name"], outer["args"]["round"]) == ("inner", "outer", 3)
    assert outer["ts"] <= inner["ts"]
    assert outer["ts"] + outer["dur"] >= inner["ts"] + inner["dur"] - 1
    assert inner["dur"] >= 50_000  # microseconds
    assert inner["args"]["cpu_ms"] < 40  # it slept


def test_without_a_place_nothing_is_recorded() -> None:
    @spanned("unseen")
    def call(value: int) -> int:
        """Return it."""
        return value

    with span("unseen"):
        assert call(3) == 3
    assert (call.__name__, call.__doc__) == ("call", "Return it.")
