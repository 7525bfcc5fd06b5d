"""What widens features, bends them and narrows them again, at each position for itself: feed-forward networks, and gates."""

from typing import Generic, Literal, Self, final, overload

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common import kernels
from fundl._common.suggestions import with_suggestions
from fundl.layer import AnyLayer, Layer
from fundl.layers._refusals import require_at_least_one, require_layer
from fundl.layers.activation import Sigmoid
from fundl.layers.linear import Linear, linear
from fundl.layers.self_gated import GELU, SiLU
from fundl.shapes import AnyShape, AnySize, Batch, Channels, Last, Lead, Quotient, Rest, Shape

A = TypeVar("A", bound=AnyLayer)
Features = TypeVar("Features", bound=int)
Hidden = TypeVar("Hidden", bound=int)
Axis = TypeVar("Axis", bound=int, covariant=True, default=AnySize)


# --- Gates -------------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class GLU(Layer[Tensor], Generic[Axis]):
    """A gated linear unit: half of the features, times a function of the other half: y = v f(g), x = [v, g].

    The name is that of the sigmoid's gate; GLU(SiLU()) is known as SwiGLU, GLU(GELU()) as GEGLU, GLU(ReLU()) as ReGLU.

    Its vjp: grad_x = [grad f(g), grad_g], where grad_g = vjp(f, g, grad v).

    Args:
        activation: f, an activation; the sigmoid by default.
        axis: of the features; the last by default.

    Shape:
        (..., d) to (..., d / 2), d even

    Residuals:
        The input, not copied, but alive until backward; f(g) is found anew.

    Raises:
        ValueError: the number of features is odd, or the input has no such axis.

    Source:
        Dauphin, Fan, Auli and Grangier, Language modeling with gated convolutional networks, 2016; Shazeer, GLU variants
        improve transformer, 2020.

    >>> from fundl import GLU, ReLU, apply
    >>> apply(GLU(ReLU()), torch.tensor([[2.0, 3.0, 5.0, -7.0]]))
    tensor([[10.,  0.]])
    """

    counterpart = "GLU(dim=axis)"

    activation: AnyLayer = attrs.field(default=Sigmoid())
    axis: int = attrs.field(default=-1, kw_only=True)

    def __attrs_post_init__(self) -> None:
        require_layer("GLU's activation", self.activation)

    @property
    @override
    def by_position(self) -> bool:
        return self.axis in {-1, 2} and self.activation.elementwise

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not -x.ndim <= self.axis < x.ndim or x.shape[self.axis] % 2:
            raise ValueError(f"GLU halves axis {self.axis}, whose size must be even, but the input's shape is {tuple(x.shape)}")
        if isinstance(self.activation, Sigmoid):
            return kernels.glu(x, self.axis), x
        value, gate = torch.chunk(x, 2, self.axis)
        return value * self.activation.forward(gate)[0], x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        if isinstance(self.activation, Sigmoid):
            return self, kernels.glu_backward(grad, residuals, self.axis)
        value, gate = torch.chunk(residuals, 2, self.axis)
        opened, kept = self.activation.forward(gate)
        activation, grad_gate = self.activation.backward(kept, grad * value)
        return self.gradient(activation), torch.cat((grad * opened, grad_gate), self.axis)

    @overload
    def output_shape(self: "GLU[Literal[-1]]", shape: Shape[*Lead, Last]) -> Shape[*Lead, Quotient[Last, Literal[2]]]: ...
    @overload
    def output_shape(
        self: "GLU[Literal[1]]", shape: Shape[Batch, Channels, *Rest]
    ) -> Shape[Batch, Quotient[Channels, Literal[2]], *Rest]: ...
    @overload
    def output_shape(self, shape: AnyShape) -> AnyShape: ...
    @override
    def output_shape(self, shape: AnyShape) -> AnyShape:
        sizes = shape.leading(self.axis + 1) if self.axis >= 0 else shape.trailing(-self.axis)
        place = self.axis if self.axis >= 0 else len(sizes) + self.axis
        return Shape(*sizes[:place], Quotient.of(sizes[place], 2), *sizes[place + 1 :])


# --- Networks ----------------------------------------------------------------------------------------------------------


@overload
def feed_forward(
    features: Features, hidden: Hidden, *, bias: bool = ..., dtype: torch.dtype = ...
) -> tuple[Linear[Features, Hidden], GELU, Linear[Hidden, Features]]: ...
@overload
def feed_forward(
    features: Features, hidden: Hidden, *, activation: A, bias: bool = ..., dtype: torch.dtype = ...
) -> tuple[Linear[Features, Hidden], A, Linear[Hidden, Features]]: ...
@with_suggestions
def feed_forward(
    features: Features,
    hidden: Hidden,
    *,
    activation: AnyLayer = GELU(),  # noqa: B008  # a frozen record
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[Linear[Features, Hidden], AnyLayer, Linear[Hidden, Features]]:
    """The network that follows attention in a transformer, the same at each position: y = W2 f(W1 x + b1) + b2.

    It is a composition, no more; values are for `initialize` to give.

    Args:
        features: size of the last axis of the input, and of the output.
        hidden: how many features there are between, often four times as many.
        activation: f; GELU() by default.
        bias: whether there are b1 and b2.
        dtype: the parameters' dtype.

    Raises:
        ValueError: a size is less than 1.

    Source:
        Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser and Polosukhin, Attention is all you need, 2017; with GELU,
        Radford, Narasimhan, Salimans and Sutskever, Improving language understanding by generative pre-training, 2018.

    >>> from fundl import feed_forward
    >>> feed_forward(16, 64, bias=False)
    (Linear(weight=float32[64, 16], bias=None), GELU(), Linear(weight=float32[16, 64], bias=None))
    """
    require_layer("activation", activation)
    return (
        linear(features, hidden, bias=bias, dtype=dtype),
        activation,
        linear(hidden, features, bias=bias, dtype=dtype),
    )


@with_suggestions
def gated_feed_forward(
    features: Features,
    hidden: Hidden,
    *,
    activation: AnyLayer = SiLU(),  # noqa: B008  # a frozen record
    bias: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Linear[Features, int], GLU[Literal[-1]], Linear[Hidden, Features]]:
    """A network with a gate, the same at each position: y = W2 ((V x) f(G x)). With the default, SiLU, it is known as SwiGLU.

    It is a composition, no more; values are for `initialize` to give. V and G are one matrix, [V, G] of shape
    (2 hidden, features): one product of matrices is faster than two.

    Args:
        features: size of the last axis of the input, and of the output.
        hidden: how many features there are between. There are three matrices: 2/3 of the size that a network without a gate
            would have makes for as many parameters.
        activation: f; SiLU() by default. GELU() makes a GEGLU, Sigmoid() a GLU, ReLU() a ReGLU.
        bias: whether to add a bias to each product; no by default.
        dtype: the parameters' dtype.

    Raises:
        ValueError: a size is less than 1.
        TypeError: the activation is not a layer.

    Source:
        Shazeer, GLU variants improve transformer, 2020.

    >>> from fundl import gated_feed_forward
    >>> gated_feed_forward(12, 32)
    (Linear(weight=float32[64, 12], bias=None), GLU(activation=SiLU()), Linear(weight=float32[12, 32], bias=None))
    """
    require_layer("activation", activation)
    require_at_least_one(hidden=hidden)  # linear would speak of twice as many
    return (
        linear(features, 2 * hidden, bias=bias, dtype=dtype),
        GLU(activation),
        linear(hidden, features, bias=bias, dtype=dtype),
    )
