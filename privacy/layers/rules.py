"""Rules for layers: the forward pass of each kind, and the gradients of each scan in its backward pass.

The rule of a convolution is one call of the ordinary backward kernel. It folds the batch into the
channels, so that each scan is its own group and nothing is unfolded (Rochette et al. 2019, Efficient
Per-Example Gradient Computations in CNNs, section 3.1, https://arxiv.org/abs/1912.06015).
"""

from collections.abc import Callable
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

Later = dict[str, Callable[[], Tensor]]
"""By parameter, a function that computes its gradients of each scan, `(N, *shape)`."""


class Rule(Protocol):
    """The forward pass of one kind of layer, and the gradients of its input and its parameters."""

    def forward(self, layer: Any, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the output, and the tensors that `backward` needs beside the input."""

    def backward(
        self, layer: Any, x: Tensor, kept: tuple[Tensor, ...], g: Tensor, needs_x: bool
    ) -> tuple[Tensor | None, Later]:
        """Return the input's gradient, if needed, and each parameter's gradient per scan."""


def _with_bias(layer: nn.Module, weight: Callable[[], Tensor], bias: Callable[[], Tensor]) -> Later:
    return {"weight": weight} if layer.bias is None else {"weight": weight, "bias": bias}


class Convolution:
    """The rule for convolutions, transposed ones included."""

    def forward(self, layer: _ConvNd, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the output; nothing else is kept."""
        y = torch.convolution(x, layer.weight, layer.bias, **_geometry(layer))
        return y, ()

    def backward(
        self, layer: _ConvNd, x: Tensor, kept: tuple[Tensor, ...], g: Tensor, needs_x: bool
    ) -> tuple[Tensor | None, Later]:
        """Return the input's gradient, if needed, and each parameter's gradient per scan."""
        gx = _convolution_backward(g, x, layer.weight, _geometry(layer), 0) if needs_x else None

        def weight() -> Tensor:
            if isinstance(layer, _ConvTransposeNd):
                # A transposed convolution is the adjoint of one that takes the cotangent to the input.
                flat = _weight_gradients(x, g, layer)
            elif _is_pointwise(layer):
                flat = torch.bmm(g.flatten(2), x.flatten(2).transpose(1, 2))
            else:
                flat = _weight_gradients(g, x, layer)
            return flat.reshape(len(x), *layer.weight.shape)

        return gx, _with_bias(layer, weight, lambda: g.flatten(2).sum(2))

    def has_few_positions(self, layer: _ConvNd, g: Tensor) -> bool:
        """Return whether inner products of positions are less work than the gradients."""
        return not layer.transposed and layer.groups == 1 and 2 * prod(g.shape[2:]) <= g.shape[1]

    def positions(self, layer: Any, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight's input at each of L positions, `(N, L, I * kernel)`, and the cotangent
        at each, `(N, L, O)`."""
        if _is_pointwise(layer):
            return x.flatten(2).mT, g.flatten(2).mT
        margins = [side for side in reversed(_padding(layer)) for _ in range(2)]
        windows, dims = functional.pad(x, margins), x.dim() - 2
        for axis in range(dims):
            reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
            windows = windows.unfold(2 + axis, reach, layer.stride[axis])
            windows = windows[..., :: layer.dilation[axis]]
        order = [0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims)]
        at_each = windows.permute(order).reshape(len(x), prod(g.shape[2:]), -1)
        return at_each, g.flatten(2).mT

    def summed(self, layer: Any, x: Tensor, g: Tensor) -> Tensor:
        """Return the weight's gradient summed over scans, as plain training takes it."""
        return _convolution_backward(g, x, layer.weight, _geometry(layer), 1)


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
    """Return the padding in numbers; `same` needs an even d * (k - 1) on every axis."""
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
    """Return one of the ordinary gradients of a convolution: 0 for the input, 1 for the weight."""
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


class Linear:
    """The rule for linear layers, on vectors and on sequences of them."""

    def forward(self, layer: nn.Linear, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the output; nothing else is kept."""
        return functional.linear(x, layer.weight, layer.bias), ()

    def backward(
        self, layer: nn.Linear, x: Tensor, kept: tuple[Tensor, ...], g: Tensor, needs_x: bool
    ) -> tuple[Tensor | None, Later]:
        """Return the input's gradient, if needed, and each parameter's gradient per scan."""
        gx = g @ layer.weight if needs_x else None
        return gx, _with_bias(
            layer,
            lambda: torch.einsum("n...o,n...i->noi", g, x),
            lambda: g.reshape(len(g), -1, g.shape[-1]).sum(1),
        )

    def has_few_positions(self, layer: nn.Linear, g: Tensor) -> bool:
        """Return whether inner products of positions are less work than the gradients."""
        return 2 * prod(g.shape[1:-1]) <= g.shape[-1]

    def positions(self, layer: Any, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return input and cotangent at each of L positions, `(N, L, I)` and `(N, L, O)`."""
        return x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1])

    def summed(self, layer: Any, x: Tensor, g: Tensor) -> Tensor:
        """Return the weight's gradient summed over scans, as plain training takes it."""
        return torch.einsum("n...o,n...i->oi", g, x)


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
    ) -> tuple[Tensor | None, Later]:
        # The batch is folded into the channels: one scan with the channels of all scans.
        count, channels, positions = _sizes(x)
        mean, rstd = (s.reshape(1, -1) for s in kept)
        gx, weight, bias = torch.ops.aten.native_group_norm_backward(
            g.contiguous(), x.contiguous(), mean, rstd, layer.weight.repeat(count),
            1, count * channels, positions, count * _groups(layer), [needs_x, True, True],
        )  # fmt: skip
        shape = (count, channels)
        gx = gx.reshape(x.shape) if needs_x else None
        return gx, _with_bias(layer, lambda: weight.reshape(shape), lambda: bias.reshape(shape))


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
    ) -> tuple[Tensor | None, Later]:
        mean, rstd = kept
        gx = None
        if needs_x:
            gx = torch.ops.aten.native_layer_norm_backward(
                g, x, layer.normalized_shape, mean, rstd, layer.weight, layer.bias,
                [True, False, False],
            )[0]  # fmt: skip
        flat = (len(x), -1, *layer.normalized_shape)
        return gx, _with_bias(
            layer,
            lambda: (g * (x - mean) * rstd).reshape(flat).sum(1),
            lambda: g.reshape(flat).sum(1),
        )


