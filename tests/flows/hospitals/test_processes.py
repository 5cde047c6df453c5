import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows.hospitals.processes import HospitalFailed, HospitalLeftOut, HospitalProcess
from flows.hospitals.template import PASSED_ON, Template, started_template
from sites.orders import Order

PARENT = """
import sys, time
from pathlib import Path
from flows.hospitals.processes import HospitalProcess
process = HospitalProcess("north", Path(sys.argv[1]))
process.public_key()
print(process.pid, flush=True)
time.sleep(60)
"""
WARM = """
import sys, time
from pathlib import Path
from flows.hospitals.processes import warm
from flows.hospitals.template import started_template
folders = {name: Path(sys.argv[1]) / name for name in ("north", "east")}
with started_template() as template, warm(folders, lambda *_: None, template) as processes:
    for process in processes.values():
        process.public_key()
    print(*(process.pid for process in processes.values()), flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def wards(tmp_path_factory: pytest.TempPathFactory, small_wards) -> Path:
    return small_wards(tmp_path_factory.mktemp("wards"))


@pytest.fixture(scope="module")
def template():
    with started_template() as made:
        yield made


@pytest.fixture(params=["alone", "forked"])
def process(request: pytest.FixtureRequest, wards: Path, template: Template):
    given = template if request.param == "forked" else None
    hospital = HospitalProcess("north", wards / "north", template=given)
    yield hospital
    hospital.close()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_killed_process_is_started_again(process: HospitalProcess) -> None:
    key = process.public_key()
    first = process.pid
    os.kill(first, signal.SIGKILL)
    time.sleep(0.2)
    with pytest.raises(HospitalFailed, match="Fault"):
        process.request({"no": "order"}, timeout_s=60)
    assert process.pid not in (None, first)
    assert process.public_key() == key


def test_a_wrong_order_fails_and_tells_its_class_alone(process: HospitalProcess) -> None:
    with pytest.raises(HospitalFailed) as caught:
        process.request({"phase": "contribute", "secret": "value"}, timeout_s=60)
    assert "secret" not in str(caught.value)


def test_a_late_process_is_killed(process: HospitalProcess) -> None:
    process.public_key()
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(HospitalLeftOut, match=r"no answer within 0\.5 s"):
        process.request({}, timeout_s=0.5)
    assert process.pid is None


def test_a_process_sees_its_own_folder_and_neither_secrets_nor_others(
    process: HospitalProcess, wards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COORDINATORS_PASSWORD", "secret")
    process.public_key()
    proc = Path(f"/proc/{process.pid}")
    assert (proc / "cwd").resolve() == (wards / "north").resolve()
    seen = (proc / "environ").read_text() + (proc / "cmdline").read_text()
    assert "secret" not in seen
    assert "east" not in seen and "south" not in seen
    files = [os.readlink(fd) for fd in (proc / "fd").iterdir() if fd.exists()]
    assert not any("/east" in name or "/south" in name for name in files)


def test_a_module_in_a_hospitals_folder_is_data_and_is_not_run(wards: Path) -> None:
    (wards / "east" / "torch.py").write_text("open('was_run', 'w')")
    hospital = HospitalProcess("east", wards / "east")
    hospital.public_key()
    hospital.close()
    assert not (wards / "east" / "was_run").exists()


def test_a_process_dies_with_its_parent(wards: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(wards / "north")], stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.kill()
    parent.wait()
    for _ in range(50):
        if not is_alive(child):
            break
        time.sleep(0.1)
    assert not is_alive(child)


def test_processes_of_a_template_die_with_their_coordinator_and_are_alone_in_their_sessions(
    wards: Path,
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", WARM, str(wards)], stdout=subprocess.PIPE, text=True
    )
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len({os.getsid(pid) for pid in children} | {parent.pid}) == 3
    assert [Path(os.readlink(f"/proc/{pid}/cwd")).name for pid in children] == ["north", "east"]
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in children]
    (template,) = {int(each[1]) for each in stats}
    parent.kill()
    parent.wait()
    for _ in range(50):
        if not any(map(is_alive, (*children, template))):
            break
        time.sleep(0.1)
    assert not any(map(is_alive, (*children, template)))


def test_a_fork_that_is_closed_at_once_ends(wards: Path, template: Template) -> None:
    """It may not lead its session yet, so that there is no group to kill."""
    for _ in range(20):
        hospital = HospitalProcess("north", wards / "north", template=template)
        hospital.start()
        pid = hospital.pid
        hospital.close()
        assert pid is None or not is_alive(pid)


def test_a_process_that_is_closed_while_it_starts_ends(wards: Path) -> None:
    """Its start waits for the template's imports, and whoever closes it waits for the start only."""
    importing = Template({name: os.environ[name] for name in PASSED_ON if name in os.environ})
    importing.start()
    hospital = HospitalProcess("north", wards / "north", template=importing)
    start = threading.Thread(target=hospital.start)
    start.start()
    while not hospital._one_at_a_time.locked():
        time.sleep(0.001)
    hospital.close()
    start.join()
    importing.close()
    assert hospital.pid is None


