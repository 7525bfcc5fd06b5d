"""Layers that rearrange their input, and layers made of layers: residual, parallel, checkpoint.

A layer made of layers holds them in a tuple, typed part by part, and so is its gradient: ``grads.layers[0].weight``.
"""

import functools
import math
from collections.abc import Sequence
from typing import ClassVar, Generic, Literal, Self, cast, final, overload

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl import tree
from fundl._common.checks import models
from fundl._common.place import Place
from fundl._common.stepping import first_cache, step_inside
from fundl._common.suggestions import with_suggestions
from fundl.layer import Layer
from fundl.layers._inside import Around, Beside, Sizes, Ts, fitting, forward_inside
from fundl.layers._same_shape import SameShape
from fundl.layers.batch_norm import Statistics
from fundl.shapes import AnyShape, AnySize, Batch, Joined, Kept, Product, Reshaped, Rest, S, Shape, Through

# --- Rearranging -------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Identity(SameShape, Layer[None]):
    """The input itself: y = x, where a layer is due and none is wanted.

    Its vjp: grad_x = grad.

    Shape:
        any, kept

    Residuals:
        None.

    >>> from fundl import Identity, apply
    >>> apply(Identity(), torch.ones(2))
    tensor([1., 1.])
    """

    elementwise = True
    counterpart = "Identity"
    usual_gain: ClassVar[float] = 1.0
    takes_integers = True

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad


Start = TypeVar("Start", bound=int, covariant=True, default=AnySize)


