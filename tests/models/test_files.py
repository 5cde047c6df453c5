import resource
from pathlib import Path

import pytest

from models.files import private_folder, write_atomically


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2, hard))  # the system ends a write behind two bytes
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomically(path, b"newer")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_private_folder_and_the_parents_that_it_makes_are_for_their_owner_alone(
    tmp_path: Path,
) -> None:
    private_folder(tmp_path / "state" / "keys" / "former")
    for name in ("state", "state/keys", "state/keys/former"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700
    private_folder(tmp_path / "state" / "keys")  # a second call changes nothing
