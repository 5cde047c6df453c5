"""Ensemble distillation: the next global model learns from the predictions that hospitals export.

The coordinator does not have to know the hospitals' networks. Source: Lin et al. 2020, Ensemble
Distillation for Robust Model Fusion in Federated Learning (FedDF), equation 1,
https://arxiv.org/abs/2006.07242. There the student starts from the hospitals' averaged weights. Here
nobody has these, so it starts from the last global model.
"""

from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch

from flows.runs.paths import Home
from flows.runs.run import Run
from models import checkpoints
from models import params as P
from models.objectives import answer_shape, build_task
from models.params import Params
from models.repeatable import one_thread
from models.settings.distillation import DistillationConfig
from models.strategies import Contribution
from privacy import predictions
from privacy.distillation import distil, imitate
from privacy.statements import RejectedRelease, ReleaseManifest
from sites.local_models import CPU, network_for
from sites.study import Study
from sites.transfer_set import transfer_images


def check_ready(study: Study, home: Home) -> None:
    """Raise `NoTransferImages` unless the coordinator has the images that the study distils on."""
    if study.distillation and (study.shares_noise or study.export == "predictions"):
        transfer_images(study, study.distillation, home.public)


def most_bytes(run: Run) -> int:
    """Return the largest size of a release of predictions in bytes: one byte for each prediction."""
    return prod(_shape(run))


def check_predictions(run: Run, path: Path, manifest: ReleaseManifest) -> None:
    """Raise `RejectedRelease` or ValueError unless a file holds predictions, as its manifest says."""
    tensors = checkpoints.read(path, manifest.payload_sha256, torch.uint8)
    if set(tensors) != {predictions.NAME} or tensors[predictions.NAME].dim() != 1:
        raise RejectedRelease(f"expected one tensor of bytes, {predictions.NAME!r}")
    if dict(manifest.tensors) != tensors.shapes:
        raise RejectedRelease("the manifest lists other tensors than the file holds")
    _unpacked(run, tensors[predictions.NAME])


def student_of(run: Run, round: int, params: Params, releases: Sequence[Contribution]) -> Params:
    """Return the global model after it has learned from the ensemble of the round's predictions."""
    study, config = run.study, _config(run)
    images = transfer_images(study, config, run.home.public)
    answers = ((each.weight, _unpacked(run, each.change[predictions.NAME])) for each in releases)
    targets = predictions.ensemble(answers, config.ensemble)
    network = network_for(study.network, study, CPU, params)
    rng = torch.Generator().manual_seed(study.seed_for(round, "", "distil"))
    with one_thread():
        imitate(network, images, targets, config, rng, build_task(study.task).exclusive)
    return P.of(network)


def student_of_last(run: Run, params: Params) -> Params:
    """Return the last global model after a student, which starts from it, has learned from it.

    Where hospitals share the noise they train no teacher; the global model is the teacher.
    """
    study, config = run.study, _config(run)
    images = transfer_images(study, config, run.home.public)
    teacher, student = (network_for(study.network, study, CPU, params) for _ in range(2))
    rng = torch.Generator().manual_seed(study.seed_for(study.rounds, "", "distil"))
    with one_thread():
        distil(teacher, student, images, config, rng, build_task(study.task).exclusive)
    return P.of(student)


def _unpacked(run: Run, packed: torch.Tensor) -> torch.Tensor:
    return predictions.from_tensors(packed, _shape(run), _config(run).temperature)


def _shape(run: Run) -> tuple[int, ...]:
    return (_config(run).images, *answer_shape(run.study.task, run.study.preprocessing.shape))


def _config(run: Run) -> DistillationConfig:
    if run.study.distillation is None:
        raise ValueError(f"Study {run.study.name} does not distil.")
    return run.study.distillation