@final
@attrs.frozen(eq=False)
class Flatten(Layer[Sizes], Generic[Start]):
    """Makes one axis of all axes from `start` on, in row-major order.

    Its vjp: grad_x is grad in the shape of x.

    Args:
        start: the first of the axes to join; 1, the first after the batch, by default. Negative: counted from the end.

    Shape:
        (B, d1, d2, ...) to (B, d1 d2 ...) for start = 1

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        ValueError: the input has no such axis.

    >>> from fundl import Flatten, apply
    >>> apply(Flatten(), torch.zeros(10, 3, 8, 8)).shape
    torch.Size([10, 192])
    """

    counterpart = "Flatten(start_dim=start)"
    takes_integers = True

    start: int = 1

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Sizes]:
        if not -x.ndim <= self.start < x.ndim:
            raise ValueError(
                f"Flatten(start={self.start}) needs an input that has this axis, but the input's shape is {tuple(x.shape)}:"
                f" its number of axes is {x.ndim}"
            )
        return torch.flatten(x, self.start), Sizes(x.shape)

    @override
    def backward(self, residuals: Sizes, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad.reshape(residuals.sizes)

    @overload
    def output_shape(self: "Flatten[Literal[1]]", shape: Shape[Batch, *Rest]) -> Shape[Batch, Product[*Rest]]: ...
    @overload
    def output_shape(self, shape: AnyShape) -> AnyShape: ...
    @override
    def output_shape(self, shape: AnyShape) -> AnyShape:
        sizes = shape.leading(self.start + 1) if self.start >= 0 else shape.trailing(-self.start)
        return Shape(*sizes[: self.start], Product.of(*sizes[self.start :]))


Shape_ = TypeVar("Shape_", bound=tuple[int, ...], covariant=True, default=AnySize)


@final
@attrs.frozen(eq=False)
class Reshape(Layer[Sizes], Generic[Shape_]):
    """Gives each example of a batch another shape, in row-major order.

    Its vjp: grad_x is grad in the shape of x.

    Args:
        shape: of one example, without the axis of the batch. One size may be -1: it is found from the others.

    Shape:
        (B, ...) to (B, *shape)

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        TypeError: the shape is not a tuple.
        ValueError: a size is negative, or there is more than one -1; or the input's examples have another number of elements.

    >>> from fundl import Reshape, apply
    >>> apply(Reshape((3, -1)), torch.zeros(10, 12)).shape
    torch.Size([10, 3, 4])
    """

    takes_integers = True

    shape: tuple[int, ...]

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.shape, tuple):
            raise TypeError(f"Reshape's shape is a tuple of integers, such as (3, 8, 8), not {self.shape!r}")
        if any(size < -1 for size in self.shape) or self.shape.count(-1) > 1:
            raise ValueError(f"Reshape's sizes must be 0 or more, and at most one of them -1, not {self.shape}")

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Sizes]:
        return torch.reshape(x, (*x.shape[:1], *self._sizes(x))), Sizes(x.shape)

    @override
    def backward(self, residuals: Sizes, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad.reshape(residuals.sizes)

    @override
    def output_shape(self, shape: Shape[Batch, *Rest]) -> Reshaped[Batch, Shape_, *Rest]:
        batch, *rest = shape.leading(1)
        return Reshaped(batch, self.shape, *rest)

    def _sizes(self, x: Tensor) -> tuple[int, ...]:
        """The shape without -1, found from one example: a batch without examples could not tell."""
        if x.ndim == 0:
            raise ValueError(f"Reshape({self.shape}) needs a batch of examples, but the input is a single number, of shape ()")
        count = math.prod(x.shape[1:])
        known = math.prod(size for size in self.shape if size != -1)
        sizes = tuple(count // max(known, 1) if size == -1 else size for size in self.shape)
        if math.prod(sizes) != count:
            raise ValueError(
                f"Reshape({self.shape}) does not fit the input's shape {tuple(x.shape)}: an example has {count} elements"
            )
        return sizes


# --- Residual ----------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Residual(Around[None], Generic[*Ts]):
    """Layers around which the input flows past: y = x + f(x), with f the layers one after the other.

    Its vjp: grad_layers, grad_f = vjp(f, x, grad), and grad_x = grad + grad_f.

    Args:
        layers: f; best given to `residual`, which checks them.

    Shape:
        any that f keeps

    Residuals:
        Those of the layers.

    Raises:
        ValueError: f changes the shape of its input.

    Source:
        He, Zhang, Ren and Sun, Deep residual learning for image recognition, 2015.
    """

    layers: tuple[*Ts]

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[object, None]]:
        output, residuals = forward_inside(self.layers, x)
        if output.shape != x.shape:
            raise ValueError(
                f"residual adds its input and the output of its layers, which must be of one shape, but the input is"
                f" {tuple(x.shape)} and the output {tuple(output.shape)}"
            )
        return x + output, (residuals, None)

    @override
    def first_cache(self, batch: int, length: int) -> object:
        return first_cache(self.layers, batch, length)

    @override
    def step(self, x: Tensor, cache: object, place: Place) -> tuple[Tensor, object]:
        y, after = step_inside(self.layers, x, cache, place)
        return x + y, after

    @override
    def _grad_x(self, own: None, grad: Tensor, grad_inside: Tensor) -> Tensor:
        return grad + grad_inside

    @override
    def output_shape(self, shape: S) -> Kept[S, *Ts]:
        return Kept(shape, self.layers)


def residual(*layers: *Ts) -> Residual[*Ts]:
    """A `Residual` of layers, or models: y = x + f(x). They are checked as by `compose`.

    >>> from fundl import Linear, apply, residual
    >>> double = Linear(weight=torch.tensor([[2.0]]), bias=None)
    >>> apply(residual(double, double), torch.tensor([[1.0]]))
    tensor([[5.]])
    """
    return fitting(Residual(models(*layers)))


# --- Parallel ----------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Parallel(Beside[tuple[Sizes | None, tuple[object, ...]]], Generic[*Ts]):
    """Branches that see the same input, and whose outputs are joined: y = f1(x) + f2(x) + ..., or y = [f1(x), f2(x), ...].

    Its vjp, with grad_i = grad for a sum, and otherwise the part of grad that belongs to the branch's output:

        grad_branch_i, grad_x_i = vjp(f_i, x, grad_i),    grad_x = grad_x_1 + grad_x_2 + ...

    Args:
        branches: f1, f2, ..., each a layer or a tuple of layers; best given to `parallel`, which checks them.
        join: "sum", the default, or "concatenate".
        axis: along which outputs are concatenated; the last by default. A sum has no use for it.

    Shape:
        any that each branch takes; to the branches' common shape for a sum; concatenated, to shapes alike but for the axis

    Residuals:
        Those of the branches. The sizes of what is concatenated: no bytes.

    Raises:
        ValueError: `join` is something else, or the outputs cannot be joined.

    Source:
        Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke and Rabinovich, Going deeper with convolutions, 2014.
    """

    takes_integers = True  # if the branches do

    branches: tuple[*Ts]
    join: Literal["sum", "concatenate"] = attrs.field(default="sum", kw_only=True)
    axis: int = attrs.field(default=-1, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.join not in {"sum", "concatenate"}:
            raise ValueError(f"parallel's join must be 'sum' or 'concatenate', not {self.join!r}")

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Sizes | None, tuple[object, ...]]]:
        outputs, kept = self._forward(*[x] * len(self.branches))
        if self.join == "sum":
            _require_one_shape(outputs)
            return functools.reduce(torch.add, outputs), (None, kept)
        _require_one_shape_but_for(self.axis, outputs)
        return torch.cat([*outputs], self.axis), (Sizes(tuple(output.shape[self.axis] for output in outputs)), kept)

    @override
    def first_cache(self, batch: int, length: int) -> object:
        if self.join == "concatenate" and self.axis not in {-1, 2}:
            raise TypeError(f"parallel(..., axis={self.axis}) cannot be run a position at a time: it does not join features")
        return tuple(self._each(lambda model: first_cache(model, batch, length)))

    @override
    def step(self, x: Tensor, cache: object, place: Place) -> tuple[Tensor, object]:
        own = iter(cast("tuple[object, ...]", cache))
        outputs, after = zip(*self._each(lambda model: step_inside(model, x, next(own), place)), strict=True)
        return functools.reduce(torch.add, outputs) if self.join == "sum" else torch.cat(outputs, self.axis), after

    @override
    def _models(self) -> tuple[object, ...]:
        return self.branches

    @override
    def _place(self, index: int) -> str:
        return f".branches[{index}]"

    @override
    def _apart(
        self, residuals: tuple[Sizes | None, tuple[object, ...]], grad: Tensor
    ) -> tuple[tuple[object, ...], Sequence[Tensor]]:
        sizes, kept = residuals
        return kept, [grad] * len(kept) if sizes is None else torch.split_with_sizes(grad, sizes.sizes, self.axis)

    @override
    def _grad_x(self, grads_x: Sequence[Tensor]) -> Tensor:
        return functools.reduce(torch.add, grads_x)

    @override
    def _gradient(self, grads: Sequence[object]) -> Self:
        return self.gradient(tuple(grads))

    @override
    def output_shape(self, shape: S) -> Joined[S, *Ts]:
        return Joined(shape, self.branches, join=self.join, axis=self.axis)


