"""Runs side by side: a line for each, and what two of them differ in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flows.runs.paths import Home
from flows.runs.records import RoundRecord
from flows.runs.run import Run, runs_of
from sites.study import Study


@dataclass(frozen=True)
class RunLine:
    """A run in a list.

    Attributes:
        epsilon: the largest of any hospital so far; None without privacy.
        before, now: the headline metric's mean over hospitals, before training and now; None where
            nobody published it.
    """

    run: str
    study: str
    study_sha256: str
    begun: str
    rounds: str
    is_finished: bool
    hospitals: int
    epsilon: float | None
    metric: str
    before: float | None
    now: float | None


@dataclass(frozen=True)
class Difference:
    """A value in which two runs differ; None where one run has no such value."""

    what: str
    first: Any
    second: Any


def lines(home: Home) -> list[RunLine]:
    """Return a line for each training of a home, the newest last."""
    return [_line(run) for run in runs_of(home)]


def _line(run: Run) -> RunLine:
    records = run.records()
    scored = _scored(records)
    name = (scored.headline if scored else None) or ""
    begun = datetime.fromtimestamp(run.description.started_ms / 1000, UTC)
    return RunLine(
        run=run.name,
        study=run.study.name,
        study_sha256=run.study.sha256,
        begun=f"{begun:%Y-%m-%d %H:%M}",
        rounds=f"{max(len(records) - 1, 0)} of {run.study.rounds}",
        is_finished=run.is_finished,
        hospitals=len(run.description.participants),
        epsilon=max(_epsilons(records).values(), default=None),
        metric=name,
        before=records[0].quality.get(name) if records else None,
        now=scored.quality.get(name) if scored else None,
    )


def differences(first: Run, second: Run) -> list[Difference]:
    """Return what two runs differ in: keys of the study, hospitals, quality and epsilon by hospital."""
    found = list(study_differences(first.study, second.study))
    members = [", ".join(sorted(run.description.everybody)) for run in (first, second)]
    if members[0] != members[1]:
        found.append(Difference("hospitals", *members))
    found += _different("", *(_results(run) for run in (first, second)))
    return found


def study_differences(first: Study, second: Study) -> Iterator[Difference]:
    """Yield the keys in which two studies differ, as `study.<path>`."""
    return _different("study", *(flat(study.model_dump(mode="json")) for study in (first, second)))


def _different(prefix: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Difference]:
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key):
            yield Difference(f"{prefix}.{key}" if prefix else key, one.get(key), other.get(key))


def _results(run: Run) -> dict[str, Any]:
    """Return a run's headline metric and epsilon at its end, over all hospitals and at each."""
    records = run.records()
    scored, found = _scored(records), dict[str, Any]()
    if scored and scored.headline:
        found[f"{scored.headline} (all)"] = _rounded(scored.quality.get(scored.headline))
        for site, metrics in scored.metrics.items():
            found[f"{scored.headline} ({site})"] = _rounded(metrics.get(scored.headline))
    for site, value in _epsilons(records).items():
        found[f"epsilon ({site})"] = _rounded(value)
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _epsilons(records: Sequence[RoundRecord]) -> dict[str, float]:
    """Return what each hospital has spent in its newest release, of those with privacy."""
    return {
        site: each.statement.epsilon
        for record in records
        for site, each in record.releases.items()
        if each.statement.epsilon is not None
    }


def _scored(records: Sequence[RoundRecord]) -> RoundRecord | None:
    return next((record for record in reversed(records) if record.quality), None)


def flat(values: Mapping[str, object], separator: str = ".", prefix: str = "") -> dict[str, object]:
    """Return all plain values of nested keys, each under its joined keys.

    >>> flat({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, separator, f"{prefix}{name}{separator}")
        else:
            found[f"{prefix}{name}"] = value
    return found


def rows(run: Run) -> Iterator[dict[str, Any]]:
    """Yield a row for each hospital and round of a run: what it released and published."""
    for record in run.records():
        for site in sorted(record.hospitals):
            release, scores = record.releases.get(site), record.metrics.get(site, {})
            yield {
                "run": run.name,
                "study": run.study.name,
                "round": record.round,
                "hospital": site,
                "declared_training": release.statement.declared_training if release else None,
                "weight": release.weight if release else None,
                "epsilon": release.statement.epsilon if release else None,
                "seconds": record.hospitals[site].seconds,
                **scores,
            }
