import sqlite3
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privacy.accounting import Budget, PrivacyEvent, epsilon
from privacy.ledger import BudgetExceeded, Charge, ClockWentBack, Ledger, LedgerError
from privacy.ledger_file import append, enrol, read, transaction

BUDGET = Budget(epsilon=8, delta=1e-4)
EVENT = PrivacyEvent(noise_multiplier=4.0, sampling_rate=1.0, steps=4)
CHARGE = Charge("demo", "demo-1", 1, "contribute", EVENT)
OWNER = "a hospital's key"
ALL = frozenset(f"{number:032x}" for number in range(8))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state" / "ledger.sqlite", BUDGET, OWNER)


def round_number(number: int, **changes: object) -> Charge:
    return replace(CHARGE, round=number, **changes)


def test_rerunning_a_round_charges_once(ledger: Ledger) -> None:
    for _ in range(2):
        ledger.reserve(CHARGE, ALL)
    for _ in range(2):
        ledger.start(CHARGE)
    for _ in range(2):
        ledger.settle(CHARGE, "f" * 64)
    ledger.reserve(CHARGE, ALL)
    assert ledger.spent(1e-4) == pytest.approx(epsilon([EVENT], 1e-4))
    assert [e.action for e in ledger.entries()] == ["resolve", "reserve", "start", "settle"]
    assert ledger.file_of(CHARGE) == "f" * 64


def test_a_settled_round_cannot_start_again(ledger: Ledger) -> None:
    ledger.reserve(CHARGE, ALL)
    ledger.start(CHARGE)
    ledger.settle(CHARGE, "f" * 64)
    with pytest.raises(LedgerError, match="found settle"):
        ledger.start(CHARGE)


def test_charges_of_rounds_and_studies_compose(ledger: Ledger) -> None:
    charges = [CHARGE, round_number(2), round_number(1, study="other", run="other-1")]
    for charge in charges:
        ledger.reserve(charge, ALL)
    assert ledger.spent(1e-4) == pytest.approx(epsilon([EVENT] * 3, 1e-4))
    assert ledger.spent(1e-4, run="demo-1") == pytest.approx(epsilon([EVENT] * 2, 1e-4))


def test_a_reservation_counts_before_it_is_settled(ledger: Ledger) -> None:
    ledger.reserve(CHARGE, ALL)
    assert ledger.spent(1e-4) > 0


def test_an_overdraft_is_refused_with_what_still_fits_and_charges_nothing(ledger: Ledger) -> None:
    number = 0
    with pytest.raises(BudgetExceeded, match="Rounds like this that still fit: 0") as caught:
        while True:
            number += 1
            ledger.reserve(round_number(number), ALL)
    assert caught.value.spent <= 8 < caught.value.asked
    assert ledger.spent(1e-4) == pytest.approx(caught.value.spent)
    assert len(ledger.charges()) == number - 1


def test_a_run_never_spends_more_than_its_own_limit(ledger: Ledger) -> None:
    limit = Budget(epsilon=epsilon([EVENT] * 2, 1e-5), delta=1e-5)
    for number in (1, 2):
        ledger.reserve(round_number(number), ALL, limit)
    ledger.reserve(round_number(2), ALL, limit)
    with pytest.raises(BudgetExceeded, match="at delta 1e-05"):
        ledger.reserve(round_number(3), ALL, limit)
    assert ledger.spent(1e-5) == pytest.approx(limit.epsilon)
    ledger.reserve(round_number(3, purpose="evaluate"), ALL, limit)
    ledger.reserve(round_number(1, run="demo-2"), ALL, limit)


def test_a_recovered_charge_counts_against_its_runs_limit(ledger: Ledger) -> None:
    limit = Budget(epsilon=epsilon([EVENT], 1e-4), delta=1e-4)
    ledger.recover(round_number(1, purpose="contribute-unreleased-0123456789ab"), ALL, "")
    with pytest.raises(BudgetExceeded, match="still fit: 0"):
        ledger.reserve(CHARGE, ALL, limit)


