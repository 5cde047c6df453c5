"""Faults of a YAML file in words: every one, by the key as the file has it, with its line.

Pydantic names a fault by a path through its models, in which the chosen kind of a section is a part
(`privacy.local.epsilon`); here only keys of the file are.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from models.settings.tasks import NAME_IN_WORDS, NAME_PATTERN

Path = Sequence[str | int]


class Fault(NamedTuple):
    """A fault of a file: its key as the file has it (empty for one among keys), its line, and words."""

    key: str
    line: int | None
    text: str

    def __str__(self) -> str:
        return self.text


def faults(
    error: ValidationError, text: str, content: Mapping[str, Any], model: type[BaseModel]
) -> list[Fault]:
    """Return each fault of a file: of its keys one by one, and among its keys.

    What has to hold among keys is checked once each key is right. So it is checked here on a mended
    copy: a misspelt key takes the name that is suggested, a wrong one its default or a value that is
    allowed. A fault that names such a value is left out, as it may be the copy's alone. The keys of a
    section whose kind is misspelt are those of the kind that was meant.

    Args:
        text: the file's own text, for the lines.
        content: what it holds.
        model: what it was read as.
    """
    lines = list(fault_lines(error, text, model))
    if meant := _with_meant_kinds(error, content):
        try:
            model.model_validate(meant)
        except ValidationError as inner:
            lines += [line for line in faults(inner, text, meant, model) if line not in lines]
        return lines
    mended, replaced = _mended(error, content, model)
    among: list[Fault] | None = None
    for variant in _variants(mended, replaced):
        try:
            model.model_validate(variant)
        except ValidationError as other:
            if any(each["loc"] for each in other.errors()):  # a needed key has no stand-in
                return lines
            found = list(fault_lines(other, text, model))
            among = [line for line in found if among is None or line in among]
        else:
            return lines
    keys = [".".join(map(str, named)) for named in replaced]
    return lines + [line for line in among or () if line not in lines and not _names(line, keys)]


def _with_meant_kinds(error: ValidationError, content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a file's content with the kinds that were meant; None if no kind is a misspelt one."""
    meant = copy.deepcopy(dict(content))
    is_other = False
    for each in error.errors():
        context = each.get("ctx", {})
        known = re.findall(r"'([^']*)'", context.get("expected_tags", ""))
        section, _ = _innermost(meant, each["loc"])
        close = closest(str(context.get("tag")), known)
        if close and isinstance(section, dict):
            section[context["discriminator"].strip("'")] = close
            is_other = True
    return meant if is_other and meant != content else None


Replaced = Mapping[tuple[str | int, ...], Sequence[Any]]
"""The values that wrong keys may have, by their paths in the file."""


def _mended(
    error: ValidationError, content: Mapping[str, Any], model: type[BaseModel]
) -> tuple[dict[str, Any], Replaced]:
    """Return a file's content without wrong values, and what the keys may have in their place."""
    mended: dict[str, Any] = copy.deepcopy(dict(content))
    replaced: dict[tuple[str | int, ...], Sequence[Any]] = {}
    for each in error.errors():
        if each["type"] == "missing":
            section, _ = _innermost(mended, each["loc"])
            if isinstance(section, dict) and (allowed := _allowed(model, each["loc"])):
                section[each["loc"][-1]] = allowed[0]
            continue
        named = tuple(_innermost(content, each["loc"])[1])
        if not named or named in replaced:
            continue
        group, reached = _innermost(mended, named[:-1])
        if not isinstance(group, dict) or tuple(reached) != named[:-1]:
            continue  # what it is in has a stand-in
        own = [match[1] for told in _told(each) if (match := _OF_A_KEY.fullmatch(told))]
        section = group.get(named[-1])
        if own and isinstance(section, dict):  # its own check names its keys
            replaced |= {(*named, key): () for key in own if section.pop(key, None) is not None}
            continue
        value = group.pop(named[-1], None)
        if each["type"] == "extra_forbidden":
            meant = _meant(model, each["loc"])
            if meant and meant not in group:
                group[meant] = value
        else:
            replaced[named] = allowed = _allowed(model, each["loc"])
            if allowed:
                group[named[-1]] = allowed[0]
    return mended, replaced


def _variants(mended: dict[str, Any], replaced: Replaced) -> Iterator[dict[str, Any]]:
    """Yield a mended content, and it with each other value that a wrong key may have."""
    yield mended
    for named, allowed in replaced.items():
        for value in allowed[1:]:
            variant = copy.deepcopy(mended)
            group, reached = _innermost(variant, named[:-1])
            if tuple(reached) == named[:-1]:
                group[named[-1]] = value
                yield variant


def _allowed(model: type[BaseModel], loc: Path) -> list[Any]:
    """Return words that a key may have, or a number if it has no default; none for other keys."""
    schema = model.model_json_schema()
    groups = [each for node in _nodes_at(schema, loc[:-1]) for each in _alternatives(node, schema)]
    for group in groups:
        for node in _next(group, loc[-1], schema):
            every = list(_alternatives(node, schema))
            if words := [word for each in every for word in _words_of(each)]:
                return words
            if loc[-1] in group.get("required", ()):
                return [found for each in every if (found := _stand_in(each, schema)) is not None][:1]
    return []


