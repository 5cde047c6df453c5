"""Reference cases for people to look at in MLflow: synthetic, drawn from the study's seed alone.

This module has no access to a hospital's images: its pictures can be drawn anywhere from a study and a
model.
"""

import numpy as np
import torch
from PIL import Image

from flows.served_model import ServedModel
from models import params as P
from models.objectives import Prediction, dice_outcome
from models.params import Params
from models.pictures import PicturedCase, overlay_grid
from models.repeatable import one_thread
from models.synthesis import labelled_image
from sites.study import Study

CASES = 6


def picture(study: Study, params: Params, round: int) -> Image.Image | None:
    """Return a picture of a model's results on the reference cases; None for tasks without shapes."""
    if study.task.kind != "segmentation":
        return None
    network = study.built().eval()
    P.load_into(network, params)
    model = ServedModel(study, network)
    rng = np.random.default_rng(study.seed_for(0, "", "reference"))
    shape, task = study.preprocessing.shape, study.task
    drawn = (
        labelled_image(shape, len(task.labels), rng, study.synthesis, task.in_channels)
        for _ in range(CASES)
    )
    with one_thread():
        cases = [_case(model, number, *each) for number, each in enumerate(drawn, start=1)]
    title = f"{study.name}, round {round}: synthetic reference cases, the worst first"
    return overlay_grid(cases, task.labels, title)


def _case(model: ServedModel, number: int, image: np.ndarray, truth: np.ndarray) -> PicturedCase:
    task = model.study.task
    spacing_mm = model.study.preprocessing.spacing_mm or (1.0,) * task.dims
    probabilities = model.probabilities(image, spacing_mm)
    if task.kind != "segmentation":
        raise TypeError("Expected a task that segments.")
    outcome = dice_outcome(Prediction(probabilities, torch.from_numpy(truth), spacing_mm), task)
    prediction = probabilities.argmax(0).numpy()
    return PicturedCase(f"case {number}", image[0], truth, prediction, outcome["dice"])