def test_asking_for_too_many_rounds_says_how_many_fit(ledger: Ledger) -> None:
    with pytest.raises(BudgetExceeded) as caught:
        ledger.check_fits(ALL, EVENT, times=1000)
    fits = caught.value.rounds_left
    assert epsilon([EVENT] * fits, 1e-4) <= 8 < epsilon([EVENT] * (fits + 1), 1e-4)
    ledger.check_fits(ALL, EVENT, times=fits)
    assert not ledger.entries()


def test_a_charge_can_be_given_back_before_training_starts_and_not_after(ledger: Ledger) -> None:
    ledger.reserve(CHARGE, ALL)
    ledger.void(CHARGE)
    assert ledger.spent(1e-4) == 0
    ledger.reserve(CHARGE, ALL)
    ledger.start(CHARGE)
    with pytest.raises(LedgerError, match="Expected reserve"):
        ledger.void(CHARGE)
    assert ledger.spent(1e-4) > 0


def test_a_round_cannot_be_settled_twice_with_different_files(ledger: Ledger) -> None:
    ledger.reserve(CHARGE, ALL)
    ledger.start(CHARGE)
    ledger.settle(CHARGE, "a" * 64)
    with pytest.raises(LedgerError, match="another file"):
        ledger.settle(CHARGE, "b" * 64)


@pytest.mark.parametrize("step", ["start", "void"])
def test_nothing_happens_to_what_was_not_reserved(ledger: Ledger, step: str) -> None:
    with pytest.raises(LedgerError, match="found nothing"):
        getattr(ledger, step)(CHARGE)


def test_a_rounds_event_never_changes(ledger: Ledger) -> None:
    ledger.reserve(CHARGE, ALL)
    with pytest.raises(LedgerError, match="another event"):
        ledger.reserve(replace(CHARGE, event=PrivacyEvent(9.0, 1.0, 4)), ALL)


def test_a_patient_who_trains_and_evaluates_has_one_account(ledger: Ledger) -> None:
    both, one_only = frozenset("ab"), frozenset("a")
    ledger.reserve(CHARGE, both)
    ledger.reserve(replace(CHARGE, purpose="evaluate"), one_only)
    assert sorted(map(len, ledger.histories())) == [1, 2]
    assert ledger.spent(1e-4) == pytest.approx(epsilon([EVENT] * 2, 1e-4))


def test_events_of_patients_who_share_nobody_do_not_add_up(ledger: Ledger) -> None:
    ledger.reserve(CHARGE, frozenset("ab"))
    ledger.reserve(replace(CHARGE, purpose="evaluate"), frozenset("cd"))
    assert ledger.spent(1e-4) == pytest.approx(epsilon([EVENT], 1e-4))


def test_who_has_left_still_counts_for_the_hospital_and_not_for_those_who_came_after(
    ledger: Ledger,
) -> None:
    with pytest.raises(BudgetExceeded) as caught:
        for number in range(1, 100):
            ledger.reserve(round_number(number), frozenset("a"))
    spent = caught.value.spent
    ledger.reserve(round_number(number), frozenset("b"))
    assert ledger.spent(1e-4) == pytest.approx(spent)
    with pytest.raises(BudgetExceeded):
        ledger.reserve(round_number(number + 1), frozenset("ab"))


def test_a_charge_that_stands_keeps_the_patients_for_whom_it_was_made(ledger: Ledger) -> None:
    assert ledger.reserve(CHARGE, frozenset("ab")) == frozenset("ab")
    assert ledger.reserve(CHARGE, frozenset("bc")) == frozenset("ab")
    ledger.void(CHARGE)
    assert ledger.reserve(CHARGE, frozenset("bc")) == frozenset("bc")


def test_an_event_without_patients_is_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="at least one patient"):
        ledger.reserve(CHARGE, frozenset())


def test_a_clock_that_went_back_is_refused_and_charges_nothing_until_the_owner_accepts_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.reserve(CHARGE, ALL)
    spent, now = ledger.spent(1e-4), time.time()
    monkeypatch.setattr(time, "time", lambda: now - 30)
    ledger.start(CHARGE)
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    with pytest.raises(ClockWentBack, match="Expected a time after"):
        ledger.reserve(round_number(2), ALL)
    assert ledger.spent(1e-4) == spent
    ledger.settle(CHARGE, "f" * 64)
    times = [entry.at for entry in ledger.entries()]
    assert times == sorted(times)
    ledger.resolve()
    ledger.reserve(round_number(2), ALL)
    assert ledger.spent(1e-4) > spent


