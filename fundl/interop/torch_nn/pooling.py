"""Pools: sliding windows, parts of equal size, whole channels."""

from typing import Final

from torch import nn

from fundl.interop.torch_nn.pairs import Refused, Row, pair, require, require_axes, to_module_for_input
from fundl.interop.torch_nn.per_axis import one_axis, three_axes, two_axes
from fundl.layers.pooling import (
    AdaptiveAveragePool1d,
    AdaptiveAveragePool2d,
    AdaptiveAveragePool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AveragePool1d,
    AveragePool2d,
    AveragePool3d,
    GlobalAveragePool,
    GlobalMaxPool,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)
from fundl.shapes import AnyShape

# --- Sliding windows ---------------------------------------------------------------------------------------------------


def _require_no_indices(module: nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d) -> None:
    require(not module.return_indices, _INDICES)


_INDICES: Final = "return_indices=True gives a pair, but a layer gives one tensor: set it to False"


def _from_max1d(module: nn.MaxPool1d) -> MaxPool1d:
    _require_no_indices(module)
    return MaxPool1d(
        one_axis(module.kernel_size),
        stride=one_axis(module.stride),
        padding=one_axis(module.padding),
        dilation=one_axis(module.dilation),
        ceil_mode=module.ceil_mode,
    )


def _from_max2d(module: nn.MaxPool2d) -> MaxPool2d:
    _require_no_indices(module)
    return MaxPool2d(
        two_axes(module.kernel_size),
        stride=two_axes(module.stride),
        padding=two_axes(module.padding),
        dilation=two_axes(module.dilation),
        ceil_mode=module.ceil_mode,
    )


def _from_max3d(module: nn.MaxPool3d) -> MaxPool3d:
    _require_no_indices(module)
    return MaxPool3d(
        three_axes(module.kernel_size),
        stride=three_axes(module.stride),
        padding=three_axes(module.padding),
        dilation=three_axes(module.dilation),
        ceil_mode=module.ceil_mode,
    )


def _to_max1d(layer: MaxPool1d) -> nn.Module:
    return nn.MaxPool1d(layer.kernel_size, layer.stride, layer.padding, layer.dilation, ceil_mode=layer.ceil_mode)


def _to_max2d(layer: MaxPool2d) -> nn.Module:
    return nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding, layer.dilation, ceil_mode=layer.ceil_mode)


def _to_max3d(layer: MaxPool3d) -> nn.Module:
    return nn.MaxPool3d(layer.kernel_size, layer.stride, layer.padding, layer.dilation, ceil_mode=layer.ceil_mode)


def _from_average1d(module: nn.AvgPool1d) -> AveragePool1d:
    return AveragePool1d(
        one_axis(module.kernel_size),
        stride=one_axis(module.stride),
        padding=one_axis(module.padding),
        ceil_mode=module.ceil_mode,
        count_include_padding=module.count_include_pad,
    )


def _from_average2d(module: nn.AvgPool2d) -> AveragePool2d:
    return AveragePool2d(
        two_axes(module.kernel_size),
        stride=two_axes(module.stride),
        padding=two_axes(module.padding),
        ceil_mode=module.ceil_mode,
        count_include_padding=module.count_include_pad,
        divisor=module.divisor_override,
    )


def _from_average3d(module: nn.AvgPool3d) -> AveragePool3d:
    return AveragePool3d(
        three_axes(module.kernel_size),
        stride=three_axes(module.stride),
        padding=three_axes(module.padding),
        ceil_mode=module.ceil_mode,
        count_include_padding=module.count_include_pad,
        divisor=module.divisor_override,
    )


def _to_average1d(layer: AveragePool1d) -> nn.Module:
    require(layer.divisor is None, f"divisor={layer.divisor}, which nn.AvgPool1d has no option for: take AveragePool2d")
    return nn.AvgPool1d(layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_padding)


def _to_average2d(layer: AveragePool2d) -> nn.Module:
    return nn.AvgPool2d(
        layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_padding, layer.divisor
    )


def _to_average3d(layer: AveragePool3d) -> nn.Module:
    return nn.AvgPool3d(
        layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_padding, layer.divisor
    )


# --- Parts of equal size -----------------------------------------------------------------------------------------------


def _parts(size: int | tuple[int | None, ...] | None) -> int | tuple[int, ...]:
    """How many parts a module makes of each axis."""
    if isinstance(size, int):
        return size
    numbers = () if size is None else tuple(number for number in size if number is not None)
    if size is None or len(numbers) < len(size):
        raise Refused(f"output_size={size} keeps the size of an axis, whatever it is: give a number for each axis")
    return numbers


