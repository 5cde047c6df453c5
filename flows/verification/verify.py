"""Whether a run is what it says: every signature, every link, every number, and the models re-computed.

Nothing is taken from the coordinator's own word that a hospital's signature can show. Each check yields
what does not fit, in the order in which a round comes about; the first is where to look.

| what is checked     | against what                                                             |
|---------------------|--------------------------------------------------------------------------|
| records             | their chain, its heads as the coordinator and the hospitals signed them  |
| models              | their sha256, the coordinator's statements, the strategy over releases   |
| orders, acceptances | signatures, the study's hash, the numbers in `run.json`                  |
| releases            | signatures, sha256, base, declared numbers, cost, no one twice           |
| scores              | signatures, the record's numbers and their declared-n mean               |
| decisions           | their chain, each person's signature, the exchange                       |
| refusals            | signatures, the reasons in `run.json` and the records                    |
| comparisons         | signatures, the record's numbers, the models that hospitals released     |
| MLflow              | every number, record, picture and file of a model                        |
| MLflow's releases   | the decisions: versions, tags, reports, the champion                     |

Not checked: the bytes of models and releases in the exchange, which whoever fetches them compares with
the sha256 that was signed for (here the copies in the run's folder are); in MLflow the study's own note
and views.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pydantic import ValidationError

from flows.decisions import decisions
from flows.decisions.criteria import criteria_of
from flows.decisions.decisions import People
from flows.rounds import rounds
from flows.rounds.rounds import PHASES, Answers
from flows.runs import artifacts
from flows.runs.run import GENESIS, BrokenRun, Participant, RoundRecord, Run
from flows.tracking.check_metrics import differences
from flows.tracking.check_registry import released_faults
from models import checkpoints
from models import params as P
from models.checkpoints import CorruptCheckpoint, StoredParams
from models.files import sha256_of
from models.params import Params
from privacy.accounting import TOLERANCE
from privacy.release import (
    Acceptance,
    Comparison,
    HeadManifest,
    ModelManifest,
    Refusal,
    RejectedRelease,
    ReleaseManifest,
    Revocation,
    Scores,
    Statement,
    parse_statement,
)
from privacy.signing import BadSignature, Roster, verified
from sites.exchange.places import Place
from sites.orders import Order, Phase, refusal_of
from sites.yaml_files import ConfigError


@dataclass(frozen=True)
class Anchors:
    """What the reader knows of himself, and need not take from the coordinator.

    Attributes:
        roster: the hospitals' keys; nothing that others signed fits then.
        people: who may decide, in the place of the coordinator's `people.yaml`.
        decision: the sha256 of a decision, as `wardround review` told it to whom it was put on record
            for; the run has to have it still.
    """

    roster: Roster | None = None
    people: People | None = None
    decision: str = ""


NO_ANCHORS = Anchors()


def faults(run: Run, anchors: Anchors = NO_ANCHORS) -> Iterator[str]:
    """Yield what in a run does not fit, one sentence each; nothing if all of it does.

    Re-computing takes as long as the run's aggregations did, and as the first model's prior.
    """
    yield from lineage_faults(run, anchors)
    yield from released_faults(run)


def lineage_faults(run: Run, anchors: Anchors = NO_ANCHORS) -> Iterator[str]:
    """Yield what does not fit in how a run's models came about, and in what was decided about them.

    What MLflow makes of the decisions is left out: a release puts it right. Where the run goes on
    meanwhile, it is looked at anew.
    """
    seen = _state(run)
    for fault in _caught(run, anchors):
        if _state(run) != seen:
            yield from lineage_faults(run.again(), anchors)
            return
        yield fault


def _state(run: Run) -> str:
    """Return what stands for everything that a run's folder says by now."""
    files = [run.folder / "run.json", *run.folder.glob("rounds/*"), *run.folder.glob("decisions/*.json")]
    return sha256_of(b"".join(path.read_bytes() for path in sorted(files) if path.exists()))


def _caught(run: Run, anchors: Anchors) -> Iterator[str]:
    try:
        yield from _faults(run, anchors)
    except BrokenRun as error:
        yield str(error)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, ConfigError) as error:
        yield f"{run.name} can't be checked any further: {type(error).__name__}: {error}"


