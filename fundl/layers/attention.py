"""Attention: each position of a sequence takes a mean of others, weighted by how well their keys answer its query.

First the function of queries, keys and values, both ways; then the layers around it.
"""

import math
from typing import Final, Generic, TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common import half, products
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer, Stacked, xavier_uniform, zeros
from fundl.layer import Layer
from fundl.layers._layout import as_matrix
from fundl.layers._refusals import require_dtype
from fundl.layers.positional import Rotation, rotation
from fundl.layers.softmax import softmax_backward
from fundl.random import Key, bernoulli
from fundl.shapes import AnySize, Shape, expect
from fundl.tree import BUFFER, Record

Features = TypeVar("Features", bound=int, covariant=True, default=AnySize)
Size = TypeVar("Size", bound=int)
Batch = TypeVar("Batch")
Steps = TypeVar("Steps")

# --- Queries, keys and values ------------------------------------------------------------------------------------------

# B sequences, H heads of queries, K heads of keys and values, T queries and S keys of d features. Head h of the queries goes
# with head h // (H / K) of the keys:
#
#     s = q k^T / sqrt(d), -inf where a key must not be seen,    p = softmax(s),    a = p m / (1 - rate),    y = a v
#
# with m the mask of dropout. The vjp, from grad (B, H, T, d):
#
#     grad_v = a^T grad,    grad_p = grad v^T m / (1 - rate),    grad_s = p (grad_p - sum over the keys of grad_p p),
#     grad_q = grad_s k / sqrt(d),    grad_k = grad_s^T q / sqrt(d)
#
# The kernel for the CPU does all this in pieces that fit its caches, and keeps the log-sum-exp of each row of s, from which
# backward finds p anew (Dao et al.). It knows no dropout; with it, and on other devices, the formula stands as it is.


@final
@attrs.frozen(eq=False)
class Attended(Record):
    """What attention gives, and keeps.

    Args:
        q: (B, H, T, d).
        k: (B, K, S, d).
        v: likewise.
        output: y, (B, H, T, d), in memory (B, T, H, d) if the kernel made it.
        logsumexp: of the rows of s, (B, H, T), if the kernel made it.
        probabilities: p, (B, H, T, S), if the formula made it.
        drawn: m, likewise, if there is dropout.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    output: Tensor
    logsumexp: Tensor | None = None
    probabilities: Tensor | None = None
    drawn: Tensor | None = None


@attrs.frozen
class Attention:
    """How queries, keys and values meet.

    Args:
        causal: whether a query sees no keys but those at its own position and before it.
        dropout: the probability to drop a weight, if there is a key.
    """

    causal: bool
    dropout: float

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, key: Key | None) -> Attended:
        """Each query's mean of the values that it sees, 0 if it sees none; with `mask` (B, S) True where a key is real."""
        dropping = key is not None and self.dropout > 0
        if not dropping and self._has_kernel(q, k):
            return Attended(q, k, v, *half.attention(q, k, v, self.causal, _added(mask, q.dtype)))
        scores = torch.matmul(q, _for_each_query_head(k, q).transpose(-1, -2)) * (1 / math.sqrt(q.shape[-1]))
        hidden = self._hidden(scores, mask)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -math.inf)
        weights = torch.softmax(scores, -1)
        if hidden is not None:
            weights = weights.masked_fill(hidden, 0)  # the softmax of nothing is NaN
        values = _for_each_query_head(v, q)
        if key is None or not dropping:
            return Attended(q, k, v, torch.matmul(weights, values), probabilities=weights)
        drawn = bernoulli(key.to(q.device), tuple(weights.shape), probability=1 - self.dropout)
        return Attended(q, k, v, torch.matmul(self._dropped(weights, drawn), values), probabilities=weights, drawn=drawn)

    def backward(self, attended: Attended, mask: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients with respect to q, k and v."""
        q, k, v, weights, drawn = attended.q, attended.k, attended.v, attended.probabilities, attended.drawn
        if attended.logsumexp is not None:
            kept = attended.output, attended.logsumexp
            return half.attention_backward(grad, q, k, v, *kept, self.causal, _added(mask, q.dtype))
        assert weights is not None  # one of the two is kept
        grad_weights = torch.matmul(grad, _for_each_query_head(v, q).transpose(-1, -2))
        if drawn is not None:
            grad_weights = self._dropped(grad_weights, drawn)
        grad_v = torch.matmul((weights if drawn is None else self._dropped(weights, drawn)).transpose(-1, -2), grad)
        grad_scores = softmax_backward(grad_weights, weights, -1) * (1 / math.sqrt(q.shape[-1]))
        grad_q = torch.matmul(grad_scores, _for_each_query_head(k, q))
        grad_k = torch.matmul(grad_scores.transpose(-1, -2), q)
        return grad_q, _for_each_key_head(grad_k, k), _for_each_key_head(grad_v, v)

    def _has_kernel(self, q: Tensor, k: Tensor) -> bool:
        return q.device.type in {"cpu", "meta"} and q.shape[-2] > 0 and k.shape[-2] > 0

    def _hidden(self, scores: Tensor, mask: Tensor | None) -> Tensor | None:
        """Where a query must not see a key, of a shape that broadcasts to (B, H, T, S)."""
        hidden = None if mask is None else ~mask[:, None, None, :]
        if not self.causal:
            return hidden
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return later if hidden is None else hidden | later

    def _dropped(self, x: Tensor, drawn: Tensor) -> Tensor:
        return x * drawn * (1 / (1 - self.dropout))


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores for the mask, as the kernel takes it: (B, 1, 1, S)."""
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -math.inf)[:, None, None, :]


