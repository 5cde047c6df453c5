"""Hospitals that join a run late, leave it, or change their keys; without Prefect."""

from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from puppets import HASH, Federation

from flows.rounds import aggregation, global_model, membership, recording, releases, statements
from flows.runs.run import Run, runs_of
from privacy.signing import public_hex, sign
from privacy.statements import Revocation
from sites.exchange.places import Place


@pytest.fixture
def federation(tmp_path: Path, study_with) -> Federation:
    return Federation(tmp_path, study_with(rounds=4))


@pytest.fixture
def without_south(federation: Federation) -> Federation:
    """South was not there when the run began."""
    known = federation.run.description
    there = {site: member for site, member in known.participants.items() if site != "south"}
    federation.run = federation.run.with_participants(there, {"south": statements.SILENT})
    return federation


def revoke(federation: Federation, site: str, signer: str) -> None:
    public = public_hex(federation.keys[site])
    said = Revocation(kind="revocation", site=site, public_key=public, at_ms=1)
    signed = sign(said.model_dump(mode="json"), site, federation.keys[signer])
    federation.run.exchange.put_statement(Place.revocation(site, public), signed)


def test_a_hospital_that_accepts_later_takes_part_from_the_next_round_on(
    without_south: Federation,
) -> None:
    federation = without_south
    assert membership.absent(federation.run) == ["south"]
    assert membership.before_round(federation.run, 1, 1) is federation.run
    for site in ("east", "north"):
        federation.release(site)
    federation.finish(1)
    federation.accept("south", 1)
    federation.run = membership.before_round(federation.run, 2, 1)
    assert federation.run.description.participants["south"].since == 2
    assert "south" in Run.open(federation.run.home, federation.run.name).description.refused
    assert membership.absent(federation.run) == []


def test_an_acceptance_that_came_too_late_for_the_start_counts_for_the_next_round(
    without_south: Federation,
) -> None:
    without_south.accept("south", 0)
    joined = membership.before_round(without_south.run, 3, 2)
    assert joined.description.participants["south"].since == 3


def test_a_hospital_that_refuses_or_is_forged_does_not_join(without_south: Federation) -> None:
    without_south.say("south", "join", 1, kind="refusal", reason="no")
    assert membership.before_round(without_south.run, 1, 1) is without_south.run
    without_south.say("south", "join", 2, signer="north", kind="acceptance", steps=2,
                      declared_training=15, declared_patients=20,
                      budget={"epsilon": 50, "delta": 1e-3})  # fmt: skip
    assert membership.before_round(without_south.run, 2, 2) is without_south.run


def test_a_hospital_that_has_left_is_asked_no_more_and_its_releases_stay(federation: Federation) -> None:
    for site in ("east", "north", "south"):
        federation.release(site)
    federation.finish(1)
    federation.say("south", "leave", 0, kind="departure")
    federation.run = membership.before_round(federation.run, 2, 1)
    assert sorted(federation.run.description.participants) == ["east", "north"]
    assert sorted(federation.run.description.departed) == ["south"]
    assert membership.absent(federation.run) == []
    assert sorted(federation.base.releases) == ["east", "north", "south"]
    assert "south" in federation.run.description.everybody


def test_under_another_roster_a_run_goes_on_with_whom_is_on_it(federation: Federation) -> None:
    new = Ed25519PrivateKey.generate()
    known = federation.run.description.roster
    roster = {"north": public_hex(new), "east": known["east"], "west": "0" * 64}
    changed = membership.with_roster(federation.run, roster, {})
    assert sorted(changed.description.participants) == ["east", "north"]
    assert changed.description.participants["north"].key == public_hex(new)
    assert sorted(changed.description.departed) == ["south"]
    assert membership.absent(changed) == ["west"]
    assert membership.with_roster(changed, roster, {}) is changed
    back = membership.with_roster(changed, {**roster, "south": known["south"]}, {})
    assert membership.absent(back) == ["south", "west"]
    federation.run = back
    federation.accept("south", 2)
    back = membership.before_round(back, 2, 2)
    assert sorted(back.description.participants) == ["east", "north", "south"]
    assert not back.description.departed


