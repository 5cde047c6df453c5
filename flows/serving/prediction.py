"""Prediction for scans on disk: a mask on the scan's own grid, or the classes' probabilities."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from PIL import Image as Pictures

from flows.served_model import ServedModel, UnfitImage
from flows.serving.scan_files import check_out
from models.files import write_atomically
from sites.imaging.channels import BadChannel, channels_of, stacked
from sites.imaging.images import Image, Unreadable, read_image
from sites.yaml_files import ConfigError

PLACE = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
    "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip
"""Fields of a NIfTI header that say where its voxels are."""


@dataclass(frozen=True)
class Mask:
    """A model's answer for one scan.

    Attributes:
        labels: `(*spatial)` as `image` is read, 0 for background.
        image: the scan's first channel that is there.
        source: the file or folder that it comes from.
    """

    labels: NDArray[np.uint8]
    image: Image
    source: Path

    @property
    def nifti(self) -> nib.Nifti1Image:
        """The labels on the image's own grid, with its affine."""
        return _on_own_grid(self.labels, self.image, self.source)


def mask_of(model: ServedModel, files: Mapping[str, Path]) -> Mask:
    """Return the labels of a scan.

    Args:
        files: the image of each channel.

    Raises:
        ConfigError: an image can't be read, or does not suit the model (NaN voxels, other dimensions,
            a channel that is missing or lies elsewhere); or the model classifies.
    """
    if model.study.task.kind != "segmentation":
        raise ConfigError(f"{model.study.name} makes no mask; leave out -o.")
    name, image, probabilities = _seen(model, files)
    labels = model.labels(probabilities[None])[0].numpy()
    return Mask(labels.astype(np.uint8), image, files[name])


def classes_of(model: ServedModel, files: Mapping[str, Path]) -> dict[str, float]:
    """Return the probability of each class of a scan, or its number; raises as `mask_of` does."""
    if model.study.task.kind == "segmentation":
        raise ConfigError(f"{model.study.name} makes a mask; name its file with -o.")
    *_, found = _seen(model, files)
    names = model.study.task.labels.values()
    return {name: float(value) for name, value in zip(names, found, strict=True)}


def beside(out: Path) -> Path:
    """Return where the mask of a DICOM series goes as DICOM Segmentation."""
    return out.with_name(out.name.removesuffix(".png").partition(".nii")[0] + ".dcm")


def write_mask(mask: Mask, out: Path) -> None:
    """Write a mask to a path that `scan_files.check_out` accepts; a crash leaves no part of it."""
    check_out(out, mask.source, mask.labels.ndim)
    if mask.image.series and beside(out).exists():
        raise ConfigError(
            f"{beside(out)}: expected no such file yet; the mask goes there as DICOM, too."
        )
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / out.name
        if out.name.endswith(".png"):
            Pictures.fromarray(mask.labels).save(made)
        else:
            nib.save(mask.nifti, made)
        write_atomically(out, made.read_bytes())


def _seen(model: ServedModel, files: Mapping[str, Path]) -> tuple[str, Image, torch.Tensor]:
    """Return the first channel that is there, its image, and the probabilities that a model gives."""
    task = model.study.task
    given = " and ".join(str(path) for path in files.values())
    try:
        images = channels_of(files, lambda name, _: read_image(*placed(files[name])), task)
        there = ((name, i) for name, i in zip(task.channel_names, images, strict=True) if i is not None)
        name, image = next(there)
        return name, image, model.probabilities(stacked(images, task), image.spacing_mm)
    except (Unreadable, UnfitImage, BadChannel) as error:
        raise ConfigError(f"{given}: {error}.") from error


def placed(path: Path) -> tuple[Path, str]:
    """Return the folder and the name of an image that may be a link, or a part of a file after `#`."""
    file, mark, member = str(path).partition("#")
    resolved = Path(file).resolve()
    if resolved.suffix != Path(file).suffix:  # a link to a store whose names have no end
        resolved = Path(file).absolute()
    return resolved.parent, f"{resolved.name}{mark}{member}"


def _on_own_grid(labels: NDArray[np.uint8], image: Image, path: Path) -> nib.Nifti1Image:
    """Return labels in RAS as a file over the image's: for DICOM and pictures they stay in RAS.

    Over a NIfTI file they have its shape, its axes, its qform and sform with their codes, and its units.
    """
    folder, name = placed(path)
    file = name.partition("#")[0]
    if not file.lower().endswith((".nii", ".nii.gz")):
        return nib.Nifti1Image(labels, image.affine)
    original = nib.load(folder / file)
    shape = original.shape[: 3 if "#" in name else None]
    to_ras = io_orientation(np.asarray(original.affine, dtype=float))
    in_ras = [0, 0, 0]
    for axis, (place, _) in enumerate(to_ras):
        in_ras[int(place)] = shape[axis] if axis < len(shape) else 1
    own = apply_orientation(
        labels.reshape(in_ras), ornt_transform(axcodes2ornt(("R", "A", "S")), to_ras)
    )
    header = type(original.header)(endianness=original.header.endianness)
    mask = nib.Nifti1Image(own.reshape(shape), None, header)
    for field in PLACE:
        mask.header[field] = original.header[field]
    mask.header["pixdim"][:4] = original.header["pixdim"][:4]
    mask.set_data_dtype(np.uint8)
    return mask
