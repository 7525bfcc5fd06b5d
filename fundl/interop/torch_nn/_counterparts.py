"""Converting by the counterpart that a layer names, see `Layer.counterpart`: options become fields, and fields options.

Both ways, what only one of the two knows must be as it is by default.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import TypeVar

import attrs
import torch
from torch import Tensor, nn

from fundl.layer import AnyLayer, Layer

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T", Tensor, Tensor | None)


class Refused(Exception):  # noqa: N818  # what it is
    """Why something has no counterpart; whoever went through the parts adds the place."""


def require(is_so: bool, otherwise: str) -> None:
    """Raise unless an option has a counterpart: otherwise, say which it is, why it has none, and what to do."""
    if not is_so:
        raise Refused(otherwise)


# --- What layers say ---------------------------------------------------------------------------------------------------


def counterpart_of(layer: type[AnyLayer]) -> str:
    """The name of the class of torch.nn that a layer's own class names, or ""."""
    return _said(layer).partition("(")[0]


def _said(layer: type[AnyLayer]) -> str:
    return str(vars(layer).get("counterpart", ""))  # not that of a base, which may compute something else


def _names(layer: type[AnyLayer]) -> Mapping[str, str]:
    """What the module calls each of the layer's fields."""
    pairs = [pair.split("=") for pair in _said(layer).rstrip(")").partition("(")[2].split(", ") if pair]
    renamed = {ours: theirs for theirs, ours in pairs}
    names = [field.name for field in attrs.fields(layer) if not field.name.endswith("_init")]
    return {name: renamed.get(name, name) for name in names}


def layers_by_module() -> Mapping[str, type[AnyLayer]]:
    """The layers that name their counterpart, by its name: of several that name the same, ours, or else the last."""
    layers = sorted(_derived(Layer), key=lambda layer: layer.__module__.startswith("fundl."))
    return {name: layer for layer in layers if (name := counterpart_of(layer))}


def _derived(base: type) -> Iterator[type[AnyLayer]]:
    subclasses: list[type] = base.__subclasses__()
    for cls in subclasses:
        yield from _derived(cls)
        if issubclass(cls, Layer) and "__attrs_attrs__" in vars(cls):  # and not the class that attrs has made this one of
            yield cls


# --- Both ways ---------------------------------------------------------------------------------------------------------


def from_counterpart(module: nn.Module, **fields: object) -> AnyLayer:
    """The layer that names a module's class, of the module's options and copies of its tensors, with these fields instead."""
    layer = layers_by_module()[type(module).__name__]
    names, axes = _names(layer), int(str(getattr(layer, "axes", 0)))
    given: dict[str, object] = {**vars(module), **module._parameters, **module._buffers}
    if not module._parameters:  # the others are told sizes, which are those of the tensors
        for option, parameter in inspect.signature(type(module)).parameters.items():
            is_known = option in names.values() or option == "inplace"
            value = given.get(option, parameter.default)
            require(is_known or value == parameter.default, f"{option}={value!r}, but {layer.__name__} has no such option")
    values = {ours: _as_field(given[theirs], axes) for ours, theirs in names.items() if theirs in given}
    return layer(**{**values, **fields})


def _as_field(value: object, axes: int) -> object:
    """An option of a module, as a layer has it: a setting that is the same for all axes is one number."""
    if isinstance(value, Tensor):
        return copied(value)
    if not isinstance(value, tuple | list):
        return value
    numbers = tuple(value)
    if axes and len(numbers) not in {1, axes}:
        raise Refused(f"{numbers} is no setting of {axes} {'axis' if axes == 1 else 'axes'}: give a number for each, or one")
    return numbers[0] if axes and len(set(numbers)) == 1 else numbers


def to_counterpart(layer: AnyLayer, **sizes: object) -> nn.Module:
    """The module that a layer's class names, of the layer's options and copies of its parameters, if it has any.

    A module is told sizes that a layer has in the shapes of its tensors alone.
    """
    kind: type[nn.Module] = getattr(nn, counterpart_of(type(layer)))
    return made_of(kind, layer, **sizes)


def made_of(kind: type[M], layer: AnyLayer, **sizes: object) -> M:
    """A module of a class, likewise."""
    known, fields = inspect.signature(kind).parameters, attrs.fields_dict(type(layer))
    options: dict[str, object] = {}
    for ours, theirs in _names(type(layer)).items():
        if ours in layer.children:
            continue
        value, default = getattr(layer, ours), fields[ours].default
        if theirs in known:
            options[theirs] = value
        else:
            require(value == default, f"{ours}={value!r}, which nn.{kind.__name__} has no option for: leave it at {default!r}")
    if not sizes:
        return kind(**options)
    tensors: dict[str, object] = {name: getattr(layer, name) for name in layer.trainable}
    return with_parameters(kind(**options, **sizes, device=META), **tensors)


# --- Tensors -----------------------------------------------------------------------------------------------------------

# On the meta device, a module's constructor draws no random numbers, and so leaves the global generator as it is.
META = torch.device("meta")


def copied(tensor: T) -> T:
    """A copy that records no tape, and is no nn.Parameter; None for none."""
    if tensor is None:
        return tensor
    return tensor.detach().clone()


def with_parameters(module: M, **parameters: object) -> M:
    """The module, which is new and was made on the meta device, with copies of these tensors as its parameters."""
    for name, tensor in parameters.items():
        module.register_parameter(name, nn.Parameter(copied(tensor)) if isinstance(tensor, Tensor) else None)
    return module
