"""Releases of a round: checked against the study's own costs and shapes, then accepted permanently."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import ValidationError

from flows.rounds import ensemble_distillation
from flows.rounds.statements import NO_ANSWERS, Answers, TooFewHospitals, answers
from flows.rounds.sum_progress import act_in, progress, terms_of
from flows.runs.record_files import BrokenRun
from flows.runs.records import Absence, RoundRecord, Signed, SumRecord, head_before
from flows.runs.run import Run
from models import checkpoints
from models import params as P
from models.checkpoints import StoredParams
from models.config import Config
from models.files import sha256_of, write_atomically
from models.params import Params
from privacy.accounting import TOLERANCE, PrivacyEvent, epsilon
from privacy.eight_bits import EightBits
from privacy.mechanisms import AdaptiveClip, Mechanism, mechanism_for
from privacy.release import Release, check_release
from privacy.secure_aggregation.fixed_point import MASKED
from privacy.signing import canonical, verified
from privacy.statements import RejectedRelease, ReleaseManifest, Statement
from sites.exchange.places import Place


class _Decided(Config):
    """The releases that a round accepted, and why others are missing."""

    taken: Mapping[str, Signed[ReleaseManifest]]
    absent: Mapping[str, Absence]


def decided(run: Run, round: int) -> Answers | None:
    """Return the releases that a round accepted before it was interrupted, None if it did not.

    A model made of them may be published already, so the round keeps to them, even if a hospital has
    left since.

    Raises:
        BrokenRun: the exchange has other releases.
    """
    try:
        found = _Decided.model_validate_json(_decision_path(run, round).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise BrokenRun(f"{_decision_path(run, round)}: {error}") from error
    for site, signed in found.taken.items():
        place = Place.statement(run.name, signed.statement.round, signed.statement.purpose, site)
        written = run.exchange.answers(place)
        data = next((each for each in written if sha256_of(each) == signed.statement_sha256), None)
        if data is None:
            raise BrokenRun(f"The releases of round {round} are not those that it accepted.")
        verified(data, site, {site: signed.public_key})
    return Answers(found.taken, found.absent)


def accept_releases(
    run: Run, round: int, base: RoundRecord, answers: Answers, fewest: int | None = None
) -> Answers:
    """Return the answers less the releases that do not fit; raise `TooFewHospitals` if too few do.

    Each accepted release's tensors are in the run's `releases/` afterwards, and the round is decided.

    Args:
        fewest: the least number of releases; the study's minimum by default.
    """
    template = run.study.bound_strategy().shared(run.model(base))
    late = _late(run, round, sorted(answers.absent))
    absent = {site: why for site, why in answers.absent.items() if site not in late.taken}
    bases = {record.round: record for record in run.records()}
    taken = {}
    for site, signed in {**answers.taken, **late.taken}.items():
        manifest = signed.statement
        try:
            _check_release(run, round, bases.get(manifest.round - 1, base), manifest, template)
            taken[site] = signed
        except (ValueError, OSError) as error:
            # Rejected, corrupt, or with declared numbers for which the study has no mechanism.
            absent[site] = Absence(kind="rejected", text=str(error))
            run.home.security_log.write(
                "answer_rejected", site, run=run.name, round=round, why=str(error)
            )
    if len(taken) < (fewest or run.study.sites.min):
        raise TooFewHospitals(len(taken), run.study, absent, round)
    content = {
        "taken": {site: signed.model_dump(mode="json") for site, signed in taken.items()},
        "absent": {site: why.model_dump(mode="json") for site, why in absent.items()},
    }
    write_atomically(_decision_path(run, round), canonical(content))
    return Answers(taken, absent)


def _late(run: Run, round: int, sites: Sequence[str]) -> Answers:
    """Return the newest late release of each of `sites` that may still count, as the study says.

    A late release counts if its hospital has sent none since, in a round for which it was asked.
    """
    staleness, records = run.study.sites.staleness, run.records()
    taken: dict[str, Signed[Statement]] = {}
    if staleness is None:
        return NO_ANSWERS
    for site in sites:
        sent = [r.releases[site].statement.round for r in records if site in r.releases]
        first = max([*sent, run.description.participants[site].since - 1, round - staleness.rounds - 1])
        for number in range(round - 1, first, -1):
            found = answers(run, number, "contribute", [site]).taken
            if site in found:
                taken |= found
                break
    return Answers(taken, {})


def _check_release(
    run: Run, round: int, base: RoundRecord, manifest: Statement, template: Params
) -> None:
    if not isinstance(manifest, ReleaseManifest):
        raise RejectedRelease(f"expected a release, got {manifest.kind}")
    if manifest.content != (due := run.study.content_of(manifest.round)):
        raise RejectedRelease(f"expected {due}, got {manifest.content}")
    if manifest.base_sha256 != base.model_sha256:
        raise RejectedRelease("it starts from another model than the round's")
    declared = run.description.member(manifest.site, manifest.round).statement.declared_training
    if manifest.declared_training != declared:
        raise RejectedRelease(f"expected the declared {declared} patients of its acceptance")
    check_cost(run, manifest, run.records())
    _check_masked(run, round, manifest)
    _check_payload(run, round, manifest, template)


def _check_payload(run: Run, round: int, manifest: ReleaseManifest, template: Params) -> None:
    """Fetch a release's tensors and reject them unless they fit manifest and network."""
    path = release_path(run, round, manifest.site)
    numel = P.numel(template)
    most = 4 * numel
    if run.study.export == "predictions":
        most = ensemble_distillation.most_bytes(run)
    run.exchange.fetch_object(manifest.payload_sha256, manifest.site, path, max_bytes=2 * most + 2**20)
    if path.stat().st_size != manifest.payload_bytes:
        raise RejectedRelease(f"expected {manifest.payload_bytes:,} bytes as its manifest says")
    if run.study.export == "predictions":
        ensemble_distillation.check_predictions(run, path, manifest)
        return
    if run.study.is_summed:
        _check_vector(path, manifest, numel)
        return
    if run.study.release_bits == 8:
        tensors = EightBits(checkpoints.read(path, manifest.payload_sha256, dtype=None))
        tensors.check()
        check_release(Release(manifest, tensors), template, largest_change(run, manifest))
        return
    check_release(
        Release(manifest, checkpoints.read(path, manifest.payload_sha256)),
        template,
        largest_change(run, manifest),
    )


