"""`wardround doctor` sees what is wrong, and what to do."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from distributed import LocalCluster
from typer.testing import CliRunner

from flows.cli.main import app
from flows.planning.doctor import signs


def seen(folder: Path) -> dict[str, tuple[str, str]]:
    return {sign.what: (sign.state, sign.found) for sign in signs(folder)}


@contextmanager
def answering(date: str) -> Iterator[str]:
    """A server whose clock shows `date`."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(200)
            self.send_header("Date", date)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@pytest.fixture
def ward(tmp_path: Path, small_wards) -> Path:
    return small_wards(tmp_path / "wards") / "north"


def test_a_hospital_that_is_well(ward: Path) -> None:
    found = seen(ward)
    assert {state for state, _ in found.values()} <= {"well", "look"}  # the disk may be small
    assert found["site.yaml and list"][1].startswith("north: ")
    assert CliRunner().invoke(app, ["doctor", str(ward)]).exit_code == 0


def test_a_state_that_others_may_open_is_wrong(ward: Path) -> None:
    (ward / "state").mkdir(exist_ok=True)
    (ward / "state").chmod(0o755)
    state, words = seen(ward)["state/"]
    assert (state, "chmod 700" in words) == ("wrong", True)
    done = CliRunner().invoke(app, ["doctor", str(ward), "--json"])
    assert done.exit_code == 1
    assert any(sign["what"] == "state/" for sign in json.loads(done.stdout))


def test_a_policy_that_is_wrong_is_named_and_the_rest_is_looked_at(ward: Path, edit) -> None:
    edit(ward / "site.yaml", declared_patients=-3)
    found = seen(ward)
    assert found["site.yaml and list"][0] == "wrong"
    assert "declared_patients" in found["site.yaml and list"][1]
    assert found["packages"][0] == "well"


def test_a_gpu_that_is_asked_for_and_not_there_is_wrong(ward: Path, edit) -> None:
    import torch

    edit(ward / "site.yaml", device={"kind": "cuda"})
    assert seen(ward)["GPU"][0] == ("well" if torch.cuda.is_available() else "wrong")


def test_an_address_that_does_not_answer_and_a_clock_that_is_off_are_wrong(ward: Path, edit) -> None:
    key = "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"
    with answering("Mon, 01 Jan 2001 00:00:00 GMT") as url:
        api = "http://127.0.0.1:9/api"  # nobody listens on the port of `discard`
        edit(ward / "site.yaml", coordinator={"key": key, "exchange": url, "api": api})
        found = seen(ward)
    assert found["exchange"] == ("well", f"{url} answers")
    assert found["clock"][0] == "wrong" and "set it right" in found["clock"][1]
    assert found["Prefect's API"][0] == "wrong" and "out of reach" in found["Prefect's API"][1]


def test_a_coordinator_with_an_unfinished_run_is_told_so(finished: Path, tmp_path: Path) -> None:
    from homes import moved

    run = moved(finished, tmp_path / "home")
    assert seen(run.home.folder)["runs"] == ("well", "1, none unfinished")
    (run.folder / "finished").unlink()
    state, words = seen(run.home.folder)["runs"]
    assert state == "look" and run.name in words


def test_a_list_that_is_wrong_does_not_hide_an_address_that_does_not_answer(ward: Path, edit) -> None:
    url = "http://127.0.0.1:9"
    edit(ward / "site.yaml", coordinator={"key": "0" * 64, "exchange": f"{url}/x/", "api": f"{url}/api"})
    (ward / "dataset.json").write_text("no list")
    found = seen(ward)
    assert found["site.yaml and list"][0] == "wrong"
    assert (found["exchange"][0], found["Prefect's API"][0]) == ("wrong", "wrong")
    assert {"state/", "ledger", "clock"} <= found.keys()


def test_an_exchange_that_is_no_website_is_tried_too(ward: Path, edit) -> None:
    api = "http://127.0.0.1:9/api"
    for exchange in ("sftp://u@127.0.0.1:9/folder", "nosuch://x/y"):
        edit(ward / "site.yaml", coordinator={"key": "0" * 64, "exchange": exchange, "api": api})
        state, words = seen(ward)["exchange"]
        assert state == "wrong" and words.startswith(exchange)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", str(tmp_path / "nosuch")])
    assert done.exit_code == 2 and "expected a folder" in done.stderr


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_or_has_no_worker_is_wrong(ward: Path, edit) -> None:
    edit(ward / "site.yaml", device={"cluster": {"scheduler": "tcp://127.0.0.1:9"}})
    state, found = seen(ward)["cluster"]
    assert state == "wrong" and found.startswith("tcp://127.0.0.1:9 can't be reached")
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None) as made:
        edit(ward / "site.yaml", device={"cluster": {"scheduler": made.scheduler_address}})
        assert seen(ward)["cluster"][1].endswith("has no worker; start `dask worker`")
        made.scale(1)
        made.wait_for_workers(1, timeout=60)
        assert seen(ward)["cluster"] == ("well", f"1 workers at {made.scheduler_address}")
