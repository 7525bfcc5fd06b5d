"""Layers without parameters: what is refused of those that name their counterpart, and those that are none's."""

from typing import TypeAlias

from torch import nn

from fundl.interop.torch_nn._counterparts import from_counterpart, require, to_counterpart
from fundl.interop.torch_nn._rules import ConvertInside, axes_of, model_of, module_of, require_axes, require_no_key
from fundl.layer import AnyLayer, Layer, Model
from fundl.layers.activation import Hardtanh, Sigmoid
from fundl.layers.dropout import Dropout
from fundl.layers.feed_forward import GLU
from fundl.layers.frozen import Frozen
from fundl.layers.global_pooling import GlobalAveragePool, GlobalMaxPool
from fundl.layers.lp_pooling import LPPool1d, LPPool2d, LPPool3d
from fundl.layers.noise import AlphaDropout
from fundl.layers.pooling import AveragePool1d, AveragePool2d, AveragePool3d, MaxPool1d, MaxPool2d, MaxPool3d
from fundl.layers.repeated import Repeat
from fundl.layers.softmax import Softmax
from fundl.layers.structure import Reshape
from fundl.layers.structured_dropout import ChannelDropout
from fundl.shapes import AnyShape

AnyPool: TypeAlias = (
    AveragePool1d | AveragePool2d | AveragePool3d | MaxPool1d | MaxPool2d | MaxPool3d | LPPool1d | LPPool2d | LPPool3d
)

# --- Activations and dropout -------------------------------------------------------------------------------------------


@model_of.register
def _(_: nn.ReLU6, *_rest: object) -> Hardtanh:
    return Hardtanh(0.0, 6.0)


@model_of.register
def _(_: nn.Softmax2d, *_rest: object) -> Softmax:
    return Softmax(-3)


@model_of.register
def _(module: nn.Softmax | nn.Softmin | nn.LogSoftmax, *_: object) -> AnyLayer:
    require(
        module.dim is not None,
        "dim=None has torch guess the axis from the input: set the module's dim, to -1 for the last axis",
    )
    return from_counterpart(module)


@module_of.register
def _(layer: GLU, *_: object) -> nn.Module:
    activation: AnyLayer = layer.activation
    require(type(activation) is Sigmoid, f"its activation is {activation}, but nn.GLU's gate is always a sigmoid")
    return to_counterpart(layer)


@model_of.register
def _(module: nn.Dropout | nn.AlphaDropout, *_: object) -> AnyLayer:
    _require_to_keep_some(module.p, type(module).__name__)
    return from_counterpart(module)


@module_of.register
def _(layer: Dropout | AlphaDropout, *_: object) -> nn.Module:
    require_no_key(layer.key)
    return to_counterpart(layer)


@model_of.register
def _(module: nn.Dropout1d | nn.Dropout2d | nn.Dropout3d, *_: object) -> ChannelDropout:
    _require_to_keep_some(module.p, "ChannelDropout")
    return ChannelDropout(module.p)


@module_of.register
def _(layer: ChannelDropout, shape: AnyShape, _: ConvertInside) -> nn.Module:
    require_no_key(layer.key)
    require(layer.axis == 1, f"axis={layer.axis}, but modules of torch.nn drop what lies along axis 1")
    axes = require_axes(shape, "nn.Dropout1d, 2d and 3d")
    require(axes in {3, 4, 5}, f"its input has {axes} axes, but nn.Dropout1d, 2d and 3d take one to three after the channels")
    module: type[nn.Module] = getattr(nn, f"Dropout{axes - 2}d")
    return module(layer.rate)


def _require_to_keep_some(rate: float, layer: str) -> None:
    require(rate < 1, f"p={rate} drops all, which {layer} does not: choose a p below 1")


# --- Pools -------------------------------------------------------------------------------------------------------------


@model_of.register
def _(
    module: nn.MaxPool1d
    | nn.MaxPool2d
    | nn.MaxPool3d
    | nn.AdaptiveMaxPool1d
    | nn.AdaptiveMaxPool2d
    | nn.AdaptiveMaxPool3d
    | nn.AdaptiveAvgPool1d
    | nn.AdaptiveAvgPool2d
    | nn.AdaptiveAvgPool3d,
    *_: object,
) -> AnyLayer:
    options: dict[str, object] = vars(module)
    with_indices, size = options.get("return_indices"), options.get("output_size", ())
    require(not with_indices, "return_indices=True gives a pair, but a layer gives one tensor: set it to False")
    require(
        size is not None and not (isinstance(size, tuple | list) and None in size),
        f"output_size={size} keeps the size of an axis, whatever it is: give a number for each axis",
    )
    return from_counterpart(module)


