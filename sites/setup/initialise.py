"""Creation of a hospital: writes its first policy, with what each key means, and makes its keys."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from models.config import Config
from models.files import write_atomically
from models.settings.described import commented, json_schema
from models.settings.tasks import NAME_IN_WORDS
from privacy.accounting import Budget
from sites.hospital import Hospital
from sites.policy.policy import CoordinatorConfig, Policy
from sites.yaml_files import ConfigError

SCHEMA = "site.schema.json"
HEAD = (
    f"yaml-language-server: $schema={SCHEMA}",
    "`wardround doctor` and `wardround site check` read this file; docs/reference/site.md has all keys.",
)
FIRST_POLICY: Mapping[str, Any] = {
    "min_patients": 10,
    "min_evaluation_patients": 5,
    "networks": ["UNet", "resnet10"],
    "on_broken_case": "skip",
}
"""Defaults in a new hospital's policy for keys that were not given."""
IN_WORDS = {
    "name": f"expected {NAME_IN_WORDS}",
    "metrics": "expected exact or withheld; noised needs more keys, added to site.yaml afterwards",
}
"""What is expected of a key, where its type does not say it."""
PARTS: Mapping[str, type[Config]] = {"budget": Budget, "coordinator": CoordinatorConfig}


def wrong(path: str, value: object) -> str | None:
    """Return what is wrong with the value of one key of a policy, None if it fits.

    >>> wrong("budget.epsilon", 8.0)
    >>> wrong("declared_patients", 0)
    'Input should be greater than 0'
    """
    group, _, name = path.rpartition(".")
    field = (PARTS[group] if group else Policy).model_fields[name]
    kind: Any = Annotated[field.annotation, field]
    try:
        TypeAdapter(kind, config=Config.model_config).validate_python(value)
    except ValidationError as error:
        return IN_WORDS.get(path, str(error.errors()[0]["msg"]))
    if value == "noised":
        return IN_WORDS[path]
    return None


def initialise(folder: Path, policy: Mapping[str, Any]) -> Hospital:
    """Write a hospital's `site.yaml`, the schema for editors beside it, and its keys; return it.

    Raises:
        ConfigError: `site.yaml` already exists (it is not changed), or the policy is wrong.
    """
    if folder.suffix in (".yaml", ".yml"):
        raise ConfigError(f"{folder}: expected the hospital's folder, in which site.yaml is written.")
    path = folder / "site.yaml"
    if path.exists():
        raise ConfigError(
            f"{path}: expected no policy in a new hospital's folder, found one. Edit it instead."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, commented(Policy, {**FIRST_POLICY, **policy}, HEAD).encode())
    try:
        hospital = Hospital.open(folder)
        hospital.close_state()
        _ = hospital.pseudonym_key
        hospital.security_log.write("hospital_set_up", key=hospital.public_key)
    except Exception:
        path.unlink()
        raise
    write_atomically(folder / SCHEMA, json.dumps(json_schema(Policy, "site.yaml"), indent=1).encode())
    return hospital
