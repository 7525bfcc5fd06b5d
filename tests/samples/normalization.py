"""Sample layers: normalisation."""

from typing import Final

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from fundl import (
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    Linear,
    RMSNorm,
    SpectralNorm,
    WeightNorm,
    WeightStandardization,
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    linear,
    rms_norm,
    spectral_norm,
    weight_norm,
    weight_standardization,
    with_mask,
)
from tests.samples.table import normal, sample, with_values


def by_layer(p: LayerNorm, x: Tensor) -> Tensor:
    sizes = p.features if isinstance(p.features, tuple) else (p.features,)
    return F.layer_norm(x, sizes, p.weight, p.bias, p.eps)


def by_rms(p: RMSNorm, x: Tensor) -> Tensor:
    axes = tuple(range(-len(p.features), 0)) if isinstance(p.features, tuple) else -1
    normalized = x / (x.square().mean(axes, keepdim=True) + p.eps).sqrt()
    return normalized if p.weight is None else normalized * p.weight


def by_group(p: GroupNorm, x: Tensor) -> Tensor:
    return F.group_norm(x, p.groups, p.weight, p.bias, p.eps)


def by_instance(p: InstanceNorm, x: Tensor) -> Tensor:
    return F.group_norm(x, x.shape[1], p.weight, p.bias, p.eps)  # F.instance_norm takes no empty batch


def by_batch(p: BatchNorm, x: Tensor) -> Tensor:
    if not x.numel():  # which F.batch_norm does not take
        return x + sum((p.weight.sum() if p.weight is not None else 0, p.bias.sum() if p.bias is not None else 0)) * 0
    return F.batch_norm(x, p.mean, p.var, p.weight, p.bias, p.mean is None, 0.0, p.eps)


def known(layer: BatchNorm) -> BatchNorm:
    """The layer with statistics of four channels."""
    mean, var = torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([1.0, 0.1, 4.0, 0.5])
    return attrs.evolve(layer, mean=mean.double(), var=var.double())


def by_weight(p: WeightNorm[Linear], x: Tensor) -> Tensor:
    v = p.layer.weight
    return F.linear(x, p.gain * v / v.norm(dim=1 - p.axis, keepdim=True), p.layer.bias)


def by_standard(p: WeightStandardization[Linear], x: Tensor) -> Tensor:
    v = p.layer.weight
    rows = (v - v.mean(1, keepdim=True)) / (v.var(1, correction=0, keepdim=True) + p.eps).sqrt()
    return F.linear(x, rows, p.layer.bias)


def by_spectrum(p: SpectralNorm[Linear], x: Tensor) -> Tensor:
    weight = p.layer.weight
    left, right = (p.left, p.right) if p.axis == 0 else (p.right, p.left)
    return F.linear(x, weight / (left @ weight @ right), p.layer.bias)


REAL: Final = torch.tensor([[True, True, False, True], [True, False, False, True], [True, True, True, True]])
"""Of three sequences of four positions."""


def affine(p: BatchNorm | GroupNorm | InstanceNorm, n: Tensor, real: Tensor) -> Tensor:
    n = n if p.weight is None else n * p.weight.view(-1, 1)
    return (n if p.bias is None else n + p.bias.view(-1, 1)) * real


def by_real_batch(p: BatchNorm, x: Tensor) -> Tensor:
    """Of x (3, C, 4), whose real positions are taken out, and normalised as one batch of features."""
    real = REAL.unsqueeze(1)
    rows = x.transpose(1, 2)[REAL]
    mean, var = (rows.mean(0), rows.var(0, correction=0)) if p.mean is None or p.var is None else (p.mean, p.var)
    return affine(p, (x - mean.view(-1, 1)) / (var.view(-1, 1) + p.eps).sqrt(), real)


def by_real_groups(p: GroupNorm | InstanceNorm, x: Tensor) -> Tensor:
    """Of x (3, C, 4), example by example, group by group."""
    groups = p.groups if isinstance(p, GroupNorm) else x.shape[1]
    examples = []
    for example, real in zip(x, REAL, strict=True):
        parts = [
            (part - part[:, real].mean()) / (part[:, real].var(correction=0) + p.eps).sqrt() for part in example.chunk(groups)
        ]
        examples.append(torch.cat(parts))
    return affine(p, torch.stack(examples), REAL.unsqueeze(1))


