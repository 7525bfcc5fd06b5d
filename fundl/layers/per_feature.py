"""A gain or an offset for each feature, and nothing else."""

from typing import Generic, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer, ones, zeros
from fundl.layer import Layer
from fundl.layers._layout import as_matrix
from fundl.layers._refusals import require_at_least_one, require_dtype
from fundl.shapes import Features, Lead, Shape, expect

Size = TypeVar("Size", bound=int)


@attrs.frozen(eq=False, init=False)
class _PerFeature(Layer[Tensor | None], Generic[Features]):
    """What a number for each feature has in common, of whichever kind."""

    by_position = True

    @override
    def output_shape(self, shape: Shape[*Lead, Features]) -> Shape[*Lead, Features]:
        *lead, features = shape.trailing(1)
        expect("features", features, self._numbers.shape[-1])
        return Shape(*lead, self._numbers.shape[-1])

    @property
    def _numbers(self) -> Tensor:
        numbers: Tensor = getattr(self, self.trainable[0])
        return numbers

    def _require_fit(self, x: Tensor) -> None:
        numbers = self._numbers
        if x.ndim == 0 or x.shape[-1] != numbers.shape[-1]:
            raise ValueError(
                f"{type(self).__name__} expects {numbers.shape[-1]} features, but the input's shape is {tuple(x.shape)}: its"
                f" last axis must be of size {numbers.shape[-1]}"
            )
        require_dtype(f"{type(self).__name__}'s {self.trainable[0]} is", numbers, x)


@final
@attrs.frozen(eq=False)
class Gain(_PerFeature[Features], Generic[Features]):
    """A gain for each feature: y = w x, along the last axis.

    At the end of residual branches, with gains that begin near 0, ``gain(384, weight_init=constant(1e-5))``, it is known as
    LayerScale.

    Its vjp, with grad and x seen as matrices:

        grad_weight = sum over the rows of grad x,    grad_x = grad w

    Args:
        weight: w, of shape (features,).
        weight_init: how `initialize` makes the gains; all 1 by default.

    Shape:
        (..., features), kept

    Residuals:
        The input, shared, not copied.

    Raises:
        ValueError: the input's last axis is not of size features.
        TypeError: the input's dtype is not the weight's.

    Source:
        Touvron, Cord, Sablayrolles, Synnaeve and Jégou, Going deeper with image transformers, 2021.

    >>> from fundl import Gain, apply
    >>> apply(Gain(weight=torch.tensor([2.0, 3.0])), torch.tensor([[1.0, 1.0]]))
    tensor([[2., 3.]])
    """

    weight: Tensor
    weight_init: Initializer = attrs.field(default=ones(), kw_only=True)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        self._require_fit(x)
        return x * self.weight, x

    @override
    def backward_params(self, residuals: Tensor | None, grad: Tensor) -> Self:
        assert residuals is not None
        return self.gradient(as_matrix(grad * residuals).sum(0))

    @override
    def backward_input(self, residuals: Tensor | None, grad: Tensor) -> Tensor:
        return grad * self.weight


@final
@attrs.frozen(eq=False)
class Bias(_PerFeature[Features], Generic[Features]):
    """An offset for each feature: y = x + b, along the last axis.

    Its vjp, with grad seen as a matrix:

        grad_bias = sum over the rows of grad,    grad_x = grad

    Args:
        bias: b, of shape (features,).
        bias_init: how `initialize` makes the offsets; all 0 by default.

    Shape:
        (..., features), kept

    Residuals:
        None.

    Raises:
        ValueError: the input's last axis is not of size features.
        TypeError: the input's dtype is not the bias'.

    >>> from fundl import Bias, apply
    >>> apply(Bias(bias=torch.tensor([2.0, 3.0])), torch.tensor([[1.0, 1.0]]))
    tensor([[3., 4.]])
    """

    bias: Tensor
    bias_init: Initializer = attrs.field(default=zeros(), kw_only=True)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        self._require_fit(x)
        return x + self.bias, None

    @override
    def backward_params(self, residuals: Tensor | None, grad: Tensor) -> Self:
        return self.gradient(as_matrix(grad).sum(0))

    @override
    def backward_input(self, residuals: Tensor | None, grad: Tensor) -> Tensor:
        return grad


@with_suggestions
def gain(features: Size, *, weight_init: Initializer = ones(), dtype: torch.dtype = torch.float32) -> Gain[Size]:
    """A `Gain` for each of so many features, without values: give it some with `initialize`.

    Args:
        features: size of the input's last axis, at least 1.
        weight_init: how `initialize` makes the gains.
        dtype: the parameters' dtype.

    Raises:
        ValueError: the size is less than 1.

    >>> from fundl import gain
    >>> gain(25)
    Gain(weight=float32[25])
    """
    require_at_least_one(features=features)
    return Gain(torch.empty(features, dtype=dtype, device="meta"), weight_init=weight_init)


@with_suggestions
def bias(features: Size, *, bias_init: Initializer = zeros(), dtype: torch.dtype = torch.float32) -> Bias[Size]:
    """A `Bias` for each of so many features, without values: give it some with `initialize`.

    Args:
        features: size of the input's last axis, at least 1.
        bias_init: how `initialize` makes the offsets.
        dtype: the parameters' dtype.

    Raises:
        ValueError: the size is less than 1.

    >>> from fundl import bias
    >>> bias(25)
    Bias(bias=float32[25])
    """
    require_at_least_one(features=features)
    return Bias(torch.empty(features, dtype=dtype, device="meta"), bias_init=bias_init)