def test_what_a_restored_ledger_forgot_is_charged_even_beyond_the_budget(tmp_path: Path) -> None:
    small = Ledger(tmp_path / "l.sqlite", Budget(epsilon=1, delta=1e-4), OWNER)
    for _ in range(2):
        small.recover(CHARGE, ALL, "f" * 64)
    assert [e.action for e in small.entries()] == ["resolve", "reserve", "start", "settle"]
    assert small.spent(1e-4) == pytest.approx(epsilon([EVENT], 1e-4))
    assert small.spent(1e-4) > 1
    assert small.file_of(CHARGE) == "f" * 64
    with pytest.raises(LedgerError, match="another event or file"):
        small.recover(CHARGE, ALL, "e" * 64)


@pytest.mark.parametrize("before", [["reserve"], ["reserve", "start"], ["reserve", "void"]])
def test_what_a_restored_ledger_half_remembers_is_completed(ledger: Ledger, before: list[str]) -> None:
    for action in before:
        {"reserve": lambda c: ledger.reserve(c, ALL), "start": ledger.start, "void": ledger.void}[
            action
        ](CHARGE)
    ledger.recover(CHARGE, ALL, "f" * 64)
    assert ledger.file_of(CHARGE) == "f" * 64
    assert ledger.spent(1e-4) == pytest.approx(epsilon([EVENT], 1e-4))


def test_others_are_charged_once_beside_who_took_part_and_do_not_count_as_trained(
    ledger: Ledger,
) -> None:
    took_part = frozenset(sorted(ALL)[:3])
    for _ in range(2):
        ledger.recover(CHARGE, took_part, "f" * 64, ALL)
    for patient in ALL:
        assert [charge.event for charge in ledger.charges_of(patient)] == [EVENT]
    assert ledger.trained() == took_part
    assert ledger.count(CHARGE) == 1
    ledger.reserve(round_number(2, purpose="evaluate"), ALL)
    assert ledger.trained() == took_part


def test_a_release_without_privacy_needs_a_ledger_that_allows_it(tmp_path: Path) -> None:
    plain = replace(CHARGE, event=None)
    with pytest.raises(LedgerError, match="without differential privacy"):
        Ledger(tmp_path / "a.sqlite", BUDGET, OWNER).reserve(plain, ALL)
    allowing = Ledger(tmp_path / "b.sqlite", BUDGET, OWNER, allow_plain=True)
    allowing.reserve(plain, ALL)
    assert allowing.plain_charges() == 1


def _reserve_in_a_process(path: Path, number: int) -> bool:
    try:
        Ledger(path, BUDGET, OWNER).reserve(round_number(number), ALL)
    except BudgetExceeded:
        return False
    return True


