"""What each key of a study or a policy means: from the docstrings of the settings' classes.

The same words stand in the code, in the reference, in the JSON Schemas for editors, and in files that
`wardround init` writes.
"""

import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from models.config import Config

KINDS = ("kind", "mode", "name")
"""Keys that say which of several groups of keys a group is."""
NO_UNIT = "no unit"
_FIELD = re.compile(r" {4}([a-z_0-9]+(?:, [a-z_0-9]+)*)(?: \(([^)]+)\))?: (.*)")
"""A line of `Attributes`: one or more names, for numbers their unit in brackets, and the meaning."""


def descriptions(config: type[BaseModel]) -> dict[str, str]:
    """Return what each field means; one that says which kind its group is needs no description."""
    return {name: meaning.text for name, meaning in meanings(config).items()}


class Meaning(NamedTuple):
    """What a key means, and the unit of its numbers: empty for a key without numbers."""

    text: str
    unit: str = ""

    @property
    def with_unit(self) -> str:
        """The text with the unit after it, for editors."""
        return self.text if self.unit in ("", NO_UNIT) else f"{self.text} (unit: {self.unit})"


def meanings(config: type[BaseModel]) -> dict[str, Meaning]:
    """Return what each field means, by the `Attributes` of the class and those that it extends.

    Raises:
        ValueError: a field has no description, or a number no unit.
    """
    found: dict[str, Meaning] = {}
    for base in reversed(config.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel and "__doc__" in vars(base):
            found |= _attributes(base.__doc__ or "")
    for name, field in config.model_fields.items():
        if name not in found:
            if name not in KINDS or get_origin(field.annotation) is not Literal:
                raise ValueError(f"{config.__name__}.{name}: expected a description in `Attributes`.")
            found[name] = Meaning(f"here `{'`, `'.join(map(str, get_args(field.annotation)))}`.")
        found[name] = found[name]._replace(text=re.sub(r"\bNone\b", "`null`", found[name].text))
        if _is_number(field.annotation) != bool(found[name].unit):
            expected = (
                "a unit in brackets" if _is_number(field.annotation) else "no unit, as it is no number"
            )
            raise ValueError(f"{config.__name__}.{name}: expected {expected}.")
    return {name: found[name] for name in config.model_fields}


def _is_number(annotation: Any) -> bool:  # noqa: ANN401  # a type of any kind
    """Tell whether values hold numbers; the keys of a mapping count for nothing."""
    inner = get_args(annotation)
    if get_origin(annotation) is Literal:
        return all(type(value) is int for value in inner)
    if (origin := get_origin(annotation)) and inspect.isclass(origin) and issubclass(origin, Mapping):
        inner = inner[1:]
    return annotation in (int, float) or any(_is_number(each) for each in inner)


def _attributes(docstring: str) -> dict[str, Meaning]:
    found: dict[str, Meaning] = {}
    names: list[str] = []
    is_inside = False
    for line in inspect.cleandoc(docstring).splitlines():
        if line and not line.startswith(" "):
            is_inside, names = line.strip() == "Attributes:", []
        elif is_inside and (match := _FIELD.fullmatch(line)):
            names = [name.strip() for name in match[1].split(",")]
            found |= dict.fromkeys(names, Meaning(match[3], match[2] or ""))
        elif is_inside and line.strip():
            more = line.strip()
            found |= {name: found[name]._replace(text=f"{found[name].text} {more}") for name in names}
    return found


def commented(config: type[BaseModel], content: Mapping[str, Any], head: Sequence[str]) -> str:
    """Return a settings file as YAML: `head` as comments, then each key after one with its meaning.

    Keys stand in the order of the class.
    """
    meant = descriptions(config)
    lines = [f"# {line}" for line in head]
    for name in (name for name in config.model_fields if name in content):
        value = yaml.safe_dump(content[name], default_flow_style=True, width=10_000, sort_keys=False)
        comment = textwrap.fill(meant[name], 110, initial_indent="# ", subsequent_indent="# ")
        lines += ["", comment, f"{name}: {value.strip().removesuffix('...').strip()}"]
    return "\n".join(lines) + "\n"


def json_schema(config: type[Config], title: str) -> dict[str, Any]:
    """Return a JSON Schema of a settings file, with a description of each key, for editors."""
    schema = config.model_json_schema()
    for described in groups(config):
        found = schema if described is config else schema["$defs"][described.__name__]
        for name, meaning in meanings(described).items():
            found["properties"][name]["description"] = meaning.with_unit
        if kinds := [kind for kind in _kinds(described) if kind is not described]:
            schema["$defs"][described.__name__] = {"oneOf": [_schema_of(kind) for kind in kinds]}
    _without_docstrings(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": title}


def _schema_of(group: type[BaseModel]) -> dict[str, Any]:
    """Return a JSON Schema of one group without groups in it, with a description of each key."""
    schema = group.model_json_schema()
    for name, meaning in meanings(group).items():
        schema["properties"][name]["description"] = meaning.with_unit
    return schema


def _without_docstrings(schema: dict[str, Any]) -> None:
    """Keep the first sentence of each class alone: the rest stands beside its keys."""
    for found in (schema, *schema.get("$defs", {}).values()):
        if "description" in found:
            found["description"] = found["description"].partition("\n")[0]


def groups(config: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield the classes of a settings file, its own first, each once, in the order of its keys."""
    seen: list[type[BaseModel]] = []

    def visit(found: type[BaseModel]) -> None:
        if found not in seen:
            seen.append(found)
            for field in found.model_fields.values():
                for inner in _models_in(field.annotation):
                    visit(inner)

    visit(config)
    yield from seen


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401  # a type of any kind
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for inner in get_args(annotation):
        yield from _models_in(inner)


class Key(NamedTuple):
    """A key of a settings file: its path, meaning, type, unit, default and an example, as text."""

    path: str
    meaning: str
    type: str
    unit: str
    default: str
    example: str


def keys(
    config: type[BaseModel],
    examples: Mapping[str, Any],
    prefix: str = "",
    known: dict[type[BaseModel], str] | None = None,
) -> Iterator[Key]:
    """Yield the keys of a settings file, depth first.

    Where a key holds one of several groups, their keys stand under `path (kind)`. A group that a key
    before has described is not described again.

    Args:
        examples: values by path.
        known: the path of each group that was described.
    """
    meant, known = meanings(config), {} if known is None else known
    for name, field in config.model_fields.items():
        path = f"{prefix}{name}"
        inner = [kind for group in _models_in(field.annotation) for kind in _kinds(group)]
        again = sorted({known[group] for group in inner if group in known})
        kind = f"keys of `{again[0]}`" if again else _named(field.annotation)
        text, unit = meant[name]
        yield Key(path, text, kind, unit, _default(field), _example(path, field, examples))
        for group in inner:
            if group not in known:
                known[group] = path
                shown = f"{path} ({_kind(group)})" if len(inner) > 1 else path
                yield from keys(group, examples, f"{shown}.", known)


def _kinds(group: type[BaseModel]) -> Sequence[type[BaseModel]]:
    """Return the groups that a class stands for: itself, or those of its `documented_as`."""
    documented_as = getattr(group, "documented_as", None)
    return documented_as() if documented_as else [group]


def _kind(group: type[BaseModel]) -> str:
    for name in KINDS:
        field = group.model_fields.get(name)
        if field and get_origin(field.annotation) is Literal:
            return " or ".join(map(str, get_args(field.annotation)))
    return "keys"


def _named(annotation: Any) -> str:  # noqa: ANN401  # a type of any kind
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "keys"
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is tuple or origin is list:
        several = {"whole number": "whole numbers", "number": "numbers", "text": "texts"}
        return f"list of {several.get(_named(inner[0]), _named(inner[0]))}"
    if origin is not None and inspect.isclass(origin) and issubclass(origin, Mapping):
        return f"{_named(inner[0])}: {_named(inner[1])}"
    if inner:
        parts = [_named(each) for each in inner if not _is_constraint(each)]
        return " or ".join(dict.fromkeys(parts))
    plain = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}
    return plain.get(annotation, "nothing" if annotation is type(None) else "value")


def _is_constraint(part: object) -> bool:
    if inspect.isclass(part):
        return False
    return type(part).__module__.startswith(("pydantic", "annotated_types"))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "`null`"
    return _yaml(value.model_dump(mode="json") if isinstance(value, BaseModel) else value)


def _example(path: str, field: FieldInfo, examples: Mapping[str, Any]) -> str:
    if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
        return _yaml(get_args(field.annotation)[0])
    plain = re.sub(r" \([^)]*\)", "", path)
    known = examples.get(path, examples.get(plain))
    if get_origin(field.annotation) is Literal:
        words = get_args(field.annotation)
        return _yaml(known if known in words else words[0])
    if known is not None:
        return _yaml(known)
    if not field.is_required() and field.get_default(call_default_factory=True) not in (
        None,
        (),
        {},
        "",
    ):
        return _default(field)
    raise ValueError(f"{path}: expected an example.")


def _yaml(value: Any) -> str:  # noqa: ANN401  # a value of a settings file
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json", exclude_defaults=True)
    text = json.dumps(value, default=list)
    text = re.sub(r'"([A-Za-z_][\w .+/-]*)"', r"\1", text)
    text = re.sub(r'"(\d+)":', r"\1:", text)
    return f"`{text}`"