def change_of(run: Run, round: int, site: str) -> StoredParams | EightBits:
    """Return the change of the parameters that a hospital released in a round, read lazily."""
    stored = StoredParams(release_path(run, round, site))
    return EightBits(stored) if run.study.release_bits == 8 else stored


def _check_masked(run: Run, round: int, manifest: ReleaseManifest) -> None:
    """Reject a release that is not masked as the round's attempt asks for."""
    if not run.study.is_summed:
        if manifest.masked is not None:
            raise RejectedRelease("it is masked, and the study has no secure sum")
        return
    if manifest.chain_head != head_before(run.records(), round - 1):
        raise RejectedRelease("it was signed upon another chain of records")
    if manifest.masked is not None and manifest.masked.rate != run.rate:
        raise RejectedRelease("it is of another learning rate")
    if not is_masked_as_due(run, progress(run, round), round, manifest):
        raise RejectedRelease("it is masked for another attempt or other members than the round's")


def is_masked_as_due(run: Run, found: SumRecord, round: int, manifest: ReleaseManifest) -> bool:
    """Return whether a release is masked as an attempt at a round's secure sum asks for."""
    masked, members = manifest.masked, found.members("sum-shares")
    terms = terms_of(run, round, len(found.members("sum-keys")), found.attempt)
    honest = terms.honest if run.study.shares_noise else None
    return masked is not None and (
        (masked.attempt, dict(masked.members), masked.rate, masked.honest)
        == (found.attempt, members, run.rate, honest)
    )


