"""A small labelled public set, as a coordinator keeps it in `public/`."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

RNG = np.random.default_rng(0)


def labelled(folder: Path, count: int, labels: dict[str, str] | None = None) -> Path:
    """Write a public set in the Decathlon's layout: bright blocks in the dark."""
    names = [f"case_{k:02d}" for k in range(count)]
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
    for name in names:
        target = np.zeros((16, 16, 16), np.uint8)
        low = RNG.integers(2, 6, 3)
        target[tuple(slice(a, a + 8) for a in low)] = 1
        target[low[0] + 4 : low[0] + 8, low[1] : low[1] + 8, low[2] : low[2] + 8] = 2
        image = (100 * target + RNG.normal(0, 10, target.shape)).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "imagesTr" / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(target, np.eye(4)), folder / "labelsTr" / f"{name}.nii.gz")
    described = {
        "labels": labels or {"0": "background", "1": "head", "2": "tail"},
        "training": [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in names],
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    lines = ["id,subject,image,label"] + [
        f"{n},{n},imagesTr/{n}.nii.gz,labelsTr/{n}.nii.gz" for n in names
    ]
    (folder / "subjects.csv").write_text("\n".join(lines) + "\n")
    return folder
