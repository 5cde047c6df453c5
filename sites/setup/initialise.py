"""Creation of a hospital: writes its first policy and makes its keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from models.files import write_atomically
from sites.hospital import Hospital
from sites.yaml_files import ConfigError

FIRST_POLICY: Mapping[str, Any] = {
    "min_patients": 10,
    "min_evaluation_patients": 5,
    "networks": ["UNet"],
    "on_broken_case": "skip",
}
"""Defaults in a new hospital's policy for keys that were not given."""


def initialise(folder: Path, policy: Mapping[str, Any]) -> Hospital:
    """Write a hospital's `site.yaml` and make its keys; return the hospital.

    Raises:
        ConfigError: `site.yaml` already exists (it is not changed), or the policy is wrong.
    """
    path = folder / "site.yaml"
    if path.exists():
        raise ConfigError(
            f"{path}: expected no policy in a new hospital's folder, found one. Edit it instead."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, yaml.safe_dump({**FIRST_POLICY, **policy}, sort_keys=False).encode())
    try:
        hospital = Hospital.open(folder)
        hospital.close_state()
        _ = hospital.key, hospital.pseudonym_key
    except Exception:
        path.unlink()
        raise
    return hospital
