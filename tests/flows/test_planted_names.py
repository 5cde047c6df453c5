"""Names, numbers and pixels planted in the hospitals' data are nowhere in what a run writes outside."""

import csv
import json
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Extension
from scanner import write_series

from sites.datasets.phantoms import make_wards

NAMES = re.compile(rb"mueller|schmidt|anna-maria|1956-?04-?03|mrn[-_]?4711", re.IGNORECASE)


def plant(ward: Path) -> None:
    """Give patients, files and headers names; break one case of each kind of reading."""
    with (ward / "subjects.csv").open() as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["subject"] = f"MUELLER^ANNA-MARIA {row['subject']} MRN-4711"
        for kind in ("image", "label"):
            old = ward / row[kind]
            image = nib.load(old)
            image.header["descrip"] = b"SCHMIDT^ANNA-MARIA 1956-04-03"
            image.header.extensions.append(Nifti1Extension("comment", b"born 1956-04-03"))
            row[kind] = f"{Path(row[kind]).parent}/Mueller Anna-Maria, {number}.nii.gz"
            nib.save(image, ward / row[kind])
            old.unlink()
    (ward / rows[0]["image"]).write_bytes(b"MUELLER")
    nan = np.full((24, 24, 24), np.nan, dtype=np.float32)
    nib.save(nib.Nifti1Image(nan, np.eye(4)), ward / rows[1]["image"])
    write_series(ward / "imagesTr" / "Schmidt", PatientName="SCHMIDT^ANNA-MARIA")
    rows[2]["image"] = "imagesTr/Schmidt"
    with (ward / "subjects.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    content = json.loads((ward / "dataset.json").read_text())
    content["training"] = [{"image": row["image"], "label": row["label"]} for row in rows]
    (ward / "dataset.json").write_text(json.dumps(content))


def outside(home: Path) -> Iterator[tuple[Path, bytes]]:
    """Everything that a run writes that is not in a hospital's own folder."""
    for path in sorted(home.rglob("*")):
        if path.is_file() and not path.is_relative_to(home / "wards"):
            yield path, path.read_bytes()


def pixels(home: Path) -> list[bytes]:
    """Return pieces of images as they lie on disk, as they are read, and as a network sees them."""
    pieces = []
    for path in sorted((home / "wards").glob("*/imagesTr/*.nii.gz"))[::5]:
        try:
            image = np.asarray(nib.load(path).dataobj)
        except (nib.filebasedimages.ImageFileError, OSError, EOFError, ValueError, zlib.error):
            continue  # one that was broken on purpose
        if np.isfinite(image).all():
            scaled = (image - image.mean()) / image.std()
            row = (12, 12, slice(4, 20))
            forms = (image, image.astype(np.float32), scaled.astype(np.float32))
            pieces += [np.ascontiguousarray(values[row]).tobytes() for values in forms]
    return pieces


@pytest.mark.slow
def test_nothing_that_identifies_a_patient_leaves_a_hospital_or_reaches_a_log(
    tmp_path: Path, small_wards, study_file
) -> None:
    wards = sorted(small_wards(tmp_path / "wards").iterdir())
    for ward in wards:
        plant(ward)
    said = b""
    study = study_file(rounds=1)
    for command in (["survey", study], ["run", study]):
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *map(str, command)],
            cwd=tmp_path, capture_output=True, timeout=600,
        )  # fmt: skip
        said += done.stdout + done.stderr
        assert done.returncode == 0, said
    files = dict(outside(tmp_path))
    assert any("mlflow.db" in path.name for path in files)
    assert any("prefect.db" in path.name for path in files)
    assert any(path.name.startswith("round-") for path in files)
    assert not NAMES.search(said)
    planted = pixels(tmp_path)
    assert len(planted) > 9
    for path, data in files.items():
        assert not NAMES.search(str(path.relative_to(tmp_path)).encode()), path
        assert not NAMES.search(data), path
        assert not any(piece in data for piece in planted), path
    for ward in wards:
        log = (ward / "state" / "site.log").read_bytes()
        assert b"unreadable" in log and b"not_finite" in log
        private = [log, *(str(path).encode() for path in (ward / "state").rglob("*"))]
        private += [path.read_bytes()[:4000] for path in (ward / "state" / "cache").iterdir()]
        assert not any(NAMES.search(data) for data in private)


def test_the_search_would_find_what_is_planted(tmp_path: Path) -> None:
    (ward,) = make_wards(tmp_path / "wards", 0)[:1]
    pieces = pixels(tmp_path)
    assert pieces and all(len(set(piece)) > 8 for piece in pieces)
    plant(ward)
    assert NAMES.search((ward / "subjects.csv").read_bytes())
    assert any(NAMES.search(path.name.encode()) for path in ward.rglob("*"))