def _faults(run: Run, anchors: Anchors) -> Iterator[str]:
    roster, records, known = anchors.roster, run.records(), decisions.decisions(run)
    if not records:
        yield f"{run.name} has no record."
        return
    yield from _of_chain(run, records)
    yield from _of_members(run, records)
    if roster is not None:
        yield from _of_keys(run, records, roster)
    yield from _of_orders(run)
    yield from _of_acceptances(run, roster)
    yield from _of_refusals(run, records, roster)
    for before, record in pairwise(records):
        yield from _of_releases(run, records, before, record)
    yield from _twice(records)
    for record in records:
        yield from _of_scores(run, records, record)
    yield from _of_models(run, records)
    for before, record in pairwise(records):
        yield from _of_comparisons(run, before, record)
    yield from _of_decisions(run, records, known, anchors)
    with artifacts.alone(run):  # no round is half told
        told = list(differences(run, records))
    yield from told


def _of_chain(run: Run, records: Sequence[RoundRecord]) -> Iterator[str]:
    for record in records:
        named = (record.study, record.study_sha256, record.run)
        if named != (run.study.name, run.study.sha256, run.name):
            yield f"The record of round {record.round} is of another study or run."
    numbers = sorted(int(p.stem.removeprefix("round-")) for p in (run.folder / "rounds").glob("*.json"))
    if numbers != [record.round for record in records]:
        yield f"The records are of rounds {numbers}, one of which is missing."
    if run.is_finished and records[-1].round != run.study.rounds:
        yield f"{run.name} is finished, and its newest record is of round {records[-1].round}."
    for record in records:
        try:
            said = HeadManifest.model_validate(_coordinators(run, Place.head(run.name, record.round)))
            if (said.run, said.round, said.record_sha256) != (run.name, record.round, record.sha256):
                yield f"The signed head of round {record.round} is another than the record's."
        except (BadSignature, ValidationError, LookupError) as error:
            yield f"The signed head of round {record.round}: {error}"
    last = records[-1].round
    newest = last if run.is_finished else last + 1  # a round that is under way
    for number, what in sorted(run.exchange.rounds_of(run.name)):
        if number > newest or (number > last and what == "head"):
            yield f"The exchange has a {what} of round {number}, whose record is missing here."


def _of_members(run: Run, records: Sequence[RoundRecord]) -> Iterator[str]:
    """Yield where run.json says something else of who took part than the records do."""
    known = run.description
    if known.kind != "training":
        yield f"run.json calls {run.name} a {known.kind}, and it has records of a training."
    for site, member in sorted(known.participants.items()):
        if known.roster.get(site) != member.public_key:
            yield f"run.json has two keys of {site}."
    for record in records[1:]:
        contributed = {release.site: record.round - release.staleness for release in record.releases}
        for site in sorted(known.everybody):
            selves = known.selves(site)
            if contributed.get(site, selves[0].since) < selves[0].since:
                yield f"{site} contributed to round {record.round} before run.json has it join."
            # a round that was interrupted goes on without who joins meanwhile
            due = _has_stayed(run, site) and selves[0].since < record.round
            if due and site not in contributed.keys() | record.left_out.keys():
                yield f"The record of round {record.round} does not say why {site} is missing."


def _has_stayed(run: Run, site: str) -> bool:
    """Return whether a hospital has taken part ever since it joined."""
    known = run.description
    return site in known.participants and len(known.selves(site)) == 1


def _of_keys(run: Run, records: Sequence[RoundRecord], roster: Roster) -> Iterator[str]:
    for record in records:
        signed = {r.site: r for r in record.releases} | record.scored | record.compared
        for site, each in sorted(signed.items()):
            if roster.get(site) != each.public_key:
                yield f"{site} signed in round {record.round} with another key than the one you gave."
    for site in sorted(run.description.everybody):
        if roster.get(site) != run.description.selves(site)[-1].public_key:
            yield f"{site} has another key in run.json than the one you gave."


def _coordinators(run: Run, place: str) -> dict[str, object]:
    """Return the coordinator's statement at a place; raise LookupError where there is none."""
    data = run.exchange.statement(place)
    if data is None:
        raise LookupError("it is not in the exchange.")
    return run.coordinators(data)


