"""Whatever one hospital writes: it counts as that hospital's alone, and everybody else goes on."""

from pathlib import Path

import pytest
from puppets import Federation

from flows.reporting.disclosures import disclosures
from flows.rounds import membership, statements
from flows.rounds.statements import Absence
from flows.verification import check_statements
from privacy.signing import public_hex
from privacy.statements import RejectedRelease, parse_statement
from sites.exchange.places import Place

NOT_STATEMENTS = {
    "too long": b" " * (2**20 + 1),
    "empty": b"",
    "not UTF-8": b"\xff\xfe",
    "not JSON": b"{",
    "a list": b"[]",
    "NaN": b'{"signer": "east", "signature": "00", "statement": {"kind": NaN}}',
    "another signature": b'{"signer": "east", "signature": "00", "statement": {"kind": "departure"}}',
    "no hexadecimal signature": b'{"signer": "east", "signature": "zz", "statement": {}}',
    "another signer": b'{"signer": "north", "signature": "00", "statement": {}}',
}


@pytest.fixture
def federation(tmp_path: Path, study_with) -> Federation:
    return Federation(tmp_path, study_with(rounds=4))


def write(federation: Federation, place: Place, data: bytes) -> None:
    path = Path(federation.run.description.exchange) / f"{place}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.mark.parametrize("data", NOT_STATEMENTS.values(), ids=NOT_STATEMENTS)
def test_what_is_no_statement_of_a_hospital_stops_nobody_else(
    data: bytes, federation: Federation
) -> None:
    run = federation.run
    for act, round in (("join", 0), ("join", 1), ("leave", 0), ("contribute", 1), ("evaluate", 0)):
        write(federation, Place.statement(run.name, round, act, "east"), data)
    write(federation, Place.revocation("east", public_hex(federation.keys["east"])), data)
    for site in ("north", "south"):
        federation.accept(site, 0)
        federation.release(site)
    answers = statements.answers(run, 1, "contribute", ["east", "north", "south"])
    assert set(answers.taken) == {"north", "south"}
    assert answers.absent["east"].kind == "rejected"
    assert membership.absent(run) == []
    assert set(membership.before_round(run, 1, 1).description.participants) == {"east", "north", "south"}
    federation.finish(1)
    accepted = list(check_statements.acceptance_faults(run, None))
    assert "The exchange has no acceptance of east that east has signed." in accepted
    assert not list(check_statements.refusal_faults(run, run.records(), None))
    assert disclosures(run, "east", 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "refusal", "reason": "no \x1b[2J room"},
        {"kind": "refusal", "reason": "no\nroom"},
        {"kind": "refusal", "reason": "\u202eno room"},
        {"kind": "refusal", "reason": "x" * 1001},
        {"kind": "acceptance", "group": "3T?"},
        {"kind": "acceptance", "version": "1\x07"},
        {"kind": "departure", "\x1b[2J": 1},
        {"kind": "departure", "instead": {"site": "../north"}},
        {"kind": "\x1b[2J"},
    ],
)
def test_words_of_a_hospital_are_one_printable_line(
    fields: dict[str, object], federation: Federation
) -> None:
    federation.say("east", **fields)
    answer = statements.answers(federation.run, 1, "contribute", ["east"]).of("east")
    assert isinstance(answer, Absence)
    assert answer.kind == "rejected"
    assert answer.text.isprintable()


def test_an_unknown_field_is_named_without_its_control_characters() -> None:
    with pytest.raises(RejectedRelease) as raised:
        parse_statement({"kind": "departure", "\x1b[2J": 1})
    assert str(raised.value).isprintable()
