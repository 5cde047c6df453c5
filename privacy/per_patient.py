"""Exact gradients of each patient's loss, clipped and summed at about the speed of plain training.

Each layer that has parameters runs as an autograd function. In the backward pass it computes the
gradient of every scan separately, from the layer's input and cotangent (`privacy.layers.rules`). No
second backward pass runs, and networks stay unchanged. In-place activations and additions work; what
autograd refuses, an error refuses here too.

If a layer's gradients of all patients need more memory than its input and cotangent, only their norms
are kept. The clipped sum is then one more ordinary call, when every norm is known (the book-keeping of
Bu et al. 2023, DP Optimization on Large Model at Small Cost, https://arxiv.org/abs/2210.00038). If an
output has few positions, those norms come from inner products of positions, without the gradients (the
ghost norm of Li et al. 2022, Large Language Models Can Be Strong DP Learners,
https://arxiv.org/abs/2110.05679).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from privacy.layers.added_parameters import added_by, copied
from privacy.layers.rules import Convolution, Later, Linear, Rule, rule_of

TOGETHER = 8
"""Scans whose clipped gradients are added in their own type at most; more are added in float64, because
a float32 sum of thousands of patients moves in steps that exceed the bound on one patient."""
BLOCK = 4096
"""Size of blocks whose squares are summed in their own type; larger float32 sums lose digits."""

Loss = Callable[[Tensor, Tensor], Tensor]
Gradients = dict[str, Tensor]
"""Gradients by the parameter's name; the first axis is the patients."""


class UnsupportedLayer(ValueError):
    """A layer whose per-patient gradient can't be computed exactly; the message names it."""


def per_patient_gradients(
    network: nn.Module,
    loss: Loss,
    images: Tensor,
    targets: Tensor,
    patient_of: Tensor,
) -> Gradients:
    """Return for each parameter the gradients `(P, *shape)` of P patients' losses.

    A patient's loss is the mean over the patient's scans. Their gradients are summed *before* clipping:
    several scans make one unit of privacy.

    Args:
        loss: `(logits (N, ...), targets (N, ...)) -> (N,)`.
        images: `(N, 1, *spatial)`, all scans of each patient.
        patient_of: `(N,)`, each scan's patient as 0 ... P-1, each with at least one scan.

    Raises:
        UnsupportedLayer: a layer is of an unknown kind, mixes scans, or received no gradient.
        ValueError: the loss is not one number per scan.
    """
    book = _Book(patient_of, may_defer=False)
    _go_back(network, loss, images, targets, book)
    return book.whole


def clipped_sums(
    network: nn.Module,
    loss: Loss,
    images: Tensor,
    targets: Tensor,
    patient_of: Tensor,
    clip_factors: Callable[[Tensor], Tensor],
) -> Gradients:
    """Return for each parameter the sum over patients of their gradients times their clip factors.

    The same as clipping and summing `per_patient_gradients`, with less memory, and in float64. A patient
    whose factor is zero adds nothing, even if the patient's gradient is not finite.

    Args:
        clip_factors: the norms `(P,)` over all parameters -> the factors `(P,)`.
    """
    book = _Book(patient_of, may_defer=True)
    _go_back(network, loss, images, targets, book)
    with torch.no_grad():
        return book.sums(clip_factors(book.norms()))


def _go_back(network: nn.Module, loss: Loss, images: Tensor, targets: Tensor, book: "_Book") -> None:
    with _recording(network, book) as anchor:
        losses = loss(network(images), targets)
        if losses.shape != (len(images),):
            raise ValueError(
                f"Expected a loss of shape ({len(images)},), one number per scan, "
                f"got {tuple(losses.shape)}."
            )
        parameters = dict(network.named_parameters())
        beside = torch.autograd.grad(
            (losses * book.share.to(losses)).sum(), [anchor, *parameters.values()], allow_unused=True
        )[1:]
    for name, gradient in zip(parameters, beside, strict=True):
        if gradient is not None:
            raise UnsupportedLayer(f"{name} is used outside its own layer.")
        if name not in book.whole and name not in book.deferred:
            raise UnsupportedLayer(
                f"{name} received no gradient; per-patient clipping needs one for each parameter."
            )


@dataclass(frozen=True)
class _Deferred:
    """A parameter's gradients that are not kept: squared norms, and functions that recompute them."""

    squared_norms: Tensor
    of_each_scan: Callable[[], Tensor]
    of_all_scans: Callable[[Tensor], Tensor]


