"""Checks of a study's mechanism on made-up patients: what no attack on a trained model can see.

Each check measures one part of the guarantee by what the product's own training does, and compares it
with what was charged. What is charged is computed here from the study's numbers, not read from the
training.

| check            | what goes wrong if it fails                                                    |
|------------------|--------------------------------------------------------------------------------|
| noise            | less noise, or more, than the charge states, in any step                       |
| count noise      | an adaptive clip norm shows the count of patients within it                    |
| sensitivity      | a patient moves the sum by more than the clip norm                             |
| patients apart   | a patient's part depends on other patients                                     |
| one unit         | a patient counts more because of more scans                                    |
| sampling         | patients enter steps more often, in parts, or not as the charge states         |
| composition      | rounds are forgotten in the sum of the costs                                   |
| fresh noise      | the same noise is used twice                                                   |
| white box        | an attack that knows everything else finds more than epsilon allows            |
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import binomtest, norm
from torch import Tensor

from models.config import Config
from models.unfinished import Unfinished
from privacy.accounting import Budget, Filter, PrivacyEvent, reported_epsilon
from privacy.audit.bounds import epsilon_of_repeated
from privacy.ledger import BudgetExceeded, Charge, Ledger
from privacy.mechanisms import AdaptiveClip
from privacy.noise.source import NoiseSource
from sites.audit.made_up import DECLARED, Bench, absent, flat, made_up_patient
from sites.cohort import Patient
from sites.local_models import CPU
from sites.training.dp_sgd import train_privately
from sites.training.examples import prepare

NOISE_WITHIN = 0.01
"""Largest accepted relative error of the noise's standard deviation."""
SHARED_NOISE_WITHIN = 0.04
"""How much more noise there may be where hospitals share it."""
STEPS = 3
"""Steps of a training whose noise is measured step by step."""
COUNTS, COUNT_WITHIN = 400, 0.2
"""Steps of an adaptive clip norm whose counts' noise is measured, and its largest relative error."""
COORDINATES = 200_000
"""Coordinates of noise that are measured: the relative error of their deviation is 0.16 %."""
SAME = 1e-3
"""Relative difference that rounding may cause between two contributions."""
TIGHT = 1e-4
"""Share of the clip norm at which planted patients are clipped as well: there each layer exceeds it."""
SAMPLED_STEPS = 100
DRAWN = 30_000_000
FEWEST_TRIALS, MOST_TRIALS = 100, 500
"""Trainings with a patient, and as many without, of the white-box check if nobody says how many: those
that draw `DRAWN` numbers."""
CONFIDENCE = 0.9999
CHANCE = 1e-6
"""Chance that a right sampling fails its test."""


class Measured(Config):
    """The result of one check.

    Attributes:
        due, found: what was expected and what came, in words.
        epsilon: the lower bound on epsilon that the check proves; None for the others.
    """

    name: str = ""
    holds: bool
    due: str
    found: str
    seconds: float = 0.0
    epsilon: float | None = None


def _measured(holds: bool, due: str, found: str, epsilon: float | None = None) -> Measured:
    return Measured(holds=holds, due=due, found=found, epsilon=epsilon)


def examine(bench: Bench, seed: int, trials: int | None = None) -> Iterator[Measured]:
    """Yield what each check measured.

    Args:
        seed: decides what patients are made up; noise comes from the system.
        trials: trainings with a patient, and as many without, of the white-box check: more of them prove
            more of the claim.
    """
    checks = dict(CHECKS)
    if trials:
        checks["white box"] = partial(_white_box, trials=trials)
    for name, check in checks.items():
        started = time.monotonic()
        found = check(bench, np.random.default_rng([seed, *name.encode()]))
        yield found.model_copy(update={"name": name, "seconds": time.monotonic() - started})


