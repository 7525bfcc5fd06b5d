"""Going through the parts of a module, or of a model, and finding the counterpart of each."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from fundl import tree
from fundl._common.checks import require_model
from fundl.interop.torch_nn import (
    _attention,
    _linear,
    _normalization,
    _options,
    _recurrent,
    _resampling,
)
from fundl.interop.torch_nn._counterparts import Refused, counterpart_of, layers_by_module
from fundl.interop.torch_nn._rules import ALONE, model_of, module_of
from fundl.interop.torch_nn._transformer import MADE_OF_MODULES, to_encoder_layer
from fundl.layer import AnyLayer, Model
from fundl.layers.frozen import Frozen
from fundl.layers.structure import Identity
from fundl.model import output_shape
from fundl.shapes import AnyShape, Shape

_FAMILIES: Final = (_attention, _linear, _normalization, _options, _recurrent, _resampling)
"""Their functions are registered as they are imported."""


class ConversionError(ValueError):
    """A module or a layer that has no counterpart, or an option of one: the message names the part by its path."""


ConversionError.__module__ = "fundl.interop.torch_nn"  # where users find it: tracebacks say so


@contextmanager
def named(part: str) -> Iterator[None]:
    """Have what is refused inside be an error that names the part, unless it names one already."""
    try:
        yield
    except ConversionError:
        raise
    except (Refused, ValueError, TypeError) as error:
        raise ConversionError(f"{part}: {error}") from error


def has_counterpart(kind: type[nn.Module] | type[AnyLayer]) -> bool:
    """Whether modules, or layers, of just this class are converted: by a function, or since a layer says so."""
    if issubclass(kind, nn.Module):
        of_torch = kind is getattr(nn, kind.__name__, None)
        return kind in model_of.registry or (of_torch and kind.__name__ in layers_by_module())
    return kind in module_of.registry or bool(counterpart_of(kind))


# --- From modules ------------------------------------------------------------------------------------------------------


def from_torch(module: nn.Module) -> Model:
    """The model that computes what a module of torch.nn computes in evaluation, with copies of its parameters and buffers.

    The package says what becomes of each. A recurrent module's first output is the layer's, and so it is of attention, which
    becomes that of a sequence to itself.

    A model has no modes. Dropout is there, and drops nothing until `rekey` gives it a key. A batch normalisation has the
    module's running statistics, and uses them; `without_statistics(model)` is the module in training. What says how a module is
    trained is no part of the model: the momentum of running statistics, which `track` is told, and the count of batches. So it
    is with ``inplace``, which changes no output, and the names of an nn.Sequential's parts.

    Args:
        module: of torch.nn itself, not of a derived class, which may compute something else.

    Returns:
        A layer or a tuple. Initialisers are those that the layers have by default.

    Raises:
        ConversionError: a part has no counterpart, or an option of it, or it has hooks; or two parts share a parameter, which
            in a model would be two.

    >>> from fundl.interop import torch_nn
    >>> from torch import nn
    >>> torch_nn.from_torch(nn.Sequential(nn.Linear(2, 25), nn.ReLU(), nn.Linear(25, 2)))
    (Linear(weight=float32[25, 2], bias=float32[25]), ReLU(), Linear(weight=float32[2, 25], bias=float32[2]))
    """
    _require_own_parameters(module)
    return _from(module, "", in_frozen=False)


def _from(module: nn.Module, path: str, *, in_frozen: bool) -> Model:
    """The model of a module at a path; in_frozen: whether a module around it is frozen already."""
    if not in_frozen and _is_frozen(module):
        model = _from(module, path, in_frozen=True)
        return Frozen(model if isinstance(model, tuple) else (model,))
    place = f"{path or 'the module'} ({class_name(module)})"
    if isinstance(module, LazyModuleMixin):
        raise ConversionError(f"{place} has no parameters yet: call it on an input first")
    require_plain(module, place)

    def part(name: str) -> Model:
        return _from(module.get_submodule(name), f"{path}.{name}" if path else name, in_frozen=in_frozen)

    if type(module) is nn.Sequential:
        for name, child in module.named_children():
            if type(child) in ALONE:
                raise ConversionError(f"{path}{'.' * bool(path)}{name} ({class_name(child)}): {ALONE[type(child)]}")
        return tuple(part(name) for name in module._modules) or Identity()
    if not has_counterpart(type(module)):
        raise ConversionError(f"{place} has no counterpart{_hint(module)}")
    if not isinstance(module, MADE_OF_MODULES) and len({parameter.requires_grad for parameter in module.parameters()}) == 2:
        raise ConversionError(
            f"{place}: some of its parameters have requires_grad=False, and some have not, but a layer is frozen as a whole:"
            " set all to the same"
        )
    with named(place):
        return model_of(module, part)


def _is_frozen(module: nn.Module) -> bool:
    flags = [parameter.requires_grad for parameter in module.parameters()]
    return bool(flags) and not any(flags)


def class_name(module: nn.Module) -> str:
    """The name of a module's class, as it is written."""
    kind = type(module)
    return f"nn.{kind.__name__}" if kind is getattr(nn, kind.__name__, None) else f"{kind.__module__}.{kind.__qualname__}"


