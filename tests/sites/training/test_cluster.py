"""Private training shared by the workers of a real Dask cluster, each a process of its own."""

import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distributed import Client, LocalCluster
from distributed.security import Security
from trainings import RANDOM, TASK, network, patient
from webserver import certify

from models import params as P
from privacy.mechanisms import AdaptiveClip, ClipConfig, Mechanism
from privacy.noise.source import NoiseSource
from sites.policy.cluster import ClusterConfig, on_loopback, reach
from sites.training.cluster import TrainingOnWorkers, is_possible, spread
from sites.training.config import TrainingConfig
from sites.training.dp_sgd import train_privately
from sites.training.examples import prepare
from sites.training.gradient_sum import gradient_sum
from sites.training.lot_sums import LotSum, OwnSums

PATIENTS = [patient("a" * (i + 1), scans=1 + i % 2) for i in range(7)]
CONFIG = TrainingConfig(steps=3, lr=0.3, lot="all", microbatch=2)
EXAMPLES = prepare(PATIENTS, RANDOM, torch.device("cpu"), 5)
OWN = OwnSums(TASK, EXAMPLES, CONFIG)
TOLD = TrainingOnWorkers(network(), TASK, CONFIG, RANDOM, 5, "cpu", 1)
ADAPTIVE = AdaptiveClip(kind="adaptive", norm=1.0)
FULL = Mechanism(ADAPTIVE, 0.5, 1.0, 3, divisor=7)
SAMPLED = Mechanism(ClipConfig(kind="flat", norm=1.0), 0.5, 0.6, 3, divisor=4)


@pytest.fixture(scope="module")
def machines() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as made:
        yield made


@pytest.fixture
def config(machines: LocalCluster) -> ClusterConfig:
    machines.wait_for_workers(2, timeout=60)
    return ClusterConfig(scheduler=machines.scheduler_address)


def trained(
    mechanism: Mechanism,
    config: ClusterConfig | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    told: TrainingOnWorkers = TOLD,
) -> tuple[P.Params, float]:
    """Return the parameters and the clip norm after a training, on a cluster or here alone."""
    net, noise = network(), NoiseSource.for_test(1, "")
    if config is None:
        left = train_privately(net, TASK, EXAMPLES, CONFIG, mechanism, noise, None, progress)
        return P.of(net), left.clip.norm
    with spread(config, told, PATIENTS, OWN) as sums:
        left = train_privately(net, TASK, EXAMPLES, CONFIG, mechanism, noise, None, progress, sums=sums)
    return P.of(net), left.clip.norm


def is_equal(a: tuple[P.Params, float], b: tuple[P.Params, float]) -> bool:
    return a[1] == b[1] and all(torch.equal(a[0][name], b[0][name]) for name in a[0])


def held(machines: LocalCluster) -> list[int]:
    """Return the number of trainings that each worker has."""
    with Client(machines.scheduler_address) as client:
        return list(client.run(_held_here).values())


def _held_here() -> int:
    gc.collect()
    return sum(type(each).__name__ == "HeldTraining" for each in gc.get_objects())


def forgotten(machines: LocalCluster) -> bool:
    """Return whether the workers forget their trainings within some seconds."""
    for _ in range(40):
        if not any(held(machines)):
            return True
        time.sleep(0.25)
    return False


@pytest.mark.slow
def test_two_workers_train_to_the_bits_of_one_process_and_keep_no_scan(
    machines: LocalCluster, config: ClusterConfig
) -> None:
    seen: list[list[int]] = []

    def progress(what: str, step: int, of: int) -> None:
        if step == 1:
            seen.append(held(machines))

    assert is_equal(trained(FULL, config, progress), trained(FULL))
    assert seen == [[1, 1]]  # each had the training
    assert forgotten(machines)


