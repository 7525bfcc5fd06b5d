"""Layers with random options, and inputs of random sizes: one function for each layer that has a counterpart in torch.nn."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, TypeVar

import attrs
import torch
from torch import Tensor

import fundl
from fundl import Model, tree
from fundl.layer import AnyLayer, Layer
from fundl.layers.resampling import PadMode
from tests.samples import ELEMENTWISE

T = TypeVar("T")


@attrs.frozen
class Draw:
    """Random choices, the same for the same seed."""

    numbers: random.Random
    generator: torch.Generator

    @classmethod
    def of(cls, seed: str) -> "Draw":
        numbers = random.Random(seed)
        return cls(numbers, torch.Generator().manual_seed(numbers.getrandbits(32)))

    def one_of(self, *choices: T) -> T:
        return self.numbers.choice(choices)

    def flag(self) -> bool:
        return self.one_of(False, True)

    def size(self, low: int = 1, high: int = 4) -> int:
        return self.numbers.randint(low, high)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.generator)

    def batch(self) -> int:
        """None, one, or some."""
        return self.one_of(0, 1, 2, 3, 3)

    def with_values(self, model: Model) -> Model:
        """The model in float64, with random values."""
        return tree.map(lambda leaf: self.normal(*leaf.shape), model)


Case = tuple[Model, Tensor | tuple[Tensor, ...]]
Drawn = Callable[[Draw], Case]


# --- Shapes ------------------------------------------------------------------------------------------------------------


def anywhere(draw: Draw, features: int | None = None) -> Tensor:
    """An input of one to four axes."""
    lead = [draw.batch() for _ in range(draw.size(0, 3))]
    return draw.normal(*lead, draw.size() if features is None else features)


def image(draw: Draw, channels: int, axes: int, smallest: int = 5) -> Tensor:
    """An image, signal or volume."""
    return draw.normal(draw.batch(), channels, *(draw.size(smallest, smallest + 3) for _ in range(axes)))


def per_axis(draw: Draw, axes: int, low: int, high: int) -> int | tuple[int, ...]:
    return draw.size(low, high) if draw.flag() else tuple(draw.size(low, high) for _ in range(axes))


# --- One layer each ----------------------------------------------------------------------------------------------------


ACTIVATIONS: Final = [row.model for row in ELEMENTWISE if isinstance(row.model, Layer) and row.model.elementwise]


def softmax(kind: Callable[[int], AnyLayer]) -> Drawn:
    def drawn(draw: Draw) -> Case:
        x = draw.normal(*(draw.batch() for _ in range(draw.size(1, 3))), draw.size())
        return kind(draw.size(-x.ndim, x.ndim - 1)), x

    return drawn


def glu(draw: Draw) -> Case:
    axis = draw.one_of(-1, 1)
    return fundl.GLU(axis=axis), draw.normal(draw.batch(), 2 * draw.size(), 2 * draw.size())


def linear(draw: Draw) -> Case:
    features = draw.size()
    return fundl.linear(features, draw.size(), bias=draw.flag()), anywhere(draw, features)


def bilinear(draw: Draw) -> Case:
    first, second, lead = draw.size(), draw.size(), draw.batch()
    layer = fundl.bilinear(first, second, draw.size(), bias=draw.flag())
    return layer, (draw.normal(lead, first), draw.normal(lead, second))


def embedding(draw: Draw) -> Case:
    vocabulary = draw.size()
    layer = fundl.embedding(vocabulary, draw.size(), padding=draw.one_of(None, vocabulary - 1))
    tokens = torch.randint(0, vocabulary, (draw.batch(), draw.size(0)), generator=draw.generator)
    return layer, tokens


def convolution(make: Callable[..., AnyLayer], axes: int) -> Drawn:  # type: ignore[explicit-any]  # sizes by axes
    def drawn(draw: Draw) -> Case:
        groups, dilation = draw.one_of(1, 1, 2, 3), per_axis(draw, axes, 1, 2)
        channels, kernel = groups * draw.size(1, 2), per_axis(draw, axes, 1, 3)
        same = draw.one_of(False, False, True)
        layer = make(
            channels,
            groups * draw.size(1, 2),
            kernel,
            stride=1 if same else per_axis(draw, axes, 1, 3),
            padding="same" if same else per_axis(draw, axes, 0, 2),
            dilation=dilation,
            groups=groups,
            bias=draw.flag(),
        )
        return layer, image(draw, channels, axes)

    return drawn


def transposed(make: Callable[..., AnyLayer], axes: int) -> Drawn:  # type: ignore[explicit-any]  # sizes by axes
    def drawn(draw: Draw) -> Case:
        groups, stride = draw.one_of(1, 1, 2), draw.size(1, 3)
        channels = groups * draw.size(1, 2)
        layer = make(
            channels,
            groups * draw.size(1, 2),
            per_axis(draw, axes, 1, 3),
            stride=stride,
            padding=per_axis(draw, axes, 0, 1),
            dilation=per_axis(draw, axes, 1, 2),
            groups=groups,
            output_padding=draw.size(0, stride - 1),
            bias=draw.flag(),
        )
        return layer, image(draw, channels, axes, 3)

    return drawn


def of_features(make: Callable[..., AnyLayer], *, bias: bool) -> Drawn:  # type: ignore[explicit-any]  # some have no bias
    def drawn(draw: Draw) -> Case:
        sizes = tuple(draw.size() for _ in range(draw.size(1, 2)))
        options = {"bias": draw.flag()} if bias else {}
        layer = make(sizes if draw.flag() or len(sizes) > 1 else sizes[0], eps=draw.one_of(1e-5, 0.1), **options)
        return layer, draw.normal(*(draw.batch() for _ in range(draw.size(0, 2))), *sizes)

    return drawn


def group_norm(draw: Draw) -> Case:
    # Two numbers become 1 and -1, whatever they are, but for eps: what is left of their gradient is the difference of terms a
    # thousand times as large. Of three, it is as exact as the input, see test_norm_rounding.py.
    groups = draw.size(1, 3)
    channels = groups * draw.size(3, 4)
    layer = fundl.group_norm(groups, channels, bias=draw.flag())
    return layer, draw.normal(draw.batch(), channels, *(draw.size(2, 4) for _ in range(draw.size(0, 3))))


def batch_norm(draw: Draw) -> Case:
    channels, axes = draw.size(), draw.size(0, 3)
    x = draw.normal(draw.one_of(2, 3, 5), channels, *(draw.size(1, 4) for _ in range(axes)))
    layer = draw.with_values(fundl.batch_norm(channels, bias=draw.flag()))
    return (fundl.calibrate(layer, [draw.normal(*x.shape)]) if draw.flag() else layer), x


def instance_norm(draw: Draw) -> Case:
    channels = draw.size()
    x = draw.normal(draw.size(1, 3), channels, *(draw.size(3, 4) for _ in range(draw.size(1, 3))))
    return fundl.instance_norm(channels, bias=draw.flag()), x


def max_pool(kind: Callable[..., AnyLayer], axes: int) -> Drawn:  # type: ignore[explicit-any]  # sizes by axes
    def drawn(draw: Draw) -> Case:
        kernel = draw.size(1, 3)
        layer = kind(
            kernel,
            **(draw.one_of({}, {"stride": per_axis(draw, axes, 1, 3)})),
            padding=per_axis(draw, axes, 0, kernel // 2),
            dilation=per_axis(draw, axes, 1, 2),
            ceil_mode=draw.flag(),
        )
        return layer, image(draw, draw.size(), axes)

    return drawn


def average_pool(kind: Callable[..., AnyLayer], axes: int) -> Drawn:  # type: ignore[explicit-any]  # sizes by axes
    def drawn(draw: Draw) -> Case:
        kernel = draw.size(1, 3)
        divisor = {"divisor": draw.one_of(None, 3)} if axes > 1 else {}
        layer = kind(
            kernel,
            **(draw.one_of({}, {"stride": per_axis(draw, axes, 1, 3)})),
            padding=per_axis(draw, axes, 0, kernel // 2),
            ceil_mode=draw.flag(),
            count_include_padding=draw.flag(),
            **divisor,
        )
        return layer, image(draw, draw.size(), axes)

    return drawn


def lp_pool(kind: Callable[..., AnyLayer], axes: int) -> Drawn:  # type: ignore[explicit-any]  # sizes by axes
    def drawn(draw: Draw) -> Case:
        options = draw.one_of({}, {"stride": per_axis(draw, axes, 1, 3)})
        return kind(draw.size(1, 3), power=2.0, **options), image(draw, draw.size(), axes)

    return drawn


def windows(draw: Draw) -> dict[str, int | tuple[int, ...]]:
    return {"stride": per_axis(draw, 2, 1, 2), "padding": per_axis(draw, 2, 0, 1), "dilation": per_axis(draw, 2, 1, 2)}


def unfold(draw: Draw) -> Case:
    return fundl.Unfold(draw.size(1, 3), **windows(draw)), image(draw, draw.size(), 2)


def fold(draw: Draw) -> Case:
    kernel, options = draw.size(1, 3), windows(draw)
    x = image(draw, draw.size(), 2)
    patches = fundl.apply(fundl.Unfold(kernel, **options), x)
    return fundl.Fold(tuple(x.shape[2:]), kernel, **options), draw.normal(*patches.shape)


def prelu(draw: Draw) -> Case:
    channels = draw.size()
    return fundl.prelu(draw.one_of(1, channels)), image(draw, channels, draw.size(1, 3))


def adaptive(kind: Callable[..., AnyLayer], axes: int) -> Drawn:  # type: ignore[explicit-any]  # sizes by axes
    return lambda draw: (kind(per_axis(draw, axes, 1, 6)), image(draw, draw.size(), axes, 1))


def whole_channels(kind: Callable[[], AnyLayer]) -> Drawn:
    return lambda draw: (kind(), image(draw, draw.size(), draw.size(1, 3), 1))


def upsample(draw: Draw) -> Case:
    axes = draw.size(1, 3)
    x = image(draw, draw.size(), axes, 2)
    mode: Literal["nearest", "linear"] = draw.one_of("nearest", "linear")
    corners = mode == "linear" and draw.flag()
    if draw.flag():
        return fundl.Upsample(size=tuple(draw.size(1, 9) for _ in range(axes)), mode=mode, align_corners=corners), x
    factor = tuple(draw.one_of(0.5, 1.0, 2.0, 4.0) for _ in range(axes))  # whose inverses are exact in each dtype
    return fundl.Upsample(factor, mode=mode, align_corners=corners), x


def pad(draw: Draw) -> Case:
    axes = draw.size(1, 3)
    padding = tuple((draw.size(0, 2), draw.size(0, 2)) for _ in range(axes))
    mode: PadMode = draw.one_of("constant", "reflect", "replicate", "circular")
    return fundl.Pad(padding, mode=mode, value=0.5 if mode == "constant" else 0.0), image(draw, draw.size(), axes, 3)


def shuffle(draw: Draw) -> Case:
    factor = draw.size(1, 3)
    x = draw.normal(draw.size(1, 3), factor**2 * draw.size(1, 2), draw.size(), draw.size())
    return fundl.PixelShuffle(factor), x


def unshuffle(draw: Draw) -> Case:
    factor = draw.size(1, 3)
    x = draw.normal(draw.size(1, 3), draw.size(1, 2), factor * draw.size(), factor * draw.size())
    return fundl.PixelUnshuffle(factor), x


def flatten(draw: Draw) -> Case:
    x = draw.normal(draw.batch(), *(draw.size(1, 3) for _ in range(draw.size(1, 3))))
    return fundl.Flatten(draw.size(1, x.ndim - 1)), x


def reshape(draw: Draw) -> Case:
    sizes = tuple(draw.size() for _ in range(draw.size(1, 3)))
    count = torch.Size(sizes).numel()
    return fundl.Reshape(sizes), draw.normal(draw.batch(), count)


def recurrent(make: Callable[..., AnyLayer]) -> Drawn:  # type: ignore[explicit-any]  # an RNN has an activation
    def drawn(draw: Draw) -> Case:
        features = draw.size()
        options = {"activation": draw.one_of("tanh", "relu")} if make is fundl.rnn else {}
        layer = make(features, draw.size(), depth=draw.size(1, 2), bidirectional=draw.flag(), bias=draw.flag(), **options)
        return layer, draw.normal(draw.size(1, 3), draw.size(1, 5), features)

    return drawn


def self_attention(draw: Draw) -> Case:
    heads = draw.size(1, 3)
    features = heads * draw.size(1, 3)
    layer = fundl.self_attention(features, heads, bias=draw.flag())
    return layer, draw.normal(draw.size(1, 3), draw.size(1, 5), features)


def cross_attention(draw: Draw) -> Case:
    heads, batch = draw.size(1, 3), draw.size(1, 3)
    features, memory = heads * draw.size(1, 3), draw.size(1, 5)
    layer = fundl.cross_attention(features, heads, memory_features=memory, bias=draw.flag())
    return layer, (draw.normal(batch, draw.size(1, 4), features), draw.normal(batch, draw.size(1, 5), memory))


def block(draw: Draw) -> Case:
    heads = draw.size(1, 2)
    features = heads * draw.size(3, 4)
    layer = fundl.transformer_block(features, heads, hidden=draw.size(), bias=draw.flag())
    return layer, draw.normal(draw.size(1, 3), draw.size(1, 4), features)


DRAWN: Final[Mapping[str, Drawn]] = {
    "activations": lambda draw: (draw.one_of(*ACTIVATIONS), anywhere(draw)),
    "GLU": glu,
    "Softmax": softmax(fundl.Softmax),
    "LogSoftmax": softmax(fundl.LogSoftmax),
    "Softmin": softmax(fundl.Softmin),
    "PReLU": prelu,
    "Linear": linear,
    "Bilinear": bilinear,
    "Embedding": embedding,
    "Conv1d": convolution(fundl.conv1d, 1),
    "Conv2d": convolution(fundl.conv2d, 2),
    "Conv3d": convolution(fundl.conv3d, 3),
    "ConvTranspose1d": transposed(fundl.conv_transpose1d, 1),
    "ConvTranspose2d": transposed(fundl.conv_transpose2d, 2),
    "ConvTranspose3d": transposed(fundl.conv_transpose3d, 3),
    "LayerNorm": of_features(fundl.layer_norm, bias=True),
    "RMSNorm": of_features(fundl.rms_norm, bias=False),
    "GroupNorm": group_norm,
    "BatchNorm": batch_norm,
    "InstanceNorm": instance_norm,
    "MaxPool1d": max_pool(fundl.MaxPool1d, 1),
    "MaxPool2d": max_pool(fundl.MaxPool2d, 2),
    "MaxPool3d": max_pool(fundl.MaxPool3d, 3),
    "AveragePool1d": average_pool(fundl.AveragePool1d, 1),
    "AveragePool2d": average_pool(fundl.AveragePool2d, 2),
    "AveragePool3d": average_pool(fundl.AveragePool3d, 3),
    "LPPool1d": lp_pool(fundl.LPPool1d, 1),
    "LPPool2d": lp_pool(fundl.LPPool2d, 2),
    "LPPool3d": lp_pool(fundl.LPPool3d, 3),
    "Unfold": unfold,
    "Fold": fold,
    "ChannelDropout": lambda draw: (fundl.ChannelDropout(0.5), image(draw, draw.size(), draw.size(1, 3))),
    "AlphaDropout": lambda draw: (fundl.AlphaDropout(0.5), anywhere(draw)),
    "AdaptiveAveragePool1d": adaptive(fundl.AdaptiveAveragePool1d, 1),
    "AdaptiveAveragePool2d": adaptive(fundl.AdaptiveAveragePool2d, 2),
    "AdaptiveAveragePool3d": adaptive(fundl.AdaptiveAveragePool3d, 3),
    "AdaptiveMaxPool1d": adaptive(fundl.AdaptiveMaxPool1d, 1),
    "AdaptiveMaxPool2d": adaptive(fundl.AdaptiveMaxPool2d, 2),
    "AdaptiveMaxPool3d": adaptive(fundl.AdaptiveMaxPool3d, 3),
    "GlobalAveragePool": whole_channels(fundl.GlobalAveragePool),
    "GlobalMaxPool": whole_channels(fundl.GlobalMaxPool),
    "Upsample": upsample,
    "Pad": pad,
    "PixelShuffle": shuffle,
    "PixelUnshuffle": unshuffle,
    "Flatten": flatten,
    "Reshape": reshape,
    "RNN": recurrent(fundl.rnn),
    "GRU": recurrent(fundl.gru),
    "LSTM": recurrent(fundl.lstm),
    "SelfAttention": self_attention,
    "CrossAttention": cross_attention,
    "transformer_block": block,
}


# --- Layouts -----------------------------------------------------------------------------------------------------------


def transposed_in_memory(x: Tensor) -> Tensor:
    axes = tuple(reversed(range(x.ndim)))
    return x.permute(axes).contiguous().permute(axes)


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.ndim > 2 else x


def strided(x: Tensor) -> Tensor:
    return torch.stack((x, x), -1)[..., 1]


def expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape) if x.ndim and len(x) else x


LAYOUTS: Final[Sequence[Callable[[Tensor], Tensor]]] = (
    torch.Tensor.contiguous,
    transposed_in_memory,
    channels_last,
    strided,
    expanded,
)
