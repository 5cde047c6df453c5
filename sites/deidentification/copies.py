"""Copies of an export's files in a hospital's data, without anything that names the patients."""

import gzip
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image as Pictures
from pydicom import Dataset

from models.files import write_atomically
from sites.deidentification.deidentify import (
    NotCleaned,
    Rename,
    deidentified,
    dicom_bytes,
    nifti_without_text,
    picture_without_text,
)
from sites.imaging.dicom.drawn import drawn_in
from sites.imaging.dicom.files import SUFFIXES, Found, UnfitSeries, images_in, is_flat, read_file
from sites.imaging.dicom.stack import stack_in
from sites.imaging.images import Unreadable, read_image, read_label
from sites.listing.cases import PICTURES

SERIES = "SeriesInstanceUID"


class Progress:
    """What an import has left out or replaced so far."""

    def __init__(self) -> None:
        self.left_out: defaultdict[str, list[str]] = defaultdict(list)
        self.replaced: set[str] = set()

    def write(self, data: Path, place: str, content: bytes) -> None:
        """Write a file of the hospital's data unless it is there; note that others were replaced."""
        path = data / place
        if path.exists():
            if path.read_bytes() == content:
                return
            self.replaced.add(place)
        write_atomically(path, content)

    @contextmanager
    def counted(self, name: str) -> Iterator[None]:
        """Count what can't be imported by its reason, and continue with the others."""
        try:
            yield
        except (Unreadable, NotCleaned, UnfitSeries) as reason:
            self.left_out[str(reason)].append(name)
        except Exception as error:  # a damaged file can fail in any way
            self.left_out[f"a file is damaged ({type(error).__name__})"].append(name)


def take_file(
    export: Path,
    name: str,
    *,
    data: Path,
    kind: str,
    patient: str,
    rename: Rename,
    progress: Progress,
) -> str:
    """Copy a file or a DICOM folder of the export; return its place in the data.

    A page of a picture becomes a picture of its own.
    """
    file, _, member = name.partition("#")
    source = (export / file).resolve()
    read_image(export, name, is_label=kind == "labels")  # raises if it can't be used, or is outside
    if source.is_dir() or source.suffix.lower() in SUFFIXES:
        found = images_in(source) if source.is_dir() else Found((read_file(source),), Counter())
        if flat := [image for image in found.images if is_flat(image)]:
            place = put_series(data, flat[:1], kind, patient, rename, progress, name)
            return f"{place}#{member}" if member else place
        images, _ = stack_in(found, member)
        return put_series(data, images, kind, patient, rename, progress, name)
    suffix = next((s for s in _COPIED if file.lower().endswith(s)), None)
    if suffix is None:
        raise Unreadable("unreadable", f"a file is not of type {', '.join(_COPIED)}")
    is_picture = suffix in PICTURES
    kept, copy = _COPIED[suffix]
    listed = name if is_picture else file
    place = f"{kind}/{rename(f'file {patient} {listed}')[:16]}{kept}"
    content = picture_without_text(source, member) if is_picture else copy(source)
    progress.write(data, place, content)
    return f"{place}#{member}" if member and not is_picture else place


def is_drawn(export: Path, name: str) -> bool:
    """Return whether a label of an export is a DICOM segmentation or structure set."""
    source = (export / name.partition("#")[0]).resolve()
    is_inside = source.is_relative_to(export.resolve()) and source.exists()
    is_dicom = is_inside and (source.is_dir() or source.suffix.lower() in SUFFIXES)
    return is_dicom and drawn_in(source) is not None


def take_drawn(
    export: Path,
    name: str,
    image: str,
    names: Mapping[str, int],
    *,
    data: Path,
    patient: str,
    rename: Rename,
    progress: Progress,
) -> str:
    """Write a label that is drawn in DICOM as a label image on its image's grid; return its place.

    Nothing of the DICOM file is kept but which voxels it labels, as NIfTI, or as PNG for a flat image.

    Args:
        image: the name of the image in the export.
        names: the value of each label by its name, as `plain_name` writes it.

    Raises:
        Unreadable: it does not fit its image.
    """
    on = read_image(export, image)
    label, _ = read_label(export, name, on, names, {on.series} - {""})
    values = label.voxels.astype(np.int16)
    is_flat = values.ndim == 2
    place = f"labels/{rename(f'file {patient} {name}')[:16]}{'.png' if is_flat else '.nii.gz'}"
    if is_flat:
        file = BytesIO()
        Pictures.fromarray(values.astype(np.uint8)).save(file, "PNG")
        content = file.getvalue()
    else:
        made = nib.Nifti1Image(values, label.affine)
        content = gzip.compress(made.to_bytes(), mtime=0)
    progress.write(data, place, content)
    return place


_COPIED: Mapping[str, tuple[str, Callable[[Path], bytes]]] = {
    ".nii": (".nii.gz", nifti_without_text),
    ".nii.gz": (".nii.gz", nifti_without_text),
    **dict.fromkeys(PICTURES, (".png", picture_without_text)),
}
"""The end of a copy's name and the function that copies, by the end of the file's name."""


def put_series(
    data: Path,
    datasets: Sequence[Dataset],
    kind: str,
    patient: str,
    rename: Rename,
    progress: Progress,
    listed: str = "",
) -> str:
    """Write a series under the hospital's own names, also over another content; return its place.

    A part of what is there already changes nothing: an archive may have exported less this time.

    Args:
        listed: the name by which the export's own list tells series of one UID apart.
    """
    keys = ("PatientID", "StudyInstanceUID", SERIES)
    own = "\n".join([*(str(datasets[0].get(key, "")) for key in keys), *([listed] if listed else [])])
    place = f"{kind}/{rename(f'series {patient} {own}')[:16]}"
    folder = data / place
    files = [dicom_bytes(deidentified(dataset, patient, rename)) for dataset in datasets]
    if folder.exists():
        present = {path.read_bytes() for path in folder.iterdir()}
        if present >= set(files):
            return place
        if not present <= set(files):
            progress.replaced.add(place)
    partial_folder = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    try:
        for number, content in enumerate(files):
            (partial_folder / f"{number:05d}.dcm").write_bytes(content)
        shutil.rmtree(folder, ignore_errors=True)
        partial_folder.rename(folder)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    return place
