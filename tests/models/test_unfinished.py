from pathlib import Path

import torch

from models.unfinished import Unfinished


def test_a_state_is_kept_only_so_often_and_a_full_disk_or_a_broken_file_costs_the_state_alone(
    tmp_path: Path,
) -> None:
    seldom = Unfinished(tmp_path / "seldom", 3600)
    seldom.keep(lambda: {"step": torch.tensor(1)})
    assert seldom.read() is None
    seldom.keep(lambda: {"step": torch.tensor(2)}, is_last=True)
    assert seldom.read() == {"step": torch.tensor(2)}
    seldom.path.write_bytes(b"half")
    assert seldom.read() is None
    (tmp_path / "file").touch()
    Unfinished(tmp_path / "file" / "below", 0).keep(lambda: {"step": torch.tensor(1)})
