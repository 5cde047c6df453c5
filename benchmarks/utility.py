"""What private training adds to a start: Dice on held-out patients, by start, epsilon and seed.

    python benchmarks/utility.py --json > utility.json
    python benchmarks/utility.py --shared --json    # noise shared by the hospitals in a secure sum
    python benchmarks/utility.py --validated --json # five of the public patients choose the last model
    python benchmarks/utility.py --tune --json      # another quarter held out, for choosing settings

Hippocampus scans of the shared data. A quarter of the patients (by hash) is held out and never used;
four hospitals have the others, or what is left of them beside 20 public patients. Everything runs
through the product's own code (`simulation.py`): start, ledger, noise at each hospital, aggregation.

| start        | first model                                                                       |
|--------------|-----------------------------------------------------------------------------------|
| synthetic    | tubes with the hippocampus' direction                                              |
| label maps   | images drawn from two public atlases (`atlas.py`)                                  |
| same group   | label maps, then 20 public patients whose intensities are those of most patients   |
| other group  | label maps, then 20 public patients of the other intensity groups                  |
"""

import argparse
import csv
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import atlas
import yaml
from rows import print_rows, side_by_side
from simulation import DATA, HIPPOCAMPUS, Remembering, federate, quiet, scored

from flows.runs.paths import Home
from flows.starts.first_model import first_model
from models.params import Params
from sites.cohort import Patient
from sites.datasets import decathlon
from sites.hospital import Hospital
from sites.local_models import CPU, network_for
from sites.setup.wards import introduce
from sites.study import Study

SOURCE = DATA / "hippocampus"
HOSPITALS, PUBLIC, VALIDATION = 4, 20, 5
COMMON = "float_1e2-1e3"
"""The intensity group of most patients."""
MAPS: dict[str, Any] = {
    "kind": "label_maps",
    "folder": "atlas",
    "look": {
        "scale": [0.72, 1.05],  # the template's brain is larger than people's
        "typical": {1: 0.45, 2: 0.45, 3: 0.45, 4: 0.45, 5: 0.0, 6: 0.45, 7: 0.9, 8: 0.6, 9: 0.7},
    },
}
STARTS: Mapping[str, Sequence[dict[str, Any]]] = {
    "synthetic": [{"kind": "synthetic"}],
    "label maps": [MAPS],
    "same group": [MAPS, {"kind": "public", "folder": "same"}],
    "other group": [MAPS, {"kind": "public", "folder": "other"}],
}
SYNTHESIS = {
    "along": [0, -1, 0.4], "half_length": [0.6, 0.9], "radius": [0.22, 0.42], "t1_share": 0.7,
}  # fmt: skip
CHANNELS = (16, 32, 64)
PRIVATE: dict[str, Any] = {
    "rounds": 3,
    "training": {"steps": 3, "lr": "auto", "schedule": "cosine", "lot": "all"},
    "preprocessing": {"shape": [32, 48, 32]},
}
SHARED: dict[str, Any] = {
    "rounds": 30,
    "training": {"steps": 1, "lr": "auto", "momentum": 0, "schedule": "cosine", "lot": "all"},
    "strategy": {"name": "fed_avg_m", "momentum": 0.9},
    "export": "gradient_sum",
    "preprocessing": {"shape": [32, 48, 32]},
}
TWIN = 1e4
"""Epsilon of the twin without noise that matters."""
PLAIN: dict[str, Any] = {
    "rounds": 12,
    "training": {
        "steps": 10, "lr": 0.002, "lot": 8, "schedule": "cosine", "warm_up": 0.1, "optimizer": "adamw",
        "longest_gradient": 1.0,
    },
    "preprocessing": {"shape": [32, 48, 32]},
}  # fmt: skip
EPSILONS = (2.0, 8.0, 20.0, None)
DELTA = 1e-5


@dataclass(frozen=True)
class Job:
    """One training: from a start, at an epsilon (None: without privacy), with a seed.

    `patients` is the number of patients of all hospitals together, None for all there are. `lost`: None
    with the full noise at each hospital; with noise shared in a secure sum, how many hospitals may drop
    out, and how many may collude.
    """

    start: str
    epsilon: float | None
    seed: int
    patients: int | None = None
    channels: tuple[int, ...] = CHANNELS
    lost: int | None = None
    hospitals: int = HOSPITALS
    bits: int = 32
    validated: bool = False
    """Whether some of the public patients choose the last model instead of making the start."""

    @property
    def group(self) -> str:
        """Return the intensity group of the public patients, or a word that stands for none."""
        return self.start.partition(" ")[0]


@dataclass(frozen=True)
class Divided:
    """The patients: those held out, and the public ones of each group, whole and in two parts."""

    held_out: frozenset[str]
    rest: tuple[str, ...]
    public: Mapping[str, frozenset[str]]