def _check_vector(path: Path, manifest: ReleaseManifest, numel: int) -> None:
    """Reject a masked vector of another length or type; what is in it, nobody can see."""
    tensors = checkpoints.read(path, manifest.payload_sha256, torch.int32)
    if tensors.shapes != {MASKED: (numel,)} or dict(manifest.tensors) != tensors.shapes:
        raise RejectedRelease(f"expected one tensor {MASKED!r} of {numel} whole numbers")


def largest_change(run: Run, manifest: ReleaseManifest) -> float:
    """Return the largest L2 norm that a hospital's change in a round can honestly have.

    It is the study's `largest_change`; for weights that were trained under privacy also the length of a
    round's steps times the mechanism's longest step. An adaptive norm may have grown until then, and
    SCAFFOLD adds two corrections, each as long as a step.
    """
    study, privacy = run.study, run.study.privacy
    if privacy.mode == "none" or study.content_of(manifest.round) != "weights":
        return study.largest_change
    steps = run.description.member(manifest.site, manifest.round).statement.steps
    mechanism = mechanism_of(run, manifest.site, manifest.round)
    if isinstance(privacy.clip, AdaptiveClip):
        growth = privacy.clip.rate * privacy.clip.quantile * steps * manifest.round
        mechanism = mechanism.starting_at(privacy.clip.norm * math.exp(min(growth, 100.0)))
    numel = P.numel(run.model(run.records()[0]))
    training = study.training.at_rate(run.rate).model_copy(update={"steps": steps})
    longest = training.length(manifest.round, study.rounds) * mechanism.longest_step(numel)
    return min(study.largest_change, longest * (3 if study.strategy.build().corrects else 1))


def mechanism_of(run: Run, site: str, round: int) -> Mechanism:
    """Return the mechanism of a hospital in a round, by what it declared when it joined.

    Raises:
        ValueError: the study is not private, or has no mechanism for so many patients.
    """
    if run.study.privacy.mode == "none":
        raise ValueError(f"Study {run.study.name} has no privacy.")
    member = run.description.member(site, round).statement
    return mechanism_for(
        run.study.privacy,
        rounds=run.study.rounds,
        steps=member.steps,
        lot=run.study.training.lot_size,
        declared=member.declared_training,
    )


def check_cost(run: Run, manifest: ReleaseManifest, earlier: Sequence[RoundRecord]) -> None:
    """Reject a release whose stated cost is not what the study's own mechanism costs.

    Args:
        earlier: the rounds before the one that accepts it.
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
    event = mechanism_of(run, manifest.site, manifest.round).event
    if PrivacyEvent(**manifest.event.model_dump()) != event:
        raise RejectedRelease("its privacy event is not the study's")
    spent = [r.releases[manifest.site].statement.event for r in earlier if manifest.site in r.releases]
    before = [PrivacyEvent(**each.model_dump()) for each in spent if each]
    least = epsilon([*before, event], privacy.delta)
    if not least * (1 - TOLERANCE) <= manifest.epsilon:
        raise RejectedRelease(f"it states epsilon {manifest.epsilon}, its releases cost {least:.4f}")


def weight_of(run: Run, round: int, release: ReleaseManifest) -> float:
    """Return the weight of a release in a round: declared training patients, less if it is late."""
    staleness, late = run.study.sites.staleness, round - release.round
    share = staleness.share(late) if staleness and late else 1.0
    return release.declared_training * share


def release_path(run: Run, round: int, site: str) -> Path:
    """Return the path of the tensors that a hospital released in a round."""
    return run.folder / "releases" / f"round-{round:03d}" / f"{site}.safetensors"


def _decision_path(run: Run, round: int) -> Path:
    """Return the path of a round's accepted releases; each attempt at a secure sum has its own."""
    act = act_in(run, round, "contribute")
    name = "decided" if act == "contribute" else f"decided-{act}"
    return run.folder / "releases" / f"round-{round:03d}" / f"{name}.json"