def test_two_processes_at_once_cannot_overdraw(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with ProcessPoolExecutor(4, get_context("fork")) as processes:
        tries = processes.map(_reserve_in_a_process, [path] * 40, range(40))
        reserved = sum(tries)
    assert epsilon([EVENT] * reserved, 1e-4) <= 8 < epsilon([EVENT] * (reserved + 1), 1e-4)
    assert Ledger(path, BUDGET, OWNER).spent(1e-4) <= 8


def test_two_at_once_cannot_overdraw(ledger: Ledger) -> None:
    def try_to_reserve(number: int) -> bool:
        try:
            ledger.reserve(round_number(number), ALL)
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
        ledger = Ledger(tmp_path_factory.mktemp("ledger") / "l.sqlite", BUDGET, OWNER)
        for number in sequence:
            charge = round_number(number, study=f"s{number}", event=PrivacyEvent(noise, 1.0, 2))
            try:
                ledger.reserve(charge, ALL)
            except BudgetExceeded:
                break
        spent.append(ledger.spent(1e-4))
    assert spent[0] == pytest.approx(spent[1])
    assert max(spent) <= 8.000001


@settings(max_examples=25, deadline=None)
@given(
    tries=st.lists(
        st.tuples(
            st.frozensets(st.sampled_from("abcdef"), min_size=1), st.floats(1.5, 9), st.booleans()
        ),
        max_size=8,
    )
)
def test_the_classes_cost_what_the_patients_one_by_one_cost_and_never_more_than_the_budget(
    tmp_path_factory: pytest.TempPathFactory, tries: list[tuple[frozenset[str], float, bool]]
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "l.sqlite", BUDGET, OWNER)
    accounts: dict[str, list[PrivacyEvent]] = {patient: [] for patient in "abcdef"}
    for number, (patients, noise, is_voided) in enumerate(tries):
        event = PrivacyEvent(noise, 1.0, 2)
        before, charge = ledger.spent(1e-4), round_number(number, event=event)
        fits = all(BUDGET.covers(epsilon([*accounts[p], event], 1e-4)) for p in patients)
        try:
            ledger.reserve(charge, patients)
            assert fits
        except BudgetExceeded:
            assert not fits
            continue
        assert ledger.spent(1e-4) >= before
        if is_voided:
            ledger.void(charge)
        else:
            for patient in patients:
                accounts[patient].append(event)
        one_by_one = max(epsilon(events, 1e-4) for events in accounts.values())
        assert ledger.spent(1e-4) == pytest.approx(one_by_one)
        assert ledger.spent_after(1e-4)[-1][1] == pytest.approx(one_by_one)
        assert BUDGET.covers(one_by_one)


SAMPLED = PrivacyEvent(noise_multiplier=4.0, sampling_rate=0.1, steps=4)


@pytest.mark.parametrize("founded", ["gaussian", "renyi"])
def test_the_first_private_charge_fixes_a_ledgers_rule_whatever_the_policy_says_later(
    founded: str, tmp_path: Path
) -> None:
    """A rule that an outcome could choose would be no filter."""
    path = tmp_path / "ledger.sqlite"
    other = {"gaussian": "renyi", "renyi": "gaussian"}[founded]
    empty = Ledger(path, BUDGET, OWNER, rule=other)
    empty.publish(round_number(0, purpose="check", event=None), "f" * 64)
    assert empty.rule == other
    Ledger(path, BUDGET, OWNER, rule=founded).reserve(CHARGE, ALL)
    later = Ledger(path, BUDGET, OWNER, rule=other)
    assert later.rule == founded
    assert later.spent(1e-4) == pytest.approx(epsilon([EVENT], 1e-4, founded))
    if founded == "gaussian":
        for use in (later.reserve, lambda charge, those: later.check_fits(those, charge.event, 1)):
            with pytest.raises(LedgerError, match="sampled step"):
                use(round_number(2, event=SAMPLED), ALL)
    else:
        later.reserve(round_number(2, event=SAMPLED), ALL)
        assert later.spent(1e-4) == pytest.approx(epsilon([EVENT, SAMPLED], 1e-4, "renyi"))


def test_a_ledger_that_recorded_no_rule_yet_has_that_of_its_events(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    lax = Ledger(path, BUDGET, OWNER, rule="renyi")
    lax.reserve(round_number(1, event=SAMPLED), ALL)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("DROP TRIGGER entries_never_DELETE")
    db.execute("DELETE FROM entries")
    db.close()
    with transaction(path) as opened:
        append(
            opened,
            read(opened, lax.genesis),
            "reserve",
            round_number(1, event=SAMPLED),
            enrol(opened, ALL),
        )
    Ledger(path, BUDGET, OWNER, rule="gaussian").recover(round_number(2), ALL, "f" * 64)
    assert Ledger(path, BUDGET, OWNER, rule="gaussian").rule == "renyi"


def test_a_lost_ledger_that_recovers_a_sampled_event_counts_by_renyi_dp(tmp_path: Path) -> None:
    for order in ([EVENT, SAMPLED], [SAMPLED, EVENT]):
        path = tmp_path / f"{order[0].sampling_rate}.sqlite"
        strict = Ledger(path, BUDGET, OWNER, rule="gaussian")
        for number, event in enumerate(order):
            strict.recover(round_number(number, event=event), ALL, f"{number}" * 64)
        assert strict.rule == "renyi"
        assert strict.spent(1e-4) == pytest.approx(epsilon(order, 1e-4, "renyi"))
        strict.reserve(round_number(5), ALL)
