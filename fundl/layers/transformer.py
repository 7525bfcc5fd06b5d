"""Transformers: blocks of attention and of a network at each position, each with a way around it, and stacks of blocks.

A block is a composition of layers, no more, and a stack is a tuple of blocks: what they are made of stands in their types.
Whoever wants another block composes one.
"""

from typing import Generic, Protocol, Self, TypeAlias, TypedDict, cast, final, overload

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, Unpack, override

from fundl._common.checks import require_model
from fundl._common.place import Place
from fundl._common.running import note_place, run_backward
from fundl._common.stepping import first_cache, step_inside
from fundl._common.suggestions import with_suggestions
from fundl.layer import AnyLayer, Layer, Model
from fundl.layers._inside import forward_inside
from fundl.layers._refusals import require_at_least_one, require_layer
from fundl.layers.attention import SelfAttention, self_attention
from fundl.layers.cross_attention import CrossAttention, cross_attention, require_with_memory
from fundl.layers.dropout import Dropout
from fundl.layers.feed_forward import feed_forward as feed_forward_of
from fundl.layers.linear import Linear
from fundl.layers.normalization import LayerNorm, layer_norm
from fundl.layers.self_gated import GELU
from fundl.layers.structure import Residual, residual
from fundl.model import output_shape
from fundl.shapes import AnySize, Features

Size = TypeVar("Size", bound=int)
Norm = TypeVar("Norm", bound=AnyLayer)
Network = TypeVar("Network", bound=Model)
T = TypeVar("T")
Part = TypeVar("Part", bound=Model)
Block = TypeVar("Block", bound=AnyLayer)
NormOf = TypeVar("NormOf", bound=AnyLayer, covariant=True, default=AnySize)
NetworkOf = TypeVar("NetworkOf", bound=Model, covariant=True, default=AnySize)
GradX = TypeVar("GradX", covariant=True)
BlockOf = TypeVar("BlockOf", bound=AnyLayer, covariant=True, default=AnySize)

AttentionPart: TypeAlias = Residual[Norm, SelfAttention[Size], Dropout]
"""The first part of a block: x + dropout(attention(norm(x)))."""
NetworkPart: TypeAlias = Residual[Norm, Network, Dropout]
"""The last part of a block: x + dropout(feed_forward(norm(x)))."""
FeedForward: TypeAlias = tuple[Linear[Size, int], GELU, Linear[int, Size]]
"""The network of a block that is given no other."""


class Options(TypedDict, total=False):
    """What else a block can be told, whatever it is made of: see `transformer_block`."""

    causal: bool
    key_value_heads: int | None
    rotary: float | None
    dropout: float
    bias: bool
    dtype: torch.dtype


class MemoryOptions(Options, total=False):
    """What else a block can be told that looks at a memory: see `decoder_block`."""

    memory_features: int | None


# --- Blocks ------------------------------------------------------------------------------------------------------------


