"""The affine map, with and without a bias."""

from typing import ClassVar, Generic, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common import products
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer, uniform_fan_in
from fundl.layer import Layer
from fundl.layers._layout import as_matrix
from fundl.layers._refusals import require_at_least_one, require_dtype
from fundl.shapes import InFeatures, Lead, OutFeatures, Shape, expect

In = TypeVar("In", bound=int)
Out = TypeVar("Out", bound=int)


@final
@attrs.frozen(eq=False)
class Linear(Layer[Tensor], Generic[InFeatures, OutFeatures]):
    """An affine map of the last axis: y = x W^T + b.

    Its vjp, with x and grad seen as matrices of B rows:

        grad_weight = grad^T x,    grad_bias = sum over the rows of grad,    grad_x = grad W

    Args:
        weight: W, of shape (out, in).
        bias: b, of shape (out,), or None for a linear map.
        weight_init: how `initialize` draws the weight; from U(-1/sqrt(in), 1/sqrt(in)) by default.
        bias_init: how `initialize` draws the bias; likewise.

    Shape:
        (..., in) to (..., out)

    Residuals:
        The input, shared, not copied.

    Raises:
        ValueError: the input's last axis is not of size in.
        TypeError: the input's dtype is not the weight's.

    >>> from fundl import Linear, apply
    >>> apply(Linear(weight=torch.tensor([[1.0, 2.0]]), bias=torch.tensor([0.5])), torch.tensor([[1.0, 1.0]]))
    tensor([[3.5000]])
    """

    counterpart = "Linear"
    by_position = True
    usual_gain: ClassVar[float] = 1.0

    weight: Tensor
    bias: Tensor | None
    weight_init: Initializer = attrs.field(default=uniform_fan_in(), kw_only=True)
    bias_init: Initializer = attrs.field(default=uniform_fan_in(), kw_only=True)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return products.linear(x, self.weight, self.bias), x
        except RuntimeError as error:
            explain_misfit("Linear", x, self.weight, error)
            raise

    @override
    def backward_params(self, residuals: Tensor, grad: Tensor) -> Self:
        if grad.ndim != 2:
            residuals, grad = as_matrix(residuals), as_matrix(grad)
        grad_weight = torch.mm(grad.t(), residuals)  # (out, B) (B, in)
        return self.gradient(grad_weight, None if self.bias is None else grad.sum(0))

    @override
    def backward_input(self, residuals: Tensor, grad: Tensor) -> Tensor:
        return products.matmul(grad, self.weight)

    @override
    def output_shape(self, shape: Shape[*Lead, InFeatures]) -> Shape[*Lead, OutFeatures]:
        *lead, features = shape.trailing(1)
        expect("features", features, self.weight.shape[-1])
        return Shape(*lead, self.weight.shape[-2])


def explain_misfit(layer: str, x: Tensor, weight: Tensor, error: RuntimeError, *, are: str = "weight is") -> None:
    """Say in a layer's words what the kernel refused: asked only once it has, so that a good input costs nothing."""
    features = weight.shape[1]
    if x.ndim == 0 or x.shape[-1] != features:
        raise ValueError(
            f"{layer} expects {features} features, but the input's shape is {tuple(x.shape)}: its last axis must be"
            f" of size {features}"
        ) from error
    require_dtype(f"{layer}'s {are}", weight, x, error)


@with_suggestions
def linear(
    in_features: In,
    out_features: Out,
    *,
    bias: bool = True,
    weight_init: Initializer = uniform_fan_in(),
    bias_init: Initializer = uniform_fan_in(),
    dtype: torch.dtype = torch.float32,
) -> Linear[In, Out]:
    """A `Linear` of the given sizes, without values: give it some with `initialize`.

    Args:
        in_features: size of the input's last axis, at least 1.
        out_features: size of the output's last axis, at least 1.
        bias: whether to add a bias.
        dtype: the parameters' dtype.

    All other options are fields of `Linear`.

    >>> from fundl import linear
    >>> linear(2, 25)
    Linear(weight=float32[25, 2], bias=float32[25])
    """
    require_at_least_one(in_features=in_features, out_features=out_features)
    return Linear(
        weight=torch.empty(out_features, in_features, dtype=dtype, device="meta"),
        bias=torch.empty(out_features, dtype=dtype, device="meta") if bias else None,
        weight_init=weight_init,
        bias_init=bias_init,
    )
