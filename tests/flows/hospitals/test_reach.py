"""A hospital that can't get in is told why, before its worker says that it has started."""

import os
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner
from webserver import certify

from flows.cli.main import app
from flows.hospitals.reach import API_AUTH, NotLetIn, check_reach, reached, tried
from sites.exchange.storage import AUTH, StorageFailed
from sites.policy.policy import CoordinatorConfig

RIGHT = "north:right"
EMPTY = b'<?xml version="1.0"?><d:multistatus xmlns:d="DAV:"></d:multistatus>'


class Guarded(BaseHTTPRequestHandler):
    """A server that answers whoever has the password."""

    def answer(self, status: int, body: bytes) -> None:
        wanted = f"Basic {b64encode(RIGHT.encode()).decode()}"
        if self.headers.get("Authorization") != wanted:
            status, body = 401, b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/xml")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer(200, b'"3.8"')

    def do_PROPFIND(self) -> None:
        self.answer(207, EMPTY)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serving(server: HTTPServer) -> Iterator[HTTPServer]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[CoordinatorConfig]:
    """A coordinator whose exchange and API want a password, and a hospital that has it."""
    for server in serving(HTTPServer(("127.0.0.1", 0), Guarded)):
        host = f"127.0.0.1:{server.server_port}"
        monkeypatch.setenv(AUTH, f"{RIGHT}@{host}")
        monkeypatch.setenv(API_AUTH, RIGHT)
        yield CoordinatorConfig(key="0" * 64, exchange=f"http://{host}/x/", api=f"http://{host}/api")


def test_a_hospital_with_its_passwords_gets_in(guarded: CoordinatorConfig) -> None:
    assert [each.problem for each in reached("north", guarded)] == ["", ""]
    assert list(check_reach("north", guarded)) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (API_AUTH, "north:wrong", f"Prefect's API.*not let in .401.: {API_AUTH} has another password"),
        (API_AUTH, "", f"Prefect's API.*not let in .401.: {API_AUTH} is not set"),
        (AUTH, "north:wrong@HOST", f"exchange.*not let in .401.: {AUTH} has another password"),
        (AUTH, "", f"exchange.*not let in .401.: {AUTH} is not set"),
    ],
)
def test_a_wrong_password_is_named_and_never_shown(
    guarded: CoordinatorConfig, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    host = guarded.exchange.split("/")[2]
    monkeypatch.setenv(name, value.replace("HOST", host))
    with pytest.raises(NotLetIn, match=words) as caught:
        list(check_reach("north", guarded))
    assert "wrong" not in str(caught.value) and "right" not in str(caught.value)


def test_a_certificate_that_is_not_trusted_is_named(tmp_path: Path, monkeypatch) -> None:
    certify(tmp_path, "127.0.0.1")
    certificate, key = tmp_path / "hub.pem", tmp_path / "hub.key"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = HTTPServer(("127.0.0.1", 0), Guarded)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    for each in serving(server):
        url = f"https://localhost:{each.server_port}"
        monkeypatch.setenv(AUTH, f"{RIGHT}@localhost:{each.server_port}")
        monkeypatch.setenv(API_AUTH, RIGHT)
        known = CoordinatorConfig(key="0" * 64, exchange=f"{url}/x/", api=f"{url}/api")
        with pytest.raises(NotLetIn, match="certificate is not trusted here: set SSL_CERT_FILE"):
            list(check_reach("north", known))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert list(check_reach("north", known)) == []


def test_a_server_that_is_down_may_come_back_so_the_worker_keeps_trying() -> None:
    url = "http://127.0.0.1:9"  # nobody listens on the port of `discard`
    known = CoordinatorConfig(key="0" * 64, exchange=f"{url}/x/", api=f"{url}/api")
    assert ["out of reach" in line for line in check_reach("north", known)] == [True, True]


def test_a_worker_that_is_not_let_in_does_not_start(
    tmp_path: Path, small_wards, edit, guarded: CoordinatorConfig, monkeypatch
) -> None:
    ward = small_wards(tmp_path / "wards") / "north"
    edit(ward / "site.yaml", coordinator=guarded.model_dump())
    monkeypatch.setenv(API_AUTH, "north:wrong")
    done = CliRunner().invoke(app, ["site", "worker", str(ward)])
    assert done.exit_code == 2
    assert "not let in (401)" in done.stderr and "started" not in done.output
    assert os.environ[API_AUTH] == "north:wrong"


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    known = CoordinatorConfig(
        key="0" * 64, exchange="https://north:SECRET@host/x/", api="https://host/api"
    )
    with pytest.raises(NotLetIn, match=f"coordinator.exchange.*belong in {AUTH}") as caught:
        list(check_reach("north", known))
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(("code", "words"), [(9, "clock right"), (10, "has to renew it")])
def test_a_certificate_whose_time_is_wrong_is_no_fault_of_the_hospitals_settings(
    code: int, words: str
) -> None:
    def attempt() -> str:
        error = ssl.SSLCertVerificationError("certificate verify failed")
        error.verify_code = code
        raise error

    found = tried("exchange", "https://host/x/", AUTH, attempt)
    assert (words in found.problem, found.is_final) == (True, False)


def test_an_address_that_is_none_is_final_and_a_refusal_by_a_proxy_is_not() -> None:
    known = CoordinatorConfig(key="0" * 64, exchange="http://hub/x/", api="https://hub:port/api")
    with pytest.raises(NotLetIn, match="expected https.*can't be used"):
        list(check_reach("north", known))

    def forbidden() -> str:
        raise StorageFailed("the exchange answered 403", 403)

    assert not tried("exchange", "https://host/x/", AUTH, forbidden).is_final
