"""Sample layers: transformers."""

from typing import Final, TypeAlias, TypeVar

import attrs
import torch.nn.functional as F
from torch import Tensor

from fundl import (
    GELU,
    GLU,
    CrossAttention,
    Dropout,
    LayerNorm,
    Linear,
    Masked,
    Model,
    Residual,
    RMSNorm,
    SelfAttention,
    cross_attention,
    decoder,
    decoder_block,
    encoder,
    gated_feed_forward,
    layer_norm,
    on_masked,
    on_masked_pair,
    rms_norm,
    transformer_block,
    tree,
)
from tests.samples.attention import cross_attended, self_attended
from tests.samples.feed_forward import halves
from tests.samples.linear import affine
from tests.samples.masked import MASK
from tests.samples.normalization import by_layer, by_rms
from tests.samples.table import normal, sample, with_values

P = TypeVar("P", bound=Model)

Network: TypeAlias = tuple[Linear, GELU, Linear]
Block: TypeAlias = tuple[Residual[LayerNorm, SelfAttention, Dropout], Residual[LayerNorm, Network, Dropout]]
DecoderParts: TypeAlias = tuple[
    Residual[LayerNorm, SelfAttention, Dropout], LayerNorm, CrossAttention, Dropout, Residual[LayerNorm, Network, Dropout]
]
Modern: TypeAlias = tuple[Residual[RMSNorm, SelfAttention, Dropout], Residual[RMSNorm, tuple[Linear, GLU, Linear], Dropout]]


def with_attention(p: Residual[LayerNorm, SelfAttention, Dropout], x: Tensor, mask: Tensor | None = None) -> Tensor:
    return x + self_attended(p.layers[1], by_layer(p.layers[0], x), mask)


def with_network(p: Residual[LayerNorm, Network, Dropout], x: Tensor) -> Tensor:
    first, _, second = p.layers[1]
    return x + affine(second, F.gelu(affine(first, by_layer(p.layers[0], x))))


def by_block(p: Block, x: Tensor, mask: Tensor | None = None) -> Tensor:
    return with_network(p[1], with_attention(p[0], x, mask))


def by_modern_block(p: Modern, x: Tensor) -> Tensor:
    z = x + self_attended(p[0].layers[1], by_rms(p[0].layers[0], x))
    first, _, second = p[1].layers[1]
    value, gate = halves(affine(first, by_rms(p[1].layers[0], z)))
    return z + affine(second, value * F.silu(gate))


def by_decoder_block(p: DecoderParts, x: Tensor, memory: Tensor, masks: tuple[Tensor | None, Tensor | None]) -> Tensor:
    u = with_attention(p[0], x, masks[0])
    return with_network(p[4], u + cross_attended(attrs.evolve(p[2], memory_mask=masks[1]), (by_layer(p[1], u), memory)))


def by_decoder(
    p: tuple[tuple[DecoderParts, ...], LayerNorm],
    x: Tensor,
    memory: Tensor,
    masks: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    for parts in p[0]:
        x = by_decoder_block(parts, x, memory, masks)
    return by_layer(p[1], x)


def small(model: P) -> P:
    """The model with values so small that half precision does not go astray on the way through many layers."""
    return tree.map(lambda leaf: leaf * 0.4, with_values(model))


# What a block keeps for each position with 4 features, 2 heads and 6 hidden features, in numbers: the statistics of a norm and
# what it gives; queries, keys and values, what comes of them and the heads' log-sum-exps; the sum that the second norm sees.
FIRST: Final = (2 + 4) + (12 + 4 + 2) + 4
SECOND: Final = (2 + 4) + (6 + 6)
MIDDLE: Final = (2 + 4) + (4 + 4 + 2) + 4  # and 8 for each position of the memory

SAMPLES: Final = (
    sample(
        "transformer_block",
        small(transformer_block(4, 2, hidden=6)),
        normal(5, 3, 4),
        by_block,
        kept=5 * 3 * (FIRST + SECOND) * 8,
    ),
    sample(
        "transformer_block, root mean square, rotary, gate, no bias",
        transformer_block(8, 2, norm=rms_norm(8), feed_forward=gated_feed_forward(8, 3), causal=True, rotary=10.0, bias=False),
        normal(5, 3, 8),
        by_modern_block,
        kept=(5 * 3 * ((1 + 8) + (24 + 8 + 2) + 8 + (1 + 8) + 9) + 2 * 3 * 4) * 8,
    ),
    sample(
        "transformer_block on a masked batch",
        small(on_masked(transformer_block(4, 2, hidden=6))),
        Masked(normal(5, 4, 4), MASK),
        lambda p, x: Masked(by_block(p.layers[0], x.values, x.mask), x.mask),
        kept=5 * 4 * (FIRST + SECOND) * 8,
    ),
    sample(
        "encoder",
        small(encoder(2, transformer_block(4, 2, hidden=6, causal=True), layer_norm(4))),
        normal(5, 3, 4),
        lambda p, x: by_layer(p[1], by_block(p[0][1], by_block(p[0][0], x))),
        kept=5 * 3 * (2 * (FIRST + SECOND) + 2 * 4 + 2) * 8,
    ),
    sample(
        "decoder_block",
        small(decoder_block(4, 2, hidden=6, memory_features=3)),
        (normal(5, 3, 4), normal(5, 2, 3)),
        lambda p, x: by_decoder_block(p.layers, *x, (None, None)),
        kept=5 * (3 * (FIRST + MIDDLE + SECOND) + 2 * 8) * 8,
    ),
    sample(
        "decoder",
        small(decoder(2, decoder_block(4, 2, hidden=6), layer_norm(4))),
        (normal(5, 3, 4), normal(5, 2, 4)),
        lambda p, x: by_decoder((tuple(block.layers for block in p.layers[0]), p.layers[1]), *x),
        kept=5 * (3 * (2 * (FIRST + MIDDLE + SECOND) + 2 * 4 + 2) + 2 * 2 * 8) * 8,
    ),
    sample(
        "decoder on masked batches",
        small(on_masked_pair(decoder(2, decoder_block(4, 2, hidden=6, causal=False), layer_norm(4)))),
        (Masked(normal(5, 4, 4), MASK), Masked(normal(5, 4, 4).flip(1), MASK.flip(0))),
        lambda p, x: Masked(
            by_decoder(
                (tuple(block.layers for block in p.layer.layers[0]), p.layer.layers[1]),
                x[0].values,
                x[1].values,
                (x[0].mask, x[1].mask),
            ),
            x[0].mask,
        ),
        kept=5 * 4 * (2 * (FIRST + MIDDLE + SECOND) + 2 * 4 + 2 + 2 * 8) * 8,
    ),
    sample(
        "cross-attention on masked batches",
        on_masked_pair(cross_attention(6, 2)),
        (Masked(normal(5, 4, 6), MASK), Masked(normal(5, 4, 6).flip(1), MASK.flip(0))),
        lambda p, x: Masked(
            cross_attended(attrs.evolve(p.layer, memory_mask=x[1].mask), (x[0].values, x[1].values)), x[0].mask
        ),
        kept=5 * 4 * (6 + 6 + 2 + 12) * 8,
    ),
)
