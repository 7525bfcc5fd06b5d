"""Attention as a function of queries, keys and values, both ways.

B sequences, H heads of queries, K heads of keys and values, T queries and S keys of d features. Head h of the queries goes
with head h // (H / K) of the keys:

    r = c q k^T, with c = 1 / sqrt(d) or another scale; with a soft cap C, C tanh(r / C) in its place,
    s = r + b, -inf where a key must not be seen,    p = softmax(s),    a = p m / (1 - rate),    y = a v

with b what is added to the scores, and m the mask of dropout. The vjp, from grad (B, H, T, d):

    grad_v = a^T grad,    grad_p = grad v^T m / (1 - rate),    grad_s = p (grad_p - sum over the keys of grad_p p),
    grad_b = grad_s,      grad_r = grad_s, or grad_s (1 - tanh(r / C)^2),
    grad_q = c grad_r k,  grad_k = c grad_r^T q

Kernels, one for the CPU and two for CUDA, do all this in pieces that fit the fastest memory, and keep the log-sum-exp of each
row of s, from which backward finds p anew (Dao et al.). They know no dropout that a key decides, no soft cap, and no gradient
of what is added; with these, and for what no kernel takes, the formula stands as it is.
"""

import functools
import math
from typing import Final, NamedTuple, final

import attrs
import torch
from torch import Tensor

from fundl._common import dropping, fused_attention, half
from fundl._common.fused_attention import repeated, summed
from fundl._common.modes import is_in_forward_mode
from fundl.layers.softmax import softmax_backward
from fundl.random import Key
from fundl.tree import Record