def _of_orders(run: Run) -> Iterator[str]:
    for site in sorted(run.description.roster):
        for place in sorted(run.exchange.orders_of(site)):
            name = place.rpartition("/")[2]
            if not name.startswith(f"{run.name}."):
                continue
            try:
                order = Order.model_validate(_coordinators(run, place))
                found = f"{order.run}.{order.round:03d}.{order.phase}.{order.attempt}"
                if (found, order.site, order.study.sha256) != (name, site, run.study.sha256):
                    yield f"The order {name} of {site} is another than its place says."
            except (BadSignature, ValidationError, LookupError) as error:
                yield f"The order {name} of {site} can't be trusted: {error}"


def _of_acceptances(run: Run, roster: Roster | None) -> Iterator[str]:
    for site in sorted(run.description.everybody):
        selves = run.description.selves(site)
        places = (Place.statement(run.name, r, "join", site) for r in range(run.study.rounds + 1))
        found = (data for data in map(run.exchange.statement, places) if data is not None)
        keys = {*(each.accepted_with for each in selves), *_keys_of(run, site)}
        if roster is not None:
            keys &= {roster.get(site, "")}
        read = (_signed_by(data, site, keys) for data in found)
        said = [each for each in read if isinstance(each, Acceptance)]  # also some that nobody took
        if not said:
            yield f"The exchange has no acceptance of {site} that {site} has signed."
            continue
        told = [_declared(each) for each in said]
        if any(_declared(each) not in told for each in selves):
            yield f"run.json has other declared numbers of {site} than its signed acceptance."


def _of_refusals(run: Run, records: Sequence[RoundRecord], roster: Roster | None) -> Iterator[str]:
    """Yield where a hospital is said to have refused, and has signed no such thing."""
    phases = PHASES[run.study.privacy.mode]
    told: list[tuple[int, Sequence[Phase], Mapping[str, str]]] = [
        (0, ("join",), run.description.refused),
        *((record.round, phases, record.left_out) for record in records),
        *((record.round, ("evaluate",), record.unscored) for record in records),
        *((record.round, ("compare",), record.uncompared) for record in records),
    ]
    for round, asked, reasons in told:
        for site, why in sorted(reasons.items()):
            if not why.startswith(rounds.REFUSED):
                continue
            reason, keys = why.removeprefix(rounds.REFUSED), _known_keys(run, site, roster)
            signed = {each for phase in asked for each in _refusals(run, round, phase, site, keys)}
            if reason not in signed:
                yield f"{site} has not signed what it is said to refuse in round {round}: {reason}"


def _refusals(run: Run, round: int, phase: Phase, site: str, keys: set[str]) -> Iterator[str]:
    """Yield for what reasons a hospital has refused a phase of a round, in any attempt."""
    for attempt in range(1, run.attempt + 1):
        act = refusal_of(phase, attempt)
        data = run.exchange.statement(Place.statement(run.name, round, act, site))
        said = None if data is None else _signed_by(data, site, keys)
        if isinstance(said, Refusal):
            with suppress(RejectedRelease):
                rounds.check_addressed(run, round, act, site, said)
                yield said.reason


def _known_keys(run: Run, site: str, roster: Roster | None) -> set[str]:
    """Return the keys of a hospital that count for a reader."""
    if roster is not None:
        return {roster.get(site, "")}
    known = run.description
    selves = known.selves(site) if site in known.everybody else ()
    keys = {key for each in selves for key in (each.public_key, each.accepted_with)}
    return {known.roster.get(site, ""), *keys, *_keys_of(run, site), *_given_up(run, site)}


def _given_up(run: Run, site: str) -> Iterator[str]:
    """Yield the keys that a hospital has revoked, each signed for with itself."""
    for place in sorted(run.exchange.statements_of(site)):
        if not place.rpartition("/")[2].startswith("revoked."):
            continue
        data = run.exchange.statement(place) or b""
        with suppress(ValueError, LookupError, TypeError):
            key = str(json.loads(data)["statement"]["public_key"])
            yield Revocation.model_validate(verified(data, site, {site: key})).public_key