def test_where_the_template_has_ended_a_process_starts_by_itself(wards: Path) -> None:
    ended = Template({name: os.environ[name] for name in PASSED_ON if name in os.environ})
    ended.start()
    ended.close()
    hospital = HospitalProcess("north", wards / "north", template=ended)
    assert len(hospital.public_key()) == 64
    hospital.close()


def test_forks_draw_keys_of_their_own(wards: Path, template: Template, tmp_path: Path) -> None:
    """Randomness comes from the system, and not from a state that all forks share."""
    keys = set()
    for name in "abc":
        shutil.copytree(wards / "south", tmp_path / name, ignore=shutil.ignore_patterns("state"))
        hospital = HospitalProcess(name, tmp_path / name, template=template)
        keys.add(hospital.public_key())
        hospital.close()
    assert len(keys) == 3


def test_lines_that_are_no_answers_are_passed_over() -> None:
    from flows.hospitals.processes import _parsed

    assert [_parsed(line) for line in ("a warning\n", "[1]", "3", json.dumps({"done": True}))] == [
        {}, {}, {}, {"done": True},
    ]  # fmt: skip


def test_a_hospital_that_is_closed_while_it_works_ends_and_starts_nothing_any_more(
    process: HospitalProcess, study_with
) -> None:
    process.public_key()
    os.kill(process.pid, signal.SIGSTOP)  # it works for ever
    order = Order(
        phase="join", study=study_with(), site="north", run="small-1", round=1, attempt=1, exchange="x",
        coordinator="0" * 64,
    )  # fmt: skip
    process.invite(order)
    invited = process._invited
    process.invite(order)
    assert process._invited is invited
    process.close()
    invited.join(timeout=30)
    assert not invited.is_alive()
    with pytest.raises(HospitalFailed, match="its process is closed"):
        process.carry_out(order, 10)
    assert process.pid is None


SHARING = """
import os, sys, time
from pathlib import Path
from flows.hospitals.processes import warm
from flows.hospitals.template import started_template
open_file = open(sys.argv[2])
folders = {"north": Path(sys.argv[1]) / "north"}
with started_template(shares=True) as template, warm(folders, lambda *_: None, template) as processes:
    processes["north"].public_key()
    print(processes["north"].pid, flush=True)
    sys.stdin.read()
"""


def test_a_process_of_a_template_that_was_split_off_knows_nothing_of_its_coordinator(
    wards: Path, tmp_path: Path
) -> None:
    """Neither its environment, as the system shows it, nor its files; and it dies with it."""
    secret = tmp_path / "secret"
    secret.write_text("a key")
    coordinator = subprocess.Popen(
        [sys.executable, "-c", SHARING, str(wards), str(secret)],
        env={**os.environ, "MLFLOW_TRACKING_PASSWORD": "hush"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert coordinator.stdout is not None
    pid = int(coordinator.stdout.readline())
    about = Path(f"/proc/{pid}")
    template = int((about / "stat").read_text().rpartition(")")[2].split()[1])
    for each in (about, Path(f"/proc/{template}")):
        assert b"hush" not in (each / "environ").read_bytes()
        assert str(secret) not in [os.readlink(link) for link in (each / "fd").iterdir()]
    assert template != coordinator.pid
    assert os.getsid(pid) != os.getsid(template) != os.getsid(coordinator.pid)
    coordinator.kill()
    coordinator.wait()
    for _ in range(100):
        if not any(map(is_alive, (pid, template))):
            break
        time.sleep(0.1)
    assert not any(map(is_alive, (pid, template)))
