"""One model on two inputs: what a siamese network is made of."""

from collections.abc import Sequence
from typing import Generic, Self, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl import tree
from fundl._common.checks import models
from fundl.layer import Model
from fundl.layers._inside import Beside, Ts
from fundl.layers.batch_norm import Statistics
from fundl.layers.pairs import Pair, require_pair
from fundl.model import output_shape
from fundl.tree import Record

Kept = TypeVar("Kept", default=object)


@final
@attrs.frozen(eq=False)
class KeptOfBoth(Record, Generic[Kept]):
    """What layers kept of each of two inputs; a part of what `Shared` keeps for backward.

    Who looks for the statistics of batches in it, as `track` does, finds one for each BatchNorm: of both inputs together.
    """

    first: Kept
    second: Kept

    @override
    def trees_of(self, name: str) -> Sequence[object]:
        if name == "second":
            return ()
        first, second = (
            [record for record in tree.records(kept) if isinstance(record, Statistics)] for kept in (self.first, self.second)
        )
        return [_together(*pair) for pair in zip(first, second, strict=True)]


def _together(first: Statistics, second: Statistics) -> Statistics:
    """The statistics of two batches as one, by Chan, Golub and LeVeque: no large squares are subtracted."""
    count = first.count + second.count
    if not second.count or not first.count:
        return first if first.count else second
    of_all: Tensor | None = None
    share: float | Tensor = second.count / count
    if first.of_all is not None and second.of_all is not None:
        of_all = first.of_all + second.of_all
        share = (second.of_all / of_all.clamp(min=1)).to(first.mean.dtype)
    between = (second.mean - first.mean).square() * (share * (1 - share))
    var = torch.lerp(first.rstd.pow(-2), second.rstd.pow(-2), share) + between  # and eps, which both have
    return Statistics(torch.lerp(first.mean, second.mean, share), var.rsqrt(), count, of_all)


@final
@attrs.frozen(eq=False)
class Shared(Beside[KeptOfBoth, Pair, Pair], Generic[*Ts]):
    """One model for two inputs: y = (f(x1), f(x2)).

    What draws random numbers draws the same for both: it has one key. BatchNorm normalises each input by itself.

    Its vjp, with both uses of the parameters counted:

        grad_f1, grad_x1 = vjp(f, x1, grad_1),    grad_f2, grad_x2 = vjp(f, x2, grad_2),    grad_f = grad_f1 + grad_f2

    Args:
        layers: f, the layers one after the other; best given to `shared`, which checks them.

    Shape:
        a pair, each as f has it; they may be of different shapes

    Residuals:
        Those of the layers, for each input.

    Raises:
        TypeError: the input is not a pair of tensors.

    Source:
        Bromley, Guyon, LeCun, Säckinger and Shah, Signature verification using a "siamese" time delay neural network, 1993.
    """

    layers: tuple[*Ts]

    @override
    def forward(self, x: Pair) -> tuple[Pair, KeptOfBoth]:
        (y1, y2), kept = self._forward(*require_pair("shared", x))
        return (y1, y2), KeptOfBoth(*kept)

    @override
    def _models(self) -> tuple[object, ...]:
        return self.layers, self.layers

    @override
    def _place(self, index: int) -> str:
        return ".layers"

    @override
    def _apart(self, residuals: KeptOfBoth, grad: Pair) -> tuple[tuple[object, ...], Pair]:
        return (residuals.first, residuals.second), grad

    @override
    def _gradient(self, grads: Sequence[object]) -> Self:
        """The sum of the gradients of both uses; buffers stay as they are."""
        first, second = map(tree.trainable_leaves, grads)
        sums = [*map(torch.add, first, second)]  # vmap knows no foreach kernels
        return self.gradient(tree.with_trainable_leaves(grads[0], sums) if sums else grads[0])


def shared(*layers: *Ts) -> Shared[*Ts]:
    """A `Shared` of layers, or models, which are checked as by `compose`: y = (f(x1), f(x2)).

    Where the inputs go different ways after a common part, ``pipe(shared(f), both(g, h))`` is the model.

    A siamese network, which has one model's parameters and compares what it makes of two inputs:

    >>> from fundl import Multiply, Tanh, apply, initialize, key, linear, pipe, shared, tree
    >>> model = initialize(key(0), pipe(shared(linear(3, 8), Tanh()), Multiply(), linear(8, 1)))
    >>> apply(model, (torch.ones(10, 3), torch.zeros(10, 3))).shape, tree.count(model)
    (torch.Size([10, 1]), 41)
    """
    parts = models(*layers)
    output_shape(cast("Model", parts))  # `models` found each of them to be one
    return Shared(parts)
