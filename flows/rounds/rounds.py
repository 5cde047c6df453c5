"""What the coordinator does in a round, without knowing how hospitals are reached."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flows.rounds import ensemble_distillation
from flows.runs.run import GENESIS, Accepted, BrokenRun, RoundRecord, Run, Signed
from flows.runs.versions import installed
from models import checkpoints
from models import params as P
from models.checkpoints import CorruptCheckpoint, StoredParams
from models.files import sha256_of, write_atomically
from models.objectives import SPREAD, build_task
from models.params import Params
from models.prior import learn_prior
from models.repeatable import one_thread
from models.strategies import Contribution
from privacy.accounting import TOLERANCE, PrivacyEvent, epsilon
from privacy.mechanisms import mechanism_for
from privacy.release import (
    Acceptance,
    Comparison,
    Departure,
    ModelManifest,
    Refusal,
    RejectedRelease,
    Release,
    ReleaseManifest,
    Revocation,
    Scores,
    Statement,
    check_release,
    parse_statement,
)
from privacy.signing import BadSignature, canonical, sign, verified
from sites.exchange.exchange import COORDINATOR
from sites.exchange.places import Place
from sites.orders import Order, Phase, refusal_of
from sites.study import Study

PHASES: Mapping[str, Sequence[Phase]] = {"none": ("contribute",), "local": ("contribute",)}
"""What hospitals are asked in a round, one after the other, by privacy mode."""

SILENT = "it did not answer within the deadline"
REFUSED = "it refused: "
UNASKED = "it took part no more when the model was scored"
OTHER_MODEL = "its scores are of another model"


class TooFewHospitals(Exception):
    """Fewer hospitals than the study's minimum; the message lists each one's reason.

    `begun` tells whether the run had begun: before, nothing was recorded and nothing spent.
    """

    def __init__(self, found: int, study: Study, reasons: Mapping[str, str], round: int | None) -> None:
        self.begun, self.reasons = round is not None, dict(reasons)
        when = f"in round {round}" if self.begun else "to start a run"
        lines = "".join(f"\n  {site}: {reason}" for site, reason in sorted(reasons.items()))
        super().__init__(
            f"Expected at least {study.sites.min} hospitals {when} of study {study.name}, "
            f"got {found}.{lines}"
        )


@dataclass(frozen=True)
class Answers:
    """What came of asking hospitals: `taken` by hospital, and why the others' is missing."""

    taken: Mapping[str, Statement]
    signed: Mapping[str, Signed]
    left_out: Mapping[str, str]


def first_model(study: Study) -> dict[str, torch.Tensor]:
    """Return the parameters before training: drawn from the seed, and taught as the prior says."""
    seed = study.seed_for(0, "", "first model")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = study.network.build(study.task.dims, study.task.out_channels)
    if study.prior:
        shape, num_labels = study.preprocessing.shape, len(study.task.labels)
        loss = build_task(study.task).loss
        with one_thread():
            learn_prior(network, loss, shape, num_labels, study.prior, study.synthesis, seed)
    return P.of(network)


def publish_model(run: Run, round: int, params: Params) -> str:
    """Store a global model, lay it down in the exchange with a signed statement; return its sha256.

    A model that was laid down before an interruption stays the round's, whatever came out this time.
    """
    if published := _published(run, round):
        return published
    data = checkpoints.to_bytes(params)
    write_atomically(run.model_path(round), data)
    return _lay_down(run, round, data, Place.model(run.name, round))


def _lay_down(run: Run, round: int, data: bytes, place: str, of: str = "") -> str:
    """Lay a model down in the exchange, then the signed statement that names it; return its sha256."""
    manifest = ModelManifest(
        kind="model",
        study=run.study.name,
        study_sha256=run.study.sha256,
        run=run.name,
        round=round,
        model_sha256=run.exchange.put_object(data, COORDINATOR),
        chain_head=run.head,
        of=of,
    )
    statement = sign(manifest.model_dump(mode="json"), "coordinator", run.key)
    run.exchange.put_statement(place, statement)
    return manifest.model_sha256


def comparing(run: Run, round: int) -> list[str]:
    """Return the hospitals whose released models of a round are compared, at each of them."""
    members, answers = run.description.participants, decided(run, round)
    taken = answers.taken if answers else {}
    in_time = {site for site, release in taken.items() if release.round == round}
    return sorted(site for site in members.keys() & in_time if members[site].cross_site)


