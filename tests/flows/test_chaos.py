"""A federation in which everything breaks; `benchmarks/chaos.py --kills 100` is the long one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from machines import needs_namespaces
from webserver import needs_nginx

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "chaos.py"
POSTGRES = list(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
FAKETIME = list(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


@pytest.mark.slow
@needs_namespaces
@needs_nginx
@pytest.mark.skipif(not (POSTGRES and FAKETIME), reason="Debian's postgresql and libfaketime are absent")
def test_after_faults_of_all_kinds_nothing_is_lost_charged_twice_orphaned_or_different() -> None:
    command = [
        sys.executable,
        BENCHMARK,
        "--kills",
        "5",
        "--rounds",
        "1",
        "--longest-cut",
        "5",
        "--pause",
        "3",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "faults": 5,
        "lost_rounds": 0,
        "double_charges": 0,
        "under_counts": 0,
        "orphans": 0,
        "wedged": 0,
        "identical": True,
    }