@overload
def transformer_block(
    features: Size, heads: int, *, hidden: int | None = ..., **options: Unpack[Options]
) -> tuple[AttentionPart[LayerNorm[Size], Size], NetworkPart[LayerNorm[Size], FeedForward[Size]]]: ...
@overload
def transformer_block(
    features: Size, heads: int, *, norm: Norm, hidden: int | None = ..., **options: Unpack[Options]
) -> tuple[AttentionPart[Norm, Size], NetworkPart[Norm, FeedForward[Size]]]: ...
@overload
def transformer_block(
    features: Size, heads: int, *, feed_forward: Network, **options: Unpack[Options]
) -> tuple[AttentionPart[LayerNorm[Size], Size], NetworkPart[LayerNorm[Size], Network]]: ...
@overload
def transformer_block(
    features: Size, heads: int, *, norm: Norm, feed_forward: Network, **options: Unpack[Options]
) -> tuple[AttentionPart[Norm, Size], NetworkPart[Norm, Network]]: ...
@with_suggestions
def transformer_block(
    features: Size,
    heads: int,
    *,
    norm: AnyLayer | None = None,
    feed_forward: "Model | None" = None,
    hidden: int | None = None,
    causal: bool = False,
    key_value_heads: int | None = None,
    rotary: float | None = None,
    dropout: float = 0.0,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[AttentionPart[AnyLayer, Size], NetworkPart[AnyLayer, Model]]:
    """A block of a transformer, normalised at its entries ("pre-norm"): z = x + attention(norm(x)), y = z + f(norm(z)).

    It is composed of `residual`, `self_attention`, `Dropout` and the network f, without values: give it some with
    `initialize`. The encoder of a transformer is made of such blocks, and with `causal` a language model.

    Args:
        features: size of the last axis of the input, and of the output.
        heads: of attention, how many; they divide the features.
        norm: a layer that normalises, which stands in both places; by default a `layer_norm` of the features.
        feed_forward: f, a model that runs at each position; by default a `feed_forward` with GELU.
        hidden: how many features there are inside the default f; by default 4 times as many as outside.
        causal: whether a position sees only itself and those before it.
        key_value_heads: how many heads there are for keys and values; by default as many as for queries.
        rotary: the base of the angles by which queries and keys are turned, such as 10_000.0; None for no turning.
        dropout: the probability to drop an element of what attention and f give, and to drop a weight of attention.
        bias: whether attention, and the default f and norm, add biases.
        dtype: of the parameters of all but `norm` and `feed_forward`.

    Raises:
        ValueError: an option is out of its range, the parts do not fit together, or `hidden` is given as well as
            `feed_forward`, which it is not for.

    Source:
        Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser and Polosukhin, Attention is all you need, 2017; Xiong, Yang,
        He, Zheng, Zheng, Xing, Zhang, Lan, Wang and Liu, On layer normalization in the transformer architecture, 2020.

    >>> from fundl import apply, initialize, key, transformer_block
    >>> block = initialize(key(0), transformer_block(16, 4, causal=True))
    >>> apply(block, torch.zeros(2, 5, 16)).shape
    torch.Size([2, 5, 16])
    >>> block[1].layers[1][0].weight.shape
    torch.Size([64, 16])
    """
    norm = norm if norm is not None else layer_norm(features, bias=bias, dtype=dtype)
    require_layer("norm", norm, example=f"layer_norm({features})")
    attention = self_attention(
        features,
        heads,
        causal=causal,
        key_value_heads=key_value_heads,
        rotary=rotary,
        dropout=dropout,
        bias=bias,
        dtype=dtype,
    )
    network = _network(features, hidden, feed_forward, bias=bias, dtype=dtype)
    return residual(norm, attention, Dropout(dropout)), residual(norm, network, Dropout(dropout))


def _network(features: int, hidden: int | None, given: "Model | None", *, bias: bool, dtype: torch.dtype) -> Model:
    if given is None:
        return feed_forward_of(features, 4 * features if hidden is None else hidden, bias=bias, dtype=dtype)
    if hidden is not None:
        raise ValueError(f"hidden={hidden} is for the default network: leave it out where feed_forward is given")
    return given


@with_suggestions
def encoder(blocks: int, block: Part, norm: Norm) -> tuple[tuple[Part, ...], Norm]:
    """A stack of blocks, and a normalisation at its end: y = norm(block(... block(x))), each block with values of its own.

    The stack is a tuple: ``model[0][2]`` is its third block. `initialize` draws each block by its place.

    Args:
        blocks: how many, at least 1.
        block: what to repeat, such as a `transformer_block`.
        norm: the last layer, such as a `layer_norm`: what blocks give is not normalised.

    Raises:
        ValueError: there are less than 1 block, or the parts do not fit together.
        TypeError: a part is not a model.

    >>> from fundl import encoder, layer_norm, transformer_block
    >>> model = encoder(6, transformer_block(16, 4), layer_norm(16))
    >>> len(model[0]), model[0][5][0].layers[1].heads
    (6, 4)
    """
    stack = _stack(blocks, block, norm)
    output_shape(stack)  # raises, if they do not fit
    return stack


def _stack(blocks: int, block: Part, norm: Norm) -> tuple[tuple[Part, ...], Norm]:
    require_at_least_one(blocks=blocks)
    stack = (block,) * blocks, norm
    require_model(stack)
    return stack


# --- Decoders ----------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class DecoderBlock(Layer[tuple[object, ...], tuple[Tensor, Tensor], Tensor], Generic[Features, NormOf, NetworkOf]):
    """A block of a transformer that looks at a memory too, such as the output of an encoder.

        u = x + attention(norm(x)),    z = u + cross_attention(norm(u), memory),    y = z + f(norm(z))

    Its vjp goes back part by part, and where there is a way around a part, grad goes both ways:

        grad_z = vjp of the last part,    grad_n, grad_memory = vjp(cross_attention, (norm(u), memory), grad_z),
        grad_u = grad_z + vjp(norm, u, grad_n),    grad_x = vjp of the first part, with grad_u

    Args:
        layers: a residual with self-attention; norm, cross-attention and dropout; a residual with f. Best given by
            `decoder_block`, which makes them.

    Shape:
        x (B, T, F) and memory (B, S, M) to (B, T, F)

    Residuals:
        Those of the layers.

    Raises:
        ValueError: the inputs do not fit the layers, or each other.

    Source:
        Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser and Polosukhin, Attention is all you need, 2017.
    """

    layers: tuple[AttentionPart[NormOf, Features], NormOf, CrossAttention[Features], Dropout, NetworkPart[NormOf, NetworkOf]]

    @override
    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[object, ...]]:
        queries, memory = x
        u, kept_before = _forward(self.layers[0], ".layers[0]", queries)
        normal, kept_norm = _forward(self.layers[1], ".layers[1]", u)
        seen, kept_attention = _forward(self.layers[2], ".layers[2]", (normal, memory))
        seen, kept_dropout = _forward(self.layers[3], ".layers[3]", seen)
        y, kept_after = _forward(self.layers[4], ".layers[4]", u + seen)
        return y, (kept_before, kept_norm, kept_attention, kept_dropout, kept_after)

    @override
    def backward(self, residuals: tuple[object, ...], grad: Tensor) -> tuple[Self, tuple[Tensor, Tensor]]:
        layers, kept = self.layers, [*residuals]
        del residuals  # what a layer kept is freed once its backward has run: see `Pass`
        last, grad_z = _backward(layers[4], kept.pop(), grad)
        dropout, grad_seen = _backward(layers[3], kept.pop(), grad_z)
        attention, (grad_normal, grad_memory) = _backward_to_both(layers[2], kept.pop(), grad_seen)
        norm, grad_u = _backward(layers[1], kept.pop(), grad_normal)
        first, grad_x = _backward(layers[0], kept.pop(), grad_z + grad_u)
        return self.gradient((first, norm, attention, dropout, last)), (grad_x, grad_memory)

    @override
    def first_cache(self, batch: int, length: int) -> object:
        return first_cache(self.layers, batch, length)

    @override
    def step(self, x: tuple[Tensor, Tensor | None], cache: object, place: Place) -> tuple[Tensor, object]:
        (queries, memory), (first, norm, attention, dropout, last) = require_with_memory("DecoderBlock", x), self.layers
        before, of_norm, of_memory, of_dropout, behind = cast("tuple[object, ...]", cache)  # as `first_cache` made it
        u, before = step_inside(first, queries, before, place)
        normal, of_norm = step_inside(norm, u, of_norm, place)
        seen, of_memory = step_inside(attention, (normal, memory), of_memory, place)
        seen, of_dropout = step_inside(dropout, seen, of_dropout, place)
        y, behind = step_inside(last, u + seen, behind, place)
        return y, (before, of_norm, of_memory, of_dropout, behind)


