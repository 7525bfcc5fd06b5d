"""Layers with two inputs or two outputs: pairs of tensors, taken apart and put together.

Their types say so: a layer from a pair to a tensor is a ``Layer[..., tuple[Tensor, Tensor], Tensor]``, and `apply` and `vjp`
know what it takes and gives. A tuple of layers cannot say it, since a tuple's type is that of its parts: for a checker, models
made by `compose` take and give tensors. `pipe` makes a layer of layers that take and give anything, and a checker holds the
output of each against the input of the next.
"""

from typing import Generic, Self, cast, final, overload

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl import tree
from fundl._common.checks import models, require_model
from fundl._common.place import Place
from fundl._common.running import run_forward
from fundl._common.stepping import first_cache, run_step, step_inside
from fundl.layer import AnyLayer, Layer, Model
from fundl.layers._inside import Around, Beside, Sizes, Ts, forward_inside
from fundl.layers.cross_attention import require_with_memory
from fundl.model import Differentiable, output_shape
from fundl.tree import describe

Pair = tuple[Tensor, Tensor]

F = TypeVar("F", bound=Model)
G = TypeVar("G", bound=Model)
X = TypeVar("X")
Y = TypeVar("Y")


def require_pair(layer: str, x: object) -> Pair:
    """The input, once it is found to be a pair of tensors."""
    match x:
        case (Tensor() as first, Tensor() as second):
            return first, second
        case _:
            raise TypeError(f"{layer} takes a pair of tensors, (x1, x2), not {describe(x)}")


def _require_alike(layer: str, x: Pair) -> Pair:
    first, second = require_pair(layer, x)
    if first.shape != second.shape:
        raise ValueError(f"{layer} takes two tensors of one shape, not of {tuple(first.shape)} and {tuple(second.shape)}")
    return first, second


# --- Making a pair -----------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Duplicate(Layer[None, Tensor, Pair]):
    """The input twice: y = (x, x).

    Its vjp: grad_x = grad_1 + grad_2.

    Shape:
        any to a pair of the same

    Residuals:
        None.

    >>> from fundl import Duplicate, apply
    >>> apply(Duplicate(), torch.ones(1))
    (tensor([1.]), tensor([1.]))
    """

    @override
    def forward(self, x: Tensor) -> tuple[Pair, None]:
        return (x, x), None

    @override
    def backward(self, residuals: None, grad: Pair) -> tuple[Self, Tensor]:
        return self, grad[0] + grad[1]


@final
@attrs.frozen(eq=False)
class Both(Beside[tuple[object, ...], Pair, Pair], Generic[F, G]):
    """A model for each of two inputs: y = (f(x1), g(x2)).

    Its vjp: grad_f, grad_x1 = vjp(f, x1, grad_1) and grad_g, grad_x2 = vjp(g, x2, grad_2).

    Args:
        first: f, a layer or a tuple of layers; best given to `both`, which checks it.
        second: g, likewise.

    Shape:
        a pair, the first as f has it, the second as g has it

    Residuals:
        Those of f and of g.

    Raises:
        TypeError: the input is not a pair of tensors.
    """

    first: F
    second: G

    @override
    def forward(self, x: Pair) -> tuple[Pair, tuple[object, ...]]:
        (y1, y2), residuals = self._forward(*require_pair("both", x))
        return (y1, y2), residuals

    @override
    def first_cache(self, batch: int, length: int) -> object:
        return first_cache(self.first, batch, length)

    @override
    def step(  # type: ignore[override]  # behind the first positions there is no memory but what layers keep of it
        self, x: tuple[Tensor, Tensor | None], cache: object, place: Place
    ) -> tuple[tuple[Tensor, Tensor | None], object]:
        """See `Layer.step`. Positions go through f; g is run once, on what is given beside the first ones: a memory."""
        positions, given = require_with_memory("both", x)
        y, after = step_inside(self.first, positions, cache, place)
        if given is None:
            return (y, None), after
        memory, _ = forward_inside(self.second, given)
        return (y, memory), after