HOLDS = """
import sys, time
import torch
from trainings import RANDOM, TASK, network, patient
from sites.policy.cluster import ClusterConfig
from sites.training.cluster import TrainingOnWorkers, spread
from sites.training.config import TrainingConfig
from sites.training.examples import prepare
from sites.training.lot_sums import OwnSums
config = TrainingConfig(steps=3, lr=0.3, lot="all", microbatch=1)
patients = [patient("a"), patient("bb")]
own = OwnSums(TASK, prepare(patients, RANDOM, torch.device("cpu"), 5), config)
told = TrainingOnWorkers(network(), TASK, config, RANDOM, 5, "cpu", 1)
with spread(ClusterConfig(scheduler=sys.argv[1]), told, patients, own):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_workers_forget_the_scans_of_a_hospital_whose_process_is_killed(
    machines: LocalCluster, config: ClusterConfig
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, config.scheduler],
        env=environment, stdout=subprocess.PIPE, text=True,
    ) as hospital:  # fmt: skip
        assert hospital.stdout.readline() == "held\n"
        assert held(machines) == [1, 1]
        hospital.kill()
    assert forgotten(machines)


@pytest.mark.slow
def test_sampled_patients_are_those_of_one_process_up_to_the_rounding_of_a_microbatch(
    config: ClusterConfig,
) -> None:
    spread_out, alone = trained(SAMPLED, config)[0], trained(SAMPLED)[0]
    for name in alone:
        assert torch.allclose(spread_out[name], alone[name], atol=1e-6)


@pytest.mark.slow
def test_the_sum_for_a_secure_sum_is_that_of_one_process(config: ClusterConfig) -> None:
    net, seen = network(), []
    alone = gradient_sum(net, OWN, len(PATIENTS), FULL, lambda *_: None)
    with spread(config, TOLD, PATIENTS, OWN) as sums:
        shared = gradient_sum(net, sums, len(PATIENTS), FULL, lambda *told: seen.append(told))
    assert (shared == alone).all()
    assert seen == [("train", 0, 1), ("train", 1, 1)]  # no number of patients


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_time_alone(
    machines: LocalCluster, config: ClusterConfig, caplog: pytest.LogCaptureFixture
) -> None:
    def progress(what: str, step: int, of: int) -> None:
        if step == 1:
            with Client(machines.scheduler_address) as client:
                pid, *_ = client.run(os.getpid).values()
            os.kill(pid, signal.SIGKILL)

    with caplog.at_level(logging.WARNING, "wardround.site"):
        found = trained(FULL, config, progress)
    assert is_equal(found, trained(FULL))
    assert "is lost" in caplog.text and "its patients are trained here" in caplog.text


@contextmanager
def commands() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A scheduler and a worker as a hospital starts them: the address, and the scheduler."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    python, nothing = [sys.executable, "-m"], "--no-dashboard"
    port = address.rpartition(":")[2]
    wanted = [
        [*python, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port, nothing],
        [*python, "distributed.cli.dask_worker", address, "--host", "127.0.0.1", nothing,
         "--nthreads", "1", "--no-nanny"],
    ]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [subprocess.Popen(command, env=environment, **quiet) for command in wanted]
    try:
        with Client(address, timeout=60) as client:
            client.wait_for_workers(1, timeout=60)
        yield address, started[0]
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("waits_s", [0, 11])
def test_a_scheduler_that_ends_costs_time_alone(waits_s: int, caplog: pytest.LogCaptureFixture) -> None:
    with commands() as (address, scheduler):

        def progress(what: str, step: int, of: int) -> None:
            if step == 1:
                scheduler.kill()
                time.sleep(waits_s)  # Dask's client gives up after 10 s

        assert is_equal(trained(FULL, ClusterConfig(scheduler=address), progress), trained(FULL))
    assert "gets no scan" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_worker_with_other_versions_gets_no_patient(
    place: int, config: ClusterConfig, caplog: pytest.LogCaptureFixture
) -> None:
    other = tuple("0" if i == place else each for i, each in enumerate(TOLD.versions))
    assert is_equal(trained(FULL, config, told=replace(TOLD, versions=other)), trained(FULL))
    assert "gets no scan: it has PyTorch" in caplog.text and "training alone" in caplog.text


@pytest.mark.parametrize("wrong", ["long", "nan", "shape", "within"])
def test_a_sum_that_its_patients_could_not_have_is_not_used(wrong: str) -> None:
    net = network()
    found = OWN(net, range(3), 0, FULL)
    assert is_possible(found, net, 3, FULL)
    first, *others = found.sums
    changed = {"long": first + 3, "nan": first * float("nan"), "shape": first[:1], "within": first}[
        wrong
    ]
    within = 2.0 if wrong == "within" else found.within
    assert not is_possible(LotSum((changed, *others), within), net, 3, FULL)


@pytest.mark.slow
def test_without_tls_workers_that_others_reach_get_no_scan(config: ClusterConfig) -> None:
    there = ["tcp://10.0.0.5:1", "tcp://127.0.0.1:2", "tcp://localhost:3", "tcp://127.evil.example:4"]
    assert on_loopback(there) == ["tcp://127.0.0.1:2", "tcp://localhost:3"]
    assert reach(config) == 2


@pytest.mark.slow
def test_without_a_cluster_or_with_an_empty_one_the_hospital_trains_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nowhere = ClusterConfig(scheduler="tcp://127.0.0.1:9")
    assert is_equal(trained(FULL, nowhere), trained(FULL))
    assert "tcp://127.0.0.1:9 can't be used; training alone" in caplog.text
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None) as empty:
        assert is_equal(trained(FULL, ClusterConfig(scheduler=empty.scheduler_address)), trained(FULL))
    assert "has no worker; training alone" in caplog.text


@pytest.mark.slow
def test_scans_travel_under_tls_and_only_to_a_cluster_with_the_hospitals_own_certificates(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
        certify(tmp_path / name, "127.0.0.1")
    pem, key = (str(tmp_path / "own" / file) for file in ("hub.pem", "hub.key"))
    security = Security(
        require_encryption=True, tls_ca_file=pem,
        tls_scheduler_cert=pem, tls_scheduler_key=key, tls_worker_cert=pem, tls_worker_key=key,
        tls_client_cert=pem, tls_client_key=key,
    )  # fmt: skip
    files = {"ca": "hub.pem", "certificate": "hub.pem", "key": "hub.key"}
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, protocol="tls://", security=security
    ) as made:
        there = ClusterConfig(scheduler=made.scheduler_address, **files)
        assert reach(there.within(tmp_path / "own")) == 2
        assert is_equal(trained(FULL, there.within(tmp_path / "own")), trained(FULL))
        assert "alone" not in caplog.text
        assert is_equal(trained(FULL, there.within(tmp_path / "other")), trained(FULL))
    assert "can't be used; training alone" in caplog.text


def test_an_address_that_others_reach_needs_certificates() -> None:
    for wrong in (
        {"scheduler": "tcp://10.0.0.5:8786"},
        {"scheduler": "tls://10.0.0.5:8786"},
        {"scheduler": "tls://10.0.0.5:8786", "ca": "ca.pem"},
        {"scheduler": "tcp://127.0.0.1:8786", "ca": "a", "certificate": "b", "key": "c"},
    ):
        with pytest.raises(ValueError, match=r"tls://"):
            ClusterConfig.model_validate(wrong)


@pytest.mark.slow
def test_a_scan_that_cant_be_read_is_left_out_and_its_path_is_not_told(
    config: ClusterConfig, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> None:
        raise OSError("/srv/patients/jane.nii")

    first, second = PATIENTS[1].scans
    broken = replace(PATIENTS[1], scans=(replace(first, load=load), second))
    few = [PATIENTS[0], broken, *PATIENTS[2:]]
    own = OwnSums(TASK, prepare(few, RANDOM, torch.device("cpu"), 5), CONFIG)
    alone = own(network(), range(7), 0, FULL)
    with spread(config, TOLD, few, own) as sums:
        found = sums(network(), range(7), 0, FULL)
    assert found.within == alone.within
    assert all(torch.equal(a, b) for a, b in zip(found.sums, alone.sums, strict=True))
    assert "jane" not in caplog.text
