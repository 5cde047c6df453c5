"""A hospital in a secure sum: what it refuses, and what nobody gets out of it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from consortium import Consortium, small_hospitals

from flows.rounds import statements
from flows.rounds.statements import TooFewHospitals
from flows.rounds.sum_progress import progress, store
from flows.rounds.sum_statements import fitting
from flows.verification.check_sums import sum_faults
from models import checkpoints
from models.files import sha256_of
from privacy.signing import BadSignature, private_key, public_hex, sign, verified
from sites.admission.admission import admit, check_round, mechanism_for_study
from sites.exchange.exchange import COORDINATOR
from sites.exchange.phases import Phase, act_of
from sites.exchange.places import Place
from sites.hospital import Hospital
from sites.orders import Order, SumOrder
from sites.policy.policy import Refused, SharedNoiseConfig
from sites.protocol.departure import leave
from sites.secure_sum.own_share import smallest_share
from sites.secure_sum.relay import bundle, unbundled
from sites.study import Study

NAMES = ("east", "north", "south", "west")


@pytest.fixture
def study(small_study) -> Callable[..., Study]:
    def make(**sum_config: int) -> Study:
        content = {
            **small_study,
            "sites": {"min": 3, "deadline_s": 120},
            "privacy": {
                **small_study["privacy"], "mode": "shared_noise", "accountants": ["rdp"],
                "sum": {"dropouts": 1, **sum_config},
            },
            "training": {"steps": 1, "lr": 0.1, "lot": "all", "momentum": 0},
            "export": "gradient_sum",
        }  # fmt: skip
        return Study.model_validate({k: v for k, v in content.items() if k != "distillation"})

    return make


@pytest.fixture
def made(tmp_path: Path, study) -> Consortium:
    wards = small_hospitals(tmp_path / "wards", NAMES)
    return Consortium.begin(tmp_path, study(), wards)


def reasons(made: Consortium, phase: Phase, site: str) -> str:
    """Return why a hospital refused a phase of round 1, in its own signed words."""
    act = f"{act_of(phase, progress(made.run, 1).attempt)}-refused-{made.run.attempt}"
    data = made.run.exchange.statement(Place.statement(made.run.name, 1, act, site))
    assert data is not None
    return str(verified(data, site, made.run.description.roster)["reason"])


def spent(made: Consortium) -> list[float]:
    return [hospital.ledger.spent(1e-3) for hospital in made.hospitals.values()]


def lie(
    made: Consortium, phase: Phase, change: Callable[[dict[str, bytes]], Mapping[str, bytes]],
    to: tuple[str, ...] = NAMES,
) -> None:  # fmt: skip
    """Have the coordinator pass on something else in a phase, to some hospitals."""

    def altered(order: Order) -> Order:
        if order.phase != phase or order.site not in to:
            return order
        true = unbundled(made.run.exchange.object(order.sum.relay, COORDINATOR, 2**24))
        relay = made.run.exchange.put_object(bundle(change(true)), COORDINATOR)
        return order.model_copy(update={"sum": order.sum.model_copy(update={"relay": relay})})

    made.alter = altered


def forged(made: Consortium, data: bytes, site: str, folder: Path, **changes: object) -> bytes:
    """Return a statement like `data` that somebody without the hospital's key has signed."""
    fields = verified(data, site, made.run.description.roster)
    return sign({**fields, **changes}, site, private_key(folder / "somebody"))


def test_an_invented_hospital_is_no_member(made: Consortium, tmp_path: Path) -> None:
    key = private_key(tmp_path / "invented")

    def with_ghost(true: dict[str, bytes]) -> dict[str, bytes]:
        fields = verified(true["east"], "east", made.run.description.roster)
        return {**true, "ghost": sign({**fields, "site": "ghost"}, "ghost", key)}

    lie(made, "sum-shares", with_ghost)
    with pytest.raises(TooFewHospitals):
        made.contribute(1)
    assert "shared with ghost, whose key is not among `peers`" in reasons(made, "sum-shares", "north")
    assert spent(made) == [0.0] * 4


def test_keys_that_a_peer_did_not_sign_are_refused(made: Consortium, tmp_path: Path) -> None:
    lie(made, "sum-shares", lambda true: {**true, "east": forged(made, true["east"], "east", tmp_path)})
    with pytest.raises(TooFewHospitals):
        made.contribute(1)
    assert "passed on for east can't be trusted" in reasons(made, "sum-shares", "north")
    assert spent(made) == [0.0] * 4


