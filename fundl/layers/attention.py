"""Attention: each position of a sequence takes a mean of others, weighted by how well their keys answer its query."""

from typing import Final, Generic, Self, TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common import products
from fundl._common.place import Place
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer, Stacked, normal, xavier_uniform, zeros
from fundl.layer import Layer
from fundl.layers._attending import NOTHING, Attended, Attention, Pairs, distances, relative_backward, relative_bias
from fundl.layers._projecting import (
    affine,
    head_size,
    in_heads,
    joined,
    merged,
    of_affine,
    of_output,
    require_dropout,
    require_heads,
    require_scores,
    require_sequences,
    require_visible,
)
from fundl.layers._refusals import require_at_least_one
from fundl.layers.positional import Rotation, Stretch, require_stretch, rotation, turning, turning_at
from fundl.random import Key
from fundl.shapes import Batch, Features, Shape, Steps, expect
from fundl.tree import BUFFER, Record

Size = TypeVar("Size", bound=int)

_XAVIER: Final = xavier_uniform()


@final
@attrs.frozen(eq=False)
class KeysAndValues(Record):
    """What attention keeps of the positions of a sequence that were run, for those that follow.

    Args:
        keys: (B, length, K, d), of K heads, turned by their positions where the layer is rotary.
        values: likewise.
    """

    keys: Tensor
    values: Tensor


_Kept: TypeAlias = tuple[Tensor, Attended, Rotation | None]  # the input; how queries and keys were turned


