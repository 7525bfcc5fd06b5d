"""How modules become models, and layers modules: by a function for their class, or by the counterpart that the layer names.

`model_of` and `module_of` choose the function by the type of its first argument. Whoever calls them has seen that there is one
for the exact class, since a subclass may compute something else.
"""

import functools
from typing import Final, Protocol

from torch import Tensor, nn

from fundl import tree
from fundl.interop.torch_nn._counterparts import Refused, counterpart_of, from_counterpart, require, to_counterpart
from fundl.layer import AnyLayer, Model
from fundl.shapes import AnyShape, Unknown


class ConvertPart(Protocol):
    """Converts one of the modules inside of a module, given its name."""

    def __call__(self, name: str, /) -> Model: ...


class ConvertInside(Protocol):
    """Converts one of the models inside of a layer, given its place, as it is written."""

    def __call__(self, part: Model, place: str, /) -> nn.Module: ...


@functools.singledispatch
def model_of(module: nn.Module, part: ConvertPart) -> Model:  # noqa: ARG001  # the functions for modules of modules ask for it
    """The model of a module."""
    return from_counterpart(module)


@functools.singledispatch
def module_of(layer: AnyLayer, shape: AnyShape, inside: ConvertInside) -> nn.Module:  # noqa: ARG001  # some ask for them
    """The module of a layer, whose input has this shape."""
    name = counterpart_of(type(layer))
    require(not tree.leaves(layer), f"it has tensors, whose way into an nn.{name} is not known: make the module by hand")
    return to_counterpart(layer)


ALONE: Final[dict[type, str]] = {}
"""Modules and layers that cannot stand in an nn.Sequential, each with the reason."""


def stands_alone(reason: str, *classes: type) -> None:
    """Say of modules and layers why they cannot stand in an nn.Sequential."""
    ALONE.update(dict.fromkeys(classes, reason))


# --- What is asked for -------------------------------------------------------------------------------------------------


def require_no_key(key: Tensor | None) -> None:
    """Raise if a layer would draw: a module draws from the global generator instead."""
    require(
        key is None,
        "it has a key, but a module draws from torch's global generator: convert the model without keys, as it was before"
        " rekey",
    )


def axes_of(shape: AnyShape) -> int | None:
    """How many axes an input has, if that is known."""
    return None if shape.front is not None else len(shape.sizes)


def require_axes(shape: AnyShape, modules: str) -> int:
    """How many axes an input has, which says what the module is."""
    axes = axes_of(shape)
    if axes is None:
        raise Refused(
            f"it takes inputs of any number of axes, but each of {modules} those of one: tell the shape of the model's input,"
            " as to_torch(model, Shape(None, 3, 28, 28))"
        )
    return axes


def channels_of(shape: AnyShape, known: Tensor | None) -> int:
    """The number of channels: that of a parameter, or that of the input."""
    if known is not None:
        return known.shape[0]
    size = shape.leading(2)[1] if axes_of(shape) is not None else Unknown()
    if isinstance(size, Unknown):
        raise Refused(
            "it takes any number of channels, but the module wants to be told: tell the shape of the model's input, as"
            " to_torch(model, Shape(None, 3, 28, 28))"
        )
    return size