def _noise(bench: Bench, rng: np.random.Generator) -> Measured:
    """Compare the noise of each step of trainings without patients with the charged one."""
    del rng
    mechanism, clip = bench.mechanism, bench.mechanism.clip
    share = clip.count_share if isinstance(clip, AdaptiveClip) else 0.0
    due = mechanism.event.noise_multiplier * clip.norm / (1 - share) ** 0.5
    squares, count = np.zeros(STEPS), 0
    while count * STEPS < COORDINATES:
        if bench.study.shares_noise:  # each step is an attempt of its own
            drawn = [bench.step_sum([], mechanism, NoiseSource.from_system()) for _ in range(STEPS)]
        else:
            drawn = bench.noise_by_step(STEPS, NoiseSource.from_system())
        squares += [float(each.square().sum()) for each in drawn]
        count += len(drawn[0])
    ratios = (squares / count) ** 0.5 / due
    overall = float((squares.sum() / count / STEPS) ** 0.5 / due)
    # each hospital's share is rounded up and covers the rounding of its sum: a little more than due
    more = SHARED_NOISE_WITHIN if bench.study.shares_noise else NOISE_WITHIN
    holds = 1 - NOISE_WITHIN <= overall <= 1 + more
    holds = holds and all(1 - 2 * NOISE_WITHIN <= each <= 1 + more + NOISE_WITHIN for each in ratios)
    shown = ", ".join(f"{each:.3f}" for each in ratios)
    return _measured(
        holds, f"1 of what is charged, within {NOISE_WITHIN:.0%} (more: {more:.0%}), in each step",
        f"{overall:.4f} over {count * STEPS} coordinates; by step {shown}",
    )  # fmt: skip


def _count(bench: Bench, rng: np.random.Generator) -> Measured:
    """Measure the noise on the count of an adaptive clip norm by how the norm moves."""
    del rng
    clip = bench.mechanism.clip
    if not isinstance(clip, AdaptiveClip):
        return _measured(True, "no count: the clip norm stays", "nothing is counted")
    due = bench.mechanism.event.noise_multiplier / (2 * clip.count_share**0.5)
    wide = replace(bench.mechanism, steps=1, divisor=1e4)  # so that the share stays between 0 and 1
    counts = []
    for _ in range(COUNTS):
        after = bench.trained_alone(wide).clip
        moved = -np.log(after.norm / clip.norm) / clip.rate + clip.quantile
        counts.append((moved - 0.5) * wide.divisor)
    ratio = float(np.std(counts)) / due
    return _measured(
        abs(ratio - 1) <= COUNT_WITHIN, f"1 of what is charged, within {COUNT_WITHIN:.0%}",
        f"{ratio:.3f} over {COUNTS} steps",
    )  # fmt: skip


def _sensitivity(bench: Bench, rng: np.random.Generator) -> Measured:
    """Measure how far planted patients move the sum: ordinary, glaring, and with many scans."""
    planted = [(1, 1.0), (1, 1e3), (2, 1.0), (8, 1.0), (8, 30.0), (1, 1e-3)]
    patients = [
        made_up_patient(bench.study, f"planted-{k}", rng, scans, scale)
        for k, (scans, scale) in enumerate(planted)
    ]
    norms = [bench.mechanism.clip.norm * share for share in (1.0, TIGHT)]
    moved = max(
        float(bench.contribution(patients, k, bench.mechanism.starting_at(norm)).norm()) / norm
        for norm in norms
        for k in range(len(patients))
    )
    room = 1.02 if bench.study.shares_noise else 1 + SAME  # there each hospital rounds its sum
    due = f"at most 1 clip norm, at norms of {norms[0]:g} and {norms[1]:g}"
    return _measured(moved <= room, due, f"{moved:.5f} at most")


def _apart(bench: Bench, rng: np.random.Generator) -> Measured:
    """Compare what a patient adds among others with what the patient adds among quite different ones."""
    first = made_up_patient(bench.study, "first", rng, scans=2)
    parts = []
    for scale in (1.0, 5.0):
        names = range(1, bench.patients)
        others = [made_up_patient(bench.study, f"other-{k}", rng, 1, scale) for k in names]
        parts.append(bench.contribution([first, *others], 0))
    return _are_same(bench, parts[0], parts[1], "what a patient adds, among other patients")


def _one_unit(bench: Bench, rng: np.random.Generator) -> Measured:
    """Compare what a patient adds with one scan and with four copies of it."""
    fixed = bench.with_fixed_scans()
    one = made_up_patient(fixed.study, "patient", rng)
    four = replace(one, scans=one.scans * 4)
    other = made_up_patient(fixed.study, "other", rng)
    parts = [fixed.contribution([each, other], 0) for each in (one, four)]
    return _are_same(bench, parts[0], parts[1], "what a patient adds, by four copies of a scan")


