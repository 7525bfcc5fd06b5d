"""Sample layers: attention."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from fundl import (
    Attend,
    CrossAttention,
    Masked,
    SelfAttention,
    cross_attention,
    key,
    on_masked,
    random,
    rotation,
    self_attention,
)
from tests.samples.masked import MASK
from tests.samples.table import normal, sample


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    drawn: Tensor | None = None,
    visible: Tensor | None = None,
    bias: Tensor | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    slopes: Sequence[float] | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, a query at a time to the eye: 0 where a query sees nothing; `drawn` is dropout's share."""
    steps, others, size = q.shape[2], k.shape[2], q.shape[3]
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    places = torch.arange(others, device=q.device)
    ahead = places - places[others - steps :].unsqueeze(1) if steps else torch.zeros(0, others)
    seen = torch.ones(steps, others, dtype=torch.bool, device=q.device)
    if causal:
        seen = seen & (ahead <= 0)
    if window is not None:
        seen = seen & (-window < ahead) & (ahead < window)
    if visible is not None:
        seen = seen & visible
    if mask is not None:
        seen = seen & mask[:, None, None, :]
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) * (1 / math.sqrt(size) if scale is None else scale)
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if bias is not None:
        scores = scores + bias
    if slopes is not None:
        scores = scores - torch.tensor(slopes, dtype=q.dtype).reshape(-1, 1, 1) * ahead.abs()
    powers = torch.where(seen, scores, -1e300).exp()
    weights = powers / torch.where(seen.any(-1, keepdim=True), powers.sum(-1, keepdim=True), 1)
    return torch.einsum("bhts,bhsd->bhtd", weights if drawn is None else weights * drawn, v)


SLOPES: Final[Mapping[int, Sequence[float]]] = {
    1: (2**-8,),
    2: (2**-4, 2**-8),
    3: (2**-4, 2**-8, 2**-2),
    4: (2**-2, 2**-4, 2**-6, 2**-8),
    6: (2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3),
}
"""ALiBi's, by the number of heads, as its authors' program has them."""


def attended(p: Attend, x: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return attention(
        *x,
        causal=p.causal,
        mask=p.mask,
        drawn=drawn(p, (*x[0].shape[:3], x[1].shape[2])),
        visible=p.visible,
        bias=p.bias,
        window=p.window,
        soft_cap=p.soft_cap,
        slopes=SLOPES[x[0].shape[1]] if p.alibi else None,
        scale=p.scale,
    )


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
    bias = None
    if p.relative is not None:
        farthest, steps = p.relative.shape[1] // 2, range(x.shape[1])
        rows = [[p.relative[:, farthest + max(-farthest, min(farthest, s - t))] for s in steps] for t in steps]
        bias = torch.stack([torch.stack(row, -1) for row in rows], -2) if rows else x.new_zeros(p.heads, 0, 0)
    y = attention(
        q,
        k,
        v,
        causal=p.causal,
        mask=mask,
        drawn=drawn(p, (x.shape[0], p.heads, x.shape[1], x.shape[1])),
        visible=p.visible,
        bias=bias,
        window=p.window,
        soft_cap=p.soft_cap,
        slopes=SLOPES[p.heads] if p.alibi else None,
        scale=p.scale,
    )
    return F.linear(y.transpose(1, 2).flatten(2), p.output_weight, p.output_bias)


def cross_attended(p: CrossAttention, x: tuple[Tensor, Tensor]) -> Tensor:
    size = p.output_weight.shape[1] // p.heads
    k, v = F.linear(x[1], p.weight, p.bias).chunk(2, -1)
    y = attention(
        heads(F.linear(x[0], p.query_weight, p.query_bias), size),
        heads(k, size),
        heads(v, size),
        mask=p.memory_mask,
        visible=p.visible,
        drawn=drawn(p, (x[0].shape[0], p.heads, x[0].shape[1], x[1].shape[1])),
    )
    return F.linear(y.transpose(1, 2).flatten(2), p.output_weight, p.output_bias)


def drawn(p: Attend | SelfAttention | CrossAttention, shape: tuple[int, ...]) -> Tensor | None:
    """What dropout multiplies the weights with."""
    return None if p.key is None else random.bernoulli(p.key, shape, probability=1 - p.dropout).double() / (1 - p.dropout)


QUERIES: Final = normal(5, 4, 3, 2)
KEYS: Final = normal(5, 2, 4, 2), normal(5, 2, 4, 2).flip(0)
VISIBLE: Final = random.bernoulli(key(5), (3, 4), probability=0.6)


SAMPLES: Final = (
    sample("attention", Attend(), (QUERIES, *KEYS), attended, kept=5 * 4 * 3 * 8),
    sample("attention, causal, a window", Attend(causal=True, window=2), (QUERIES, *KEYS), attended, kept=5 * 4 * 3 * 8),
    sample(
        "attention, ALiBi in both directions, a scale",
        Attend(alibi=True, scale=0.3, window=3),
        (QUERIES, *KEYS),
        attended,
        kept=5 * 4 * 3 * (2 + 1) * 8,
    ),
    sample("attention, visible", Attend(visible=VISIBLE), (QUERIES, *KEYS), attended, kept=5 * 4 * 3 * 8),
    sample(
        "attention, a bias and a cap",
        Attend(bias=normal(4, 3, 4), soft_cap=0.7, causal=True, visible=VISIBLE.roll(1, 0)),
        (QUERIES, *KEYS),
        attended,
        kept=5 * 4 * 3 * 4 * 8,
        batched=False,
    ),
    sample(
        "attention, a bias for each example, a mask, dropout",
        Attend(bias=normal(5, 1, 3, 4), mask=MASK, dropout=0.4, key=key(3)),
        (QUERIES, *KEYS),
        attended,
        kept=5 * 4 * 3 * 4 * 9,
        batched=False,
    ),
    sample(
        "self-attention, relative, a cap, a scale",
        self_attention(6, 3, relative=2, soft_cap=0.9, scale=0.5),
        normal(5, 4, 6),
        self_attended,
        kept=5 * 4 * (18 + 6 + 6 + 3 * 4) * 8,
    ),
    sample(
        "self-attention, ALiBi, a window, visible",
        attrs.evolve(self_attention(6, 3, causal=True, alibi=True, window=3), visible=VISIBLE.new_ones(4, 4).tril(2)),
        normal(5, 4, 6),
        self_attended,
        kept=5 * 4 * (18 + 6 + 3) * 8,
    ),
    sample(
        "cross-attention, visible",
        attrs.evolve(cross_attention(6, 2), visible=VISIBLE),
        (normal(5, 3, 6), normal(5, 4, 6)),
        cross_attended,
        kept=(5 * 3 * (6 + 6 + 2) + 5 * 4 * 12) * 8,
    ),
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