def _hint(module: nn.Module) -> str:
    """What to do about a module that is not in the table."""
    if parametrize.is_parametrized(module):
        return (
            " with a parametrization: put the weight itself in its place, with"
            " torch.nn.utils.parametrize.remove_parametrizations(module, name)"
        )
    bases = [kind for kind in type(module).__mro__[1:] if issubclass(kind, nn.Module)]
    known = next((kind.__name__ for kind in bases if kind is nn.Sequential or has_counterpart(kind)), "")
    derived = f" it is derived from nn.{known}, and may compute something else;" if known else ""
    return f":{derived} write a layer for it, see fundl.Layer, and convert the modules before it and behind it"


def require_plain(module: nn.Module, place: str) -> None:
    """Raise if a module computes something else than its class says."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hooks) or "forward" in vars(module):
        raise ConversionError(
            f"{place} has hooks, or a forward of its own, which may change what it computes: remove them (an old weight_norm or"
            " spectral_norm with torch.nn.utils.remove_weight_norm, remove_spectral_norm)"
        )


def _require_own_parameters(module: nn.Module) -> None:
    """Raise if a parameter or a buffer is in two places: in a model there would be two, which would part in training."""
    seen: dict[int, str] = {}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        first = seen.setdefault(id(tensor), name)
        if first != name:
            raise ConversionError(
                f"{first} and {name} are one and the same tensor, but a model has a value in each place, and they would be"
                " trained apart: give each part its own, a module by copy.deepcopy, or convert the parts and put them together"
                " by fundl.tied"
            )


# --- To modules --------------------------------------------------------------------------------------------------------


def to_torch(model: Model, shape: AnyShape | None = None) -> nn.Module:
    """The module of torch.nn that computes what a model computes, in evaluation, with copies of its parameters and buffers.

    The package says what becomes of each; an `nn.Sequential` has the names of a named tuple. A gradient is a model, so its
    module's parameters are the gradients of the parameters.

    A recurrent layer's module gives its states as well, and attention's takes queries, keys and values, and gives the weights
    as well: their first output is the layer's. A BatchNorm without statistics becomes a module that normalises with those of
    the batch in evaluation too.

    Args:
        model: a layer or a nested tuple of layers.
        shape: of the model's input, as far as it is known; for layers of which torch.nn has one for each number of axes, such
            as `BatchNorm`, where the layers before them do not tell it.

    Returns:
        A module in evaluation mode. The global generator of random numbers is left as it is.

    Raises:
        ConversionError: a layer has no counterpart, or an option of it, or it has a key or a mask; or the module depends on the
            input's shape, which is not known.
        Misfit: the layers, or the shape, do not fit together.

    >>> from fundl import ReLU, compose, initialize, key, linear
    >>> from fundl.interop import torch_nn
    >>> torch_nn.to_torch(initialize(key(0), compose(linear(2, 25), ReLU())))
    Sequential(
      (0): Linear(in_features=2, out_features=25, bias=True)
      (1): ReLU()
    )
    """
    require_model(model)
    return _to(model, "model", Shape(...) if shape is None else shape).eval()


def _to(model: Model, path: str, shape: AnyShape) -> nn.Module:
    if isinstance(model, tuple):
        return _to_sequential(model, path, shape)
    place = f"{path} ({type(model).__name__})"
    if not has_counterpart(type(model)):
        raise ConversionError(
            f"{place} has no counterpart in torch.nn: write a module for it, and convert the layers before it and behind it"
        )
    with named(place):
        return module_of(model, shape, lambda part, step: _to(part, f"{path}{step}", shape))


def _to_sequential(layers: tuple[Model, ...], path: str, shape: AnyShape) -> nn.Module:
    with named(f"{path}, a transformer block"):
        block = to_encoder_layer(layers, lambda part, step: _to(part, f"{path}[1]{step}", shape))
    if block is not None:
        return block
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    names: Sequence[str] = getattr(layers, "_fields", [*map(str, range(len(layers)))])
    for name, (step, _), layer in zip(names, tree.parts(layers), layers, strict=True):
        place = path + step
        if type(layer) in ALONE:
            raise ConversionError(f"{place} ({type(layer).__name__}): {ALONE[type(layer)]}")
        modules[name] = _to(layer, place, shape)
        shape = output_shape(layer, shape)
    return nn.Sequential(modules)
