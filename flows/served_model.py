"""The registered model as MLflow loads it: installed code and a safetensors file, no pickle.

MLflow calls `_load_pyfunc`. No code comes from the artifact store, so anybody who can write there can
change weights, which the sha256 reveals, but cannot run code.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models import checkpoints
from models import params as P
from models.objectives import build_task
from models.params import Params
from privacy.signing import canonical
from sites.imaging.intake import Scan, image_fault
from sites.imaging.nifti import LONGEST_MM, SHORTEST_MM
from sites.imaging.preprocessing import Unfit, prepare
from sites.inference import predict
from sites.study import Study

DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"
CPU = torch.device("cpu")


class UnfitImage(ValueError):
    """An image that the hospitals would not train on either; the model makes no prediction for it."""


@dataclass(frozen=True)
class ServedModel:
    """A study's global model after a round, ready to predict."""

    study: Study
    network: nn.Module

    def __repr__(self) -> str:
        count, kind = P.numel(P.of(self.network)), type(self.network).__name__
        return f"<model of {self.study.name}: {kind}, {count:,} parameters>"

    def predict(
        self, images: NDArray[np.generic], params: Mapping[str, Any] | None = None
    ) -> NDArray[np.float32]:
        """Return probabilities `(B, C, *spatial)`, or `(B, C)` for classification; or labels.

        Args:
            images: raw intensities `(B, *spatial)`, or `(B, C, *spatial)` with several channels, in RAS
                orientation: real numbers of any type.
            params: `spacing_mm`, the voxels' sides, by default 1 mm each; `output`,
                `probabilities` or `labels` `(B, *spatial)`, `(B,)`, or `(B, C)` where several can apply.

        Raises:
            UnfitImage: as `probabilities` does.
            ValueError: another output is asked for.
        """
        asked = {"spacing_mm": [1.0] * self.study.task.dims, "output": "probabilities", **(params or {})}
        if not len(images):
            raise UnfitImage("expected at least one image, got none")
        spacing = _spacing_in(asked["spacing_mm"])
        every = torch.stack([self.probabilities(image, spacing) for image in _numbers(images)])
        if asked["output"] == "probabilities":
            return every.numpy()
        if asked["output"] != "labels":
            raise ValueError(f"Expected output probabilities or labels, got {asked['output']!r}.")
        return self.labels(every).numpy().astype(np.float32)

    def probabilities(self, image: NDArray[np.float32], spacing_mm: tuple[float, ...]) -> torch.Tensor:
        """Return probabilities `(L, *spatial)` of one image in RAS, or `(L,)`.

        Args:
            image: `(C, *spatial)`, or `(*spatial)` where the study has one channel.

        Raises:
            UnfitImage: it has other dimensions, is constant or not finite, or can't be prepared; the
                voxels' sides are no such numbers.
        """
        study = self.study
        if study.task.in_channels == 1 and image.ndim <= study.task.dims:
            image = image[None]
        if fault := image_fault(image, study.task):
            raise UnfitImage(fault.text)
        _check_spacing(spacing_mm, study.task.dims)
        activation = build_task(study.task).activation
        try:
            scan = prepare(_as_scan(image, spacing_mm, study), study.preprocessing)
        except Unfit as error:
            raise UnfitImage(str(error)) from error
        return predict(
            self.network,
            activation,
            study.preprocessing,
            study.network.divisors(study.task.dims),
            scan,
            CPU,
        )

    def labels(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return the labels of probabilities `(B, C, ...)`: the likeliest, or each of 0.5 or more.

        Numbers `(B, 1)` of a regression stay what they are.
        """
        task = self.study.task
        if task.kind == "regression":
            return probabilities
        if task.kind == "classification" and task.multi_label:
            return (probabilities >= 0.5).long()
        return probabilities.argmax(1)


def _numbers(images: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return images in float32; MLflow's server makes arrays of objects of JSON's numbers."""
    try:
        if images.dtype.kind in "biufO":
            return np.asarray(images.tolist() if images.dtype.kind == "O" else images, dtype=np.float32)
    except (TypeError, ValueError):
        pass
    raise UnfitImage(f"expected images of real numbers and of one shape, got an array of {images.dtype}")


def _spacing_in(given: Any) -> tuple[float, ...]:  # noqa: ANN401  # whatever somebody passes
    try:
        return tuple(map(float, np.atleast_1d(np.asarray(given, dtype=float))))
    except (TypeError, ValueError):
        raise UnfitImage(f"expected spacing_mm as numbers, got {given!r}") from None


def _check_spacing(spacing_mm: tuple[float, ...], dims: int) -> None:
    if len(spacing_mm) != dims or not all(SHORTEST_MM <= side <= LONGEST_MM for side in spacing_mm):
        raise UnfitImage(
            f"expected spacing_mm of {dims} numbers from {SHORTEST_MM:g} to {LONGEST_MM:g} mm, got "
            f"{list(spacing_mm)}"
        )


def write(folder: Path, study: Study, params: Params) -> None:
    """Write the files that `_load_pyfunc` reads to the empty folder `folder`."""
    sha256 = checkpoints.write(folder / WEIGHTS, params)
    (folder / DESCRIPTION).write_bytes(description(study, sha256))


def description(study: Study, sha256: str) -> bytes:
    """Return the content of `model.json`: the study, and the sha256 of its weights."""
    return canonical({"study": study.model_dump(mode="json"), "sha256": sha256})


def _load_pyfunc(path: str) -> ServedModel:
    return load(Path(path))


def load(folder: Path) -> ServedModel:
    """Return the model in a folder, its weights checked against their sha256."""
    described = json.loads((folder / DESCRIPTION).read_bytes())
    study = Study.model_validate(described["study"])
    network = study.built().eval()
    P.load_into(network, checkpoints.read(folder / WEIGHTS, described["sha256"]))
    return ServedModel(study, network)


def _as_scan(image: NDArray[np.float32], spacing_mm: tuple[float, ...], study: Study) -> Scan:
    """Return an image as a scan, in which a channel of zeros may be a missing one."""
    may_lack = study.task.missing_channel == "zeros"
    missing = tuple(number for number, each in enumerate(image) if may_lack and not each.any())
    shape = image.shape[1:] if study.task.kind == "segmentation" else ()
    return Scan(np.asarray(image, dtype=np.float32), np.zeros(shape, np.int64), spacing_mm, missing)
