"""Robust strategies when under a third of the hospitals are faulty: `benchmarks/robustness.py --json`.

Seven hospitals of hippocampus scans, of which two send sign-flipped, hundredfold or random changes in
each round. Dice of the honest hospitals' evaluation patients after the last round.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from simulation import DATA, HIPPOCAMPUS, Alter, Remembering, copied, federate, make_keys, quiet, scored

from flows.rounds.releases import release_path
from flows.rounds.statements import Answers, TooFewHospitals
from flows.runs.run import Run
from models import checkpoints
from models.params import Params
from sites.datasets import decathlon
from sites.local_models import CPU, network_for
from sites.study import Study

HONEST = "honest"
FAULTS = ("sign", "scaled", "random")
STRATEGIES: Mapping[str, Mapping[str, Any]] = {
    "fed_avg": {},
    "coordinate_median": {},
    "trimmed_mean": {"faulty": 2},
    "krum": {"faulty": 2},
    "multi_krum": {"faulty": 2, "chosen": 4},
    "geometric_median": {},
    "norm_bounding": {},
}
FAULTY = ("hospital-1", "hospital-4")
HOSPITALS = 7
STUDY: dict[str, Any] = {**HIPPOCAMPUS, "name": "robustness", "sites": {"min": HOSPITALS}}


def faulty(kind: str) -> Alter:
    """Return a function that replaces the changes of two hospitals by faulty ones."""

    def alter(run: Run, round: int, taken: Answers) -> None:
        for site in sorted(set(FAULTY) & set(taken.taken)):
            path = release_path(run, round, site)
            rng = torch.Generator().manual_seed(run.study.seed_for(round, site, "fault"))
            checkpoints.write(path, _wrong(dict(checkpoints.StoredParams(path)), kind, rng))

    return alter


def _wrong(change: Params, kind: str, rng: torch.Generator) -> dict[str, torch.Tensor]:
    if kind == "random":
        return {n: torch.randn(v.shape, generator=rng) for n, v in change.items()}
    factor = -3.0 if kind == "sign" else 100.0
    return {n: factor * v for n, v in change.items()}


def measure(strategy: str, kind: str, wards: Path, rounds: int) -> dict[str, Any]:
    """Return the honest hospitals' Dice after a run, None if no hospital can go on from its model."""
    quiet()
    name = {"name": "krum" if strategy == "multi_krum" else strategy}
    study = Study.model_validate(
        {**STUDY, "rounds": rounds, "strategy": {**name, **STRATEGIES[strategy]}}
    )
    with tempfile.TemporaryDirectory() as scratch:
        own = copied(wards, Path(scratch) / "wards")
        try:
            run = federate(study, own, Path(scratch), None if kind == HONEST else faulty(kind))
        except TooFewHospitals:  # the model is beyond all numbers: nobody can go on from it
            return {"strategy": strategy, "fault": kind, "dice": None}
        model = run.model(run.records()[-1])
        network = network_for(study.network, study, CPU, model)
        honest = [Remembering.open(ward) for ward in own if ward.name not in FAULTY]
        dice = [scored(study, network, h.cohort(study).evaluation)["dice"] for h in honest]
    return {"strategy": strategy, "fault": kind, "dice": round(sum(dice) / len(dice), 4)}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--faults", nargs="+", choices=(HONEST, *FAULTS), default=[HONEST, *FAULTS])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: Sequence[dict[str, Any]]
    with tempfile.TemporaryDirectory() as scratch:
        wards = Path(scratch) / "wards"
        make_keys(decathlon.make_hospitals(DATA / "hippocampus", wards, HOSPITALS, 0, skew="size"))
        with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
            jobs = [
                pool.submit(measure, strategy, kind, wards, arguments.rounds)
                for strategy in arguments.strategies
                for kind in arguments.faults
            ]
            rows = [job.result() for job in jobs]
    print(json.dumps({"rows": rows}) if arguments.json else json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
