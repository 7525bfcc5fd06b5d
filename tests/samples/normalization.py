"""Sample layers: normalisation."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fundl import LayerNorm, RMSNorm, layer_norm, rms_norm
from tests.samples.table import normal, sample


def by_layer(p: LayerNorm, x: Tensor) -> Tensor:
    sizes = p.features if isinstance(p.features, tuple) else (p.features,)
    return F.layer_norm(x, sizes, p.weight, p.bias, p.eps)


def by_rms(p: RMSNorm, x: Tensor) -> Tensor:
    axes = tuple(range(-len(p.features), 0)) if isinstance(p.features, tuple) else -1
    normalized = x / (x.square().mean(axes, keepdim=True) + p.eps).sqrt()
    return normalized if p.weight is None else normalized * p.weight


WIDE: Final = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1}
"""The statistics, too, are kept in half precision."""

SAMPLES: Final = (
    sample("LayerNorm", layer_norm(6), normal(5, 6), by_layer, kept=2 * 5 * 8, tolerances=WIDE),
    sample("LayerNorm, no bias", layer_norm(6, bias=False), normal(5, 6), by_layer, kept=2 * 5 * 8, tolerances=WIDE),
    sample("LayerNorm, no parameters", LayerNorm(6), normal(5, 6), by_layer, kept=2 * 5 * 8, tolerances=WIDE),
    sample("LayerNorm, eps", layer_norm(6, eps=0.5), normal(5, 6), by_layer, kept=2 * 5 * 8),
    sample("LayerNorm of a vector", layer_norm(6), normal(6), by_layer, batched=False, kept=2 * 8, tolerances=WIDE),
    sample("LayerNorm of sequences", layer_norm(6), normal(5, 2, 6), by_layer, kept=2 * 10 * 8, tolerances=WIDE),
    sample("LayerNorm of axes", layer_norm((2, 3)), normal(5, 4, 2, 3), by_layer, kept=2 * 20 * 8, tolerances=WIDE),
    sample("RMSNorm", rms_norm(6), normal(5, 6), by_rms, kept=5 * 8),
    sample("RMSNorm, no weight", RMSNorm(6), normal(5, 6), by_rms, kept=5 * 8),
    sample("RMSNorm, eps", rms_norm(6, eps=0.5), normal(5, 6), by_rms, kept=5 * 8),
    sample("RMSNorm of a vector", rms_norm(6), normal(6), by_rms, batched=False, kept=8),
    sample("RMSNorm of sequences", rms_norm(6), normal(5, 2, 6), by_rms, kept=10 * 8),
    sample("RMSNorm of axes", rms_norm((2, 3)), normal(5, 4, 2, 3), by_rms, kept=20 * 8),
)
