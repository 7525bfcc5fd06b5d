"""What layers made of layers share: how they run the layers inside them, and what they keep.

Python cannot say that the types of a TypeVarTuple are layers. `residual`, `parallel` and their like accept nothing else, as
`compose` does, and each gradient takes the place of a layer of its type: so the functions that run layers are stated here
once more, for parts of any type.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar, cast, final

import attrs
from torch import Tensor

from fundl.layer import AnyLayer
from fundl.model import output_shape, run_backward, run_backward_input, run_backward_params, run_forward
from fundl.tree import Record, describe

T = TypeVar("T")
L = TypeVar("L", bound=AnyLayer)


@final
@attrs.frozen(eq=False)
class Sizes(Record):
    """Sizes that a layer keeps for backward: part of the structure of its residuals, which stay a tree of tensors."""

    sizes: tuple[int, ...]


class _Backward(Protocol):
    def __call__(self, layers: T, residuals: object, grad: Tensor, /) -> tuple[T, Tensor]: ...


class _BackwardParams(Protocol):
    def __call__(self, layers: T, residuals: object, grad: Tensor, /) -> T: ...


_any_forward = cast("Callable[[object, Tensor], tuple[object, object]]", run_forward)
backward_inside: _Backward = cast("_Backward", run_backward)
backward_params_inside: _BackwardParams = cast("_BackwardParams", run_backward_params)
backward_input_inside: Callable[[object, object, Tensor], Tensor] = cast(
    "Callable[[object, object, Tensor], Tensor]", run_backward_input
)


def forward_inside(layers: object, x: Tensor) -> tuple[Tensor, object]:
    """The output of layers, which must be a tensor, and their residuals."""
    output, residuals = _any_forward(layers, x)
    if not isinstance(output, Tensor):
        raise TypeError(f"the layers inside must give a tensor, not {describe(output)}")
    return output, residuals


def fitting(layer: L) -> L:
    """The layer, once the layers inside are found to fit together."""
    output_shape(layer)
    return layer
