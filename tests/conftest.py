"""What tests share: where the real scans are, small made-up hospitals, somebody who is called."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import yaml
from homes import moved

from flows.servers.environment import QUIET, mlflow_server
from flows.servers.loopback import running
from sites.datasets.phantoms import Scanner, make_wards
from sites.notifications import WEBHOOK
from sites.study import Study

os.environ.setdefault("WARDROUND_DATA", str(Path(__file__).parent.parent.parent / "shared" / "data"))
for name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"):  # as in every process of a run
    os.environ.setdefault(name, QUIET[name])
torch.set_num_threads(1)
# What tests start can be interrupted, also where a shell has started the tests in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("untimed")

SMALL = (
    Scanner("north", 16, (20, 300, 620, 480), 30, "RAS"),
    Scanner("east", 14, (5, 90, 190, 150), 11, "LPS"),
    Scanner("south", 12, (0.05, 0.45, 0.95, 0.75), 0.05, "PIR"),
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real scans; tests that use it skip where it is absent."""
    folder = Path(os.environ["WARDROUND_DATA"])
    if not folder.is_dir():
        pytest.skip(f"no real scans at {folder}; set WARDROUND_DATA")
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Where everything is to be there (`.ci/run`), let no test skip but for what can't be installed."""
    report = yield
    if os.environ.get("WARDROUND_NO_SKIPS") and report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr)
        if not any(known in reason for known in ("no real scans", "network namespaces need root")):
            report.outcome, report.longrepr = "failed", f"skipped, which is not allowed here: {reason}"
    return report


def change_yaml(path: Path, **changes: object) -> None:
    """Set keys of a YAML file; None deletes one."""
    content = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))


@pytest.fixture
def edit() -> Callable[..., None]:
    """A function that sets keys of a YAML file."""
    return change_yaml


@pytest.fixture(scope="session")
def small_wards() -> Callable[[Path], Path]:
    """A function that makes three small made-up hospitals in a folder."""

    def make(folder: Path) -> Path:
        for ward in make_wards(folder, 0, SMALL):
            change_yaml(
                ward / "site.yaml",
                declared_patients=20,
                min_patients=3,
                min_evaluation_patients=1,
                budget={"epsilon": 50.0, "delta": 1e-3},
            )
        return folder

    return make


STUDY = {
    "name": "small",
    "task": {"kind": "segmentation", "dims": 3, "labels": {1: "head", 2: "tail"}},
    "network": {"name": "UNet", "channels": [4, 8]},
    "rounds": 2,
    "sites": {"min": 2, "deadline_s": 120},
    "preprocessing": {"shape": [16, 16, 16]},
    "training": {"steps": 2, "lr": 0.1, "lot": "all"},
    "privacy": {
        "mode": "local",
        "unit": "patient",
        "epsilon": 20,
        "delta": 1e-3,
        "clip": {"kind": "normalised", "norm": 1.0},
    },
    "distillation": {"transfer": "synthetic", "steps": 4, "images": 16},
    "export": "student",
    "strategy": {"name": "fed_avg"},
}


@pytest.fixture(scope="session")
def small_study() -> dict[str, object]:
    """The keys of a study that trains in seconds."""
    return STUDY


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that one of the processes that test makes, and all of them use."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    home = shared / name / "home"
    home.parent.mkdir(exist_ok=True)
    with (shared / name / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / name / "made").exists():
            shutil.rmtree(home, ignore_errors=True)
            make(home)
            (shared / name / "made").touch()
    return home


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory, small_wards) -> Path:
    """A home in which nothing has run yet, to be copied."""
    return made_once(tmp_path_factory, "untouched", lambda home: fill(home, small_wards))


def fill(home: Path, small_wards: Callable[[Path], Path]) -> None:
    """Make the small hospitals of a home, and its study."""
    small_wards(home / "wards")
    for name, group in (("north", "bright"), ("south", "bright"), ("east", "dark")):
        change_yaml(home / "wards" / name / "site.yaml", group=group, worst_case="tell")
    for name in ("north", "south"):
        change_yaml(home / "wards" / name / "site.yaml", cross_site="allow")
    promotion = {"metric": "dice", "mean": 0.001, "worst_site": 0.001}
    study = {**STUDY, "evaluation": {"cross_site": True}, "promotion": promotion}
    (home / "small.yaml").write_text(yaml.safe_dump(study))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, untouched: Path) -> Path:
    """A home in which the small study was trained, undisturbed; whoever changes anything copies it."""

    def make(home: Path) -> None:
        shutil.copytree(untouched, home)
        command = [sys.executable, "-m", "flows.cli", "run", "small.yaml", "--test-noise", "7"]
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        (home / "printed").write_text(done.stdout + done.stderr)

    return made_once(tmp_path_factory, "finished", make)


@pytest.fixture(scope="module")
def with_mlflow(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Iterator[tuple[Path, str]]:
    """A copy of the finished home and its MLflow's address; `homes.put_back` undoes what a test did."""
    home = moved(finished, tmp_path_factory.mktemp("with-mlflow") / "home").home
    with running(mlflow_server(home)) as url:
        yield home.folder, url


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of a real browser without anything remembered."""
    from browsing import new_page

    with new_page() as opened:
        yield opened


@pytest.fixture
def study_with() -> Callable[..., Study]:
    """A function that returns a small study with some keys changed; None deletes one."""

    def make(**changes: object) -> Study:
        content = {**STUDY, **changes}
        return Study.model_validate({k: v for k, v in content.items() if v is not None})

    return make


@pytest.fixture
def study_file(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a small study, with some keys changed, to a file."""

    def write(**changes: object) -> Path:
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(STUDY))
        change_yaml(path, **changes)
        return path

    return write


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Whatever is posted to the webhook while a test runs."""
    heard: list[dict[str, Any]] = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(WEBHOOK, f"http://127.0.0.1:{server.server_port}/hook")
    yield heard
    server.shutdown()