def test_what_a_hospital_declares_when_it_comes_back_changes_no_earlier_round(
    federation: Federation,
) -> None:
    for site in ("east", "north", "south"):
        federation.release(site)
    federation.finish(1)
    scores = {"east": {"dice": 0.5}, "north": {"dice": 0.5}, "south": {"dice": 0.9}}
    before = recording.quality_of(federation.run, 1, scores)
    known = federation.run.description.roster
    without = {site: key for site, key in known.items() if site != "south"}
    federation.run = membership.with_roster(federation.run, without, {})
    federation.run = membership.with_roster(federation.run, known, {})
    federation.say("south", "join", 2, kind="acceptance", declared_training=150, declared_patients=200,
                   steps=federation.run.study.training.steps, version="0.1.0", code_sha256="0" * 64,
                   budget={"epsilon": 9, "delta": 1e-3}, group="3t")  # fmt: skip
    run = membership.before_round(federation.run, 3, 2)
    assert recording.quality_of(run, 1, scores) == before
    assert recording.quality_of(run, 3, scores)["dice"] > before["dice"]
    then, now = (Run.open(run.home, run.name).description.member("south", r) for r in (2, 3))
    then_declared, now_declared = then.statement, now.statement
    facts = (then_declared.declared_training, then_declared.budget.epsilon, then_declared.group)
    assert facts == (15, 50, None)
    facts = (now_declared.declared_training, now_declared.budget.epsilon, now_declared.group)
    assert facts == (150, 9, "3t")
    assert [each.since for each in run.description.acceptances("south")] == [1, 3]
    assert run.description.members(2)["south"] == then


def test_nothing_that_is_signed_with_a_revoked_key_counts(federation: Federation) -> None:
    for site in ("east", "north", "south"):
        federation.release(site)
    revoke(federation, "south", signer="north")  # nobody else can revoke it
    assert not federation.take_in().absent
    federation = Federation(federation.run.home.folder / "again", federation.run.study)
    for site in ("east", "north", "south"):
        federation.release(site)
    revoke(federation, "south", signer="south")
    assert "has revoked its key" in federation.take_in().absent["south"].text


def test_a_revoked_key_can_neither_leave_nor_join(federation: Federation) -> None:
    federation.say("south", "leave", 0, kind="departure")
    revoke(federation, "south", signer="south")
    assert membership.before_round(federation.run, 1, 1) is federation.run
    known = federation.run.description
    without = {site: member for site, member in known.participants.items() if site != "south"}
    federation.run = federation.run.with_participants(without, {})
    federation.accept("south", 1)
    assert membership.before_round(federation.run, 1, 1) is federation.run


def test_a_run_that_everybody_has_left_stays_on_record(federation: Federation) -> None:
    for site in ("east", "north", "south"):
        federation.say(site, "leave", 0, kind="departure")
    left = membership.before_round(federation.run, 1, 1)
    assert not left.description.participants
    assert [run.name for run in runs_of(left.home)] == [left.name]


def test_a_release_of_a_hospital_that_has_left_before_the_round_was_decided_does_not_count(
    federation: Federation,
) -> None:
    for site in ("east", "north", "south"):
        federation.release(site)
    federation.say("south", "leave", 0, kind="departure")
    assert federation.take_in().absent == {"south": statements.LEFT}


@pytest.mark.parametrize("change", ["leaves", "is removed", "changes its key", "revokes its key"])
def test_a_decided_round_ends_as_it_was_decided_whatever_becomes_of_a_hospital(
    federation: Federation, change: str
) -> None:
    """The coordinator was killed between the decision and the round's record."""
    for site in ("east", "north", "south"):
        federation.release(site)
    taken = federation.take_in()
    model = aggregation.aggregate(federation.run, 1, federation.base, taken)
    roster = dict(federation.run.description.roster)
    if change == "leaves":
        federation.say("south", "leave", 0, kind="departure")
        federation.run = membership.before_round(federation.run, 1, 1)
    elif change == "is removed":
        del roster["south"]
    elif change == "changes its key":
        roster["south"] = public_hex(Ed25519PrivateKey.generate())
    else:
        revoke(federation, "south", signer="south")
    federation.run = membership.with_roster(federation.run, roster, {})
    again = releases.decided(federation.run, 1)
    assert again == taken
    after = aggregation.aggregate(federation.run, 1, federation.base, again)
    assert all(torch.equal(after[name], tensor) for name, tensor in model.items())
    sha256 = global_model.publish_model(federation.run, 1, after)
    record = recording.round_record(federation.run, 1, sha256, again, statements.NO_ANSWERS, 0)
    assert sorted(record.releases) == ["east", "north", "south"]


def late_release(federation: Federation, round: int, base_sha256: str, scale: float) -> None:
    federation.release("south", federation.change(scale), round=round, base_sha256=base_sha256)


