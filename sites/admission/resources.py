"""Resources of a hospital's machine: limits on disk and memory, and exclusive use of a device."""

import fcntl
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sites.hospital import Hospital
from sites.policy.policy import DeviceConfig, Refused

MB = 2**20
LOCKS = Path("/run/lock")
KEPT_MODELS = 2
"""Number of stored global models of a run: the start of a round, and one more for corrections."""


def check_disk(hospital: Hospital) -> None:
    """Raise `Refused` if `state/` without the cache exceeds the policy's `disk_mb` less `cache_mb`.

    Old global models are deleted first.
    """
    policy = hospital.policy
    if policy.disk_mb is None:
        return
    room = (policy.disk_mb - policy.cache_mb) * MB
    if _bytes_beside_cache(hospital.state) > room:
        _delete_old_models(hospital.state / "global")
    if _bytes_beside_cache(hospital.state) > room:
        raise Refused("the disk space that the hospital allows for studies is full")


def limit_memory(device: DeviceConfig) -> None:
    """Limit this process's memory to the policy's `memory_mb`; an allocation beyond it fails."""
    if device.memory_mb is not None:
        most = device.memory_mb * MB
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


@contextmanager
def exclusive_device(device: DeviceConfig) -> Iterator[None]:
    """Wait until no other hospital on this machine trains on the GPU, and hold it; no wait on a CPU."""
    if device.kind == "cpu":
        yield
        return
    path = _locks() / f"wardround-{device.kind}-{device.index}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(PermissionError):  # another hospital owns the file and has opened it to all users
            path.chmod(0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _locks() -> Path:
    """Return the folder of locks that all users share: a service has its own temporary folder."""
    return LOCKS if os.access(LOCKS, os.W_OK) else Path(tempfile.gettempdir())


def _delete_old_models(folder: Path) -> None:
    for run in folder.glob("*"):
        for old in sorted(run.glob("*.safetensors"))[:-KEPT_MODELS]:
            old.unlink()


def _bytes_beside_cache(state: Path) -> int:
    files = (path for path in state.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if path.parent != state / "cache")
