"""Which hospital made a release? An attack on what every reader of the exchange has."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flows.audits.records import Provenance, provenance_of
from flows.rounds.releases import change_of
from flows.runs.records import Absence, Signed
from flows.runs.run import Run
from models.params import Params
from privacy.audit.published import PROVENANCE
from privacy.statements import AuditFigures


def provenance(run: Run, round: int) -> Provenance | None:
    """Return how often releases give their hospital away, over all rounds up to one.

    Who has seen whose releases of the rounds before are, guesses each release of a round without its
    name. None where releases are masked, are predictions, or only one round or hospital made some.
    """
    rounds = []
    for record in run.records()[1 : round + 1]:
        names = [
            site
            for site, each in record.releases.items()
            if each.statement.round == record.round
            and each.statement.masked is None
            and each.statement.content in ("weights", "student")
        ]
        rounds.append({site: _flat(change_of(run, record.round, site)) for site in sorted(names)})
    return guessed([each for each in rounds if len(each) > 1])


def scans_told_apart(
    run: Run, number: int, hospitals: Mapping[str, Signed[AuditFigures] | Absence]
) -> Provenance | None:
    """Return how many evaluation patients' scans models' outputs assign to the right hospital.

    Each hospital publishes its own share, rounded to its declared number of evaluation patients.
    """
    right = total = count = 0
    for site, each in hospitals.items():
        if isinstance(each, Signed) and PROVENANCE in each.statement.figures:
            declared = run.description.member(site, number).statement
            patients = max(1, declared.declared_patients - declared.declared_training)
            right += min(patients, round(each.statement.figures[PROVENANCE] * patients))
            total, count = total + patients, count + 1
    return provenance_of(right, total, 1 / count) if count > 1 else None


def guessed(rounds: Sequence[Mapping[str, Tensor]]) -> Provenance | None:
    """Return the attack's success on changes `(d,)` by hospital, round by round.

    A hospital is known by the mean direction of its changes, less that of everybody, in the rounds
    before; a release is said to be of the hospital with the nearest one. Changes of rounds of other
    sizes (students, then weights) are not compared.
    """
    right = total = 0
    chances = []
    for number in range(1, len(rounds)):
        now = rounds[number]
        known = _directions([each for each in rounds[:number] if _size(each) == _size(now)])
        sites = sorted(known.keys() & now.keys())
        if len(sites) < 2:
            continue
        apart = _apart({site: now[site] for site in sites})
        for site in sites:
            nearest = max(sites, key=lambda other: float(known[other] @ apart[site]))
            right, total = right + (nearest == site), total + 1
            chances.append(1 / len(sites))
    if not total:
        return None
    return provenance_of(right, total, sum(chances) / total)


def _size(changes: Mapping[str, Tensor]) -> int:
    return len(next(iter(changes.values())))


def _directions(rounds: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return each hospital's mean direction over rounds, less everybody's of each round."""
    found: dict[str, list[Tensor]] = {}
    for changes in rounds:
        for site, apart in _apart(changes).items():
            found.setdefault(site, []).append(apart)
    means = {site: torch.stack(each).mean(0) for site, each in found.items()}
    return {site: mean / (mean.norm() + 1e-12) for site, mean in means.items()}


def _apart(changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    mean = torch.stack(list(changes.values())).mean(0)
    return {site: (each - mean) / ((each - mean).norm() + 1e-12) for site, each in changes.items()}


def _flat(change: Params) -> Tensor:
    return torch.cat([change[name].double().ravel() for name in sorted(change)])
