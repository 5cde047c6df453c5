"""What a hospital lets Wardround have of its machine: room on the disk, memory, and a device alone."""

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
"""Global models of a run that stay: what a round starts from, and the one before for its corrections."""


def check_disk(hospital: Hospital) -> None:
    """Raise `Refused` where `state/` has outgrown the policy's `disk_mb`, the cache's share aside."""
    policy = hospital.policy
    if policy.disk_mb is None:
        return
    room = (policy.disk_mb - policy.cache_mb) * MB
    if _bytes_beside_cache(hospital.state) > room:
        _delete_old_models(hospital.state / "global")
    if _bytes_beside_cache(hospital.state) > room:
        raise Refused("the disk that the hospital lets studies have is full")


def limit_memory(device: DeviceConfig) -> None:
    """Let this process have no more memory than the policy says; what asks for more fails."""
    if device.memory_mb is not None:
        most = device.memory_mb * MB
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


@contextmanager
def exclusive_device(device: DeviceConfig) -> Iterator[None]:
    """Wait until no other hospital of this machine trains on an accelerator, and hold it."""
    if device.kind == "cpu":
        yield
        return
    path = _locks() / f"wardround-{device.kind}-{device.index}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(PermissionError):  # it is another hospital's, which has let everybody in
            path.chmod(0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _locks() -> Path:
    """Return where all of a machine's users lock: services have a temporary folder of their own."""
    return LOCKS if os.access(LOCKS, os.W_OK) else Path(tempfile.gettempdir())


def _delete_old_models(folder: Path) -> None:
    for run in folder.glob("*"):
        for old in sorted(run.glob("*.safetensors"))[:-KEPT_MODELS]:
            old.unlink()


def _bytes_beside_cache(state: Path) -> int:
    files = (path for path in state.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if path.parent != state / "cache")
