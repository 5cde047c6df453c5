"""Loader of YAML files into checked records; an error names the file, the key, the line, the way out."""

from collections.abc import Hashable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from models.config import Config
from models.errors import FixYourInput
from models.settings.yaml_faults import Fault, faults

C = TypeVar("C", bound=Config)


NOT_KEYS = {type(None): "an empty file", list: "a list", str: "a text"}
"""What a YAML file holds that has no keys, in words."""
MERGE = "tag:yaml.org,2002:merge"


class ConfigError(FixYourInput):
    """A study or a policy is wrong; the message names file, key, value and what was expected.

    Attributes:
        faults: each of them, for machines; empty where the file can't be read at all.
    """

    faults: Sequence[Fault] = ()


class _Once(yaml.SafeLoader):
    """A safe loader for which a key that stands twice is a fault: the second would hide the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping's content; raise `yaml.YAMLError` for a key that it has twice."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"expected a word as key in line {line}, got a list or a mapping")
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
        raise ConfigError(f"{path}: no such file.{_meant(path)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: can't be read as YAML: {error}") from None
    if not isinstance(content, dict):
        got = NOT_KEYS.get(type(content), "a single value")
        raise ConfigError(f"{path}: expected keys and values, got {got}.")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        found = faults(error, text, content, model)
        wrong = ConfigError("\n".join(f"{path}: {fault}" for fault in found))
        wrong.faults = found
        raise wrong from None


def _meant(path: Path) -> str:
    """Return a question about the file beside a missing one whose name is close; empty without one."""
    beside = [each.name for each in path.parent.glob("*.yaml")]
    close = get_close_matches(path.name, beside, n=1, cutoff=0.75)
    return f" Did you mean {path.parent / close[0]}?" if close else ""
