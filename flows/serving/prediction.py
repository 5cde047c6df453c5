"""Prediction for one image on disk: a mask on its own grid, or the classes' probabilities."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from flows import served_model
from flows.decisions import release_proof, release_status
from flows.decisions.people import load_people
from flows.decisions.release_proof import ReleaseProof
from flows.runs import artifacts
from flows.runs.dates import day
from flows.runs.paths import Home
from flows.runs.run import BrokenRun, named_run
from flows.served_model import ServedModel, UnfitImage
from flows.servers.environment import with_mlflow
from flows.tracking import download, registry
from models.files import sha256_of, write_atomically
from sites.imaging.channels import BadChannel, channels_of, stacked
from sites.imaging.images import Image, Unreadable, read_image
from sites.yaml_files import ConfigError

PLACE = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
    "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip
"""Fields of a NIfTI header that say where its voxels are."""


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder, and the checked proof of its release; None for a model that nobody released.

    A proof among the files of the folder counts nothing: anybody may have put it there.
    """

    folder: Path
    proof: ReleaseProof | None = None


@contextmanager
def model_files(home: Home, named: str) -> Iterator[ModelFiles]:
    """Yield the files of a model: one on disk, a run's newest, or a version in MLflow's registry.

    | `named`                    | model                                             |
    |----------------------------|---------------------------------------------------|
    | a folder with `model.json` | the one in it                                     |
    | `<study>-approved`         | the champion                                      |
    | `<study>-candidates`       | the newest candidate                              |
    | either with `/3`           | that version                                      |
    | a run's name, with `:2`    | the one after its newest round, or after round 2  |

    Raises:
        ConfigError: there is no such model, it was withdrawn, or its approvals have expired.
        NotProven: `<study>-approved` names a model that the signed decisions do not release.
    """
    if (Path(named) / served_model.DESCRIPTION).is_file():
        yield ModelFiles(Path(named))
        return
    with tempfile.TemporaryDirectory() as folder:
        yield _of_run(home, named, Path(folder)) or _registered(home, named, Path(folder))


def _of_run(home: Home, named: str, into: Path) -> ModelFiles | None:
    name, _, round = named.partition(":")
    if not (home.runs / name / "run.json").is_file():
        return None
    try:
        run = named_run(home, name)
        records = run.records()
        record = {str(each.round): each for each in records}[round or str(records[-1].round)]
    except (BrokenRun, KeyError, IndexError) as error:
        raise ConfigError(f"{named}: expected a recorded round of this run: {error}") from error
    served_model.write(into, run.study, run.model(record))
    return ModelFiles(into)


def _registered(home: Home, named: str, into: Path) -> ModelFiles:
    name, _, wanted = named.partition("/")
    alias = registry.CHAMPION if name.endswith("-approved") else registry.CANDIDATE
    try:
        with with_mlflow(home):
            found = download.fetch(name, wanted or alias, into)
    except LookupError as error:
        raise ConfigError(
            f"{named}: expected a model's folder, a run, <study>-approved or <study>-candidates: {error}"
        ) from error
    files = download.model_in(found.folder)
    _check_released(named, found.tags)
    study = name.removesuffix("-approved")
    return ModelFiles(files, None if study == name else _checked_proof(home, study, found.folder, files))


def _checked_proof(home: Home, study: str, version: Path, files: Path) -> ReleaseProof:
    """Return the proof that people released a version as a model of a study; raise `NotProven`.

    In the home of its run the decisions are read from the run's folder; MLflow's file counts nothing.
    """
    path = version / artifacts.PROOF
    if not path.is_file() or path.stat().st_size > release_proof.MOST_BYTES:
        raise release_proof.NotProven(
            "No proof of its release is beside it in MLflow; `wardround promote` writes it."
        )
    proof = release_proof.parsed(path.read_bytes())
    if (home.runs / proof.record.run / "run.json").is_file():
        proof = release_proof.proof_of(named_run(home, proof.record.run), proof.record)
    if proof.study.name != study:
        raise release_proof.NotProven(f"It is a model of {proof.study.name}, not of {study}.")
    weights = sha256_of((files / served_model.WEIGHTS).read_bytes())
    release_proof.check_proof(proof, weights, served_model.load(files).study, load_people(home))
    return proof