def publish_released(run: Run, round: int, base: RoundRecord) -> None:
    """Lay down, signed, the model that each hospital which allows it has released in a round."""
    for site in comparing(run, round):
        data = released_model(run, round, base, site)
        _lay_down(run, round, data, Place.released(run.name, round, site), of=site)


def released_model(run: Run, round: int, base: RoundRecord, site: str) -> bytes:
    """Return the model that a hospital has released: its round's base with its change alone."""
    params = run.model(base)
    change = StoredParams(release_path(run, round, site))
    shared = P.add(run.study.bound_strategy().shared(params), change)
    return checkpoints.to_bytes({**params, **shared})


def _published(run: Run, round: int) -> str | None:
    data = run.exchange.statement(Place.model(run.name, round))
    if data is None:
        return None
    said = ModelManifest.model_validate(verified(data, "coordinator", {"coordinator": run.public_key}))
    checkpoints.read(run.model_path(round), said.model_sha256)
    return said.model_sha256


def answers(run: Run, round: int, phase: Phase, sites: Sequence[str]) -> Answers:
    """Return the hospitals' statements on a phase of a round, read from the exchange and verified."""
    taken: dict[str, Statement] = {}
    signed: dict[str, Signed] = {}
    left_out: dict[str, str] = {}
    for site in sorted(sites):
        try:
            check_key_is_good(run, site)
            if has_left(run, site):
                left_out[site] = "it has left the study"
                continue
            found = _statement(run, round, phase, site)
            if found is None:
                left_out[site] = run.failure(round, phase, site) or SILENT
                continue
            purpose, data = found
            statement = parse_statement(verified(data, site, run.description.roster))
            check_addressed(run, round, purpose, site, statement)
        except (BadSignature, RejectedRelease, CorruptCheckpoint, OSError) as error:
            left_out[site] = f"its statement was rejected: {error}"
            continue
        if isinstance(statement, Refusal):
            left_out[site] = f"{REFUSED}{statement.reason}"
        else:
            taken[site] = statement
            key = run.description.roster[site]
            signed[site] = Signed(statement_sha256=sha256_of(data), public_key=key)
    return Answers(taken, signed, left_out)


def _statement(run: Run, round: int, phase: Phase, site: str) -> tuple[str, bytes] | None:
    """Return a hospital's statement on a phase, or its refusal in this attempt, with its purpose."""
    for act in (phase, refusal_of(phase, run.attempt)):
        data = run.exchange.statement(Place.statement(run.name, round, act, site))
        if data is not None:
            return act, data
    return None


def has_left(run: Run, site: str) -> bool:
    """Return whether a hospital said, with the key of the roster, that it has left the study."""
    data = run.exchange.statement(Place.statement(run.name, 0, "leave", site))
    if data is None:
        return False
    try:
        check_key_is_good(run, site)
        said = parse_statement(verified(data, site, run.description.roster))
        check_addressed(run, 0, "leave", site, said)
    except (BadSignature, RejectedRelease):
        return False
    return isinstance(said, Departure)


def check_key_is_good(run: Run, site: str) -> None:
    """Raise `RejectedRelease` where a hospital has revoked the key that the roster has for it."""
    key = run.description.roster[site]
    data = run.exchange.statement(Place.revocation(site, key))
    if data is None:
        return
    try:
        said = Revocation.model_validate(verified(data, site, {site: key}))
    except ValueError:  # somebody else's word
        return
    if (said.site, said.public_key) == (site, key):
        raise RejectedRelease("it has revoked its key; put its new one into federation.yaml")


def check_addressed(run: Run, round: int, purpose: str, site: str, statement: Statement) -> None:
    """Raise `RejectedRelease` unless a statement is of this run, round, act and hospital."""
    found = (statement.study_sha256, statement.run, statement.round, statement.purpose, statement.site)
    if found != (run.study.sha256, run.name, round, purpose, site):
        raise RejectedRelease("it is about another study, run, round, act or hospital")
    training = run.study.training
    if isinstance(statement, Acceptance) and not (
        (training.fewest_steps or training.steps) <= statement.steps <= training.steps
    ):
        raise RejectedRelease(f"the study has no place for {statement.steps} steps a round")
    if isinstance(statement, Scores):
        unknown = sorted(statement.metrics.keys() - run.study.metric_names)
        if unknown:
            raise RejectedRelease(f"the study has no metric {unknown[0]!r}")
    if isinstance(statement, Comparison):
        names = {name for metrics in statement.metrics.values() for name in metrics}
        if names - run.study.metric_names or statement.models.keys() != statement.metrics.keys():
            raise RejectedRelease("it compares in a metric that the study has not, or no model")


