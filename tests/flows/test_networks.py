"""Hospitals on machines of their own: what they reach, and a way out that leads over a proxy alone."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from machines import Service, bridge, namespace, needs_namespaces
from webserver import command, credential, free_port, needs_nginx

from flows.coordination.remote import public_key
from flows.runs.paths import Home
from flows.runs.run import runs_of
from flows.servers.environment import mlflow_server, prefect_server
from flows.servers.loopback import running
from sites.exchange.storage import AUTH
from sites.hospital import Hospital

pytestmark = [needs_namespaces, needs_nginx]

SQUID = shutil.which("squid", path="/usr/sbin:/usr/bin")
PASSWORD = "consortium:over-a-proxy"
TRY = """
import socket, sys
for place in sys.argv[1:]:
    host, _, port = place.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        print("reached")
    except OSError as error:
        print(type(error).__name__)
"""


@dataclass
class Wire:
    """A network with the coordinator at `address`.1, and namespaces for hospitals."""

    name: str
    address: str
    stack: ExitStack

    def machine(self, number: int) -> str:
        """Return a new namespace, whose address is `address`.(10 + number)."""
        name = f"{self.name}-{number}"
        at = f"{self.address}.{10 + number}/24"
        self.stack.enter_context(namespace(name, f"{self.name}{number}", self.name, at))
        return name


@pytest.fixture
def wire() -> Iterator[Wire]:
    name, address = f"wt{os.getpid()}", f"10.212.{os.getpid() % 250}"
    with ExitStack() as stack:
        stack.enter_context(bridge(name, f"{address}.1/24"))
        yield Wire(name, address, stack)


def tried_from(machine: str, places: list[str]) -> list[str]:
    """Return what came of connecting to places from a hospital's machine."""
    inside = ["ip", "netns", "exec", machine, sys.executable, "-c", TRY, *places]
    return subprocess.run(inside, capture_output=True, text=True, check=True).stdout.split()


def test_a_hospitals_machine_reaches_the_coordinators_web_server_and_nothing_else(
    wire: Wire, tmp_path: Path
) -> None:
    north, east = wire.machine(0), wire.machine(1)
    port, at = free_port(), f"{wire.address}.1"
    listen = "import socket, time; s = socket.create_server(('', 5000)); time.sleep(60)"
    with closing(socket.create_server(("127.0.0.1", 0))) as database, ExitStack() as stack:
        server = Service("nginx", command(tmp_path, ["north"], at, port, 1), dict(os.environ),
                         tmp_path, tmp_path / "nginx.log").start()  # fmt: skip
        stack.callback(server.stop)
        inside = ["ip", "netns", "exec", east, sys.executable, "-c", listen]
        listener = subprocess.Popen(inside)
        stack.callback(listener.kill)
        for _ in range(100):
            if (
                tried_from(north, [f"{at}:{port}"]) + tried_from(east, ["127.0.0.1:5000"])
                == ["reached"] * 2
            ):
                break
            time.sleep(0.1)
        hidden = [f"{at}:{database.getsockname()[1]}", f"{wire.address}.11:5000", "192.0.2.1:443"]
        assert tried_from(north, [f"{at}:{port}", *hidden])[0] == "reached"
        assert "reached" not in tried_from(north, hidden)


@pytest.mark.slow
@pytest.mark.skipif(SQUID is None, reason="Debian's squid is absent")
def test_a_hospital_whose_only_way_out_is_a_proxy_trains_and_tells_through_it(
    wire: Wire, tmp_path: Path, small_wards, small_study, edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The web server is at an address to which the hospital's machine has no route."""
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", PASSWORD)
    home, ward, north = Home(tmp_path), small_wards(tmp_path / "wards") / "north", wire.machine(0)
    far, port, proxy = wire.address.replace("10.212", "10.211"), free_port(), free_port()
    wire.stack.enter_context(bridge(f"{wire.name}f", f"{far}.1/24"))
    prefect = wire.stack.enter_context(running(prefect_server(home)))
    mlflow = wire.stack.enter_context(running(mlflow_server(home)))
    site = command(tmp_path, ["north"], f"{far}.1", port, httpx.URL(prefect).port or 0)
    (tmp_path / "squid.conf").write_text(
        f"http_port {wire.address}.1:{proxy}\nacl way dst {far}.1\nhttp_access allow CONNECT way\n"
        f"http_access deny all\ncache deny all\npid_filename none\n"
        "access_log none\ncache_log /dev/null\n"
    )
    squid = [str(SQUID), "-N", "-n", wire.name, "-f", str(tmp_path / "squid.conf")]
    wire.stack.callback(lambda: [left.unlink() for left in Path("/dev/shm").glob(f"{wire.name}-*")])
    edit(
        ward / "site.yaml",
        coordinator={
            "key": public_key(home),
            "exchange": f"https://{far}.1:{port}/exchange/",
            "api": f"https://{far}.1:{port}/api",
        },
    )
    north = {"key": Hospital.open(ward).public_key, "patients": 20}
    members = {"exchange": str(tmp_path / "exchange"), "hospitals": {"north": north}}
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump(members))
    study = {**small_study, "rounds": 1, "sites": {"min": 1, "deadline_s": 120}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(study))
    environment = {
        "PATH": os.environ["PATH"],
        "PREFECT_API_AUTH_STRING": PASSWORD,
        "SSL_CERT_FILE": str(tmp_path / "hub.pem"),
        "HTTPS_PROXY": f"http://{wire.address}.1:{proxy}",
        AUTH: credential("north", f"https://{far}.1:{port}"),
    }
    work = [sys.executable, "-m", "flows.cli", "site", "worker", ".", "--test-noise", "7"]
    for name, run, env, folder in (
        ("nginx", site, dict(os.environ), tmp_path),
        ("squid", squid, dict(os.environ), tmp_path),
        ("north", ["ip", "netns", "exec", north, *work], environment, ward),
    ):
        service = Service(name, run, env, folder, tmp_path / f"{name}.out").start()
        wire.stack.callback(service.stop)
    asked = {**os.environ, "PREFECT_API_URL": f"{prefect}/api", "PREFECT_API_AUTH_STRING": PASSWORD,
             "MLFLOW_TRACKING_URI": mlflow}  # fmt: skip
    train = [
        sys.executable,
        "-m",
        "flows.cli",
        "run",
        "small.yaml",
        "--federation",
        "federation.yaml",
    ]
    done = subprocess.run(train, cwd=tmp_path, env=asked, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "north.out").read_text()
    assert list(runs_of(home)[-1].records()[-1].releases) == ["north"]
    assert "reached" not in tried_from(north, [f"{far}.1:{port}"])
    user, _, password = PASSWORD.partition(":")
    wanted = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}}}
    told = httpx.post(f"{prefect}/api/events/filter", json=wanted, auth=(user, password), timeout=30)
    assert json.loads(told.content)["events"], "the websocket of events did not pass the proxy"