def test_a_hospital_that_was_shown_another_roster_is_left_out_uncharged(made: Consortium) -> None:
    def without_west(true: dict[str, bytes]) -> dict[str, bytes]:
        return {site: data for site, data in true.items() if site != "west"}

    lie(made, "sum-shares", without_west, to=("north",))
    taken = made.contribute(1)
    assert sorted(taken.taken) == ["east", "south", "west"]
    assert taken.absent["north"].text == "its shares are sealed for other members"
    assert made.hospitals["north"].ledger.spent(1e-3) == 0


def test_shares_for_another_roster_are_refused_by_the_other_hospitals_too(made: Consortium) -> None:
    """Whatever the coordinator passes on."""

    def for_three(true: dict[str, bytes]) -> dict[str, bytes]:
        fields = verified(true["west"], "west", made.run.description.roster)
        members = {site: sha for site, sha in fields["members"].items() if site != "south"}
        return {**true, "west": sign({**fields, "members": members}, "west", made.hospitals["west"].key)}

    lie(made, "contribute", for_three)
    with pytest.raises(TooFewHospitals):
        made.contribute(1)
    assert "west has seen another roster of the secure sum" in reasons(made, "contribute", "east")
    assert spent(made) == [0.0] * 4


def test_a_roster_below_the_studys_minimum_is_refused(made: Consortium) -> None:
    lie(made, "sum-shares", lambda true: {site: true[site] for site in ("east", "north")})
    with pytest.raises(TooFewHospitals):
        made.contribute(1)
    assert "expected at least 3 hospitals in the secure sum" in reasons(made, "sum-shares", "north")


def test_keys_of_an_earlier_attempt_or_round_are_refused(made: Consortium) -> None:
    made.silent = {"sum-opening": ("south", "west")}
    with pytest.raises(TooFewHospitals):
        made.contribute(1)
    old = {site: statement_of(made, "sum-keys", site, _sha(made, site, "sum-keys")) for site in NAMES}
    made.silent = {}
    lie(made, "sum-shares", lambda true: {**true, "east": old["east"]})
    with pytest.raises(TooFewHospitals):
        made.contribute(1)
    assert "not its sum-keys of this attempt" in reasons(made, "sum-shares", "north")


def statement_of(made: Consortium, act: str, site: str, sha256: str) -> bytes:
    """Return a hospital's signed statement on an act of round 1."""
    return made.run.exchange.statement_with(Place.statement(made.run.name, 1, act, site), sha256)


def _sha(made: Consortium, site: str, act: str) -> str:
    data = made.run.exchange.statement(Place.statement(made.run.name, 1, act, site))
    assert data is not None
    return sha256_of(data)


def up_to(made: Consortium, phase: Phase) -> None:
    """Lead round 1 up to a phase, which nobody is asked any more."""
    asked = made.ask

    def stopped(run, number, asked_phase, sites):
        if asked_phase == phase:
            raise KeyboardInterrupt
        return asked(run, number, asked_phase, sites)

    made.ask = stopped
    with pytest.raises(KeyboardInterrupt):
        made.contribute(1)
    made.ask = asked


def test_a_coordinator_that_calls_a_hospital_a_dropout_gets_no_second_list_and_never_both_shares(
    made: Consortium,
) -> None:
    """It has west's vector. A list without west opens west's pair masks; west's own mask stays."""
    up_to(made, "sum-survivors")
    record = progress(made.run, 1)
    without = {s: sha for s, sha in record.members("contribute").items() if s != "west"}
    passed = {s: statement_of(made, "contribute", s, sha) for s, sha in without.items()}
    relay = made.run.exchange.put_object(bundle(passed), COORDINATOR)
    store(made.run, 1, record.model_copy(
        update={"relay": relay, "phases": {**record.phases, "contribute": without}}
    ))  # fmt: skip
    survivors = sorted(without)
    lists = made.ask(made.run, 1, "sum-survivors", survivors)
    assert sorted(lists.taken) == survivors
    # now the true list, for the same attempt: each has signed its one list, and answers with that
    whole = {s: statement_of(made, "contribute", s, sha)
             for s, sha in record.members("contribute").items()}  # fmt: skip
    relay = made.run.exchange.put_object(bundle(whole), COORDINATOR)
    store(made.run, 1, record.model_copy(update={"relay": relay}))
    again = made.ask(made.run, 1, "sum-survivors", sorted(whole))
    assert all(dict(again.taken[site].statement.survivors) == without for site in survivors)
    # the opening after the false list reveals west's pair shares, and nothing of west's own mask
    passed = {s: statement_of(made, "sum-survivors", s, e.statement_sha256)
              for s, e in lists.taken.items()}  # fmt: skip
    relay = made.run.exchange.put_object(bundle(passed), COORDINATOR)
    store(made.run, 1, record.model_copy(update={"relay": relay}))
    opened = made.ask(made.run, 1, "sum-opening", survivors)
    for each in opened.taken.values():
        statement = each.statement
        assert set(statement.own) == set(survivors) and set(statement.pair) == {"west"}
        assert not statement.own.keys() & statement.pair.keys()
    # and a second opening, for whatever list, is the same statement
    later = made.ask(made.run, 1, "sum-opening", survivors)
    assert {s: e.statement_sha256 for s, e in later.taken.items()} == {
        s: e.statement_sha256 for s, e in opened.taken.items()
    }