def _forward(model: Model, place: str, x: object) -> tuple[Tensor, object]:
    """What a layer at a place makes of its input, and what it keeps."""
    try:
        return forward_inside(model, x)
    except Exception as error:
        note_place(error, place)
        raise


class _Backward(Protocol[GradX]):
    def __call__(self, layers: T, residuals: object, grad: Tensor, /) -> tuple[T, GradX]: ...


# Each gradient is of its layer's type, and that of an input of the input's: a sequence, or a sequence and the memory.
_backward = cast("_Backward[Tensor]", run_backward)
_backward_to_both = cast("_Backward[tuple[Tensor, Tensor]]", run_backward)


@final
@attrs.frozen(eq=False)
class Decoder(Layer[tuple[object, ...], tuple[Tensor, Tensor], Tensor], Generic[BlockOf, NormOf]):
    """Blocks one after the other, which all look at the same memory, and a normalisation: y = norm(block(... block(x, m), m)).

    Its vjp goes back block by block; the memory's gradient is the sum of those that the blocks give.

    Args:
        layers: the blocks, and the normalisation; best given by `decoder`, which checks them.

    Shape:
        x (B, T, F) and memory (B, S, M) to (B, T, F)

    Residuals:
        Those of the layers.

    Raises:
        ValueError: the inputs do not fit the layers, or each other.

    Source:
        Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser and Polosukhin, Attention is all you need, 2017.
    """

    layers: tuple[tuple[BlockOf, ...], NormOf]

    @override
    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[object, ...]]:
        (y, memory), kept = x, list[object]()
        for place, block in enumerate(self.layers[0]):
            y, residuals = _forward(block, f".layers[0][{place}]", (y, memory))
            kept.append(residuals)
        y, residuals = _forward(self.layers[1], ".layers[1]", y)
        return y, (*kept, residuals)

    @override
    def backward(self, residuals: tuple[object, ...], grad: Tensor) -> tuple[Self, tuple[Tensor, Tensor]]:
        (blocks, norm), kept = self.layers, [*residuals]
        del residuals  # see `DecoderBlock`
        norm, grad = _backward(norm, kept.pop(), grad)
        grads: list[BlockOf] = []
        grad_memory: Tensor | None = None
        for block in reversed(blocks):
            grads_block, (grad, grad_own) = _backward_to_both(block, kept.pop(), grad)
            grads.append(grads_block)
            grad_memory = grad_own if grad_memory is None else grad_memory + grad_own
        assert grad_memory is not None  # there is a block
        return self.gradient((tuple(reversed(grads)), norm)), (grad, grad_memory)

    @override
    def first_cache(self, batch: int, length: int) -> object:
        return first_cache(self.layers, batch, length)

    @override
    def step(self, x: tuple[Tensor, Tensor | None], cache: object, place: Place) -> tuple[Tensor, object]:
        (y, memory), (blocks, norm) = require_with_memory("Decoder", x), self.layers
        kept, of_norm = cast("tuple[tuple[object, ...], object]", cache)  # as `first_cache` made it
        after = list[object]()
        for block, own in zip(blocks, kept, strict=True):
            y, own_after = step_inside(block, (y, memory), own, place)
            after.append(own_after)
        y, of_norm = step_inside(norm, y, of_norm, place)
        return y, (tuple(after), of_norm)


