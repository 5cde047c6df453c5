"""The picture of an audit: what an attacker recovers of a made-up patient."""

from io import BytesIO

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from sites.audit.reconstruction import Pictures, Reconstruction


def picture(found: Reconstruction, images: Pictures) -> bytes:
    """Return a PNG: the true slice, and what is recovered of it without and with the mechanism."""
    shown = [("the patient (made up)", images.truth, "")]
    shown.append(("from the bare gradient", images.plain, f"SSIM {found.plain.ssim:.2f}"))
    if images.private is not None and found.private is not None:
        shown.append(("from what leaves", images.private, f"SSIM {found.private.ssim:.2f}"))
    shown.append(("from nothing", images.blind, f"SSIM {found.blind.ssim:.2f}"))
    figure = Figure(figsize=(2.4 * len(shown), 2.9), layout="constrained")
    for axes, (title, image, below) in zip(figure.subplots(1, len(shown)), shown, strict=True):
        axes.imshow(_slice(image), cmap="gray")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(below, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    out = BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _slice(image: Tensor) -> NDArray[np.float32]:
    """Return the first channel's middle slice, `(H, W)`."""
    plane = image[0]
    while plane.dim() > 2:
        plane = plane[..., plane.shape[-1] // 2]
    return np.asarray(plane.numpy().T[::-1], np.float32)
