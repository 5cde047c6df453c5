from pathlib import Path

import torch

from models.networks.segmentation import DynUNetConfig
from models.unfinished import Unfinished, restore, state_of


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


def test_the_state_of_a_network_that_holds_a_layer_twice_is_kept_and_restored(tmp_path: Path) -> None:
    """MONAI's DynUNet holds its blocks under two names."""
    torch.manual_seed(0)
    config = DynUNetConfig(name="DynUNet", filters=(4, 4, 4))
    network = config.build(2, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(1, 1, 16, 16)).sum().backward()
    optimizer.step()
    unfinished = Unfinished(tmp_path / "state.safetensors", 0)
    unfinished.keep(lambda: state_of(network, optimizer, 3), is_last=True)
    other = config.build(2, 2)
    assert restore(other, torch.optim.AdamW(other.parameters()), unfinished.read()) == 3
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