@final
@attrs.frozen(eq=False)
class SelfAttention(Layer[_Kept, Tensor, Tensor], Generic[Features]):
    """Multi-head attention of a sequence to itself: each position asks all others.

        [q, k, v] = x W^T + b,    y = [a_1, ..., a_H] U^T + c,    a_h = softmax(q_h k_h^T / sqrt(d)) v_h

    H heads of d features each; the rows of W are those of all queries, then of all keys, then of all values, head by head.
    With fewer heads for keys and values (grouped-query attention; with one, multi-query attention), each serves as many heads
    of queries in a row. A position that sees no other, since all are padding, has a = 0. What else can be done to the scores,
    q_h k_h^T / sqrt(d), by a window, a cap, a scale, ALiBi or a learned bias, is said of `Attend`.

    On CUDA, the kernels add up the gradients of queries in an order that may differ from run to run, and with it the last bits.
    After ``torch.use_deterministic_algorithms(True)`` it does not, and backward takes longer.

    Its vjp, with grad_q, grad_k, grad_v those of softmax(q k^T / sqrt(d)) v for grad U, and x, grad and so on as rows:

        grad_c = sum of grad,    grad_U = grad^T a,    g = [grad_q, grad_k, grad_v],
        grad_b = sum of g,       grad_W = g^T x,       grad_x = g W

    That of `relative` is the sum of the gradient with respect to the scores over all pairs of a distance.

    Args:
        weight: W, of shape ((H + 2 K) d, F), with K heads for keys and values.
        bias: b, of shape ((H + 2 K) d,), or None.
        output_weight: U, of shape (F, H d).
        output_bias: c, of shape (F,), or None.
        heads: H.
        key_value_heads: K, which divides H; None, the default, for H.
        causal: whether a position sees only itself and those before it; False by default.
        rotary: the base of the angles by which queries and keys are turned, see `rotation`; None, the default, for no turning.
        stretch: for sequences that are longer than those learned first: (factor, low, high, length), by which the angles of
            pairs that turn less than `low` times in that length are divided by the factor, those that turn more than `high`
            times are not, and those between in proportion; None, the default, for none. Llama 3.1 has (8, 1, 4, 8192).
        window: a position sees those less than so many away, itself among them; None, the default, for all.
        soft_cap: what no score exceeds; None, the default, for no cap.
        alibi: whether scores fall with the distance, by a slope of each head; False by default.
        scale: what scores are multiplied with in place of 1 / sqrt(d), which is the default, None.
        relative: a bias for the score of each distance, of shape (H, 2 R + 1): relative[h, R + n] where the key is n positions
            behind the query, and n from -R to R, where all farther ones are counted; None, the default, for none.
        dropout: the probability to drop a weight of the mean, from 0, the default, up to, but not including, 1.
        key: what dropout draws from; None, the default, for no dropout. `rekey` fills it.
        mask: of shape (B, T) and dtype bool, True where a position is real; None, the default, if all are. `on_masked` fills
            it.
        visible: of dtype bool, True where a position may see another: of a shape that broadcasts to (B, H, T, T), such as
            (T, T), the one that sees first; None, the default, if each may see all.
        weight_init: how `initialize` draws the weight; from Xavier's uniform distribution by default.
        bias_init: how it draws the bias; zeros by default.
        output_weight_init: how it draws the output's weight; likewise from Xavier's uniform distribution.
        output_bias_init: how it draws the output's bias; zeros by default.
        relative_init: how it draws `relative`; from N(0, 0.02^2) by default.

    Shape:
        (B, T, F), kept

    Residuals:
        The input, shared. Queries, keys, values and what comes of them: (2 + 2 K / H) times the bytes of an input of H d
        features. 1 number for each head and position. With dropout, a soft cap or `relative`, on an empty sequence, or where no
        kernel takes it (on CUDA: float64, heads whose features are no multiple of 16 bytes, a window, ALiBi and `visible`)
        instead: T numbers, and with dropout T bytes.

    Raises:
        ValueError: an option is out of its range, the input is not of shape (B, T, F), or not of the mask's B and T.
        TypeError: the input's dtype is not the weight's.

    Source:
        Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser and Polosukhin, Attention is all you need, 2017; Dao, Fu,
        Ermon, Rudra and Ré, FlashAttention: fast and memory-efficient exact attention with IO-awareness, 2022; Ainslie,
        Lee-Thorp, de Jong, Zemlyanskiy, Lebrón and Sanghai, GQA: training generalized multi-query transformer models from
        multi-head checkpoints, 2023.

    >>> from fundl import apply, initialize, key, self_attention
    >>> apply(initialize(key(0), self_attention(8, 2, causal=True)), torch.zeros(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    weight: Tensor
    bias: Tensor | None
    output_weight: Tensor
    output_bias: Tensor | None
    heads: int
    key_value_heads: int | None = attrs.field(default=None, kw_only=True)
    causal: bool = attrs.field(default=False, kw_only=True)
    rotary: float | None = attrs.field(default=None, kw_only=True)
    stretch: Stretch | None = attrs.field(default=None, kw_only=True)
    window: int | None = attrs.field(default=None, kw_only=True)
    soft_cap: float | None = attrs.field(default=None, kw_only=True)
    alibi: bool = attrs.field(default=False, kw_only=True)
    scale: float | None = attrs.field(default=None, kw_only=True)
    relative: Tensor | None = attrs.field(default=None, kw_only=True)
    dropout: float = attrs.field(default=0.0, kw_only=True)
    key: Key | None = attrs.field(default=None, kw_only=True, metadata=BUFFER)
    mask: Tensor | None = attrs.field(default=None, kw_only=True, metadata=BUFFER)
    visible: Tensor | None = attrs.field(default=None, kw_only=True, metadata=BUFFER)
    weight_init: Initializer = attrs.field(default=_XAVIER, kw_only=True)
    bias_init: Initializer = attrs.field(default=zeros(), kw_only=True)
    output_weight_init: Initializer = attrs.field(default=_XAVIER, kw_only=True)
    output_bias_init: Initializer = attrs.field(default=zeros(), kw_only=True)
    relative_init: Initializer = attrs.field(default=normal(0.02), kw_only=True)

    def __attrs_post_init__(self) -> None:
        require_heads(self.heads, self.key_value_heads)
        require_dropout("SelfAttention", self.dropout)
        require_scores("SelfAttention", self.window, self.soft_cap, self.scale)
        require_stretch(self.stretch)
        if self.stretch is not None and self.rotary is None:
            raise ValueError("SelfAttention's stretch is of its rotary angles: give their base as well, rotary=10_000.0")

    @property
    def draws(self) -> bool:
        """Whether it has any use for a key."""
        return self.dropout > 0

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, _Kept]:
        require_sequences("SelfAttention", x, self.mask)
        turn = None
        if self.rotary is not None:
            size = self.output_weight.shape[1] // self.heads
            turn = turning(x.shape[1], size, base=self.rotary, dtype=x.dtype, device=x.device, stretch=self.stretch)
        q, k, v = self._projected(x, turn)
        if self.visible is not None:
            require_visible("SelfAttention", self.visible, (*q.shape[:3], k.shape[2]))
        attended = self._attention.forward(q, k, v, self.mask, self.key, pairs=self._pairs(q))
        y = products.linear(merged(attended.output), self.output_weight, self.output_bias)
        return y, (x, attended, turn)

    @override
    def backward(self, residuals: _Kept, grad: Tensor) -> tuple[Self, Tensor]:
        x, attended, turning = residuals
        *grads_out, grad_output = of_output(self.output_weight, self.output_bias, attended.output, grad)
        found = self._attention.backward_with_bias(attended, self.mask, grad_output, pairs=self._pairs(attended.q))
        grad_q, grad_k, grad_v, grad_bias = found
        if turning is not None:
            grad_q, grad_k = turning.backward(grad_q), turning.backward(grad_k)
        grad_heads = joined(grad_q, grad_k, grad_v)  # (B, T, (H + 2 K) d)
        grads = self.gradient(*of_affine(x, grad_heads, self.bias), *grads_out, self._of_relative(grad_bias))
        return grads, products.matmul(grad_heads, self.weight)

    def _projected(self, x: Tensor, turn: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, of which the first two are turned."""
        few = self.key_value_heads or self.heads
        heads = in_heads(x, self.weight, self.bias, self.heads + 2 * few, layer="SelfAttention")  # (B, H + 2 K, T, d)
        if turn is not None:
            # in place: the memory is the layer's own, and no one has seen it yet
            turned = heads.narrow(1, 0, self.heads + few)
            turned.copy_(turn.forward(turned))
        q, k, v = heads.split_with_sizes((self.heads, few, few), 1)
        return q, k, v

    # --- A few positions at a time ---

    @override
    def first_cache(self, batch: int, length: int) -> KeysAndValues:
        if not self.causal:
            raise TypeError(
                "SelfAttention(causal=False) cannot be run a position at a time: what it gives depends on later positions"
            )
        for name, given in (("a mask", self.mask), ("visible", self.visible), ("a key", self.key)):
            if given is not None:
                raise ValueError(f"SelfAttention has {name}, but is run a position at a time without: take it away")
        few = self.key_value_heads or self.heads
        shape = batch, length, few, self.output_weight.shape[1] // self.heads
        return KeysAndValues(self.weight.new_zeros(shape), self.weight.new_zeros(shape))

    @override
    def step(self, x: Tensor, cache: object, place: Place) -> tuple[Tensor, KeysAndValues]:
        assert isinstance(cache, KeysAndValues)  # `first_cache` made it
        require_sequences("SelfAttention", x)
        turn = None
        if self.rotary is not None:
            size = self.output_weight.shape[1] // self.heads
            base, stretch = self.rotary, self.stretch
            turn = place.once(
                (base, size, x.dtype, stretch),
                lambda: turning_at(place.at.unsqueeze(1), size, base=base, dtype=x.dtype, stretch=stretch),
            )
        q, k, v = self._projected(x, turn)
        after = KeysAndValues(place.written(cache.keys, k.transpose(1, 2)), place.written(cache.values, v.transpose(1, 2)))
        if place.is_first:
            pairs = self._pairs(q)
        else:
            bias = None if self.relative is None else relative_bias(self.relative, place.distance)
            k, v = (part.narrow(1, 0, place.used).transpose(1, 2) for part in (after.keys, after.values))
            pairs = Pairs(None, bias, place.distance)
        attended = self._attention.forward(q, k, v, None, None, pairs=pairs)
        return products.linear(merged(attended.output), self.output_weight, self.output_bias), after

    @property
    def _attention(self) -> Attention:
        return Attention(self.causal, self.dropout, self.window, self.soft_cap, self.alibi, self.scale)

    def _pairs(self, q: Tensor) -> Pairs:
        """What is given of pairs of positions, for queries (B, H, T, d)."""
        if self.relative is None and self.visible is None:
            return NOTHING
        steps = q.shape[2]
        bias = None if self.relative is None else relative_bias(self.relative, distances(steps, steps, q.device))
        return Pairs(self.visible, bias)

    def _of_relative(self, grad_bias: Tensor | None) -> Tensor | None:
        if grad_bias is None or self.relative is None:
            return None
        steps = grad_bias.shape[-1]
        return relative_backward(grad_bias, self.relative, distances(steps, steps, grad_bias.device))

    @override
    def output_shape(self, shape: Shape[Batch, Steps, Features]) -> Shape[Batch, Steps, Features]:
        batch, steps, features = shape.exactly(3)
        expect("features", features, self.weight.shape[-1])
        return Shape(batch, steps, features)


