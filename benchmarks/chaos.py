"""Break the parts of a federation again and again; compare its model with that of an undisturbed run.

All parts are real: Prefect's server on PostgreSQL, MLflow's, nginx with TLS before Prefect and the
exchange, the coordinator, and for each hospital a worker in a network namespace of its own, that reaches
nginx and nothing else, on a disk of its own. Each is started again a second after it died, as by
systemd. At random instants one of them is killed (SIGKILL), a hospital's link is cut for up to two
minutes, its disk filled, or its clock set back. Trainings follow each other until there are enough
faults.

    python benchmarks/chaos.py --kills 100 --json

Run it as root on Debian, with nginx, libnginx-mod-http-dav-ext, postgresql, iproute2 and libfaketime.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from flows.coordination.remote import public_key
from flows.runs.paths import Home
from flows.runs.run import Run, runs_of
from flows.servers.environment import mlflow_server, prefect_server, prefect_settings
from privacy.ledger import Entry
from sites.datasets.phantoms import Scanner, make_wards
from sites.exchange.storage import AUTH
from sites.hospital import Hospital

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import machines
import webserver
from machines import Service

WARDS = ("north", "east")
PASSWORD = "consortium:chaos"
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
PRELOAD = Path("/etc/ld.so.preload")
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
DISK_MB, CLOCK_BACK = 96, "-5m"
PATIENCE_S = 900

STUDY = {
    "name": "chaos",
    "task": {"kind": "segmentation", "dims": 3, "labels": {1: "head", 2: "tail"}},
    "network": {"name": "UNet", "channels": [4, 8]},
    "sites": {"min": len(WARDS), "deadline_s": 1800},
    "preprocessing": {"shape": [16, 16, 16]},
    "training": {"steps": 60, "lr": 0.05, "lot": "all"},
    "privacy": {
        "mode": "local", "unit": "patient", "epsilon": 40, "delta": 1e-3,
        "clip": {"kind": "normalised", "norm": 1.0},
    },
    "distillation": {"transfer": "synthetic", "steps": 4, "images": 16},
    "export": "student",
    "strategy": {"name": "fed_avg"},
}  # fmt: skip


@dataclass
class Counts:
    """The number of faults, and of what went wrong because of them."""

    faults: int = 0
    lost_rounds: int = 0
    double_charges: int = 0
    under_counts: int = 0
    orphans: int = 0
    wedged: int = 0
    identical: bool = True


@dataclass(frozen=True)
class Machine:
    """A hospital's machine: a network namespace with one link, a disk, a clock, a worker."""

    name: str
    ward: Path
    namespace: str
    link: str
    clock: Path
    worker: Service

    def engine(self) -> int | None:
        """Return the process in which the hospital trains."""
        return next(iter(engines(self.ward)), None)

    def set_link(self, state: str) -> None:
        """Plug the machine's only cable in (`up`) or out (`down`)."""
        subprocess.run(["ip", "link", "set", self.link, state], check=True)