def test_fewer_matching_lists_than_the_threshold_open_nothing(made: Consortium) -> None:
    lie(made, "sum-opening", lambda true: {site: true[site] for site in ("east", "north")})
    with pytest.raises(TooFewHospitals):
        made.contribute(1)
    assert "expected 3 survivors who signed this hospital's list" in reasons(
        made, "sum-opening", "south"
    )


def test_a_list_of_survivors_that_is_too_short_is_not_signed(made: Consortium) -> None:
    lie(made, "sum-survivors", lambda true: {site: true[site] for site in ("east", "north")})
    with pytest.raises(TooFewHospitals):
        made.contribute(1)
    assert "expected 3 survivors of the secure sum, got 2" in reasons(made, "sum-survivors", "north")


def test_a_hospital_without_its_peers_keys_takes_no_part_and_is_told_the_way_out(
    tmp_path: Path, edit: Callable[..., None], study
) -> None:
    wards = small_hospitals(tmp_path / "wards", NAMES)
    for ward in wards:
        edit(ward / "site.yaml", shared_noise={"colluding": 0},
             peers={ward.name: public_hex(private_key(tmp_path / "k"))})  # fmt: skip
    with pytest.raises(TooFewHospitals, match="needs the other hospitals' public keys under `peers`"):
        Consortium.begin(tmp_path, study(), wards)


def test_nothing_of_an_attempts_secrets_leaves_and_they_are_deleted_with_its_end(
    made: Consortium,
) -> None:
    up_to(made, "sum-opening")
    folder = made.hospitals["east"].state / "sums" / made.run.name
    (path,) = folder.glob("*.json")
    assert path.parent.stat().st_mode & 0o077 == 0
    secrets = {word for word in path.read_text().split('"') if len(word) == 32}
    exchange = made.run.home.folder / ".wardround" / "exchange"
    written = "".join(file.read_text(errors="replace") for file in exchange.rglob("*") if file.is_file())
    assert secrets and not any(word in written for word in secrets)
    made.round(1)
    assert not path.exists()


def test_hospitals_that_were_given_different_models_sign_no_list(made: Consortium) -> None:
    """A model whose gradients are known would leave one hospital's vector alone in the sum."""
    place = made.run.home.folder / ".wardround" / "exchange" / f"{Place.model(made.run.name, 0)}.json"
    true = place.read_bytes()

    def altered(order: Order) -> Order:
        if order.phase == "contribute":
            place.write_bytes(true if order.site == "east" else false)
        return order

    zero = checkpoints.to_bytes({name: 0 * value for name, value in made.models[0].items()})
    fields = made.run.coordinators(true)
    fields["model_sha256"] = made.run.exchange.put_object(zero, COORDINATOR)
    false = sign(fields, "coordinator", made.run.key)
    made.alter = altered
    with pytest.raises(TooFewHospitals):
        made.contribute(1)
    place.write_bytes(true)
    # three started from the other model: the coordinator rejects them, and no list is ever asked for
    record = progress(made.run, 1)
    assert not record.members("sum-survivors")