def _check_released(named: str, tags: Mapping[str, str]) -> None:
    """Raise `ConfigError` where a version was withdrawn, or its approvals have expired."""
    run, round = tags.get("wardround.run"), tags.get("wardround.round")
    way_out = f"To examine it nevertheless, ask for {run}:{round} in the folder that has the run."
    if reason := tags.get(registry.REVOKED):
        raise ConfigError(f"{named}: expected a released model; it was withdrawn: {reason}. {way_out}")
    until = tags.get(release_status.APPROVED_UNTIL)
    if until and until < day(int(time.time() * 1000)):
        raise ConfigError(f"{named}: expected a released model; its approvals ended {until}. {way_out}")


def channels_in(model: ServedModel, given: Sequence[str]) -> dict[str, Path]:
    """Return the file of each channel of one scan: `t1=a.nii.gz`, or a path where there is one channel.

    Raises:
        ConfigError: a channel is none of the study's, or is given twice; several files have no names.
    """
    names = model.study.task.channel_names
    if len(names) == 1 and len(given) == 1:
        return {names[0]: Path(given[0].removeprefix(f"{names[0]}="))}
    found: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or name not in names or name in found:
            raise ConfigError(
                f"{text}: expected each of the channels {', '.join(names)} once, as {names[0]}=FILE."
            )
        found[name] = Path(path)
    return found


def mask_of(model: ServedModel, files: Mapping[str, Path]) -> nib.Nifti1Image:
    """Return the labels of a scan on its first channel's grid, with its affine.

    Args:
        files: the image of each channel.

    Raises:
        ConfigError: an image can't be read, or does not suit the model (NaN voxels, other dimensions,
            a channel that is missing or lies elsewhere); or the model classifies.
    """
    if model.study.task.kind != "segmentation":
        raise ConfigError(f"{model.study.name} classifies and makes no mask; leave out -o.")
    name, image, probabilities = _seen(model, files)
    labels = model.labels(probabilities[None])[0].numpy()
    return _on_own_grid(labels.astype(np.uint8), image, files[name])


def classes_of(model: ServedModel, files: Mapping[str, Path]) -> dict[str, float]:
    """Return the probability of each class of an image; raises as `mask_of` does."""
    if model.study.task.kind != "classification":
        raise ConfigError(f"{model.study.name} makes a mask; name its file with -o.")
    *_, found = _seen(model, files)
    names = model.study.task.labels.values()
    return {name: float(value) for name, value in zip(names, found, strict=True)}


def check_out(out: Path) -> None:
    """Raise `ConfigError` unless `out` is the name of a new NIfTI file."""
    if not out.name.endswith((".nii", ".nii.gz")):
        raise ConfigError(f"{out}: expected a name that ends in .nii or .nii.gz.")
    if out.exists():
        raise ConfigError(f"{out}: expected the name of a new file, and it exists.")


def write_mask(mask: nib.Nifti1Image, out: Path) -> None:
    """Write a mask to a path that `check_out` accepts; a crash or a full disk leaves no part of it."""
    check_out(out)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / out.name
        nib.save(mask, made)
        write_atomically(out, made.read_bytes())


def _seen(model: ServedModel, files: Mapping[str, Path]) -> tuple[str, Image, torch.Tensor]:
    """Return the first channel that is there, its image, and the probabilities that a model gives."""
    task = model.study.task
    given = " and ".join(str(path) for path in files.values())
    try:
        images = channels_of(files, lambda name, _: read_image(*_placed(files[name])), task)
        there = ((name, i) for name, i in zip(task.channel_names, images, strict=True) if i is not None)
        name, image = next(there)
        return name, image, model.probabilities(stacked(images, task), image.spacing_mm)
    except (Unreadable, UnfitImage, BadChannel) as error:
        raise ConfigError(f"{given}: {error}.") from error


def _placed(path: Path) -> tuple[Path, str]:
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
    folder, name = _placed(path)
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