def _are_same(bench: Bench, one: Tensor, other: Tensor, what: str) -> Measured:
    room = 0.03 if bench.study.shares_noise else SAME
    moved = float((one - other).norm() / one.norm())
    return _measured(moved <= room, f"{what}: the same within {room:g}", f"moved by {moved:.2g}")


def _sampling(bench: Bench, rng: np.random.Generator) -> Measured:
    """Find out from the sums of many steps which patients took part in each."""
    fixed = bench.with_fixed_scans()
    patients = [
        made_up_patient(fixed.study, f"patient-{k}", rng, scans=2) for k in range(bench.patients)
    ]
    alone = torch.stack([fixed.contribution(patients, k) for k in range(len(patients))], 1)
    rate = bench.divisor / DECLARED
    quiet = replace(bench.mechanism, noise_multiplier=min(1e-3, bench.mechanism.noise_multiplier))
    part = []
    for _ in range(SAMPLED_STEPS if rate < 1 else 3):
        found = fixed.step_sum(patients, quiet, NoiseSource.from_system())
        part.append(torch.linalg.lstsq(alone, found[:, None]).solution[:, 0])
    parts = torch.stack(part)
    whole = parts.round()
    in_parts = float((parts - whole).abs().max())
    took, of = int(whole.sum()), whole.numel()
    by_chance = rate == 1 or binomtest(min(max(took, 0), of), of, rate).pvalue >= CHANCE
    holds = in_parts < 0.2 and set(whole.flatten().tolist()) <= {0.0, 1.0} and by_chance
    holds = holds and (rate < 1 or took == of)
    return _measured(
        holds, f"each patient whole or not at all, with probability {rate:g}",
        f"{took / of:.3f} of {of} times, parts by {in_parts:.2g} from whole",
    )  # fmt: skip


def _composition(bench: Bench, rng: np.random.Generator) -> Measured:
    """Charge all rounds to a ledger, and compare its epsilon with that of all its entries."""
    del rng
    privacy, event = bench.study.privacy, bench.mechanism.event
    if privacy.mode == "none":
        raise ValueError("Expected a study with privacy.")
    rounds, budget = (
        bench.study.rounds + privacy.spare,
        Budget(epsilon=privacy.epsilon, delta=privacy.delta),
    )
    rule: Filter = "renyi" if event.sampling_rate < 1 else "gaussian"
    with TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite", budget, "audit", rule=rule)
        for number in range(1, rounds + 1):
            charge = Charge("audit", "audit", number, "contribute", event)
            ledger.reserve(charge, frozenset({"patient"}), budget)
            ledger.start(charge)
            ledger.settle(charge, "0" * 64)
        spent = ledger.spent(privacy.delta)
        charged = [entry.charge.event for entry in ledger.entries() if entry.action == "reserve"]
        again = Charge("audit", "audit", rounds + 1, "contribute", event)
        refused = _is_refused(ledger, again)
    due = _exact_epsilon([each for each in charged if each], privacy.delta)
    holds = len(charged) == rounds and due * 0.99 <= spent <= privacy.epsilon * (1 + 1e-6) and refused
    return _measured(
        holds,
        f"{rounds} rounds cost at least {due:.4f}, at most {privacy.epsilon:g}, and one more is refused",
        f"{spent:.4f} for {len(charged)}, one more {'refused' if refused else 'accepted'}",
    )  # fmt: skip


def _is_refused(ledger: Ledger, charge: Charge) -> bool:
    try:
        ledger.reserve(charge, frozenset({"patient"}))
    except BudgetExceeded:
        return True
    return False


def _exact_epsilon(events: list[PrivacyEvent], delta: float) -> float:
    """Return the epsilon of events together, by another way than the ledger's.

    Full batches: the Gaussian's curve, solved here. Sampled steps: Google's privacy loss distributions.
    """
    if any(event.sampling_rate < 1 for event in events):
        return reported_epsilon(events, delta, "pld")
    mu = sum(event.steps / event.noise_multiplier**2 for event in events) ** 0.5

    def excess(epsilon: float) -> float:
        lost = norm.cdf(mu / 2 - epsilon / mu)
        return float(lost - np.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu)) - delta)

    return float(brentq(excess, 0.0, 1000.0)) if excess(0.0) > 0 else 0.0


