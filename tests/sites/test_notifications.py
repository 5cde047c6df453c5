"""Who is called, and what he is told: a real server on loopback listens."""

import time
from pathlib import Path
from typing import Any

import pytest
from coordinator import Coordinator, first_model
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from listener import came

from sites.admission.approvals import ApprovalNeeded
from sites.exchange.exchange import Exchange
from sites.hospital import Hospital
from sites.notifications import WEBHOOK, call


@pytest.fixture
def coordinator(tmp_path: Path, study_with) -> Coordinator:
    made = Coordinator(study_with(), Exchange(str(tmp_path / "exchange")), Ed25519PrivateKey.generate())
    made.publish(0, first_model(made.study))
    return made


def test_a_person_is_called_once_when_an_approval_waits(
    calls: list[dict[str, Any]], coordinator: Coordinator, tmp_path: Path, small_wards, edit
) -> None:
    ward = small_wards(tmp_path / "wards") / "east"
    edit(ward / "site.yaml", approve={"join": "manual", "export": "auto"})
    for _ in range(2):
        with pytest.raises(ApprovalNeeded):
            coordinator.order(Hospital.open(ward), "join", 0)
    (told,) = came(calls)
    assert told["what"] == "wardround.approval.waits"
    assert (told["site"], told["run"], told["round"]) == ("east", "small-1", 0)


def test_a_person_is_called_when_the_budget_ends_and_told_nothing_of_patients(
    calls: list[dict[str, Any]], coordinator: Coordinator, tmp_path: Path, small_wards, edit
) -> None:
    ward = small_wards(tmp_path / "wards") / "east"
    edit(ward / "site.yaml", budget={"epsilon": 20.0, "delta": 1e-3})
    hospital = Hospital.open(ward, test_noise=1)
    coordinator.publish(1, first_model(coordinator.study))
    coordinator.order(hospital, "contribute", 1)
    assert not calls
    coordinator.order(hospital, "contribute", 2)
    (told,) = came(calls)
    assert told.keys() == {"what", "text", "site", "epsilon", "budget"}
    assert told["epsilon"] == pytest.approx(20, rel=1e-2)


def test_a_call_never_crosses_a_network_in_the_clear_and_one_that_fails_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for address in ("http://chat.example.org/hook", "http://127.0.0.1:9/hook", "https://x:80a/"):
        monkeypatch.setenv(WEBHOOK, address)
        call("wardround.budget.low", "never heard")
    for _ in range(100):
        if caplog.text.count("the webhook call failed") == 2:
            break
        time.sleep(0.05)
    assert "expected an https address" in caplog.text
    assert caplog.text.count("the webhook call failed") == 2
    assert "chat.example.org" not in caplog.text
