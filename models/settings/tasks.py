"""Tasks: what a study's network answers, about which images, with which labels."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from models.config import Config

NAME_PATTERN = "^[a-z0-9][a-z0-9_-]{0,39}$"
NAME_IN_WORDS = "at most 40 lower-case letters, digits, `_` or `-`"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]

RGB = "rgb"
COLOURS = ("red", "green", "blue")
PLAIN = ("image",)
"""Channels of a study that names none: a hospital's images, as its list has them."""


class _TaskConfig(Config):
    """What all tasks have.

    `channels` are the images of a scan, in the order of the network's input, or `rgb` for pictures in
    colour. `missing_channel`: of a scan without one of them, `zeros` take its place after the other
    steps, or the scan is left out (`skip`), or a hospital that lists such a scan takes no part
    (`refuse`, default).
    """

    network_kind: ClassVar[Literal["segmentation", "classification"]] = "classification"
    """The kind of its networks: they answer for each voxel, or once for a scan."""

    dims: Literal[2, 3]
    labels: dict[int, Name]
    channels: Literal["rgb"] | Annotated[tuple[Name, ...], Field(min_length=1, max_length=32)] = PLAIN
    missing_channel: Literal["refuse", "zeros", "skip"] = "refuse"

    @field_validator("channels")
    @classmethod
    def _in_lists_words(cls, channels: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(channels, str):
            return channels
        return tuple(name.replace("_", "-") for name in channels)  # as lists of cases have them

    @model_validator(mode="after")
    def _channels_fit(self) -> "_TaskConfig":
        if self.channels == RGB and self.dims != 2:
            raise ValueError("channels: expected names for images of three dimensions, got rgb")
        if len(set(self.channel_names)) != len(self.channel_names):
            raise ValueError("channels: expected distinct names")
        if self.missing_channel == "zeros" and len(self.channel_names) < 2:
            raise ValueError("missing_channel: expected refuse or skip with one channel, got zeros")
        return self

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The images of a scan; one where they are in colour."""
        return PLAIN if isinstance(self.channels, str) else self.channels

    @property
    def input_names(self) -> tuple[str, ...]:
        """The channels of the network's input: those of a scan, or the three colours."""
        return COLOURS if isinstance(self.channels, str) else self.channels

    @property
    def in_channels(self) -> int:
        """The number of channels of the network's input."""
        return len(self.input_names)

    @field_validator("labels")
    @classmethod
    def _distinct_names(cls, labels: dict[int, str]) -> dict[int, str]:
        if len(set(labels.values())) != len(labels):
            raise ValueError("expected distinct names for the labels")
        return dict(sorted(labels.items()))


class SegmentationConfig(_TaskConfig):
    """Voxel-wise labels: 0 is background, `labels` names 1, 2, ... in order.

    `tolerance_mm` is the largest distance at which two surfaces still agree, for `surface_dice`.

    Attributes:
        dims (axes): number of spatial dimensions of the images, 2 or 3.
        labels: name of each structure by its value in label images, such as `{1: anterior}`; 0 is
            background.
        channels: names of the images of a case, in order, or `rgb` for pictures in colour; one image
            without a name by default.
        missing_channel: what happens to a case that lacks a channel: `refuse` (default), `skip` the
            case, or `zeros` in its place.
        tolerance_mm (mm): tolerance of surface Dice, in mm.
    """

    network_kind = "segmentation"

    kind: Literal["segmentation"]
    tolerance_mm: Annotated[float, Field(gt=0, le=100)] = 1.0

    @field_validator("labels")
    @classmethod
    def _contiguous_from_one(cls, labels: dict[int, str]) -> dict[int, str]:
        if not labels or list(labels) != list(range(1, len(labels) + 1)):
            raise ValueError("expected the labels 1, 2, ... without a gap (0 is background)")
        return labels

    @property
    def out_channels(self) -> int:
        """Background and one channel per label."""
        return len(self.labels) + 1


class ClassificationConfig(_TaskConfig):
    """One class per scan, or any number with `multi_label`: `labels` names 0, 1, ... in order.

    Attributes:
        dims (axes): number of spatial dimensions of the images, 2 or 3.
        labels: name of each class by its number, such as `{0: normal, 1: pneumonia}`.
        channels: names of the images of a case, in order, or `rgb` for pictures in colour; one image
            without a name by default.
        missing_channel: what happens to a case that lacks a channel: `refuse` (default), `skip` the
            case, or `zeros` in its place.
        multi_label: `true` if any number of labels may hold for a case; `false` by default.
    """

    kind: Literal["classification"]
    multi_label: bool = False

    @model_validator(mode="after")
    def _contiguous_from_zero(self) -> "ClassificationConfig":
        fewest = 1 if self.multi_label else 2
        if len(self.labels) < fewest or list(self.labels) != list(range(len(self.labels))):
            raise ValueError(f"expected the labels 0, 1, ... without a gap, at least {fewest}")
        return self

    @property
    def out_channels(self) -> int:
        """One channel per label."""
        return len(self.labels)


class RegressionConfig(_TaskConfig):
    """A number for each scan, such as an age: `labels` names it, as `{0: age}`.

    Attributes:
        low, high (the study's own): its public range; a hospital's values lie within, and answers too.
        tolerance (the study's own): the error up to which an answer counts as right, for
            `within_tolerance`.
        dims (axes): number of spatial dimensions of the images, 2 or 3.
        labels: the one name of the number, by 0.
        channels: names of the images of a case, in order, or `rgb` for pictures in colour; one image
            without a name by default.
        missing_channel: what happens to a case that lacks a channel: `refuse` (default), `skip` the
            case, or `zeros` in its place.
    """

    kind: Literal["regression"]
    low: float
    high: float
    tolerance: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _one_in_a_range(self) -> "RegressionConfig":
        if list(self.labels) != [0]:
            raise ValueError("labels: expected the name of the one number, as {0: age}")
        if self.low >= self.high:
            raise ValueError(f"low, high: expected the ends of a range, got {self.low} and {self.high}")
        return self

    @property
    def out_channels(self) -> int:
        """One channel."""
        return 1

    @property
    def name(self) -> str:
        """The name of the number."""
        return self.labels[0]


TaskConfig = Annotated[
    SegmentationConfig | ClassificationConfig | RegressionConfig, Field(discriminator="kind")
]