def test_a_list_over_releases_from_different_models_is_not_signed(made: Consortium) -> None:
    up_to(made, "sum-survivors")

    def from_another_model(true: dict[str, bytes]) -> dict[str, bytes]:
        fields = verified(true["west"], "west", made.run.description.roster)
        key = made.hospitals["west"].key
        return {**true, "west": sign({**fields, "base_sha256": "0" * 64}, "west", key)}

    lie(made, "sum-survivors", from_another_model)
    with pytest.raises(TooFewHospitals):
        made.contribute(1)
    assert "is of another model" in _reason_of_try(made, "sum-survivors", "north", 1)


def _reason_of_try(made: Consortium, phase: Phase, site: str, attempt: int) -> str:
    act = f"{act_of(phase, attempt)}-refused-{made.run.attempt}"
    data = made.run.exchange.statement(Place.statement(made.run.name, 1, act, site))
    assert data is not None
    return str(verified(data, site, made.run.description.roster)["reason"])


@pytest.mark.parametrize("key", ["pair", "box"])
def test_a_key_with_which_nothing_can_be_agreed_is_named_before_any_charge(
    made: Consortium, key: str
) -> None:
    def without(true: dict[str, bytes]) -> dict[str, bytes]:
        fields = verified(true["west"], "west", made.run.description.roster)
        return {**true, "west": sign({**fields, key: "00" * 32}, "west", made.hospitals["west"].key)}

    lie(made, "sum-shares", without, to=("north",))
    made.contribute(1)
    assert "the keys that west announced" in reasons(made, "sum-shares", "north")
    assert made.hospitals["north"].ledger.spent(1e-3) == 0


def test_an_attempt_is_named_in_the_phases_of_a_secure_sum_and_nowhere_else(
    made: Consortium, study_with
) -> None:
    """Else one round would have as many answers as somebody names attempts."""
    named = SumOrder(attempt=2)
    for phase in ("evaluate", "join", "contribute"):
        number = 1 if phase == "contribute" else 0
        order = statements.order(made.run, number, phase, "east")
        wrong = named if phase != "contribute" else None
        with pytest.raises(Refused, match="of a secure sum where the study has none"):
            check_round(order.model_copy(update={"sum": wrong}))
    plain = statements.order(made.run, 1, "contribute", "east")
    with pytest.raises(Refused, match="of a secure sum"):
        check_round(plain.model_copy(update={"study": study_with(), "sum": named}))


def test_shared_noise_needs_the_policys_leave_and_as_many_colluding_as_it_expects(
    made: Consortium, study
) -> None:
    policy = made.hospitals["east"].policy
    for allowed, words in (("refuse", "shared_noise: refuse"), (SharedNoiseConfig(), "at least 1")):
        with pytest.raises(Refused, match=words):
            admit(policy.model_copy(update={"shared_noise": allowed}), study())
    admit(policy.model_copy(update={"shared_noise": SharedNoiseConfig(colluding=0)}), study())


def test_a_hospital_whose_own_share_would_protect_too_little_releases_nothing_and_pays_nothing(
    made: Consortium, edit: Callable[..., None]
) -> None:
    ward = made.hospitals["east"].folder
    edit(ward / "site.yaml", shared_noise={"colluding": 0, "own_epsilon": 25})
    made.hospitals["east"] = Hospital.open(ward, test_noise=3)
    assert "east" not in made.contribute(1).taken
    assert "with this hospital's noise alone the run would cost" in reasons(made, "sum-shares", "east")
    assert made.hospitals["east"].ledger.spent(1e-3) == 0


def test_the_smallest_share_of_a_run_is_that_of_its_releases_whatever_secrets_are_deleted(
    made: Consortium,
) -> None:
    made.round(1)  # the noise of three of four is counted on
    hospital, run = made.hospitals["east"], made.run.name
    assert not list((hospital.state / "sums" / run).iterdir())
    mechanism = mechanism_for_study(hospital.policy, made.run.study)
    for name, now, most in ((run, 2, 3), (run, 4, 4), ("another", 2, 2)):
        assert smallest_share(hospital, name, mechanism, 10, now).honest == most


def test_keys_are_announced_for_rounds_of_a_run_that_was_joined_alone(made: Consortium) -> None:
    order = statements.order(made.run, 1, "sum-keys", "east")
    with pytest.raises(Refused, match="the study has rounds 1 to"):
        check_round(order.model_copy(update={"round": 0}))
    with pytest.raises(ValueError, match="attempt"):
        SumOrder(attempt=101)