class _Book:
    """The gradients of one batch, parameter by parameter, filled in during the backward pass.

    `whole` holds gradients of patients `(P, *shape)`, `deferred` those that are too large to keep.
    """

    def __init__(self, patient_of: Tensor, *, may_defer: bool) -> None:
        scans = torch.bincount(patient_of)
        self.share = 1 / scans[patient_of]
        self.whole: Gradients = {}
        self.deferred: dict[str, _Deferred] = {}
        self._patient_of = patient_of
        self._num_patients = len(scans)
        positions = torch.arange(len(patient_of), device=patient_of.device)
        self._one_scan_each = torch.equal(patient_of, positions)
        self._may_defer = may_defer

    def enter(self, name: str, per_scan: Callable[[], Tensor], back: "_Back") -> None:
        """Enter a parameter's gradients of each scan; a layer that is used twice enters twice."""
        if name in self.deferred:
            self.whole[name] = self._by_patient(self.deferred.pop(name).of_each_scan())
        if name not in self.whole and self._may_defer and back.is_smaller_than_gradients(name):
            squared = back.ghost_norms() if self._one_scan_each else None
            if squared is None:
                squared = _squared_norms(self._by_patient(per_scan()))
            norms = squared.sqrt() + self._by_patient(back.rounding())
            self.deferred[name] = _Deferred(norms.square(), per_scan, back.all)
        else:
            self.enter_whole(name, per_scan())

    def enter_whole(self, name: str, per_scan: Tensor) -> None:
        """Enter a parameter's gradients of each scan `(N, *shape)`, which are kept."""
        mine = self._by_patient(per_scan)
        self.whole[name] = self.whole[name] + mine if name in self.whole else mine

    def norms(self) -> Tensor:
        """Return each patient's norm over all parameters, `(P,)` in float64."""
        squared = [_squared_norms(g) for g in self.whole.values()]
        squared += [deferred.squared_norms for deferred in self.deferred.values()]
        return torch.stack(squared).sum(0).sqrt()

    def sums(self, factors: Tensor) -> Gradients:
        """Return each parameter's sum over patients of gradient times factor."""
        counts = factors != 0
        sums = {}
        for name, g in self.whole.items():
            safe = g if counts.all() else g.where(_as_scans(counts, g), 0.0)
            parts = zip(_parts(factors.double()), _parts(safe.flatten(1)), strict=True)
            sums[name] = _added(f @ part.double() for f, part in parts).view(g.shape[1:])
        for name, deferred in self.deferred.items():
            sums[name] = deferred.of_all_scans(factors[self._patient_of])
        return sums

    def _by_patient(self, per_scan: Tensor) -> Tensor:
        if self._one_scan_each:
            return per_scan
        own = per_scan.new_zeros(self._num_patients, *per_scan.shape[1:])
        return own.index_add_(0, self._patient_of, per_scan)


@dataclass(frozen=True)
class _Back:
    """A layer in the backward pass: its input and cotangent."""

    layer: Any
    rule: Rule
    x: Tensor
    kept: tuple[Tensor, ...]
    g: Tensor

    def is_smaller_than_gradients(self, name: str) -> bool:
        """Return whether this is smaller than the gradients of a weight, and can replace them."""
        is_weight = name.rpartition(".")[2] == "weight"
        if not is_weight or not isinstance(self.rule, Convolution | Linear):
            return False
        numel: int = self.layer.weight.numel()
        return self.x.numel() + self.g.numel() < len(self.x) * numel

    def rounding(self) -> Tensor:
        """Return a bound on rounding errors in each scan's part of the summed weight gradient, `(N,)`.

        The norm is of exact gradients, the sum is computed in the layer's own type: if a scan's terms
        cancel, their rounding errors remain. |x| |g| bounds the sum of their sizes (Cauchy-Schwarz).
        """
        taps = prod(getattr(self.layer, "kernel_size", (1,)))
        x, g = (t.flatten(1).norm(dim=1) for t in (self.x, self.g))
        allowance: Tensor = torch.finfo(x.dtype).eps * taps**0.5 * (x * g).double()
        return allowance

    def ghost_norms(self) -> Tensor | None:
        """Return the squared norms `(N,)` of the weight's gradients from inner products.

        The gradient is a sum over positions of outer products g_l u_l, so its squared norm is the sum
        of (g_l . g_m)(u_l . u_m) over pairs of positions (Goodfellow 2015, Efficient Per-Example
        Gradient Computations, https://arxiv.org/abs/1510.01799; Li et al. 2022, cited at the top).
        It is in float64, since large terms may cancel. None if the gradients themselves are faster.
        """
        assert isinstance(self.rule, Convolution | Linear)
        if not self.rule.has_few_positions(self.layer, self.g):
            return None
        u, g = self.rule.positions(self.layer, self.x.double(), self.g.double())
        return (u @ u.mT * (g @ g.mT)).sum((1, 2)).clamp(min=0)

    def all(self, factors: Tensor) -> Tensor:
        """Return the sum over scans of the weight's gradient times the scan's factor `(N,)`, float64."""
        assert isinstance(self.rule, Convolution | Linear)
        x, g, counts = self.x, self.g, factors != 0
        if not counts.all():  # zero times NaN would be NaN
            x, g = (t.where(_as_scans(counts, t), 0.0) for t in (x, g))
        weighted = g * _as_scans(factors.to(g), g)
        parts = zip(_parts(x), _parts(weighted), strict=True)
        return _added(self.rule.summed(self.layer, *part).double() for part in parts)


