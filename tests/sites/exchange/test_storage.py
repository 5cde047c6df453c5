"""Storage over HTTPS: a real nginx with `deploy/nginx.conf`, and what a hospital may do there."""

import getpass
import os
import shutil
import ssl
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from webserver import Webserver, free_port, needs_nginx, password_of, wait_for, webserver

from models.errors import CorruptCheckpoint
from sites.exchange.exchange import AlreadyWritten, Exchange
from sites.exchange.places import Place
from sites.exchange.storage import (
    _RENAMES,
    AUTH,
    Source,
    StorageFailed,
    credential_for,
    read,
    storage_at,
)

PLACE = Place.statement("r", 1, "contribute", "north")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webserver]:
    with webserver(tmp_path_factory.mktemp("hub"), ("north", "south")) as running:
        yield running


@pytest.fixture
def north(server: Webserver, monkeypatch: pytest.MonkeyPatch) -> Exchange:
    """The exchange as the hospital north reaches it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
    monkeypatch.setenv(AUTH, server.auth("north"))
    return Exchange(f"{server.url}/exchange/")


@pytest.fixture
def as_north(server: Webserver) -> Iterator[httpx.Client]:
    """A client with north's password and no manners."""
    trust = ssl.create_default_context(cafile=server.certificate)
    auth = ("north", password_of("north"))
    with httpx.Client(base_url=server.url, auth=auth, verify=trust) as client:
        yield client


@needs_nginx
def test_over_https_files_are_written_once_and_found_again(north: Exchange, server: Webserver) -> None:
    data = os.urandom(3_000_000)
    sha256 = north.put_object(data, "north")
    assert north.put_object(data, "north") == sha256
    assert north.object(sha256, "north", len(data)) == data
    assert north.statement(PLACE) is None
    north.put_statement(PLACE, b"first")
    north.put_statement(PLACE, b"first")
    for other in (b"other", b"a longer one"):
        with pytest.raises(AlreadyWritten):
            north.put_statement(PLACE, other)
    assert north.statement(PLACE) == b"first"
    assert north.statements_of("north") == {PLACE}
    with pytest.raises(CorruptCheckpoint, match="at most"):
        north.object(sha256, "north", len(data) - 1)
    with pytest.raises(FileNotFoundError):
        north.object("0" * 64, "north", 100)
    mine = Exchange(str(server.exchange))  # the same files, as the coordinator sees them
    assert mine.object(sha256, "north", len(data)) == data
    assert not list(server.exchange.rglob("*.partial"))


@needs_nginx
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "statements/south/r.001.contribute.json"),
        ("GET", "orders/south/r.001.contribute.1.json"),
        ("GET", "orders/north/../south/r.001.contribute.1.json"),
        ("GET", "orders/north/%2e%2e/south/r.001.contribute.1.json"),
        ("PROPFIND", "objects/north/"),
        ("GET", "objects/south/lying"),
        ("PUT", "objects/coordinator/new.0123456789ab.partial"),
        ("PUT", "objects/south/new.0123456789ab.partial"),
        ("PROPFIND", "statements/south/"),
        ("PUT", "models/r.001.json.0123456789ab.partial"),
        ("PUT", "orders/north/r.001.contribute.1.json.0123456789ab.partial"),
        ("PUT", "statements/south/r.001.contribute.json.0123456789ab.partial"),
        ("PUT", "statements/north/r.002.contribute.json"),
        ("PUT", "objects/north/new"),
        ("DELETE", "objects/north/lying"),
        ("DELETE", "statements/north/lying.json"),
        ("MKCOL", "statements/north/folder/"),
        ("COPY", "objects/north/lying"),
    ],
)
def test_a_hospital_can_do_nothing_else_there(
    as_north: httpx.Client, server: Webserver, method: str, path: str
) -> None:
    names = ("objects/north/lying", "statements/north/lying.json")
    others = (
        "objects/south/lying",
        "statements/south/r.001.contribute.json",
        "orders/south/r.001.contribute.1.json",
    )
    for place in (*names, *others):
        (server.exchange / place).write_bytes(b"as it was")
    before = _content(server.exchange)
    reply = as_north.request(method, f"/exchange/{path}", content=b"x", headers={"Overwrite": "F"})
    assert reply.status_code in (403, 404, 405), reply.status_code
    assert b"as it was" not in reply.content
    assert _content(server.exchange) == before


