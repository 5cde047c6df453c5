"""People who decide about a finished run, and records changed for their gate."""

import time

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flows.decisions import verdicts
from flows.decisions.chain import record_verdict
from flows.decisions.people import People, Person
from flows.decisions.verdicts import Verdict, signed_verdict, terms_of
from flows.release import evidence
from flows.runs.records import RoundRecord
from flows.runs.run import Run
from privacy.signing import public_hex, sign
from sites.study_sections import PromotionConfig

KEYS = {name: Ed25519PrivateKey.generate() for name in ("ada", "bo")}
ROLES = {"ada": "clinician", "bo": "officer"}
PEOPLE = People(people={n: Person(role=ROLES[n], key=public_hex(k)) for n, k in KEYS.items()})


def with_people(run: Run) -> Run:
    """Return a run whose coordinator knows the people; nobody has decided yet."""
    (run.home.folder / "people.yaml").write_text(yaml.safe_dump(PEOPLE.model_dump()))
    return run


def say(run: Run, record: RoundRecord, name: str, word: str = "approved", days: int = 30) -> None:
    text = signed_verdict(terms_of(run, record), word, name, ROLES[name], KEYS[name], days)
    record_verdict(run, text, PEOPLE)


def say_for(run: Run, record: RoundRecord, name: str, seconds: float) -> float:
    """Approve a model for seconds; return when that is over, as `time.time` has it."""
    now = int(time.time() * 1000)
    said = Verdict(
        word="approved", person=name, role=ROLES[name], terms=terms_of(run, record), at_ms=now,
        expires_ms=now + int(seconds * 1000),
    )  # fmt: skip
    record_verdict(run, sign(said.model_dump(mode="json"), name, KEYS[name]).decode(), PEOPLE)
    return said.expires_ms / 1000


def with_criteria(run: Run, **criteria: object) -> Run:
    """Return the run as if its study had asked for something else."""
    promotion = PromotionConfig.model_validate({"metric": "dice", **criteria})
    study = run.study.model_copy(update={"promotion": promotion})
    return Run(run.folder, run.home, run.description.model_copy(update={"study": study}))


def with_releases(record: RoundRecord, **changes: object) -> RoundRecord:
    """Return a record whose releases state something else."""
    hospitals = {}
    for site, each in record.hospitals.items():
        statement = each.release.statement.model_copy(update=changes)
        release = each.release.model_copy(update={"statement": statement})
        hospitals[site] = each.model_copy(update={"release": release})
    return record.model_copy(update={"hospitals": hospitals})


def with_metrics(record: RoundRecord, **metrics: dict[str, float] | None) -> RoundRecord:
    """Return a record in which hospitals have published other metrics, or none."""
    hospitals = dict(record.hospitals)
    for site, values in metrics.items():
        scores = hospitals[site].scores
        statement = scores.statement.model_copy(update={"metrics": values})
        scores = None if values is None else scores.model_copy(update={"statement": statement})
        hospitals[site] = hospitals[site].model_copy(update={"scores": scores})
    return record.model_copy(update={"hospitals": hospitals})


def rewritten(run: Run, **changes: object) -> Run:
    """Return the run with other releases on record, each chained to the one before."""
    previous = run.records()[0].sha256
    for record in run.records()[1:]:
        kept = with_releases(record, **changes).model_copy(update={"previous": previous})
        previous = kept.sha256
        (run.folder / "rounds" / f"round-{record.round:03d}.json").write_bytes(kept.data)
    return run


def found(run: Run, **criteria: object) -> verdicts.Evidence:
    asked = PromotionConfig.model_validate({"metric": "dice", **criteria})
    (only,) = evidence.measured(run, run.records()[-1], asked)
    return only