class _PReLU:
    def forward(self, layer: nn.PReLU, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return functional.prelu(x, layer.weight), ()

    def backward(
        self, layer: nn.PReLU, x: Tensor, kept: tuple[Tensor, ...], g: Tensor, needs_x: bool
    ) -> tuple[Tensor | None, Later]:
        if layer.weight.numel() == 1:
            slope = layer.weight.item()
            gx = torch.ops.aten.leaky_relu_backward(g, x, slope, False) if needs_x else None
            return gx, {"weight": lambda: self._products(g.flatten(1), x.flatten(1))}
        slopes = layer.weight.view(1, -1, *[1] * (x.dim() - 2))
        gx = torch.where(x > 0, g, g * slopes) if needs_x else None
        shape = (len(x) * x.shape[1], -1)
        return gx, {
            "weight": lambda: self._products(g.reshape(shape), x.reshape(shape)).view(len(x), -1)
        }

    def _products(self, g: Tensor, x: Tensor) -> Tensor:
        """Return each row's sum of the cotangent times the input where that is negative, `(R, 1)`."""
        return torch.bmm(g[:, None], x.clamp(max=0)[:, :, None])[:, 0]


class _Embedding:
    def forward(self, layer: nn.Embedding, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return functional.embedding(x, layer.weight, layer.padding_idx), ()

    def backward(
        self, layer: nn.Embedding, x: Tensor, kept: tuple[Tensor, ...], g: Tensor, needs_x: bool
    ) -> tuple[None, Later]:
        def weight() -> Tensor:
            rows, size = x.reshape(len(x), -1), layer.embedding_dim
            whole = g.new_zeros(len(x), *layer.weight.shape)
            whole.scatter_add_(1, rows[..., None].expand(-1, -1, size), g.reshape(len(x), -1, size))
            if layer.padding_idx is not None:
                whole[:, layer.padding_idx] = 0
            return whole

        return None, {"weight": weight}


def rule_of(layer: nn.Module) -> Rule | None:
    """Return the rule of a layer; None if no rule is exact for it."""
    for kind, rule, is_exact in _RULES:
        if isinstance(layer, kind):
            return rule if is_exact(layer) and _runs_as_torch_has_it(layer) else None
    return None


def _runs_as_torch_has_it(layer: nn.Module) -> bool:
    """Return whether a layer's forward pass is torch's own, not that of a subclass or an instance."""
    for method in ("forward", "_conv_forward"):
        owner = next((c for c in type(layer).__mro__ if method in vars(c)), None)
        if method in vars(layer) or (owner and not owner.__module__.startswith("torch.nn.modules.")):
            return False
    return True


def _plainly_padded(layer: _ConvNd) -> bool:
    if layer.transposed and any(o >= s for o, s in zip(layer.output_padding, layer.stride, strict=True)):
        return False
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return layer.padding_mode == "zeros" and not (layer.padding == "same" and any(r % 2 for r in reach))


def _always(layer: nn.Module) -> bool:
    return True


def _ordinary_embedding(layer: nn.Embedding) -> bool:
    return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse


_RULES: tuple[tuple[type[nn.Module], Rule, Callable[[Any], bool]], ...] = (
    (_ConvNd, Convolution(), _plainly_padded),
    (nn.Linear, Linear(), _always),
    (nn.GroupNorm, _ChannelNorm(), _always),
    (_InstanceNorm, _ChannelNorm(), _always),
    (nn.LayerNorm, _LayerNorm(), _always),
    (nn.PReLU, _PReLU(), _always),
    (nn.Embedding, _Embedding(), _ordinary_embedding),
)
