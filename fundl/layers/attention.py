"""Attention: each position of a sequence takes a mean of others, weighted by how well their keys answer its query."""

from typing import Final, Generic, Self, TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common import products
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer, Stacked, xavier_uniform, zeros
from fundl.layer import Layer
from fundl.layers._attending import Attended, Attention
from fundl.layers._layout import as_matrix
from fundl.layers._refusals import require_at_least_one, require_dtype
from fundl.layers.positional import Rotation, rotation, turning
from fundl.random import Key
from fundl.shapes import Batch, Features, Shape, Steps, expect
from fundl.tree import BUFFER

Size = TypeVar("Size", bound=int)

# --- Projections -------------------------------------------------------------------------------------------------------


def _heads(x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, *, layer: str, name: str = "the input") -> Tensor:
    """An affine map of (B, T, F), seen as heads (B, heads, T, d), in memory (B, T, heads, d); errors name layer and input."""
    try:
        projected = products.linear(x, weight, bias)
    except RuntimeError as error:
        features = weight.shape[1]
        if x.shape[-1] != features:
            raise ValueError(
                f"{layer} expects {features} features, but {name} is of shape {tuple(x.shape)}: its last axis must be of size"
                f" {features}"
            ) from error
        require_dtype(f"{layer}'s parameters are", weight, x, error)
        raise
    return projected.view(*x.shape[:2], heads, weight.shape[0] // heads).transpose(1, 2)


def _merged(heads: Tensor) -> Tensor:
    """Heads (B, heads, T, d) as (B, T, heads d): no copy, if they are in memory (B, T, heads, d)."""
    return heads.transpose(1, 2).flatten(2)


def _of_output(weight: Tensor, bias: Tensor | None, heads: Tensor, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradients of the output's weight and bias, and with respect to the heads."""
    grad_heads = products.matmul(grad, weight).view(*grad.shape[:2], heads.shape[1], heads.shape[3]).transpose(1, 2)
    return *_of_affine(_merged(heads), grad, bias), grad_heads


def _of_affine(x: Tensor, grad: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The gradients of an affine map's weight and bias."""
    rows = as_matrix(grad)
    return torch.mm(rows.t(), as_matrix(x)), None if bias is None else rows.sum(0)


# --- Self-attention ----------------------------------------------------------------------------------------------------

_XAVIER: Final = xavier_uniform()

_Kept: TypeAlias = tuple[Tensor, Attended, Rotation | None]  # the input; how queries and keys were turned


@final
@attrs.frozen(eq=False)
class SelfAttention(Layer[_Kept, Tensor, Tensor], Generic[Features]):
    """Multi-head attention of a sequence to itself: each position asks all others.

        [q, k, v] = x W^T + b,    y = [a_1, ..., a_H] U^T + c,    a_h = softmax(q_h k_h^T / sqrt(d)) v_h

    H heads of d features each; the rows of W are those of all queries, then of all keys, then of all values, head by head.
    With fewer heads for keys and values (grouped-query attention; with one, multi-query attention), each serves as many heads
    of queries in a row. A position that sees no other, since all are padding, has a = 0.

    On CUDA, the kernels add up the gradients of queries in an order that may differ from run to run, and with it the last bits.
    After ``torch.use_deterministic_algorithms(True)`` it does not, and backward takes longer.

    Its vjp, with grad_q, grad_k, grad_v those of softmax(q k^T / sqrt(d)) v for grad U, and x, grad and so on as rows:

        grad_c = sum of grad,    grad_U = grad^T a,    g = [grad_q, grad_k, grad_v],
        grad_b = sum of g,       grad_W = g^T x,       grad_x = g W

    Args:
        weight: W, of shape ((H + 2 K) d, F), with K heads for keys and values.
        bias: b, of shape ((H + 2 K) d,), or None.
        output_weight: U, of shape (F, H d).
        output_bias: c, of shape (F,), or None.
        heads: H.
        key_value_heads: K, which divides H; None, the default, for H.
        causal: whether a position sees only itself and those before it; False by default.
        rotary: the base of the angles by which queries and keys are turned, see `rotation`; None, the default, for no turning.
        dropout: the probability to drop a weight of the mean, from 0, the default, up to, but not including, 1.
        key: what dropout draws from; None, the default, for no dropout. `rekey` fills it.
        mask: of shape (B, T) and dtype bool, True where a position is real; None, the default, if all are. `on_masked` fills
            it.
        weight_init: how `initialize` draws the weight; from Xavier's uniform distribution by default.
        bias_init: how it draws the bias; zeros by default.
        output_weight_init: how it draws the output's weight; likewise from Xavier's uniform distribution.
        output_bias_init: how it draws the output's bias; zeros by default.

    Shape:
        (B, T, F), kept

    Residuals:
        The input, shared. Queries, keys, values and what comes of them: (2 + 2 K / H) times the bytes of an input of H d
        features. 1 number for each head and position. With dropout, on an empty sequence, or where no kernel takes
        it (on CUDA: float64, and heads whose features are no multiple of 16 bytes) instead: T numbers, and with dropout T
        bytes.

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
    dropout: float = attrs.field(default=0.0, kw_only=True)
    key: Key | None = attrs.field(default=None, kw_only=True, metadata=BUFFER)
    mask: Tensor | None = attrs.field(default=None, kw_only=True, metadata=BUFFER)
    weight_init: Initializer = attrs.field(default=_XAVIER, kw_only=True)
    bias_init: Initializer = attrs.field(default=zeros(), kw_only=True)
    output_weight_init: Initializer = attrs.field(default=_XAVIER, kw_only=True)
    output_bias_init: Initializer = attrs.field(default=zeros(), kw_only=True)

    def __attrs_post_init__(self) -> None:
        _require_heads(self.heads, self.key_value_heads)
        _require_dropout("SelfAttention", self.dropout)

    @property
    def draws(self) -> bool:
        """Whether it has any use for a key."""
        return self.dropout > 0

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, _Kept]:
        _require_sequences("SelfAttention", x, self.mask)
        few = self.key_value_heads or self.heads
        groups = self.heads, few, few
        heads = _heads(x, self.weight, self.bias, sum(groups), layer="SelfAttention")  # (B, H + 2 K, T, d)
        turn = None
        if self.rotary is not None:
            turn = turning(*heads.shape[2:], base=self.rotary, dtype=heads.dtype, device=heads.device)
            # in place: the memory is the layer's own, and no one has seen it yet
            turned = heads.narrow(1, 0, groups[0] + groups[1])
            turned.copy_(turn.forward(turned))
        q, k, v = heads.split_with_sizes(groups, 1)
        attended = Attention(self.causal, self.dropout).forward(q, k, v, self.mask, self.key)
        y = products.linear(_merged(attended.output), self.output_weight, self.output_bias)
        return y, (x, attended, turn)

    @override
    def backward(self, residuals: _Kept, grad: Tensor) -> tuple[Self, Tensor]:
        x, attended, turning = residuals
        *grads_out, grad_output = _of_output(self.output_weight, self.output_bias, attended.output, grad)
        grad_q, grad_k, grad_v = Attention(self.causal, self.dropout).backward(attended, self.mask, grad_output)
        if turning is not None:
            grad_q, grad_k = turning.backward(grad_q), turning.backward(grad_k)
        grad_heads = _merged(torch.cat((grad_q, grad_k, grad_v), 1))  # (B, T, (H + 2 K) d)
        grads = self.gradient(*_of_affine(x, grad_heads, self.bias), *grads_out)
        return grads, products.matmul(grad_heads, self.weight)

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
    dropout: float = 0.0,
    bias: bool = True,
    weight_init: Initializer = _XAVIER,
    bias_init: Initializer = zeros(),
    output_weight_init: Initializer = _XAVIER,
    output_bias_init: Initializer = zeros(),
    dtype: torch.dtype = torch.float32,
) -> SelfAttention[Size]:
    """A `SelfAttention`, without values: give it some with `initialize`.

    Args:
        features: F, size of the input's last axis, and of the output's; a multiple of the heads.
        heads: H, how many; each has F / H features.
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
    size, few = _head_size(features, heads, key_value_heads), (key_value_heads or heads)
    rows = (heads * size, few * size, few * size)
    if rotary is not None:
        rotation(0, size, base=rotary)  # raises, unless both can be
    return SelfAttention(
        *_affine(sum(rows), features, bias=bias, dtype=dtype),
        *_affine(features, features, bias=bias, dtype=dtype),
        heads,
        key_value_heads=key_value_heads,
        causal=causal,
        rotary=rotary,
        dropout=dropout,
        weight_init=Stacked(weight_init, rows),
        bias_init=Stacked(bias_init, rows),
        output_weight_init=output_weight_init,
        output_bias_init=output_bias_init,
    )


# --- Cross-attention ---------------------------------------------------------------------------------------------------

_KeptOfBoth: TypeAlias = tuple[Tensor, Tensor, Attended]  # the input, the memory


@final
@attrs.frozen(eq=False)
class CrossAttention(Layer[_KeptOfBoth, tuple[Tensor, Tensor], Tensor], Generic[Features]):
    """Multi-head attention of a sequence x to another one, the memory: each position of x asks all of the memory.

        q = x V^T + e,    [k, v] = memory W^T + b,    y = [a_1, ..., a_H] U^T + c,    a_h = softmax(q_h k_h^T / sqrt(d)) v_h

    H heads of d features each, otherwise as `SelfAttention`.

    Its vjp, with grad_q, grad_k, grad_v those of softmax(q k^T / sqrt(d)) v for grad U, and all as rows:

        grad_c = sum of grad,    grad_U = grad^T a,           g = [grad_k, grad_v],
        grad_e = sum of grad_q,  grad_V = grad_q^T x,         grad_x = grad_q V,
        grad_b = sum of g,       grad_W = g^T memory,         grad_memory = g W

    Args:
        query_weight: V, of shape (H d, F).
        query_bias: e, of shape (H d,), or None.
        weight: W, of shape (2 K d, M), with K heads for keys and values.
        bias: b, of shape (2 K d,), or None.
        memory_mask: of shape (B, S) and dtype bool, True where a position of the memory is real; None, the default, if all
            are. `on_masked_pair` fills it.
        query_weight_init: how `initialize` draws the weight of the queries; from Xavier's uniform distribution by default.
        query_bias_init: how it draws their bias; zeros by default.

    All other fields are as in `SelfAttention`.

    Shape:
        x (B, T, F) and memory (B, S, M) to (B, T, F)

    Residuals:
        The inputs, shared. Queries, keys, values and what comes of them, as many features as the heads have together. 1 number
        for each head and position of x, and with dropout, on empty sequences, or where no kernel takes it instead, as in
        `SelfAttention`: S numbers, and with dropout S bytes.

    Raises:
        ValueError: an option is out of its range, or the inputs do not fit the weights, each other, or the mask.
        TypeError: an input's dtype is not the weight's.

    Source:
        Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser and Polosukhin, Attention is all you need, 2017.

    >>> from fundl import apply, cross_attention, initialize, key
    >>> layer = initialize(key(0), cross_attention(8, 2, memory_features=6))
    >>> apply(layer, (torch.zeros(3, 5, 8), torch.zeros(3, 7, 6))).shape
    torch.Size([3, 5, 8])
    """

    query_weight: Tensor
    query_bias: Tensor | None
    weight: Tensor
    bias: Tensor | None
    output_weight: Tensor
    output_bias: Tensor | None
    heads: int
    key_value_heads: int | None = attrs.field(default=None, kw_only=True)
    dropout: float = attrs.field(default=0.0, kw_only=True)
    key: Key | None = attrs.field(default=None, kw_only=True, metadata=BUFFER)
    memory_mask: Tensor | None = attrs.field(default=None, kw_only=True, metadata=BUFFER)
    query_weight_init: Initializer = attrs.field(default=_XAVIER, kw_only=True)
    query_bias_init: Initializer = attrs.field(default=zeros(), kw_only=True)
    weight_init: Initializer = attrs.field(default=_XAVIER, kw_only=True)
    bias_init: Initializer = attrs.field(default=zeros(), kw_only=True)
    output_weight_init: Initializer = attrs.field(default=_XAVIER, kw_only=True)
    output_bias_init: Initializer = attrs.field(default=zeros(), kw_only=True)

    def __attrs_post_init__(self) -> None:
        _require_heads(self.heads, self.key_value_heads)
        _require_dropout("CrossAttention", self.dropout)

    @property
    def draws(self) -> bool:
        """Whether it has any use for a key."""
        return self.dropout > 0

    @override
    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, _KeptOfBoth]:
        queries, memory = x
        _require_sequences("CrossAttention", queries)
        _require_sequences("CrossAttention's memory", memory, self.memory_mask)
        if queries.shape[0] != memory.shape[0]:
            raise ValueError(
                f"CrossAttention expects as many sequences in x as in the memory, but x is of shape {tuple(queries.shape)} and"
                f" the memory of shape {tuple(memory.shape)}"
            )
        few = self.key_value_heads or self.heads
        q = _heads(queries, self.query_weight, self.query_bias, self.heads, layer="CrossAttention")
        heads = _heads(memory, self.weight, self.bias, 2 * few, layer="CrossAttention", name="the memory")  # (B, 2 K, S, d)
        k, v = heads.split_with_sizes((few, few), 1)
        attended = Attention(causal=False, dropout=self.dropout).forward(q, k, v, self.memory_mask, self.key)
        y = products.linear(_merged(attended.output), self.output_weight, self.output_bias)
        return y, (queries, memory, attended)

    @override
    def backward(self, residuals: _KeptOfBoth, grad: Tensor) -> tuple[Self, tuple[Tensor, Tensor]]:
        x, memory, attended = residuals
        *grads_out, grad_output = _of_output(self.output_weight, self.output_bias, attended.output, grad)
        attention = Attention(causal=False, dropout=self.dropout)
        grad_q, grad_k, grad_v = attention.backward(attended, self.memory_mask, grad_output)
        grad_q, grad_heads = _merged(grad_q), _merged(torch.cat((grad_k, grad_v), 1))  # (B, T, H d), (B, S, 2 K d)
        of_queries, of_memory = _of_affine(x, grad_q, self.query_bias), _of_affine(memory, grad_heads, self.bias)
        grads = self.gradient(*of_queries, *of_memory, *grads_out)
        return grads, (products.matmul(grad_q, self.query_weight), products.matmul(grad_heads, self.weight))


@with_suggestions
def cross_attention(
    features: Size,
    heads: int,
    *,
    memory_features: int | None = None,
    key_value_heads: int | None = None,
    dropout: float = 0.0,
    bias: bool = True,
    weight_init: Initializer = _XAVIER,
    bias_init: Initializer = zeros(),
    output_weight_init: Initializer = _XAVIER,
    output_bias_init: Initializer = zeros(),
    dtype: torch.dtype = torch.float32,
) -> CrossAttention[Size]:
    """A `CrossAttention`, without values: give it some with `initialize`.

    Args:
        features: F, size of the last axis of x, and of the output; a multiple of the heads.
        heads: H, how many; each has F / H features.
        memory_features: M, size of the memory's last axis; by default F.

    All other options are those of `self_attention`.

    Raises:
        ValueError: a size is less than 1, the heads do not divide the features, or K does not divide H; an option is out of
            its range.

    >>> from fundl import cross_attention
    >>> cross_attention(8, 2, memory_features=6, bias=False).weight.shape
    torch.Size([16, 6])
    """
    size, few = _head_size(features, heads, key_value_heads), (key_value_heads or heads)
    memory = features if memory_features is None else memory_features
    require_at_least_one(memory_features=memory)
    rows = (few * size, few * size)
    return CrossAttention(
        *_affine(features, features, bias=bias, dtype=dtype),
        *_affine(sum(rows), memory, bias=bias, dtype=dtype),
        *_affine(features, features, bias=bias, dtype=dtype),
        heads,
        key_value_heads=key_value_heads,
        dropout=dropout,
        query_weight_init=weight_init,
        query_bias_init=bias_init,
        weight_init=Stacked(weight_init, rows),
        bias_init=Stacked(bias_init, rows),
        output_weight_init=output_weight_init,
        output_bias_init=output_bias_init,
    )


def _affine(out_features: int, in_features: int, *, bias: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The weight and bias of an affine map, without values."""
    weight = torch.empty(out_features, in_features, dtype=dtype, device="meta")
    return weight, torch.empty(out_features, dtype=dtype, device="meta") if bias else None


# --- What is refused ---------------------------------------------------------------------------------------------------


def _head_size(features: int, heads: int, key_value_heads: int | None) -> int:
    """How many features each head has."""
    require_at_least_one(features=features)
    _require_heads(heads, key_value_heads)
    if features % heads:
        raise ValueError(f"the heads must divide the features, but {features} features do not go into {heads} heads")
    return features // heads


def _require_heads(heads: int, key_value_heads: int | None) -> None:
    require_at_least_one(heads=heads)
    if key_value_heads is not None and (key_value_heads < 1 or heads % key_value_heads):
        raise ValueError(f"key_value_heads must divide the heads evenly, but {heads} heads cannot share {key_value_heads}")


def _require_dropout(layer: str, rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(
            f"{layer}'s dropout is the probability to drop a weight, from 0 up to, but not including, 1, not {rate}"
        )


def _require_sequences(name: str, x: Tensor, mask: Tensor | None = None) -> None:
    if x.ndim != 3:
        raise ValueError(f"{name} expects sequences of shape (B, T, F), but the input is of shape {tuple(x.shape)}")
    if mask is not None and mask.shape != x.shape[:2]:
        raise ValueError(
            f"{name} has a mask of shape {tuple(mask.shape)}, which must be the first two axes of the input's shape"
            f" {tuple(x.shape)}"
        )