def _words_of(node: Mapping[str, Any]) -> list[Any]:
    return [node["const"]] if "const" in node else list(node.get("enum", ()))


def _stand_in(node: Mapping[str, Any], schema: dict[str, Any]) -> Any:  # noqa: ANN401  # of a YAML file
    """Return something that a part of a JSON schema allows; None where that is not plain."""
    if words := _words_of(node):
        return words[0]
    if node.get("type") in ("integer", "number"):
        return int(max(1, node.get("minimum", 1), node.get("exclusiveMinimum", 0) + 1))
    if node.get("type") == "string" and "pattern" not in node:
        return "x"
    if node.get("type") == "array" and "items" in node:
        inner = _stand_in_of(node["items"], schema)
        return None if inner is None else [inner] * max(1, node.get("minItems", 1))
    if "properties" in node:
        return {key: _stand_in_of(node["properties"][key], schema) for key in node.get("required", ())}
    return None


def _stand_in_of(node: dict[str, Any], schema: dict[str, Any]) -> Any:  # noqa: ANN401  # of a YAML file
    found = (_stand_in(each, schema) for each in _alternatives(node, schema))
    return next((each for each in found if each is not None), None)


def _innermost(content: Any, loc: Path) -> tuple[Any, list[str | int]]:  # noqa: ANN401  # of a YAML file
    """Return the innermost value of a file at a path of pydantic's, and the file's own path to it."""
    named: list[str | int] = []
    for part in loc:
        is_key = isinstance(content, dict) and part in content
        is_number = isinstance(content, list) and isinstance(part, int) and part < len(content)
        if is_key or is_number:
            content = content[part]
            named.append(part)
    return content, named


def _names(fault: Fault, keys: Iterable[str]) -> bool:
    return any(re.search(rf"\b{re.escape(key)}\b", fault.text) for key in keys)


def _meant(model: type[BaseModel], loc: Path) -> str | None:
    """Return the key that an unknown one at a path of pydantic's is close to; None without one."""
    return closest(str(loc[-1]), _keys_at(model, loc[:-1]))


def closest(word: str, known: Sequence[str]) -> str | None:
    """Return the known word that a misspelt one is close to; None without one.

    >>> closest("segresnet", ["SegResNet", "resnet18"])
    'SegResNet'
    """
    same = [each for each in known if each.casefold() == word.casefold()]
    close = same or get_close_matches(word, known, n=1)
    return close[0] if close else None


def fault_lines(error: ValidationError, text: str, model: type[BaseModel]) -> Iterator[Fault]:
    """Yield each fault of a file's `text`, whose words fit on one line.

    Args:
        model: what the file was read as; its keys are suggested for a misspelt one.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    by_place: dict[tuple[str, int | None], list[ErrorDetails]] = {}
    for each in error.errors():
        kind = "missing" if each["type"] == "union_tag_not_found" else each["type"]
        by_place.setdefault(_place(root, _loc(each), kind), []).append(each)
    for (key, line), found in by_place.items():
        if not key:  # the fault concerns several keys; its message names them
            yield from (_with_line(told, root) for each in found for told in _told(each))
        elif any(_OF_A_KEY.fullmatch(told) for told in _told(found[0])):
            yield from (_of_section(told, key, root) for told in _told(found[0]))
        elif not _is_section(found[0], key, by_place):
            words = _words(found, model, f" (line {line})" if line else "")
            yield Fault(key, line, f"{key}: {words}")


_OF_A_KEY = re.compile(r"([a-z_][a-z_0-9]*): (.+)")
"""What a section's own check says of one of its keys."""


def _told(error: ErrorDetails) -> list[str]:
    return error["msg"].removeprefix("Value error, ").split("\n")


def _of_section(told: str, section: str, root: Node | None) -> Fault:
    """Return what a section's own check says, by the key that it names and that key's line."""
    named = _OF_A_KEY.fullmatch(told)
    path = section.split(".")
    if named and named[1] not in path:
        path.append(named[1])
    key, line = _place(root, [int(part) if part.isdigit() else part for part in path], "missing")
    what, stop, way_out = (named[2] if named else told).partition(". ")
    where = f" (line {line})" if line else ""
    return Fault(key, line, f"{key}: {what.rstrip('.')}{where}.{stop and ' '}{way_out}")


def _is_section(error: ErrorDetails, key: str, places: Iterable[tuple[str, int | None]]) -> bool:
    """Tell whether a value holds keys, of which something is wrong: it is not meant to be a word."""
    return isinstance(error["input"], Mapping) and any(
        other.startswith(f"{key}.") for other, _ in places
    )


def _loc(error: ErrorDetails) -> Path:
    """Return the path of what is wrong: of a wrong kind, that of the kind's own key."""
    if error["type"] not in ("union_tag_invalid", "union_tag_not_found"):
        return error["loc"]
    return (*error["loc"], error["ctx"]["discriminator"].strip("'"))


