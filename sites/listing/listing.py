"""List of a hospital's scans and their patients, in the Decathlon's layout, BIDS, or `cases.csv`.

| layout    | cases                                                | names of the labels        |
|-----------|------------------------------------------------------|----------------------------|
| cases     | `cases.csv`: patient, image, session, and `label` or | `labels.csv`: value, name  |
|           | `labels`                                             |                            |
| Decathlon | `dataset.json`, with `subjects.csv`: image, subject  | `labels` of `dataset.json` |
| nnU-Net   | `dataset.json` with `channel_names`, `imagesTr/`,    | `labels` of `dataset.json` |
|           | `labelsTr/`; `subjects.csv`: case, subject           |                            |
| BIDS      | `sub-*/[ses-*/]anat/*.nii[.gz]`,                     | `dseg.tsv`: index, name    |
|           | labels `derivatives/*/sub-*/.../*_dseg.nii[.gz]`,    | also of a derivative       |
|           | `bids.yaml`: contrast, label, segmentation           |                            |

Several channels are columns `image_<channel>` of `cases.csv`, the modalities of a Decathlon set (4D
files), the channels of nnU-Net, and the contrasts of BIDS. Masks or probabilities of single structures
are columns `label_<structure>` of `cases.csv`, and the files `label-<structure>_mask` or `_probseg` of
BIDS. A list without labels can be surveyed.
In `cases.csv` the session may be left out. No file is opened to read a list, but by `wardround site
import`, which takes the patients of DICOM files whose rows name none.
The column `label` holds a label image or one class. The column `labels` holds any number of classes,
`0;2`, or `none`. The column `value` holds a number. So the name of the column, not a patient's row,
decides which studies fit.

Sources: Antonelli et al. 2022, The Medical Segmentation Decathlon,
https://doi.org/10.1038/s41467-022-30695-9; Isensee et al. 2021, nnU-Net,
https://doi.org/10.1038/s41592-020-01008-z; Gorgolewski et al. 2016, The brain imaging data structure,
https://doi.org/10.1038/sdata.2016.44.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from sites.listing.bids import from_bids
from sites.listing.cases import Listing
from sites.listing.dataset_json import from_dataset
from sites.listing.tables import PatientOf, from_table, rows_of
from sites.yaml_files import ConfigError

EXCLUDED = "excluded.csv"
"""File in a hospital's folder with the patients who have withdrawn: one column, `subject`."""


def read_listing(data: Path, patient_of: PatientOf | None = None) -> Listing:
    """Return the listing in a data folder of any of the layouts.

    Args:
        patient_of: fills the rows of `cases.csv` without a patient; without it each row needs one.

    Raises:
        ConfigError: the folder has none of the layouts, or more than one; a file is missing or has
            another form; there is no case; a case has no patient or is listed twice.
    """
    found = {name: layout for name, layout in LAYOUTS.items() if (data / name).exists()}
    if len(found) != 1:
        raise ConfigError(
            f"{data}: expected one of {', '.join(LAYOUTS)}, got {' and '.join(found) or 'none of them'}."
        )
    (layout,) = found.values()
    listing = layout(data, patient_of)
    if not listing.cases:
        raise ConfigError(f"{data}: expected at least one case, found none.")
    images = [image for case in listing.cases for image in set(case.images.values())]
    if len(set(images)) < len(images):
        twice = next(image for image, count in Counter(images).items() if count > 1)
        raise ConfigError(f"{data}: expected each image once in the list; {twice} is listed twice.")
    return listing


def excluded_patients(path: Path) -> frozenset[str]:
    """Return the patients whom the hospital has excluded; an empty set if there is no such file.

    Raises:
        ConfigError: the file has no column `subject`, or a row with an empty one.
    """
    if not path.exists():
        return frozenset()
    return frozenset(row["subject"] for row in rows_of(path, ("subject",), allow_blank=False))


LAYOUTS: Mapping[str, Callable[[Path, PatientOf | None], Listing]] = {
    "cases.csv": from_table,
    "dataset.json": from_dataset,
    "dataset_description.json": from_bids,
}
"""The function that reads each layout, by the file that identifies the layout."""
