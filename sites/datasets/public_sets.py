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
    """One of MedMNIST's sets of pictures or volumes.

    `several`: any number of its labels may hold for a picture; `in_colour`: its pictures are.

    Source: Yang et al. 2023, MedMNIST v2, https://doi.org/10.1038/s41597-022-01721-8.
    """

    source: Source
    labels: Mapping[int, str]
    several: bool = False
    in_colour: bool = False


def _of(
    name: str, md5: str, *labels: str, several: bool = False, in_colour: bool = False
) -> PictureSet:  # fmt: skip
    source = Source(f"{MEDMNIST}{name}.npz", md5)
    return PictureSet(source, dict(enumerate(labels)), several, in_colour)


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
    "derma": _of(
        "dermamnist", "0744692d530f8e62ec473284d019b0c7",
        "actinic-keratoses", "basal-cell-carcinoma", "benign-keratosis-like-lesions",
        "dermatofibroma", "melanoma", "melanocytic-nevi", "vascular-lesions", in_colour=True,
    ),
    "blood": _of(
        "bloodmnist", "7053d0359d879ad8a5505303e11de1dc",
        "basophil", "eosinophil", "erythroblast", "immature-granulocytes", "lymphocyte", "monocyte",
        "neutrophil", "platelet", in_colour=True,
    ),
    "retina": _of(
        "retinamnist", "bd4c0672f1bba3e3a89f0e4e876791e4",
        "grade-0", "grade-1", "grade-2", "grade-3", "grade-4", in_colour=True,
    ),
    "path": _of(
        "pathmnist", "a8b06965200029087d5bd730944a56c1",
        "adipose", "background", "debris", "lymphocytes", "mucus", "smooth-muscle",
        "normal-colon-mucosa", "cancer-associated-stroma", "colorectal-adenocarcinoma-epithelium",
        in_colour=True,
    ),
    "nodule3d": _of("nodulemnist3d", "8755a7e9e05a4d9ce80a24c3e7a256f3", "benign", "malignant"),
    "adrenal3d": _of("adrenalmnist3d", "bbd3c5a5576322bc4cdfea780653b1ce", "normal", "hyperplasia"),
    "fracture3d": _of(
        "fracturemnist3d", "6aa7b0143a6b42da40027a9dda61302f",
        "buckle-rib-fracture", "nondisplaced-rib-fracture", "displaced-rib-fracture",
    ),
}  # fmt: skip
