"""Hospitals that are folders beside each other, for federations on one machine."""

from collections.abc import Iterable
from pathlib import Path

from models.files import write_atomically
from sites.hospital import Hospital
from sites.yaml_files import ConfigError


def introduce(wards: Iterable[Path]) -> None:
    """Write each hospital's public key into the others' `site.yaml`, and allow secure sums there.

    What a policy says about secure sums stays. For hospitals on one machine alone; elsewhere each
    hospital enters the keys that it was given.
    """
    hospitals = [Hospital.open(ward) for ward in wards]
    keys = {hospital.name: hospital.public_key for hospital in hospitals}
    for hospital in hospitals:
        peers = {name: key for name, key in sorted(keys.items()) if name != hospital.name}
        if not peers or hospital.policy.peers:
            continue
        path = hospital.folder / "site.yaml"
        lines = "".join(f"  {name}: {key}\n" for name, key in peers.items())
        says = "shared_noise" in hospital.policy.model_fields_set
        added = "" if says else "shared_noise: {colluding: 0}\n"
        write_atomically(path, f"{path.read_text().rstrip()}\n{added}peers:\n{lines}".encode())


def wards_in(folder: Path, test_noise: int | None = None) -> dict[str, Path]:
    """Return the hospitals in `folder` by name, after checking every policy.

    Raises:
        ConfigError: no hospital, a wrong policy, or one name twice.
    """
    wards: dict[str, Path] = {}
    for path in sorted(folder.glob("*/site.yaml")):
        hospital = Hospital.open(path.parent, test_noise)
        _ = hospital.listing
        name = hospital.name
        if name in wards:
            raise ConfigError(f"{path}: name: expected a name of its own, {name!r} is taken.")
        wards[name] = path.parent
    if not wards:
        raise ConfigError(
            f"{folder}: expected hospitals (folders with a site.yaml), found none. "
            f"`wardround data` makes some."
        )
    return wards