def divided(*, tune: bool) -> Divided:
    """Return the patients in parts, by hash; with `tune`, the held-out quarter is left out."""
    with (SOURCE / "subjects.csv").open(newline="") as file:
        group_of = {row["subject"]: row["intensity_group"] for row in csv.DictReader(file)}
    order = sorted(group_of, key=lambda subject: hashlib.sha256(f"held{subject}".encode()).hexdigest())
    quarter = len(order) // 4
    held, rest = order[:quarter], order[quarter:]
    if tune:
        held, rest = rest[:quarter], rest[quarter:]
    common = [subject for subject in rest if group_of[subject] == COMMON]
    others = sorted(
        (subject for subject in rest if group_of[subject] != COMMON),
        key=lambda subject: not group_of[subject].startswith("uint8"),
    )
    public = {}
    for name, subjects in (("same", common[:PUBLIC]), ("other", others[:PUBLIC])):
        public[name] = frozenset(subjects)
        public[f"{name}-start"] = frozenset(subjects[VALIDATION:])
        public[f"{name}-validation"] = frozenset(subjects[:VALIDATION])
    return Divided(frozenset(held), tuple(rest), public)


def folder_of(subjects: Sequence[str] | frozenset[str], folder: Path) -> Path:
    """Return a folder in the Decathlon's layout with the scans of some patients."""
    described = json.loads((SOURCE / "dataset.json").read_text())
    with (SOURCE / "subjects.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["subject"] in set(subjects)]
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
        for row in rows:
            shutil.copyfile(SOURCE / kind / f"{row['id']}.nii.gz", folder / kind / f"{row['id']}.nii.gz")
    described["training"] = [{"image": row["image"], "label": row["label"]} for row in rows]
    described["labels"] = {"0": "background", "1": "anterior", "2": "posterior"}
    (folder / "dataset.json").write_text(json.dumps(described))
    with (folder / "subjects.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "subject", "intensity_group", "image", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def wards_of(subjects: Sequence[str], folder: Path, hospitals: int = HOSPITALS) -> list[Path]:
    """Return hospitals that train on all of these patients, divided at random."""
    source = folder_of(subjects, folder / "source")
    wards = decathlon.make_hospitals(source, folder / "wards", hospitals, seed=0)
    for ward in wards:
        policy = yaml.safe_load((ward / "site.yaml").read_text())
        count = len({row["subject"] for row in csv.DictReader((ward / "subjects.csv").open(newline=""))})
        policy |= {
            "declared_patients": count, "evaluation_fraction": 1e-9, "min_patients": 1,
            "budget": {"epsilon": 2 * TWIN, "delta": DELTA}, "networks": ["UNet"],
        }  # fmt: skip
        (ward / "site.yaml").write_text(yaml.safe_dump(policy))
    introduce(wards)
    return wards


def study_of(job: Job) -> Study:
    """Return the study of a job."""
    recipe = SHARED if job.lost is not None else PLAIN if job.epsilon is None else PRIVATE
    privacy: dict[str, Any] = {"mode": "none"}
    if job.epsilon is not None:
        privacy = {
            "mode": "local", "unit": "patient", "epsilon": job.epsilon, "delta": DELTA,
            "clip": {"kind": "normalised", "norm": 1.0}, "accountants": ["rdp"],
        }  # fmt: skip
    if job.lost is not None:
        privacy |= {"mode": "shared_noise", "sum": {"dropouts": job.lost, "colluding": job.lost}}
    content = {
        **HIPPOCAMPUS, **recipe, "network": {"name": "UNet", "channels": list(job.channels)},
        "privacy": privacy, "start": STARTS[job.start], "synthesis": SYNTHESIS, "seed": job.seed,
        "sites": {"min": job.hospitals}, "release_bits": job.bits,
    }  # fmt: skip
    if job.validated:
        content["start"] = [MAPS, {"kind": "public", "folder": f"{job.group}-start"}]
        content["validation"] = {"folder": f"{job.group}-validation"}
    return Study.model_validate(content)


def row_of(job: Job, home: Path, *, tune: bool) -> dict[str, Any]:
    """Train one job in the folder of all jobs, and return its row."""
    quiet()
    parts = divided(tune=tune)
    taken = parts.public.get(job.group, frozenset())
    subjects = [subject for subject in parts.rest if subject not in taken][: job.patients]
    study = study_of(job)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for shared in ("public", ".wardround/starts"):
            (folder / shared).parent.mkdir(exist_ok=True)
            (folder / shared).symlink_to(home / shared)
        run = federate(study, wards_of(subjects, folder, job.hospitals), folder)
        records = run.records()
        first, last = (dice(study, run.model(records[k]), home) for k in (0, -1))
        start = records[0].start
    return {
        "start": job.start,
        "privacy": "none" if job.epsilon is None else "patient",
        "noise": _noise(job),
        "epsilon": job.epsilon,
        "seed": job.seed,
        "anterior": last["dice/anterior"],
        "posterior": last["dice/posterior"],
        "start_anterior": first["dice/anterior"],
        "start_posterior": first["dice/posterior"],
        "patients": len(subjects),
        "channels": list(job.channels),
        "rate": start.rate if start else None,
        "strength": start.strength if start else None,
        "release_bits": job.bits,
        "validated": job.validated,
    }


def _noise(job: Job) -> str:
    if job.epsilon in (None, TWIN):
        return "none"
    return "local" if job.lost is None else f"shared, {job.lost} lost and colluding"


def make_start(job: Job, home: Path) -> None:
    """Make a job's first model, which the folder of all jobs then remembers."""
    quiet()
    first_model(study_of(job), Home(home))


def dice(study: Study, params: Params, home: Path) -> dict[str, float]:
    """Return a model's Dice on the held-out patients."""
    return scored(study, network_for(study.network, study, CPU, params), held_out(home, study))


def held_out(home: Path, study: Study) -> Sequence[Patient]:
    """Return the held-out patients, who are all the evaluation patients of a hospital of their own."""
    cohort = Remembering.open(home / "held").cohort(study)
    return (*cohort.training, *cohort.evaluation)


def jobs(*, tune: bool) -> Iterator[Job]:
    """Yield all jobs: each start at each epsilon, then fewer patients and a smaller network."""
    for seed in range(1 if tune else 3):
        for epsilon in EPSILONS:
            for start in STARTS:
                yield Job(start, epsilon, seed)
    for patients in (40, 56):
        for start in ("label maps", "other group"):
            yield Job(start, 8.0, 0, patients)
    for start in ("label maps", "other group"):
        for epsilon in (2.0, 8.0):
            yield Job(start, epsilon, 0, channels=(8, 16, 32))


def shared_jobs(*, tune: bool) -> Iterator[Job]:
    """Yield the jobs whose noise is shared in a secure sum, and a small hospital alone."""
    for seed in range(1 if tune else 3):
        for epsilon in (8.0, 2.0, 20.0, TWIN):
            yield Job("label maps", epsilon, seed, lost=0)
            if epsilon != TWIN:
                yield Job("label maps", epsilon, seed, lost=1)
        yield Job("label maps", 8.0, seed, patients=24, hospitals=1)


def eight_bit_jobs(*, tune: bool) -> Iterator[Job]:
    """Yield the jobs that differ in the bits of their releases alone, private and plain."""
    for seed in range(1 if tune else 3):
        for bits in (32, 8):
            yield Job("other group", 8.0, seed, bits=bits)
            yield Job("label maps", None, seed, bits=bits)


def validated_jobs(*, tune: bool) -> Iterator[Job]:
    """Yield the jobs whose last model is chosen on public patients whom no start has seen."""
    for seed in range(1 if tune else 3):
        for start in ("same group", "other group"):
            for epsilon in (2.0, 8.0, 20.0):
                yield Job(start, epsilon, seed, validated=True)


def small_jobs(*, tune: bool) -> Iterator[Job]:
    """Yield the jobs of a smaller network."""
    return (job for job in jobs(tune=tune) if job.channels != CHANNELS)


def prepared(home: Path, *, tune: bool) -> None:
    """Write what all jobs share: the public sets and the held-out patients."""
    parts = divided(tune=tune)
    atlas.make(home / "public" / "atlas")
    for name, subjects in parts.public.items():
        folder_of(subjects, home / "public" / name)
    (ward,) = decathlon.make_hospitals(folder_of(parts.held_out, home / "held-source"), home, 1, seed=0)
    ward.rename(home / "held")
    _ = Hospital.open(home / "held").pseudonym_key
    (home / ".wardround" / "starts").mkdir(parents=True)


def main() -> None:
    """Run all jobs on the machine's cores and print their rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument("--tune", action="store_true", help="hold out another quarter")
    which = parser.add_mutually_exclusive_group()
    for option, wanted, text in (
        ("--shared", shared_jobs, "noise shared in a secure sum"),
        ("--eight-bits", eight_bit_jobs, "releases in 8 bits beside 32"),
        ("--validated", validated_jobs, "some public patients choose the last model"),
        ("--small", small_jobs, "a smaller network"),
    ):
        which.add_argument(option, dest="wanted", action="store_const", const=wanted, help=text)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--starts", nargs="*", default=list(STARTS), choices=list(STARTS))
    parser.set_defaults(wanted=jobs)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        prepared(home, tune=asked.tune)
        chosen = [job for job in asked.wanted(tune=asked.tune) if job.start in asked.starts]
        starts = {(job.start, job.seed, job.channels): job for job in chosen}
        rows = side_by_side(
            [partial(row_of, job, home, tune=asked.tune) for job in chosen],
            asked.workers,
            first=[partial(make_start, job, home) for job in starts.values()],  # each start once
        )
        print_rows(rows, as_json=asked.json)


if __name__ == "__main__":
    main()
