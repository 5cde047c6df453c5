"""A hospital's process as the coordinator's machine sees it: lines of JSON, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path


def test_what_goes_wrong_is_in_the_hospitals_own_log_and_no_class_of_error_leaves(
    tmp_path: Path, small_wards
) -> None:
    ward = small_wards(tmp_path) / "north"
    process = subprocess.Popen(
        [sys.executable, "-m", "sites.worker", ward],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert json.loads(process.stdout.readline())["name"] == "north"
    process.stdin.write("no order at all\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    rest, errors = process.communicate(timeout=60)
    assert json.loads(answer) == {"failed": "Fault"}
    assert not rest
    assert "no order at all" not in answer + errors
    assert "the order failed" in (ward / "state" / "site.log").read_text()
    assert "the order failed" not in errors
