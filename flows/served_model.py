"""The registered model as MLflow loads it: installed code and a safetensors file, no pickle.

MLflow calls `_load_pyfunc`. No code comes from the artifact store, so whoever can write there can
change weights, which their sha256 shows, but cannot run anything.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models import checkpoints
from models import params as P
from models.objectives import build_task
from models.params import Params
from privacy.signing import canonical
from sites.intake import Scan
from sites.preprocessing import whole_image
from sites.study import Study

DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"


@dataclass(frozen=True)
class ServedModel:
    """A study's global model after a round, ready to predict."""

    study: Study
    network: nn.Module

    @torch.no_grad()
    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return probabilities `(B, C, *spatial)`, or `(B, C)` for classification.

        Args:
            images: raw intensities `(B, *spatial)`, in RAS orientation.
        """
        divisor = self.study.network.divisor
        batch = torch.stack([whole_image(_as_scan(image), divisor) for image in images])
        probabilities = build_task(self.study.task).activation(self.network(batch))
        within = (slice(None), slice(None), *(slice(side) for side in images.shape[1:]))
        return probabilities[within[: probabilities.dim()]].numpy()


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


def _as_scan(image: NDArray[np.float32]) -> Scan:
    return Scan(np.asarray(image, dtype=np.float32), np.zeros((), np.int64), (1.0,) * image.ndim)
