"""Layers with a weight, inside of layers that normalise it."""

from typing import TypeVar

import attrs
from torch import Tensor

from fundl._common.checks import require_model
from fundl.layer import AnyLayer
from fundl.tree import describe

L = TypeVar("L", bound=AnyLayer)


def weight_of(layer: object) -> Tensor:
    """The weight of a layer, which must have one."""
    weight: object = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        raise TypeError(f"the layer inside must have a weight of two or more axes, but here is {describe(layer)}")
    return weight


def with_weight(layer: L, weight: Tensor) -> L:
    """The layer with another weight."""
    changes = {"weight": weight}
    return attrs.evolve(layer, **changes)


def require_one_layer(name: str, layer: object) -> None:
    """Refuse all but a single layer."""
    require_model(layer)
    if isinstance(layer, tuple):
        raise TypeError(f"{name} is around one layer, not a tuple of layers: compose({name}(...), {name}(...))")
