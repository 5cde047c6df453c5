"""Prediction of a network for a whole scan, at the scan's own voxels."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from models.adversarial import Loss, attacked
from models.networks.choice import NetworkConfig
from models.objectives import build_task
from models.settings.images import Patches, PreprocessingConfig
from models.settings.opponents import AttackConfig
from sites.imaging.preprocessing import Prepared, fixed_pair, on_own_grid, whole_image
from sites.study import Study

Predict = Callable[[Prepared], Tensor]
"""Function from a scan to probabilities `(C, *spatial)` at its own voxels, or `(C,)`."""
WINDOWS = 4
"""Number of windows in one batch of a network."""


def predictor(network: nn.Module, study: Study, config: NetworkConfig, device: torch.device) -> Predict:
    """Return a function that predicts a study's scans with `network`, which `config` describes."""
    activation = build_task(study.task).activation
    return partial(
        predict,
        network,
        activation,
        study.preprocessing,
        config.divisors(study.task.dims),
        device=device,
    )


def attacked_scan(
    network: nn.Module,
    loss: Loss,
    attack: AttackConfig,
    config: PreprocessingConfig,
    divisors: tuple[int, ...],
    prepared: Prepared,
    device: torch.device,
) -> Prepared:
    """Return a scan whose prepared image is attacked to mislead the network; its truth stays."""
    if not prepared.is_map:
        image, target = fixed_pair(prepared, config)
        changed = attacked(network, loss, image[None].to(device), target[None].to(device), attack)
        return replace(prepared, image=changed[0].cpu())
    image = whole_image(prepared, divisors)
    target = torch.zeros(image.shape[1:], dtype=torch.long)
    within = tuple(slice(side) for side in prepared.target.shape)
    target[within] = prepared.target
    changed = attacked(network, loss, image[None].to(device), target[None].to(device), attack)
    return replace(prepared, image=changed[0].cpu()[(slice(None), *within)])


@torch.no_grad()
def predict(
    network: nn.Module,
    activation: Callable[[Tensor], Tensor],
    config: PreprocessingConfig,
    divisors: tuple[int, ...],
    prepared: Prepared,
    device: torch.device,
) -> Tensor:
    """Return probabilities `(C, *spatial)` at the scan's own voxels, or `(C,)` for a class.

    | study                  | input of the network                                     |
    |------------------------|----------------------------------------------------------|
    | classification         | the image as in training                                 |
    | segmentation, patches  | windows of the training shape that slide over the image  |
    | segmentation otherwise | the whole image, of any size                             |

    Args:
        divisors: the sides of the network's input must be multiples of these.
    """
    if not prepared.is_map:
        image = fixed_pair(prepared, config)[0][None].to(device)
        probabilities: Tensor = activation(network(image))[0].cpu()
        return probabilities
    if isinstance(config.fit, Patches):
        logits = sliding_window_inference(
            prepared.image[None],
            config.shape,
            WINDOWS,
            network,
            overlap=config.fit.overlap,
            mode="gaussian",
            sw_device=device,
            device="cpu",
        )
    else:
        logits = network(whole_image(prepared, divisors)[None].to(device)).cpu()
    within = (slice(None), *(slice(side) for side in prepared.image.shape[1:]))
    return on_own_grid(activation(logits)[0][within], prepared)
