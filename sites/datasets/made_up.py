"""Made-up scans that fit any study, for rehearsals and audits: they show no patient."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.synthesis import labelled_image, texture

if TYPE_CHECKING:
    from sites.study import Study


def made_up_scan(study: "Study", rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Return an image `(C, *shape)` of a study's shape, and its target as `sites.imaging.intake` has it.

    The target is a label map `(*shape)` for segmentation, a class or a number `()`, or with several
    labels `(C,)` with 1 for each that holds.
    """
    task, shape = study.task, study.preprocessing.shape
    if task.kind == "segmentation":
        image, label = labelled_image(shape, len(task.labels), rng, study.synthesis, task.in_channels)
        return image.astype(np.float32), label.astype(np.int64)
    image = texture(shape, rng, task.in_channels).astype(np.float32)
    if task.kind == "regression":
        return image, np.array(rng.uniform(task.low, task.high), np.float32)
    if task.multi_label:
        return image, (rng.random(len(task.labels)) < 0.5).astype(np.int64)
    return image, np.array(rng.integers(len(task.labels)), np.int64)