def both(first: F, second: G) -> Both[F, G]:
    """A `Both` of two models. One model for both inputs is `shared`; `Identity` leaves an input as it is.

    Raises:
        ValueError: a part is an empty tuple, or the layers of one do not fit together; or the two have a parameter in
            common, of which each would train a copy of its own.
        TypeError: a part is not a model.

    >>> from fundl import Identity, Tanh, apply, both
    >>> apply(both(Identity(), Tanh()), (torch.tensor([3.0]), torch.tensor([0.0])))
    (tensor([3.]), tensor([0.]))
    """
    for part in (first, second):
        require_model(part)
        output_shape(part)
    _require_apart(first, second)
    return Both(first, second)


def _require_apart(first: Model, second: Model) -> None:
    """Raise if two models have a parameter in common: a tree has each of its leaves for itself, and so would they."""
    of_first = {id(leaf) for leaf in tree.trainable_leaves(first)}
    paths = zip(tree.trainable_paths(second), tree.trainable_leaves(second), strict=True)
    if common := [path for path, leaf in paths if id(leaf) in of_first]:
        raise ValueError(
            f"the models of both(f, g) have a parameter in common, g{common[0]}, of which each would train a copy of its own:"
            " shared(f) is one model for both inputs, pipe(shared(f), both(g, h)) begins with one; for two models that begin"
            " alike, make the second of copies, tree.map(torch.clone, f)"
        )


# --- One of two --------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Add(Layer[None, Pair, Tensor]):
    """The sum of two inputs: y = x1 + x2.

    Its vjp: grad_x1 = grad_x2 = grad.

    Shape:
        a pair of any shape to that shape

    Residuals:
        None.

    Raises:
        TypeError: the input is not a pair of tensors.
        ValueError: they are of different shapes.

    >>> from fundl import Add, apply
    >>> apply(Add(), (torch.tensor([3.0]), torch.tensor([1.0])))
    tensor([4.])
    """

    @override
    def forward(self, x: Pair) -> tuple[Tensor, None]:
        x1, x2 = _require_alike("Add", x)
        return x1 + x2, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Pair]:
        return self, (grad, grad)


@final
@attrs.frozen(eq=False)
class Multiply(Layer[Pair, Pair, Tensor]):
    """The product of two inputs, number by number: y = x1 x2.

    Its vjp: grad_x1 = grad x2, grad_x2 = grad x1.

    Shape:
        a pair of any shape to that shape

    Residuals:
        The inputs, shared, not copied.

    Raises:
        TypeError: the input is not a pair of tensors.
        ValueError: they are of different shapes.

    >>> from fundl import Multiply, apply
    >>> apply(Multiply(), (torch.tensor([3.0]), torch.tensor([2.0])))
    tensor([6.])
    """

    @override
    def forward(self, x: Pair) -> tuple[Tensor, Pair]:
        x1, x2 = _require_alike("Multiply", x)
        return x1 * x2, x

    @override
    def backward(self, residuals: Pair, grad: Tensor) -> tuple[Self, Pair]:
        x1, x2 = residuals
        return self, (grad * x2, grad * x1)