def _parts(scans: Tensor) -> Sequence[Tensor]:
    return torch.split(scans, TOGETHER)


def _added(parts: Iterable[Tensor]) -> Tensor:
    first, *others = parts
    for part in others:
        first += part
    return first


def _squared_norms(gradients: Tensor) -> Tensor:
    """Return squared norms, `(P, *shape)` -> `(P,)`: norms of blocks, squares summed in float64."""
    flat = gradients.flatten(1)
    if flat.shape[1] <= BLOCK:
        norms: Tensor = flat.norm(dim=1)
        return norms.double().square()
    whole = flat.shape[1] // BLOCK * BLOCK
    blocks = flat[:, :whole].reshape(len(flat), -1, BLOCK).norm(dim=2)
    rest = flat[:, whole:].norm(dim=1, keepdim=True)
    squared: Tensor = torch.cat([blocks, rest], 1).double().square().sum(1)
    return squared


def _as_scans(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def check_layers(network: nn.Module) -> None:
    """Raise UnsupportedLayer, with its name, if a layer of `network` has no exact rule."""
    owners: dict[nn.Parameter, str] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm) or getattr(layer, "track_running_stats", False):
            raise UnsupportedLayer(
                f"{name} ({type(layer).__name__}) has statistics of the batch, which mix patients; "
                f"use group or instance norm."
            )
        own = dict(layer.named_parameters(recurse=False))
        if own and rule_of(layer) is None and not added_by(layer):
            raise UnsupportedLayer(f"{name} ({type(layer).__name__}) is of an unsupported kind.")
        for parameter in own.values():
            if owners.setdefault(parameter, name) != name:
                raise UnsupportedLayer(f"{name} shares a parameter with {owners[parameter]}.")
            if not parameter.requires_grad:
                raise UnsupportedLayer(f"{name} ({type(layer).__name__}) is frozen.")


@contextmanager
def _recording(network: nn.Module, book: _Book) -> Iterator[Tensor]:
    """Run the network's layers by their rules; yield the tensor that all their outputs depend on."""
    check_layers(network)
    anchor = torch.zeros((), requires_grad=True)
    diverted = []
    with ExitStack() as copies:
        try:
            for name, layer in network.named_modules():
                rule = rule_of(layer)
                if rule is not None and list(layer.parameters(recurse=False)):
                    layer.forward = _diverted(name, layer, rule, anchor, book)
                    diverted.append(layer)
                elif added_by(layer):
                    copies.enter_context(copied(layer, anchor, len(book.share), _kept(name, book)))
            yield anchor
        finally:
            for layer in diverted:
                del layer.__dict__["forward"]


def _kept(name: str, book: _Book) -> Callable[[str, Tensor], None]:
    prefix = f"{name}." if name else ""

    def keep(parameter: str, per_scan: Tensor) -> None:
        book.enter_whole(prefix + parameter, per_scan)

    return keep


def _diverted(
    name: str, layer: nn.Module, rule: Rule, anchor: Tensor, book: _Book
) -> Callable[..., Tensor]:
    prefix = f"{name}." if name else ""

    def keep(gradients: Later, back: _Back) -> None:
        for parameter, per_scan in gradients.items():
            book.enter(prefix + parameter, per_scan, back)

    def forward(x: Tensor | None = None, *rest: Any, **named: Any) -> Tensor:
        if x is None or any(extra is not None for extra in (*rest, *named.values())):
            raise UnsupportedLayer(f"{name} ({type(layer).__name__}) takes more than one input.")
        if len(x) != len(book.share):
            raise UnsupportedLayer(
                f"{name} ({type(layer).__name__}) sees {len(x)} rows of {len(book.share)} scans, so a "
                f"row is not a scan."
            )
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
        keep: Callable[[Later, _Back], None],
    ) -> Tensor:
        y, kept = rule.forward(layer, x)
        ctx.save_for_backward(x, *kept)
        ctx.layer, ctx.rule, ctx.keep = layer, rule, keep
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        x, *kept = (t.detach() for t in ctx.saved_tensors)  # a reference to ctx would keep all alive
        back = _Back(ctx.layer, ctx.rule, x, tuple(kept), g)
        gx, gradients = back.rule.backward(back.layer, x, back.kept, g, ctx.needs_input_grad[0])
        ctx.keep(gradients, back)
        return gx, None, None, None, None
