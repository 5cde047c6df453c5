"""Per-patient gradients against plain training and Opacus' own modes: time and peak memory.

One microbatch of patients, forward, backward, clipping and summing (noise is drawn once a step
by every method, so it is left out). Methods are interleaved in one process; a row gives the
ratios of medians to plain training. Peak memory is the process's high-water mark above what it held
before. A method that raises has no figures; its row has the reason.

    python benchmarks/per_patient.py --json
"""

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.networks import nets
from opacus import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
    GradSampleModuleFastGradientClipping,
)
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from models import params as P
from models.objectives import build_task
from models.settings.tasks import ClassificationConfig, SegmentationConfig
from privacy.mechanisms import ClipConfig, Mechanism
from privacy.per_patient import clipped_sums

METHODS = ("plain", "opacus_hooks", "opacus_ghost", "vmap", "wardround")
M_MMAP_THRESHOLD = -3  # of glibc's mallopt
GROUP = ("group", {"num_groups": 8})


@dataclass(frozen=True)
class Case:
    """A network and the images of one microbatch."""

    network: str
    dims: int
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    patients: int
    segments: bool = True
    channels: int = 1


CASES = (
    Case("UNet 8-16-32", 3, lambda: nets.UNet(3, 1, 3, (8, 16, 32), (2, 2)), (32, 48, 32), 8),
    Case(
        "UNet 16-32-64-128", 3,
        lambda: nets.UNet(3, 1, 3, (16, 32, 64, 128), (2, 2, 2), num_res_units=1), (32, 48, 32), 8,
    ),
    Case("SegResNet", 3, lambda: nets.SegResNet(3, 8, out_channels=3), (32, 48, 32), 4),
    Case(
        "UNet 8-16-32, four channels", 3, lambda: nets.UNet(3, 4, 3, (8, 16, 32), (2, 2)),
        (32, 48, 32), 8, channels=4,
    ),
    Case(
        "SegResNet, four channels", 3, lambda: nets.SegResNet(3, 8, in_channels=4, out_channels=3),
        (32, 48, 32), 4, channels=4,
    ),
    Case(
        "DenseNet121", 3, lambda: nets.DenseNet121(3, 1, 2, norm=GROUP), (32, 48, 32), 4, segments=False,
    ),
    Case(
        "DenseNet121", 2, lambda: nets.DenseNet121(2, 1, 2, norm=GROUP), (64, 64), 8, segments=False,
    ),
    Case("UNet 8-16-32", 2, lambda: nets.UNet(2, 1, 3, (8, 16, 32), (2, 2)), (128, 128), 8),
)  # fmt: skip


class _Criterion(nn.Module):
    """A per-scan loss in the shape that Opacus' ghost mode asks for."""

    reduction = "sum"  # Opacus sets it to none itself

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._loss = loss

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self._loss(logits, target)


