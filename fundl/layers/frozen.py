"""Layers that are not trained: their parameters are held as buffers."""

from typing import Generic, Self, final

import attrs
from torch import Tensor
from typing_extensions import override

from fundl._common.checks import models
from fundl._common.place import Place
from fundl._common.stepping import first_cache, step_inside
from fundl.layers._inside import Around, Ts, fitting, forward_inside
from fundl.shapes import S, Through
from fundl.tree import BUFFER, describe


@final
@attrs.frozen(eq=False)
class Frozen(Around[None], Generic[*Ts]):
    """Layers that are not trained: y = f(x), whose parameters are buffers.

    No optimizer, no weight decay and no count of parameters sees them, and `backward` hands them back as they are. `initialize`
    draws those that have no values yet, and leaves others alone. All else is as ever: `rekey` gives keys to what drops
    elements, `save` stores them.

    Its vjp: grad_x = (df/dx)^T grad, without the work that the gradients of the parameters would be: see `backward_input`.

    Args:
        layers: f, the layers one after the other; best given to `frozen`, which checks them.

    Shape:
        that of f

    Residuals:
        Those of the layers.
    """

    takes_integers = True  # if the first layer does

    layers: tuple[*Ts] = attrs.field(metadata=BUFFER)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[object, None]]:
        y, residuals = forward_inside(self.layers, x)
        return y, (residuals, None)

    @override
    def first_cache(self, batch: int, length: int) -> object:
        return first_cache(self.layers, batch, length)

    @override
    def step(self, x: Tensor, cache: object, place: Place) -> tuple[Tensor, object]:
        return step_inside(self.layers, x, cache, place)

    @override
    def backward(self, residuals: tuple[object, None], grad: Tensor) -> tuple[Self, Tensor]:
        kept = [residuals]
        del residuals  # see `Around`
        return self, self.backward_input(kept.pop(), grad)

    @override
    def backward_params(self, residuals: tuple[object, None], grad: Tensor) -> Self:
        return self

    @override
    def output_shape(self, shape: S) -> Through[S, *Ts]:
        return Through(shape, self.layers)


def frozen(*layers: *Ts) -> Frozen[*Ts]:
    """A `Frozen` of layers, or models, which are checked as by `compose`: gradients flow through, and leave them as they are.

    A new head for a trained body:

    >>> from fundl import Tanh, compose, frozen, initialize, key, linear, tree
    >>> body = initialize(key(0), compose(linear(2, 25), Tanh()))
    >>> model = initialize(key(1), compose(frozen(*body), linear(25, 3)))
    >>> tree.count(body), tree.count(model), tree.equal(body, model[0].layers)
    (75, 78, True)
    """
    return fitting(Frozen(models(*layers)))


def thaw(layer: Frozen[*Ts]) -> tuple[*Ts]:
    """The layers that were frozen, to be trained again: a model, as `compose` makes it.

    Args:
        layer: what `frozen` made.

    >>> from fundl import compose, frozen, linear, thaw
    >>> model = compose(frozen(linear(2, 25)), linear(25, 3))
    >>> compose(*thaw(model[0]), *model[1:])
    (Linear(weight=float32[25, 2], bias=float32[25]), Linear(weight=float32[3, 25], bias=float32[3]))
    """
    given: object = layer
    if not isinstance(given, Frozen):
        raise TypeError(f"thaw takes what frozen(...) made, not {describe(given)}")
    return layer.layers
