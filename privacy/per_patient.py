"""Exact gradients of each patient's loss, at about the speed of plain training.

Each layer that has parameters runs as an autograd function which, on the way back, takes the
gradient of every scan by itself from the layer's input and cotangent. For a convolution that is one
call of the ordinary backward kernel in which the batch is folded into the channels and each scan is
a group of its own (Rochette et al. 2019, section 3.1), so nothing is unfolded and no second backward
pass runs. Networks stay as they are; in-place activations and additions work, because whatever
autograd would refuse is refused here too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

Gradients = dict[str, Tensor]
"""Per-scan gradients `(N, *shape)` of a layer's own parameters: `weight`, `bias`."""


class UnsupportedLayer(ValueError):
    """A layer whose per-patient gradient can't be taken exactly; the message names it."""


class Rule(Protocol):
    """How one kind of layer runs, and what its cotangent says of its input and its parameters."""

    def forward(self, layer: Any, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the output, and what `backward` needs beside the input."""

    def backward(
        self, layer: Any, x: Tensor, kept: tuple[Tensor, ...], g: Tensor, needs_x: bool
    ) -> tuple[Tensor | None, Gradients]:
        """Return the input's gradient, if needed, and each parameter's gradient per scan."""


def per_patient_gradients(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    patient_of: Tensor,
) -> Gradients:
    """Return for each parameter the gradients `(P, *shape)` of P patients' losses.

    A patient's loss is the mean over his scans, so his scans' gradients are summed *before*
    anybody clips: several scans make one unit of privacy.

    Args:
        loss: `(logits (N, ...), targets (N, ...)) -> (N,)`.
        images: `(N, 1, *spatial)`, the scans of whole patients.
        patient_of: `(N,)`, each scan's patient as 0 ... P-1, each with at least one scan.

    Raises:
        UnsupportedLayer: a layer is of no known kind, mixes scans, or received no gradient.
        ValueError: the loss is not one number a scan.
    """
    scans = torch.bincount(patient_of)
    found: Gradients = {}

    def record(name: str, per_scan: Tensor) -> None:
        own = per_scan.new_zeros(len(scans), *per_scan.shape[1:])
        own.index_add_(0, patient_of, per_scan)
        found[name] = found[name] + own if name in found else own

    with _recording(network, record):
        losses = loss(network(images), targets)
        if losses.shape != (len(images),):
            raise ValueError(
                f"Expected a loss of shape ({len(images)},), one number a scan, "
                f"got {tuple(losses.shape)}."
            )
        torch.autograd.backward((losses / scans[patient_of].to(losses)).sum())
    for name, _ in network.named_parameters():
        if name not in found:
            raise UnsupportedLayer(f"{name} received no gradient; per-patient clipping needs each.")
    return found


def check_layers(network: nn.Module) -> None:
    """Raise UnsupportedLayer, naming it, if a layer of `network` can't be done exactly."""
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm) or getattr(layer, "track_running_stats", False):
            raise UnsupportedLayer(
                f"{name} ({type(layer).__name__}) has statistics of the batch, which mix patients; "
                f"use group or instance norm."
            )
        if list(layer.parameters(recurse=False)) and _rule_of(layer) is None:
            raise UnsupportedLayer(f"{name} ({type(layer).__name__}) is of no supported kind.")


