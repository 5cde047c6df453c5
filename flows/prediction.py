"""What a model says of one image on disk: a mask on its own grid, or the classes' probabilities."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from flows import served_model
from flows.coordinator import mlflow
from flows.home import Home
from flows.run import BrokenRun, named_run
from flows.served_model import ServedModel
from flows.tracking import registry
from models.checkpoints import write_atomically
from sites.documents import ConfigError
from sites.images import Image, Unreadable, read_image


@contextmanager
def model_files(home: Home, named: str) -> Iterator[Path]:
    """Give the folder of a model: one on disk, a run's newest, or a version in MLflow's registry.

    | `named`                    | which                                             |
    |----------------------------|---------------------------------------------------|
    | a folder with `model.json` | that                                              |
    | `<study>-approved`         | the champion                                      |
    | `<study>-candidates`       | the newest candidate                              |
    | either with `/3`           | that version                                      |
    | a run's name, with `:2`    | the model after its newest round, or after that   |

    Raises:
        ConfigError: there is no such model.
    """
    if (Path(named) / served_model.DESCRIPTION).is_file():
        yield Path(named)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield _of_run(home, named, Path(folder)) or _registered(home, named, Path(folder))


def _of_run(home: Home, named: str, into: Path) -> Path | None:
    name, _, round = named.partition(":")
    if not (home.runs / name / "run.json").is_file():
        return None
    try:
        run = named_run(home, name)
        records = run.records()
        record = {str(each.round): each for each in records}[round or str(records[-1].round)]
    except (BrokenRun, KeyError, IndexError) as error:
        raise ConfigError(f"{named}: expected a round on record of this run: {error}") from error
    served_model.write(into, run.study, run.model(record))
    return into


def _registered(home: Home, named: str, into: Path) -> Path:
    name, _, wanted = named.partition("/")
    alias = registry.CHAMPION if name.endswith("-approved") else registry.CANDIDATE
    try:
        with mlflow(home):
            return registry.model_in(registry.fetch(name, wanted or alias, into))
    except LookupError as error:
        raise ConfigError(
            f"{named}: expected a model's folder, a run, <study>-approved or <study>-candidates: {error}"
        ) from error


def mask_of(model: ServedModel, path: Path) -> nib.Nifti1Image:
    """Return the labels of an image on its own grid, with its own affine.

    Raises:
        ConfigError: the image can't be read, has other dimensions, or the model tells classes.
    """
    if model.study.task.kind != "segmentation":
        raise ConfigError(f"{model.study.name} tells classes and makes no mask; leave out -o.")
    image = _read(model, path)
    labels = model.labels(model.probabilities(image.voxels, image.spacing_mm)[None])[0].numpy()
    return _on_own_grid(labels.astype(np.uint8), image, path)


def classes_of(model: ServedModel, path: Path) -> dict[str, float]:
    """Return the probability of each class of an image; raises as `mask_of` does."""
    if model.study.task.kind != "classification":
        raise ConfigError(f"{model.study.name} makes a mask; say where with -o.")
    image = _read(model, path)
    found = model.probabilities(image.voxels, image.spacing_mm)
    names = model.study.task.labels.values()
    return {name: float(value) for name, value in zip(names, found, strict=True)}


def write_mask(mask: nib.Nifti1Image, out: Path) -> None:
    """Write a mask as .nii or .nii.gz; a crash or a full disk leaves no part of it."""
    if not out.name.endswith((".nii", ".nii.gz")):
        raise ConfigError(f"{out}: expected a name that ends in .nii or .nii.gz.")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / out.name
        nib.save(mask, made)
        write_atomically(out, made.read_bytes())


def _read(model: ServedModel, path: Path) -> Image:
    try:
        image = read_image(path.parent, path.name)
    except Unreadable as error:
        raise ConfigError(f"{path}: {error}.") from error
    dims = model.study.task.dims
    if image.voxels.ndim != dims:
        raise ConfigError(f"{path}: expected {dims} dimensions, got {image.voxels.ndim}.")
    return image


def _on_own_grid(labels: NDArray[np.uint8], image: Image, path: Path) -> nib.Nifti1Image:
    """Return labels in RAS as the file has its voxels; of DICOM and pictures they stay in RAS."""
    file = path.name.partition("#")[0]
    if not file.lower().endswith((".nii", ".nii.gz")):
        return nib.Nifti1Image(labels, image.affine)
    original = nib.load(path.with_name(file))
    affine = np.asarray(original.affine, dtype=float)
    turn = ornt_transform(axcodes2ornt(("R", "A", "S")), io_orientation(affine))
    own = apply_orientation(labels, turn)
    mask = nib.Nifti1Image(own, affine)
    mask.header.set_xyzt_units(*original.header.get_xyzt_units())
    mask.set_sform(affine, int(original.header["sform_code"]) or 1)
    mask.set_qform(affine, int(original.header["qform_code"]))
    return mask