@overload
def decoder_block(
    features: Size, heads: int, *, hidden: int | None = ..., **options: Unpack[MemoryOptions]
) -> DecoderBlock[Size, LayerNorm[Size], FeedForward[Size]]: ...
@overload
def decoder_block(
    features: Size, heads: int, *, norm: Norm, hidden: int | None = ..., **options: Unpack[MemoryOptions]
) -> DecoderBlock[Size, Norm, FeedForward[Size]]: ...
@overload
def decoder_block(
    features: Size, heads: int, *, feed_forward: Network, **options: Unpack[MemoryOptions]
) -> DecoderBlock[Size, LayerNorm[Size], Network]: ...
@overload
def decoder_block(
    features: Size, heads: int, *, norm: Norm, feed_forward: Network, **options: Unpack[MemoryOptions]
) -> DecoderBlock[Size, Norm, Network]: ...
@with_suggestions
def decoder_block(
    features: Size,
    heads: int,
    *,
    norm: AnyLayer | None = None,
    feed_forward: "Model | None" = None,
    memory_features: int | None = None,
    hidden: int | None = None,
    causal: bool = True,
    key_value_heads: int | None = None,
    rotary: float | None = None,
    dropout: float = 0.0,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> DecoderBlock[Size, AnyLayer, Model]:
    """A `DecoderBlock`: a `transformer_block` that looks at a memory too, without values: give it some with `initialize`.

    Args:
        features: size of the last axis of x, and of the output.
        heads: of each attention, how many; they divide the features.
        norm: a layer that normalises, which stands in all three places; by default a `layer_norm` of the features.
        memory_features: size of the memory's last axis; by default that of x.
        causal: whether a position of x sees only itself and those before it in x; by default it does. It sees all the memory.

    All other options are those of `transformer_block`. They hold for both attentions; rotary is for self-attention alone.

    Raises:
        ValueError: as `transformer_block`.

    >>> from fundl import apply, decoder_block, initialize, key
    >>> block = initialize(key(0), decoder_block(16, 4, memory_features=8))
    >>> apply(block, (torch.zeros(2, 5, 16), torch.zeros(2, 7, 8))).shape
    torch.Size([2, 5, 16])
    """
    first, last = transformer_block(
        features,
        heads,
        norm=norm if norm is not None else layer_norm(features, bias=bias, dtype=dtype),
        feed_forward=_network(features, hidden, feed_forward, bias=bias, dtype=dtype),
        causal=causal,
        key_value_heads=key_value_heads,
        rotary=rotary,
        dropout=dropout,
        bias=bias,
        dtype=dtype,
    )
    attention = cross_attention(
        features,
        heads,
        memory_features=memory_features,
        key_value_heads=key_value_heads,
        dropout=dropout,
        bias=bias,
        dtype=dtype,
    )
    return DecoderBlock((first, first.layers[0], attention, Dropout(dropout), last))


@with_suggestions
def decoder(blocks: int, block: Block, norm: Norm) -> Decoder[Block, Norm]:
    """A `Decoder`: a stack of blocks that look at a memory, each with values of its own.

    Args:
        blocks: how many, at least 1.
        block: what to repeat: a `decoder_block`.
        norm: the last layer, such as a `layer_norm`.

    Raises:
        ValueError: there are less than 1 block.
        TypeError: a part is not a layer.

    >>> from fundl import decoder, decoder_block, layer_norm
    >>> model = decoder(6, decoder_block(16, 4), layer_norm(16))
    >>> len(model.layers[0]), model.layers[0][5].layers[2].heads
    (6, 4)
    """
    return Decoder(_stack(blocks, block, norm))
