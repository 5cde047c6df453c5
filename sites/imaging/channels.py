"""Channels of a scan: one image for each, on the first one's grid, as a study names them."""

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.settings.tasks import RGB, TaskConfig
from sites.imaging.grids import Elsewhere, on_grid_of
from sites.imaging.image import Image

ChannelFault = Literal["channel", "channel_place", "colour"]


class BadChannel(ValueError):
    """The images of a scan are no channels of a study. The message names nothing of the patient."""

    def __init__(self, fault: ChannelFault, reason: str) -> None:
        self.fault: ChannelFault = fault
        super().__init__(reason)


def channels_of(
    known: Collection[str], read: Callable[[str, str], Image], task: TaskConfig
) -> list[Image | None]:
    """Return the image of each channel of a task on the first one's grid; None for a missing one.

    Args:
        known: names of the channels that there are.
        read: returns the image of a channel, by its name and by what an error should call it.

    Raises:
        BadChannel: a channel is missing and may not be, or shows another place than the first.
    """
    found: list[Image | None] = []
    for name in task.channel_names:
        if name not in known:
            found.append(None)
            continue
        what = "image" if len(task.channel_names) == 1 else f"channel {name}"
        image = read(name, what).of_dims(task.dims)
        if first := next((each for each in found if each is not None), None):
            try:
                image = on_grid_of(first, image)
            except Elsewhere as error:
                raise BadChannel("channel_place", f"{what}: {error}") from error
        found.append(image)
    missing = [name for name, each in zip(task.channel_names, found, strict=True) if each is None]
    if missing and (task.missing_channel != "zeros" or len(missing) == len(found)):
        has = ", ".join(sorted(known)) or "none"
        raise BadChannel("channel", f"the study's channel {missing[0]} is missing; there is {has}")
    return found


def stacked(images: Sequence[Image | None], task: TaskConfig) -> NDArray[np.float32]:
    """Return channels as one array `(C, *spatial)`, zero where one is missing.

    Raises:
        BadChannel: the pictures are in colour and the study's are not, or the other way round.
    """
    there = [each for each in images if each is not None]
    if task.channels == RGB:
        if there[0].colours is None:
            raise BadChannel("colour", "the picture is grey, and the study's pictures are in colour")
        return there[0].colours
    if any(each.is_coloured for each in there):
        raise BadChannel("colour", "the picture is in colour, and the study's images are grey")
    blank = np.zeros_like(there[0].voxels)
    return np.stack([blank if each is None else each.voxels for each in images])