@contextmanager
def _recording(network: nn.Module, record: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Run the network's layers through their rules; parameters take no part in autograd meanwhile."""
    check_layers(network)
    trainable = [p for p in network.parameters() if p.requires_grad]
    anchor = torch.zeros((), requires_grad=True)
    diverted = []
    try:
        for p in trainable:
            p.requires_grad_(False)
        for name, layer in network.named_modules():
            rule = _rule_of(layer)
            if rule is not None and list(layer.parameters(recurse=False)):
                layer.forward = _diverted(name, layer, rule, anchor, record)
                diverted.append(layer)
        yield
    finally:
        for layer in diverted:
            del layer.__dict__["forward"]
        for p in trainable:
            p.requires_grad_(True)


def _diverted(
    name: str, layer: nn.Module, rule: Rule, anchor: Tensor, record: Callable[[str, Tensor], None]
) -> Callable[..., Tensor]:
    prefix = f"{name}." if name else ""

    def keep(gradients: Gradients) -> None:
        for parameter, per_scan in gradients.items():
            record(prefix + parameter, per_scan)

    def forward(x: Tensor, *rest: Any) -> Tensor:
        if any(extra is not None for extra in rest):
            raise UnsupportedLayer(f"{name} ({type(layer).__name__}) takes more than one input.")
        y: Tensor = _Recorded.apply(x, anchor, layer, rule, keep)  # type: ignore[no-untyped-call]
        return y

    return forward


class _Recorded(torch.autograd.Function):
    """A layer as an autograd function. `anchor` requires grad, so the output always does."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        anchor: Tensor,
        layer: nn.Module,
        rule: Rule,
        keep: Callable[[Gradients], None],
    ) -> Tensor:
        y, kept = rule.forward(layer, x)
        ctx.save_for_backward(x, *kept)
        ctx.layer, ctx.rule, ctx.keep = layer, rule, keep
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        x, *kept = ctx.saved_tensors
        gx, gradients = ctx.rule.backward(ctx.layer, x, tuple(kept), g, ctx.needs_input_grad[0])
        ctx.keep(gradients)
        return gx, None, None, None, None


def _with_bias(layer: nn.Module, weight: Tensor, bias: Callable[[], Tensor]) -> Gradients:
    return {"weight": weight} if layer.bias is None else {"weight": weight, "bias": bias()}


class _Convolution:
    def forward(self, layer: _ConvNd, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y = torch.convolution(x, layer.weight, layer.bias, **_geometry(layer))
        return y, ()

    def backward(
        self, layer: _ConvNd, x: Tensor, kept: tuple[Tensor, ...], g: Tensor, needs_x: bool
    ) -> tuple[Tensor | None, Gradients]:
        gx = _convolution_backward(g, x, layer.weight, _geometry(layer), 0) if needs_x else None
        if isinstance(layer, _ConvTransposeNd):
            # A transposed convolution is the adjoint of one that takes the cotangent to the input.
            weight = _weight_gradients(x, g, layer)
        elif _is_pointwise(layer):
            weight = torch.bmm(g.flatten(2), x.flatten(2).transpose(1, 2))
        else:
            weight = _weight_gradients(g, x, layer)
        weight = weight.reshape(len(x), *layer.weight.shape)
        return gx, _with_bias(layer, weight, lambda: g.flatten(2).sum(2))


def _geometry(layer: _ConvNd) -> dict[str, Any]:
    return {
        "stride": layer.stride,
        "padding": _padding(layer),
        "dilation": layer.dilation,
        "transposed": layer.transposed,
        "output_padding": layer.output_padding,
        "groups": layer.groups,
    }


def _padding(layer: _ConvNd) -> tuple[int, ...]:
    """Return the padding in numbers; `same` needs an odd reach on every axis."""
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    if layer.padding == "same":
        pairs = zip(layer.dilation, layer.kernel_size, strict=True)
        return tuple(d * (k - 1) // 2 for d, k in pairs)
    return tuple(int(side) for side in layer.padding)


def _is_pointwise(layer: _ConvNd) -> bool:
    ones = {*layer.kernel_size, *layer.stride, layer.groups}
    return ones == {1} and set(_padding(layer)) == {0}


def _convolution_backward(
    g: Tensor, x: Tensor, weight: Tensor, geometry: dict[str, Any], which: int
) -> Tensor:
    """Return one of the ordinary gradients of a convolution: 0 the input's, 1 the weight's."""
    mask = [which == 0, which == 1, False]
    gradients = torch.ops.aten.convolution_backward(
        g, x, weight, None, *(geometry[k] for k in ("stride", "padding", "dilation")),
        geometry["transposed"], geometry["output_padding"], geometry["groups"], mask,
    )  # fmt: skip
    gradient: Tensor = gradients[which]
    return gradient


def _weight_gradients(out: Tensor, into: Tensor, layer: _ConvNd) -> Tensor:
    """Return each scan's weight gradient `(N * O, I / groups, *kernel)`, as N groups of one call.

    Args:
        out: `(N, O, ...)`, the cotangent at the output of a plain convolution.
        into: `(N, I, ...)`, its input.
    """
    count, groups = len(out), layer.groups
    geometry = {**_geometry(layer), "transposed": False, "output_padding": (0,) * (out.dim() - 2)}
    shape = (count * out.shape[1], into.shape[1] // groups, *layer.kernel_size)
    return _convolution_backward(
        out.reshape(1, -1, *out.shape[2:]),
        into.reshape(1, -1, *into.shape[2:]),
        out.new_empty(1).expand(shape),
        {**geometry, "groups": count * groups},
        1,
    )


class _Linear:
    def forward(self, layer: nn.Linear, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return functional.linear(x, layer.weight, layer.bias), ()

    def backward(
        self, layer: nn.Linear, x: Tensor, kept: tuple[Tensor, ...], g: Tensor, needs_x: bool
    ) -> tuple[Tensor | None, Gradients]:
        weight = torch.einsum("n...o,n...i->noi", g, x)
        gx = g @ layer.weight if needs_x else None
        return gx, _with_bias(layer, weight, lambda: g.reshape(len(g), -1, g.shape[-1]).sum(1))


class _ChannelNorm:
    """Group norm, and instance norm as group norm with a group for each channel."""

    def forward(self, layer: Any, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = x.contiguous()
        y, mean, rstd = torch.native_group_norm(
            x, layer.weight, layer.bias, *_sizes(x), _groups(layer), layer.eps
        )
        return y, (mean, rstd)

    def backward(
        self, layer: Any, x: Tensor, kept: tuple[Tensor, ...], g: Tensor, needs_x: bool
    ) -> tuple[Tensor | None, Gradients]:
        (mean, rstd), groups = kept, _groups(layer)
        x, g = x.contiguous(), g.contiguous()
        gx = None
        if needs_x:
            gx = torch.ops.aten.native_group_norm_backward(
                g, x, mean, rstd, layer.weight, *_sizes(x), groups, [True, False, False]
            )[0]
        bias = g.flatten(2).sum(2)
        raw = torch.einsum("ncl,ncl->nc", g.flatten(2), x.flatten(2))
        spread = x.shape[1] // groups
        mean, rstd = (s.repeat_interleave(spread, 1).to(g) for s in (mean, rstd))
        return gx, _with_bias(layer, rstd * (raw - mean * bias), lambda: bias)


def _groups(layer: nn.GroupNorm | _InstanceNorm) -> int:
    return layer.num_groups if isinstance(layer, nn.GroupNorm) else layer.num_features


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], prod(x.shape[2:])


class _LayerNorm:
    def forward(self, layer: nn.LayerNorm, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, mean, rstd = torch.native_layer_norm(
            x, layer.normalized_shape, layer.weight, layer.bias, layer.eps
        )
        return y, (mean, rstd)

    def backward(
        self, layer: nn.LayerNorm, x: Tensor, kept: tuple[Tensor, ...], g: Tensor, needs_x: bool
    ) -> tuple[Tensor | None, Gradients]:
        mean, rstd = kept
        gx = None
        if needs_x:
            gx = torch.ops.aten.native_layer_norm_backward(
                g, x, layer.normalized_shape, mean, rstd, layer.weight, layer.bias,
                [True, False, False],
            )[0]  # fmt: skip
        flat = (len(x), -1, *layer.normalized_shape)
        weight = (g * (x - mean) * rstd).reshape(flat).sum(1)
        return gx, _with_bias(layer, weight, lambda: g.reshape(flat).sum(1))


class _PReLU:
    def forward(self, layer: nn.PReLU, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return functional.prelu(x, layer.weight), ()

    def backward(
        self, layer: nn.PReLU, x: Tensor, kept: tuple[Tensor, ...], g: Tensor, needs_x: bool
    ) -> tuple[Tensor | None, Gradients]:
        channels = [1, -1, *[1] * (x.dim() - 2)]
        slope = layer.weight.view(channels if x.dim() > 1 else [-1])
        gx = torch.where(x > 0, g, g * slope) if needs_x else None
        weight = (g * x.clamp(max=0)).reshape(len(x), x.shape[1] if x.dim() > 1 else 1, -1).sum(2)
        return gx, {"weight": weight.sum(1, keepdim=True) if layer.weight.numel() == 1 else weight}


class _Embedding:
    def forward(self, layer: nn.Embedding, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return functional.embedding(x, layer.weight, layer.padding_idx), ()

    def backward(
        self, layer: nn.Embedding, x: Tensor, kept: tuple[Tensor, ...], g: Tensor, needs_x: bool
    ) -> tuple[None, Gradients]:
        rows, size = x.reshape(len(x), -1), layer.embedding_dim
        weight = g.new_zeros(len(x), *layer.weight.shape)
        weight.scatter_add_(1, rows[..., None].expand(-1, -1, size), g.reshape(len(x), -1, size))
        if layer.padding_idx is not None:
            weight[:, layer.padding_idx] = 0
        return None, {"weight": weight}


def _rule_of(layer: nn.Module) -> Rule | None:
    """Return how a layer is done, None where it can't be done exactly."""
    for kind, rule, is_exact in _RULES:
        if isinstance(layer, kind):
            return rule if is_exact(layer) else None
    return None


def _plainly_padded(layer: _ConvNd) -> bool:
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return layer.padding_mode == "zeros" and not (layer.padding == "same" and any(r % 2 for r in reach))


def _always(layer: nn.Module) -> bool:
    return True


def _ordinary_embedding(layer: nn.Embedding) -> bool:
    return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse


_RULES: tuple[tuple[type[nn.Module], Rule, Callable[[Any], bool]], ...] = (
    (_ConvNd, _Convolution(), _plainly_padded),
    (nn.Linear, _Linear(), _always),
    (nn.GroupNorm, _ChannelNorm(), _always),
    (_InstanceNorm, _ChannelNorm(), _always),
    (nn.LayerNorm, _LayerNorm(), _always),
    (nn.PReLU, _PReLU(), _always),
    (nn.Embedding, _Embedding(), _ordinary_embedding),
)
