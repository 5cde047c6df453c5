"""Overlays of truth and prediction: one picture of several cases, the worst first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

COLUMNS = 3
DOTS_PER_INCH = 80


@dataclass(frozen=True)
class PicturedCase:
    """A case to draw.

    Attributes:
        name: the title above it.
        image: `(*spatial)` intensities.
        truth: `(*spatial)` labels.
        prediction: `(*spatial)` labels.
        dice: the mean Dice over the labels.
    """

    name: str
    image: NDArray[np.floating]
    truth: NDArray[np.integer]
    prediction: NDArray[np.integer]
    dice: float


def worst_first(cases: Sequence[PicturedCase]) -> list[PicturedCase]:
    """Return cases in order of rising Dice; cases with equal Dice by name."""
    return sorted(cases, key=lambda case: (case.dice, case.name))


def overlay_grid(cases: Sequence[PicturedCase], labels: Mapping[int, str], title: str) -> Image.Image:
    """Return cases side by side, each in the slice that shows most of the truth; the worst first.

    Truth is a solid line, the prediction a dashed one; each label has a colour.
    """
    rows = -(-len(cases) // COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 3.2 * rows + 0.6), dpi=DOTS_PER_INCH, layout="constrained")
    figure.suptitle(title)
    every = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in every:
        axes.axis("off")
    for axes, case in zip(every, worst_first(cases), strict=False):
        image, truth, prediction = (_slice(each, case.truth) for each in
                                    (case.image, case.truth, case.prediction))  # fmt: skip
        axes.set_title(f"{case.name}: Dice {case.dice:.2f}", fontsize=9)
        axes.imshow(image, cmap="gray", origin="lower")
        for label in labels:
            for mask, style in ((truth == label, "solid"), (prediction == label, "dashed")):
                if mask.any() and not mask.all():
                    axes.contour(mask, levels=[0.5], colors=[_colour(label)], linestyles=style)
    handles = [
        *(Line2D([], [], color=_colour(label), label=name) for label, name in labels.items()),
        Line2D([], [], color="grey", linestyle="solid", label="truth"),
        Line2D([], [], color="grey", linestyle="dashed", label="prediction"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return Image.open(out).convert("RGB")


def _slice(values: NDArray[np.generic], truth: NDArray[np.integer]) -> NDArray[np.generic]:
    """Return the slice across the last axis with most of the truth, first axis to the right."""
    if values.ndim == 2:
        return values.T
    most = int((truth > 0).sum(axis=(0, 1)).argmax())
    return values[:, :, most].T


def _colour(label: int) -> str:
    return f"C{(label - 1) % 10}"
