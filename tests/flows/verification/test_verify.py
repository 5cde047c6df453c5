"""What `wardround verify` finds: each thing is altered by itself, and put back."""

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from homes import moved, replaced
from mlflow.tracking import MlflowClient

from flows.decisions import chain
from flows.decisions.chain import record_verdict
from flows.decisions.people import People, Person
from flows.decisions.verdicts import signed_verdict, terms_of
from flows.release import champion, evidence
from flows.rounds import recording, statements
from flows.runs.run import Run
from flows.servers.environment import mlflow_server
from flows.servers.loopback import running
from flows.tracking.check_registry import released_faults
from flows.tracking.tracking import Tracking
from flows.verification.verify import Anchors, faults, lineage_faults
from models.files import sha256_of
from privacy.signing import canonical, public_hex, sign
from privacy.statements import Refusal, Revocation
from sites.exchange.phases import refusal_of
from sites.exchange.places import Place
from sites.hospital import Hospital

Alteration = Callable[[Run], AbstractContextManager[None]]
PEOPLE = {
    "ada": ("clinician", Ed25519PrivateKey.generate()),
    "bo": ("officer", Ed25519PrivateKey.generate()),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Iterator[Run]:
    """A run that two people have approved, with its MLflow server."""
    copied = moved(finished, tmp_path_factory.mktemp("verified") / "home")
    for site in ("north", "south"):  # as among hospitals behind firewalls, who fetch their orders
        order = statements.order(copied, 1, "contribute", site)
        place = Place.order(copied.name, 1, "contribute", order.attempt, site)
        data = sign(order.model_dump(mode="json"), "coordinator", copied.key)
        copied.exchange.put_statement(place, data)
    patched = pytest.MonkeyPatch()
    with running(mlflow_server(copied.home)) as url:
        patched.setenv("MLFLOW_TRACKING_URI", url)
        record = copied.records()[-1]
        people = People(people={n: Person(role=r, key=public_hex(k)) for n, (r, k) in PEOPLE.items()})
        (copied.home.folder / "people.yaml").write_text(yaml.safe_dump(people.model_dump()))
        for name, (role, key) in PEOPLE.items():
            text = signed_verdict(terms_of(copied, record), "approved", name, role, key, 30)
            record_verdict(copied, text, people)
        champion.release_model(copied, record, evidence.gather(copied, record))
        yield copied
    patched.undo()


def test_an_untouched_run_fits_in_everything(run: Run) -> None:
    assert list(faults(run)) == []


def flipped(data: bytes, at: int = -20) -> bytes:
    """Return bytes of which one is another."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at:][1:]


def file_of(where: str) -> Callable[[Run], Path]:
    return lambda run: run.folder / where


def in_exchange(where: str) -> Callable[[Run], Path]:
    def path(run: Run) -> Path:
        (found,) = Path(run.description.exchange).glob(where.replace("RUN", run.name))
        return found

    return path


def flip(path: Callable[[Run], Path], at: int = -20) -> Alteration:
    return lambda run: replaced(path(run), flipped(path(run).read_bytes(), at))


def remove(path: Callable[[Run], Path]) -> Alteration:
    return lambda run: replaced(path(run), None)


def become(path: Callable[[Run], Path], other: Callable[[Run], Path]) -> Alteration:
    return lambda run: replaced(path(run), other(run).read_bytes())


def edit(path: Callable[[Run], Path], change: Callable[[dict[str, Any]], object]) -> Alteration:
    def altered(run: Run) -> AbstractContextManager[None]:
        content = json.loads(path(run).read_bytes())
        change(content)
        return replaced(path(run), canonical(content))

    return altered


def both(*alterations: Alteration) -> Alteration:
    @contextmanager
    def altered(run: Run) -> Iterator[None]:
        with ExitStack() as stack:
            for each in alterations:
                stack.enter_context(each(run))
            yield

    return altered


def sql(statement: str, undo: str) -> Alteration:
    """Change MLflow's database behind its back."""

    @contextmanager
    def altered(run: Run) -> Iterator[None]:
        def do(text: str) -> None:
            with closing(sqlite3.connect(run.home.folder / "mlruns" / "mlflow.db", timeout=30)) as store:
                done = store.executescript(text.replace("RUN", run.name))
                assert done is not None
                store.commit()

        do(statement)
        try:
            yield
        finally:
            do(undo)

    return altered


def resigned(path: Callable[[Run], Path], change: Callable[[dict[str, Any]], object]) -> Alteration:
    """A statement of the coordinator's, changed and signed with its own key once more."""

    def altered(run: Run) -> AbstractContextManager[None]:
        content = json.loads(path(run).read_bytes())["statement"]
        change(content)
        return replaced(path(run), sign(content, "coordinator", run.key))

    return altered


@contextmanager
def history_written_anew(run: Run) -> Iterator[None]:
    """The coordinator itself changes a number, mends the chain behind it and signs all heads again."""
    with ExitStack() as stack:
        previous = ""
        for number in (1, 2):
            path = run.folder / "rounds" / f"round-{number:03d}.json"
            content = json.loads(path.read_bytes())
            if number == 1:
                content["seconds"] += 1
            content["previous"] = previous or content["previous"]
            data = canonical(content)
            previous = sha256_of(data)
            stack.enter_context(replaced(path, data))
            head = in_exchange(f"models/RUN.{number:03d}.head.json")
            told = {"record_sha256": previous}
            stack.enter_context(resigned(head, lambda c, told=told: c.update(told))(run))
        yield


@contextmanager
def a_head_whose_record_is_missing(run: Run) -> Iterator[None]:
    said = {"kind": "head", "run": run.name, "round": 3, "record_sha256": "0" * 64}
    path = Path(run.description.exchange) / "models" / f"{run.name}.003.head.json"
    with replaced(path, sign(said, "coordinator", run.key)):
        yield


def a_decision_by_nobody(run: Run) -> AbstractContextManager[None]:
    """The coordinator puts a verdict on record that somebody else has signed."""
    stranger = Ed25519PrivateKey.generate()
    text = signed_verdict(terms_of(run, run.records()[-1]), "approved", "bo", "officer", stranger, 30)
    return resigned(DECISION_2, lambda content: content.update(signed=text))(run)


def scores_left_out(run: Run) -> AbstractContextManager[None]:
    """The coordinator leaves a hospital's figures out of the newest record, and signs its head again."""

    def change(record: dict[str, Any]) -> None:
        record["hospitals"]["south"]["scores"] = None
        metrics = {
            site: each["scores"]["statement"]["metrics"]
            for site, each in record["hospitals"].items()
            if each["scores"]
        }
        record["quality"] = recording.quality_of(run, 2, metrics)

    return in_newest_record(run, change)


def in_newest_record(
    run: Run, change: Callable[[dict[str, Any]], object]
) -> AbstractContextManager[None]:
    """The coordinator changes the newest record, and signs its head again."""

    @contextmanager
    def altered() -> Iterator[None]:
        path = run.folder / "rounds" / "round-002.json"
        content = json.loads(path.read_bytes())
        change(content)
        data = canonical(content)
        told = {"record_sha256": sha256_of(data)}
        with (
            replaced(path, data),
            resigned(in_exchange("models/RUN.002.head.json"), lambda c: c.update(told))(run),
        ):
            yield

    return altered()


def comparison_becomes(run: Run, other: dict[str, str] | None) -> AbstractContextManager[None]:
    return in_newest_record(run, lambda r: r["hospitals"]["north"].update(comparison=other))


def comparison_refused(run: Run) -> AbstractContextManager[None]:
    return comparison_becomes(run, {"kind": "refused", "text": "no"})


def comparison_left_out(run: Run) -> AbstractContextManager[None]:
    return comparison_becomes(run, None)


@contextmanager
def comparison_of_other_models(run: Run) -> Iterator[None]:
    """A hospital compares, under its own key, what nobody has released; the record names that."""
    path = in_exchange("statements/north/RUN.002.compare.json")(run)
    comparison = json.loads(path.read_bytes())["statement"]
    comparison["models"]["south"] = "0" * 64
    data = sign(comparison, "north", Hospital.open(run.home.folder / "wards" / "north").key)
    named = {"statement": comparison, "statement_sha256": sha256_of(data)}
    change = in_newest_record(run, lambda r: r["hospitals"]["north"]["comparison"].update(named))
    with replaced(path, data), change:
        yield


def foreign_version(name: str, alias: str = "") -> Alteration:
    """A version that no run has registered and nobody has released, of files that one has."""

    @contextmanager
    def altered(run: Run) -> Iterator[None]:
        client = MlflowClient()
        ours = client.get_model_version_by_alias("small-candidates", "candidate")
        tags = {**ours.tags, "wardround.run": "small-elsewhere"}
        made = client.create_model_version(
            name, ours.source, tags=tags, await_creation_for=0,
            model_id=ours.source.removeprefix("models:/"),
        )  # fmt: skip
        if alias:
            client.set_registered_model_alias(name, alias, made.version)
        try:
            yield
        finally:
            client.set_registered_model_alias("small-candidates", "candidate", ours.version)
            client.delete_model_version(name, made.version)

    return altered


@contextmanager
def accepted_with_another_number(run: Run) -> Iterator[None]:
    """A hospital says afterwards that it accepted with more patients than it released with."""
    path = ACCEPTED(run)
    content = json.loads(path.read_bytes())["statement"] | {"declared_training": 99}
    key = Hospital.open(run.home.folder / "wards" / "east").key
    described = json.loads((run.folder / "run.json").read_bytes())
    data = sign(content, "east", key)
    accepted = {"statement": content, "statement_sha256": sha256_of(data)}
    described["participants"]["east"].update(accepted)
    with replaced(path, data), replaced(run.folder / "run.json", canonical(described)):
        yield


@contextmanager
def become_key_of_somebody_else(run: Run) -> Iterator[None]:
    path = run.home.folder / "people.yaml"
    people = yaml.safe_load(path.read_text())
    people["people"]["ada"]["key"] = "0" * 64
    with replaced(path, yaml.safe_dump(people).encode()):
        yield


NORTH_1, MODEL_1 = file_of("releases/round-001/north.safetensors"), file_of("models/001.safetensors")
RECORD_1, RECORD_2 = file_of("rounds/round-001.json"), file_of("rounds/round-002.json")
DESCRIPTION, FINISHED = file_of("run.json"), file_of("finished")
HEAD_1 = in_exchange("models/RUN.001.head.json")
SAID_1 = in_exchange("statements/north/RUN.001.contribute.json")
SAID_2 = in_exchange("statements/north/RUN.002.contribute.json")
SCORES_1 = in_exchange("statements/south/RUN.001.evaluate.json")
SCORES_2 = in_exchange("statements/south/RUN.002.evaluate.json")
ACCEPTED = in_exchange("statements/east/RUN.000.join.json")
STATED = in_exchange("models/RUN.001.json")
DECISION_1, DECISION_2 = file_of("decisions/0001.json"), file_of("decisions/0002.json")
DECISION_3, LAID_3 = file_of("decisions/0003.json"), in_exchange("models/RUN.decision-0003.json")
SHOWN = "mlruns/artifacts/*/*/artifacts/"


def shown_at(where: str) -> Callable[[Run], Path]:
    """A file among the artifacts of the run's own page."""
    return lambda run: next(
        each
        for each in run.home.folder.glob(SHOWN + where)
        if (each.parent.parent / "rounds").exists() or (each.parent / "rounds").exists()
    )


def artifact(site: str, path: str) -> Alteration:
    """A file that somebody has put on a page of the run."""

    @contextmanager
    def altered(run: Run) -> Iterator[None]:
        client = MlflowClient()
        experiment = client.get_experiment_by_name("small").experiment_id
        (line,) = client.search_runs([experiment], f"tags.`wardround.site` = '{site}'")
        client.log_text(line.info.run_id, "fine", path)
        place = f"mlruns/artifacts/{experiment}/{line.info.run_id}/artifacts"
        try:
            yield
        finally:
            (run.home.folder / place / path).unlink()

    return altered


def model_file(run: Run, file: str, kind: str) -> Path:
    """A file beside a registered model: only an approved one has a report beside it."""
    return next(
        path
        for path in sorted((run.home.folder / "mlruns").rglob(f"models/*/artifacts/{file}"))
        if (path.parent / "report.html").exists() == (kind == "approved")
    )


def tag_of_approved(key: str) -> Alteration:
    where = f"WHERE key='{key}' AND name='small-approved'"
    return sql(
        f"UPDATE model_version_tags SET value='x' || value {where}",
        f"UPDATE model_version_tags SET value=substr(value, 2) {where}",
    )


MLFLOW_ROW = "run_uuid IN (SELECT run_uuid FROM tags WHERE key='wardround.site' AND value='north')"
PARENT = "run_uuid IN (SELECT run_uuid FROM tags WHERE key='wardround.site' AND value='GLOBAL')"

ALTERATIONS: dict[str, tuple[Alteration, str]] = {
    "a byte of a release": (flip(NORTH_1), "stored tensors are not those"),
    "a release that is gone": (remove(NORTH_1), "stored tensors are not those"),
    "a release of another hospital": (
        become(NORTH_1, file_of("releases/round-001/south.safetensors")), "stored tensors"),
    "a byte of a model": (flip(MODEL_1), "The model of round 1"),
    "a model that is gone": (remove(MODEL_1), "The model of round 1"),
    "an earlier model in a later one's place": (
        become(MODEL_1, file_of("models/000.safetensors")), "The model of round 1"),
    "a number of a record": (edit(RECORD_2, lambda r: r["quality"].update(dice=0.9)), "head of round 2"),
    "a number within the chain": (edit(RECORD_1, lambda r: r.update(seconds=0.1)), "does not follow"),
    "an epsilon of a record": (edit(RECORD_1, lambda r: r["hospitals"]["east"]["release"]["statement"].update(epsilon=0.1)), "not follow"),
    "a dropped round": (remove(RECORD_1), "one of which is missing"),
    "an older chain": (remove(RECORD_2), "newest record is of round 1"),
    "an older chain of an unfinished run": (both(remove(RECORD_2), remove(FINISHED)), "head of round 2"),
    "records in each other's place": (become(RECORD_1, RECORD_2), "does not follow"),
    "history written anew by the coordinator": (history_written_anew, "upon another chain"),
    "a byte of a head": (flip(HEAD_1), "signed head of round 1"),
    "a head that is gone": (remove(HEAD_1), "signed head of round 1: it is not in the exchange"),
    "a head of another round": (become(HEAD_1, in_exchange("models/RUN.002.head.json")), "head of round 1"),
    "a head whose record is missing": (a_head_whose_record_is_missing, "a head of round 3"),
    "a byte of an order": (flip(in_exchange("orders/north/RUN.001.contribute.1.json")), "can't be trusted"),
    "the order of another hospital": (
        become(in_exchange("orders/north/RUN.001.contribute.1.json"),
               in_exchange("orders/south/RUN.001.contribute.1.json")), "another than its place says"),
    "a byte of an acceptance": (flip(ACCEPTED), "no acceptance of east"),
    "an acceptance that is gone": (remove(ACCEPTED), "no acceptance of east"),
    "a declared number": (
        edit(DESCRIPTION, lambda d: d["participants"]["east"]["statement"].update(declared_patients=99)),
        "another acceptance of east than east has signed"),
    "a weight": (
        edit(DESCRIPTION, lambda d: d["participants"]["east"]["statement"].update(declared_training=99)),
        "another acceptance of east than east has signed"),
    "the study": (edit(DESCRIPTION, lambda d: d["study"].update(seed=5)), "of another study or run"),
    "a hospital's budget": (
        edit(DESCRIPTION, lambda d: d["participants"]["east"]["statement"]["budget"].update(epsilon=1.0)),
        "another acceptance of east than east has signed"),
    "what a hospital declared before it came back": (
        edit(DESCRIPTION, lambda d: d.update(
            former={"east": [d["participants"]["east"] | {"statement_sha256": "0" * 64}]})),
        "another acceptance of east than east has signed"),
    "an acceptance with another number than the releases": (
        accepted_with_another_number, "of east in round 1 is of another number of patients"),
    "scores that are left out": (scores_left_out, "scores of south in round 2 are not recorded, nor is why"),
    "a refusal that nobody signed": (
        edit(DESCRIPTION, lambda d: d.update(refused={"west": {"kind": "refused", "text": "no"}})),
        "west has not signed its refusal in round 0: no"),
    "a byte of a hospital's statement": (flip(SAID_1), "another statement than the record names"),
    "a statement that is gone": (remove(SAID_1), "not in the exchange"),
    "a replayed release": (become(SAID_2, SAID_1), "another statement than the record names"),
    "a ledger's head": (
        edit(SAID_1, lambda s: s["statement"].update(ledger_head="0" * 64)), "another statement"),
    "a byte of scores": (flip(SCORES_1), "The scores of south in round 1"),
    "replayed scores": (become(SCORES_2, SCORES_1), "The scores of south in round 2"),
    "a comparison": (
        flip(in_exchange("statements/north/RUN.002.compare.json")), "The comparison of north in round 2"),
    "a comparison that is left out": (
        comparison_left_out, "comparison of north in round 2 is not recorded, nor is why"),
    "a comparison that is said to be refused": (
        comparison_refused, "north has not signed its refusal in round 2: no"),
    "an approval's words on a candidate": (
        sql("INSERT INTO model_version_tags SELECT DISTINCT 'wardround.approved_by.officer', 'bo', name,"
            " version, workspace FROM model_version_tags WHERE name='small-candidates' AND version=2",
            "DELETE FROM model_version_tags WHERE key='wardround.approved_by.officer'"
            " AND name='small-candidates'"),
        "the candidate of round 2 has another wardround.approved_by.officer than the record"),
    "an approved version that nobody released": (
        foreign_version("small-approved", "production"), "of small-approved was never released"),
    "an alias that no decision gives": (
        sql("INSERT INTO registered_model_aliases SELECT 'production', version, name, workspace"
            " FROM registered_model_aliases WHERE name='small-approved'",
            "DELETE FROM registered_model_aliases WHERE alias='production'"),
        "version 1 of the approved models has the alias production, which no decision gave"),
    "a comparison of other models": (
        comparison_of_other_models, "of north in round 2 is of other models than the hospitals have released"),
    "the statement on a hospital's released model": (
        flip(in_exchange("models/RUN.002.of-north.json")), "The model that north has released in round 2"),
    "the statement on a hospital's released model, signed again": (
        resigned(in_exchange("models/RUN.002.of-north.json"), lambda s: s.update(model_sha256="0" * 64)),
        "The statement on what north has released in round 2 is about another"),
    "a hospital's key on the roster": (
        edit(DESCRIPTION, lambda d: d["roster"].update(east="0" * 64)), "two keys of east"),
    "the round from which a hospital takes part": (
        edit(DESCRIPTION, lambda d: d["participants"]["east"].update(since=2)),
        "east contributed to round 1 before run.json has it join"),
    "what kind of run it is": (
        edit(DESCRIPTION, lambda d: d.update(kind="rehearsal")), "calls small-.* a rehearsal"),
    "when the run was begun": (
        edit(DESCRIPTION, lambda d: d.update(started_ms=1)), "begun at another time"),
    "a model's statement": (flip(STATED), "The model of round 1: its statement"),
    "a model's statement, signed again": (
        resigned(STATED, lambda s: s.update(model_sha256="0" * 64)), "about another one"),
    "a byte of an approval": (flip(DECISION_1), "0001.json"),
    "an approval that is gone": (remove(DECISION_1), "does not follow"),
    "an approval of somebody else": (a_decision_by_nobody, "signature of 'bo' does not fit"),
    "the last decision dropped at both ends": (
        both(remove(DECISION_3), remove(LAID_3)), "MLflow names a decision|none that was decided"),
    "a person's key": (
        become_key_of_somebody_else, "has a key of ada that people.yaml lacks"),
    "what a candidate describes": (
        edit(lambda run: min((run.home.folder / "mlruns").rglob("model.json")),
             lambda d: d["study"].update(seed=9)), "describes another study"),
    "a second model among a candidate's files": (
        lambda run: replaced(
            (path := min((run.home.folder / "mlruns").rglob("model.json"))).parent / "z" / "model.json",
            path.read_bytes()), "loads other weights than those that were checked"),
    "code in a candidate": (
        lambda run: replaced(
            path := min((run.home.folder / "mlruns").rglob("MLmodel")),
            path.read_bytes().replace(b"flows.served_model", b"os")), "loads other code"),
    **{
        f"{key} of an approved version": (tag_of_approved(key), named)
        for key, named in {
            "wardround.sha256": "is of another model than its decision",
            "wardround.run": "version 1 of the approved models has wardround.run=x",
            "val/dice": "version 1 of the approved models has val/dice=x",
            "wardround.approved_by.officer": "has wardround.approved_by.officer=xbo, until",
            "wardround.approved_until": "has wardround.approved_until=x",
        }.items()
    },
    "a mark on an approved version that nobody has revoked": (
        sql("INSERT INTO model_version_tags SELECT DISTINCT 'wardround.revoked', 'yes', name, version, workspace"
            " FROM model_version_tags WHERE name='small-approved'",
            "DELETE FROM model_version_tags WHERE key='wardround.revoked'"),
        "has wardround.revoked=yes, the decisions have None"),
    "the report beside an approved version": (
        flip(lambda run: next((run.home.folder / "mlruns").rglob("models/*/artifacts/report.html"))),
        "version 1 of small-approved.* has another report than was released with it"),
    "the time at which an approved version was made": (
        sql("UPDATE model_versions SET creation_time=creation_time+3600000 WHERE name='small-approved'",
            "UPDATE model_versions SET creation_time=creation_time-3600000 WHERE name='small-approved'"),
        "is younger than the decision that released it"),
    "an approved version that is gone": (
        sql("UPDATE model_versions SET current_stage='Deleted_Internal'"
            " WHERE name='small-approved' AND version=1",
            "UPDATE model_versions SET current_stage='None' WHERE name='small-approved' AND version=1"),
        "MLflow lacks version 1 of the approved models"),
    "the champion in MLflow": (
        sql("UPDATE registered_model_aliases SET alias='x' || alias WHERE name='small-approved'",
            "UPDATE registered_model_aliases SET alias=substr(alias, 2) WHERE name='small-approved'"),
        "version none is the champion, the decisions name 1"),
    "what the run's page says of the release": (
        sql(f"UPDATE tags SET value='x' || value WHERE key='wardround.released' AND {PARENT}",
            f"UPDATE tags SET value=substr(value, 2) WHERE key='wardround.released' AND {PARENT}"),
        "wardround.released=xround 2 as version 1, approved by ada .* the decisions have round 2"),
    "what the run's page says of whom it waits for": (
        sql(f"UPDATE tags SET value='x' || value WHERE key='wardround.waits_for' AND {PARENT}",
            f"UPDATE tags SET value=substr(value, 2) WHERE key='wardround.waits_for' AND {PARENT}"),
        "wardround.waits_for=xnobody, the decisions have nobody"),
    "a candidate that no run has registered": (
        foreign_version("small-candidates"), "of small-candidates is of no round of a run stored here"),
    "a candidate that no run has registered, with the alias": (
        foreign_version("small-candidates", "candidate"), "the candidate of small-candidates is no model of a run here"),
    **{
        f"{file} of a {kind}": (
            lambda run, file=file, kind=kind: replaced(
                path := model_file(run, file, kind), path.read_bytes() + b"\n# more"),
            f"of small-{kind}, round .*, has other files than the coordinator has signed")
        for file in ("requirements.txt", "conda.yaml", "python_env.yaml", "MLmodel")
        for kind in ("candidates", "approved")
    },
    "the newest decision in MLflow is gone": (
        sql(f"UPDATE tags SET key='x' || key WHERE key='wardround.decisions' AND {PARENT}",
            f"UPDATE tags SET key=substr(key, 2) WHERE key='xwardround.decisions' AND {PARENT}"),
        "wardround.decisions=None, the decisions have"),
    **{
        f"{key} in MLflow": (
            sql(f"UPDATE tags SET value='x' || value WHERE key='{key}' AND {PARENT}",
                f"UPDATE tags SET value=substr(value, 2) WHERE key='{key}' AND {PARENT}"),
            f"In MLflow GLOBAL has {key}=x")
        for key in ("wardround.rounds_done", "wardround.missing", "mlflow.runColor")
    },
    "the note on the run's page": (
        sql(f"UPDATE tags SET value='x' || value WHERE key='mlflow.note.content' AND {PARENT}",
            f"UPDATE tags SET value=substr(value, 2) WHERE key='mlflow.note.content' AND {PARENT}"),
        "mlflow.note.content=x"),
    "a note on a hospital's page": (
        sql("INSERT INTO tags (key, value, run_uuid) SELECT 'mlflow.note.content', 'fine', run_uuid FROM tags "
            "WHERE key='wardround.site' AND value='north'",
            "DELETE FROM tags WHERE key='mlflow.note.content' AND value='fine'"),
        "In MLflow north has mlflow.note.content=fine, the records have None"),
    "a file on a hospital's page": (
        artifact("north", "extra/fine.html"), "MLflow shows extra/fine.html of north, which the coordinator"),
    "a file beside the report": (artifact("GLOBAL", "extra/fine.html"), "MLflow shows extra/fine.html, which"),
    "a record of a round that was never": (
        artifact("GLOBAL", "rounds/round-003.json"), "MLflow shows rounds/round-003.json, which"),
    **{
        f"a description of {what}": (
            sql(f"UPDATE {table} SET description='fine' WHERE name='small-{kind}'",
                f"UPDATE {table} SET description=NULL WHERE name='small-{kind}'"),
            f"of small-{kind}, round .*, has a description, which nobody has signed")
        for what, table, kind in (
            ("a candidate", "model_versions", "candidates"), ("all candidates", "registered_models", "candidates"),
            ("a released model", "model_versions", "approved"),
        )
    },
    "what the run is called": (
        sql(f"UPDATE tags SET value='x' || value WHERE key='mlflow.runName' AND {PARENT}; "
            f"UPDATE runs SET name='x' || name WHERE {PARENT}",
            f"UPDATE tags SET value=substr(value, 2) WHERE key='mlflow.runName' AND {PARENT}; "
            f"UPDATE runs SET name=substr(name, 2) WHERE {PARENT}"),
        "MLflow calls the run of GLOBAL x"),
    "the report in MLflow": (flip(shown_at("report.html")), "report.html, or shows another one"),
    "a report that is gone from MLflow": (remove(shown_at("report.html")), "MLflow lacks report.html"),
    "a picture in MLflow": (
        flip(shown_at("images/*step+2*.png")), r"images/reference cases\+step\+2.*, or shows another one"),
    "a small picture in MLflow": (
        flip(shown_at("images/*step+2*.webp")), r"images/reference cases\+step\+2.*, or shows another one"),
    "a picture of somebody else's in MLflow": (
        lambda run: replaced(
            shown_at("images")(run) / "reference cases+step+2+timestamp+1+x.png", b"a picture"),
        r"MLflow shows images/reference cases\+step\+2\+timestamp\+1\+x.png, which the coordinator has not"),
    "a signature for one of a picture's files": (
        remove(lambda run: next((run.folder / "artifacts").glob("images*step%2B2%2B*.webp.json"))),
        "has not signed a picture of round 2"),
    "a table in MLflow": (flip(shown_at("cross_site.csv")), "cross_site.csv, or shows another one"),
    "what the coordinator has signed for": (
        flip(lambda run: run.folder / "artifacts" / "report.html.json"), "report.html.json: "),
    "a signature for a report that is gone": (
        remove(lambda run: run.folder / "artifacts" / "report.html.json"), "has not signed report.html"),
    "the last decision dropped": (remove(DECISION_3), "Decision 3 is not the same"),
    "the last decision dropped in the exchange": (remove(LAID_3), "Decision 3 is not the same"),
    "an outcome's evidence": (
        resigned(DECISION_3, lambda d: d["outcome"]["evidence"][0].update(is_met=False)),
        "released a model without evidence or approvals"),
    "a metric in MLflow that is no number": (
        sql(f"UPDATE metrics SET is_nan=1 WHERE key='val/dice' AND step=1 AND {MLFLOW_ROW}",
            f"UPDATE metrics SET is_nan=0 WHERE key='val/dice' AND step=1 AND {MLFLOW_ROW}"),
        "val/dice of .* in round 1: MLflow has nan"),
    "the newest value that MLflow shows": (
        sql(f"UPDATE latest_metrics SET value=value+0.1 WHERE key='val/dice' AND {MLFLOW_ROW}",
            f"UPDATE latest_metrics SET value=value-0.1 WHERE key='val/dice' AND {MLFLOW_ROW}"),
        "val/dice of .*: MLflow shows .* as the newest"),
    "a metric in MLflow": (
        sql(f"UPDATE metrics SET value=value+0.1 WHERE key='val/dice' AND step=1 AND {MLFLOW_ROW}",
            f"UPDATE metrics SET value=value-0.1 WHERE key='val/dice' AND step=1 AND {MLFLOW_ROW}"),
        "val/dice of north in round 1: MLflow has"),
    "a metric beside the record's in MLflow": (
        sql("INSERT INTO metrics SELECT 'privacy/epsilon', 0.5, 1, run_uuid, 1, 0 FROM tags"
            " WHERE key='wardround.site' AND value='GLOBAL'",
            "DELETE FROM metrics WHERE timestamp=1"), "privacy/epsilon of GLOBAL in round 1"),
    "a point that is gone from MLflow": (
        sql(f"UPDATE metrics SET step=7 WHERE key='privacy/epsilon' AND step=2 AND {PARENT}",
            f"UPDATE metrics SET step=2 WHERE key='privacy/epsilon' AND step=7 AND {PARENT}"),
        "privacy/epsilon of GLOBAL in round 2: MLflow has nothing"),
    "a parameter in MLflow": (
        sql(f"UPDATE params SET value=value || '0' WHERE key='declared_patients' AND {MLFLOW_ROW}",
            "UPDATE params SET value=substr(value, 1, length(value) - 1)"
            f" WHERE key='declared_patients' AND {MLFLOW_ROW}"),
        "In MLflow north has declared_patients="),
    "what a figure's tag admits": (
        sql(f"UPDATE tags SET value='system' WHERE key='wardround.noise' AND {MLFLOW_ROW}",
            f"UPDATE tags SET value='test' WHERE key='wardround.noise' AND {MLFLOW_ROW}"),
        "In MLflow north has wardround.noise=system, the records have test"),
    "the newest candidate in MLflow": (
        sql("UPDATE registered_model_aliases SET version=1 WHERE name='small-candidates'",
            "UPDATE registered_model_aliases SET version=2 WHERE name='small-candidates'"),
        "no model of a run here, or there is a newer one"),
    "the chain's head in MLflow": (
        sql("UPDATE tags SET value='x' || value WHERE key='wardround.chain_head'",
            "UPDATE tags SET value=substr(value, 2) WHERE key='wardround.chain_head'"),
        "names another head"),
    "a candidate's tag in MLflow": (
        sql("UPDATE model_version_tags SET value='x' || value WHERE key='val/dice'",
            "UPDATE model_version_tags SET value=substr(value, 2) WHERE key='val/dice'"),
        "another val/dice than the record"),
    "a record in MLflow": (
        flip(lambda run: next((run.home.folder / "mlruns").rglob("round-002.json"))), "is not the record"),
    "a record that is gone from MLflow": (
        remove(lambda run: next((run.home.folder / "mlruns").rglob("round-001.json"))), "MLflow lacks"),
    "a model's file in MLflow": (
        flip(lambda run: min((run.home.folder / "mlruns").rglob("model.safetensors"))),
        "version .* of small|weights of version"),
}  # fmt: skip


@pytest.mark.parametrize("name", ALTERATIONS)
def test_what_was_altered_is_the_first_thing_that_does_not_fit(run: Run, name: str) -> None:
    alter, expected = ALTERATIONS[name]
    with alter(run):
        found = next(faults(Run.open(run.home, run.name)), None)
    assert found, f"{name} was not found"
    assert re.search(expected, found)


def test_what_a_hospital_declares_when_it_comes_back_leaves_earlier_rounds_as_they_were(
    run: Run,
) -> None:
    last = run.records()[-1].round
    known = run.description.participants["east"]
    signed = run.exchange.statement(Place.statement(run.name, 0, "join", "east"))
    declared = {"declared_training": 10 * known.statement.declared_training, "round": last,
                "group": "3t", "budget": {"epsilon": 9, "delta": 1e-3}}  # fmt: skip
    again = json.loads(signed)["statement"] | declared
    path = Path(run.description.exchange) / f"{Place.statement(run.name, last, 'join', 'east')}.json"
    data = sign(again, "east", Hospital.open(run.home.folder / "wards" / "east").key)
    described = json.loads((run.folder / "run.json").read_bytes())
    former = described["participants"]["east"]
    described["participants"]["east"] = former | {
        "statement": again, "statement_sha256": sha256_of(data), "since": last + 1,
    }  # fmt: skip
    described["former"] = {"east": [former]}
    with replaced(path, data), replaced(run.folder / "run.json", canonical(described)):
        assert list(faults(Run.open(run.home, run.name))) == []


@pytest.mark.parametrize("data", [b"", b"{}", b"no statement", b"[1" * 1000])
def test_what_others_left_at_a_place_of_scores_is_no_fault(run: Run, data: bytes) -> None:
    place, exchange = Place.statement(run.name, 1, "evaluate", "north"), Path(run.description.exchange)
    own = run.exchange.statement(place)
    beside = exchange / f"{place.marked(sha256_of(data))}.json"
    with replaced(beside, data):
        assert list(faults(run)) == []
    first, further = exchange / f"{place}.json", exchange / f"{place.marked(sha256_of(own))}.json"
    with replaced(further, own), replaced(first, data):  # others were there before the hospital
        assert list(faults(run)) == []


def test_an_acceptance_that_nobody_took_is_no_fault(run: Run) -> None:
    said = run.exchange.statement(Place.statement(run.name, 0, "join", "east"))
    path = Path(run.description.exchange) / f"{Place.statement(run.name, 1, 'join', 'east')}.json"
    other = json.loads(said)["statement"] | {"round": 1, "declared_patients": 99}
    key = Hospital.open(run.home.folder / "wards" / "east").key
    for signer in (key, Ed25519PrivateKey.generate()):  # as after a restored backup, or a changed key
        with replaced(path, sign(other, "east", signer)):
            assert list(faults(run)) == []


def test_a_refusal_is_told_as_its_hospital_has_signed_it(run: Run) -> None:
    key = Hospital.open(run.home.folder / "wards" / "east").key
    act = refusal_of("join", 1)
    said = Refusal(
        kind="refusal", study=run.study.name, study_sha256=run.study.sha256, run=run.name, round=0,
        purpose=act, site="east", reason="not in August", ledger_head="0" * 64, event=None, charges=0,
    )  # fmt: skip
    place = Path(run.description.exchange) / f"{Place.statement(run.name, 0, act, 'east')}.json"
    with replaced(place, sign(said.model_dump(mode="json"), "east", key)):
        for reason, fits in (("not in August", True), ("never", False)):
            told = {"east": {"kind": "refused", "text": reason}}
            with edit(DESCRIPTION, lambda d, told=told: d.update(refused=told))(run):
                assert (next(faults(Run.open(run.home, run.name)), None) is None) == fits
    old = Ed25519PrivateKey.generate()
    given_up = Revocation(kind="revocation", site="east", public_key=public_hex(old), at_ms=0)
    revoked = Path(run.description.exchange) / f"{Place.revocation('east', public_hex(old))}.json"
    told = {"east": {"kind": "refused", "text": "not in August"}}
    with (
        replaced(place, sign(said.model_dump(mode="json"), "east", old)),
        edit(DESCRIPTION, lambda d: d.update(refused=told))(run),
    ):
        assert next(faults(Run.open(run.home, run.name))).startswith("east has not signed")
        with replaced(revoked, sign(given_up.model_dump(mode="json"), "east", old)):  # anybody's own key
            assert next(faults(Run.open(run.home, run.name))).startswith("east has not signed")
        former = {"east": [public_hex(old)]}
        with edit(DESCRIPTION, lambda d: d.update(refused=told, former_keys=former))(run):
            assert list(faults(Run.open(run.home, run.name))) == []


def test_hospitals_keys_that_the_reader_does_not_know_are_named(run: Run) -> None:
    assert list(faults(run, Anchors(run.description.roster))) == []
    other = {**run.description.roster, "east": "0" * 64}
    assert next(faults(run, Anchors(other))).startswith("east signed in round 0 with another key")


def test_an_acceptance_under_a_key_that_the_reader_does_not_know_is_none(run: Run) -> None:
    stranger = Ed25519PrivateKey.generate()
    path = ACCEPTED(run)
    forged = sign(json.loads(path.read_bytes())["statement"], "east", stranger)
    other = edit(
        DESCRIPTION, lambda d: d["participants"]["east"].update(public_key=public_hex(stranger))
    )
    with replaced(path, forged), other(run):
        found = list(faults(Run.open(run.home, run.name), Anchors(run.description.roster)))
    assert found == ["The exchange has no acceptance of east that east has signed."]


def test_parameters_that_an_interruption_kept_from_mlflow_are_there_when_the_run_goes_on(
    run: Run,
) -> None:
    with sql(f"DELETE FROM params WHERE {MLFLOW_ROW}", "")(run):
        assert "In MLflow north has" in next(faults(run))
        Tracking(run)
        assert list(faults(run)) == []


def test_the_command_takes_what_its_reader_knows_and_ends_with_1_at_a_fault(
    run: Run, tmp_path: Path
) -> None:
    people = tmp_path / "mine.yaml"
    shutil.copy(run.home.folder / "people.yaml", people)
    for decision, code in ((chain.heads(run)[0], 0), ("0" * 64, 1)):
        command = [sys.executable, "-m", "flows.cli", "verify", "--people", str(people), "--json"]
        done = subprocess.run(
            [*command, "--decision", decision], cwd=run.home.folder, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        assert (json.loads(done.stdout)["fault"] is None) == (code == 0)


def test_a_person_whom_the_reader_does_not_know_and_a_decision_that_is_gone_are_named(run: Run) -> None:
    known = People(people={n: Person(role=r, key=public_hex(k)) for n, (r, k) in PEOPLE.items()})
    kept = chain.heads(run)[-1]
    assert list(faults(run, Anchors(people=known, decision=kept))) == []
    strange = People(people={"ada": known.people["ada"]})
    assert "has a key of bo" in next(faults(run, Anchors(people=strange)))
    with both(remove(DECISION_3), remove(LAID_3))(run):
        assert any(f"The decision {kept}, which you" in f for f in faults(run, Anchors(decision=kept)))


def test_a_champion_of_no_run_here_is_named_and_hinders_no_release_of_another(run: Run) -> None:
    rename, back = (
        f"UPDATE model_version_tags SET value={value} WHERE key='wardround.run' AND name='small-approved'"
        for value in ("'x' || value", "substr(value, 2)")
    )
    with both(remove(DECISION_3), remove(LAID_3))(run), sql(rename, back)(run):
        told = list(released_faults(run))
        assert told[0].startswith("version 1 is the champion, and no decision")
        assert not any("champion" in fault or "approved" in fault for fault in lineage_faults(run))


def test_nothing_of_that_is_left(run: Run) -> None:
    assert list(faults(run)) == []
    assert len(ALTERATIONS) >= 30
    assert len(chain.decisions(run)) == 3