@final
@attrs.frozen(eq=False)
class Concatenate(Layer[Sizes, Pair, Tensor]):
    """Two inputs, one behind the other along an axis: y = [x1, x2].

    Its vjp: grad_x1 and grad_x2 are the parts of grad.

    Args:
        axis: the last by default.

    Shape:
        (..., n) and (..., m) to (..., n + m) for the last axis

    Residuals:
        The sizes of the inputs: no bytes.

    Raises:
        TypeError: the input is not a pair of tensors.
        ValueError: they differ in another axis, or have no such axis.

    >>> from fundl import Concatenate, apply
    >>> apply(Concatenate(), (torch.tensor([[3.0]]), torch.tensor([[1.0, 2.0]])))
    tensor([[3., 1., 2.]])
    """

    axis: int = -1

    @override
    def forward(self, x: Pair) -> tuple[Tensor, Sizes]:
        x1, x2 = require_pair("Concatenate", x)
        try:
            y = torch.cat((x1, x2), self.axis)
        except (IndexError, RuntimeError) as error:
            raise ValueError(
                f"Concatenate(axis={self.axis}) takes two tensors that have this axis, and differ in no other, not of the"
                f" shapes {tuple(x1.shape)} and {tuple(x2.shape)}"
            ) from error
        return y, Sizes((x1.shape[self.axis], x2.shape[self.axis]))

    @override
    def backward(self, residuals: Sizes, grad: Tensor) -> tuple[Self, Pair]:
        grad1, grad2 = torch.split_with_sizes(grad, residuals.sizes, self.axis)
        return self, (grad1, grad2)


# --- A pipe ------------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Pipe(Around[None, X, Y, X], Generic[X, Y, *Ts]):
    """Layers one after the other, as one layer of which a checker knows what it takes and gives: y = f_n(... f_2(f_1(x))).

    Its vjp: that of the layers, from the last to the first.

    Args:
        layers: f_1, f_2, ...; best given to `pipe`, which checks them.

    Shape:
        that of the layers

    Residuals:
        Those of the layers.
    """

    takes_integers = True  # if the first layer does

    layers: tuple[*Ts]

    @override
    def forward(self, x: X) -> tuple[Y, tuple[object, None]]:
        y, residuals = run_forward(cast("Model", self.layers), x)  # `pipe` saw that they are layers
        return cast("Y", y), (residuals, None)  # and that the last one gives it

    @override
    def first_cache(self, batch: int, length: int) -> object:
        return first_cache(self.layers, batch, length)

    @override
    def step(self, x: X, cache: object, place: Place) -> tuple[Y, object]:
        y, after = run_step(self.layers, x, cache, place)
        return cast("Y", y), after


L1 = TypeVar("L1")
L2 = TypeVar("L2")
L3 = TypeVar("L3")
L4 = TypeVar("L4")
L5 = TypeVar("L5")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")


@overload
def pipe(first: Differentiable[L1, X, Y], /) -> Pipe[X, Y, L1]: ...
@overload
def pipe(first: Differentiable[L1, X, A], second: Differentiable[L2, A, Y], /) -> Pipe[X, Y, L1, L2]: ...
@overload
def pipe(
    first: Differentiable[L1, X, A], second: Differentiable[L2, A, B], third: Differentiable[L3, B, Y], /
) -> Pipe[X, Y, L1, L2, L3]: ...
@overload
def pipe(
    first: Differentiable[L1, X, A],
    second: Differentiable[L2, A, B],
    third: Differentiable[L3, B, C],
    fourth: Differentiable[L4, C, Y],
    /,
) -> Pipe[X, Y, L1, L2, L3, L4]: ...
@overload
def pipe(
    first: Differentiable[L1, X, A],
    second: Differentiable[L2, A, B],
    third: Differentiable[L3, B, C],
    fourth: Differentiable[L4, C, D],
    fifth: Differentiable[L5, D, Y],
    /,
) -> Pipe[X, Y, L1, L2, L3, L4, L5]: ...
def pipe(*layers: object) -> AnyLayer:
    """A `Pipe` of up to five layers, each of which takes what the one before it gives: a pair of tensors, say.

    Where all is of tensors, `compose` does as much and more. The layers are checked as by it; a pipe may hold pipes.

    A model of two inputs:

    >>> from fundl import Concatenate, apply, both, initialize, key, linear, pipe
    >>> model = initialize(key(0), pipe(both(linear(2, 8), linear(3, 8)), Concatenate(), linear(16, 1)))
    >>> apply(model, (torch.ones(10, 2), torch.ones(10, 3))).shape
    torch.Size([10, 1])
    """
    parts = models(*layers)
    output_shape(cast("Model", parts))  # `models` found each of them to be one
    return Pipe(parts)
