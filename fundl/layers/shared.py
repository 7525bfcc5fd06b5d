"""One model on two inputs: what a siamese network is made of."""

from collections.abc import Sequence
from typing import Generic, cast, final

import attrs
import torch
from typing_extensions import TypeVar, TypeVarTuple, Unpack, override

from fundl import tree
from fundl.layer import Layer, Model
from fundl.layers._inside import backward_input_inside, backward_inside, backward_params_inside, forward_inside
from fundl.layers.batch_norm import Statistics
from fundl.layers.pairs import Pair, require_pair
from fundl.model import models, output_shape
from fundl.shapes import AnySize
from fundl.tree import Record

G = TypeVar("G")
Kept = TypeVar("Kept", default=object)
Ts = TypeVarTuple("Ts", default=Unpack[tuple[AnySize, ...]])


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
    share = second.count / count
    between = (second.mean - first.mean).square() * (share * (1 - share))
    var = torch.lerp(first.rstd.pow(-2), second.rstd.pow(-2), share) + between  # and eps, which both have
    return Statistics(torch.lerp(first.mean, second.mean, share), var.rsqrt(), count)


@final
@attrs.frozen(eq=False)
class Shared(Layer[KeptOfBoth, Pair, Pair], Generic[*Ts]):
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
        x1, x2 = require_pair("shared", x)
        y1, kept1 = forward_inside(self.layers, x1)
        y2, kept2 = forward_inside(self.layers, x2)
        return (y1, y2), KeptOfBoth(kept1, kept2)

    @override
    def backward(self, residuals: KeptOfBoth, grad: Pair) -> tuple["Shared[*Ts]", Pair]:
        kept = [residuals.first, residuals.second]
        del residuals  # so that those of each layer are freed once its backward has run: see fundl/model.py
        grads2, grad_x2 = backward_inside(self.layers, kept.pop(), grad[1])
        grads1, grad_x1 = backward_inside(self.layers, kept.pop(), grad[0])
        return Shared(_sum(grads1, grads2)), (grad_x1, grad_x2)

    @override
    def backward_params(self, residuals: KeptOfBoth, grad: Pair) -> "Shared[*Ts]":
        kept = [residuals.first, residuals.second]
        del residuals
        grads2 = backward_params_inside(self.layers, kept.pop(), grad[1])
        return Shared(_sum(backward_params_inside(self.layers, kept.pop(), grad[0]), grads2))

    @override
    def backward_input(self, residuals: KeptOfBoth, grad: Pair) -> Pair:
        kept1, kept2 = residuals.first, residuals.second
        return backward_input_inside(self.layers, kept1, grad[0]), backward_input_inside(self.layers, kept2, grad[1])


def _sum(grads1: G, grads2: G) -> G:
    """The sum of two gradients of one model; its buffers stay as they are."""
    leaves = tree.trainable_leaves(grads1)
    sums = [*map(torch.add, leaves, tree.trainable_leaves(grads2))]  # vmap knows no foreach kernels
    return tree.with_trainable_leaves(grads1, sums) if leaves else grads1


def shared(*layers: *Ts) -> Shared[*Ts]:
    """A `Shared`: one model for two inputs, y = (f(x1), f(x2)).

    Where the inputs go different ways after a common part, ``pipe(shared(f), both(g, h))`` is the model.

    Args:
        layers: layers, or models (tuples of layers).

    Raises:
        ValueError: there is no layer, or they do not fit together.
        TypeError: a part is not a layer.

    A siamese network, which has one model's parameters and compares what it makes of two inputs:

    >>> from fundl import Multiply, Tanh, apply, initialize, key, linear, pipe, shared, tree
    >>> model = initialize(key(0), pipe(shared(linear(3, 8), Tanh()), Multiply(), linear(8, 1)))
    >>> apply(model, (torch.ones(10, 3), torch.zeros(10, 3))).shape, tree.count(model)
    (torch.Size([10, 1]), 41)
    """
    parts = models(*layers)
    output_shape(cast("Model", parts))  # `models` found each of them to be one
    return Shared(parts)
