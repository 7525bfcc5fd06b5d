"""Images as sequences: their places as positions, a position of its own for the class, and the first one by itself."""

from typing import Generic, Literal, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common.suggestions import with_suggestions
from fundl.fan import Fans, OwnFans
from fundl.initializers import Initializer, zeros
from fundl.layer import Layer
from fundl.layers._inside import Sizes
from fundl.layers._refusals import require_at_least_one, require_dtype
from fundl.shapes import Batch, Channels, Features, Product, Rest, Shape, Steps, Sum, expect

Size = TypeVar("Size", bound=int)


@final
@attrs.frozen(eq=False)
class ToSequence(Layer[Sizes]):
    """The places of an image, signal or volume as the positions of a sequence, in row-major order: y[b, t, c] = x[b, c, t].

    Behind a convolution whose stride is its kernel, the positions are patches of the image.

    Its vjp: grad_x[b, c, t] = grad[b, t, c].

    Args:
        sizes: of the axes after the channels, where positions are known by their number alone, such as (14, 14); None, the
            default, for any.

    Shape:
        (B, C, ...), with one axis or more after the channels, to (B, T, C), T the product of these axes

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        ValueError: the input has no axis after the channels, or these are of other sizes.

    Source:
        Dosovitskiy, Beyer, Kolesnikov, Weissenborn, Zhai, Unterthiner, Dehghani, Minderer, Heigold, Gelly, Uszkoreit and
        Houlsby, An image is worth 16x16 words: transformers for image recognition at scale, 2020.

    >>> from fundl import ToSequence, apply, compose, conv2d, initialize, key
    >>> patches = initialize(key(0), compose(conv2d(3, 32, 4, stride=4), ToSequence()))
    >>> apply(patches, torch.zeros(10, 3, 8, 8)).shape
    torch.Size([10, 4, 32])
    """

    takes_integers = True

    sizes: tuple[int, ...] | None = None

    def __attrs_post_init__(self) -> None:
        sizes: object = self.sizes
        if sizes is not None and not (isinstance(sizes, tuple) and sizes and all(type(size) is int for size in sizes)):
            raise TypeError(f"ToSequence's sizes are a tuple of integers, such as (14, 14), or None, not {sizes!r}")

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Sizes]:
        if self.sizes is not None and x.shape[2:] != self.sizes:
            raise ValueError(
                f"ToSequence({self.sizes}) takes an input of shape (B, C, {', '.join(map(str, self.sizes))}), not"
                f" {tuple(x.shape)}"
            )
        if x.ndim < 3:
            raise ValueError(
                "ToSequence takes an input of shape (B, C, ...) with at least one axis after the channels, not"
                f" {tuple(x.shape)}"
            )
        return x.flatten(2).transpose(1, 2), Sizes(x.shape)

    @override
    def backward(self, residuals: Sizes, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad.transpose(1, 2).reshape(residuals.sizes)

    @override
    def output_shape(self, shape: Shape[Batch, Channels, *Rest]) -> Shape[Batch, Product[*Rest], Channels]:
        batch, channels, *space = shape.leading(3) if self.sizes is None else shape.exactly(2 + len(self.sizes))
        for axis, (size, expected) in enumerate(zip(space, self.sizes or (), strict=False), start=2):
            expect(f"axis {axis}", size, expected)
        return Shape(batch, Product.of(*space), channels)


@final
@attrs.frozen(eq=False)
class ClassToken(Layer[None], OwnFans, Generic[Features]):
    """Puts a learned position before the others of each sequence: y = [w, x_1, ..., x_T].

    Behind layers that let each position see the others it gathers what is asked of the whole; `FirstPosition` takes it out.

    Its vjp, with grad = [g, g_1, ..., g_T]:

        grad_weight = sum over the sequences of g,    grad_x = [g_1, ..., g_T]

    Args:
        weight: w, of shape (features,).
        weight_init: how `initialize` draws the weight; zeros by default.

    Shape:
        (B, T, features) to (B, T + 1, features)

    Residuals:
        None.

    Raises:
        ValueError: the input is not of shape (B, T, features).
        TypeError: the input's dtype is not the weight's.

    Source:
        Devlin, Chang, Lee and Toutanova, BERT: pre-training of deep bidirectional transformers for language understanding,
        2018.

    >>> from fundl import ClassToken, apply
    >>> apply(ClassToken(torch.tensor([7.0])), torch.tensor([[[1.0], [2.0]]]))
    tensor([[[7.],
             [1.],
             [2.]]])
    """

    weight: Tensor
    weight_init: Initializer = attrs.field(default=zeros(), kw_only=True)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        (features,) = self.weight.shape
        if x.ndim != 3 or x.shape[2] != features:
            raise ValueError(
                f"ClassToken expects an input of shape (B, T, {features}), but the input's shape is {tuple(x.shape)}"
            )
        require_dtype("ClassToken's weight is", self.weight, x)
        return torch.cat((self.weight.expand(len(x), 1, features), x), 1), None

    @override
    def backward_params(self, residuals: None, grad: Tensor) -> Self:
        return self.gradient(grad[:, 0].sum(0))

    @override
    def backward_input(self, residuals: None, grad: Tensor) -> Tensor:
        return grad[:, 1:]

    @override
    def output_shape(self, shape: Shape[Batch, Steps, Features]) -> Shape[Batch, Sum[Steps, Literal[1]], Features]:
        batch, steps, features = shape.exactly(3)
        expect("features", features, self.weight.shape[0])
        return Shape(batch, Sum.of(steps, 1), self.weight.shape[0])

    @override
    def own_fans(self) -> Fans:
        """Each number of the output gets one of the weight."""
        return Fans(1, 1)


@with_suggestions
def class_token(features: Size, *, weight_init: Initializer = zeros(), dtype: torch.dtype = torch.float32) -> ClassToken[Size]:
    """A `ClassToken` of so many features, without values: give it some with `initialize`.

    Args:
        features: size of the input's last axis, at least 1.
        dtype: the weight's dtype.

    The other option, weight_init, is as in `ClassToken`.

    Raises:
        ValueError: there are no features.

    >>> from fundl import class_token, compose, learned_positions
    >>> compose(class_token(16), learned_positions(50, 16))
    (ClassToken(weight=float32[16]), LearnedPositions(weight=float32[50, 16]))
    """
    require_at_least_one(features=features)
    return ClassToken(torch.empty(features, dtype=dtype, device="meta"), weight_init=weight_init)


@final
@attrs.frozen(eq=False)
class FirstPosition(Layer[Sizes]):
    """The first position of each sequence: y = x_1.

    Its vjp: grad_x_1 = grad, and 0 at the others.

    Shape:
        (B, T, F) to (B, F), T at least 1

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        ValueError: the input is not of shape (B, T, F), or has no position.

    >>> from fundl import FirstPosition, apply
    >>> apply(FirstPosition(), torch.tensor([[[1.0], [3.0]]]))
    tensor([[1.]])
    """

    takes_integers = True

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Sizes]:
        if x.ndim != 3 or not x.shape[1]:
            raise ValueError(
                f"FirstPosition expects an input of shape (B, T, F), T at least 1, but it is of shape {tuple(x.shape)}"
            )
        return x[:, 0], Sizes(x.shape)

    @override
    def backward(self, residuals: Sizes, grad: Tensor) -> tuple[Self, Tensor]:
        return self, torch.constant_pad_nd(grad.unsqueeze(1), (0, 0, 0, residuals.sizes[1] - 1))

    @override
    def output_shape(self, shape: Shape[Batch, Steps, Features]) -> Shape[Batch, Features]:
        batch, _, features = shape.exactly(3)
        return Shape(batch, features)
