"""One input for several models, whose outputs are handed on side by side."""

import functools
from collections.abc import Sequence
from typing import Generic, Self, cast, final, overload

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common.checks import models
from fundl.layer import AnyLayer
from fundl.layers._inside import Beside, Ts, fitting
from fundl.shapes import Joined, S

Y = TypeVar("Y", default=tuple[Tensor, ...])
L1 = TypeVar("L1")
L2 = TypeVar("L2")
L3 = TypeVar("L3")
L4 = TypeVar("L4")


@final
@attrs.frozen(eq=False)
class Fork(Beside[tuple[object, ...], Tensor, Y], Generic[Y, *Ts]):
    """Branches that see the same input, and whose outputs are a tuple: y = (f1(x), f2(x), ...).

    Its vjp:

        grad_branch_i, grad_x_i = vjp(f_i, x, grad_i),    grad_x = grad_x_1 + grad_x_2 + ...

    Args:
        branches: f1, f2, ..., each a layer or a tuple of layers; best given to `fork`, which checks them.

    Shape:
        any that each branch takes, to a tuple of what they give

    Residuals:
        Those of the branches.
    """

    takes_integers = True  # if the branches do

    branches: tuple[*Ts]

    @override
    def forward(self, x: Tensor) -> tuple[Y, tuple[object, ...]]:
        outputs, kept = self._forward(*[x] * len(self.branches))
        return cast("Y", tuple(outputs)), kept  # `fork` says how many there are

    @override
    def _models(self) -> tuple[object, ...]:
        return self.branches

    @override
    def _place(self, index: int) -> str:
        return f".branches[{index}]"

    @override
    def _grad_x(self, grads_x: Sequence[Tensor]) -> Tensor:
        return functools.reduce(torch.add, grads_x)

    @override
    def _gradient(self, grads: Sequence[object]) -> Self:
        return self.gradient(tuple(grads))

    @override
    def output_shape(self, shape: S) -> Joined[S, *Ts]:
        return Joined(shape, self.branches, join=None, axis=None)


@overload
def fork(first: L1, second: L2, /) -> Fork[tuple[Tensor, Tensor], L1, L2]: ...
@overload
def fork(first: L1, second: L2, third: L3, /) -> Fork[tuple[Tensor, Tensor, Tensor], L1, L2, L3]: ...
@overload
def fork(first: L1, second: L2, third: L3, fourth: L4, /) -> Fork[tuple[Tensor, Tensor, Tensor, Tensor], L1, L2, L3, L4]: ...
@overload
def fork(*branches: *Ts) -> Fork[tuple[Tensor, ...], *Ts]: ...
def fork(*branches: object) -> AnyLayer:
    """A `Fork` of branches, each a layer or a model, which are checked as by `compose`: heads of one body.

    `parallel` adds the outputs of its branches, or makes one tensor of them; here each goes its own way. What `fork(f, g)`
    gives, `both` and `Concatenate` take.

    >>> from fundl import ReLU, apply, compose, fork, initialize, key, linear
    >>> model = initialize(key(0), compose(linear(4, 16), ReLU(), fork(linear(16, 3), linear(16, 1), linear(16, 2))))
    >>> [y.shape for y in apply(model, torch.ones(10, 4))]
    [torch.Size([10, 3]), torch.Size([10, 1]), torch.Size([10, 2])]
    """
    return fitting(Fork(models(*branches)))