def order(run: Run, round: int, phase: Phase, site: str) -> Order:
    """Return what a hospital is asked: public values only."""
    return Order(
        phase=phase,
        study=run.study,
        site=site,
        run=run.name,
        round=round,
        attempt=run.attempt,
        exchange=run.description.exchange,
        coordinator=run.public_key,
        models=tuple(comparing(run, round)) if phase == "compare" else (),
    )


def decided(run: Run, round: int) -> Answers | None:
    """Return the releases that a round took in before it was interrupted, None if it did not.

    A model made of them may be out already, so the round keeps to them, whatever became of a hospital.
    """
    try:
        note = json.loads(_decision_path(run, round).read_bytes())
    except FileNotFoundError:
        return None
    found: dict[str, Statement] = {}
    signed = {site: Signed.model_validate(each) for site, each in note["taken"].items()}
    for site, each in signed.items():
        place = Place.statement(run.name, note["rounds"][site], "contribute", site)
        data = run.exchange.statement(place)
        if data is None or sha256_of(data) != each.statement_sha256:
            raise BrokenRun(f"The releases of round {round} are not those that it took in.")
        found[site] = parse_statement(verified(data, site, {site: each.public_key}))
    return Answers(found, signed, note["left_out"])


def take_in(run: Run, round: int, base: RoundRecord, answers: Answers) -> Answers:
    """Return the answers less the releases that do not fit; raise `TooFewHospitals` if too few do.

    Each release's tensors lie in the run's `releases/` afterwards, and the round is decided.
    """
    template = run.study.bound_strategy().shared(run.model(base))
    late = _late(run, round, sorted(answers.left_out))
    left_out = {site: why for site, why in answers.left_out.items() if site not in late.taken}
    bases = {record.round: record for record in run.records()}
    answers = Answers({**answers.taken, **late.taken}, {**answers.signed, **late.signed}, left_out)
    taken = {}
    for site, manifest in answers.taken.items():
        try:
            _check_release(run, round, bases.get(manifest.round - 1, base), manifest, template)
            taken[site] = manifest
        except (ValueError, OSError) as error:
            # Rejected, corrupt, or with declared numbers for which the study has no mechanism.
            left_out[site] = f"its release was rejected: {error}"
    if len(taken) < run.study.sites.min:
        raise TooFewHospitals(len(taken), run.study, left_out, round)
    signed = {site: answers.signed[site] for site in taken}
    rounds = {site: manifest.round for site, manifest in taken.items()}
    kept = {site: each.model_dump() for site, each in signed.items()}
    note = canonical({"taken": kept, "rounds": rounds, "left_out": left_out})
    write_atomically(_decision_path(run, round), note)
    return Answers(taken, signed, left_out)


def _late(run: Run, round: int, sites: Sequence[str]) -> Answers:
    """Return the newest late release of each of `sites` that may still count, as the study says.

    One counts if its hospital has sent none since, in a round for which it was asked.
    """
    staleness, records = run.study.sites.staleness, run.records()
    taken: dict[str, Statement] = {}
    signed: dict[str, Signed] = {}
    if staleness is None:
        return NO_ANSWERS
    for site in sites:
        sent = [r.round - a.staleness for r in records for a in r.releases if a.site == site]
        first = max([*sent, run.description.participants[site].since - 1, round - staleness.rounds - 1])
        for number in range(round - 1, first, -1):
            found = answers(run, number, "contribute", [site])
            if site in found.taken:
                taken |= found.taken
                signed |= found.signed
                break
    return Answers(taken, signed, {})


