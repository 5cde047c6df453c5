"""What every network that a study may name has: its arguments, its task, the images that it takes.

No network has batch statistics (instance or group norm only): one patient's output never depends on
another patient, which per-patient clipping needs. Where MONAI offers only batch norm, Opacus' fixer
replaces it with group norm.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from models.config import Config

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["segmentation", "classification"]
Channels = Annotated[int, Field(ge=1, le=1024)]


class Images(NamedTuple):
    """The images of a study: their shape, and the sides of their voxels if the study fixes them."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None


class Network(Config):
    """A network by its name in MONAI.

    Attributes:
        kind: the task that it is for.
        fixed: arguments of Opacus' fixer, which replaces batch norm with group norm; None: no fixer.
    """

    kind: ClassVar[Kind]
    fixed: ClassVar[Mapping[str, Any] | None] = None

    name: str

    @abstractmethod
    def divisors(self, dims: int) -> tuple[int, ...]:
        """Return the number that must divide each side of an image."""

    @abstractmethod
    def arguments(self, dims: int, out_channels: int, in_channels: int = 1) -> dict[str, Any]:
        """Return the arguments of MONAI's class."""

    def build(self, dims: int, out_channels: int, in_channels: int = 1) -> "nn.Module":
        """Return the network for images `(B, in_channels, *spatial)`."""
        from models.networks import building  # noqa: PLC0415  # a policy names networks and builds none

        arguments = self.arguments(dims, out_channels, in_channels)
        network = building.of_monai(self.name, arguments)
        return network if self.fixed is None else building.with_group_norm(network, self.fixed)

    def check_input(self, key: str, images: Images) -> None:
        """Raise ValueError unless a study's images fit; `key` is the study's key of the network."""
        divisors = self.divisors(len(images.shape))
        if any(side % divisor for side, divisor in zip(images.shape, divisors, strict=True)):
            each = " x ".join(map(str, divisors)) if len(set(divisors)) > 1 else str(divisors[0])
            raise ValueError(
                f"preprocessing.shape: expected multiples of {each} as {key} {self.name} needs, got "
                f"{list(images.shape)}."
            )
