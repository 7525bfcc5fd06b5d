"""Attention as a function of queries, keys and values, both ways.

B sequences, H heads of queries, K heads of keys and values, T queries and S keys of d features. Head h of the queries goes
with head h // (H / K) of the keys:

    s = q k^T / sqrt(d), -inf where a key must not be seen,    p = softmax(s),    a = p m / (1 - rate),    y = a v

with m the mask of dropout. The vjp, from grad (B, H, T, d):

    grad_v = a^T grad,    grad_p = grad v^T m / (1 - rate),    grad_s = p (grad_p - sum over the keys of grad_p p),
    grad_q = grad_s k / sqrt(d),    grad_k = grad_s^T q / sqrt(d)

Kernels, one for the CPU and two for CUDA, do all this in pieces that fit the fastest memory, and keep the log-sum-exp of each
row of s, from which backward finds p anew (Dao et al.). They know no dropout that a key decides; with it, and for what no
kernel takes, the formula stands as it is.
"""

import math
from typing import final

import attrs
import torch
from torch import Tensor

from fundl._common import dropping, fused_attention, half
from fundl._common.fused_attention import repeated, summed
from fundl.layers.softmax import softmax_backward
from fundl.random import Key
from fundl.tree import Record


@final
@attrs.frozen(eq=False)
class Attended(Record):
    """What attention gives, and keeps.

    Args:
        q: (B, H, T, d).
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
        key = key if self.dropout > 0 else None
        if key is None and self._has_kernel(q, k):
            return Attended(q, k, v, *half.attention(q, k, v, self.causal, _added(mask, q.dtype)))
        if key is None and (kernel := self._cuda_kernel(q, k, mask)) is not None:
            return Attended(q, k, v, *fused_attention.forward(kernel, q, k, v, causal=self.causal, mask=mask))
        scores = torch.matmul(q, _for_each_query_head(k, q).transpose(-1, -2)) * (1 / math.sqrt(q.shape[-1]))
        hidden = self._hidden(scores, mask)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -math.inf)
        weights = torch.softmax(scores, -1)
        if hidden is not None:
            weights = weights.masked_fill(hidden, 0)  # the softmax of nothing is NaN
        kept, drawn = (weights, None) if key is None else dropping.dropped(key, weights, self.dropout)
        output = torch.matmul(kept, _for_each_query_head(v, q))
        return Attended(q, k, v, output, probabilities=weights, drawn=drawn)

    def backward(self, attended: Attended, mask: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients with respect to q, k and v."""
        q, k, v, weights, drawn = attended.q, attended.k, attended.v, attended.probabilities, attended.drawn
        if attended.logsumexp is not None:
            kept = attended.output, attended.logsumexp
            if (kernel := self._cuda_kernel(q, k, mask)) is not None:
                return fused_attention.backward(kernel, grad, q, k, v, *kept, causal=self.causal, mask=mask)
            return half.attention_backward(grad, q, k, v, *kept, causal=self.causal, mask=_added(mask, q.dtype))
        assert weights is not None  # one of the two is kept
        grad_weights = self._dropped(torch.matmul(grad, _for_each_query_head(v, q).transpose(-1, -2)), drawn)
        grad_v = torch.matmul(self._dropped(weights, drawn).transpose(-1, -2), grad)
        grad_scores = softmax_backward(grad_weights, weights, -1) * (1 / math.sqrt(q.shape[-1]))
        grad_q = torch.matmul(grad_scores, _for_each_query_head(k, q))
        grad_k = torch.matmul(grad_scores.transpose(-1, -2), q)
        return grad_q, summed(grad_k, k.shape[1]), summed(grad_v, v.shape[1])

    def _has_kernel(self, q: Tensor, k: Tensor) -> bool:
        return q.device.type in {"cpu", "meta"} and q.shape[-2] > 0 and k.shape[-2] > 0

    def _cuda_kernel(self, q: Tensor, k: Tensor, mask: Tensor | None) -> fused_attention.Kernel | None:
        return fused_attention.kernel_for(q, k, causal=self.causal, masked=mask is not None)

    def _hidden(self, scores: Tensor, mask: Tensor | None) -> Tensor | None:
        """Where a query must not see a key, of a shape that broadcasts to (B, H, T, S)."""
        hidden = None if mask is None else ~mask[:, None, None, :]
        if not self.causal:
            return hidden
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return later if hidden is None else hidden | later

    def _dropped(self, x: Tensor, drawn: Tensor | None) -> Tensor:
        return x if drawn is None else dropping.masked(x, drawn, self.dropout)


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores for the mask, as the kernel takes it: (B, 1, 1, S)."""
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -math.inf)[:, None, None, :]


def _for_each_query_head(k: Tensor, q: Tensor) -> Tensor:
    """Keys or values, repeated for the heads of the queries that share them."""
    return repeated(k, q.shape[1] // k.shape[1])
