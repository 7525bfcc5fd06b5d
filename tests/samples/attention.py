"""Sample layers: attention."""

import math
from typing import Final

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from fundl import CrossAttention, Masked, SelfAttention, cross_attention, key, on_masked, random, rotation, self_attention
from tests.samples.masked import MASK
from tests.samples.table import normal, sample


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None, drawn: Tensor | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, a query at a time to the eye: 0 where a query sees nothing; `drawn` is dropout's share."""
    steps, others, size = q.shape[2], k.shape[2], q.shape[3]
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    seen = torch.ones(steps, others, dtype=torch.bool, device=q.device)
    if causal:
        seen = seen.tril()
    if mask is not None:
        seen = seen & mask[:, None, None, :]
    powers = torch.where(seen, torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(size), -1e300).exp()
    weights = powers / torch.where(seen.any(-1, keepdim=True), powers.sum(-1, keepdim=True), 1)
    return torch.einsum("bhts,bhsd->bhtd", weights if drawn is None else weights * drawn, v)


def heads(x: Tensor, size: int) -> Tensor:
    """(B, T, heads d) as (B, heads, T, d)."""
    return x.view(*x.shape[:2], x.shape[2] // size, size).transpose(1, 2)


def self_attended(p: SelfAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    size = p.output_weight.shape[1] // p.heads
    few = p.key_value_heads or p.heads
    q, k, v = F.linear(x, p.weight, p.bias).split_with_sizes((p.heads * size, few * size, few * size), -1)
    q, k, v = heads(q, size), heads(k, size), heads(v, size)
    if p.rotary is not None:
        turning = rotation(x.shape[1], size, base=p.rotary, dtype=x.dtype)
        q, k = (part * turning.cos + part.roll(size // 2, -1) * turning.sin for part in (q, k))
    mask = p.mask if mask is None else mask
    y = attention(q, k, v, causal=p.causal, mask=mask, drawn=drawn(p, (x.shape[0], p.heads, x.shape[1], x.shape[1])))
    return F.linear(y.transpose(1, 2).flatten(2), p.output_weight, p.output_bias)


def cross_attended(p: CrossAttention, x: tuple[Tensor, Tensor]) -> Tensor:
    size = p.output_weight.shape[1] // p.heads
    k, v = F.linear(x[1], p.weight, p.bias).chunk(2, -1)
    y = attention(
        heads(F.linear(x[0], p.query_weight, p.query_bias), size),
        heads(k, size),
        heads(v, size),
        mask=p.memory_mask,
        drawn=drawn(p, (x[0].shape[0], p.heads, x[0].shape[1], x[1].shape[1])),
    )
    return F.linear(y.transpose(1, 2).flatten(2), p.output_weight, p.output_bias)


def drawn(p: SelfAttention | CrossAttention, shape: tuple[int, ...]) -> Tensor | None:
    """What dropout multiplies the weights with."""
    return None if p.key is None else random.bernoulli(p.key, shape, probability=1 - p.dropout).double() / (1 - p.dropout)


SAMPLES: Final = (
    sample("self-attention", self_attention(6, 2), normal(5, 4, 6), self_attended, kept=5 * 4 * (18 + 6 + 2) * 8),
    sample("self-attention, causal", self_attention(6, 3, causal=True), normal(5, 4, 6), self_attended, kept=4320),
    sample(
        "self-attention, grouped queries",
        self_attention(8, 4, key_value_heads=2, causal=True),
        normal(5, 4, 8),
        self_attended,
        kept=5 * 4 * (16 + 8 + 4) * 8,
    ),
    sample(
        "self-attention, one head for keys, no bias",
        self_attention(6, 3, key_value_heads=1, bias=False),
        normal(5, 4, 6),
        self_attended,
        kept=5 * 4 * (10 + 6 + 3) * 8,
    ),
    sample(
        "self-attention, rotary",
        self_attention(8, 2, rotary=100.0),
        normal(5, 4, 8),
        self_attended,
        kept=(5 * 4 * (24 + 8 + 2) + 2 * 4 * 4) * 8,
    ),
    sample(
        "self-attention, dropout",
        attrs.evolve(self_attention(8, 4, key_value_heads=2, causal=True, dropout=0.4), key=key(3)),
        normal(5, 4, 8),
        self_attended,
        kept=5 * 4 * ((16 + 8 + 4 * 4) * 8 + 4 * 4),
    ),
    sample(
        "self-attention, mask",
        attrs.evolve(self_attention(6, 2), mask=MASK),
        normal(5, 4, 6),
        self_attended,
        batched=False,
        kept=5 * 4 * (18 + 6 + 2) * 8,
    ),
    sample(
        "self-attention on a masked batch, causal",
        on_masked(self_attention(6, 2, causal=True)),
        Masked(normal(5, 4, 6), MASK),
        lambda p, x: Masked(self_attended(p.layers[0], x.values, x.mask), x.mask),
        kept=5 * 4 * (18 + 6 + 2) * 8,
    ),
    sample(
        "self-attention on a masked batch, dropout",
        on_masked(attrs.evolve(self_attention(6, 2, dropout=0.4), key=key(3))),
        Masked(normal(5, 4, 6), MASK),
        lambda p, x: Masked(self_attended(p.layers[0], x.values, x.mask), x.mask),
        kept=5 * 4 * ((18 + 6 + 2 * 4) * 8 + 2 * 4),
    ),
    sample(
        "cross-attention",
        cross_attention(6, 2),
        (normal(5, 3, 6), normal(5, 4, 6)),
        cross_attended,
        kept=(5 * 3 * (6 + 6 + 2) + 5 * 4 * 12) * 8,
    ),
    sample(
        "cross-attention, memory of other features, mask",
        attrs.evolve(cross_attention(8, 4, memory_features=3, key_value_heads=2, bias=False), memory_mask=MASK),
        (normal(5, 3, 8), normal(5, 4, 3)),
        cross_attended,
        batched=False,
        kept=(5 * 3 * (8 + 8 + 4) + 5 * 4 * 8) * 8,
    ),
    sample(
        "cross-attention, dropout",
        attrs.evolve(cross_attention(6, 2, dropout=0.4), key=key(3)),
        (normal(5, 3, 6), normal(5, 4, 6)),
        cross_attended,
        kept=(5 * 3 * (6 + 6) + 5 * 4 * 12) * 8 + 5 * 2 * 3 * 4 * 9,
    ),
)
