from pathlib import Path

import pytest
import torch

from models import checkpoints
from privacy.release import Release, check_release
from privacy.statements import RejectedRelease, ReleaseManifest, parse_statement

TEMPLATE = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
HASH = "0" * 64


def release_of(stored: dict[str, torch.Tensor], path: Path, **changes: object) -> Release:
    checkpoints.write(path, stored)
    fields = {
        "kind": "release", "study": "s", "study_sha256": HASH, "run": "r", "round": 1, "site": "north",
        "ledger_head": HASH, "content": "student", "base_sha256": HASH,
        "chain_head": HASH, "payload_sha256": HASH,
        "payload_bytes": 100, "tensors": {n: tuple(t.shape) for n, t in stored.items()},
        "declared_training": 20, "event": None, "epsilon": None, "epsilon_reported": {}, "delta": None,
        "purpose": "contribute", "charges": 0,
        "plain_releases": 0, "noise": "none",
    }  # fmt: skip
    return Release(ReleaseManifest.model_validate({**fields, **changes}), checkpoints.StoredParams(path))


def test_a_release_of_the_studys_network_passes(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3), "b": torch.randn(4)}
    assert check_release(release_of(tensors, tmp_path / "x"), TEMPLATE) is None


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.zeros(2, 3)}, "'b', and it is missing"),
        ({**TEMPLATE, "c": torch.zeros(1)}, "unknown parameter 'c'"),
        ({**TEMPLATE, "b": torch.zeros(5)}, r"expected 'b' of shape \(4,\)"),
        ({**TEMPLATE, "b": torch.full((4,), float("nan"))}, "NaN or infinite"),
        ({**TEMPLATE, "b": torch.full((4,), float("inf"))}, "NaN or infinite"),
        ({**TEMPLATE, "b": torch.full((4,), 1e30)}, "at most 1000, got 2e\\+30"),
    ],
)
def test_a_release_that_does_not_fit_is_rejected(
    tensors: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RejectedRelease, match=f"(?i)north: .*{message}"):
        check_release(release_of(tensors, tmp_path / "x"), TEMPLATE)


def test_a_change_is_as_long_as_the_study_says_or_shorter(tmp_path: Path) -> None:
    release = release_of({**TEMPLATE, "b": torch.full((4,), 1.5)}, tmp_path / "x")
    assert check_release(release, TEMPLATE, largest=3.0) is None
    with pytest.raises(RejectedRelease, match="at most 2.999, got 3"):
        check_release(release, TEMPLATE, largest=2.999)


def test_a_manifest_that_lists_other_tensors_is_rejected(tmp_path: Path) -> None:
    release = release_of(TEMPLATE, tmp_path / "x", tensors={"a": (2, 3)})
    with pytest.raises(RejectedRelease, match="other tensors"):
        check_release(release, TEMPLATE)


@pytest.mark.parametrize(
    "fields",
    [{}, {"kind": "update"}, {"kind": "refusal"}, {"kind": "refusal", "secret": 1}],
)
def test_what_is_no_known_statement_is_rejected(fields: dict[str, object]) -> None:
    with pytest.raises(RejectedRelease):
        parse_statement(fields)


@pytest.mark.parametrize(
    "changes",
    [
        {"event": {"noise_multiplier": 3, "sampling_rate": 1, "steps": 4}},
        {"epsilon": 3.0},
        {"delta": 1e-3},
        {"epsilon_reported": {"prv": 3.0}},
        {"noise": "system"},
        {"payload_bytes": 10**400},
        {"declared_training": 10**400},
        {"payload_bytes": 0},
    ],
)
def test_a_manifest_with_impossible_figures_is_no_statement(
    changes: dict[str, object], tmp_path: Path
) -> None:
    fields = release_of(TEMPLATE, tmp_path / "x").manifest.model_dump(mode="json")
    assert parse_statement(fields)
    with pytest.raises(RejectedRelease):
        parse_statement({**fields, **changes})


@pytest.mark.parametrize(
    "metrics", [{"dice": 1e308}, {"dice\n!": 1.0}, {"Dice": 1.0}, {"dice": float("nan")}]
)
def test_scores_that_no_metric_has_are_no_statement(metrics: dict[str, float]) -> None:
    fields = {
        "kind": "scores", "study": "s", "study_sha256": HASH, "run": "r", "round": 1, "site": "north",
        "ledger_head": HASH, "model_sha256": HASH, "chain_head": HASH, "metrics_policy": "exact",
        "event": None,
        "purpose": "evaluate", "charges": 0,
    }  # fmt: skip
    assert parse_statement({**fields, "metrics": {"dice/head": 0.5}})
    with pytest.raises(RejectedRelease):
        parse_statement({**fields, "metrics": metrics})