@with_suggestions
def self_attention(
    features: Size,
    heads: int,
    *,
    key_value_heads: int | None = None,
    causal: bool = False,
    rotary: float | None = None,
    stretch: Stretch | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi: bool = False,
    scale: float | None = None,
    relative: int | None = None,
    dropout: float = 0.0,
    bias: bool = True,
    weight_init: Initializer = _XAVIER,
    bias_init: Initializer = zeros(),
    output_weight_init: Initializer = _XAVIER,
    output_bias_init: Initializer = zeros(),
    relative_init: Initializer = normal(0.02),  # a frozen record
    dtype: torch.dtype = torch.float32,
) -> SelfAttention[Size]:
    """A `SelfAttention`, without values: give it some with `initialize`.

    Args:
        features: F, size of the input's last axis, and of the output's; a multiple of the heads.
        heads: H, how many; each has F / H features.
        relative: R, the distance up to which each has a bias of its own; None, the default, for no such biases.
        bias: whether to add biases.
        weight_init: how to draw the weights of queries, keys and values, each by itself and with its own fans.
        bias_init: how to draw their biases, likewise.
        dtype: the parameters' dtype.

    All other options are fields of `SelfAttention`.

    Raises:
        ValueError: a size is less than 1, the heads do not divide the features, or K does not divide H; an option is out of
            its range.

    >>> from fundl import self_attention
    >>> layer = self_attention(128, 4, key_value_heads=2, causal=True)
    >>> layer.weight.shape, layer.output_weight.shape
    (torch.Size([256, 128]), torch.Size([128, 128]))
    """
    size, few = head_size(features, heads, key_value_heads), (key_value_heads or heads)
    rows = (heads * size, few * size, few * size)
    if rotary is not None:
        rotation(0, size, base=rotary)  # raises, unless both can be
    if relative is not None:
        require_at_least_one(relative=relative)
    return SelfAttention(
        *affine(sum(rows), features, bias=bias, dtype=dtype),
        *affine(features, features, bias=bias, dtype=dtype),
        heads,
        key_value_heads=key_value_heads,
        causal=causal,
        rotary=rotary,
        stretch=stretch,
        window=window,
        soft_cap=soft_cap,
        alibi=alibi,
        scale=scale,
        relative=None if relative is None else torch.empty(heads, 2 * relative + 1, dtype=dtype, device="meta"),
        dropout=dropout,
        weight_init=Stacked(weight_init, rows),
        bias_init=Stacked(bias_init, rows),
        output_weight_init=output_weight_init,
        output_bias_init=output_bias_init,
        relative_init=relative_init,
    )
