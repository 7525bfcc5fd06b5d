"""Resampling, padding, and pixels between space and channels."""

from collections.abc import Callable, Mapping
from typing import Final

from torch import nn

from fundl.interop.torch_nn.pairs import Refused, Row, from_module, pair, require, require_axes, to_module, to_module_for_input
from fundl.layers.resampling import Pad, PadMode, PixelShuffle, PixelUnshuffle, Upsample
from fundl.shapes import AnyShape

# --- Upsampling --------------------------------------------------------------------------------------------------------

_LINEAR: Final = {3: "linear", 4: "bilinear", 5: "trilinear"}


def _from_upsample(module: nn.Upsample) -> Upsample:
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


def _to_upsample(layer: Upsample, shape: AnyShape) -> nn.Module:
    if layer.mode == "nearest":
        return nn.Upsample(layer.size, layer.factor)
    setting = layer.size if layer.factor is None else layer.factor
    axes = len(setting) + 2 if isinstance(setting, tuple) else require_axes(shape, "the modes linear, bilinear and trilinear")
    return nn.Upsample(layer.size, layer.factor, _LINEAR[axes], layer.align_corners)


# --- Padding -----------------------------------------------------------------------------------------------------------


def _padding(module: nn.Module) -> tuple[int | tuple[int, int], ...]:
    """How many elements a module puts before and behind each of the last axes, in their order."""
    given: object = vars(module)["padding"]
    assert isinstance(given, tuple)
    pairs = [(given[index], given[index + 1]) for index in range(len(given) - 2, -1, -2)]
    return tuple(before if before == behind else (before, behind) for before, behind in pairs)


def _from_constant(module: nn.ConstantPad1d | nn.ConstantPad2d | nn.ConstantPad3d) -> Pad:
    return Pad(_padding(module), value=module.value)


def _last_first(layer: Pad) -> tuple[int, ...]:
    pairs = [(pair, pair) if isinstance(pair, int) else pair for pair in layer.padding]
    return tuple(count for pair in reversed(pairs) for count in pair)


def _to_pad(layer: Pad) -> nn.Module:
    makers: Mapping[PadMode, Callable[[], nn.Module]]
    match _last_first(layer):
        case (a, b):
            makers = {
                "constant": lambda: nn.ConstantPad1d((a, b), layer.value),
                "reflect": lambda: nn.ReflectionPad1d((a, b)),
                "replicate": lambda: nn.ReplicationPad1d((a, b)),
                "circular": lambda: nn.CircularPad1d((a, b)),
            }
        case (a, b, c, d):
            makers = {
                "constant": lambda: nn.ConstantPad2d((a, b, c, d), layer.value),
                "reflect": lambda: nn.ReflectionPad2d((a, b, c, d)),
                "replicate": lambda: nn.ReplicationPad2d((a, b, c, d)),
                "circular": lambda: nn.CircularPad2d((a, b, c, d)),
            }
        case (a, b, c, d, e, f):
            makers = {
                "constant": lambda: nn.ConstantPad3d((a, b, c, d, e, f), layer.value),
                "reflect": lambda: nn.ReflectionPad3d((a, b, c, d, e, f)),
                "replicate": lambda: nn.ReplicationPad3d((a, b, c, d, e, f)),
                "circular": lambda: nn.CircularPad3d((a, b, c, d, e, f)),
            }
        case _:
            raise Refused(f"it pads {len(layer.padding)} axes, but torch.nn's modules pad at most 3")
    return makers[layer.mode]()


def _rows(mode: PadMode, *modules: type[nn.Module]) -> tuple[Row, ...]:
    return tuple(from_module(module, lambda m: Pad(_padding(m), mode=mode)) for module in modules)


ROWS: Final[tuple[Row, ...]] = (
    *(from_module(module, _from_upsample) for module in (nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)),
    from_module(nn.Upsample, _from_upsample),
    to_module_for_input(Upsample, _to_upsample),
    from_module(nn.ConstantPad1d, _from_constant),
    from_module(nn.ConstantPad2d, _from_constant),
    from_module(nn.ConstantPad3d, _from_constant),
    *_rows("constant", nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    *_rows("reflect", nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *_rows("replicate", nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *_rows("circular", nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
    to_module(Pad, _to_pad),
    *pair(
        nn.PixelShuffle,
        PixelShuffle,
        lambda module: PixelShuffle(module.upscale_factor),
        lambda layer: nn.PixelShuffle(layer.factor),
    ),
    *pair(
        nn.PixelUnshuffle,
        PixelUnshuffle,
        lambda module: PixelUnshuffle(module.downscale_factor),
        lambda layer: nn.PixelUnshuffle(layer.factor),
    ),
)
