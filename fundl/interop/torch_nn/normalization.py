"""Normalising layers.

Modules normalise with the statistics of a batch in training, and with running ones in evaluation. Layers have no modes: a
`BatchNorm` that has statistics is the module in evaluation, and `without_statistics` of it the module in training.
"""

from collections.abc import Mapping
from typing import Final, TypeVar

import torch
from torch import Tensor, nn

from fundl.interop.torch_nn.pairs import (
    META,
    Refused,
    Row,
    channels_of,
    copied,
    copied_if_any,
    from_module,
    pair,
    require,
    require_axes,
    to_module_for_input,
    with_parameters,
)
from fundl.layers.batch_norm import BatchNorm
from fundl.layers.normalization import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from fundl.shapes import AnyShape

N = TypeVar("N", bound=nn.Module)

# --- Features ----------------------------------------------------------------------------------------------------------


def _features(sizes: tuple[int, ...]) -> int | tuple[int, ...]:
    return sizes[0] if len(sizes) == 1 else tuple(sizes)


def _sizes(features: int | tuple[int, ...]) -> list[int]:
    return [features] if isinstance(features, int) else list(features)


def _from_layer_norm(module: nn.LayerNorm) -> LayerNorm:
    weight, bias = copied_if_any(module.weight), copied_if_any(module.bias)
    return LayerNorm(_features(module.normalized_shape), weight, bias, eps=module.eps)


def to_layer_norm(layer: LayerNorm) -> nn.LayerNorm:
    """The module of a `LayerNorm`."""
    affine = _is_affine(layer.weight, layer.bias)
    sizes, bias = _sizes(layer.features), layer.bias is not None
    module = nn.LayerNorm(sizes, layer.eps, elementwise_affine=affine, bias=bias, device=META)
    return with_parameters(module, weight=layer.weight, bias=layer.bias)


def _from_rms_norm(module: nn.RMSNorm) -> RMSNorm:
    eps = module.eps
    if eps is None:
        require(
            module.elementwise_affine,
            "eps=None stands for the epsilon of the input's dtype, which nobody has told: set the module's eps to a number",
        )
        eps = torch.finfo(module.weight.dtype).eps
    return RMSNorm(_features(module.normalized_shape), copied_if_any(module.weight), eps=eps)


def _to_rms_norm(layer: RMSNorm) -> nn.Module:
    module = nn.RMSNorm(_sizes(layer.features), layer.eps, elementwise_affine=layer.weight is not None, device=META)
    return with_parameters(module, weight=layer.weight)


# --- Groups ------------------------------------------------------------------------------------------------------------


def _from_group_norm(module: nn.GroupNorm) -> GroupNorm:
    weight, bias = copied_if_any(module.weight), copied_if_any(module.bias)
    return GroupNorm(module.num_groups, weight, bias, eps=module.eps)


def _to_group_norm(layer: GroupNorm, shape: AnyShape) -> nn.Module:
    affine, channels = _is_affine(layer.weight, layer.bias), channels_of(shape, layer.weight)
    module = nn.GroupNorm(layer.groups, channels, layer.eps, affine, device=META)
    return with_parameters(module, weight=layer.weight, bias=layer.bias)


def _is_affine(weight: Tensor | None, bias: Tensor | None) -> bool:
    require(
        weight is not None or bias is None,
        "it has a bias and no weight, which the module cannot: give it a weight of ones",
    )
    return weight is not None


# --- Channels ----------------------------------------------------------------------------------------------------------

_BATCH_NORMS: Final = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE_NORMS: Final = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def _from_batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> BatchNorm:
    return BatchNorm(
        copied_if_any(module.weight),
        copied_if_any(module.bias),
        mean=copied_if_any(module.running_mean),
        var=copied_if_any(module.running_var),
        eps=module.eps,
    )


def _to_batch_norm(layer: BatchNorm, shape: AnyShape) -> nn.Module:
    affine, tracks = _is_affine(layer.weight, layer.bias), layer.mean is not None
    channels = channels_of(shape, layer.weight if layer.mean is None else layer.mean)
    module = _for_axes(_BATCH_NORMS, shape)(channels, layer.eps, affine=affine, track_running_stats=tracks, device=META)
    if layer.mean is not None and layer.var is not None:
        module.running_mean, module.running_var = copied(layer.mean), copied(layer.var)
        module.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=layer.mean.device)
    return with_parameters(module, weight=layer.weight, bias=layer.bias)


def _from_instance_norm(module: nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d) -> InstanceNorm:
    require(
        not module.track_running_stats,
        "track_running_stats=True, but InstanceNorm has no statistics: in evaluation such a module is a batch normalisation,"
        " so put one of its parameters and statistics in its place",
    )
    return InstanceNorm(copied_if_any(module.weight), copied_if_any(module.bias), eps=module.eps)


def _to_instance_norm(layer: InstanceNorm, shape: AnyShape) -> nn.Module:
    affine, channels = _is_affine(layer.weight, layer.bias), channels_of(shape, layer.weight)
    module = _for_axes(_INSTANCE_NORMS, shape)(channels, layer.eps, affine=affine, device=META)
    return with_parameters(module, weight=layer.weight, bias=layer.bias)


def _for_axes(modules: Mapping[int, type[N]], shape: AnyShape) -> type[N]:
    names = f"nn.{', '.join(dict.fromkeys(module.__name__ for module in modules.values()))}"
    axes = require_axes(shape, names)
    if axes not in modules:
        raise Refused(f"its input has {axes} axes, for which there is none of {names}")
    return modules[axes]


ROWS: Final[tuple[Row, ...]] = (
    *pair(nn.LayerNorm, LayerNorm, _from_layer_norm, to_layer_norm),
    *pair(nn.RMSNorm, RMSNorm, _from_rms_norm, _to_rms_norm),
    from_module(nn.GroupNorm, _from_group_norm),
    to_module_for_input(GroupNorm, _to_group_norm),
    from_module(nn.BatchNorm1d, _from_batch_norm),
    from_module(nn.BatchNorm2d, _from_batch_norm),
    from_module(nn.BatchNorm3d, _from_batch_norm),
    to_module_for_input(BatchNorm, _to_batch_norm),
    from_module(nn.InstanceNorm1d, _from_instance_norm),
    from_module(nn.InstanceNorm2d, _from_instance_norm),
    from_module(nn.InstanceNorm3d, _from_instance_norm),
    to_module_for_input(InstanceNorm, _to_instance_norm),
)
