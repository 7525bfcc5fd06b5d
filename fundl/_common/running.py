"""Running a model, forward and backward: the walk through its layers, and the notes that say where an error arose.

Layers that contain models call these, too, in the caller's grad mode.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, cast

import torch
from torch import Tensor

from fundl import tree
from fundl._common import suggestions
from fundl._common.checks import as_model, loss_and_gradient, require_gradient, require_model
from fundl._common.tape import refuse_tape
from fundl.layer import AnyLayer, Loss, Model, P, Prediction, Target
from fundl.shapes import Misfit, Shape, of_model
from fundl.tree import describe


def first_forward(params: Model, x: object) -> tuple[object, object]:
    """Run forward, and tell an input or a model that cannot be run for what it is; the caller has turned grad mode off."""
    refuse_tape(params, x)
    if isinstance(x, Tensor) and not x.is_floating_point() and not _first_layer(params).takes_integers:
        raise TypeError(f"the input must be floating-point, not {x.dtype}: convert it with x.to(torch.float32)")
    if not isinstance(x, Tensor):
        x = tree.map(_input, x)
    elif x.requires_grad:  # a layer may hand its input through
        x = x.detach()
    try:
        output, residuals = run_forward(params, x)
    except Exception as error:
        _require_fit(params, error)
        if _has_meta(params) and not _has_meta(x):
            raise _not_initialized() from error
        raise
    if isinstance(output, Tensor) and output.is_meta and not _has_meta(x):
        raise _not_initialized()
    return output, residuals


def _input(leaf: Tensor) -> Tensor:
    """A tensor of an input, off any tape; all that is none is refused."""
    suggestions.require_tensor(leaf, "the input must be")
    return torch.detach(leaf)


def _require_fit(params: Model, error: Exception) -> None:
    """Raise the fault of a model that was not made by `compose`, if the error comes from one."""
    try:
        require_model(params)
        of_model(Shape(...), params)
    except (TypeError, Misfit) as wrong:
        raise wrong from error


def _first_layer(params: Model) -> AnyLayer:
    return _first_layer(params[0]) if isinstance(params, tuple) else params


def _has_meta(value: object) -> bool:
    return any(leaf.is_meta for leaf in tree.leaves(value))


def _not_initialized() -> ValueError:
    return ValueError("the model has no values yet, only shapes: call initialize(key(0), model) and apply what it returns")


# What a tuple keeps for backward is the tuple of what its parts keep. The loops are where a small network spends its time
# outside of the kernels: they do no more than they must, and errors are explained only once they have happened.


class Pass(Generic[P]):
    """A forward pass: its output, and what backward needs, which is given to backward and held nowhere else.

    The memory of a training step is mostly that of residuals, and a layer's are of no more use once its backward has run. So
    nobody holds on to them: who runs a model forward and backward leaves them here, and the walk takes them apart. Then each
    layer's memory is free before the layers below it are run backward. The caller has turned grad mode off.
    """

    __slots__ = ("_params", "_residuals", "grad", "output")

    def __init__(self, params: P, x: object) -> None:
        self._params = params
        self.output: object
        self._residuals: object
        self.output, self._residuals = first_forward(as_model(params), x)
        self.grad: object = None
        """The gradient with respect to the output, which is to be set before backward."""

    def differentiate(self, loss: Loss[Prediction, Target], prediction: Prediction, target: Target) -> Tensor:
        """The value of a loss of the output, which is the prediction that it takes; its gradient is to go backward."""
        value, grad = loss_and_gradient(loss, prediction, target)
        refuse_tape(grad)
        require_gradient(grad, prediction, loss)
        self.grad = grad
        return value

    def backward(self) -> tuple[Model, object]:
        """The gradients with respect to the parameters and the input; this and the next can be asked for once."""
        return run_backward(self._params, self._taken(), self._taken_grad())

    def backward_params(self) -> P:
        """The gradient with respect to the parameters."""
        grads = run_backward_params(self._params, self._taken(), self._taken_grad())
        return cast("P", grads)  # each gradient is in its layer's place, which checkers cannot follow through a loop

    def _taken(self) -> object:
        self.output = None  # nor is the output of use
        taken, self._residuals = self._residuals, None
        return taken

    def _taken_grad(self) -> object:
        taken, self.grad = self.grad, None
        return taken


def run_forward(params: Model, x: object) -> tuple[object, object]:
    """`forward`, for the layers of a model that is being run."""
    if not isinstance(params, tuple):
        output: tuple[object, object]
        try:
            output = params.forward(x)
        except Exception as error:
            _note_layer(error, params, "the input", x)
            raise
        return output
    kept: list[object] = []
    try:
        for part in params:
            x, residuals = run_forward(part, x)
            kept.append(residuals)
    except Exception as error:
        _note_part(error, params, len(kept))
        raise
    return x, tuple(kept)


def run_backward(params: Model, residuals: object, grad: object) -> tuple[Model, object]:
    """`backward`, for the layers of a model that is being run."""
    if not isinstance(params, tuple):
        alone = [residuals]
        del residuals  # see `Pass`
        result: tuple[Model, object]
        try:
            result = params.backward(alone.pop(), grad)
        except Exception as error:
            _note_layer(error, params, "grad", grad)
            raise
        return result
    kept = [*_parts(residuals), grad]
    del residuals, grad
    grads = _run_back(params, kept, run_backward)
    return named_as(params, grads), kept.pop()


def run_backward_params(params: Model, residuals: object, grad: object) -> Model:
    """`backward_params`, for the layers of a model that is being run.

    Layers before the first one that has trainable leaves are their own gradients, and need no backward.
    """
    if not isinstance(params, tuple):
        alone = [residuals]
        del residuals  # see `Pass`
        grads: Model
        try:
            grads = params.backward_params(alone.pop(), grad)
        except Exception as error:
            _note_layer(error, params, "grad", grad)
            raise
        return grads
    first = _first_trainable(params)
    if first == len(params):
        return params
    kept = [*_parts(residuals), grad]
    del residuals, grad
    later = _run_back(params, kept, run_backward, first + 1)
    own = _run_back(params[: first + 1], kept, _params_alone, first)
    return named_as(params, [*own, *later[first + 1 :]])


def run_backward_input(params: Model, residuals: object, grad: object) -> object:
    """`backward_input`, for the layers of a model that is being run."""
    if not isinstance(params, tuple):
        alone = [residuals]
        del residuals  # see `Pass`
        grad_x: object
        try:
            grad_x = params.backward_input(alone.pop(), grad)
        except Exception as error:
            _note_layer(error, params, "grad", grad)
            raise
        return grad_x
    kept = [*_parts(residuals), grad]
    del residuals, grad
    _run_back(params, kept, _input_alone)
    return kept.pop()


_Part: TypeAlias = Callable[[Model, object, object], tuple[Model, object]]
"""How one part of a tuple is run backward."""


def _params_alone(part: Model, residuals: object, grad: object) -> tuple[Model, object]:
    alone = [residuals]
    del residuals
    return run_backward_params(part, alone.pop(), grad), None


def _input_alone(part: Model, residuals: object, grad: object) -> tuple[Model, object]:
    alone = [residuals]
    del residuals
    return part, run_backward_input(part, alone.pop(), grad)


def _run_back(params: tuple[Model, ...], kept: list[object], run_part: _Part, last: int = 0) -> list[Model]:
    """Run the parts of a tuple backward, from the last one to the one at `last`: all gradients; the parts before it stay.

    In `kept` are the residuals of the parts and, at the end, the gradient with respect to the output. They are taken out, and
    the gradient with respect to the input of the part at `last` is put there.
    """
    grads, place, grad = [*params], len(params), kept.pop()
    try:
        while place > last:
            place -= 1
            grads[place], grad = run_part(params[place], kept.pop(), grad)
    except Exception as error:
        _note_part(error, params, place)
        raise
    kept.append(grad)
    return grads


def _parts(residuals: object) -> tuple[object, ...]:
    if not isinstance(residuals, tuple):
        raise TypeError(f"the residuals of a tuple of layers are a tuple, as forward returned it, not {describe(residuals)}")
    return residuals


def named_as(params: tuple[Model, ...], parts: list[Model]) -> tuple[Model, ...]:
    """The parts as a tuple of the class of the model: a NamedTuple of layers is a model, and so is its gradient."""
    return tuple(parts) if type(params) is tuple else cast("tuple[Model, ...]", tree.rebuilt(params, parts))


def _first_trainable(params: tuple[Model, ...]) -> int:
    """The place of the first part that may have trainable leaves, or the number of parts."""
    for place, part in enumerate(params):
        if _has_parameters(part) if not isinstance(part, tuple) else _first_trainable(part) < len(part):
            return place
    return len(params)


def _has_parameters(layer: AnyLayer) -> bool:
    """Whether a layer may have trainable leaves: a field for them that is not None."""
    for name in layer.trainable:  # noqa: SIM110  # each step asks, and any() over a generator takes four times as long
        if getattr(layer, name) is not None:
            return True
    return False


# --- Where an error came from ------------------------------------------------------------------------------------------


class _Place(str):
    """A note on an error that says in which layer it arose; each enclosing tuple puts its index in front of the path."""

    __slots__ = ("named", "path", "what")
    named: bool  # whether the path begins with a field of the layer that is being run
    path: str
    what: str

    @classmethod
    def of(cls, path: str, what: str, *, named: bool = False) -> "_Place":
        note = cls(f"in model{path}: {what}")
        note.path, note.what, note.named = path, what, named
        return note


def _note_layer(error: Exception, layer: AnyLayer, name: str, value: object) -> None:
    note = _noted(error)
    if note is None:
        error.add_note(_Place.of("", f"{describe(layer)}; {name} is {describe(value)}"))
    else:  # the layer is made of layers, and it was one of those
        error.__notes__[-1] = _Place.of(note.path if note.named else f".{layer.children[0]}{note.path}", note.what)


def _note_part(error: Exception, params: tuple[Model, ...], index: int) -> None:
    names: Sequence[str] = getattr(params, "_fields", ())
    _put_in_front(error, f".{names[index]}" if names else f"[{index}]", named=False)


def note_place(error: Exception, step: str) -> None:
    """Say for a layer that runs several models in which of them an error arose, such as ".second" or ".branches[1]"."""
    _put_in_front(error, step, named=True)


def _put_in_front(error: Exception, step: str, *, named: bool) -> None:
    if note := _noted(error):
        error.__notes__[-1] = _Place.of(f"{step}{note.path}", note.what, named=named)


def _noted(error: Exception) -> _Place | None:
    notes = getattr(error, "__notes__", ())
    return notes[-1] if notes and isinstance(notes[-1], _Place) else None
