"""Loader of YAML files into checked records; every error names the file, the key and the way out."""

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from models.config import Config
from models.errors import FixYourInput

C = TypeVar("C", bound=Config)


class ConfigError(FixYourInput):
    """A study or a policy is wrong; the message names file, key, value and what was expected."""


def load(path: Path, model: type[C]) -> C:
    """Return the record in the YAML file `path`.

    Raises:
        ConfigError: there is no such file, it is no YAML mapping, or keys are wrong (each on one line).
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: can't be read as YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(content).__name__}.")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {_line(e)}" for e in error.errors())) from None


def _line(error: ErrorDetails) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if not key:  # the error concerns several keys; its message names them
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key. Remove it or correct its spelling."
    if error["type"] == "missing":
        return f"{key}: expected this key, and it is missing."
    expected = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{key}: expected {expected.removeprefix('expected ')}, got {_shown(error['input'])}."


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
