"""What each key means, in one place for reference, editors and new files."""

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import jsonschema
import pytest
import yaml
from pydantic import create_model

from models.config import Config
from models.settings.described import descriptions, groups, json_schema, keys, meanings
from models.strategies import STRATEGIES
from sites.policy.policy import Policy
from sites.study import Study

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("config", [Study, Policy])
def test_every_key_of_every_group_has_a_description(config: type[Config]) -> None:
    assert sum(len(descriptions(group)) for group in groups(config)) > 80


def test_a_key_without_a_description_is_named() -> None:
    class Group(Config):
        """A group.

        Attributes:
            a (steps): the first one.
        """

        kind: Literal["x"]
        a: int
        b: int = 2

    with pytest.raises(ValueError, match=r"Group\.b: expected a description"):
        descriptions(Group)


def test_descriptions_are_those_of_the_class_and_of_what_it_extends() -> None:
    class Base(Config):
        """A base.

        Attributes:
            a, b (mm): two numbers
                over two lines: none of them is a key.
        """

        a: int
        b: int

    class Extended(Base):
        """More.

        Attributes:
            b (voxels): another one.
        """

    assert descriptions(Extended) == {
        "a": "two numbers over two lines: none of them is a key.",
        "b": "another one.",
    }
    assert {name: meaning.unit for name, meaning in meanings(Extended).items()} == {
        "a": "mm",
        "b": "voxels",
    }


@pytest.mark.parametrize(
    ("annotation", "unit"),
    [
        (int, ""),
        (tuple[float, ...] | None, ""),
        (Literal[2, 3], ""),
        (Mapping[str, float], ""),
        (str, "mm"),
        (bool, "mm"),
    ],
)
def test_a_number_without_a_unit_and_a_unit_without_a_number_are_named(
    annotation: object, unit: str
) -> None:
    docstring = f"A group.\n\nAttributes:\n    x{f' ({unit})' if unit else ''}: the one.\n"
    group = create_model("Group", __base__=Config, __doc__=docstring, x=(annotation, ...))
    with pytest.raises(ValueError, match=r"Group\.x: expected (a|no) unit"):
        meanings(group)


def test_the_unit_of_a_number_is_in_the_reference_and_beside_its_key_in_an_editor() -> None:
    rows = (ROOT / "docs" / "reference" / "site.md").read_text().splitlines()
    (cache,) = [row.split(" | ") for row in rows if row.startswith("| `cache_mb`")]
    assert cache[3] == "MiB"
    schema = json_schema(Policy, "site.yaml")
    assert schema["properties"]["cache_mb"]["description"].endswith("(unit: MiB)")
    assert "unit" not in schema["$defs"]["Budget"]["properties"]["epsilon"]["description"]


def test_keys_have_paths_types_defaults_and_examples() -> None:
    found = {key.path: key for key in keys(Policy, yaml.safe_load(
        (ROOT / "docs" / "reference" / "examples.yaml").read_text())["site"])}  # fmt: skip
    assert found["budget.epsilon"].default == "needed"
    assert found["hours"].example == '`["20:00-06:00"]`'
    assert found["metrics"].type == "`exact`, `noised`, `withheld`"
    assert found["teacher"].type.endswith("or nothing")
    assert all(key.example for key in found.values())


def test_each_strategys_keys_are_in_the_reference_and_an_editor_refuses_others() -> None:
    rows = (ROOT / "docs" / "reference" / "study.md").read_text()
    for name, strategy in STRATEGIES.items():
        for key in inspect.signature(strategy).parameters:
            assert f"| `strategy ({name}).{key}` |" in rows
    schema = json_schema(Study, "study")
    study = yaml.safe_load((ROOT / "studies" / "hippocampus.yaml").read_text())
    jsonschema.validate({**study, "strategy": {"name": "fed_avg_m", "momentum": 0.5}}, schema)
    for wrong in ({"name": "fed_avg_m", "momentm": 0.5}, {"name": "fed_best"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**study, "strategy": wrong}, schema)


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_schema_accepts_the_ready_studies_and_names_a_misspelt_key(path: Path) -> None:
    schema = json_schema(Study, "study")
    content = json.loads(json.dumps(yaml.safe_load(path.read_text())))
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError, match="'ruonds' was unexpected"):
        jsonschema.validate(content | {"ruonds": 3}, schema)


def test_the_key_that_says_which_group_it_is_in_has_that_group_as_its_example() -> None:
    seen = 0
    for line in (ROOT / "docs" / "reference" / "study.md").read_text().splitlines():
        if found := re.match(r"\| `.*\((\w+)\)\.(kind|mode|name)` \|.*\| `(\w+)` \|$", line):
            seen += 1
            assert found[1] == found[3], line
    assert seen > 20
