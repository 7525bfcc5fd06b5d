"""Normalising layers."""

from collections.abc import Mapping
from typing import Final, TypeVar

import torch
from torch import Tensor, nn

from fundl.interop.torch_nn._counterparts import (
    Refused,
    copied,
    from_counterpart,
    made_of,
    require,
    to_counterpart,
)
from fundl.interop.torch_nn._rules import ConvertInside, channels_of, model_of, module_of, require_axes
from fundl.layer import AnyLayer
from fundl.layers.batch_norm import BatchNorm
from fundl.layers.group_norm import GroupNorm, InstanceNorm
from fundl.layers.normalization import LayerNorm, RMSNorm
from fundl.shapes import AnyShape

N = TypeVar("N", bound=nn.Module)

# --- Features ----------------------------------------------------------------------------------------------------------


@model_of.register
def _(module: nn.LayerNorm, *_: object) -> AnyLayer:
    return from_counterpart(module, features=_features(module.normalized_shape))


@model_of.register
def _(module: nn.RMSNorm, *_: object) -> AnyLayer:
    eps = module.eps
    if eps is None:
        require(
            module.elementwise_affine,
            "eps=None stands for the epsilon of the input's dtype, which nobody has told: set the module's eps to a number",
        )
        eps = torch.finfo(module.weight.dtype).eps
    return from_counterpart(module, features=_features(module.normalized_shape), eps=eps)


def _features(sizes: tuple[int, ...]) -> int | tuple[int, ...]:
    return sizes[0] if len(sizes) == 1 else tuple(sizes)


@module_of.register
def _(layer: LayerNorm, *_: object) -> nn.Module:
    return to_counterpart(layer, elementwise_affine=_is_affine(layer), bias=layer.bias is not None)


@module_of.register
def _(layer: RMSNorm, *_: object) -> nn.Module:
    return to_counterpart(layer, elementwise_affine=layer.weight is not None)


# --- Channels ----------------------------------------------------------------------------------------------------------

_BATCH_NORMS: Final = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE_NORMS: Final = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


@module_of.register
def _(layer: GroupNorm, shape: AnyShape, _: ConvertInside) -> nn.Module:
    _require_no_mask(layer)
    return to_counterpart(layer, affine=_is_affine(layer), num_channels=channels_of(shape, layer.weight))


@model_of.register
def _(module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, *_: object) -> BatchNorm:
    return BatchNorm(
        copied(module.weight),
        copied(module.bias),
        mean=copied(module.running_mean),
        var=copied(module.running_var),
        eps=module.eps,
    )


@module_of.register
def _(layer: BatchNorm, shape: AnyShape, _: ConvertInside) -> nn.Module:
    _require_no_mask(layer)
    affine, tracks = _is_affine(layer), layer.mean is not None
    channels = channels_of(shape, layer.weight if layer.mean is None else layer.mean)
    module = made_of(_for_axes(_BATCH_NORMS, shape), layer, num_features=channels, affine=affine, track_running_stats=tracks)
    if layer.mean is not None and layer.var is not None:
        module.running_mean, module.running_var = copied(layer.mean), copied(layer.var)
        module.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=layer.mean.device)
    return module


@model_of.register
def _(module: nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d, *_: object) -> InstanceNorm:
    require(
        not module.track_running_stats,
        "track_running_stats=True, but InstanceNorm has no statistics: in evaluation such a module is a batch normalisation,"
        " so put one of its parameters and statistics in its place",
    )
    return InstanceNorm(copied(module.weight), copied(module.bias), eps=module.eps)


@module_of.register
def _(layer: InstanceNorm, shape: AnyShape, _: ConvertInside) -> nn.Module:
    _require_no_mask(layer)
    affine, channels = _is_affine(layer), channels_of(shape, layer.weight)
    return made_of(_for_axes(_INSTANCE_NORMS, shape), layer, num_features=channels, affine=affine)


def _require_no_mask(layer: GroupNorm | BatchNorm | InstanceNorm) -> None:
    require(layer.mask is None, "it has a mask, which the module does not heed: convert it without")


def _is_affine(layer: LayerNorm | GroupNorm | BatchNorm | InstanceNorm) -> bool:
    weight: Tensor | None = layer.weight
    require(
        weight is not None or layer.bias is None,
        "it has a bias and no weight, which the module cannot: give it a weight of ones",
    )
    return weight is not None


def _for_axes(modules: Mapping[int, type[N]], shape: AnyShape) -> type[N]:
    names = f"nn.{', '.join(dict.fromkeys(module.__name__ for module in modules.values()))}"
    axes = require_axes(shape, names)
    if axes not in modules:
        raise Refused(f"its input has {axes} axes, for which there is none of {names}")
    return modules[axes]