@needs_nginx
@pytest.mark.parametrize(
    ("to", "overwrite"),
    [
        ("objects/north/lying", "F"),
        ("objects/north/lying", "T"),
        ("objects/north/other", "F"),
        ("statements/south/r.009.contribute.json", "F"),
        ("models/r.009.json", "F"),
        ("orders/north/r.009.contribute.1.json", "F"),
    ],
)
def test_what_a_hospital_put_moves_to_its_own_new_place_alone(
    as_north: httpx.Client, server: Webserver, to: str, overwrite: str
) -> None:
    (server.exchange / "objects" / "north" / "lying").write_bytes(b"as it was")
    before = _content(server.exchange)
    partial = "/exchange/objects/north/lying.0123456789ab.partial"
    assert as_north.put(partial, content=b"evil").is_success
    headers = {"Destination": f"{server.url}/exchange/{to}", "Overwrite": overwrite}
    assert as_north.request("MOVE", partial, headers=headers).status_code in (403, 412)
    (server.exchange / "objects" / "north" / "lying.0123456789ab.partial").unlink()
    assert _content(server.exchange) == before


@needs_nginx
def test_nobody_without_the_password_gets_in(server: Webserver, monkeypatch: pytest.MonkeyPatch) -> None:
    (server.exchange / "models" / "r.000.json").write_bytes(b"as it was")
    monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
    for auth in (None, "north:wrong", f"south:{password_of('north')}"):
        if auth is None:
            monkeypatch.delenv(AUTH, raising=False)
        else:
            monkeypatch.setenv(AUTH, f"{auth}@localhost:{server.port}")
        with pytest.raises(StorageFailed, match="answered 40"):
            Exchange(f"{server.url}/exchange/").statement("models/r.000")


