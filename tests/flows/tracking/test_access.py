"""Accounts and roles, tried against MLflow's own protected server over TLS."""

import os
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import typer
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from homes import moved
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests import HTTPError
from webserver import certify, free_port

from flows.cli.errors import cli_errors
from flows.decisions import chain, verdicts
from flows.decisions.chain import NotReleased, NotTakenBack
from flows.decisions.people import People, Person
from flows.release import champion, evidence
from flows.reporting.publish import pages_of, publish_decisions_page
from flows.runs.run import Run
from flows.servers.environment import QUIET
from flows.tracking import registry
from flows.tracking.access import Accounts, own_experiment, set_up
from flows.tracking.tracking import Tracking, attach_pages
from flows.verification.verify import faults
from privacy.signing import public_hex

ADMIN = "an administrator's password"
ACCOUNTS = Accounts(
    coordinator="coordinator", officer="bo", clinicians=("ada",), hospitals=("north", "south")
)
KEYS = {name: Ed25519PrivateKey.generate() for name in ("ada", "bo")}
ROLES = {"ada": "clinician", "bo": "officer"}
pytestmark = pytest.mark.slow  # the server alone takes half a minute to start
INI = Path(__file__).parents[3] / "deploy" / "mlflow-access.ini"


class Protected:
    """A protected server, spoken to under one account at a time."""

    def __init__(self, url: str, passwords: Path) -> None:
        self.url, self.passwords = url, passwords

    def password_of(self, account: str) -> str:
        return ADMIN if account == "admin" else (self.passwords / account).read_text()

    def status_of(self, account: str, method: str, path: str) -> int:
        """Return how the server answers an account's request without a content."""
        certificate = os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"]
        login = (account, self.password_of(account))
        return requests.request(
            method, self.url + path, json={}, auth=login, verify=certificate, timeout=60
        ).status_code

    @contextmanager
    def as_(self, account: str) -> Iterator[MlflowClient]:
        password = self.password_of(account)
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("MLFLOW_TRACKING_USERNAME", account)
            patched.setenv("MLFLOW_TRACKING_PASSWORD", password)
            yield MlflowClient(self.url)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Protected]:
    folder, port = tmp_path_factory.mktemp("protected"), free_port()
    certify(folder, "127.0.0.1")
    ini = INI.read_text().replace(
        "sqlite:////srv/wardround-mlflow/accounts.db", f"sqlite:///{folder}/accounts.db"
    )
    (folder / "access.ini").write_text(ini)
    database = f"sqlite:///{folder}/mlflow.db"
    environment = {
        **os.environ, **QUIET, "MLFLOW_AUTH_CONFIG_PATH": str(folder / "access.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN, "MLFLOW_FLASK_SERVER_SECRET_KEY": "any long random text",
    }  # fmt: skip
    mlflow = [sys.executable, "-m", "mlflow"]
    subprocess.run(
        [*mlflow, "db", "upgrade", database], env=environment, check=True, capture_output=True
    )
    command = [
        *mlflow, "server", "--app-name", "wardround-accounts", "--enable-workspaces", "--workers", "1",
        "--host", "127.0.0.1", "--port", str(port), "--allowed-hosts", f"localhost:{port}",
        "--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts"),
        "--uvicorn-opts", f"--ssl-certfile {folder}/hub.pem --ssl-keyfile {folder}/hub.key",
    ]  # fmt: skip
    patched = pytest.MonkeyPatch()
    url = f"https://localhost:{port}"
    patched.setenv("MLFLOW_TRACKING_URI", url)
    patched.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(folder / "hub.pem"))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(f"{url}/health", folder / "hub.pem", process)
        made = Protected(url, folder / "passwords")
        with made.as_("admin"):
            assert set_up("small", ACCOUNTS, made.passwords) == list(ACCOUNTS.everybody)
            assert set_up("small", ACCOUNTS, made.passwords) == []
        yield made
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        patched.undo()


def wait_for(url: str, certificate: Path, process: subprocess.Popen) -> None:
    context = ssl.create_default_context(cafile=str(certificate))
    for _ in range(1200):
        assert process.poll() is None
        try:
            with urllib.request.urlopen(url, timeout=2, context=context):
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(url)


