"""A first study file, with what each key means beside it."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.files import write_atomically
from models.settings.described import commented, json_schema
from models.settings.yaml_faults import fault_lines
from sites.study import Study
from sites.yaml_files import ConfigError

SCHEMA = "study.schema.json"
HEAD = (
    f"yaml-language-server: $schema={SCHEMA}",
    "`wardround check FILE` reads this file; docs/reference/study.md has every key.",
)


def first_study(
    name: str, kind: str, dims: int, labels: list[str], epsilon: float | None
) -> dict[str, Any]:
    """Return the keys of a study of a kind of task that trains with few settings.

    Args:
        labels: names of structures (from 1) or of classes (from 0); of a regression, its number's.
        epsilon: None for a study without privacy.
    """
    first = 1 if kind == "segmentation" else 0
    task = {"kind": kind, "dims": dims, "labels": dict(enumerate(labels, start=first))}
    if kind == "regression":
        task |= {"low": 0, "high": 100, "tolerance": 5}
    segments = kind == "segmentation"
    network = (
        {"name": "UNet", "channels": [8, 16, 32]} if segments else {"name": "resnet10", "width": 16}
    )
    private = {
        "mode": "local", "unit": "patient", "epsilon": epsilon, "delta": 1e-4,
        "clip": {"kind": "normalised", "norm": 1.0},
    }  # fmt: skip
    training = {"steps": 20, "lr": 0.003, "lot": 4, "optimizer": "adamw", "longest_gradient": 1.0}
    if epsilon:
        training = {"steps": 3, "lr": "auto" if segments else 0.1, "lot": "all"}
    return {
        "name": name,
        "purpose": "What the model is for. Research; not for any clinical use.",
        "task": task,
        "network": network,
        "rounds": 5 if epsilon else 12,
        "sites": {"min": 3, "deadline_s": 900},
        "preprocessing": {"shape": [24 if segments else 32] * dims, "intensity": "z_score"},
        **({"start": {"kind": "synthetic", "steps": 900}} if segments else {}),
        "training": {**training, "schedule": "cosine"},
        "privacy": private if epsilon else {"mode": "none"},
        "export": "weights",
        "strategy": {"name": "fed_avg"},
        "card": {"intended_use": "Research", "out_of_scope": "Diagnosis"},
    }


def write_study(path: Path, content: dict[str, Any]) -> Study:
    """Write a study with comments, and the schema for editors beside it; return the study.

    Raises:
        ConfigError: the file exists, or the values do not fit each other.
    """
    if path.exists():
        raise ConfigError(f"{path}: expected no file of this name, found one. Edit it, or name another.")
    try:
        study = Study.model_validate(content)
    except ValidationError as error:
        faults = fault_lines(error, "", Study)
        raise ConfigError("\n".join(f"{path}: {line}" for line in faults)) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, commented(Study, content, HEAD).encode())
    schema = path.parent / SCHEMA
    if not schema.exists():
        write_atomically(schema, json.dumps(json_schema(Study, "study.yaml"), indent=1).encode())
    return study