def steps_of(case: Case) -> dict[str, Callable[[], None]]:
    """Return one microbatch's work for each method, all from the same weights."""
    task = _task(case)
    torch.manual_seed(0)
    first = case.build()
    images = torch.randn(case.patients, case.channels, *case.shape)
    target = torch.randint(0, 2, (case.patients, *(case.shape if case.segments else ())))
    patients = torch.arange(case.patients)

    def fresh() -> nn.Module:
        network = case.build()
        P.load_into(network, P.of(first))
        return network

    def sgd(network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(network.parameters(), lr=0.0)

    plain = fresh()
    plain_sgd = sgd(plain)

    def plain_step() -> None:
        plain_sgd.zero_grad()
        task.loss(plain(images), target).mean().backward()
        plain_sgd.step()

    def private(kind: type[GradSampleModule], optimizer_kind: type[DPOptimizer]) -> Any:
        module = kind(fresh(), loss_reduction="sum")
        optimizer = optimizer_kind(
            sgd(module), noise_multiplier=0.0, max_grad_norm=1.0,
            expected_batch_size=case.patients, loss_reduction="sum",
        )  # fmt: skip
        return module, optimizer

    hooked, hooked_optimizer = private(GradSampleModule, DPOptimizer)

    def hooks_step() -> None:
        hooked_optimizer.zero_grad()
        task.loss(hooked(images), target).sum().backward()
        hooked_optimizer.step()

    ghost = GradSampleModuleFastGradientClipping(
        fresh(), loss_reduction="sum", max_grad_norm=1.0, use_ghost_clipping=True
    )
    ghost_optimizer = DPOptimizerFastGradientClipping(
        sgd(ghost), noise_multiplier=0.0, max_grad_norm=1.0,
        expected_batch_size=case.patients, loss_reduction="sum",
    )  # fmt: skip
    ghost_loss = DPLossFastGradientClipping(ghost, ghost_optimizer, _Criterion(task.loss), "sum")

    def ghost_step() -> None:
        ghost_optimizer.zero_grad()
        ghost_loss(ghost(images), target).backward()
        ghost_optimizer.step()

    clip = Mechanism(ClipConfig(kind="flat", norm=1.0), 1.0, 1.0, 1, 1).clip_factors
    mapped, layered = fresh(), fresh()

    def vmap_step() -> None:
        mapped.zero_grad()

        def loss(params: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            loss: Tensor = task.loss(functional_call(mapped, params, (image[None],)), label[None])[0]
            return loss

        found = vmap(grad(loss), in_dims=(None, 0, 0))(P.of(mapped), images, target)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in found.values()]).norm(dim=0)
        for name, p in mapped.named_parameters():
            p.grad = torch.einsum("p,p...->...", clip(norms), found[name])

    def wardround_step() -> None:
        layered.zero_grad()
        sums = clipped_sums(layered, task.loss, images, target, patients, clip)
        for name, p in layered.named_parameters():
            p.grad = sums[name].to(p)

    return {
        "plain": plain_step,
        "opacus_hooks": hooks_step,
        "opacus_ghost": ghost_step,
        "vmap": vmap_step,
        "wardround": wardround_step,
    }


def _task(case: Case) -> Any:
    if case.segments:
        return build_task(
            SegmentationConfig(kind="segmentation", dims=case.dims, labels={1: "a", 2: "b"})
        )
    return build_task(
        ClassificationConfig(kind="classification", dims=case.dims, labels={0: "a", 1: "b"})
    )


def measure(case: Case, repeats: int) -> list[dict[str, Any]]:
    """Return a row for each method, with its ratios to plain training."""
    steps = steps_of(case)
    failures: dict[str, str] = {}
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    memory: dict[str, list[float]] = {method: [] for method in METHODS}
    for repeat in range(repeats + 1):
        for method in METHODS:
            if method in failures:
                continue
            try:
                spent = _seconds(steps[method])
            except Exception as error:
                # Whatever stopped it, the row says that the method could not do this network.
                failures[method] = f"{type(error).__name__}: {str(error)[:80]}"
                continue
            if repeat:  # the first one warms up
                seconds[method].append(spent)
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)  # freed tensors go back to the system at once, slowly
    for _ in range(3):
        for method in METHODS:
            if method not in failures:
                libc.malloc_trim(0)
                memory[method].append(_peak_mib(steps[method]))
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)
    base_time, base_memory = (statistics.median(x["plain"]) for x in (seconds, memory))
    rows = []
    for method in METHODS:
        row: dict[str, Any] = {"network": case.network, "dims": case.dims, "method": method}
        if method in failures:
            row |= {"time_ratio": None, "memory_ratio": None, "failure": failures[method]}
        else:
            row["time_ratio"] = round(statistics.median(seconds[method]) / base_time, 3)
            row["memory_ratio"] = round(statistics.median(memory[method]) / base_memory, 3)
        rows.append(row)
    return rows


def _seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _peak_mib(step: Callable[[], None]) -> float:
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    step()
    return max(_status("VmHWM") - before, 0.1)


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return float(line.split()[1]) / 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


def main() -> None:
    """Print the rows of every network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="networks whose name holds this")
    parser.add_argument("--json", action="store_true", help="one JSON list")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        if arguments.only in f"{case.network} {case.dims}D":
            rows += measure(case, arguments.repeats)
            if not arguments.json:
                for row in rows[-len(METHODS) :]:
                    print(row, flush=True)
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
