"""The tables of `wardround site audit`: what attacks found about a hospital's own patients."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from flows.runs.dates import minute
from sites.audit.audit import HospitalAudit
from sites.audit.membership import Measure


def audit_lines(reports: Sequence[HospitalAudit]) -> Iterator[Table | str]:
    """Yield a table for each report, and the lines below it; one line where there is none."""
    if not reports:
        yield (
            "No audit so far: the coordinator asks for one (wardround audit run), and this hospital "
            "makes it if its site.yaml has audit: {epsilon: ...}."
        )
    for report in reports:
        yield _table(report)
        yield from _lines(report)


def _table(report: HospitalAudit) -> Table:
    table = Table(
        title=f"{report.run}, round {report.round}, {minute(report.at_ms)}: this stays at the hospital"
    )
    for heading in (
        "model",
        "attack",
        "AUC",
        "found at 5 % false alarms",
        "at 1 %",
        "members",
        "others",
    ):
        table.add_column(heading)
    for each in report.attacks:
        at_one = _shown(each.found_at_one) if each.found_at_one else "too few patients"
        row = (each.model, each.attack, _shown(each.auc), _shown(each.found), at_one)
        table.add_row(*row, str(each.members), str(each.others))
    return table


def _lines(report: HospitalAudit) -> Iterator[str]:
    settings = report.settings
    yield (
        f"setting: {settings.shadows} twins of each kind, {settings.plain_steps} steps of a twin "
        f"without privacy, {settings.canaries} canaries; {report.seconds:.0f} s"
    )
    if report.epsilon is not None and report.most_found is not None:
        yield (
            f"charged: epsilon {report.epsilon:.2f} at delta {report.delta:g}; so no attack can find "
            f"more than {report.most_found:.0%} of the patients at 5 % false alarms"
        )
    if one := report.one_run:
        yield (
            f"canaries in one training: {one.right} of {one.made} guesses right, so epsilon is at "
            f"least {one.epsilon_lower:.2f} (confidence {one.confidence}), {one.claimed:.2f} was "
            f"charged{'' if one.holds else ': THE CLAIM DOES NOT HOLD'}"
        )


def _shown(measure: Measure) -> str:
    return f"{measure.value:.3f} ({measure.low:.3f} to {measure.high:.3f})"
