"""The report of a run, with its model card: one HTML file for people, with public values only.

It has no script and loads nothing from outside, so it can be attached, archived and printed.
"""

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flows.audits.records import AuditRecord, newest_audit, picture_of
from flows.decisions import chain, verdicts
from flows.reporting.caveats import caveats
from flows.reporting.disclosures import Disclosure, disclosures
from flows.reporting.glance import glance
from flows.reporting.templates import rendered
from flows.runs.colours import colours
from flows.runs.records import Part, RoundRecord, newest_scored
from flows.runs.run import Run
from flows.starts.rate import declared_in, warnings
from flows.tracking.metrics import by_group, fairness
from models.settings.metrics import flat, metric_names
from privacy.accounting import PrivacyEvent, group_epsilon, most_found
from privacy.statements import Acceptance, ReleaseManifest
from sites.study import Study

FALSE_ALARMS = 0.05
NOT_STATED = "not stated"
MOST_NAMED = 12
"""Lines of a plot that its legend can name without hiding them."""
HOW = {
    "exact": "exact, of evaluation patients, to whom no privacy is promised",
    "noised": "with noise that the hospital's ledger has charged",
    "summed": "in the noised sum over all hospitals alone",
    "withheld": "withheld by the hospital",
}
CONTENTS = {
    "student": "a student network, taught by the hospital's own network on public or synthetic images",
    "weights": "the change of the network's weights",
    "predictions": "predictions for public or synthetic images",
    "gradient_sum": "a sum of its patients' clipped gradients with its share of the noise",
}
"""What a release contains, by `Study.content_of`."""
PARTS: Mapping[Part, str] = {
    "release": "",
    "scores": ", its scores",
    "comparison": ", its comparison of models",
}
"""The parts of a hospital's round, as the table of absences names them."""
HASH_SALT = "wardround"
"""A constant that makes the identifiers inside a drawing the same each time."""


@dataclass(frozen=True)
class HospitalPage:
    """A report's facts about one hospital."""

    name: str
    public: Acceptance
    since: int
    key: str
    releases: Sequence[tuple[int, ReleaseManifest]]
    how: str
    disclosures: Sequence[Disclosure]

    @property
    def epsilon(self) -> float | None:
        """The epsilon that the run has spent here, None without privacy."""
        return self.releases[-1][1].epsilon if self.releases else None

    @property
    def caveats(self) -> list[str]:
        """The caveats about its epsilon."""
        return list(caveats(self.releases[-1][1])) if self.releases else []

    @property
    def _events(self) -> list[PrivacyEvent]:
        return [PrivacyEvent(**r.event.model_dump()) for _, r in self.releases if r.event]

    def most_found(self, delta: float) -> float | None:
        """Return the largest share of its patients whose participation anybody could detect."""
        return most_found(self._events, delta, FALSE_ALARMS) if self._events else None

    def of_two(self, delta: float) -> float | None:
        """Return the epsilon of two people together, such as twins; None where none is known."""
        return group_epsilon(self._events, delta, 2) if self._events else None


@dataclass(frozen=True)
class Quality:
    """A row of the table of quality: a metric at a hospital, with its interval and worst case."""

    hospital: str
    metric: str
    before: float | None
    now: float
    low: float | None
    high: float | None
    worst_case: float | None


def report(run: Run, until: int | None = None, pending: verdicts.ReleaseOutcome | None = None) -> bytes:
    """Return the report of a run up to a round, its newest by default, as the bytes of an HTML file.

    Args:
        pending: an outcome for the model that is about to be recorded.
    """
    records = run.records()[: None if until is None else until + 1]
    known = chain.decisions(run)
    scored = newest_scored(records)
    hospitals = hospital_pages(run, records)
    return rendered(
        "report.html.j2",
        NOT_STATED,
        run=run,
        study=run.study,
        records=records,
        last=records[-1],
        hospitals=hospitals,
        quality=list(_quality(run, records)),
        scored=scored,
        headline=scored.headline or "",
        fairness=fairness(scored.metrics),
        groups=by_group(scored.metrics, run.description.members(scored.round)),
        quality_plot=_quality_plot(run, records),
        epsilon_plot=_epsilon_plot(run, hospitals),
        absences=list(_absences(run, records)),
        departed=sorted(run.description.departed),
        decisions=[(e.verdict, e.outcome) for e in known] + ([(None, pending)] if pending else []),
        attacked={name: v for name, v in scored.quality.items() if name.startswith("attacked/")},
        software=list(_software(records)),
        metrics=sorted(metric_names(run.study.task)),
        false_alarms=FALSE_ALARMS,
        contents=contents_of(run.study),
        audit=(audit := newest_audit(run, records)),
        audit_picture=audit_picture(run, audit),
        signal_warnings=warnings(run.study, declared_in(run)),
        glance=glance(run, records),
    )


def contents_of(study: Study) -> str:
    """Return in words what leaves a hospital, where the last round differs for both kinds."""
    before, last = study.content_of(1), study.content_of(study.rounds)
    if before == last:
        return CONTENTS[last]
    return f"{CONTENTS[before]}, and in the last round {CONTENTS[last]}"


def audit_picture(run: Run, audit: AuditRecord | None) -> str:
    """Return an audit's picture for a page that loads nothing; empty without one."""
    path = run.folder / picture_of(audit.round) if audit else None
    if path is None or not path.exists():
        return ""
    return f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"


def hospital_pages(run: Run, records: Sequence[RoundRecord]) -> list[HospitalPage]:
    """Return a report's facts about each hospital of a run."""
    return [_page(run, records, site) for site in sorted(run.description.everybody)]


