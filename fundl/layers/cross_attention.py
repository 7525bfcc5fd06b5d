"""Cross-attention: each position of a sequence takes a mean of the positions of another one."""

from collections.abc import Sequence
from typing import Final, Generic, Self, TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common import products
from fundl._common.place import Place
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer, Stacked, xavier_uniform, zeros
from fundl.layer import Layer
from fundl.layers._attending import NOTHING, Attended, Attention, Pairs
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
    require_sequences,
    require_visible,
)
from fundl.layers._refusals import require_at_least_one
from fundl.layers.attention import KeysAndValues
from fundl.random import Key
from fundl.shapes import Features
from fundl.tree import BUFFER

Size = TypeVar("Size", bound=int)

_XAVIER: Final = xavier_uniform()

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
        visible: of dtype bool, True where a position of x may ask one of the memory: of a shape that broadcasts to
            (B, H, T, S), such as (T, S); None, the default, if each may ask all.
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
    visible: Tensor | None = attrs.field(default=None, kw_only=True, metadata=BUFFER)
    query_weight_init: Initializer = attrs.field(default=_XAVIER, kw_only=True)
    query_bias_init: Initializer = attrs.field(default=zeros(), kw_only=True)
    weight_init: Initializer = attrs.field(default=_XAVIER, kw_only=True)
    bias_init: Initializer = attrs.field(default=zeros(), kw_only=True)
    output_weight_init: Initializer = attrs.field(default=_XAVIER, kw_only=True)
    output_bias_init: Initializer = attrs.field(default=zeros(), kw_only=True)

    def __attrs_post_init__(self) -> None:
        require_heads(self.heads, self.key_value_heads)
        require_dropout("CrossAttention", self.dropout)

    @property
    def draws(self) -> bool:
        """Whether it has any use for a key."""
        return self.dropout > 0

    @override
    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, _KeptOfBoth]:
        queries, memory = x
        self._require_sequences(queries, memory)
        q, (k, v) = self._queries(queries), self._keys_and_values(memory)
        if self.visible is not None:
            require_visible("CrossAttention", self.visible, (*q.shape[:3], k.shape[2]))
        attention, pairs = Attention(causal=False, dropout=self.dropout), self._pairs
        attended = attention.forward(q, k, v, self.memory_mask, self.key, pairs=pairs)
        y = products.linear(merged(attended.output), self.output_weight, self.output_bias)
        return y, (queries, memory, attended)

    @override
    def backward(self, residuals: _KeptOfBoth, grad: Tensor) -> tuple[Self, tuple[Tensor, Tensor]]:
        x, memory, attended = residuals
        *grads_out, grad_output = of_output(self.output_weight, self.output_bias, attended.output, grad)
        attention = Attention(causal=False, dropout=self.dropout)
        grad_q, grad_k, grad_v = attention.backward(attended, self.memory_mask, grad_output, pairs=self._pairs)
        grad_q, grad_heads = merged(grad_q), joined(grad_k, grad_v)  # (B, T, H d), (B, S, 2 K d)
        of_queries, of_memory = of_affine(x, grad_q, self.query_bias), of_affine(memory, grad_heads, self.bias)
        grads = self.gradient(*of_queries, *of_memory, *grads_out)
        return grads, (products.matmul(grad_q, self.query_weight), products.matmul(grad_heads, self.weight))

    def _require_sequences(self, queries: Tensor, memory: Tensor) -> None:
        require_sequences("CrossAttention", queries)
        require_sequences("CrossAttention's memory", memory, self.memory_mask)
        if queries.shape[0] != memory.shape[0]:
            raise ValueError(
                f"CrossAttention expects as many sequences in x as in the memory, but x is of shape {tuple(queries.shape)} and"
                f" the memory of shape {tuple(memory.shape)}"
            )

    def _queries(self, x: Tensor) -> Tensor:
        return in_heads(x, self.query_weight, self.query_bias, self.heads, layer="CrossAttention")

    def _keys_and_values(self, memory: Tensor) -> Sequence[Tensor]:
        """Each of shape (B, K, S, d)."""
        few = self.key_value_heads or self.heads
        heads = in_heads(memory, self.weight, self.bias, 2 * few, layer="CrossAttention", name="the memory")  # (B, 2 K, S, d)
        return heads.split_with_sizes((few, few), 1)

    # --- A few positions at a time ---

    @override
    def first_cache(self, batch: int, length: int) -> object:
        for name, given in (("visible", self.visible), ("a key", self.key)):
            if given is not None:
                raise ValueError(f"CrossAttention has {name}, but is run a position at a time without: take it away")
        return ()  # the memory's size is known once it is there

    @override
    def step(self, x: tuple[Tensor, Tensor | None], cache: object, place: Place) -> tuple[Tensor, KeysAndValues]:
        """See `Layer.step`. The memory is given once, at the first positions: its keys and values are what is kept."""
        queries, memory = require_with_memory("CrossAttention", x)
        if memory is not None:
            self._require_sequences(queries, memory)
            k, v = self._keys_and_values(memory)
            cache = KeysAndValues(k.transpose(1, 2), v.transpose(1, 2))
        elif not isinstance(cache, KeysAndValues):
            raise TypeError("CrossAttention has no memory yet: begin with language.prefill(model, (x, memory), length)")
        require_sequences("CrossAttention", queries)
        q, k, v = self._queries(queries), cache.keys.transpose(1, 2), cache.values.transpose(1, 2)
        attended = Attention(causal=False, dropout=self.dropout).forward(q, k, v, self.memory_mask, None, pairs=NOTHING)
        return products.linear(merged(attended.output), self.output_weight, self.output_bias), cache

    @property
    def _pairs(self) -> Pairs:
        return NOTHING if self.visible is None else Pairs(self.visible)


def require_with_memory(layer: str, x: object) -> tuple[Tensor, Tensor | None]:
    """The input of a step, once it is found to be a pair: positions, and a memory, or None where its keys are kept."""
    match x:
        case (Tensor() as positions, (Tensor() | None) as memory):
            return positions, memory
        case _:
            raise TypeError(
                f"{layer} looks at a memory, which is given with the first positions: begin with"
                " language.prefill(model, (x, memory), length)"
            )


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
    size, few = head_size(features, heads, key_value_heads), (key_value_heads or heads)
    memory = features if memory_features is None else memory_features
    require_at_least_one(memory_features=memory)
    rows = (few * size, few * size)
    return CrossAttention(
        *affine(features, features, bias=bias, dtype=dtype),
        *affine(sum(rows), memory, bias=bias, dtype=dtype),
        *affine(features, features, bias=bias, dtype=dtype),
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