SAMPLES: Final = (
    sample(
        "BatchNorm, mask", with_mask(batch_norm(4), REAL), normal(3, 4, 4), by_real_batch, batched=False, kept=2 * 4 * 8 + 8
    ),
    sample(
        "BatchNorm, mask, statistics",
        with_mask(known(batch_norm(4)), REAL),
        normal(3, 4, 4),
        by_real_batch,
        batched=False,
    ),
    sample("GroupNorm, mask", with_mask(group_norm(2, 4), REAL), normal(3, 4, 4), by_real_groups, batched=False, kept=96),
    sample("InstanceNorm, mask", with_mask(instance_norm(4), REAL), normal(3, 4, 4), by_real_groups, batched=False, kept=192),
    sample("LayerNorm", layer_norm(6), normal(5, 6), by_layer, kept=2 * 5 * 8),
    sample("LayerNorm, no bias", layer_norm(6, bias=False), normal(5, 6), by_layer, kept=2 * 5 * 8),
    sample("LayerNorm, no parameters", LayerNorm(6), normal(5, 6), by_layer, kept=2 * 5 * 8),
    sample("LayerNorm, eps", layer_norm(6, eps=0.5), normal(5, 6), by_layer, kept=2 * 5 * 8),
    sample("LayerNorm of a vector", layer_norm(6), normal(6), by_layer, batched=False, kept=2 * 8),
    sample("LayerNorm of sequences", layer_norm(6), normal(5, 2, 6), by_layer, kept=2 * 10 * 8),
    sample("LayerNorm of axes", layer_norm((2, 3)), normal(5, 4, 2, 3), by_layer, kept=2 * 20 * 8),
    sample("RMSNorm", rms_norm(6), normal(5, 6), by_rms, kept=5 * 8),
    sample("RMSNorm, no weight", RMSNorm(6), normal(5, 6), by_rms, kept=5 * 8),
    sample("RMSNorm, eps", rms_norm(6, eps=0.5), normal(5, 6), by_rms, kept=5 * 8),
    sample("RMSNorm of a vector", rms_norm(6), normal(6), by_rms, batched=False, kept=8),
    sample("RMSNorm of sequences", rms_norm(6), normal(5, 2, 6), by_rms, kept=10 * 8),
    sample("RMSNorm of axes", rms_norm((2, 3)), normal(5, 4, 2, 3), by_rms, kept=20 * 8),
    sample("GroupNorm", group_norm(2, 4), normal(3, 4, 5), by_group, kept=2 * 6 * 8),
    sample("GroupNorm, no bias", group_norm(2, 4, bias=False), normal(3, 4, 5), by_group, kept=2 * 6 * 8),
    sample("GroupNorm, no parameters", GroupNorm(2), normal(3, 4, 5), by_group, kept=2 * 6 * 8),
    sample("GroupNorm, eps", group_norm(2, 4, eps=0.5), normal(3, 4, 5), by_group, kept=2 * 6 * 8),
    sample("GroupNorm of features", group_norm(2, 8), normal(3, 8), by_group, kept=2 * 6 * 8),
    sample("GroupNorm of images", group_norm(2, 4), normal(3, 4, 2, 3), by_group, kept=2 * 6 * 8),
    sample("GroupNorm of volumes", group_norm(1, 4), normal(3, 4, 2, 3, 2), by_group, kept=2 * 3 * 8),
    sample("InstanceNorm", instance_norm(4), normal(3, 4, 5), by_instance, kept=24 * 8),
    sample("InstanceNorm, no bias", instance_norm(4, bias=False), normal(3, 4, 5), by_instance, kept=2 * 12 * 8),
    sample("InstanceNorm, no parameters", InstanceNorm(), normal(3, 4, 5), by_instance, kept=24 * 8),
    sample("InstanceNorm, eps", instance_norm(4, eps=0.5), normal(3, 4, 5), by_instance, kept=24 * 8),
    sample("InstanceNorm of images", instance_norm(4), normal(3, 4, 2, 3), by_instance, kept=24 * 8),
    sample("BatchNorm", batch_norm(4), normal(5, 4, 3), by_batch, kept=2 * 4 * 8),
    sample("BatchNorm, no bias", batch_norm(4, bias=False), normal(5, 4, 3), by_batch, kept=2 * 4 * 8),
    sample("BatchNorm, no parameters", BatchNorm(), normal(5, 4, 3), by_batch, kept=2 * 4 * 8),
    sample("BatchNorm, eps", batch_norm(4, eps=0.5), normal(5, 4, 3), by_batch, kept=2 * 4 * 8),
    sample("BatchNorm of features", batch_norm(4), normal(5, 4), by_batch, batched=False, kept=2 * 4 * 8),
    sample("BatchNorm of images", batch_norm(4), normal(5, 4, 2, 3), by_batch, kept=2 * 4 * 8),
    sample("BatchNorm of volumes", batch_norm(4), normal(5, 4, 2, 3, 2), by_batch, kept=2 * 4 * 8),
    sample("BatchNorm, statistics", known(batch_norm(4)), normal(5, 4, 3), by_batch),
    sample("BatchNorm, statistics, no bias", known(batch_norm(4, bias=False)), normal(5, 4, 3), by_batch),
    sample("BatchNorm, statistics alone", known(BatchNorm()), normal(5, 4), by_batch),
    sample("BatchNorm of images, statistics", known(batch_norm(4)), normal(5, 4, 2, 3), by_batch),
    sample("WeightNorm", weight_norm(linear(3, 4)), normal(5, 3), by_weight, kept=(12 + 4) * 8),
    sample("WeightNorm, no bias", weight_norm(linear(3, 4, bias=False)), normal(5, 3), by_weight, kept=(12 + 4) * 8),
    sample("WeightNorm, axis", weight_norm(linear(3, 4), axis=1), normal(5, 3), by_weight, kept=(12 + 3) * 8),
    sample("SpectralNorm", spectral_norm(with_values(linear(3, 4))), normal(5, 3), by_spectrum, kept=(12 + 1) * 8),
    sample("SpectralNorm, axis", spectral_norm(with_values(linear(3, 4)), axis=1), normal(5, 3), by_spectrum, kept=13 * 8),
    sample("WeightStandardization", weight_standardization(linear(3, 4)), normal(5, 3), by_standard, kept=(12 + 8) * 8),
    sample("WeightStandardization, eps", weight_standardization(linear(3, 4), eps=0.5), normal(5, 3), by_standard, kept=160),
)