def _fresh(bench: Bench, rng: np.random.Generator) -> Measured:
    """Correlate the noise of two trainings, and of both steps of one that was killed between them."""
    del rng
    draws = [bench.step_sum([], bench.mechanism, NoiseSource.from_system()) for _ in range(2)]
    pairs = [("two trainings", draws[0], draws[1])]
    if not bench.study.shares_noise:
        pairs.append(("a resumed training", *_noise_around_a_kill(bench)))
    found = {
        name: abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) for name, one, other in pairs
    }
    where = max(found, key=lambda name: float(np.nan_to_num(found[name], nan=np.inf)))
    most, limit = found[where], 6 / len(draws[0]) ** 0.5
    sizes = [float(other.std() / one.std()) for _, one, other in pairs]
    is_there = all(abs(size - 1) <= 12 / len(draws[0]) ** 0.5 for size in sizes)  # NaN fails
    return _measured(
        most <= limit and is_there,
        f"noise of one size that correlates by at most {limit:.4f} from draw to draw",
        f"{most:.4f} in {where}; sizes {', '.join(f'{size:.2f}' for size in sizes)} of the first",
    )


class _Killed(Exception):
    """The end of a training that the audit interrupts."""


def _noise_around_a_kill(bench: Bench) -> tuple[Tensor, Tensor]:
    """Return the noise of the first step of a training, and of the second after a restart."""
    two = replace(bench.mechanism, steps=2)
    with TemporaryDirectory() as folder:
        network = bench.network()
        start, seen = flat(network), []

        def progress(_what: str, _step: int, _of: int) -> None:
            seen.append(flat(network))
            if len(seen) == 1:
                raise _Killed

        for _ in range(2):
            unfinished = Unfinished(Path(folder) / "state.safetensors", every_s=0)
            try:
                examples = prepare([], bench.study.preprocessing, CPU, seed=0)
                train_privately(
                    network, bench.task, examples, bench.config(two), two, NoiseSource.from_system(),
                    None, progress, unfinished,
                )  # fmt: skip
            except _Killed:
                network = bench.network()  # a new process
    return start - seen[0], seen[0] - seen[1]


def _white_box(bench: Bench, rng: np.random.Generator, trials: int | None = None) -> Measured:
    """Attack a step that spends the whole budget, with and without a patient of known gradient."""
    fixed, mechanism = bench.with_fixed_scans(), bench.in_one_step()
    patient = made_up_patient(fixed.study, "planted", rng, scale=30.0)
    known = fixed.contribution([patient], 0, mechanism)
    length = float(known.norm())
    trials = trials or min(MOST_TRIALS, max(FEWEST_TRIALS, DRAWN // len(known)))

    def score(planted: Patient) -> float:
        return float(fixed.step_sum([planted], mechanism, NoiseSource.from_system()) @ known) / length

    scores = [np.array([score(each) for _ in range(trials)]) for each in (patient, absent(patient))]
    privacy = bench.study.privacy
    if privacy.mode == "none":
        raise ValueError("Expected a study with privacy.")
    lower = epsilon_of_repeated(
        scores[0], scores[1], mechanism.clip.norm / 2, privacy.delta,
        confidence=CONFIDENCE, gaussian=mechanism.sampling_rate == 1,
    )  # fmt: skip
    return _measured(
        lower <= privacy.epsilon, f"epsilon at most {privacy.epsilon:g}, as charged",
        f"at least {lower:.2f} with confidence {CONFIDENCE:g}, of {trials} trainings each",
        epsilon=lower,
    )  # fmt: skip


CHECKS: Mapping[str, Callable[[Bench, np.random.Generator], Measured]] = {
    "noise": _noise,
    "count noise": _count,
    "sensitivity": _sensitivity,
    "patients apart": _apart,
    "one unit": _one_unit,
    "sampling": _sampling,
    "composition": _composition,
    "fresh noise": _fresh,
    "white box": _white_box,
}