def _require_one_shape(outputs: Sequence[Tensor]) -> None:
    shapes = [tuple(output.shape) for output in outputs]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            "parallel adds the outputs of its branches, which must be of one shape, but they are"
            f" {', '.join(map(str, shapes))}: give the branches one size, or join them with join='concatenate'"
        )


def _require_one_shape_but_for(axis: int, outputs: Sequence[Tensor]) -> None:
    """Raise unless the outputs have the axis, and differ in the size of no other."""
    shapes = [tuple(output.shape) for output in outputs]
    rests = [(*shape[:axis], *shape[axis:][1:]) for shape in shapes]
    if any(rest != rests[0] for rest in rests) or not all(-len(shape) <= axis < len(shape) for shape in shapes):
        raise ValueError(
            f"parallel concatenates the outputs of its branches along axis {axis}, which all must have, and no other size may"
            f" differ, but they are {', '.join(map(str, shapes))}"
        )


@with_suggestions
def parallel(*branches: *Ts, join: Literal["sum", "concatenate"] = "sum", axis: int = -1) -> Parallel[*Ts]:
    """A `Parallel` of branches, each a layer or a model, with its options. They are checked as by `compose`.

    >>> from fundl import Identity, ReLU, apply, parallel
    >>> apply(parallel(Identity(), ReLU(), join="concatenate"), torch.tensor([[-1.0, 2.0]]))
    tensor([[-1.,  2.,  0.,  2.]])
    """
    return fitting(Parallel(models(*branches), join=join, axis=axis))


# --- Checkpoint --------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Checkpoint(Around[tuple[Statistics, ...]], Generic[*Ts]):
    """Layers that keep nothing but their input, and run forward a second time in backward: y = f(x).

    Memory for time. Forward is pure, so that the second run repeats the first to the bit; dropout draws the same mask, as
    its key is a part of the layer. It pays where residuals are large and forward is cheap: at the blocks of a deep model.

    Its vjp: that of f.

    Args:
        layers: f; best given to `checkpoint`, which checks them.

    Shape:
        that of f

    Residuals:
        The input, not copied; and what `track` asks for: the statistics of each BatchNorm inside, 2 numbers per channel.

    Source:
        Chen, Xu, Zhang and Guestrin, Training deep nets with sublinear memory cost, 2016.
    """

    takes_integers = True  # if the first layer does

    layers: tuple[*Ts]

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, tuple[Statistics, ...]]]:
        output, residuals = forward_inside(self.layers, x)
        return output, (x, tuple(record for record in tree.records(residuals) if isinstance(record, Statistics)))

    @override
    def first_cache(self, batch: int, length: int) -> object:
        return first_cache(self.layers, batch, length)

    @override
    def step(self, x: Tensor, cache: object, place: Place) -> tuple[Tensor, object]:
        return step_inside(self.layers, x, cache, place)

    @override
    def _kept_inside(self, kept: object) -> object:
        return forward_inside(self.layers, kept)[1]

    @override
    def output_shape(self, shape: S) -> Through[S, *Ts]:
        return Through(shape, self.layers)


def checkpoint(*layers: *Ts) -> Checkpoint[*Ts]:
    """A `Checkpoint` of layers, or models, which keep nothing but their input. They are checked as by `compose`.

    >>> from fundl import Linear, Tanh, checkpoint, forward
    >>> square = Linear(weight=torch.eye(2), bias=None)
    >>> y, residuals = forward(checkpoint(square, Tanh(), square, Tanh()), torch.tensor([[0.0, 1.0]]))
    >>> residuals
    (tensor([[0., 1.]]), ())
    """
    return fitting(Checkpoint(models(*layers)))
