"""What models, losses and gradients must be, and what is said of what is none."""

from collections.abc import Sequence
from typing import TypeVarTuple

from torch import Tensor

from fundl import tree
from fundl._common import suggestions
from fundl.layer import Layer, Loss, Model, Prediction, Target
from fundl.tree import describe

Ts = TypeVarTuple("Ts")


def models(*parts: *Ts) -> tuple[*Ts]:
    """The parts, once each of them is found to be a model."""
    if not parts:
        raise ValueError("a model needs at least one layer: compose(linear(2, 1)), say")
    unchecked: tuple[object, ...] = parts
    for place, part in enumerate(unchecked, start=1):
        require_model(part, place)
    return parts


def require_model(part: object, *path: int | str) -> None:
    """Raise an error that names the place, counted from 1, unless the part is a layer or a non-empty tuple of models."""
    if isinstance(part, tuple):
        if not part:
            raise ValueError(f"{_place(path)} is an empty tuple: a model needs at least one layer")
        steps: Sequence[int | str] = getattr(part, "_fields", range(1, len(part) + 1))
        for step, inner in zip(steps, part, strict=True):
            require_model(inner, *path, step)
    elif not isinstance(part, Layer):
        raise TypeError(f"{_place(path)} is {_no_layer(part)}")
    elif "__attrs_attrs__" not in vars(type(part)):
        raise TypeError(
            f"{_place(path)}: {type(part).__name__} is not a record: decorate the class with @attrs.frozen(eq=False)"
        )
    elif tree.static_fields(part, _is_no_setting):
        raise TypeError(f"{_place(path)}: {_no_setting(part)}")


def _place(path: tuple[int | str, ...]) -> str:
    return f"layer {'.'.join(map(str, path))}" if path else "the model"


def _is_no_setting(value: object) -> bool:
    return isinstance(value, Tensor) or suggestions.is_module(value)


def _no_setting(layer: object) -> str:
    """What a static field of a layer holds that has numbers, and what to write instead."""
    if misplaced := tree.misplaced_tensors(layer):
        return (
            f"{misplaced[0]} holds a tensor, but its annotation names none: annotate the field with Tensor, so that"
            " it counts as a parameter"
        )
    modules = tree.static_fields(layer, suggestions.is_module)
    return (
        f"{modules[0]} holds a module of torch.nn, whose parameters nothing here would see or train: make it a layer with"
        " fundl.interop.torch_nn.from_torch(module), and annotate the field with its type"
    )


def _no_layer(part: object) -> str:
    """What a part is that is not a layer, and what to write instead."""
    said = suggestions.hint(part)
    if suggestions.is_module(part):
        return f"the module {suggestions.name_of(part)} of torch.nn, not a layer{said}"
    if isinstance(part, type):
        write = f": write {part.__name__}(...)" if issubclass(part, Layer) else said
        return f"the class {part.__name__}, not a layer{write}"
    if suggestions.is_function(part):
        how = said or ": a layer is a record with a forward and a backward, see Layer"
        return f"the function {suggestions.name_of(part)}, not a layer{how}"
    if isinstance(part, list):
        said = ": write compose(*layers)"
    return f"of type {type(part).__name__}, not a layer or a tuple of layers{said or f': {describe(part)}'}"


def as_model(params: object) -> Model:
    if not isinstance(params, Layer | tuple):
        first = "; the model is the first argument, apply(model, x)" if isinstance(params, Tensor) else ""
        raise TypeError(f"the model is {_no_layer(params)}{first}")
    if params == ():
        raise ValueError("a model needs at least one layer, but this is an empty tuple")
    return params


def loss_and_gradient(loss: Loss[Prediction, Target], prediction: Prediction, target: Target) -> tuple[Tensor, Prediction]:
    """What a loss says of a prediction: its value and its gradient."""
    returned = loss(prediction, target)
    if type(returned) is tuple and len(returned) == 2:
        return returned
    require_loss(loss)
    raise TypeError(
        f"a loss returns two things, its value and its gradient with respect to the prediction, but {suggestions.name_of(loss)}"
        f" returned {describe(returned)}: return both, as mse does"
    )


def require_loss(loss: object) -> None:
    """Raise an error that says what to write, unless this may be a loss."""
    if suggestions.is_from_torch(loss):
        ours = suggestions.ours_for(suggestions.name_of(loss)).removesuffix("(...)")
        raise TypeError(
            f"{suggestions.name_of(loss)} of torch gives the value of the loss alone, but a loss gives its gradient with"
            f" respect to the prediction as well: {f'write {ours} of fundl' if ours else 'those of fundl do, such as mse'}"
        )
    if isinstance(loss, Layer) or not callable(loss):
        raise TypeError(
            "a loss is a function of a prediction and a target that returns its value and its gradient, such as mse, not"
            f" {describe(loss)}"
        )


def require_gradient(grad: object, output: object, loss: object = None) -> None:
    """Raise unless a gradient, of the loss or else from the caller, is of the form of the output: kernels take it on trust."""
    if isinstance(grad, Tensor) and isinstance(output, Tensor):  # each step comes here: it takes half a microsecond
        if grad.shape == output.shape and grad.dtype == output.dtype and grad.device == output.device:
            return
    else:
        tree.require_same_structure(output, grad, names=("the output", "its gradient"))
    for path, one, other in zip(tree.paths(output), tree.flatten(grad)[0], tree.flatten(output)[0], strict=True):
        if one is None or other is None or not other.is_floating_point():  # what has no gradient
            continue
        suggestions.require_tensor(one, f"{_claim(loss, path)} must be")
        if one.shape != other.shape:
            raise ValueError(f"{_claim(loss, path)} must have its shape {tuple(other.shape)}, not {tuple(one.shape)}")
        if one.dtype != other.dtype:
            raise TypeError(f"{_claim(loss, path)} must be of its dtype {other.dtype}, not {one.dtype}")
        if one.device != other.device:
            raise ValueError(f"{_claim(loss, path)} must be on its device {other.device}, not on {one.device}")


def _claim(loss: object, path: str) -> str:
    """Whose gradient it is, and what must be true of it."""
    where = f" at {path}" if path else ""
    if loss is None:
        return f"grad is the gradient with respect to the output{where}, and"
    function: object = getattr(loss, "func", loss)  # of a partial
    name: object = getattr(function, "__name__", type(function).__name__)
    return f"{name} returns its value and the gradient with respect to the prediction{where}, which"
