"""What a row of the table of counterparts is: a class of torch.nn and a layer, and the way from each to the other.

The functions of a row know their module's and their layer's type; in the table the types are not known. Whoever looks a row up
does it by the exact class, since a subclass may compute something else.

No function of a row shares tensors: a module changes its own in place, and a record's must stay as they are.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

import attrs
import torch
from torch import Tensor, nn

from fundl.layer import AnyLayer, Model
from fundl.shapes import AnyShape, Unknown

M = TypeVar("M", bound=nn.Module)
L = TypeVar("L", bound=AnyLayer)


class Refused(Exception):  # noqa: N818  # what it is
    """What a row says of an option that has no counterpart; whoever went through the parts adds the place."""


# --- Rows --------------------------------------------------------------------------------------------------------------


class ConvertPart(Protocol):
    """Converts one of the modules inside of a module, given its name."""

    def __call__(self, name: str, /) -> Model:
        """The model that the part is."""


class ConvertInside(Protocol):
    """Converts one of the models inside of a layer, given its place, as it is written."""

    def __call__(self, part: Model, place: str, /) -> nn.Module:
        """The module that the part is."""


@attrs.frozen
class FromModule:
    """How modules of one class become models."""

    module: type[nn.Module]
    convert: Callable[[nn.Module, ConvertPart], Model]
    has_parts: bool
    """Whether the modules inside are converted one by one; if not, all parameters are of one layer."""
    alone: str | None
    """Why it cannot stand in an nn.Sequential, if it cannot."""


@attrs.frozen
class ToModule:
    """How layers of one class become modules."""

    layer: type[AnyLayer]
    convert: Callable[[AnyLayer, AnyShape, ConvertInside], nn.Module]
    alone: str | None
    """Why its module cannot stand in an nn.Sequential, if it cannot."""


Row = FromModule | ToModule


def from_module(module: type[M], convert: Callable[[M], Model], *, alone: str | None = None) -> FromModule:
    """A row for modules that have no parts."""

    def from_any(part: nn.Module, _: ConvertPart) -> Model:
        assert isinstance(part, module)
        return convert(part)

    return FromModule(module, from_any, has_parts=False, alone=alone)


def from_module_of_parts(
    module: type[M], convert: Callable[[M, ConvertPart], Model], *, alone: str | None = None
) -> FromModule:
    """A row for modules made of modules, which have rows of their own."""

    def from_any(part: nn.Module, inside: ConvertPart) -> Model:
        assert isinstance(part, module)
        return convert(part, inside)

    return FromModule(module, from_any, has_parts=True, alone=alone)


def to_module(layer: type[L], convert: Callable[[L], nn.Module], *, alone: str | None = None) -> ToModule:
    """A row for layers that tell all that their module asks for."""
    return to_module_for_input(layer, lambda part, _: convert(part), alone=alone)


def to_module_for_input(layer: type[L], convert: Callable[[L, AnyShape], nn.Module], *, alone: str | None = None) -> ToModule:
    """A row for layers whose module depends on the shape of its input."""
    return to_module_of_parts(layer, lambda part, shape, _: convert(part, shape), alone=alone)


def to_module_of_parts(
    layer: type[L], convert: Callable[[L, AnyShape, ConvertInside], nn.Module], *, alone: str | None = None
) -> ToModule:
    """A row for layers made of layers, which have rows of their own."""

    def to_any(part: AnyLayer, shape: AnyShape, inside: ConvertInside) -> nn.Module:
        assert isinstance(part, layer)
        return convert(part, shape, inside)

    return ToModule(layer, to_any, alone=alone)


def pair(
    module: type[M],
    layer: type[L],
    convert_module: Callable[[M], L],
    convert_layer: Callable[[L], nn.Module],
    *,
    alone: str | None = None,
) -> tuple[Row, Row]:
    """The rows of a module's class and a layer that go both ways."""
    return from_module(module, convert_module, alone=alone), to_module(layer, convert_layer, alone=alone)


# --- Tensors -----------------------------------------------------------------------------------------------------------


def copied(tensor: Tensor) -> Tensor:
    """A copy that records no tape, and is no nn.Parameter."""
    return tensor.detach().clone()


def copied_if_any(tensor: Tensor | None) -> Tensor | None:
    """A copy of a tensor; None for none."""
    return None if tensor is None else copied(tensor)


def with_parameters(module: M, **parameters: Tensor | None) -> M:
    """The module, which is new and was made on the meta device, with copies of these tensors as its parameters."""
    for name, tensor in parameters.items():
        module.register_parameter(name, None if tensor is None else nn.Parameter(copied(tensor)))
    return module


# On the meta device, a module's constructor draws no random numbers, and so leaves the global generator as it is.
META = torch.device("meta")


# --- Options -----------------------------------------------------------------------------------------------------------


def require(is_so: bool, otherwise: str) -> None:
    """Raise unless an option has a counterpart.

    Args:
        is_so: whether it has.
        otherwise: the option, why it has no counterpart, and what to do.
    """
    if not is_so:
        raise Refused(otherwise)


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