def engines(ward: Path) -> list[int]:
    """Return the processes in which a hospital trains."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (
                b"sites.worker" in (place / "cmdline").read_bytes()
                and (place / "cwd").readlink() == ward
            ):
                found.append(int(place.name))
    return found


class Federation:
    """A federation with all its parts, in one folder."""

    def __init__(self, folder: Path, stack: ExitStack, rounds: int) -> None:
        self.folder, self.home = folder, Home(folder)
        self.address = f"10.213.{os.getpid() % 250}"
        self.ports = {name: webserver.free_port() for name in ("postgres", "prefect", "mlflow", "nginx")}
        self.url = f"https://{self.address}.1:{self.ports['nginx']}"
        stack.callback(self._stop)
        stack.enter_context(machines.bridge(self.bridge, f"{self.address}.1/24"))
        self.services = {name: self._service(name) for name in self.ports}
        for service in self.services.values():
            service.start()
        self._wait_for_servers()
        self.machines = [self._machine(number, name, stack) for number, name in enumerate(WARDS)]
        opened = {machine.name: Hospital.open(machine.ward) for machine in self.machines}
        roster = {
            name: {"key": hospital.public_key, "patients": hospital.policy.declared_patients}
            for name, hospital in opened.items()
        }
        members = {"exchange": str(folder / "exchange"), "hospitals": roster}
        (folder / "federation.yaml").write_text(yaml.safe_dump(members))
        (folder / "chaos.yaml").write_text(yaml.safe_dump(STUDY | {"rounds": rounds}))

    @property
    def bridge(self) -> str:
        """The name of the network between hospitals and coordinator."""
        return f"wr{os.getpid()}"

    def training(self) -> Service:
        """Return a training, which is started again until every round is recorded."""
        before = len(runs_of(self.home))
        environment = {
            **os.environ,
            "PREFECT_API_URL": f"http://127.0.0.1:{self.ports['prefect']}/api",
            "PREFECT_API_AUTH_STRING": PASSWORD,
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.ports['mlflow']}",
        }
        return Service(
            name="coordinator",
            command=_wardround("run", "chaos.yaml", "--federation", "federation.yaml"),
            environment=environment,
            folder=self.folder,
            log=self.folder / "coordinator.log",
            is_done=lambda: any(run.is_finished for run in runs_of(self.home)[before:]),
        )

    def unfinished_flow_runs(self) -> list[dict[str, Any]]:
        """Return the flow runs that Prefect regards as running or waiting."""
        user, _, password = PASSWORD.partition(":")
        reply = httpx.post(
            f"http://127.0.0.1:{self.ports['prefect']}/api/flow_runs/filter", json={"limit": 200},
            auth=(user, password), timeout=60,
        )  # fmt: skip
        return [run for run in reply.raise_for_status().json() if run["state"]["type"] not in FINAL]

    def _service(self, name: str) -> Service:
        user, environment, port = None, dict(os.environ), str(self.ports[name])
        if name == "postgres":
            user, data = "postgres", self._database()
            command = [str(POSTGRES[-1]), "-D", str(data), "-p", port, "-k", str(data)]
        elif name == "prefect":
            database = f"postgresql+asyncpg://postgres@127.0.0.1:{self.ports['postgres']}/postgres"
            environment |= {
                **prefect_settings(self.home),
                "PREFECT_API_DATABASE_CONNECTION_URL": database,
                "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
            }
            command = [part.format(port=port) for part in prefect_server(self.home).command]
        elif name == "mlflow":
            server = mlflow_server(self.home)
            environment |= server.environment
            assert server.database is not None
            server.database.lay(self.folder / "mlflow.log")
            command = [part.format(port=port) for part in server.command]
        else:
            prefect = self.ports["prefect"]
            command = webserver.command(
                self.folder, WARDS, f"{self.address}.1", self.ports[name], prefect
            )
        return Service(name, command, environment, self.folder, self.folder / f"{name}.log", user)

    def _database(self) -> Path:
        self.folder.chmod(0o755)
        data = self.folder / "postgres"
        data.mkdir()
        shutil.chown(data, "postgres", "postgres")
        (self.folder / "postgres.log").touch()
        command = [str(POSTGRES[-1].with_name("initdb")), "-D", str(data), "-A", "trust"]
        subprocess.run(command, user="postgres", cwd=data, check=True, capture_output=True)
        return data

    def _wait_for_servers(self) -> None:
        places = [
            f"http://127.0.0.1:{self.ports['mlflow']}/health",
            f"http://127.0.0.1:{self.ports['prefect']}/api/health",
        ]
        until = time.monotonic() + 180
        while places and time.monotonic() < until:
            with suppress(httpx.HTTPError):
                if httpx.get(places[-1]).status_code in (200, 401):
                    places.pop()
                    continue
            time.sleep(0.5)
        if places:
            raise SystemExit(f"{places[-1]} does not answer; see {self.folder}")

    def _machine(self, number: int, name: str, stack: ExitStack) -> Machine:
        """Make a hospital and its machine: patients, a disk of its own, a link to the web server."""
        ward, clock_home = self.folder / "wards" / name, self.folder / "clocks" / name
        scanner = Scanner(name, 12 + 2 * number, (20, 300, 620, 480), 30, "RAS")
        (made,) = make_wards(self.folder / "made", 0, [scanner])
        ward.mkdir(parents=True)
        stack.enter_context(_disk(ward))
        shutil.copytree(made, ward, dirs_exist_ok=True)
        policy = yaml.safe_load((ward / "site.yaml").read_text()) | {
            "declared_patients": 15,
            "min_patients": 3,
            "min_evaluation_patients": 1,
            "budget": {"epsilon": 100_000.0, "delta": 1e-3},
            "device": {"checkpoint_s": 1},
            "coordinator": {
                "key": public_key(self.home),
                "exchange": f"{self.url}/exchange/",
                "api": f"{self.url}/api",
            },
        }
        (ward / "site.yaml").write_text(yaml.safe_dump(policy))
        clock_home.mkdir(parents=True)
        clock = clock_home / ".faketimerc"
        clock.write_text("+0")
        namespace, link = f"{self.bridge}-{name}", f"{self.bridge}{number}"
        address = f"{self.address}.{10 + number}/24"
        stack.enter_context(machines.namespace(namespace, link, self.bridge, address))
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "HOME": str(clock_home),  # libfaketime reads its .faketimerc, also in the engine
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "PREFECT_API_AUTH_STRING": PASSWORD,
            "SSL_CERT_FILE": str(self.folder / "hub.pem"),
            AUTH: webserver.credential(name, self.url),
        }
        preload = self.folder / "preload"
        preload.write_text(f"{FAKETIME[-1]}\n")
        inside = f'mount --bind {preload} {PRELOAD} && exec ip netns exec {namespace} "$@"'
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", inside, "sh"]
        command += _wardround("site", "worker", ".", "--test-noise", "7")
        log = self.folder / f"{name}.log"
        worker = Service(name, command, environment, ward, log).start()
        stack.callback(worker.stop)
        return Machine(name, ward, namespace, link, clock, worker)

    def _stop(self) -> None:
        for service in getattr(self, "services", {}).values():
            service.stop()


def _wardround(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flows.cli", *arguments]


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Faults:
    """Faults at random, each repaired after a while."""

    def __init__(self, federation: Federation, rng: random.Random, longest_cut_s: float) -> None:
        self._federation, self._rng, self._longest_cut_s = federation, rng, longest_cut_s
        self._lasting: list[threading.Thread] = []
        self.by_kind: Counter[str] = Counter()

    def strike(self, coordinator: Service) -> bool:
        """Break one thing at random; return whether there was anything to break."""
        machine = self._rng.choice(self._federation.machines)
        engine = machine.engine()
        kills: dict[str, Callable[[], bool]] = {
            name: service.kill for name, service in self._federation.services.items()
        }
        kills["coordinator"] = lambda: coordinator.kill(alone=True)
        kills["worker"] = lambda: machine.worker.kill(alone=True)
        if engine is not None:
            kills["engine"] = lambda: _kill(engine)
        lasting = {"cut": self._cut, "full disk": self._fill, "clock back": self._set_back}
        kind = self._rng.choice([*kills, *lasting])
        if kind in kills:
            if not kills[kind]():
                return False
        else:
            seconds = self._rng.uniform(5, self._longest_cut_s if kind == "cut" else 30)
            thread = threading.Thread(target=lasting[kind], args=(machine, seconds), daemon=True)
            thread.start()
            self._lasting.append(thread)
        self.by_kind[kind] += 1
        return True

    def wait(self) -> None:
        """Wait until every fault is repaired."""
        for thread in self._lasting:
            thread.join()

    def _cut(self, machine: Machine, seconds: float) -> None:
        machine.set_link("down")
        time.sleep(seconds)
        machine.set_link("up")

    def _fill(self, machine: Machine, seconds: float) -> None:
        filler = machine.ward / f"filler-{threading.get_ident()}"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(2**16))
                file.flush()
        time.sleep(seconds)
        filler.unlink()

    def _set_back(self, machine: Machine, seconds: float) -> None:
        machine.clock.write_text(CLOCK_BACK)
        time.sleep(seconds)
        machine.clock.write_text("+0")


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def trained(federation: Federation, strike: Callable[[Service], None], counts: Counts) -> str | None:
    """Train once while things break; return the final model's sha256, None if it never ended."""
    coordinator = federation.training().start()
    until = time.monotonic() + PATIENCE_S
    while not coordinator.is_over and time.monotonic() < until:
        strike(coordinator)
    if not coordinator.is_over:
        counts.wedged += 1
        coordinator.stop()
        return None
    return runs_of(federation.home)[-1].records()[-1].model_sha256


