"""Upsampling and padding."""

from typing import Final

from torch import nn

from fundl.interop.torch_nn._counterparts import Refused, require
from fundl.interop.torch_nn._rules import ConvertInside, model_of, module_of, require_axes
from fundl.layers.resampling import Pad, PadMode, Upsample
from fundl.shapes import AnyShape

_LINEAR: Final = {3: "linear", 4: "bilinear", 5: "trilinear"}


@model_of.register
def _(module: nn.Upsample | nn.UpsamplingNearest2d | nn.UpsamplingBilinear2d, *_: object) -> Upsample:
    mode = module.mode
    require(
        mode == "nearest" or mode in _LINEAR.values(),
        f"mode={mode!r}, but Upsample knows 'nearest' and 'linear' alone: choose 'nearest' or the linear mode of its axes",
    )
    require(
        not module.recompute_scale_factor,
        "recompute_scale_factor=True finds the factor from the sizes: set it to None, or give the size instead",
    )
    size, factor = module.size, module.scale_factor
    return Upsample(
        factor,
        size=tuple(size) if isinstance(size, tuple | list) else size,
        mode="nearest" if mode == "nearest" else "linear",
        align_corners=bool(module.align_corners),
    )


@module_of.register
def _(layer: Upsample, shape: AnyShape, _: ConvertInside) -> nn.Module:
    if layer.mode == "nearest":
        return nn.Upsample(layer.size, layer.factor)
    setting = layer.size if layer.factor is None else layer.factor
    axes = len(setting) + 2 if isinstance(setting, tuple) else require_axes(shape, "the modes linear, bilinear and trilinear")
    return nn.Upsample(layer.size, layer.factor, _LINEAR[axes], layer.align_corners)


# --- Padding -----------------------------------------------------------------------------------------------------------

_PADS: Final[dict[str, PadMode]] = {
    "ConstantPad": "constant",
    "ZeroPad": "constant",
    "ReflectionPad": "reflect",
    "ReplicationPad": "replicate",
    "CircularPad": "circular",
}


def _pad(module: nn.Module, *_: object) -> Pad:
    """The layer; a module has the counts of the last axis first."""
    options, mode = vars(module), _PADS[type(module).__name__[:-2]]
    given: object = options["padding"]
    assert isinstance(given, tuple)
    pairs = [(given[index], given[index + 1]) for index in range(len(given) - 2, -1, -2)]
    counts = tuple(before if before == behind else (before, behind) for before, behind in pairs)
    return Pad(counts, mode=mode, value=options["value"] if mode == "constant" else 0.0)


for _name in _PADS:
    for _axes in (1, 2, 3):
        model_of.register(getattr(nn, f"{_name}{_axes}d"), _pad)


@module_of.register
def _(layer: Pad, *_: object) -> nn.Module:
    pairs = [(pair, pair) if isinstance(pair, int) else pair for pair in layer.padding]
    if len(pairs) > 3:
        raise Refused(f"it pads {len(pairs)} axes, but torch.nn's modules pad at most 3")
    name = next(name for name, mode in _PADS.items() if mode == layer.mode)
    kind: type[nn.Module] = getattr(nn, f"{name}{len(pairs)}d")
    counts = tuple(count for pair in reversed(pairs) for count in pair)
    return kind(counts, layer.value) if layer.mode == "constant" else kind(counts)