@needs_nginx
def test_a_server_whose_certificate_nobody_trusts_is_not_talked_to(
    server: Webserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv(AUTH, server.auth("north"))
    with pytest.raises(StorageFailed, match="can't be reached"):
        Exchange(f"{server.url}/exchange/").statement("models/r.000")


def test_a_server_that_is_down_is_no_missing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = storage_at("http://127.0.0.1:9/exchange/")
    for act in (
        lambda: read(storage, "models/r.000.json", 10),
        lambda: storage.write_new("objects/x", Source(b"x")),
        lambda: storage.names("statements/north"),
    ):
        with pytest.raises(StorageFailed, match="can't be reached"):
            act()


@pytest.mark.parametrize("url", ["http://hub.example.org/exchange", "gopher://hub.example.org/x"])
def test_an_address_that_is_not_safe_or_not_known_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected https|no storage"):
        Exchange(url).check()


@pytest.mark.parametrize("auth", ["secret", "north:secret", "north:secret@", ":secret@hub.example.org"])
def test_a_password_without_a_name_or_a_host_is_refused(
    auth: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(AUTH, auth)
    with pytest.raises(ValueError, match="name:password@host") as raised:
        storage_at("https://hub.example.org/exchange")
    assert "secret" not in str(raised.value)


def test_a_password_goes_to_no_other_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTH, "north:p@ss:w@rd@hub.example.org")
    assert credential_for("hub.example.org") == ("north", "p@ss:w@rd")
    assert credential_for("HUB.example.org") == ("north", "p@ss:w@rd")
    for other in (
        "hub.example.org:8443",
        "example.org",
        "hub.example.org.evil.example",
        "former.example",
    ):
        assert credential_for(other) is None


def test_only_the_server_that_is_named_sees_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        here = f"127.0.0.1:{server.server_port}"
        for host in ("another.example", here):
            monkeypatch.setenv(AUTH, f"north:secret@{host}")
            with pytest.raises(FileNotFoundError):
                read(storage_at(f"http://{here}/exchange/"), "models/r.000.json", 10)
        server.shutdown()
    assert set(seen[: len(seen) // 2]) == {None}
    assert b64decode(str(seen[-1]).removeprefix("Basic ")) == b"north:secret"


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin")


@pytest.fixture
def over_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real SSH server; gives the URL of a folder on it, which this user may open by his key."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    for name in ("host", "user"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(key, check=True)
    (tmp_path / "user").rename(home / ".ssh" / "id_ed25519")
    port = free_port()
    public = (tmp_path / "host.pub").read_text().split()[:2]
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(public)}\n")
    Path("/run/sshd").mkdir(exist_ok=True)
    options = {
        "HostKey": tmp_path / "host", "AuthorizedKeysFile": tmp_path / "user.pub", "StrictModes": "no",
        "ListenAddress": "127.0.0.1", "Subsystem": "sftp internal-sftp", "ForceCommand": "internal-sftp",
        "PidFile": "none", "UsePAM": "no",
    }  # fmt: skip
    settings = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    server = subprocess.Popen(
        [str(SSHD), "-D", "-e", "-f", "/dev/null", "-p", str(port), *settings],
        stderr=subprocess.DEVNULL,
    )
    monkeypatch.setenv("HOME", str(home))
    try:
        wait_for(port)
        yield f"sftp://{getpass.getuser()}@127.0.0.1:{port}{tmp_path}/exchange"
    finally:
        server.kill()
        server.wait()


@pytest.mark.skipif(
    SSHD is None or os.geteuid() != 0, reason="Debian's openssh-server or root is absent"
)
def test_over_sftp_files_are_written_once_and_a_server_that_is_not_known_gets_none(
    over_ssh: str, tmp_path: Path
) -> None:
    exchange, data = Exchange(over_ssh), os.urandom(300_000)
    sha256 = exchange.put_object(data, "north")
    assert exchange.object(sha256, "north", len(data)) == data
    assert (tmp_path / "exchange" / "objects" / "north" / sha256).read_bytes() == data
    assert exchange.statement(PLACE) is None
    for _ in range(2):
        exchange.put_statement(PLACE, b"first")
    with pytest.raises(AlreadyWritten):
        exchange.put_statement(PLACE, b"other")
    assert exchange.statements_of("north") == {PLACE}
    assert exchange.orders_of("north") == set()
    opened, root = exchange._storage._open.filesystem, tmp_path / "exchange"
    opened.pipe_file(f"{root}/late", b"from a writer who found no file when it looked")
    with pytest.raises(OSError, match="Failure"):
        _RENAMES["sftp"](opened, f"{root}/late", f"{root}/{PLACE}.json")
    assert exchange.statement(PLACE) == b"first"
    with pytest.raises(CorruptCheckpoint, match="at most"):
        exchange.object(sha256, "north", len(data) - 1)
    exchange._storage._open.filesystem.client.close()  # as when the server was started again
    with pytest.raises(StorageFailed):
        exchange.statement(PLACE)
    assert exchange.statement(PLACE) == b"first"
    with pytest.raises(StorageFailed):
        Exchange("sftp://127.0.0.1:9/x").statement(PLACE)
    (tmp_path / "home" / ".ssh" / "known_hosts").unlink()
    with pytest.raises(StorageFailed, match="can't be reached"):
        Exchange(over_ssh).put_statement(Place.parse("statements/north/r.002.contribute"), b"never")
    assert not (tmp_path / "exchange" / "statements" / "north" / "r.002.contribute.json").exists()
