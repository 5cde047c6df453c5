"""Hospitals' processes on a real Dask cluster of two workers, each a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import change_yaml
from distributed import Client, LocalCluster

from flows.hospitals.cluster import NoCluster, on_cluster
from flows.hospitals.processes import HospitalFailed, public_keys
from flows.runs.paths import Home
from flows.runs.run import runs_of
from sites.hospital import Hospital

COMMAND = [sys.executable, "-m", "flows.cli", "run"]


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as made:
        yield made


def test_a_study_trains_on_two_workers_to_the_bits_of_one_machine(
    cluster: LocalCluster, tmp_path: Path, small_wards, study_file
) -> None:
    study, models = study_file(rounds=2), {}
    for means in ([], ["--cluster", cluster.scheduler_address]):
        home = tmp_path / ("cluster" if means else "here")
        small_wards(home / "wards")
        subprocess.run([*COMMAND, str(study), "--test-noise", "7", *means], cwd=home, check=True)
        (run,) = runs_of(Home(home))
        assert run.is_finished
        models[bool(means)] = [record.model_sha256 for record in run.records()]
    assert models[True] == models[False]
    with Client(cluster.scheduler_address) as client:
        kept = client.run(_kept_here)
    assert len(kept) == 2
    assert sum(map(len, kept.values())) >= 4  # every hospital had its process, on one of them


@pytest.mark.slow
def test_a_hospital_whose_policy_names_its_own_cluster_releases_the_bits_of_one_machine(
    cluster: LocalCluster, tmp_path: Path, small_wards, study_file
) -> None:
    study, models = study_file(rounds=1), []
    for shared in (False, True):
        home = tmp_path / ("shared" if shared else "alone")
        wards = small_wards(home / "wards")
        if shared:
            device = {"cluster": {"scheduler": cluster.scheduler_address}}
            change_yaml(wards / "north" / "site.yaml", device=device)
        subprocess.run([*COMMAND, str(study), "--test-noise", "7"], cwd=home, check=True)
        models.append([record.model_sha256 for record in runs_of(Home(home))[0].records()])
    assert models[0] == models[1]
    assert "alone" not in (wards / "north" / "state" / "site.log").read_text()
    with Client(cluster.scheduler_address) as client:
        assert list(client.run(_has_summed_here).values()) == [True, True]


def _has_summed_here() -> bool:
    return "sites.training.cluster" in sys.modules


def _kept_here() -> list[str]:
    from flows.hospitals.cluster import _here  # in the worker

    return [name for name, _, _ in _here.processes]


def test_the_keys_are_the_hospitals_own_and_a_folder_that_is_not_there_is_named(
    cluster: LocalCluster, tmp_path: Path, small_wards
) -> None:
    wards = small_wards(tmp_path / "wards")
    folders = {name: wards / name for name in ("north", "east")}
    with on_cluster(cluster.scheduler_address, folders) as hospitals:
        own = {name: Hospital.open(folder).public_key for name, folder in folders.items()}
        assert public_keys(hospitals) == own
    with (
        on_cluster(cluster.scheduler_address, {"far": tmp_path / "not-here"}) as hospitals,
        pytest.raises(HospitalFailed, match=r"far: expected its folder .* on this machine too"),
    ):
        hospitals["far"].public_key()


def test_a_scheduler_that_is_not_there_or_has_no_worker_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(NoCluster, match=r"--cluster: tcp://127\.0\.0\.1:9 can't be reached"),
        on_cluster("tcp://127.0.0.1:9", {"north": tmp_path}),
    ):
        pass
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as empty,
        pytest.raises(NoCluster, match=r"has no worker; start `dask worker"),
        on_cluster(empty.scheduler_address, {"north": tmp_path}),
    ):
        pass
