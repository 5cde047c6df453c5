"""The threat model: each row's test exists, and its figures are exact."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from privacy.accounting import Budget, PrivacyEvent, most_found, noise_for
from privacy.audit.leaving import BESIDE, LEAVING, fields_that_leave

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "threat-model.md").read_text()


def test_every_row_names_a_test_that_there_is() -> None:
    rows = [line for line in DOCUMENT.splitlines() if line.startswith("| ")]
    named = [
        re.findall(r"`(test_\w+)`", row)
        for row in rows
        if not row.startswith(("| who ", "| key ", "| statement "))
    ]
    assert len(named) > 15
    assert all(named)
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", DOCUMENT):
        assert f"def {name}(" in sources


def test_every_field_that_leaves_has_a_row_and_the_page_has_them_all() -> None:
    named = {key for key in LEAVING if key[0] != BESIDE}
    assert named == set(fields_that_leave())
    check = [sys.executable, str(ROOT / "docs" / "make_tables.py"), "--check"]
    done = subprocess.run(check, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(("hospitals", "share"), [(1, 58), (4, 23)])
def test_the_figures_of_the_threat_model_are_exact(hospitals: int, share: int) -> None:
    noise = noise_for(Budget(epsilon=8, delta=1e-4), sampling_rate=1, steps=8)
    event = PrivacyEvent(noise * hospitals**0.5, 1, 8)
    assert round(100 * most_found([event], 1e-4, false_alarms=0.05)) == share
    assert f"{share} %" in DOCUMENT
