"""Layers that compute in another dtype than the one in which their parameters are kept."""

from collections.abc import Iterator
from typing import Generic, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.checks import models
from fundl._common.half import all_to
from fundl._common.place import Place
from fundl._common.stepping import first_cache, step_inside
from fundl._common.suggestions import with_suggestions
from fundl.layers._inside import Around, Ts, fitting, forward_inside
from fundl.shapes import S, Through
from fundl.tree import Record


@final
@attrs.frozen(eq=False)
class Casts(Record):
    """The dtypes that `MixedPrecision` cast between: that of its input, and that of the output of its layers."""

    x: torch.dtype
    inside: torch.dtype


@final
@attrs.frozen(eq=False)
class MixedPrecision(Around[Casts], Generic[*Ts]):
    """Layers that compute in a dtype of few bits, and whose parameters are kept in one of many: y = f(x).

    The parameters stay as they are, in float32, say: so an optimizer can add to them what would be lost in half precision.
    For each run, they and the input are cast to the dtype of the computation, buffers too, but for the statistics of a
    `BatchNorm`, which stay in float32 if that has 16 bits; the gradient is cast back, and has the dtypes of the model. All
    sums, forward and backward, are made in float32, and rounded once. Layers that are to compute in float32 as a whole are put
    in a `mixed_precision` of their own, inside: their parameters are not cast by the one around them.

    Its vjp: that of f, with grad cast to the dtype of f's output, and what comes of it to those of the parameters and of x.

    Args:
        layers: f, the layers one after the other; best given to `mixed_precision`, which checks them.
        compute: the dtype in which f runs; bfloat16 by default.
        output: that of y; None, the default, for that of the input, or, if that is of integers, of the parameters.

    Shape:
        that of f

    Residuals:
        Those of the layers, in the dtype of the computation; the input in that dtype.

    Raises:
        TypeError: a dtype is not a floating-point one.

    Source:
        Micikevicius, Narang, Alben, Diamos, Elsen, Garcia, Ginsburg, Houston, Kuchaiev, Venkatesh and Wu, Mixed precision
        training, 2017.
    """

    takes_integers = True  # if the first layer does

    layers: tuple[*Ts]
    compute: torch.dtype = attrs.field(default=torch.bfloat16, kw_only=True)
    output: torch.dtype | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        for name, dtype in (("compute", self.compute), ("output", self.output)):
            if dtype is not None and not dtype.is_floating_point:
                raise TypeError(f"mixed_precision's {name} must be a floating-point dtype, such as torch.bfloat16, not {dtype}")

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[object, Casts]]:
        is_float = x.is_floating_point()
        y, residuals = forward_inside(self._model(), x.to(self.compute) if is_float else x)
        output = self.output or (x.dtype if is_float else self._dtype)
        return y.to(output), (residuals, Casts(x.dtype, y.dtype))

    @override
    def first_cache(self, batch: int, length: int) -> object:
        return first_cache(self._model(), batch, length)

    @override
    def step(self, x: Tensor, cache: object, place: Place) -> tuple[Tensor, object]:
        is_float = x.is_floating_point()
        y, after = step_inside(self._model(), x.to(self.compute) if is_float else x, cache, place)
        return y.to(self.output or (x.dtype if is_float else self._dtype)), after

    @override
    def output_shape(self, shape: S) -> Through[S, *Ts]:
        return Through(shape, self.layers)

    @override
    def _model(self, own: Casts | None = None) -> tuple[*Ts]:
        """The layers in the dtype of the computation."""
        leaves, structure = tree.flatten(self.layers)
        kept = dict(_decided_inside(self.layers, torch.promote_types(self.compute, torch.float32)))
        floats = [leaf for leaf in leaves if leaf is not None and leaf.is_floating_point()]
        cast = iter(all_to(floats, [kept.get(id(leaf), self.compute) for leaf in floats]))
        return tree.unflatten(
            structure, [next(cast) if leaf is not None and leaf.is_floating_point() else leaf for leaf in leaves]
        )

    @override
    def _grad_inside(self, own: Casts, grad: Tensor) -> Tensor:
        return grad.to(own.inside)

    @override
    def _grad_x(self, own: Casts, grad: Tensor, grad_inside: Tensor) -> Tensor:
        return grad_inside.to(own.x)

    @override
    def _gradient(self, own: Casts, grads: object) -> Self:
        """The gradients in the dtypes of the parameters; buffers stay as they are."""
        dtypes = [leaf.dtype for leaf in tree.trainable_leaves(self.layers)]
        return self.gradient(tree.with_trainable_leaves(self.layers, all_to(tree.trainable_leaves(grads), dtypes)))

    @property
    def _dtype(self) -> torch.dtype:
        """That of the parameters."""
        return next((leaf.dtype for leaf in tree.leaves(self.layers) if leaf.is_floating_point()), self.compute)


def _decided_inside(layers: object, wide: torch.dtype) -> Iterator[tuple[int, torch.dtype]]:
    """The ids of the tensors that get another dtype: their own in a `MixedPrecision` of their own, a wide one as statistics."""
    for record in tree.outer_records(layers):
        if isinstance(record, MixedPrecision):
            yield from ((id(leaf), leaf.dtype) for leaf in tree.leaves(record))
            continue
        for name in record.children:
            child: object = getattr(record, name)
            if name in record.kept_wide:
                yield from ((id(leaf), wide) for leaf in tree.leaves(child))
            else:
                yield from _decided_inside(child, wide)


@with_suggestions
def mixed_precision(
    *layers: *Ts, compute: torch.dtype = torch.bfloat16, output: torch.dtype | None = None
) -> MixedPrecision[*Ts]:
    """A `MixedPrecision` of layers, or models, with its options. They are checked as by `compose`.

    With float16, gradients are easily too small for the dtype: see `dynamic_loss_scale`. bfloat16 has the range of float32.

    >>> from fundl import ReLU, forward, initialize, key, linear, mixed_precision
    >>> model = initialize(key(0), mixed_precision(linear(2, 25), ReLU(), linear(25, 1)))
    >>> y, (residuals, _) = forward(model, torch.ones(10, 2))
    >>> y.dtype, residuals[0].dtype, model.layers[0]
    (torch.float32, torch.bfloat16, Linear(weight=float32[25, 2], bias=float32[25]))
    """
    return fitting(MixedPrecision(models(*layers), compute=compute, output=output))
