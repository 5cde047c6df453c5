"""A hospital's release: a statement, and the tensors that it is about, stored under their sha256."""

from dataclasses import dataclass

from models import params as P
from models.checkpoints import StoredParams
from models.errors import CorruptCheckpoint
from models.params import Params
from privacy.eight_bits import EightBits
from privacy.statements import LARGEST_CHANGE, RejectedRelease, ReleaseManifest


@dataclass(frozen=True)
class Release:
    """A hospital's release for the coordinator: its manifest and its tensors, read lazily."""

    manifest: ReleaseManifest
    tensors: StoredParams | EightBits


def check_release(release: Release, template: Params, largest: float = LARGEST_CHANGE) -> None:
    """Check a release's tensors against its own manifest and the study's network.

    Args:
        largest: the largest accepted L2 norm of the tensors together.

    Raises:
        RejectedRelease: a name, shape or dtype is wrong, a value is not finite, or the norm is larger.
    """
    try:
        P.check_like(release.tensors, template)
        if dict(release.manifest.tensors) != release.tensors.shapes:
            raise ValueError("The manifest lists other tensors than the file holds.")
        if not P.all_finite(release.tensors):
            raise ValueError("A value is NaN or infinite.")
        if not (norm := P.norm(release.tensors)) <= largest:
            raise ValueError(f"Expected a change of a norm of at most {largest:.4g}, got {norm:.4g}.")
    except (ValueError, CorruptCheckpoint) as error:
        raise RejectedRelease(f"{release.manifest.site}: {error}") from error
