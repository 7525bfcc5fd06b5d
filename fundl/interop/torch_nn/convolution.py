"""Convolutions, and transposed ones."""

from collections.abc import Callable
from typing import Final, Generic, TypedDict, TypeVar

import torch
from torch import nn

from fundl._common.kernels import PerAxis
from fundl.interop.torch_nn.pairs import META, Refused, Row, copied, copied_if_any, pair, require, with_parameters
from fundl.interop.torch_nn.per_axis import one, same_for_all, three, two
from fundl.layers.convolution import Conv1d, Conv2d, Conv3d, Convolution
from fundl.layers.transposed_convolution import (
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    TransposedConvolution,
)

C = TypeVar("C", bound=Convolution)
T = TypeVar("T", bound=TransposedConvolution)
Each = TypeVar("Each")


# --- From modules ------------------------------------------------------------------------------------------------------


def _from(layer: type[C], module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> C:
    _require_zeros(module.padding_mode)
    padding = module.padding
    return layer(
        copied(module.weight),
        copied_if_any(module.bias),
        stride=same_for_all(module.stride),
        padding=("same" if padding == "same" else 0) if isinstance(padding, str) else same_for_all(padding),
        dilation=same_for_all(module.dilation),
        groups=module.groups,
    )


def _from_transposed(layer: type[T], module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) -> T:
    if isinstance(module.padding, str):
        raise Refused(f"padding={module.padding!r}: give the padding in numbers")
    return layer(
        copied(module.weight),
        copied_if_any(module.bias),
        stride=same_for_all(module.stride),
        padding=same_for_all(module.padding),
        dilation=same_for_all(module.dilation),
        groups=module.groups,
        output_padding=same_for_all(module.output_padding),
    )


def _require_zeros(mode: str) -> None:
    padding = {"reflect": "ReflectionPad", "replicate": "ReplicationPad", "circular": "CircularPad"}.get(mode, "")
    require(
        mode == "zeros",
        f"padding_mode={mode!r}, but a convolution pads with zeros: put nn.{padding}1d, 2d or 3d before one with padding=0",
    )


# --- To modules --------------------------------------------------------------------------------------------------------


class _Settings(TypedDict, Generic[Each]):
    in_channels: int
    out_channels: int
    kernel_size: Each
    stride: Each
    dilation: Each
    groups: int
    bias: bool
    device: torch.device


class _Padding(TypedDict, Generic[Each]):
    padding: Each | str


class _TransposedPadding(TypedDict, Generic[Each]):
    padding: Each
    output_padding: Each


def _settings(layer: Convolution, each: Callable[[PerAxis], Each]) -> _Settings[Each]:
    first, second, *kernel = layer.weight.shape
    inputs, outputs = (first, second * layer.groups) if layer.transposed else (second * layer.groups, first)
    return {
        "in_channels": inputs,
        "out_channels": outputs,
        "kernel_size": each(tuple(kernel)),
        "stride": each(layer.stride),
        "dilation": each(layer.dilation),
        "groups": layer.groups,
        "bias": layer.bias is not None,
        "device": META,
    }


def _padding(layer: Convolution, each: Callable[[PerAxis], Each]) -> _Padding[Each]:
    return {"padding": layer.padding if layer.padding == "same" else each(layer.padding)}


def _transposed_padding(layer: TransposedConvolution, each: Callable[[PerAxis], Each]) -> _TransposedPadding[Each]:
    return {"padding": each(layer.padding), "output_padding": each(layer.output_padding)}


def _to_conv1d(layer: Conv1d) -> nn.Module:
    module = nn.Conv1d(**_settings(layer, one), **_padding(layer, one))
    return with_parameters(module, weight=layer.weight, bias=layer.bias)


def _to_conv2d(layer: Conv2d) -> nn.Module:
    module = nn.Conv2d(**_settings(layer, two), **_padding(layer, two))
    return with_parameters(module, weight=layer.weight, bias=layer.bias)


def _to_conv3d(layer: Conv3d) -> nn.Module:
    module = nn.Conv3d(**_settings(layer, three), **_padding(layer, three))
    return with_parameters(module, weight=layer.weight, bias=layer.bias)


def _to_transpose1d(layer: ConvTranspose1d) -> nn.Module:
    module = nn.ConvTranspose1d(**_settings(layer, one), **_transposed_padding(layer, one))
    return with_parameters(module, weight=layer.weight, bias=layer.bias)


def _to_transpose2d(layer: ConvTranspose2d) -> nn.Module:
    module = nn.ConvTranspose2d(**_settings(layer, two), **_transposed_padding(layer, two))
    return with_parameters(module, weight=layer.weight, bias=layer.bias)


def _to_transpose3d(layer: ConvTranspose3d) -> nn.Module:
    module = nn.ConvTranspose3d(**_settings(layer, three), **_transposed_padding(layer, three))
    return with_parameters(module, weight=layer.weight, bias=layer.bias)


ROWS: Final[tuple[Row, ...]] = (
    *pair(nn.Conv1d, Conv1d, lambda module: _from(Conv1d, module), _to_conv1d),
    *pair(nn.Conv2d, Conv2d, lambda module: _from(Conv2d, module), _to_conv2d),
    *pair(nn.Conv3d, Conv3d, lambda module: _from(Conv3d, module), _to_conv3d),
    *pair(nn.ConvTranspose1d, ConvTranspose1d, lambda module: _from_transposed(ConvTranspose1d, module), _to_transpose1d),
    *pair(nn.ConvTranspose2d, ConvTranspose2d, lambda module: _from_transposed(ConvTranspose2d, module), _to_transpose2d),
    *pair(nn.ConvTranspose3d, ConvTranspose3d, lambda module: _from_transposed(ConvTranspose3d, module), _to_transpose3d),
)