def _check_release(
    run: Run, round: int, base: RoundRecord, manifest: Statement, template: Params
) -> None:
    if not isinstance(manifest, ReleaseManifest):
        raise RejectedRelease(f"expected a release, got {manifest.kind}")
    if manifest.content != run.study.export:
        raise RejectedRelease(f"expected {run.study.export}, got {manifest.content}")
    if manifest.base_sha256 != base.model_sha256:
        raise RejectedRelease("it starts from another model than the round's")
    declared = run.description.member(manifest.site, manifest.round).declared_training
    if manifest.declared_training != declared:
        raise RejectedRelease(f"expected the declared {declared} patients of its acceptance")
    check_cost(run, manifest, run.records())
    path = release_path(run, round, manifest.site)
    most = sum(tensor.numel() * tensor.element_size() for tensor in template.values())
    if run.study.export == "predictions":
        most = ensemble_distillation.most_bytes(run)
    run.exchange.fetch_object(manifest.payload_sha256, manifest.site, path, max_bytes=2 * most + 2**20)
    if path.stat().st_size != manifest.payload_bytes:
        raise RejectedRelease(f"expected {manifest.payload_bytes:,} bytes as its manifest says")
    if run.study.export == "predictions":
        ensemble_distillation.check_predictions(run, path, manifest)
        return
    tensors = checkpoints.read(path, manifest.payload_sha256)
    check_release(Release(manifest, tensors), template)


def check_cost(run: Run, manifest: ReleaseManifest, earlier: Sequence[RoundRecord]) -> None:
    """Reject a release whose stated cost is not what the study's own mechanism costs.

    Args:
        earlier: the rounds before the one that takes it in.
    """
    privacy = run.study.privacy
    if privacy.mode == "none":
        if manifest.event is not None:
            raise RejectedRelease("it states a privacy event in a study without privacy")
        return
    if manifest.event is None or manifest.epsilon is None:
        raise RejectedRelease("it states no privacy event")
    if manifest.delta != privacy.delta:
        raise RejectedRelease(f"it states its epsilon at another delta than {privacy.delta:g}")
    if set(manifest.epsilon_reported) != set(privacy.accountants):
        raise RejectedRelease("it reports the epsilons of other accountants than the study's")
    event = mechanism_for(
        privacy,
        rounds=run.study.rounds,
        steps=run.description.member(manifest.site, manifest.round).steps,
        lot=run.study.training.lot_size,
        declared=manifest.declared_training,
    ).event
    if PrivacyEvent(**manifest.event.model_dump()) != event:
        raise RejectedRelease("its privacy event is not the study's")
    spent = [r.event for record in earlier for r in record.releases if r.site == manifest.site]
    before = [PrivacyEvent(**each.model_dump()) for each in spent if each]
    least = epsilon([*before, event], privacy.delta)
    if not least * (1 - TOLERANCE) <= manifest.epsilon:
        raise RejectedRelease(f"it states epsilon {manifest.epsilon}, its releases cost {least:.4f}")


def aggregate(run: Run, round: int, base: RoundRecord, taken: Answers) -> Params:
    """Return the next global model, and keep the strategy's state beside it."""
    path = run.state_path(round - 1)
    before = StoredParams(path) if path.exists() else None
    moved, state = next_model(run, round, run.model(base), before, taken)
    if state:
        checkpoints.write(run.state_path(round), state)
    return moved


def next_model(
    run: Run, round: int, params: Params, state: Params | None, taken: Answers
) -> tuple[Params, Params]:
    """Return the next global model and the strategy's state: the strategy over the round's releases.

    Weights are the declared numbers of training patients; tensors are read one at a time.

    Args:
        state: of the round before, None before the first.
    """
    releases = [
        Contribution(
            weight_of(run, round, manifest),
            StoredParams(release_path(run, round, site)),
            run.study.training.model_copy(
                update={"steps": run.description.member(site, manifest.round).steps}
            ).length(manifest.round, run.study.rounds),
        )
        for site, manifest in sorted(taken.taken.items())
    ]
    if run.study.export == "predictions":
        return ensemble_distillation.student_of(run, round, params, releases), {}
    strategy = run.study.bound_strategy()
    if state is None:
        state = strategy.init(strategy.shared(params))
    return strategy.next_params(params, state, releases)


def weight(run: Run, round: int, site: str) -> int:
    """Return n_k: the hospital's declared number of training patients, as it holds in a round."""
    return run.description.member(site, round).declared_training