def _declared(of: Acceptance | Participant) -> tuple[object, ...]:
    told = (of.declared_training, of.declared_patients, of.steps, of.budget, of.group, of.cross_site)
    return *told, of.version, of.code_sha256


def _keys_of(run: Run, site: str) -> set[str]:
    """Return the keys with which a hospital has signed what the records hold."""
    return {r.public_key for record in run.records() for r in record.releases if r.site == site}


def _signed_by(data: bytes, site: str, keys: set[str]) -> Statement | None:
    """Return a hospital's statement, None where no key of its has signed one."""
    for key in sorted(keys):
        with suppress(BadSignature, RejectedRelease, ValueError):
            return parse_statement(verified(data, site, {site: key}))
    return None


def _of_releases(
    run: Run, records: Sequence[RoundRecord], before: RoundRecord, record: RoundRecord
) -> Iterator[str]:
    if record.base_sha256 != before.model_sha256:
        yield f"Round {record.round} starts from another model than round {before.round} ended with."
    if len(record.releases) < run.study.sites.min:
        yield f"Round {record.round} took fewer releases than the study's minimum."
    for release in record.releases:
        where = f"The release of {release.site} in round {record.round}"
        due = record.round - release.staleness
        late = run.study.sites.staleness
        if not 0 <= release.staleness <= (late.rounds if late else 0):
            yield f"{where} is later than the study takes one."
            continue
        try:
            said = _hospitals(run, due, "contribute", release.site, release.public_key, release)
        except (BadSignature, RejectedRelease, LookupError) as error:
            yield f"{where}: {error}"
            continue
        if not isinstance(said, ReleaseManifest):
            yield f"{where} is a {said.kind}."
            continue
        same = ("payload_sha256", "payload_bytes", "event", "epsilon", "epsilon_reported",
                "plain_releases", "noise", "ledger_head")  # fmt: skip
        if other := [name for name in same if getattr(said, name) != getattr(release, name)]:
            yield f"{where}: the record has another {other[0]} than the hospital signed."
        declared = run.description.member(release.site, due).declared_training
        if said.declared_training != declared:
            yield f"{where} is of another number of patients than {release.site} has declared."
        if said.base_sha256 != records[due - 1].model_sha256:
            yield f"{where} starts from another model than the round before it ended with."
        if said.chain_head != _head_before(records, due - 1):
            yield f"{where} was signed upon another chain of records than this."
        if not math.isclose(release.weight, rounds.weight_of(run, record.round, said)):
            yield f"{where} has another weight than its declared patients."
        yield from _of_cost(run, records, record, said, where)
        path = rounds.release_path(run, record.round, release.site)
        if not path.exists() or sha256_of(path.read_bytes()) != release.payload_sha256:
            yield f"{where}: its stored tensors are not those that it names."


def _hospitals(
    run: Run, round: int, phase: str, site: str, key: str, named: RoundRecord | object
) -> Statement:
    """Return a hospital's statement as the exchange has it, by the hash that a record names."""
    data = run.exchange.statement(Place.statement(run.name, round, phase, site))
    if data is None:
        raise LookupError("its statement is not in the exchange.")
    if sha256_of(data) != getattr(named, "statement_sha256", ""):
        raise LookupError("the exchange has another statement than the record names.")
    statement = parse_statement(verified(data, site, {site: key}))
    rounds.check_addressed(run, round, phase, site, statement)
    return statement


def _head_before(records: Sequence[RoundRecord], round: int) -> str:
    """Return the head of the chain when a round's model was published."""
    return records[round - 1].sha256 if round else GENESIS


def _of_cost(
    run: Run, records: Sequence[RoundRecord], record: RoundRecord, said: ReleaseManifest, where: str
) -> Iterator[str]:
    """Yield where a release cost less than the study's mechanism does, or less than one before it."""
    try:
        rounds.check_cost(run, said, records[: record.round])
    except ValueError as error:
        yield f"{where}: {error}."
    spent = [
        r.epsilon
        for each in records[: record.round]
        for r in each.releases
        if r.site == said.site and r.epsilon is not None
    ]
    if said.epsilon is not None and spent and said.epsilon < spent[-1] * (1 - TOLERANCE):
        yield f"{where} states a smaller epsilon than an earlier one."


