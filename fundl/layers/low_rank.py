"""Low-rank adapters: a large layer that is not trained, and a small change to it that is."""

import math
from typing import Generic, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common import products
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer, uniform_fan_in, zeros
from fundl.layer import Layer
from fundl.layers._layout import as_matrix
from fundl.layers._refusals import require_at_least_one
from fundl.layers.linear import In, Linear, Out, explain_misfit
from fundl.shapes import InFeatures, Lead, OutFeatures, Shape, expect
from fundl.tree import BUFFER


@final
@attrs.frozen(eq=False)
class LowRank(Layer[tuple[Tensor, Tensor]], Generic[InFeatures, OutFeatures]):
    """An affine map that is not trained, and a change of low rank that is: y = x W^T + b + s (x A^T) B^T, s = scale / rank.

    It is W + s B A in the place of W, with rank (in + out) numbers to train instead of in out. W and b are buffers: they have
    no gradient, no optimizer touches them and no count of parameters has them; a file that the model is saved in does.
    `initialize` draws A and B, and leaves W and b as they are.

    Its vjp, with x and grad seen as matrices of rows, h = x A^T and grad_h = s grad B:

        grad_A = grad_h^T x,    grad_B = s grad^T h,    grad_x = grad W + grad_h A

    Args:
        weight: W, of shape (out, in).
        bias: b, of shape (out,), or None.
        down: A, of shape (rank, in).
        up: B, of shape (out, rank).
        scale: s rank.
        down_init: how `initialize` draws A; from U(-1/sqrt(in), 1/sqrt(in)) by default.
        up_init: how `initialize` draws B; 0 by default, so that there is no change at first.

    Shape:
        (..., in) to (..., out)

    Residuals:
        The input, shared, not copied. h: rank numbers per row.

    Raises:
        ValueError: the input's last axis is not of size in; the scale is not finite.
        TypeError: the input's dtype is not the weight's.

    Source:
        Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang and Chen, LoRA: low-rank adaptation of large language models, 2021.
    """

    by_position = True

    weight: Tensor = attrs.field(metadata=BUFFER)
    bias: Tensor | None = attrs.field(metadata=BUFFER)
    down: Tensor
    up: Tensor
    scale: float = attrs.field(kw_only=True)
    down_init: Initializer = attrs.field(default=uniform_fan_in(), kw_only=True)
    up_init: Initializer = attrs.field(default=zeros(), kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"LowRank's scale must be a finite number, not {self.scale}")

    @property
    def _factor(self) -> float:
        return self.scale / self.down.shape[0]

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        try:
            y = products.linear(x, self.weight, self.bias)
        except RuntimeError as error:
            explain_misfit("LowRank", x, self.weight, error)
            raise
        h = products.linear(x, self.down, None)
        changed = torch.addmm(as_matrix(y), as_matrix(h), self.up.t(), alpha=self._factor)  # (N, out) + (N, rank) (rank, out)
        return changed.reshape(y.shape), (x, h)

    # The halves both need grad_h. To find it twice takes rank / in of the time of a half, and spares the first layer of a
    # model, whose grad_x nobody wants, the product with W.

    @override
    def backward_params(self, residuals: tuple[Tensor, Tensor], grad: Tensor) -> Self:
        (x, h), rows = map(as_matrix, residuals), as_matrix(grad)
        grad_down = torch.mm(self._grad_h(grad).t(), x)  # (rank, N) (N, in)
        grad_up = torch.mm(rows.t(), h) * self._factor  # (out, N) (N, rank)
        return self.gradient(grad_down, grad_up)

    @override
    def backward_input(self, residuals: tuple[Tensor, Tensor], grad: Tensor) -> Tensor:
        grad_past = products.matmul(as_matrix(grad), self.weight)
        grad_x = torch.addmm(grad_past, self._grad_h(grad), self.down)  # (N, in) + (N, rank) (rank, in)
        return grad_x.reshape(residuals[0].shape)

    @override
    def output_shape(self, shape: Shape[*Lead, InFeatures]) -> Shape[*Lead, OutFeatures]:
        *lead, features = shape.trailing(1)
        expect("features", features, self.weight.shape[-1])
        return Shape(*lead, self.weight.shape[-2])

    def merged(self) -> Linear[InFeatures, OutFeatures]:
        """The same map as a plain `Linear`, of the weight W + s B A: to apply it at no extra cost."""
        return Linear(torch.addmm(self.weight, self.up, self.down, alpha=self._factor), self.bias)

    def _grad_h(self, grad: Tensor) -> Tensor:
        return products.matmul(as_matrix(grad), self.up) * self._factor  # (N, out) (out, rank)


@with_suggestions
def low_rank(
    layer: Linear[In, Out],
    rank: int,
    *,
    scale: float | None = None,
    down_init: Initializer = uniform_fan_in(),
) -> LowRank[In, Out]:
    """A `LowRank`: a layer that stays as it is, and a change to it, without values yet: give it some with `initialize`.

    Args:
        layer: that has values, as those of a model that was trained before.
        rank: of the change, at least 1; the less, the fewer parameters.
        scale: what the change is multiplied by, after it is divided by the rank; by default the rank, so that it is neither.
            To keep the scale while trying ranks spares tuning the learning rate anew.
        down_init: how to draw A. B is 0 at first, and so is the change.

    Raises:
        ValueError: the rank is less than 1, or the scale is not finite.
        TypeError: the layer is not a `Linear`.

    >>> from fundl import initialize, key, linear, low_rank, tree
    >>> trained = initialize(key(0), linear(100, 50))
    >>> adapted = initialize(key(1), low_rank(trained, 4))
    >>> tree.count(trained), tree.count(adapted)
    (5050, 600)
    >>> torch.equal(adapted.merged().weight, trained.weight)
    True
    """
    if not isinstance(layer, Linear):
        raise TypeError(f"low_rank adapts a Linear, not {layer!r}: adapted(layer, rank) adapts any other with weights")
    require_at_least_one(rank=rank)
    out_features, in_features = layer.weight.shape
    return LowRank(
        weight=layer.weight,
        bias=layer.bias,
        down=torch.empty(rank, in_features, dtype=layer.weight.dtype, device="meta"),
        up=torch.empty(out_features, rank, dtype=layer.weight.dtype, device="meta"),
        scale=float(rank) if scale is None else scale,
        down_init=down_init,
    )