def _page(run: Run, records: Sequence[RoundRecord], site: str) -> HospitalPage:
    policies = [r.scores[site].statement.metrics_policy for r in records if site in r.scores]
    member = run.description.member(site, records[-1].round)
    return HospitalPage(
        name=site,
        public=member.statement,
        since=member.since,
        key=member.key,
        releases=[(r.round, r.releases[site].statement) for r in records if site in r.releases],
        how=HOW[policies[-1]] if policies else "nothing was published",
        disclosures=disclosures(run, site, records[-1].round),
    )


def _quality(run: Run, records: Sequence[RoundRecord]) -> list[Quality]:
    """Return each metric at each hospital after the newest round that was evaluated, the worst first."""
    first, last = records[0], newest_scored(records)
    rows = [
        Quality(
            hospital="all together",
            metric=metric,
            before=first.quality.get(metric),
            now=last.quality[metric],
            low=last.quality.get(f"low/{flat(metric)}"),
            high=last.quality.get(f"high/{flat(metric)}"),
            worst_case=None,
        )
        for metric in sorted(metric_names(run.study.task))
        if last.metrics_sum and metric in last.quality
    ]
    for metric in sorted(metric_names(run.study.task)):
        for site, metrics in sorted(last.metrics.items()):
            if metric in metrics:
                rows.append(
                    Quality(
                        hospital=site,
                        metric=metric,
                        before=first.metrics.get(site, {}).get(metric),
                        now=metrics[metric],
                        low=metrics.get(f"low/{flat(metric)}"),
                        high=metrics.get(f"high/{flat(metric)}"),
                        worst_case=metrics.get(f"worst_case/{flat(metric)}"),
                    )
                )
    return rows


def _absences(run: Run, records: Sequence[RoundRecord]) -> Iterator[tuple[str, str, str]]:
    """Yield every refusal and dropout: the time, the hospital, the reason."""
    known = run.description
    for site, why in sorted(known.refused.items()):
        yield "start", site, str(why)
    for site in sorted(known.everybody):
        away = [r.round for r in records[1:] if not _has_release(r, site)]
        first, last = known.acceptances(site)[0].since, records[-1].round + 1
        before, after = _stretches(away, 0, first), _stretches(away, first, last)
        yield from ((_rounds(each), site, "it had not joined yet") for each in before)
        yield from ((_rounds(each), site, "it had left") for each in after)
        if site in known.departed:
            yield "", site, "it has left the study"
    for record in records:
        for part, words in PARTS.items():
            for site, why in record.absences(part).items():
                yield f"{record.round}{words}", site, str(why)


def _has_release(record: RoundRecord, site: str) -> bool:
    """Return whether a record has a hospital's release, or why it is missing."""
    return site in record.hospitals and record.hospitals[site].release is not None


def _stretches(rounds: Sequence[int], start: int, end: int) -> list[list[int]]:
    """Return the `rounds` from `start` to before `end`, grouped into stretches without gaps.

    >>> _stretches([1, 2, 4], 0, 9)
    [[1, 2], [4]]
    """
    found: list[list[int]] = []
    for round in rounds:
        if start <= round < end:
            if found and found[-1][-1] == round - 1:
                found[-1].append(round)
            else:
                found.append([round])
    return found


def _rounds(rounds: Sequence[int]) -> str:
    return f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"


def _software(records: Sequence[RoundRecord]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the versions of the software that recorded rounds, each with its first round."""
    before: dict[str, str] | None = None
    for record in records:
        if record.software != before:
            yield f"from round {record.round}", record.software
        before = record.software


def _quality_plot(run: Run, records: Sequence[RoundRecord]) -> Markup:
    name = newest_scored(records).headline
    if name is None:
        return Markup()
    colour = colours(run.description)
    figure, axes = _figure(name, records[-1].round)
    for site in sorted({site for record in records for site in record.metrics}):
        points = [(r.round, r.metrics[site][name]) for r in records if name in r.metrics.get(site, {})]
        _line(axes, points, site, colour[site])
    axes.set_ylim(0, 1)
    _name_lines(axes)
    return _svg(figure, f"{name} of the global model at each hospital over the rounds")


def _epsilon_plot(run: Run, hospitals: Sequence[HospitalPage]) -> Markup:
    private = [page for page in hospitals if page.epsilon is not None]
    if not private:
        return Markup()
    colour = colours(run.description)
    figure, axes = _figure("epsilon spent in this run", run.study.rounds)
    for page in private:
        points = [(0, 0.0), *((r, release.epsilon or 0.0) for r, release in page.releases)]
        _line(axes, points, page.name, colour[page.name])
    if run.study.privacy.mode != "none":
        axes.axhline(run.study.privacy.epsilon, color="black", linestyle="--", label="the study's limit")
    axes.set_ylim(bottom=0)
    _name_lines(axes)
    return _svg(figure, "Epsilon that each hospital has spent over the rounds")


def _line(axes: Axes, points: Sequence[tuple[int, float]], site: str, colour: str) -> None:
    axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=site, color=colour)


def _name_lines(axes: Axes) -> None:
    """Name the lines of a plot; say how many there are where their names would hide them."""
    count = len(axes.get_legend_handles_labels()[1])
    if count <= MOST_NAMED:
        axes.legend(fontsize=8)
    else:
        axes.set_title(f"{count} lines; the table names the hospitals", fontsize=8, loc="right")


def _figure(label: str, rounds: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("round")
    axes.set_ylabel(label)
    axes.set_xlim(-0.1, max(rounds, 1) + 0.1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _svg(figure: Figure, title: str) -> Markup:
    out = StringIO()
    with rc_context({"svg.hashsalt": HASH_SALT, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    drawing = out.getvalue()
    return Markup(drawing[drawing.index("<svg") :])  # noqa: S704  # drawn and escaped by matplotlib