def _for_each_query_head(k: Tensor, q: Tensor) -> Tensor:
    """Keys or values, repeated for the heads of the queries that share them."""
    return k if k.shape[1] == q.shape[1] else k.repeat_interleave(q.shape[1] // k.shape[1], 1)


def _for_each_key_head(grad: Tensor, k: Tensor) -> Tensor:
    """The gradient of keys or values from that of their repetitions."""
    heads = k.shape[1]
    return grad if grad.shape[1] == heads else torch.unflatten(grad, 1, (heads, grad.shape[1] // heads)).sum(2)


# --- Projections -------------------------------------------------------------------------------------------------------


def _heads(x: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """An affine map of (B, T, F), seen as heads (B, heads, T, d), in memory (B, T, heads, d)."""
    features = products.linear(x, weight, bias)
    return features.view(*x.shape[:2], heads, weight.shape[0] // heads).transpose(1, 2)


def _merged(heads: Tensor) -> Tensor:
    """Heads (B, heads, T, d) as (B, T, heads d): no copy, if they are in memory (B, T, heads, d)."""
    return heads.transpose(1, 2).flatten(2)


def _of_output(weight: Tensor, bias: Tensor | None, heads: Tensor, grad: Tensor) -> tuple[tuple[Tensor, Tensor | None], Tensor]:
    """The gradients of the output's weight and bias, and with respect to the heads."""
    grads = _of_affine(as_matrix(_merged(heads)), as_matrix(grad), bias)
    return grads, products.matmul(grad, weight).view(*grad.shape[:2], heads.shape[1], heads.shape[3]).transpose(1, 2)


def _of_affine(x: Tensor, grad: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The gradients of an affine map's weight and bias, from rows of x and of grad."""
    return torch.mm(grad.t(), x), None if bias is None else grad.sum(0)


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
        weight_init: how `initialize` draws the weight.
        bias_init: how it draws the bias.
        output_weight_init: how it draws the output's weight.
        output_bias_init: how it draws the output's bias.

    Shape:
        (B, T, F), kept

    Residuals:
        The input, shared. Queries, keys, values and what comes of them: (2 + 2 K / H) times the bytes of an input of H d
        features. 1 number for each head and position, and with dropout, on an empty sequence or on another device than the
        CPU instead: T numbers, and with dropout T bytes.

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

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, _Kept]:
        _require_sequences("SelfAttention", x, self.mask)
        groups = self._groups()
        try:
            heads = _heads(x, self.weight, self.bias, sum(groups))  # (B, H + 2 K, T, d)
        except RuntimeError as error:
            _explain("SelfAttention", "the input", x, self.weight, error)
            raise
        turning = self._rotation(heads)
        if turning is not None:  # in place: the memory is the layer's own, and no one has seen it yet
            turned = heads.narrow(1, 0, groups[0] + groups[1])
            turned.copy_(turning.forward(turned))
        q, k, v = heads.split_with_sizes(groups, 1)
        attended = self._attention().forward(q, k, v, self.mask, self.key)
        y = products.linear(_merged(attended.output), self.output_weight, self.output_bias)
        return y, (x, attended, turning)

    @override
    def backward(self, residuals: _Kept, grad: Tensor) -> tuple["SelfAttention[Features]", Tensor]:
        grads, grad_heads = self._backward(residuals, grad)
        return grads, products.matmul(grad_heads, self.weight)

    @override
    def backward_params(self, residuals: _Kept, grad: Tensor) -> "SelfAttention[Features]":
        return self._backward(residuals, grad)[0]

    def _backward(self, residuals: _Kept, grad: Tensor) -> tuple["SelfAttention[Features]", Tensor]:
        """The gradients with respect to the parameters, and to [q, k, v], (B, T, (H + 2 K) d)."""
        x, attended, turning = residuals
        grads_out, grad_output = _of_output(self.output_weight, self.output_bias, attended.output, grad)
        grad_q, grad_k, grad_v = self._attention().backward(attended, self.mask, grad_output)
        if turning is not None:
            grad_q, grad_k = turning.backward(grad_q), turning.backward(grad_k)
        grad_heads = _merged(torch.cat((grad_q, grad_k, grad_v), 1))
        grad_weight, grad_bias = _of_affine(as_matrix(x), as_matrix(grad_heads), self.bias)
        grads = attrs.evolve(self, weight=grad_weight, bias=grad_bias, output_weight=grads_out[0], output_bias=grads_out[1])
        return grads, grad_heads

    @override
    def output_shape(self, shape: Shape[Batch, Steps, Features]) -> Shape[Batch, Steps, Features]:
        batch, steps, features = shape.exactly(3)
        expect("features", features, self.weight.shape[-1])
        return Shape(batch, steps, features)

    def _groups(self) -> tuple[int, int, int]:
        """The numbers of heads of queries, keys and values."""
        few = self.key_value_heads or self.heads
        return self.heads, few, few

    def _attention(self) -> Attention:
        return Attention(self.causal, self.dropout)

    def _rotation(self, heads: Tensor) -> Rotation | None:
        if self.rotary is None:
            return None
        return rotation(heads.shape[2], heads.shape[3], base=self.rotary, dtype=heads.dtype, device=heads.device)


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
        key_value_heads: K, how many for keys and values, which divides H; by default H.
        causal: whether a position sees only itself and those before it.
        rotary: the base of the angles by which queries and keys are turned, such as 10_000.0; None for no turning.
        dropout: the probability to drop a weight of the mean.
        bias: whether to add biases.
        weight_init: how to draw the weights of queries, keys and values, each by itself and with its own fans; by default
            from Xavier's uniform distribution.
        bias_init: how to draw their biases; zeros by default.
        output_weight_init: how to draw the output's weight; by default from Xavier's uniform distribution.
        output_bias_init: how to draw the output's bias; zeros by default.
        dtype: the parameters' dtype.

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
        weight=torch.empty(sum(rows), features, dtype=dtype, device="meta"),
        bias=torch.empty(sum(rows), dtype=dtype, device="meta") if bias else None,
        output_weight=torch.empty(features, heads * size, dtype=dtype, device="meta"),
        output_bias=torch.empty(features, dtype=dtype, device="meta") if bias else None,
        heads=heads,
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
        output_weight: U, of shape (F, H d).
        output_bias: c, of shape (F,), or None.
        heads: H.
        key_value_heads: K, which divides H; None, the default, for H.
        dropout: the probability to drop a weight of the mean, from 0, the default, up to, but not including, 1.
        key: what dropout draws from; None, the default, for no dropout. `rekey` fills it.
        memory_mask: of shape (B, S) and dtype bool, True where a position of the memory is real; None, the default, if all
            are. `on_masked_pair` fills it.
        query_weight_init: how `initialize` draws the weight of the queries.
        query_bias_init: how it draws their bias.
        weight_init: how it draws the weight of keys and values.
        bias_init: how it draws their bias.
        output_weight_init: how it draws the output's weight.
        output_bias_init: how it draws the output's bias.

    Shape:
        x (B, T, F) and memory (B, S, M) to (B, T, F)

    Residuals:
        The inputs, shared. Queries, keys, values and what comes of them, as many features as the heads have together. 1 number
        for each head and position of x, and with dropout, on empty sequences or on another device than the CPU instead: S
        numbers, and with dropout S bytes.

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
        q = self._heads("the input", queries, self.query_weight, self.query_bias, self.heads)
        heads = self._heads("the memory", memory, self.weight, self.bias, 2 * few)  # (B, 2 K, S, d)
        k, v = heads.split_with_sizes((few, few), 1)
        attended = Attention(causal=False, dropout=self.dropout).forward(q, k, v, self.memory_mask, self.key)
        y = products.linear(_merged(attended.output), self.output_weight, self.output_bias)
        return y, (queries, memory, attended)

    @override
    def backward(self, residuals: _KeptOfBoth, grad: Tensor) -> tuple["CrossAttention[Features]", tuple[Tensor, Tensor]]:
        grads, grad_q, grad_heads = self._backward(residuals, grad)
        return grads, (products.matmul(grad_q, self.query_weight), products.matmul(grad_heads, self.weight))

    @override
    def backward_params(self, residuals: _KeptOfBoth, grad: Tensor) -> "CrossAttention[Features]":
        return self._backward(residuals, grad)[0]

    def _backward(self, residuals: _KeptOfBoth, grad: Tensor) -> tuple["CrossAttention[Features]", Tensor, Tensor]:
        """The gradients with respect to the parameters, to q, (B, T, H d), and to [k, v], (B, S, 2 K d)."""
        x, memory, attended = residuals
        grads_out, grad_output = _of_output(self.output_weight, self.output_bias, attended.output, grad)
        attention = Attention(causal=False, dropout=self.dropout)
        grad_q, grad_k, grad_v = attention.backward(attended, self.memory_mask, grad_output)
        grad_q, grad_heads = _merged(grad_q), _merged(torch.cat((grad_k, grad_v), 1))
        grad_query_weight, grad_query_bias = _of_affine(as_matrix(x), as_matrix(grad_q), self.query_bias)
        grad_weight, grad_bias = _of_affine(as_matrix(memory), as_matrix(grad_heads), self.bias)
        grads = attrs.evolve(
            self,
            query_weight=grad_query_weight,
            query_bias=grad_query_bias,
            weight=grad_weight,
            bias=grad_bias,
            output_weight=grads_out[0],
            output_bias=grads_out[1],
        )
        return grads, grad_q, grad_heads

    @staticmethod
    def _heads(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> Tensor:
        try:
            return _heads(x, weight, bias, heads)
        except RuntimeError as error:
            _explain("CrossAttention", name, x, weight, error)
            raise


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
        key_value_heads: K, how many for keys and values, which divides H; by default H.
        dropout: the probability to drop a weight of the mean.
        bias: whether to add biases.
        weight_init: how to draw the weights of queries, keys and values, each by itself and with its own fans; by default
            from Xavier's uniform distribution.
        bias_init: how to draw their biases; zeros by default.
        output_weight_init: how to draw the output's weight; by default from Xavier's uniform distribution.
        output_bias_init: how to draw the output's bias; zeros by default.
        dtype: the parameters' dtype.

    Raises:
        ValueError: a size is less than 1, the heads do not divide the features, or K does not divide H; an option is out of
            its range.

    >>> from fundl import cross_attention
    >>> cross_attention(8, 2, memory_features=6, bias=False).weight.shape
    torch.Size([16, 6])
    """
    size, few = _head_size(features, heads, key_value_heads), (key_value_heads or heads)
    memory = features if memory_features is None else memory_features
    if memory < 1:
        raise ValueError(f"memory_features must be at least 1, not {memory}")
    rows = (few * size, few * size)

    def meta(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    return CrossAttention(
        query_weight=meta(heads * size, features),
        query_bias=meta(heads * size) if bias else None,
        weight=meta(sum(rows), memory),
        bias=meta(sum(rows)) if bias else None,
        output_weight=meta(features, heads * size),
        output_bias=meta(features) if bias else None,
        heads=heads,
        key_value_heads=key_value_heads,
        dropout=dropout,
        query_weight_init=weight_init,
        query_bias_init=bias_init,
        weight_init=Stacked(weight_init, rows),
        bias_init=Stacked(bias_init, rows),
        output_weight_init=output_weight_init,
        output_bias_init=output_bias_init,
    )


# --- What is refused ---------------------------------------------------------------------------------------------------


def _head_size(features: int, heads: int, key_value_heads: int | None) -> int:
    """How many features each head has."""
    if features < 1:
        raise ValueError(f"features must be at least 1, not {features}")
    _require_heads(heads, key_value_heads)
    if features % heads:
        raise ValueError(f"the heads must divide the features, but {features} features do not go into {heads} heads")
    return features // heads


def _require_heads(heads: int, key_value_heads: int | None) -> None:
    if heads < 1:
        raise ValueError(f"heads must be at least 1, not {heads}")
    if key_value_heads is not None and (key_value_heads < 1 or heads % key_value_heads):
        raise ValueError(
            f"key_value_heads must divide the heads, each serving as many, but {heads} heads cannot share {key_value_heads}"
        )


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


def _explain(layer: str, name: str, x: Tensor, weight: Tensor, error: RuntimeError) -> None:
    """Say in the layer's words what the kernel refused."""
    features = weight.shape[1]
    if x.shape[-1] != features:
        raise ValueError(
            f"{layer} expects {features} features, but {name} is of shape {tuple(x.shape)}: its last axis must be of size"
            f" {features}"
        ) from error
    require_dtype(f"{layer}'s parameters are", weight, x, error)
