"""Starts of a study: what the first model learns from before any patient of a hospital is used.

Every stage uses public material alone, so a start costs no privacy. Folders and files of a stage are in
the coordinator's folder `public/`; hospitals need none of them.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import Field

from models.config import Config
from models.label_maps import MapLookConfig
from models.settings.images import Augmentation

PublicName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""Name of a file or folder in the coordinator's folder `public/`."""
Steps = Annotated[int, Field(ge=1, le=100_000)]
Images = Annotated[int, Field(ge=8, le=10_000)]
BatchSize = Annotated[int, Field(ge=1, le=256)]
Rate = Annotated[float, Field(gt=0, le=1)]


class SyntheticStart(Config):
    """Training on synthetic shapes as `synthesis` describes them; for segmentation.

    Attributes:
        steps (steps): steps of training; 900 by default.
        images (images): number of different images; 512 by default.
        batch (images): images in a step; 8 by default.
        lr (no unit): the highest rate of AdamW; 0.003 by default.
    """

    kind: Literal["synthetic"]
    steps: Steps = 900
    images: Images = 512
    batch: BatchSize = 8
    lr: Rate = 3e-3


class LabelMapStart(Config):
    """Training on images drawn from public label maps (NIfTI); for segmentation.

    Values 1, 2, ... of a map are the study's labels in their order, larger values are other structures.

    Attributes:
        folder: folder with the maps; each file is a map.
        steps (steps): steps of training; 900 by default.
        images (images): number of different images; 512 by default.
        batch (images): images in a step; 8 by default.
        lr (no unit): the highest rate of AdamW; 0.003 by default.
        look: changes of a map's shape, and its intensities.
    """

    kind: Literal["label_maps"]
    folder: PublicName
    steps: Steps = 900
    images: Images = 512
    batch: BatchSize = 8
    lr: Rate = 3e-3
    look: MapLookConfig = MapLookConfig()


PUBLIC_AUGMENTATION = Augmentation(rotate_deg=10, scale=0.1, intensity=0.15, noise=0.1)
"""Changes of public images in training, and of patients' in studies without privacy, by default."""


class PublicStart(Config):
    """Training on labelled public scans or pictures, in any layout that hospitals use.

    Attributes:
        folder: folder with the scans and their list.
        steps (steps): steps of training; 500 by default.
        batch (images): images in a step; 8 by default.
        lr (no unit): the highest rate of AdamW; 0.002 by default.
        augmentation: random changes of the images; small turns and changes of size, contrast and noise
            by default.
    """

    kind: Literal["public"]
    folder: PublicName
    steps: Steps = 500
    batch: BatchSize = 8
    lr: Rate = 2e-3
    augmentation: Augmentation = PUBLIC_AUGMENTATION


class CheckpointStart(Config):
    """Weights in a safetensors file, under the names that the study's network gives them.

    Attributes:
        file: the file.
        new_head: with `true`, the last layer is drawn anew, as for other labels. `false` by default.
    """

    kind: Literal["checkpoint"]
    file: PublicName
    new_head: bool = False


class BundleStart(Config):
    """Weights of a MONAI bundle: `models/model.safetensors` in its folder.

    Attributes:
        folder: the bundle's folder.
        new_head: with `true`, the last layer is drawn anew, as for other labels. `false` by default.
    """

    kind: Literal["bundle"]
    folder: PublicName
    new_head: bool = False


class ModelStart(Config):
    """A released model of another study, from MLflow's registry.

    Attributes:
        study: the study's name; its released model is `<study>-approved`.
        version (number of a version): the version's number.
        new_head: with `true`, the last layer is drawn anew, as for other labels. `false` by default.
    """

    kind: Literal["model"]
    study: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
    version: Annotated[int, Field(ge=1)]
    new_head: bool = False


StartStage = Annotated[
    SyntheticStart | LabelMapStart | PublicStart | CheckpointStart | BundleStart | ModelStart,
    Field(discriminator="kind"),
]


class ValidationConfig(Config):
    """Public cases on which the coordinator measures models; no patient of a hospital is among them.

    Attributes:
        folder: folder with the cases and their list, in any layout that hospitals use.
        choose: with `true`, the model of the last round is the best, on these cases, of the rounds'
            models and of those between the start and the end; or the start, where none of them is better
            by more than one standard error. `true` by default.
    """

    folder: PublicName
    choose: bool = True


def start_faults(stages: Iterable[StartStage], kind: str, fit: object) -> Iterator[str]:
    """Yield why the stages of a start don't fit a study.

    Args:
        kind: of the study's task.
        fit: how the study brings scans to one shape.
    """
    for stage in stages:
        if stage.kind in ("synthetic", "label_maps") and kind != "segmentation":
            yield (
                f"start: expected no {stage.kind}; drawn images have shapes to segment, and no classes."
            )
        if stage.kind == "label_maps" and fit == "resize":
            yield (
                "start: expected no label_maps with preprocessing.fit: resize, which gives each scan "
                "voxels of another size."
            )
