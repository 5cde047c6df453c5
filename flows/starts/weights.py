"""Weights that somebody has trained before: a safetensors file, a MONAI bundle, a released model."""

from pathlib import Path

import torch
from torch import nn

from flows import served_model
from flows.runs.paths import Home
from flows.serving.model_files import model_files
from flows.starts.public_sets import NoStart
from models import params as P
from models.checkpoints import StoredParams
from models.errors import CorruptCheckpoint
from models.files import sha256_of
from models.params import last_layers
from models.settings.starts import BundleStart, CheckpointStart, ModelStart
from sites.study import Study

Stage = CheckpointStart | BundleStart | ModelStart
UNPICKLED = (
    "Weights are read from safetensors alone, because a file of torch.save can run code. Convert it "
    "where you trust it: safetensors.torch.save_file(torch.load('model.pt', weights_only=True), "
    "'model.safetensors')."
)
LARGEST_BYTES = 2**34


def load_weights(network: nn.Module, stage: Stage, study: Study, home: Home) -> str:
    """Load a stage's weights into `network`, in place; return the sha256 of their file.

    With `new_head` the last layer keeps the values that it has.

    Raises:
        NoStart: the file is missing, pickled, or of another network; the model was trained at another
            spacing, or is not released.
    """
    if isinstance(stage, ModelStart):
        return _load_released(network, stage, study, home)
    path = home.public / (
        stage.file if isinstance(stage, CheckpointStart) else f"{stage.folder}/models/model.safetensors"
    )
    return _load(network, path, new_head=stage.new_head)


def _load_released(network: nn.Module, stage: ModelStart, study: Study, home: Home) -> str:
    name = f"{stage.study}-approved/{stage.version}"
    with model_files(home, name) as files:
        other = served_model.load(files.folder).study
        ours, theirs = study.preprocessing.spacing_mm, other.preprocessing.spacing_mm
        if ours != theirs:
            raise NoStart(f"{name}: expected a model for voxels of {ours} mm, got one for {theirs} mm.")
        if other.task.labels != study.task.labels and not stage.new_head:
            raise NoStart(
                f"{name}: expected the labels {list(study.task.labels.values())}, got "
                f"{list(other.task.labels.values())}; with `new_head: true` the last layer starts anew."
            )
        return _load(network, files.folder / served_model.WEIGHTS, new_head=stage.new_head)


def _load(network: nn.Module, path: Path, *, new_head: bool) -> str:
    found = _tensors(path)
    own = P.of(network)
    if new_head:
        found = {**found, **{name: own[name] for name in last_layers(network, 1)}}
    try:
        P.check_like(found, own)
    except ValueError as error:
        hint = "" if new_head else " For other labels alone, `new_head: true` draws the last layer anew."
        raise NoStart(f"{path}: expected weights of the study's network. {error}{hint}") from error
    if not P.all_finite(found):
        raise NoStart(f"{path}: expected finite weights.")
    P.load_into(network, found)
    return sha256_of(path.read_bytes())


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    pickled = [each for each in (path.with_suffix(".pt"), path.with_suffix(".pth")) if each.exists()]
    if path.suffix != ".safetensors" or (pickled and not path.exists()):
        raise NoStart(f"{pickled[0] if pickled else path}: expected a safetensors file. {UNPICKLED}")
    if not path.is_file():
        raise NoStart(f"{path}: expected a safetensors file, found none.")
    if path.stat().st_size > LARGEST_BYTES:
        raise NoStart(f"{path}: expected at most {LARGEST_BYTES:,} bytes.")
    try:
        return {name: tensor.float() for name, tensor in StoredParams(path).items()}
    except CorruptCheckpoint as error:
        raise NoStart(f"{path}: expected a safetensors file: {error}") from error