def _twice(records: Sequence[RoundRecord]) -> Iterator[str]:
    seen: dict[str, int] = {}
    for record in records:
        for release in record.releases:
            for what in (release.statement_sha256, f"{release.site} {release.ledger_head}"):
                if what in seen:
                    yield (
                        f"The release of {release.site} in round {record.round} is that of round "
                        f"{seen[what]} once more."
                    )
                    break
                seen[what] = record.round


def _of_scores(run: Run, records: Sequence[RoundRecord], record: RoundRecord) -> Iterator[str]:
    if record.scores.keys() != record.scored.keys() or record.metrics.keys() != record.scored.keys():
        yield f"The record of round {record.round} has scores that it names no statement for."
        return
    for site, signed in sorted(record.scored.items()):
        where = f"The scores of {site} in round {record.round}"
        try:
            said = _hospitals(run, record.round, "evaluate", site, signed.public_key, signed)
        except (BadSignature, RejectedRelease, LookupError) as error:
            yield f"{where}: {error}"
            continue
        if not isinstance(said, Scores) or said.model_sha256 != record.model_sha256:
            yield f"{where} are of another model."
        elif (said.metrics, said.metrics_policy) != (record.scores[site], record.metrics[site]):
            yield f"{where}: the record has other numbers than the hospital signed."
        elif said.chain_head != _head_before(records, record.round):
            yield f"{where} were signed upon another chain of records than this."
    quality = rounds.quality_of(run, record.round, record.scores)
    if not _alike(quality, record.quality):
        yield f"The quality of round {record.round} is not the mean of its scores."
    for site in sorted(run.description.everybody.keys() - record.scored.keys() - record.unscored.keys()):
        place = Place.statement(run.name, record.round, "evaluate", site)
        if run.exchange.statement(place) is not None:
            yield f"The scores of {site} in round {record.round} are not on record, nor is why."


def _of_comparisons(run: Run, before: RoundRecord, record: RoundRecord) -> Iterator[str]:
    if record.compared.keys() != record.cross_site.keys():
        yield f"The record of round {record.round} compares what it names no statement for."
    if not run.study.is_compared(record.round):
        return
    released = dict(_released(run, before, record))
    for site, sha256 in sorted(released.items()):
        try:
            place = Place.released(run.name, record.round, site)
            said = ModelManifest.model_validate(_coordinators(run, place))
        except (BadSignature, ValidationError, LookupError) as error:
            if _has_stayed(run, site):  # it may have left before models were compared
                yield f"The model that {site} has released in round {record.round}: {error}"
            continue
        named = (said.run, said.round, said.study_sha256, said.of, said.model_sha256, said.chain_head)
        if named != (run.name, record.round, run.study.sha256, site, sha256, before.sha256):
            yield f"The statement on what {site} has released in round {record.round} is about another."
    for site, signed in sorted(record.compared.items()):
        where = f"The comparison of {site} in round {record.round}"
        try:
            told = _hospitals(run, record.round, "compare", site, signed.public_key, signed)
        except (BadSignature, RejectedRelease, LookupError) as error:
            yield f"{where}: {error}"
            continue
        if not isinstance(told, Comparison) or told.metrics != record.cross_site.get(site):
            yield f"{where}: the record has other numbers than the hospital signed."
        elif any(released.get(of) != sha256 for of, sha256 in told.models.items()):
            yield f"{where} is of other models than the hospitals have released."
    for site in sorted(
        run.description.everybody.keys() - record.compared.keys() - record.uncompared.keys()
    ):
        data = run.exchange.statement(Place.statement(run.name, record.round, "compare", site))
        said_there = None if data is None else _signed_by(data, site, _known_keys(run, site, None))
        if isinstance(said_there, Comparison) and said_there.metrics:
            yield f"The comparison of {site} in round {record.round} is not on record, nor is why."


def _released(run: Run, before: RoundRecord, record: RoundRecord) -> Iterator[tuple[str, str]]:
    """Yield the hospitals that let their released models be compared, each with its model's sha256."""
    for release in record.releases:
        member = run.description.member(release.site, record.round)
        if release.staleness == 0 and member.cross_site:
            data = rounds.released_model(run, record.round, before, release.site)
            yield release.site, sha256_of(data)