def _from_adaptive_max1d(module: nn.AdaptiveMaxPool1d) -> AdaptiveMaxPool1d:
    require(not module.return_indices, _INDICES)
    return AdaptiveMaxPool1d(one_axis(_parts(module.output_size)))


def _from_adaptive_max2d(module: nn.AdaptiveMaxPool2d) -> AdaptiveMaxPool2d:
    require(not module.return_indices, _INDICES)
    return AdaptiveMaxPool2d(two_axes(_parts(module.output_size)))


def _from_adaptive_max3d(module: nn.AdaptiveMaxPool3d) -> AdaptiveMaxPool3d:
    require(not module.return_indices, _INDICES)
    return AdaptiveMaxPool3d(three_axes(_parts(module.output_size)))


# --- Whole channels ----------------------------------------------------------------------------------------------------


def _to_global_average(_: GlobalAveragePool, shape: AnyShape) -> nn.Module:
    modules: dict[int, nn.Module] = {3: nn.AdaptiveAvgPool1d(1), 4: nn.AdaptiveAvgPool2d(1), 5: nn.AdaptiveAvgPool3d(1)}
    return nn.Sequential(modules[_axes(shape, "nn.AdaptiveAvgPool1d, 2d and 3d")], nn.Flatten())


def _to_global_max(_: GlobalMaxPool, shape: AnyShape) -> nn.Module:
    modules: dict[int, nn.Module] = {3: nn.AdaptiveMaxPool1d(1), 4: nn.AdaptiveMaxPool2d(1), 5: nn.AdaptiveMaxPool3d(1)}
    return nn.Sequential(modules[_axes(shape, "nn.AdaptiveMaxPool1d, 2d and 3d")], nn.Flatten())


def _axes(shape: AnyShape, modules: str) -> int:
    axes = require_axes(shape, modules)
    require(axes in {3, 4, 5}, f"its input has {axes} axes, but {modules} take one to three after the channels")
    return axes


ROWS: Final[tuple[Row, ...]] = (
    *pair(nn.MaxPool1d, MaxPool1d, _from_max1d, _to_max1d),
    *pair(nn.MaxPool2d, MaxPool2d, _from_max2d, _to_max2d),
    *pair(nn.MaxPool3d, MaxPool3d, _from_max3d, _to_max3d),
    *pair(nn.AvgPool1d, AveragePool1d, _from_average1d, _to_average1d),
    *pair(nn.AvgPool2d, AveragePool2d, _from_average2d, _to_average2d),
    *pair(nn.AvgPool3d, AveragePool3d, _from_average3d, _to_average3d),
    *pair(
        nn.AdaptiveAvgPool1d,
        AdaptiveAveragePool1d,
        lambda module: AdaptiveAveragePool1d(one_axis(_parts(module.output_size))),
        lambda layer: nn.AdaptiveAvgPool1d(layer.output_size),
    ),
    *pair(
        nn.AdaptiveAvgPool2d,
        AdaptiveAveragePool2d,
        lambda module: AdaptiveAveragePool2d(two_axes(_parts(module.output_size))),
        lambda layer: nn.AdaptiveAvgPool2d(layer.output_size),
    ),
    *pair(
        nn.AdaptiveAvgPool3d,
        AdaptiveAveragePool3d,
        lambda module: AdaptiveAveragePool3d(three_axes(_parts(module.output_size))),
        lambda layer: nn.AdaptiveAvgPool3d(layer.output_size),
    ),
    *pair(nn.AdaptiveMaxPool1d, AdaptiveMaxPool1d, _from_adaptive_max1d, lambda layer: nn.AdaptiveMaxPool1d(layer.output_size)),
    *pair(
        nn.AdaptiveMaxPool2d,
        AdaptiveMaxPool2d,
        _from_adaptive_max2d,
        lambda layer: nn.AdaptiveMaxPool2d(layer.output_size),
    ),
    *pair(
        nn.AdaptiveMaxPool3d,
        AdaptiveMaxPool3d,
        _from_adaptive_max3d,
        lambda layer: nn.AdaptiveMaxPool3d(layer.output_size),
    ),
    to_module_for_input(GlobalAveragePool, _to_global_average),
    to_module_for_input(GlobalMaxPool, _to_global_max),
)
