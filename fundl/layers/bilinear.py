"""The bilinear map: of two inputs, linear in each."""

from typing import Generic, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common.suggestions import with_suggestions
from fundl.fan import Fans, OwnFans
from fundl.initializers import Initializer, uniform_fan_in
from fundl.layer import Layer
from fundl.layers._layout import as_matrix
from fundl.layers._refusals import require_at_least_one
from fundl.layers.pairs import Pair, require_pair
from fundl.shapes import AnyShape, AnySize, OutFeatures, Shape

Out = TypeVar("Out", bound=int)
AnyAxes = tuple[AnySize, ...]


@final
@attrs.frozen(eq=False)
class Bilinear(Layer[Pair, Pair, Tensor], OwnFans, Generic[OutFeatures]):
    """A bilinear map of the last axes of two inputs: y_k = sum over i, j of x1_i W_kij x2_j + b_k.

    Its vjp, with all axes but the last seen as one, of N rows, and sums over the indices that stand twice on the right:

        grad_W_kij = grad_nk x1_ni x2_nj,    grad_b = sum over the rows of grad
        grad_x1_ni = grad_nk W_kij x2_nj,    grad_x2_nj = grad_nk W_kij x1_ni

    Args:
        weight: W, of shape (out, in1, in2).
        bias: b, of shape (out,), or None.
        weight_init: how `initialize` draws the weight; from U(-b, b) with b = 1/sqrt(in1 in2) by default.
        bias_init: how `initialize` draws the bias; likewise.

    Shape:
        (..., in1) and (..., in2) to (..., out)

    Residuals:
        The inputs, shared, not copied. W x1, of in2 numbers for each of the output, is found anew.

    Raises:
        TypeError: the input is not a pair of tensors, or of another dtype than the weight.
        ValueError: the inputs' last axes are not of the sizes in1 and in2, or the other axes are not the same.

    >>> from fundl import Bilinear, apply
    >>> layer = Bilinear(weight=torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), bias=None)
    >>> apply(layer, (torch.tensor([[3.0, 5.0]]), torch.tensor([[7.0, 11.0]])))
    tensor([[131.]])
    """

    counterpart = "Bilinear"

    weight: Tensor
    bias: Tensor | None
    weight_init: Initializer = attrs.field(default=uniform_fan_in(), kw_only=True)
    bias_init: Initializer = attrs.field(default=uniform_fan_in(), kw_only=True)

    @override
    def forward(self, x: Pair) -> tuple[Tensor, Pair]:
        self._require_fit(x)
        x1, x2 = map(as_matrix, x)
        y = torch.bmm(self._of_first(x1), x2.unsqueeze(2)).squeeze(2)  # (N, out, in2) (N, in2, 1)
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x[0].shape[:-1], y.shape[1]), x

    @override
    def backward_params(self, residuals: Pair, grad: Tensor) -> Self:
        (x1, x2), rows = map(as_matrix, residuals), as_matrix(grad)
        outer = (rows.unsqueeze(2) * x1.unsqueeze(1)).flatten(1)  # (N, out in1)
        grad_weight = torch.mm(outer.t(), x2).reshape(self.weight.shape)  # (out in1, N) (N, in2)
        return self.gradient(grad_weight, None if self.bias is None else rows.sum(0))

    @override
    def backward_input(self, residuals: Pair, grad: Tensor) -> Pair:
        (x1, x2), each = map(as_matrix, residuals), as_matrix(grad).unsqueeze(1)  # (N, 1, out)
        grad_x1 = torch.bmm(each, self._of_second(x2)).squeeze(1)  # (N, 1, out) (N, out, in1)
        grad_x2 = torch.bmm(each, self._of_first(x1)).squeeze(1)  # (N, 1, out) (N, out, in2)
        return grad_x1.reshape(residuals[0].shape), grad_x2.reshape(residuals[1].shape)

    @override
    def output_shape(self, shape: AnyShape) -> Shape[*AnyAxes, OutFeatures]:
        return Shape(..., self.weight.shape[-3])

    @override
    def own_fans(self) -> Fans:
        """Products of the inputs for an output, and those with one number of an input: the mean over both inputs."""
        out, in1, in2 = self.weight.shape
        return Fans(in1 * in2, 2 * out * in1 * in2 / (in1 + in2))

    def _of_first(self, x1: Tensor) -> Tensor:
        """W x1 for each row: (N, out, in2)."""
        out, in1, in2 = self.weight.shape
        matrix = self.weight.transpose(0, 1).reshape(in1, out * in2)
        return torch.mm(x1, matrix).reshape(len(x1), out, in2)

    def _of_second(self, x2: Tensor) -> Tensor:
        """W x2 for each row: (N, out, in1)."""
        out, in1, in2 = self.weight.shape
        return torch.mm(x2, self.weight.reshape(out * in1, in2).t()).reshape(len(x2), out, in1)

    def _require_fit(self, x: Pair) -> None:
        x1, x2 = require_pair("Bilinear", x)
        first, second = self.weight.shape[1:]
        shapes = f"the shapes of the inputs are {tuple(x1.shape)} and {tuple(x2.shape)}"
        if x1.shape[-1:] != (first,) or x2.shape[-1:] != (second,):
            raise ValueError(f"Bilinear expects {first} and {second} features, but {shapes}")
        if x1.shape[:-1] != x2.shape[:-1]:
            raise ValueError(f"Bilinear expects inputs that differ in the last axis alone, but {shapes}")
        if x1.dtype != self.weight.dtype or x2.dtype != self.weight.dtype:
            raise TypeError(
                f"Bilinear's weight is {self.weight.dtype}, but the inputs are {x1.dtype} and {x2.dtype}: convert them, or the"
                f" model with tree.cast_to(model, {x1.dtype})"
            )


@with_suggestions
def bilinear(
    in1_features: int,
    in2_features: int,
    out_features: Out,
    *,
    bias: bool = True,
    weight_init: Initializer = uniform_fan_in(),
    bias_init: Initializer = uniform_fan_in(),
    dtype: torch.dtype = torch.float32,
) -> Bilinear[Out]:
    """A `Bilinear` of the given sizes, without values: give it some with `initialize`.

    Args:
        in1_features: size of the first input's last axis, at least 1.
        in2_features: size of the second's.
        out_features: size of the output's.
        bias: whether to add a bias.
        dtype: the parameters' dtype.

    All other options are fields of `Bilinear`.

    Raises:
        ValueError: a size is less than 1.

    >>> from fundl import bilinear
    >>> bilinear(2, 3, 4)
    Bilinear(weight=float32[4, 2, 3], bias=float32[4])
    """
    require_at_least_one(in1_features=in1_features, in2_features=in2_features, out_features=out_features)
    return Bilinear(
        weight=torch.empty(out_features, in1_features, in2_features, dtype=dtype, device="meta"),
        bias=torch.empty(out_features, dtype=dtype, device="meta") if bias else None,
        weight_init=weight_init,
        bias_init=bias_init,
    )