def test_a_late_release_is_refused_by_default(federation: Federation) -> None:
    first = federation.base.model_sha256
    for round in (1, 2):
        for site in ("east", "north"):
            spent = {"epsilon": 50.0}
            federation.release(site, round=round, **spent)
        if round == 2:
            late_release(federation, 1, first, 0.05)
        taken = federation.finish(round)
        assert dict(taken.absent) == {"south": statements.SILENT}


def test_where_a_study_takes_late_releases_they_count_less_by_their_age(
    tmp_path: Path, study_with
) -> None:
    """One round late at power 1 counts half: the mean of 0.01, 0.01 and half of 0.06."""
    quorum = {"min": 2, "staleness": {"rounds": 2, "power": 1.0}}
    federation = Federation(tmp_path, study_with(rounds=4, sites=quorum))
    first = federation.base.model_sha256
    for site in ("east", "north"):
        federation.release(site, epsilon=50.0)
    federation.finish(1)
    before = federation.run.model(federation.base)
    for site in ("east", "north"):
        federation.release(site, round=2, epsilon=50.0)
    late_release(federation, 1, first, 0.06)
    taken = federation.finish(2)
    assert not taken.absent
    assert releases.decided(federation.run, 2) == taken
    after = federation.run.model(federation.base)
    for name, tensor in before.items():
        moved = (0.01 + 0.01 + 0.06 / 2) / 2.5
        assert (after[name] - tensor).mean().item() == pytest.approx(moved, rel=1e-3)
    south = federation.base.releases["south"]
    assert (federation.base.round - south.statement.round, south.weight) == (1, 7.5)


def test_a_late_release_counts_once_and_never_after_a_newer_one_or_when_it_is_too_old(
    tmp_path: Path, study_with
) -> None:
    quorum = {"min": 2, "staleness": {"rounds": 1}}
    federation = Federation(tmp_path, study_with(rounds=5, sites=quorum))
    bases = {0: federation.base.model_sha256}
    came = {2: [1], 3: [], 4: [], 5: [3]}  # in round 2 that of round 1; in round 5 that of round 3
    found = {}
    for round in (1, 2, 3, 4, 5):
        for site in ("east", "north"):
            federation.release(site, round=round, epsilon=50.0)
        for number in came.get(round, []):
            late_release(federation, number, bases[number - 1], 0.02)
        federation.finish(round)
        bases[round] = federation.base.model_sha256
        south = federation.base.releases.get("south")
        found[round] = [round - south.statement.round] if south else []
    assert found == {1: [], 2: [1], 3: [], 4: [], 5: []}


@pytest.mark.parametrize(
    ("declares", "reason"),
    [
        ({"declared_training": 9999, "declared_patients": 13332}, "federation.yaml has at most 20"),
        ({"declared_training": 16, "declared_patients": 21}, "federation.yaml has at most 20"),
        ({"declared_training": 30, "declared_patients": 20}, "more training patients than patients"),
        ({"declared_training": 6, "declared_patients": 8}, None),
    ],
)
def test_a_hospital_that_declares_more_patients_than_agreed_takes_no_part(
    declares: dict[str, int], reason: str | None, federation: Federation
) -> None:
    """9999 declared patients would have had 98.5 % of the weight."""
    run = federation.run
    most = dict.fromkeys(run.description.roster, 20)
    federation.run = membership.with_roster(run, run.description.roster, most)
    for site in ("north", "east"):
        federation.accept(site, 0)
    budget = {"epsilon": 50, "delta": 1e-3}
    federation.say("south", "join", 0, kind="acceptance", steps=run.study.training.steps,
                   budget=budget, version="0.1.0", code_sha256=HASH, **declares)  # fmt: skip
    found = statements.answers(federation.run, 0, "join", ["north", "east", "south"])
    assert {"north", "east"} <= found.taken.keys()
    assert ("south" in found.taken) == (reason is None)
    if reason:
        assert reason in found.absent["south"].text
        assert membership.participants(federation.run, found).keys() == {"north", "east"}


def test_a_limit_that_is_lowered_binds_whoever_takes_part_already(federation: Federation) -> None:
    run = federation.run
    most = {"north": 20, "east": 19, "south": 20}  # each has declared 20
    changed = membership.with_roster(run, run.description.roster, most)
    assert sorted(changed.description.participants) == ["north", "south"]
    assert sorted(changed.description.departed) == ["east"]
