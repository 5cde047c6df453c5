"""Whatever is wrong with a settings file, it is told in words: no file ends in a traceback."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.config import Config
from sites.policy.policy import Policy
from sites.study import Study
from sites.yaml_files import ConfigError, load

ROOT = Path(__file__).parents[3]
STUDIES = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "studies").glob("*.yaml"))]
POLICY = {
    "name": "north", "declared_patients": 40, "min_patients": 10, "min_evaluation_patients": 2,
    "budget": {"epsilon": 8, "delta": 1e-5}, "networks": ["UNet"], "metrics": "exact",
    "on_broken_case": "skip", "statistics": {"kind": "noised", "epsilon": 1},
    "teacher": {"name": "UNet", "channels": [8, 16]}, "device": {"kind": "cpu"},
    "hours": ["20:00-06:00"],
    "coordinator": {"key": "0" * 64, "exchange": "https://a.example", "api": "https://a.example/api"},
}  # fmt: skip
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 5), st.just(float("nan")), st.just("zzz"), st.just(""),
    st.just([]), st.just([1, "a"]), st.just({}), st.just({"kind": "zzz"}), st.just({"nme": 1}),
    st.just({1: 2}),
)  # fmt: skip


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = content.items() if isinstance(content, dict) else enumerate(content)
    found = [(*path, key) for key, _ in inner]
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(value, dict | list):
            found += places(value, (*path, key))
    return found


def broken(content: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """Return a copy of which some values are junk, some keys gone, and some misspelt."""
    content = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 4))):
        path = data.draw(st.sampled_from(places(content)))
        group: Any = content
        for part in path[:-1]:
            group = group[part]
        match data.draw(st.sampled_from(["junk", "gone", "misspelt", "twisted"])):
            case "junk":
                group[path[-1]] = copy.deepcopy(data.draw(JUNK))
            case "gone":
                del group[path[-1]]
            case "misspelt" if isinstance(group, dict):
                group[f"{path[-1]}x"] = group.pop(path[-1])
            case _:
                group[path[-1]] = f"{group[path[-1]]}x"[:40]
    return content


@pytest.mark.parametrize(("model", "contents"), [(Study, STUDIES), (Policy, [POLICY])])
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_broken_file_is_read_or_every_fault_has_words_and_a_line_of_the_file(
    model: type[Config], contents: list[dict[str, Any]], data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(yaml.safe_dump(broken(data.draw(st.sampled_from(contents)), data), sort_keys=False))
    lines = len(path.read_text().splitlines())
    try:
        load(path, model)
    except ConfigError as error:
        for fault in error.faults:
            assert fault.text.strip()
            assert "\n" not in fault.text
            assert fault.line is None or 1 <= fault.line <= lines
            assert not any(
                word in fault.text for word in ("Input should", "validation error", "pydantic")
            )
