"""The table that a training shows on a terminal: a row for each hospital, filled round by round."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.runs.records import RoundRecord
from flows.runs.run import Run

BAR, NARROW_BAR, WIDE = 16, 6, 110
"""Widths of a hospital's bar on wide and narrow terminals, and of a wide terminal, in characters."""
MOST_ROUNDS, MOST_ROWS = 5, 20
"""Columns of rounds, and rows of hospitals, that a table has at most; the newest, and the busiest."""
FIXED, OF_A_ROUND = 49, 11
"""Characters of a table without rounds, beside bar and names; those of one round's column."""
WORDS = {"train": "trains", "distil": "distils", "evaluate": "measures", "export": "sends"}


@dataclass(frozen=True)
class Step:
    """A hospital is at `step` of `of` in a phase: public constants of the study, none of a patient."""

    what: str
    step: int
    of: int

    @property
    def is_done(self) -> bool:
        """Whether the phase has ended."""
        return self.step >= self.of


def live_table(
    run: Run,
    roster: Sequence[str],
    records: Sequence[RoundRecord],
    steps: Mapping[str, Step],
    width: int = 160,
) -> Table:
    """Return the table as it stands, with as many of the newest rounds as the terminal has room for.

    Args:
        roster: the hospitals that are asked.
        records: the recorded rounds, from round 0 on.
        steps: where hospitals are, those that have begun something.
        width: of the terminal, in characters.
    """
    scored, bar = [record for record in records if record.metrics], BAR if width >= WIDE else NARROW_BAR
    room = (width - bar - FIXED - max(map(len, roster), default=0)) // OF_A_ROUND
    shown = [*scored[:1], *scored[1:][-min(MOST_ROUNDS, max(1, room)) :]]
    name = next((record.headline for record in reversed(scored) if record.headline), None)
    table = Table(title=_title(run, records))
    table.add_column("hospital")
    table.add_column("now", min_width=bar + 15)
    if run.study.privacy.mode != "none":
        table.add_column("epsilon", justify="right", no_wrap=True)
    for record in shown:
        when = "before" if record.round == 0 else f"round {record.round}"
        table.add_column(f"{name or 'metrics'} {when}" if record is shown[0] else when, justify="right")
    is_over = bool(records) and records[-1].round >= run.study.rounds
    order = sorted(roster, key=lambda site: (site not in steps or steps[site].is_done, site))
    for site in order[:MOST_ROWS]:
        values = [_metric(run, record, site, name) for record in shown]
        spent = [_epsilon(run, records, site)] if run.study.privacy.mode != "none" else []
        now = Text("done", style="dim") if is_over else _now(steps.get(site), bar)
        table.add_row(site, now, *spent, *values)
    if len(order) > MOST_ROWS:
        table.caption = f"and {len(order) - MOST_ROWS} hospitals more"
    return table


def _title(run: Run, records: Sequence[RoundRecord]) -> str:
    done = records[-1].round if records else None
    if done is None:
        return f"{run.study.name}: before the first round"
    if done >= run.study.rounds:
        return f"{run.study.name}: all {done} rounds"
    return f"{run.study.name}: round {done + 1} of {run.study.rounds}"


def _now(step: Step | None, bar: int) -> RenderableType:
    if step is None:
        return Text("waits", style="dim")
    if step.is_done:
        return Text(f"{WORDS.get(step.what, step.what)}: done", style="dim")
    row = Table.grid(padding=(0, 1))
    row.add_row(
        f"{WORDS.get(step.what, step.what):<8}",
        ProgressBar(total=step.of, completed=step.step, width=bar),
        f"{step.step}/{step.of}",
    )
    return row


def _metric(run: Run, record: RoundRecord, site: str, name: str | None) -> str:
    value = record.metrics.get(site, {}).get(name or "")
    if value is not None:
        return f"{value:.3f}"
    if site not in record.scores:
        return "-"
    return "in the sum" if run.study.evaluation.summed else "withheld"


def _epsilon(run: Run, records: Sequence[RoundRecord], site: str) -> str:
    spent = list(_spent(records, site))
    if site not in run.description.everybody:
        return f"{spent[-1]:.2f}" if spent else "-"
    budget = run.description.everybody[site].statement.budget.epsilon
    return f"{spent[-1] if spent else 0:.2f} of {budget:g}"


def _spent(records: Sequence[RoundRecord], site: str) -> Iterator[float]:
    for record in records:
        if site in record.releases and (spent := record.releases[site].statement.epsilon) is not None:
            yield spent
