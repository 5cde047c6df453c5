import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privacy.accounting import Budget, PrivacyEvent, epsilon
from privacy.ledger import BudgetExceeded, Charge, Ledger, LedgerError

BUDGET = Budget(epsilon=8, delta=1e-4)
EVENT = PrivacyEvent(noise_multiplier=4.0, sampling_rate=1.0, steps=4)
CHARGE = Charge("demo", "demo-1", 1, "contribute", "training", EVENT)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state" / "ledger.sqlite", BUDGET)


def round_number(number: int, **changes: object) -> Charge:
    return replace(CHARGE, round=number, **changes)


def test_rerunning_a_round_charges_once(ledger: Ledger) -> None:
    for _ in range(2):
        ledger.reserve(CHARGE)
    for _ in range(2):
        ledger.start(CHARGE)
    for _ in range(2):
        ledger.settle(CHARGE, "f" * 64)
    ledger.reserve(CHARGE)
    assert ledger.spent(1e-4) == pytest.approx(epsilon([EVENT], 1e-4))
    assert [e.action for e in ledger.entries()] == ["reserve", "start", "settle"]
    assert ledger.file_of(CHARGE) == "f" * 64


def test_a_settled_round_cannot_start_again(ledger: Ledger) -> None:
    ledger.reserve(CHARGE)
    ledger.start(CHARGE)
    ledger.settle(CHARGE, "f" * 64)
    with pytest.raises(LedgerError, match="found settle"):
        ledger.start(CHARGE)


def test_charges_of_rounds_and_studies_compose(ledger: Ledger) -> None:
    charges = [CHARGE, round_number(2), round_number(1, study="other", run="other-1")]
    for charge in charges:
        ledger.reserve(charge)
    assert ledger.spent(1e-4) == pytest.approx(epsilon([EVENT] * 3, 1e-4))
    assert ledger.spent(1e-4, run="demo-1") == pytest.approx(epsilon([EVENT] * 2, 1e-4))


def test_a_reservation_counts_before_it_is_settled(ledger: Ledger) -> None:
    ledger.reserve(CHARGE)
    assert ledger.spent(1e-4) > 0


def test_an_overdraft_is_refused_with_what_still_fits_and_charges_nothing(ledger: Ledger) -> None:
    number = 0
    with pytest.raises(BudgetExceeded, match="Rounds like this that still fit: 0") as caught:
        while True:
            number += 1
            ledger.reserve(round_number(number))
    assert caught.value.spent <= 8 < caught.value.asked
    assert ledger.spent(1e-4) == pytest.approx(caught.value.spent)
    assert len(ledger.entries()) == number - 1


def test_asking_for_too_many_rounds_says_how_many_fit(ledger: Ledger) -> None:
    with pytest.raises(BudgetExceeded) as caught:
        ledger.check_fits("training", EVENT, times=1000)
    fits = caught.value.rounds_left
    assert epsilon([EVENT] * fits, 1e-4) <= 8 < epsilon([EVENT] * (fits + 1), 1e-4)
    ledger.check_fits("training", EVENT, times=fits)
    assert not ledger.entries()


def test_a_charge_can_be_given_back_before_training_starts_and_not_after(ledger: Ledger) -> None:
    ledger.reserve(CHARGE)
    ledger.void(CHARGE)
    assert ledger.spent(1e-4) == 0
    ledger.reserve(CHARGE)
    ledger.start(CHARGE)
    with pytest.raises(LedgerError, match="Expected reserve"):
        ledger.void(CHARGE)
    assert ledger.spent(1e-4) > 0


def test_a_round_cannot_be_settled_twice_with_different_files(ledger: Ledger) -> None:
    ledger.reserve(CHARGE)
    ledger.start(CHARGE)
    ledger.settle(CHARGE, "a" * 64)
    with pytest.raises(LedgerError, match="another file"):
        ledger.settle(CHARGE, "b" * 64)


