"""Progress of a run for a person: a table on a terminal, plain lines elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

import rich.live
from rich.console import Console
from rich.table import Table

from flows.reporting.live_table import Step, live_table
from flows.runs.records import HEADLINES, RoundRecord
from flows.runs.run import Run
from flows.starts.rate import declared_in, warnings
from privacy.statements import ReleaseManifest


class Live:
    """A display of a run's progress. Hospitals' steps are public constants of the study."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._steps: dict[str, Step] = {}
        self._run: Run | None = None
        self._records: list[RoundRecord] = []

    @contextmanager
    def showing(self, run: Run) -> Iterator[None]:
        """Show a table of the hospitals until the end, where there is a terminal."""
        self._records = list(run.records())
        if not self.console.is_terminal:
            yield
            return
        roster, self._run = sorted(run.description.roster), run

        def table() -> Table:
            records, steps = list(self._records), dict(self._steps)
            return live_table(self._run or run, roster, records, steps, self.console.width)

        with rich.live.Live(get_renderable=table, console=self.console, transient=True):
            yield

    def print(self, text: str) -> None:
        """Print one line above the table."""
        self.console.print(text, highlight=False, markup=False)

    def step(self, hospital: str, what: str, step: int, of: int) -> None:
        """Show that a hospital is at `step` of `of`."""
        self._steps[hospital] = Step(what, step, of)

    def round(self, run: Run, record: RoundRecord) -> None:
        """Show that a round is recorded."""
        self._run = run
        self._records.append(record)
        what = "before training" if record.round == 0 else f"{record.seconds:.1f} s"
        parts = [f"round {record.round}/{run.study.rounds}", *_headline(run, record), what]
        self.print("  ".join(parts))
        for line in _start_lines(run, record):
            self.print(f"  {line}")
        for site, why in record.absences("release").items():
            self.print(f"  without {site}: {why}")


def _start_lines(run: Run, record: RoundRecord) -> Iterator[str]:
    """Yield how the first model was made, and a warning if training is not expected to improve it."""
    if record.start is None:
        return
    for stage in record.start.stages:
        reached = ", ".join(
            f"{name} {value:.3f}" for name, value in stage.reached.items() if name in HEADLINES
        )
        yield f"start: {stage.kind}" + (f" ({reached} on {stage.measured_on})" if reached else "")
    if record.start.rate is not None:
        yield f"learning rate {record.start.rate:g}, for which the start bears the noise"
    yield from warnings(run.study, declared_in(run))


def _headline(run: Run, record: RoundRecord) -> list[str]:
    parts = []
    if run.study.is_evaluated(record.round):
        name = record.headline
        parts.append(f"{name} {record.quality[name]:.3f}" if name else "no metrics published")
    epsilons = [release.statement.epsilon for release in record.releases.values()]
    spent = [epsilon for epsilon in epsilons if epsilon is not None]
    return [*parts, f"epsilon {max(spent):.2f}"] if spent else parts


def summary(run: Run) -> Table:
    """Return the table that ends a run: a row for each hospital."""
    records = run.records()
    first, last = records[0], records[-1]
    name = last.headline or "dice"
    table = Table(title=f"{run.study.name}, {last.round} rounds")
    for heading in ("hospital", "patients (declared)", f"{name} before", f"{name} now",
                    "epsilon of budget", "bytes sent"):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "hospital" else "right")
    for site, participant in sorted(run.description.everybody.items()):
        mine = [record.releases[site].statement for record in records if site in record.releases]
        spent = [r.epsilon for r in mine if r.epsilon is not None]
        table.add_row(
            site,
            str(participant.statement.declared_patients),
            _shown(first.metrics.get(site, {}).get(name)),
            _shown(last.metrics.get(site, {}).get(name)),
            f"{spent[-1]:.2f} of {participant.statement.budget.epsilon:g}{_caveat(mine[-1])}"
            if spent
            else "no privacy",
            f"{sum(r.payload_bytes for r in mine):,}",
        )
    return table


def _caveat(release: ReleaseManifest) -> str:
    caveats = [f"+ {release.plain_releases} without privacy"] if release.plain_releases else []
    caveats += ["test noise"] if release.noise == "test" else []
    return f" ({', '.join(caveats)})" if caveats else ""


def _shown(value: float | None) -> str:
    return "withheld" if value is None else f"{value:.3f}"