@pytest.fixture(scope="module")
def run(server: Protected, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run as the coordinator's account has logged it."""
    copied = moved(finished, tmp_path_factory.mktemp("home") / "home")
    with server.as_("coordinator"), Tracking(copied) as tracking:
        for record in copied.records():
            tracking.log(record)
        attach_pages(copied, pages_of(copied))
    return copied


def forbidden(do: Callable[[], object]) -> bool:
    """Return whether the server said no, and for lack of rights."""
    try:
        do()
    except MlflowException as error:
        texts = (str(error), str(error.__cause__))
        return error.error_code == "PERMISSION_DENIED" or any("ermission denied" in t for t in texts)
    except HTTPError as error:
        return error.response.status_code == 403
    return False


def test_a_clinician_reads_everything_and_writes_nothing(server: Protected, run: Run) -> None:
    with server.as_("ada") as client:
        experiment = client.get_experiment_by_name("small").experiment_id
        lines = client.search_runs([experiment])
        assert {line.data.tags["wardround.site"] for line in lines} == {
            "GLOBAL",
            "north",
            "east",
            "south",
        }
        (parent,) = [line for line in lines if line.data.tags["wardround.site"] == "GLOBAL"]
        assert parent.data.metrics["val/dice"] > 0
        assert "report.html" in {file.path for file in client.list_artifacts(parent.info.run_id)}
        version = client.get_model_version_by_alias("small-candidates", "candidate")
        run_id = parent.info.run_id
        for write in (
            lambda: client.log_metric(run_id, "val/dice", 1.0),
            lambda: client.set_tag(run_id, "wardround.chain_head", "x"),
            lambda: client.log_text(run_id, "x", "report.html"),
            lambda: client.delete_run(run_id),
            lambda: client.set_registered_model_alias("small-candidates", "candidate", "1"),
            lambda: client.set_model_version_tag("small-candidates", version.version, "x", "y"),
            lambda: client.create_experiment("mine"),
            lambda: client.create_registered_model("mine"),
        ):
            assert forbidden(write)


def test_a_training_under_an_account_that_may_not_write_ends_with_one_message(
    server: Protected, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with server.as_("ada"), pytest.raises(typer.Exit) as ended, cli_errors():
        Tracking(run)
    assert ended.value.exit_code == 3
    told = " ".join(capsys.readouterr().err.split())
    assert f"may not write the start of {run.name} in MLflow; the coordinator's account may" in told
    assert "MLFLOW_TRACKING_USERNAME" in told


def test_no_account_can_use_mlflows_assistant_or_make_its_demo(server: Protected) -> None:
    with server.as_("admin") as client:
        before = len(client.search_experiments())
        for account in ("ada", "north", "bo", "coordinator", "admin"):
            for method, path in (
                ("POST", "demo/generate"), ("POST", "demo/delete"), ("GET", "assistant/config"),
                ("PUT", "assistant/config"), ("POST", "assistant/message"),
            ):  # fmt: skip
                for place in ("/ajax-api/3.0/mlflow/", "//ajax-api/3.0//mlflow/"):
                    assert server.status_of(account, method, place + path) == 403
        assert len(client.search_experiments()) == before
        assert server.status_of("ada", "GET", "/ajax-api/2.0/mlflow/users/current") == 200


def test_who_has_an_account_sees_a_first_page_without_the_assistant(server: Protected) -> None:
    certificate = os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"]
    assert requests.get(server.url, verify=certificate, timeout=60).status_code == 401
    login = ("ada", server.password_of("ada"))
    page = requests.get(server.url, auth=login, verify=certificate, timeout=60)
    assert (page.status_code, "wardround/first.css" in page.text) == (200, True)


def test_a_hospitals_account_reaches_no_other_hospitals(server: Protected, run: Run) -> None:
    with server.as_("north") as client:
        own = client.get_experiment_by_name(own_experiment("small", "north")).experiment_id
        made = client.create_run(own)
        client.log_text(made.info.run_id, "of north alone", "note.txt")
    with server.as_("south") as client:
        assert forbidden(lambda: client.get_experiment(own))
        assert forbidden(lambda: client.get_run(made.info.run_id))
        assert forbidden(lambda: client.create_run(own))
        assert client.search_runs([own]) == []
        assert forbidden(lambda: client.list_artifacts(made.info.run_id))


def test_nobody_but_the_officer_can_release_a_model(server: Protected, run: Run, tmp_path: Path) -> None:
    record = run.records()[-1]
    people = People(people={n: Person(role=ROLES[n], key=public_hex(k)) for n, k in KEYS.items()})
    (run.home.folder / "people.yaml").write_text(yaml.safe_dump(people.model_dump()))
    terms = verdicts.terms_of(run, record)
    for name, key in KEYS.items():
        text = verdicts.signed_verdict(terms, "approved", name, ROLES[name], key, 30)
        chain.record_verdict(run, text, people)
    for account in ("coordinator", "ada", "north"):
        with server.as_(account) as client:
            if account != "north":
                with pytest.raises(NotReleased, match="data-protection officer's account may"):
                    champion.release_model(run, record, evidence.gather(run, record))
            assert forbidden(lambda: crown(client, "1"))
    with server.as_("bo") as client:
        version = champion.release_model(run, record, evidence.gather(run, record))
        crowned = client.get_model_version_by_alias("small-approved", "champion")
        assert crowned.version == version
        files = registry.fetch("small-approved", "champion", tmp_path).folder
        assert (files / "report.html").read_bytes().startswith(b"<!DOCTYPE html>")
        model_id = crowned.source.removeprefix("models:/")
    for account in ("coordinator", "ada", "south"):
        with server.as_(account) as client:
            assert forbidden(lambda: crown(client, version))
            assert forbidden(lambda: client.delete_registered_model_alias("small-approved", "champion"))
            assert forbidden(lambda: client.delete_model_version("small-approved", version))
            assert forbidden(lambda: client.log_model_artifact(model_id, str(files / "MLmodel")))
    shutil.rmtree(files)
    with server.as_("ada"):  # who can read everything, and sees what the officer could not write
        assert "`wardround promote` under the coordinator's account logs" in next(faults(run))
    with server.as_("coordinator"):
        publish_decisions_page(run)
    with server.as_("ada"):
        assert list(faults(run)) == []
    text = verdicts.signed_verdict(terms, "revoked", "bo", "officer", KEYS["bo"], 30)
    chain.record_verdict(run, text, people)
    with server.as_("coordinator"):
        with pytest.raises(NotTakenBack, match="The objection is recorded.*`wardround review withdraw`"):
            champion.withdraw(run)
        assert registry.champion("small") == version
    with server.as_("bo"):
        assert champion.withdraw(run) == [version] and registry.champion("small") == ""


def crown(client: MlflowClient, version: str) -> None:
    client.set_registered_model_alias("small-approved", "champion", version)