def test_a_junk_share_fails_the_attempt_and_not_the_run(made: Consortium) -> None:
    """West seals shares that open nothing; the attempt is redone, and the run goes on."""
    asked = made.ask

    def junk(run, number, phase, sites):
        found = asked(run, number, phase, sites)
        if phase != "sum-opening" or progress(run, number).attempt > 1:
            return found
        taken = dict(found.taken)
        for site in ("east", "north", "south"):
            statement = taken[site].statement
            false = statement.model_copy(update={"own": {**statement.own, "west": "00" * 16}})
            data = sign(false.model_dump(mode="json"), site, made.hospitals[site].key)
            place = Place.statement(run.name, number, "sum-opening", site)
            path = run.home.folder / ".wardround" / "exchange" / f"{place}.json"
            path.write_bytes(data)
        return statements.answers(run, number, phase, sites)

    made.ask = junk
    assert made.round(1).sum.attempt == 2


def test_a_sum_that_was_opened_stays_what_it_is_whoever_leaves_or_changes_its_key_then(
    made: Consortium,
) -> None:
    taken, spent_then = made.contribute(1), spent(made)
    leave(made.hospitals["west"], made.run.study.name)
    again = made.contribute(1)
    assert {s: e.statement_sha256 for s, e in again.taken.items()} == {
        s: e.statement_sha256 for s, e in taken.taken.items()
    }
    assert spent(made) == spent_then
    record = made.round(1)
    assert record.sum.attempt == 1
    assert list(sum_faults(made.run, made.run.records())) == []


def test_an_attempt_under_way_goes_on_without_a_hospital_that_the_operator_removes(
    made: Consortium,
) -> None:
    up_to(made, "sum-survivors")
    known = made.run.description
    rest = {site: member for site, member in known.participants.items() if site != "west"}
    roster = {site: key for site, key in known.roster.items() if site != "west"}
    gone = {"west": known.participants["west"]}
    changed = known.model_copy(update={"participants": rest, "roster": roster, "departed": gone})
    made.run = replace(made.run, description=changed)
    assert sorted(made.contribute(1).taken) == ["east", "north", "south", "west"]


def test_starts_with_too_few_hospitals_use_up_no_attempt(made: Consortium) -> None:
    made.silent = {"sum-keys": ("east", "north")}
    for _ in range(3):
        with pytest.raises(TooFewHospitals, match="at least 3 hospitals in round 1"):
            made.contribute(1)
    assert progress(made.run, 1).attempt == 1
    made.silent = {}
    assert len(made.contribute(1).taken) == 4


@pytest.mark.parametrize(
    ("phase", "changes", "words"),
    [
        ("sum-keys", {"weight": 3}, "expected the declared 9 patients"),
        ("sum-keys", {"pair": "00" * 32}, "not valid"),
        ("sum-keys", {"box": "ff" * 32}, "canonical"),
        ("sum-shares", {"boxes": {}}, "sealed for other members"),
        ("contribute", {"chain_head": "1" * 64}, "another chain of records"),
        ("sum-survivors", {"survivors": {}}, "another list of survivors"),
        ("sum-opening", {"own": {}}, "opens other secrets"),
    ],
)
def test_a_hospital_whose_statement_does_not_fit_is_left_out_and_the_others_pay_once(
    made: Consortium, phase: Phase, changes: dict[str, object], words: str
) -> None:
    asked, why = made.ask, {}

    def wrong(run, number, asked_phase, sites):
        found = asked(run, number, asked_phase, sites)
        if asked_phase != phase:
            return found
        fields = found.taken["west"].statement.model_dump(mode="json") | changes
        place = Place.statement(run.name, number, phase, "west")
        path = run.home.folder / ".wardround" / "exchange" / f"{place}.json"
        path.write_bytes(sign(fields, "west", made.hospitals["west"].key))
        answers = statements.answers(run, number, asked_phase, sites)
        why.update(fitting(run, number, asked_phase, answers).absent)
        return answers

    made.ask = wrong
    record = made.round(1)
    assert record.sum.attempt == 1 and "west" not in record.sum.members(phase)
    assert phase == "contribute" or words in why["west"].text
    assert list(sum_faults(made.run, made.run.records())) == []


def test_a_statement_in_another_encoding_is_no_statement(made: Consortium) -> None:
    """It could be verified, and not be passed on."""
    data = made.hospitals["west"].outbox.statement(
        next(iter(made.hospitals["west"].outbox.statements()))
    )
    with pytest.raises(BadSignature, match="malformed"):
        made.hospitals["west"].verified(data.decode().encode("utf-16"))