@model_of.register
def _(module: nn.LPPool1d | nn.LPPool2d | nn.LPPool3d, *_: object) -> AnyLayer:
    require_power(module.norm_type)
    stride: object = module.stride  # torch's types know of no None
    return from_counterpart(module) if stride is not None else from_counterpart(module, stride=kernel_size_of(module))


@module_of.register
def _(layer: LPPool1d | LPPool2d | LPPool3d, *_: object) -> nn.Module:
    require_power(layer.power)
    require_no_same(layer)
    return to_counterpart(layer)


def kernel_size_of(module: nn.LPPool1d | nn.LPPool2d | nn.LPPool3d) -> object:
    """Its kernel size as a stride: a number, or a tuple of one for each of several axes."""
    size: object = module.kernel_size
    if not isinstance(size, tuple | list):
        return size
    return size[0] if len(set(size)) == 1 else tuple(size)


def require_power(power: float) -> None:
    """Refuse odd powers: of those, torch adds up what is negative with its sign."""
    require(
        power % 2 != 1,
        f"of norm_type={power} torch adds up negative numbers with their sign, which makes no norm, and LPPool their absolute"
        " values: take an even one; sums are what AvgPool2d(..., divisor_override=1) gives",
    )


@module_of.register
def _(layer: AveragePool1d | AveragePool2d | AveragePool3d | MaxPool1d | MaxPool2d | MaxPool3d, *_: object) -> nn.Module:
    require_no_same(layer)
    return to_counterpart(layer)


def require_no_same(layer: AnyPool) -> None:
    """Refuse what torch does only of convolutions."""
    require(layer.padding != "same", "padding='same', which torch's pooling does not have: put a Pad before it")


@module_of.register
def _(layer: GlobalAveragePool | GlobalMaxPool, shape: AnyShape, _: ConvertInside) -> nn.Module:
    kind = "AdaptiveAvgPool" if isinstance(layer, GlobalAveragePool) else "AdaptiveMaxPool"
    modules = f"nn.{kind}1d, 2d and 3d"
    axes = require_axes(shape, modules)
    require(axes in {3, 4, 5}, f"its input has {axes} axes, but {modules} take one to three after the channels")
    pool: type[nn.Module] = getattr(nn, f"{kind}{axes - 2}d")
    return nn.Sequential(pool(1), nn.Flatten())


# --- Shapes ------------------------------------------------------------------------------------------------------------


@model_of.register
def _(module: nn.Flatten, *_: object) -> AnyLayer:
    require(
        module.end_dim == -1,
        f"end_dim={module.end_dim}, but Flatten joins all axes from start_dim on: with end_dim=-1 it has a counterpart",
    )
    return from_counterpart(module)


@model_of.register
def _(module: nn.Unflatten, *_: object) -> Reshape:
    sizes = module.unflattened_size
    require(
        module.dim == 1,
        f"dim={module.dim!r}, but Reshape gives a new shape to all axes after the batch: with dim=1, on an input of two axes,"
        " it has a counterpart",
    )
    require(-1 not in sizes, f"unflattened_size={tuple(sizes)} leaves a size open: give the number that -1 stands for")
    return Reshape(tuple(sizes))


@module_of.register
def _(layer: Reshape, shape: AnyShape, _: ConvertInside) -> nn.Module:
    module = nn.Unflatten(1, layer.shape)
    return module if axes_of(shape) == 2 else nn.Sequential(nn.Flatten(), module)


# --- Layers in layers --------------------------------------------------------------------------------------------------


@module_of.register
def _(layer: Frozen, _: AnyShape, inside: ConvertInside) -> nn.Module:
    """A module whose parameters are not trained: that of the layer, if it is but one."""
    layers: tuple[Model, ...] = layer.layers
    if len(layers) == 1 and isinstance(layers[0], Layer):
        return inside(layers[0], ".layers[0]").requires_grad_(False)
    return inside(layers, ".layers").requires_grad_(False)


@module_of.register
def _(layer: Repeat, _: AnyShape, inside: ConvertInside) -> nn.Module:
    blocks: list[tuple[Model, ...]] = layer.blocks
    return nn.Sequential(*(inside(block, f".blocks[{index}]") for index, block in enumerate(blocks)))