def weight_of(run: Run, round: int, release: Statement) -> float:
    """Return how much a release counts in a round: less where it was due in an earlier one."""
    staleness, late = run.study.sites.staleness, round - release.round
    share = staleness.share(late) if staleness and late else 1.0
    declared = isinstance(release, ReleaseManifest) and release.declared_training
    return (declared or weight(run, release.round, release.site)) * share


def record(
    run: Run,
    round: int,
    model_sha256: str,
    taken: Answers,
    scored: Answers,
    started: float,
    compared: Answers | None = None,
) -> RoundRecord:
    """Return the record of a round, chained to the one before."""
    before = run.records()
    spoken = {
        site: statement
        for site, statement in scored.taken.items()
        if isinstance(statement, Scores) and statement.model_sha256 == model_sha256
    }
    scores = {site: dict(statement.metrics) for site, statement in spoken.items()}
    compared = compared or NO_ANSWERS
    cross_site = {
        site: statement.metrics
        for site, statement in compared.taken.items()
        if isinstance(statement, Comparison) and statement.metrics
    }
    return RoundRecord(
        study=run.study.name,
        study_sha256=run.study.sha256,
        run=run.name,
        round=round,
        previous=before[-1].sha256 if before else GENESIS,
        base_sha256=before[-1].model_sha256 if before else GENESIS,
        model_sha256=model_sha256,
        releases=tuple(
            _accepted(run, round, manifest, taken.signed[site])
            for site, manifest in sorted(taken.taken.items())
            if isinstance(manifest, ReleaseManifest)
        ),
        left_out=dict(taken.left_out),
        scores=scores,
        metrics={site: statement.metrics_policy for site, statement in spoken.items()},
        scored={site: scored.signed[site] for site in spoken},
        unscored={
            **dict.fromkeys(scored.taken.keys() - spoken.keys(), OTHER_MODEL),
            **dict.fromkeys(_unasked(run, round, taken, scored), UNASKED),
            **scored.left_out,
        },
        cross_site=cross_site,
        compared={site: compared.signed[site] for site in cross_site},
        uncompared=dict(compared.left_out),
        quality=quality_of(run, round, scores),
        train_seconds=run.waits(round, "contribute"),
        seconds=time.time() - started,
        finished_ms=int(time.time() * 1000),
        software=installed(),
    )


def _unasked(run: Run, round: int, taken: Answers, scored: Answers) -> set[str]:
    """Return who began a round and takes part no more: it may have scored, and is asked no more."""
    if not run.study.is_evaluated(round):
        return set()
    begun = taken.taken.keys() | taken.left_out.keys() if round else run.description.everybody.keys()
    return (begun & run.description.everybody.keys()) - scored.taken.keys() - scored.left_out.keys()


def _accepted(run: Run, round: int, manifest: ReleaseManifest, signed: Signed) -> Accepted:
    site = manifest.site
    return Accepted(
        site=site,
        statement_sha256=signed.statement_sha256,
        public_key=signed.public_key,
        weight=weight_of(run, round, manifest),
        staleness=round - manifest.round,
        steps=run.description.member(site, manifest.round).steps,
        **manifest.model_dump(
            include={
                "payload_sha256", "payload_bytes", "event", "epsilon", "epsilon_reported",
                "plain_releases", "noise", "ledger_head",
            }
        ),
    )  # fmt: skip


def quality_of(run: Run, round: int, scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return each metric's mean over the hospitals that published it, by declared patients.

    Of intervals and worst cases there is no mean.
    """
    every = {name for metrics in scores.values() for name in metrics}
    names = sorted(name for name in every if name.partition("/")[0] not in SPREAD)
    quality = {}
    for name in names:
        pairs = [(weight(run, round, site), m[name]) for site, m in scores.items() if name in m]
        quality[name] = sum(n * value for n, value in pairs) / sum(n for n, _ in pairs)
    return quality


def _decision_path(run: Run, round: int) -> Path:
    return run.folder / "releases" / f"round-{round:03d}" / "decided.json"


def release_path(run: Run, round: int, site: str) -> Path:
    """Return where a round keeps the tensors of a hospital's release."""
    return run.folder / "releases" / f"round-{round:03d}" / f"{site}.safetensors"


NO_ANSWERS = Answers({}, {}, {})
"""For round 0, in which nobody is asked to contribute."""
