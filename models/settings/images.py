"""Steps from a scan to a network's input, as a study asks for them (`sites.imaging.preprocessing`)."""

from typing import Annotated, Literal

from pydantic import Field

from models.config import Config

Side = Annotated[int, Field(ge=8, le=512)]
Millimetres = Annotated[float, Field(ge=0.05, le=20)]


class Augmentation(Config):
    """Random changes of training images.

    Attributes:
        copies (copies): changed versions of each scan, all in one gradient of their patient; the privacy
            cost is the same for any number (augmentation multiplicity: De et al. 2022, Unlocking
            High-Accuracy Differentially Private Image Classification through Scale,
            https://arxiv.org/abs/2204.13650).
        flip (numbers of axes): axes along which half of the images are mirrored.
        rotate_deg (degrees): the largest rotation about each axis, in degrees; it turns mm, not voxels.
        scale (share): the largest change in size, as a share.
        intensity (share): the largest change of contrast, as a share, and of brightness.
        noise (prepared intensities): the largest standard deviation of added noise.
        drop_channel (probability): the probability with which each channel of a training image becomes
            zero, as one that is missing; at least one stays.
    """

    copies: Annotated[int, Field(ge=1, le=64)] = 1
    flip: tuple[Literal[0, 1, 2], ...] = ()
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0
    intensity: Annotated[float, Field(ge=0, lt=1)] = 0
    noise: Annotated[float, Field(ge=0, le=1)] = 0
    drop_channel: Annotated[float, Field(ge=0, lt=1)] = 0


class Percentiles(Config):
    """Scaling of the intensities between two percentiles of the image to [-1, 1]; others are clipped.

    Attributes:
        low (percent): percentile that becomes -1.
        high (percent): percentile that becomes 1.
    """

    kind: Literal["percentiles"]
    low: Annotated[float, Field(ge=0, lt=50)] = 0.5
    high: Annotated[float, Field(gt=50, le=100)] = 99.5


class Window(Config):
    """Scaling of the intensities in a window (CT: Hounsfield units) to [-1, 1]; others are clipped.

    Attributes:
        centre (the image's own): middle of the window, in the image's own units (CT: HU).
        width (the image's own): width of the window, in the same units.
    """

    kind: Literal["window"]
    centre: float
    width: Annotated[float, Field(gt=0)]


class Patches(Config):
    """Training on `per_scan` patches of each scan, the share `foreground` around a labelled voxel.

    A prediction uses windows that slide over the whole image with this `overlap`.

    Attributes:
        per_scan (patches): patches of a scan in a step.
        foreground (share): share of the patches around a labelled voxel.
        overlap (share): overlap of windows in a prediction, as a share.
    """

    kind: Literal["patches"]
    per_scan: Annotated[int, Field(ge=1, le=64)] = 2
    foreground: Annotated[float, Field(ge=0, le=1)] = 0.5
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25


class PreprocessingConfig(Config):
    """Steps for a scan, in the order of the module's table; `shape` is the shape of training images.

    Attributes:
        shape (voxels): shape of training images in voxels, along each axis.
        spacing_mm (mm): sides of the voxels in mm to which scans are resampled; None keeps each scan's
            own.
        crop: `foreground` cuts away the margin in which nothing is brighter than the mean; `none` by
            default.
        intensity: scale of the intensities: `z_score` (default), percentiles or a window.
        fit: from a scan to the training shape: `pad_or_crop` in the middle (default), `resize`, or
            patches.
        augmentation: random changes of training images; None by default.
    """

    shape: Annotated[tuple[Side, ...], Field(min_length=2, max_length=3)]
    spacing_mm: Annotated[tuple[Millimetres, ...], Field(min_length=2, max_length=3)] | None = None
    crop: Literal["none", "foreground"] = "none"
    intensity: Literal["z_score"] | Annotated[Percentiles | Window, Field(discriminator="kind")] = (
        "z_score"
    )
    fit: Literal["pad_or_crop", "resize"] | Patches = "pad_or_crop"
    augmentation: Augmentation | None = None

    @property
    def without_draws(self) -> "PreprocessingConfig":
        """The same steps without random crops and changes."""
        fit = "pad_or_crop" if isinstance(self.fit, Patches) else self.fit
        return self.model_copy(update={"augmentation": None, "fit": fit})

    @property
    def is_random(self) -> bool:
        """Return whether training uses a different version of a scan at each step."""
        return isinstance(self.fit, Patches) or self.augmentation is not None