def _alike(a: dict[str, float], b: dict[str, float]) -> bool:
    return a.keys() == b.keys() and all(math.isclose(a[name], b[name], abs_tol=1e-12) for name in a)


def _of_models(run: Run, records: Sequence[RoundRecord]) -> Iterator[str]:
    """Yield where a model is not what its round's releases make of the one before."""
    for record in records:
        try:
            said = ModelManifest.model_validate(_coordinators(run, Place.model(run.name, record.round)))
            _ = run.model(record)
        except (BadSignature, ValidationError, LookupError) as error:
            yield f"The model of round {record.round}: its statement: {error}"
            return
        except (CorruptCheckpoint, OSError) as error:
            yield f"The model of round {record.round}: {error}"
            return
        named = (said.run, said.round, said.study_sha256, said.model_sha256, said.chain_head)
        due = (run.name, record.round, run.study.sha256, record.model_sha256)
        if named != (*due, _head_before(records, record.round)):
            yield f"The statement of round {record.round}'s model is about another one."
    first = checkpoints.to_bytes(rounds.first_model(run.study))
    if sha256_of(first) != records[0].model_sha256:
        yield "The first model is not the one that the study's seed makes."
    state: Params | None = None
    for before, record in pairwise(records):
        try:
            moved, left = rounds.next_model(
                run, record.round, run.model(before), state, _taken(run, record)
            )
        except (CorruptCheckpoint, ValueError, OSError, LookupError) as error:
            yield f"Round {record.round} can't be re-computed: {error}"
            return
        if sha256_of(checkpoints.to_bytes(moved)) != record.model_sha256:
            yield f"The releases of round {record.round} make another model than the record's."
            return
        yield from _of_state(run.state_path(record.round), left, record)
        state = {name: left[name] for name in left} or state


def _of_state(path: Path, due: Params, record: RoundRecord) -> Iterator[str]:
    if due and (not path.exists() or not _same(StoredParams(path), due)):
        yield f"The strategy's state after round {record.round} is not what its releases make."


def _same(a: Params, b: Params) -> bool:
    try:
        return a.keys() == b.keys() and P.norm(P.subtract(a, b)) == 0
    except ValueError:
        return False


def _taken(run: Run, record: RoundRecord) -> Answers:
    """Return the releases of a round as the exchange has them; their signatures are checked before."""
    taken: dict[str, Statement] = {}
    for release in record.releases:
        due = record.round - release.staleness
        taken[release.site] = _hospitals(
            run, due, "contribute", release.site, release.public_key, release
        )
    return Answers(taken, {release.site: release for release in record.releases}, {})


def _of_decisions(
    run: Run, records: Sequence[RoundRecord], known: Sequence[decisions.Decision], anchors: Anchors
) -> Iterator[str]:
    by_round = {record.round: record for record in records}
    people = anchors.people
    if people is None and any(each.signed for each in known):
        people = decisions.load_people(run.home)
    if anchors.decision and anchors.decision not in decisions.heads(run):
        yield f"The decision {anchors.decision}, which you know of, is not among the run's."
    for decision in known:
        verdict = decision.verdict
        if verdict and people and not people.knows(verdict.person, verdict.role, decision.public_key):
            yield f"Decision {decision.number} has a key of {verdict.person} that people.yaml has not."
        terms = decision.terms
        record = by_round.get(terms.round) if terms else None
        if terms is None or record is None or decisions.terms_of(run, record) != terms:
            yield f"Decision {decision.number} is about no model of this run."
        elif decision.outcome and decision.outcome.what == "released":
            met = {e.criterion for e in decision.outcome.evidence if e.is_met}
            missing = criteria_of(run.study) - met
            before = known[: decision.number - 1]
            given = decisions.approvals(before, terms, decision.at_ms)
            if missing or set(given) != set(decisions.ROLES):
                yield f"Decision {decision.number} released a model without what is due for it."
    here = decisions.folder_bytes(run)
    for number in range(1, len(here) + 2):
        there = run.exchange.statement(Place.decision(run.name, number))
        if there != here.get(number):
            yield f"Decision {number} is not the same here and in the exchange."
