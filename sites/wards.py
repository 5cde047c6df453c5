"""Hospitals that are folders beside each other, for federations on one machine."""

from pathlib import Path

from sites.hospital import Hospital
from sites.yaml_files import ConfigError


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
