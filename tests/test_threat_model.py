"""The threat model: each row's test exists, and its figures are exact."""

import re
from pathlib import Path

import pytest

from privacy.accounting import Budget, PrivacyEvent, most_found, noise_for

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "threat-model.md").read_text()


def test_every_row_names_a_test_that_there_is() -> None:
    rows = [line for line in DOCUMENT.splitlines() if line.startswith("| ")]
    named = [
        re.findall(r"`(test_\w+)`", row) for row in rows if not row.startswith(("| who ", "| key "))
    ]
    assert len(named) > 15
    assert all(named)
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", DOCUMENT):
        assert f"def {name}(" in sources


@pytest.mark.parametrize(("hospitals", "share"), [(1, 58), (4, 23)])
def test_the_figures_of_the_threat_model_are_exact(hospitals: int, share: int) -> None:
    noise = noise_for(Budget(epsilon=8, delta=1e-4), sampling_rate=1, steps=8)
    event = PrivacyEvent(noise * hospitals**0.5, 1, 8)
    assert round(100 * most_found([event], 1e-4, false_alarms=0.05)) == share
    assert f"{share} %" in DOCUMENT
