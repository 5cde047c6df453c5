"""Public sets from which hospitals can be made, and their publishers' download addresses."""

from collections.abc import Mapping
from dataclasses import dataclass

from monai.apps import DecathlonDataset

from sites.datasets.downloads import Source

MEDMNIST = "https://zenodo.org/records/10519652/files/"

DECATHLON: Mapping[str, Source] = {
    task.partition("_")[2].lower(): Source(url, DecathlonDataset.md5[task])
    for task, url in DecathlonDataset.resource.items()
}
"""The tasks of the Medical Segmentation Decathlon, with the addresses in MONAI.

Source: Antonelli et al. 2022, The Medical Segmentation Decathlon,
https://doi.org/10.1038/s41467-022-30695-9.
"""


@dataclass(frozen=True)
class PictureSet:
    """One of MedMNIST's sets of grey pictures or volumes.

    `several`: any number of its labels may hold for a picture.

    Source: Yang et al. 2023, MedMNIST v2, https://doi.org/10.1038/s41597-022-01721-8.
    """

    source: Source
    labels: Mapping[int, str]
    several: bool = False


def _of(name: str, md5: str, *labels: str, several: bool = False) -> PictureSet:
    source = Source(f"{MEDMNIST}{name}.npz", md5)
    return PictureSet(source, dict(enumerate(labels)), several)


PICTURES: Mapping[str, PictureSet] = {
    "pneumonia": _of("pneumoniamnist", "28209eda62fecd6e6a2d98b1501bb15f", "normal", "pneumonia"),
    "breast": _of("breastmnist", "750601b1f35ba3300ea97c75c52ff8f6", "malignant", "normal-or-benign"),
    "oct": _of(
        "octmnist", "c68d92d5b585d8d81f7112f81e2d0842",
        "choroidal-neovascularization", "diabetic-macular-edema", "drusen", "normal",
    ),
    "chest": _of(
        "chestmnist", "02c8a6516a18b556561a56cbdd36c4a8",
        "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia",
        "pneumothorax", "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
        several=True,
    ),
    "nodule3d": _of("nodulemnist3d", "8755a7e9e05a4d9ce80a24c3e7a256f3", "benign", "malignant"),
    "adrenal3d": _of("adrenalmnist3d", "bbd3c5a5576322bc4cdfea780653b1ce", "normal", "hyperplasia"),
    "fracture3d": _of(
        "fracturemnist3d", "6aa7b0143a6b42da40027a9dda61302f",
        "buckle-rib-fracture", "nondisplaced-rib-fracture", "displaced-rib-fracture",
    ),
}  # fmt: skip
