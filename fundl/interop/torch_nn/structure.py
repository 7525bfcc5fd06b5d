"""Layers that compute nothing, those that change shapes, and those made of others."""

from typing import Final

from torch import nn

from fundl.interop.torch_nn.pairs import (
    ConvertInside,
    Row,
    axes_of,
    from_module,
    pair,
    require,
    to_module_for_input,
    to_module_of_parts,
)
from fundl.layer import Layer, Model
from fundl.layers.frozen import Frozen
from fundl.layers.repeated import Repeat
from fundl.layers.structure import Flatten, Identity, Reshape
from fundl.shapes import AnyShape


def _from_flatten(module: nn.Flatten) -> Flatten:
    require(
        module.end_dim == -1,
        f"end_dim={module.end_dim}, but Flatten joins all axes from start_dim on: with end_dim=-1 it has a counterpart",
    )
    return Flatten(module.start_dim)


def _from_unflatten(module: nn.Unflatten) -> Reshape:
    sizes = module.unflattened_size
    require(
        module.dim == 1,
        f"dim={module.dim!r}, but Reshape gives a new shape to all axes after the batch: with dim=1, on an input of two axes,"
        " it has a counterpart",
    )
    require(-1 not in sizes, f"unflattened_size={tuple(sizes)} leaves a size open: give the number that -1 stands for")
    return Reshape(tuple(sizes))


def _to_unflatten(layer: Reshape, shape: AnyShape) -> nn.Module:
    module = nn.Unflatten(1, layer.shape)
    return module if axes_of(shape) == 2 else nn.Sequential(nn.Flatten(), module)


def _to_frozen(layer: Frozen, _: AnyShape, inside: ConvertInside) -> nn.Module:
    """A module whose parameters are not trained: that of the layer, if it is but one."""
    layers: tuple[Model, ...] = layer.layers
    if len(layers) == 1 and isinstance(layers[0], Layer):
        return inside(layers[0], ".layers[0]").requires_grad_(False)
    return inside(layers, ".layers").requires_grad_(False)


def _to_repeated(layer: Repeat, _: AnyShape, inside: ConvertInside) -> nn.Module:
    blocks: list[tuple[Model, ...]] = layer.blocks
    return nn.Sequential(*(inside(block, f".blocks[{index}]") for index, block in enumerate(blocks)))


ROWS: Final[tuple[Row, ...]] = (
    *pair(nn.Identity, Identity, lambda _: Identity(), lambda _: nn.Identity()),
    *pair(nn.Flatten, Flatten, _from_flatten, lambda layer: nn.Flatten(layer.start)),
    from_module(nn.Unflatten, _from_unflatten),
    to_module_for_input(Reshape, _to_unflatten),
    to_module_of_parts(Frozen, _to_frozen),
    to_module_of_parts(Repeat, _to_repeated),
)