@final
@attrs.frozen(eq=False)
class Attended(Record):
    """What attention gives, and keeps.

    Args:
        q: (B, H, T, d), scaled such that 1 / sqrt(d) is what is left to multiply with.
        k: (B, K, S, d).
        v: likewise.
        output: y, (B, H, T, d), in memory (B, T, H, d) if a kernel made it.
        logsumexp: of the rows of s, (B, H, T), if a kernel made it; T may be rounded up.
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


class Pairs(NamedTuple):
    """What is given of each pair of a query and a key.

    Args:
        visible: True where the query may see the key, of a shape that broadcasts to (B, H, T, S).
        bias: b, likewise.
        distance: how far before the query the key is, likewise; by default, the last query is at the last key.
    """

    visible: Tensor | None = None
    bias: Tensor | None = None
    distance: Tensor | None = None


NOTHING: Final = Pairs()


class Attention(NamedTuple):
    """How queries, keys and values meet.

    Args:
        causal: whether a query sees no keys but those at its own position and before it.
        dropout: the probability to drop a weight, if there is a key.
        window: a query sees keys that are less than so many positions away; None for all.
        soft_cap: C, which no score exceeds; None for none.
        alibi: whether scores fall with the distance, by a slope of each head.
        scale: what the products are multiplied with; None for 1 / sqrt(d).
    """

    causal: bool
    dropout: float
    window: int | None = None
    soft_cap: float | None = None
    alibi: bool = False
    scale: float | None = None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, key: Key | None, *, pairs: Pairs = NOTHING
    ) -> Attended:
        """Each query's mean of the values that it sees, 0 if it sees none; with `mask` (B, S) True where a key is real."""
        key = key if self.dropout > 0 else None
        if self.scale is not None:
            q = q * self._factor(q)
        is_plain = key is None and self.soft_cap is None and pairs.bias is None
        if is_plain and self._has_kernel(q, k):
            causal, added = self._for_kernel(q, k, mask, pairs)
            return Attended(q, k, v, *half.attention(q, k, v, causal, added))
        if is_plain and (kernel := self._cuda_kernel(q, k, mask, pairs)) is not None:
            return Attended(q, k, v, *fused_attention.forward(kernel, q, k, v, causal=self.causal, mask=mask))
        weights = self._probabilities(q, k, mask, pairs)
        kept, drawn = (weights, None) if key is None else self._drop(key, weights)
        output = torch.matmul(kept, _for_each_query_head(v, q))
        return Attended(q, k, v, output, probabilities=weights, drawn=drawn)

    def backward(
        self, attended: Attended, mask: Tensor | None, grad: Tensor, *, pairs: Pairs = NOTHING
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients with respect to q, k and v."""
        return self.backward_with_bias(attended, mask, grad, pairs=pairs)[:3]

    def backward_with_bias(
        self, attended: Attended, mask: Tensor | None, grad: Tensor, *, pairs: Pairs = NOTHING
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The gradients with respect to q, k, v and b."""
        grad_q, grad_k, grad_v, grad_bias = self._backward(attended, mask, grad, pairs)
        return grad_q if self.scale is None else grad_q * self._factor(grad_q), grad_k, grad_v, grad_bias

    def _backward(
        self, attended: Attended, mask: Tensor | None, grad: Tensor, pairs: Pairs
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        q, k, v, weights, drawn = attended.q, attended.k, attended.v, attended.probabilities, attended.drawn
        if attended.logsumexp is not None and not is_in_forward_mode():
            kept = attended.output, attended.logsumexp
            if (kernel := self._cuda_kernel(q, k, mask, pairs)) is not None:
                found = fused_attention.backward(kernel, grad, q, k, v, *kept, causal=self.causal, mask=mask)
            else:
                causal, added = self._for_kernel(q, k, mask, pairs)
                found = half.attention_backward(grad, q, k, v, *kept, causal=causal, mask=added)
            return *found, None
        if weights is None:
            weights = self._probabilities(q, k, mask, pairs)
        grad_weights = self._dropped(torch.matmul(grad, _for_each_query_head(v, q).transpose(-1, -2)), drawn)
        grad_v = torch.matmul(self._dropped(weights, drawn).transpose(-1, -2), grad)
        grad_scores = softmax_backward(grad_weights, weights, -1)
        grad_bias = None if pairs.bias is None else grad_scores.sum_to_size(pairs.bias.shape)
        if self.soft_cap is not None:
            bent = torch.tanh(_products(q, k) / self.soft_cap)
            grad_scores = grad_scores * (1 - bent * bent)
        grad_scores = grad_scores * (1 / math.sqrt(q.shape[-1]))
        grad_q = torch.matmul(grad_scores, _for_each_query_head(k, q))
        grad_k = torch.matmul(grad_scores.transpose(-1, -2), q)
        return grad_q, summed(grad_k, k.shape[1]), summed(grad_v, v.shape[1]), grad_bias

    # --- What is seen, and what is added ---

    def _probabilities(self, q: Tensor, k: Tensor, mask: Tensor | None, pairs: Pairs) -> Tensor:
        """The weights p, by the formula."""
        scores = _products(q, k)
        if self.soft_cap is not None:
            scores = torch.tanh(scores / self.soft_cap) * self.soft_cap
        if pairs.bias is not None:
            scores = scores + pairs.bias
        if self.alibi:
            scores = scores + self._falling(q, k, pairs).to(scores.dtype)
        hidden = self._hidden(q, k, mask, pairs, causal=self.causal)
        if hidden is None:
            return torch.softmax(scores, -1)
        return torch.softmax(scores.masked_fill(hidden, -math.inf), -1).masked_fill(hidden, 0)  # that of nothing is NaN

    def _hidden(self, q: Tensor, k: Tensor, mask: Tensor | None, pairs: Pairs, *, causal: bool) -> Tensor | None:
        """Where a query must not see a key, of a shape that broadcasts to (B, H, T, S)."""
        if mask is None and pairs.visible is None and not causal and self.window is None:
            return None
        hidden = [] if mask is None else [~mask[:, None, None, :]]
        if pairs.visible is not None:
            hidden.append(~pairs.visible)
        if causal or self.window is not None:
            distance = _distance(q, k, pairs)
            if causal:
                hidden.append(distance < 0)
            if self.window is not None:
                hidden.append((distance if causal else distance.abs()) >= self.window)
        return functools.reduce(torch.logical_or, hidden)

    def _falling(self, q: Tensor, k: Tensor, pairs: Pairs) -> Tensor:
        """What is added for the distance: (..., H, T, S)."""
        slopes = alibi_slopes(q.shape[1], q.device)[:, None, None]
        return slopes * -_distance(q, k, pairs).abs()

    # --- Kernels ---

    def _has_kernel(self, q: Tensor, k: Tensor) -> bool:
        is_there = q.device.type in {"cpu", "meta"} and q.shape[-2] > 0 and k.shape[-2] > 0
        return is_there and not is_in_forward_mode()  # where torch knows no derivative of it

    def _for_kernel(self, q: Tensor, k: Tensor, mask: Tensor | None, pairs: Pairs) -> tuple[bool, Tensor | None]:
        """What the CPU's kernel is told: whether no query sees a later key, and what is added to the scores for all else."""
        # the kernel would have the first query at the first key
        is_square = pairs.distance is None and q.shape[-2] == k.shape[-2]
        causal = self.causal and is_square
        hidden = self._hidden(q, k, mask, pairs, causal=self.causal and not is_square)
        if not self.alibi:
            return causal, None if hidden is None else _added(hidden, q.dtype)
        falling = _of_four_axes(self._falling(q, k, pairs).to(q.dtype))
        return causal, falling if hidden is None else falling.masked_fill(hidden, -math.inf)

    def _cuda_kernel(self, q: Tensor, k: Tensor, mask: Tensor | None, pairs: Pairs) -> fused_attention.Kernel | None:
        if self.window is not None or self.alibi or any(part is not None for part in pairs) or is_in_forward_mode():
            return None
        return fused_attention.kernel_for(q, k, causal=self.causal, masked=mask is not None)

    def _factor(self, q: Tensor) -> float:
        assert self.scale is not None
        return self.scale * math.sqrt(q.shape[-1])

    def _drop(self, key: Key, weights: Tensor) -> tuple[Tensor, Tensor]:
        """What is left of weights (B, H, T, S), and the mask. An example is a line, of which some heads are a piece."""
        kept, drawn = dropping.dropped(key, weights.flatten(1), self.dropout)
        return kept.reshape(weights.shape), drawn.reshape(weights.shape)

    def _dropped(self, x: Tensor, drawn: Tensor | None) -> Tensor:
        return x if drawn is None else dropping.masked(x, drawn, self.dropout)


def alibi_slopes(heads: int, device: torch.device | str | None) -> Tensor:
    """By how much the scores of each head fall from one position to the next: (H,), 2^(-8 h / H) for h = 1, ..., H.

    For numbers of heads that are no power of 2, those of the next smaller one, and of the next larger every other.
    """
    power = 2 ** (heads.bit_length() - 1)
    number = torch.arange(1, heads + 1, dtype=torch.float32, device=device)
    return torch.where(number <= power, number * (8 / power), (2 * (number - power) - 1) * (4 / power)).neg().exp2()


def distances(steps: int, others: int, device: torch.device | None) -> Tensor:
    """How far before each query each key is, (T, S), with the last query at the last key."""
    return torch.arange(others - steps, others, device=device).unsqueeze(1) - torch.arange(others, device=device)


def relative_bias(table: Tensor, distance: Tensor) -> Tensor:
    """The bias of each score, from a table (H, 2 R + 1) of those of distances, for distances (T, S) or (B, 1, T, S)."""
    places = _places(table, distance)
    chosen = torch.unflatten(table.index_select(1, places.flatten()), 1, places.shape)
    return chosen if places.ndim == 2 else chosen.squeeze(2).movedim(0, 1)


def relative_backward(grad: Tensor, table: Tensor, distance: Tensor) -> Tensor:
    """The gradient of the table, from that of the bias (H, T, S)."""
    places = _places(table, distance).flatten()
    return half.in_float32(lambda wide: _zeros_like(table, wide).index_add(1, places, wide.flatten(1)), grad)


def _zeros_like(table: Tensor, wide: Tensor) -> Tensor:
    return torch.zeros_like(table, dtype=wide.dtype)


def _places(table: Tensor, distance: Tensor) -> Tensor:
    most = table.shape[1] // 2
    return distance.neg().clamp(-most, most) + most


def _distance(q: Tensor, k: Tensor, pairs: Pairs) -> Tensor:
    return distances(q.shape[-2], k.shape[-2], q.device) if pairs.distance is None else pairs.distance


def _products(q: Tensor, k: Tensor) -> Tensor:
    """The scores of queries and keys alone, (B, H, T, S)."""
    return torch.matmul(q, _for_each_query_head(k, q).transpose(-1, -2)) * (1 / math.sqrt(q.shape[-1]))


def _added(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores where a key must not be seen, as the kernel takes it: of four axes."""
    hidden = _of_four_axes(hidden)
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, -math.inf)


def _of_four_axes(x: Tensor) -> Tensor:
    return x[(None,) * (4 - x.ndim)]


def _for_each_query_head(k: Tensor, q: Tensor) -> Tensor:
    """Keys or values, repeated for the heads of the queries that share them."""
    return repeated(k, q.shape[1] // k.shape[1])