@pytest.mark.parametrize("step", ["start", "void"])
def test_nothing_happens_to_what_was_not_reserved(ledger: Ledger, step: str) -> None:
    with pytest.raises(LedgerError, match="found nothing"):
        getattr(ledger, step)(CHARGE)


def test_a_rounds_event_never_changes(ledger: Ledger) -> None:
    ledger.reserve(CHARGE)
    with pytest.raises(LedgerError, match="another event"):
        ledger.reserve(replace(CHARGE, event=PrivacyEvent(9.0, 1.0, 4)))


def test_training_and_evaluation_patients_do_not_add_up(ledger: Ledger) -> None:
    ledger.reserve(CHARGE)
    ledger.reserve(replace(CHARGE, purpose="evaluate", patients="evaluation"))
    assert ledger.spent(1e-4) == pytest.approx(epsilon([EVENT], 1e-4))


def test_a_release_without_privacy_needs_a_ledger_that_allows_it(tmp_path: Path) -> None:
    plain = replace(CHARGE, event=None)
    with pytest.raises(LedgerError, match="without differential privacy"):
        Ledger(tmp_path / "a.sqlite", BUDGET).reserve(plain)
    allowing = Ledger(tmp_path / "b.sqlite", BUDGET, allow_plain=True)
    allowing.reserve(plain)
    assert allowing.plain_charges() == 1


def test_rows_can_be_neither_changed_nor_deleted(ledger: Ledger, tmp_path: Path) -> None:
    ledger.reserve(CHARGE)
    db = sqlite3.connect(tmp_path / "state" / "ledger.sqlite")
    for statement in ("UPDATE entries SET at = 0", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(statement)
    db.close()


@pytest.mark.parametrize("column", ["at", "action", "charge", "file", "previous", "hash"])
def test_a_change_behind_the_ledgers_back_is_found(ledger: Ledger, tmp_path: Path, column: str) -> None:
    ledger.reserve(CHARGE)
    ledger.reserve(round_number(2))
    values = {
        "at": 1.0, "action": "publish", "file": "0" * 64, "previous": "1" * 64, "hash": "2" * 64,
        "charge": json.dumps({**asdict(CHARGE), "event": None}),
    }  # fmt: skip
    db = sqlite3.connect(tmp_path / "state" / "ledger.sqlite", isolation_level=None)
    db.execute("DROP TRIGGER entries_are_never_updated")
    db.execute(f"UPDATE entries SET {column} = ? WHERE seq = 1", (values[column],))
    db.close()
    with pytest.raises(LedgerError, match="Entry 1 does not follow"):
        Ledger(tmp_path / "state" / "ledger.sqlite", BUDGET)


def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"no database, whatever its name says" * 50)
    with pytest.raises(LedgerError, match="can't be used as a ledger"):
        Ledger(path, BUDGET)
    assert path.read_bytes().startswith(b"no database")


def test_two_at_once_cannot_overdraw(ledger: Ledger) -> None:
    def try_to_reserve(number: int) -> bool:
        try:
            ledger.reserve(round_number(number))
        except BudgetExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        reserved = sum(threads.map(try_to_reserve, range(60)))
    assert epsilon([EVENT] * reserved, 1e-4) <= 8 < epsilon([EVENT] * (reserved + 1), 1e-4)
    assert ledger.spent(1e-4) <= 8


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(6)), noise=st.floats(1.5, 9))
def test_the_order_of_studies_does_not_matter_and_the_budget_holds(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], noise: float
) -> None:
    spent = []
    for sequence in (sorted(order), order):
        ledger = Ledger(tmp_path_factory.mktemp("ledger") / "l.sqlite", BUDGET)
        for number in sequence:
            charge = round_number(number, study=f"s{number}", event=PrivacyEvent(noise, 1.0, 2))
            try:
                ledger.reserve(charge)
            except BudgetExceeded:
                break
        spent.append(ledger.spent(1e-4))
    assert spent[0] == pytest.approx(spent[1])
    assert max(spent) <= 8.000001
