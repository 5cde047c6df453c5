"""Seconds of a hospital from an order to its first training step: `benchmarks/start.py --json`.

One hospital of `--cases` hippocampus scans (the set's own, and further ones with noise added), ordered
to train one round after the other, as its process would be. Round 1 reads NIfTI files; later rounds, the
cache. `plain_seconds` is the time of reading every file anew in the same run.
"""

import argparse
import json
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flows.runs.paths import Home
from flows.starts.first_model import first_model
from models import checkpoints
from models.files import sha256_of
from privacy.signing import public_hex, sign
from privacy.statements import ModelManifest
from sites.datasets.decathlon import make_hospitals
from sites.datasets.phantoms import describe_cases
from sites.exchange.exchange import Exchange
from sites.exchange.places import Place
from sites.hospital import Hospital
from sites.imaging.checks import read_cases
from sites.imaging.reading import reader
from sites.orders import Order
from sites.protocol.dispatch import carry_out
from sites.study import Study, load_study

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("WARDROUND_DATA", ROOT.parent / "shared" / "data"))
RUN = "start-1"


def hospital_of(cases: int, folder: Path) -> Hospital:
    """Return a hospital of so many scans, each of a patient of its own."""
    (ward,) = make_hospitals(DATA / "hippocampus", folder, 1, seed=0)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (ward / "imagesTr").iterdir())
    rng = np.random.default_rng(0)
    for number in range(cases - len(names)):
        source, name = names[number], f"more_{number:03d}"
        image = nib.load(ward / "imagesTr" / f"{source}.nii.gz")
        values = np.asarray(image.dataobj, dtype=np.float32)
        values += rng.normal(0, values.std(), values.shape)
        nib.save(nib.Nifti1Image(values, image.affine), ward / "imagesTr" / f"{name}.nii.gz")
        shutil.copy(ward / "labelsTr" / f"{source}.nii.gz", ward / "labelsTr" / f"{name}.nii.gz")
        names.append(name)
    rows = [(name, f"patient-{number}") for number, name in enumerate(names[:cases])]
    describe_cases(ward, rows, name="start", labels={1: "anterior", 2: "posterior"})
    policy = yaml.safe_load((ward / "site.yaml").read_text())
    policy |= {"declared_patients": cases, "budget": {"epsilon": 100.0, "delta": 1e-4}}
    (ward / "site.yaml").write_text(yaml.safe_dump(policy))
    return Hospital.open(ward)


def seconds_to_first_step(
    hospital: Hospital, study: Study, exchange: Exchange, key: Ed25519PrivateKey, round: int
) -> float:
    """Return the seconds of a hospital from an order to its first step."""
    data = checkpoints.to_bytes(first_model(study, Home(Path())).params)
    manifest = ModelManifest(
        kind="model", study=study.name, study_sha256=study.sha256, run=RUN, round=round - 1,
        model_sha256=sha256_of(data), chain_head="0" * 64,
    )  # fmt: skip
    exchange.put_object(data, "coordinator")
    signed = sign(manifest.model_dump(mode="json"), "coordinator", key)
    exchange.put_statement(Place.model(RUN, round - 1), signed)
    order = Order(
        phase="contribute", site=hospital.name, study=study, run=RUN, round=round, attempt=1,
        exchange=exchange.url, coordinator=public_hex(key),
    )  # fmt: skip
    first: list[float] = []
    started = time.perf_counter()

    def watch(what: str, _step: int, _of: int) -> None:
        if what == "train" and not first:
            first.append(time.perf_counter() - started)

    carry_out(hospital, order, watch)
    return first[0]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("wardround.site").setLevel(logging.CRITICAL)  # the copies look like one head
    study = load_study(ROOT / "studies" / "hippocampus.yaml")
    study = study.model_copy(
        update={"training": study.training.model_copy(update={"steps": 1}), "rounds": arguments.rounds}
    )
    with tempfile.TemporaryDirectory() as folder:
        hospital = hospital_of(arguments.cases, Path(folder) / "wards")
        started = time.perf_counter()
        read_cases(hospital.cases, reader(hospital.data, study.task, study.preprocessing))
        plain = time.perf_counter() - started
        exchange, key = Exchange(str(Path(folder) / "exchange")), Ed25519PrivateKey.generate()
        rounds = range(1, arguments.rounds + 1)
        taken = [seconds_to_first_step(hospital, study, exchange, key, r) for r in rounds]
    result = {
        "cases": arguments.cases,
        "first_round_seconds": round(taken[0], 3),
        "later_rounds_seconds": [round(seconds, 3) for seconds in taken[1:]],
        "plain_seconds": round(plain, 3),
        "worst_later_to_plain": round(max(taken[1:]) / plain, 3),
    }
    print(json.dumps(result) if arguments.json else result)


if __name__ == "__main__":
    main()