def _with_line(message: str, root: Node | None) -> Fault:
    """Return a fault whose message begins with a key, with the line of that key in the file."""
    named = re.match(r"([a-z_]+(?:\.[a-z_]+)*)[:,]", message)
    line = _place(root, named[1].split("."), "")[1] if named else None
    told = f"{message.rstrip('.')} (line {line})." if line else message
    return Fault(named[1] if named else "", line, told)


def _place(root: Node | None, loc: Path, kind: str) -> tuple[str, int | None]:
    """Return a fault's key as the file has it, and the line of the key or of what it should be in.

    Args:
        kind: the fault's type: only of a missing key the last part is not in the file.
    """
    node, named, line = root, [], None
    for number, part in enumerate(loc):
        inner = _inner(node, part)
        if inner is not None:
            node, line = inner
        elif number < len(loc) - 1 or kind != "missing":
            continue  # the kind of a section, such as `local`, or of a value
        named.append(str(part))
    return ".".join(named), line


def _inner(node: Node | None, part: str | int) -> tuple[Node, int] | None:
    """Return what a mapping or a list has at a key or number, and the line of that key."""
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        found: Node = node.value[part]
        return found, found.start_mark.line + 1
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if isinstance(key, ScalarNode) and key.value == str(part):
                return value, key.start_mark.line + 1
    return None


PATTERNS = {
    NAME_PATTERN: NAME_IN_WORDS,
    "^[0-9a-f]{64}$": "64 digits of a public key or a sha256 (0-9, a-f)",
    r"^(https://|http://(127\.0\.0\.1|localhost)[:/])": "an address with https://, or of this machine",
}
"""Forms of texts in words."""
IN_WORDS = {
    "int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number",
    "float_parsing": "a number", "float_type": "a number", "finite_number": "a finite number",
    "bool_parsing": "true or false", "bool_type": "true or false", "string_type": "a text",
    "model_type": "keys and values", "model_attributes_type": "keys and values",
    "dict_type": "keys and values", "tuple_type": "a list", "list_type": "a list",
}  # fmt: skip
"""What is expected, by the type of pydantic's error, where its own words are about Python."""


def _words(errors: Sequence[ErrorDetails], model: type[BaseModel], where: str) -> str:
    """Return in words what is wrong with a key; several errors are ways in which it could be right."""
    error = errors[0]
    if error["type"] in ("extra_forbidden", "invalid_key"):
        meant = _meant(model, error["loc"])
        way_out = f"Did you mean {meant}?" if meant else "Remove it or correct its spelling."
        return f"unknown key{where}. {way_out}"
    if error["type"] in ("missing", "union_tag_not_found"):
        return f"expected this key, and it is missing{where}."
    expected = ", or ".join(dict.fromkeys(_expected(each) for each in errors))
    told = re.search(r", got '([^']*)'", expected)
    given = told[1] if told else str(error.get("ctx", {}).get("tag", error["input"])).strip("'")
    known = [word for each in errors for word in re.findall(r"'([^']*)'", each["msg"]) if word != given]
    close = closest(given, known)
    found = error["ctx"]["tag"] if error["type"] == "union_tag_invalid" else error["input"]
    got = "" if ", got " in expected else f", got {_shown(found)}"
    return f"expected {expected}{got}{where}.{f' Did you mean {close}?' if close else ''}"


def _expected(error: ErrorDetails) -> str:
    """Return what one error says was expected."""
    context = error.get("ctx", {})
    if error["type"] == "union_tag_invalid":
        return f"one of {context['expected_tags']}"
    if error["type"] == "string_pattern_mismatch":
        pattern = context["pattern"]
        return PATTERNS.get(pattern, f"a text of the form {pattern}")
    if error["type"] in ("too_short", "too_long"):
        least = error["type"] == "too_short"
        number = context["min_length" if least else "max_length"]
        return f"at {'least' if least else 'most'} {number} entries"
    words = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return IN_WORDS.get(error["type"], words.removeprefix("expected "))


def _keys_at(model: type[BaseModel], loc: Path) -> list[str]:
    """Return the keys that a model knows at a path of pydantic's."""
    schema = model.model_json_schema()
    every = [each for node in _nodes_at(schema, loc) for each in _alternatives(node, schema)]
    return [key for node in every for key in node.get("properties", {})]


def _nodes_at(schema: dict[str, Any], loc: Path) -> list[dict[str, Any]]:
    """Return the parts of a JSON schema at a path of pydantic's."""
    nodes = [schema]
    for part in loc:
        nodes = [inner for node in nodes for inner in _next(node, part, schema)]
    return nodes


def _next(node: dict[str, Any], part: str | int, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for each in _alternatives(node, schema):
        if part in each.get("properties", {}):
            yield each["properties"][part]
        elif isinstance(part, int) and "items" in each:
            yield each["items"]
        elif part in each.get("discriminator", {}).get("mapping", {}):
            yield {"$ref": each["discriminator"]["mapping"][part]}
        elif each.get("title") == part:
            yield each


def _alternatives(node: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what a part of a JSON schema may be, references followed, itself included."""
    if "$ref" in node:
        yield from _alternatives(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
        return
    yield node
    for each in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        yield from _alternatives(each, schema)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
