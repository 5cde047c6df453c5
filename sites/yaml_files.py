"""Loader of YAML files into checked records; an error names the file, the key, the line, the way out."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from models.config import Config
from models.errors import FixYourInput
from models.settings.yaml_faults import faults

C = TypeVar("C", bound=Config)


MERGE = "tag:yaml.org,2002:merge"


class ConfigError(FixYourInput):
    """A study or a policy is wrong; the message names file, key, value and what was expected."""


class _Once(yaml.SafeLoader):
    """A safe loader for which a key that stands twice is a fault: the second would hide the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping's content; raise `yaml.YAMLError` for a key that it has twice."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in lines and key.tag != MERGE:
                raise yaml.YAMLError(
                    f"the key {key.value!r} stands twice, in lines {lines[key.value]} and {line}"
                )
            lines[str(key.value)] = line
        return super().construct_mapping(node, deep)


def load(path: Path, model: type[C]) -> C:
    """Return the record in the YAML file `path`.

    Raises:
        ConfigError: there is no such file, it is no YAML mapping, or keys are wrong (each on one line).
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, _Once)  # noqa: S506  # a safe loader
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: can't be read as YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(content).__name__}.")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = faults(error, text, content, model)
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from None
