"""Distillation before export, as a study asks for it (`privacy.distillation`)."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from models.config import Config
from models.networks.choice import NetworkConfig


class PublicImages(Config):
    """The images of a public set: an npz file with an array `images`, identified by its sha256.

    Attributes:
        public: sha256 of the npz file in each hospital's folder `public/`.
    """

    public: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class DistillationConfig(Config):
    """Settings of the distillation. The student is the study's network.

    Attributes:
        transfer: the images on which the student learns.
        teacher: the network that learns at the hospital, by default the study's own. Another network
            stays at the hospital from round to round and first learns from the global model. A
            hospital may choose its own.
        rounds: `every` round (default), or only the `last` one: before, the trained weights leave, which
            cost the same privacy; a network of another kind than the study's can't teach then.
        ensemble: the weight of a hospital's answers, if the study exports predictions: its declared
            patients, or these together with its certainty about each image.
        steps (steps): optimizer steps of the student.
        images (images): number of transfer images that are drawn, if they are synthetic.
        batch (images): images in a step.
        temperature (no unit): temperature of the teacher's answers.
        lr (no unit): learning rate of the student.
    """

    transfer: Literal["synthetic"] | PublicImages
    steps: PositiveInt
    images: Annotated[int, Field(ge=8, le=10_000)] = 256
    batch: Annotated[int, Field(ge=1, le=256)] = 8
    temperature: Annotated[float, Field(gt=0)] = 2.0
    lr: Annotated[float, Field(gt=0)] = 3e-3
    teacher: NetworkConfig | None = None
    rounds: Literal["every", "last"] = "every"
    ensemble: Literal["declared", "confidence"] = "declared"
