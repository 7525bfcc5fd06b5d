"""Sharpness-aware minimization: steps by the gradient at the worst params nearby."""

from collections.abc import Callable
from typing import Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.numbers import positive
from fundl._common.suggestions import with_suggestions
from fundl.optim.flat import Tensors
from fundl.optim.search import Evaluate, Search
from fundl.optim.transform import S, Transform, require_transform
from fundl.tree import Splits


@final
@attrs.frozen
class _Sam(Search[S]):
    """See `sam`. Its state is that of the optimizer."""

    transform: Transform[S]
    radius: float = attrs.field(validator=positive)
    adaptive: bool
    by_run: bool = attrs.field(default=False, repr=False)  # whether the first axis is of runs, each with a radius of its own
    splits: Splits = attrs.field(default=(), repr=False)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> S:
        return self.transform.start(leaves, paths)

    @override
    def search(self, evaluate: Evaluate, value: Tensor, grads: Tensors, state: S, params: Tensors) -> tuple[Tensors, S]:
        _, worst = evaluate(self._worst(grads, params))
        return self.transform.move(worst, state, params)

    def _worst(self, grads: Tensors, params: Tensors) -> Tensors:
        """The params at the radius, uphill."""
        sizes = torch._foreach_abs(params) if self.adaptive else None
        slopes = grads if sizes is None else torch._foreach_mul(grads, sizes)
        ways = slopes if sizes is None else torch._foreach_mul(slopes, sizes)
        norm = self._norm(slopes)
        factor = self.radius / norm.clamp(min=1e-30)  # of a gradient of 0 it leads nowhere
        factors = [factor.reshape((*factor.shape, *[1] * (way.ndim - factor.ndim))).to(way) for way in ways]
        return torch._foreach_add(params, torch._foreach_mul(ways, factors))

    def _norm(self, tensors: Tensors) -> Tensor:
        if not self.by_run:
            return tree.norm_of(tensors, self.splits)
        norms = [torch.linalg.vector_norm(tensor.flatten(1), dim=1, dtype=torch.float64) for tensor in _with_axes(tensors)]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)  # (R,)
        return norm

    @override
    def for_runs(self, of_runs: Callable[[Transform[S]], Transform[S]]) -> Self:
        return attrs.evolve(self, transform=of_runs(self.transform), by_run=True)

    @override
    def loss_scale(self, state: S) -> Tensor | None:
        return self.transform.loss_scale(state)

    @override
    def weighed(self, weight: float | Tensor) -> Self:
        transform = self.transform.weighed(weight)
        return self if transform is self.transform else attrs.evolve(self, transform=transform)

    @override
    def divided(self, splits: Splits) -> Self:
        return attrs.evolve(self, transform=self.transform.divided(splits), splits=splits)

    @override
    def rest(self, state: S, params: Tensors) -> tuple[Tensors, S]:
        return self.transform.rest(state, params)


def _with_axes(tensors: Tensors) -> list[Tensor]:
    """The tensors of all runs, (R, ...), with one axis more where there is only that of runs."""
    return [tensor.unsqueeze(-1) if tensor.ndim == 1 else tensor for tensor in tensors]


@with_suggestions
def sam(optimizer: Transform[S], *, radius: float = 0.05, adaptive: bool = False) -> Search[S]:
    """Sharpness-aware minimization: the optimizer is given the gradient at the worst params within a radius.

        q = p + radius g / |g|,    or with `adaptive`    q = p + radius p^2 g / | |p| g |

    The optimizer makes its step from p by the gradient at q, of the same batch, with the same random numbers: so a step takes
    twice the time. Minima that are flat are found so, which often generalise better. The norms are those of all trainable
    elements together. What a step reports, and the statistics of `BatchNorm` that `track` follows, are those at p.

    It is the outermost of all transforms. Gradients that are not finite are left out by ``sam(skip_nonfinite(optimizer))``, and
    those of a scaled loss are found by ``sam(dynamic_loss_scale(optimizer))``. Params of 16 bits may be too coarse for a small
    radius: take `mixed_precision`.

    Args:
        optimizer: any other; its state is that of this one.
        radius: how far away the params are, above 0.
        adaptive: whether the radius is in proportion to each element of p; it is then larger, 0.5 to 2.

    Source:
        Foret, Kleiner, Mobahi and Neyshabur, Sharpness-aware minimization for efficiently improving generalization, 2021; Kwon,
        Kim, Park and Choi, ASAM, 2021 (adaptive).

    >>> from fundl import initialize, key, linear, mse, sam, sgd, train_state, train_step
    >>> optimizer = sam(sgd(0.1), radius=0.1)
    >>> state = train_state(key(1), initialize(key(0), linear(2, 1)), optimizer)
    >>> step, batch = train_step(mse, optimizer), (torch.ones(4, 2), torch.zeros(4, 1))
    >>> for _ in range(20):
    ...     state, report = step(state, batch)
    >>> bool(report.loss < 0.05)
    True
    """
    require_transform(optimizer)
    if isinstance(optimizer, Search):
        raise TypeError("sam goes around an optimizer that evaluates the loss nowhere else: not around sam or lbfgs")
    return _Sam(optimizer, radius, adaptive)