def check(federation: Federation, counts: Counts) -> None:
    """Compare every hospital's ledger with the published statements and the records."""
    runs = runs_of(federation.home)
    for run in runs:
        counts.lost_rounds += run.study.rounds + 1 - len(run.records())
        counts.lost_rounds += sum(len(record.releases) < len(WARDS) for record in run.records()[1:])
    for machine in federation.machines:
        entries = Hospital.open(machine.ward).ledger.entries()
        charged = Counter(_act(entry) for entry in entries if entry.action == "reserve")
        given_back = Counter(_act(entry) for entry in entries if entry.action == "void")
        counts.double_charges += sum(max(0, n - given_back[act] - 1) for act, n in charged.items())
        paid = {e.file: charged[_act(e)] - given_back[_act(e)] for e in entries if e.action == "settle"}
        counts.under_counts += sum(
            paid.get(sha256, 0) < 1 for run in runs for sha256 in _released(run, machine.name)
        )


def _act(entry: Entry) -> tuple[str, int, str]:
    return entry.charge.run, entry.charge.round, entry.charge.purpose


def _released(run: Run, site: str) -> list[str]:
    records = (record for record in run.records() if site in record.releases)
    return [record.releases[site].statement_sha256 for record in records]


def chaos(options: argparse.Namespace) -> tuple[Counts, list[str]]:
    """Cause as many faults as asked; return the counts and a table of the faults."""
    kills = options.kills
    counts, rng, seconds = Counts(), random.Random(options.seed), []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos")))
        stack.enter_context(_preload())
        federation = Federation(folder, stack, options.rounds)
        faults = Faults(federation, rng, options.longest_cut)

        def nothing(coordinator: Service) -> None:
            del coordinator
            time.sleep(1)

        def struck(coordinator: Service) -> None:
            time.sleep(rng.expovariate(1 / options.pause))
            if counts.faults < kills and not coordinator.is_over:
                counts.faults += faults.strike(coordinator)
                _tell(counts, faults)

        started = time.monotonic()
        undisturbed = trained(federation, nothing, counts)
        seconds.append(time.monotonic() - started)
        started, runs = time.monotonic(), 0
        while counts.faults < kills and not counts.wedged:
            counts.identical &= trained(federation, struck, counts) == undisturbed
            runs += 1
        faults.wait()
        seconds.append(time.monotonic() - started)
        until = time.monotonic() + 180
        while (left := federation.unfinished_flow_runs()) and time.monotonic() < until:
            time.sleep(2)
        counts.wedged += len(left)
        for flow_run in left:
            print("wedged:", flow_run["name"], flow_run["state"]["name"], file=sys.stderr)
        check(federation, counts)
        counts.orphans += sum(max(0, len(engines(m.ward)) - 1) for m in federation.machines)
        for machine in federation.machines:
            machine.worker.stop(alone=True)
        time.sleep(3)
        counts.orphans += sum(len(engines(machine.ward)) for machine in federation.machines)
        if options.keep:
            shutil.copytree(folder, options.keep, ignore=shutil.ignore_patterns("postgres"))
    table = [f"{kind:12} {times}" for kind, times in sorted(faults.by_kind.items())]
    table.append(f"{runs} trainings in {seconds[1]:.0f} s; undisturbed one takes {seconds[0]:.0f} s")
    return counts, table


def _tell(counts: Counts, faults: Faults) -> None:
    if counts.faults % 10 == 0:
        print(f"{counts.faults} faults: {dict(faults.by_kind)}", file=sys.stderr, flush=True)


@contextmanager
def _preload() -> Iterator[None]:
    """Make a file over which a hospital's own can be mounted."""
    is_ours = not PRELOAD.exists()
    PRELOAD.touch()
    try:
        yield
    finally:
        if is_ours:
            PRELOAD.unlink()


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="faults of all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3, help="of each training")
    parser.add_argument("--pause", type=float, default=8, help="mean seconds between two faults")
    parser.add_argument("--longest-cut", type=float, default=120, help="seconds")
    parser.add_argument("--keep", type=Path, help="a new folder for everything that was left")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not (POSTGRES and FAKETIME and webserver.DAV.exists() and os.geteuid() == 0):
        raise SystemExit("Expected root on Debian with the packages that this file's first lines name.")
    counts, table = chaos(arguments)
    print("\n".join(table), file=sys.stderr)
    print(json.dumps(vars(counts)) if arguments.json else counts)


if __name__ == "__main__":
    main()
