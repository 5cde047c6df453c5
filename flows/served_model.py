"""The registered model as MLflow loads it: installed code and a safetensors file, no pickle.

MLflow calls `_load_pyfunc`. No code comes from the artifact store, so whoever can write there can
change weights, which their sha256 shows, but cannot run anything.
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
from sites.inference import predict
from sites.intake import Scan
from sites.preprocessing import prepare
from sites.study import Study

DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ServedModel:
    """A study's global model after a round, ready to predict."""

    study: Study
    network: nn.Module

    def predict(
        self, images: NDArray[np.float32], params: Mapping[str, Any] | None = None
    ) -> NDArray[np.float32]:
        """Return probabilities `(B, C, *spatial)`, or `(B, C)` for classification.

        Args:
            images: raw intensities `(B, *spatial)`, in RAS orientation.
            params: `spacing_mm`, the voxels' sides, 1 mm each unless it is given.
        """
        study, network = self.study, self.network
        spacing = tuple(map(float, (params or {}).get("spacing_mm", [1.0] * study.task.dims)))
        activation = build_task(study.task).activation
        prepared = (prepare(_as_scan(image, spacing, study), study.preprocessing) for image in images)
        every = [
            predict(network, activation, study.preprocessing, study.network.divisor, scan, CPU)
            for scan in prepared
        ]
        return torch.stack(every).numpy()


def write(folder: Path, study: Study, params: Params) -> None:
    """Write what `_load_pyfunc` reads into the empty folder `folder`."""
    sha256 = checkpoints.write(folder / WEIGHTS, params)
    described = {"study": study.model_dump(mode="json"), "sha256": sha256}
    (folder / DESCRIPTION).write_bytes(canonical(described))


def _load_pyfunc(path: str) -> ServedModel:
    """Return the model in the folder `path`, its weights checked against their sha256."""
    folder = Path(path)
    described = json.loads((folder / DESCRIPTION).read_bytes())
    study = Study.model_validate(described["study"])
    network = study.network.build(study.task.dims, study.task.out_channels).eval()
    P.load_into(network, checkpoints.read(folder / WEIGHTS, described["sha256"]))
    return ServedModel(study, network)


def _as_scan(image: NDArray[np.float32], spacing_mm: tuple[float, ...], study: Study) -> Scan:
    shape = image.shape if study.task.kind == "segmentation" else ()
    return Scan(np.asarray(image, dtype=np.float32), np.zeros(shape, np.int64), spacing_mm)
