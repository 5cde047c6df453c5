import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest
from coordinator import Coordinator, first_model
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sites.admission.resources import MB, check_disk, exclusive_device
from sites.exchange.exchange import Exchange
from sites.hospital import Hospital
from sites.policy.policy import DeviceConfig, Refused


@pytest.fixture
def ward(tmp_path: Path, small_wards) -> Path:
    return small_wards(tmp_path / "wards") / "east"


@pytest.fixture
def coordinator(tmp_path: Path, study_with) -> Coordinator:
    made = Coordinator(study_with(), Exchange(str(tmp_path / "exchange")), Ed25519PrivateKey.generate())
    made.publish(0, first_model(made.study))
    return made


def test_a_hospital_whose_disk_is_full_takes_no_part_and_nothing_is_charged(
    ward: Path, coordinator: Coordinator, edit
) -> None:
    edit(ward / "site.yaml", cache_mb=5, disk_mb=7)
    hospital = Hospital.open(ward, test_noise=1)
    filler = hospital.state / "outbox" / "filler"
    filler.parent.mkdir(parents=True)
    filler.write_bytes(bytes(3 * MB))
    assert "disk" in coordinator.order(hospital, "contribute", 1).reason
    assert not hospital.ledger.charges()
    filler.unlink()
    assert coordinator.order(hospital, "contribute", 1, attempt=2).kind == "release"


def test_old_global_models_make_room_and_the_newest_two_of_a_run_stay(ward: Path, edit) -> None:
    edit(ward / "site.yaml", cache_mb=0, disk_mb=3)
    hospital = Hospital.open(ward)
    for round in range(4):
        path = hospital.stored("global", "small-1", round)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(MB))
    check_disk(hospital)
    assert sorted(p.stem for p in path.parent.iterdir()) == ["002", "003"]
    (hospital.state / "teacher").write_bytes(bytes(2 * MB))
    with pytest.raises(Refused, match="disk"):
        check_disk(hospital)


def test_one_hospital_at_a_time_trains_on_an_accelerator(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first, second = (DeviceConfig(kind="cuda", index=index) for index in (0, 1))

    def hold(device: DeviceConfig, held) -> None:
        with exclusive_device(device):
            held.set()
            time.sleep(60)

    context = multiprocessing.get_context("fork")
    held, again, other = context.Event(), context.Event(), context.Event()
    processes = [
        context.Process(target=hold, args=pair)
        for pair in ((first, held), (first, again), (second, other))
    ]
    processes[0].start()
    assert held.wait(30)
    for process in processes[1:]:
        process.start()
    assert other.wait(30)
    assert not again.wait(1)
    processes[0].kill()  # a kill lets go of it
    assert again.wait(30)
    for process in processes:
        process.kill()
        process.join()


def test_a_process_gets_no_more_memory_than_its_policy_lets_it_have() -> None:
    code = (
        "from sites.policy.policy import DeviceConfig\n"
        "from sites.admission.resources import limit_memory\nimport torch\n"
        "torch.zeros(2**28)\nlimit_memory(DeviceConfig(memory_mb=1500))\ntorch.zeros(2**24)\n"
        "try:\n    torch.zeros(2**30)\nexcept RuntimeError as error:\n    print('refused', error)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.stdout.startswith("refused"), done.stderr
