"""Release status of a study's models, computed from the decisions alone, whatever MLflow has.

| link of a chain   | effect                                                                          |
|-------------------|---------------------------------------------------------------------------------|
| an approval       | none yet                                                                        |
| an objection      | versions released before it count no more, even if the model is approved later  |
| released as v     | v counts until the first of its approvals expires, and becomes the champion     |
| v withdrawn       | v counts no more; if it was the champion, the one released before it is, if any |
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from flows.decisions.chain import approvals, decisions, objections
from flows.decisions.people import ROLES, Role
from flows.decisions.verdicts import Decision, ReleaseOutcome, Terms, Verdict
from flows.runs.dates import day
from flows.runs.paths import Home
from flows.runs.run import runs_of

APPROVED_UNTIL = "wardround.approved_until"
CANDIDATE = "no: a candidate"

Chain = Sequence[Decision]


@dataclass(frozen=True)
class ReleasedVersion:
    """A released version: its outcome, the approvals it rests on, and the objections since."""

    outcome: ReleaseOutcome
    given: Mapping[Role, Verdict]
    at_ms: int
    against: tuple[Verdict, ...] = ()

    @property
    def version(self) -> str:
        """Its number among the approved versions."""
        return self.outcome.version

    @property
    def terms(self) -> Terms:
        """The model that it holds."""
        return self.outcome.terms

    @property
    def until_ms(self) -> int:
        """The time at which the first of its approvals expires."""
        return _until_ms(self.given)

    @property
    def tags(self) -> dict[str, str]:
        """The version's tags in MLflow about its approvals."""
        return tags_of(self.given)


def chains_of(home: Home, study: str) -> list[Chain]:
    """Return the decisions of all of a study's runs in a home; raises as `decisions` does."""
    return [decisions(run) for run in runs_of(home) if run.study.name == study]


def released(known: Chain) -> dict[str, ReleasedVersion]:
    """Return by number the versions that a run has released and not withdrawn, the newest last."""
    found: dict[str, ReleasedVersion] = {}
    for at, decision in enumerate(known):
        if outcome := decision.outcome:
            found = {v: each for v, each in found.items() if each.terms != outcome.terms}
            if outcome.what == "released":
                given = approvals(known[:at], outcome.terms, decision.at_ms)
                found[outcome.version] = ReleasedVersion(outcome, given, decision.at_ms)
        elif (verdict := decision.verdict) and verdict.word != "approved":
            for number, each in found.items():
                if each.terms == verdict.terms:
                    found[number] = replace(each, against=(*each.against, verdict))
    return found


def was_released(known: Chain, terms: Terms) -> bool:
    """Return whether a model was ever released, even if it was withdrawn since."""
    outcomes = (link.outcome for link in known if link.outcome)
    return any(each.what == "released" and each.terms == terms for each in outcomes)


def revoked(known: Chain) -> list[ReleasedVersion]:
    """Return the released versions with an objection that are not withdrawn yet."""
    return [each for each in released(known).values() if each.against]


def newest_approved(chains: Sequence[Chain], at_ms: int) -> str:
    """Return the newest released version that counts at a time, empty if none does.

    It counts if nobody has objected to it and none of its approvals has expired.
    """
    before = [[link for link in chain if link.at_ms <= at_ms] for chain in chains]
    standing = [
        each
        for chain in before
        for each in released(chain).values()
        if not each.against and at_ms < each.until_ms
    ]
    return max(standing, key=lambda each: each.at_ms).version if standing else ""


def champion(chains: Sequence[Chain]) -> str:
    """Return the version that the decisions of a study's runs make the champion, empty if none."""
    links = sorted((link for chain in chains for link in chain), key=lambda link: link.at_ms)
    crowned = ""
    for link in links:
        if link.outcome and link.outcome.what == "released":
            crowned = link.outcome.version
        elif link.outcome and link.outcome.version == crowned:
            crowned = newest_approved(chains, link.at_ms)
    return crowned


def newest_ms(chains: Sequence[Chain]) -> int:
    """Return the date of the newest decision of a study's runs, 0 without one."""
    return max((chain[-1].at_ms for chain in chains if chain), default=0)


def in_words(known: Chain) -> str:
    """Return in one line which model of a run is released, and the newest decision."""
    if not known:
        return CANDIDATE
    stands = [each for each in released(known).values() if not each.against]
    shown = [_released(each) for each in stands[-1:]]
    last = known[-1]
    if last.terms and last.terms not in [each.terms for each in stands[-1:]]:
        shown.append(f"round {last.terms.round} {', '.join(_verdict_texts(known, last.terms))}")
    return "; ".join(shown) if stands else f"no: {'; '.join(shown)}"


def waits_for(known: Chain, newest: int) -> str:
    """Return in one line the roles that have to approve, and the model, as of the newest decision.

    The model is that of the newest decision, by default that of the round `newest`.
    """
    terms = next((link.terms for link in reversed(known) if link.terms), None)
    if terms is None:
        return f"{' and '.join(ROLES)}, about round {newest}"
    if any(each.terms == terms and not each.against for each in released(known).values()):
        return "nobody"
    given = approvals(known, terms, known[-1].at_ms)
    lacking = [role for role in ROLES if role not in given]
    return f"{' and '.join(lacking) or '`wardround promote`'}, about round {terms.round}"


def tags_of(given: Mapping[Role, Verdict]) -> dict[str, str]:
    """Return the tags of a version about the approvals on which it is released."""
    return {
        **{
            f"wardround.approved_by.{role}": f"{v.person}, until {day(v.expires_ms)}"
            for role, v in given.items()
        },
        APPROVED_UNTIL: day(_until_ms(given)),
    }


def _until_ms(given: Mapping[Role, Verdict]) -> int:
    return min((verdict.expires_ms for verdict in given.values()), default=0)


def _released(each: ReleasedVersion) -> str:
    by = " and ".join(f"{verdict.person} ({role})" for role, verdict in sorted(each.given.items()))
    return f"round {each.terms.round} as version {each.version}, approved by {by}"


def _verdict_texts(known: Chain, terms: Terms) -> Iterator[str]:
    for role, verdict in sorted(approvals(known, terms, known[-1].at_ms).items()):
        yield f"approved by {verdict.person} ({role})"
    for verdict in objections(known, terms):
        yield f"{verdict.word} by {verdict.person} ({verdict.role})"
