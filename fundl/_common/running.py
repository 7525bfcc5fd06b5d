"""Running a model, forward and backward: the walk through its layers, and the notes that say where an error arose.

Layers that contain models call these, too, in the caller's grad mode.
"""

from collections.abc import Callable, Sequence
from typing import Final, Generic, Protocol, TypeAlias, cast, runtime_checkable

import attrs
from torch import Tensor

from fundl import tree
from fundl._common import suggestions
from fundl._common.arguments import caller_of, is_told, wrong_field
from fundl._common.checks import as_model, loss_and_gradient, require_gradient, require_model
from fundl._common.tape import off_tape, refuse_input, refuse_tape
from fundl.layer import AnyLayer, Layer, Loss, Model, P, Prediction, Target
from fundl.shapes import Misfit, Shape, of_model
from fundl.tree import describe


def first_forward(params: Model, x: object, taping: bool = False) -> tuple[object, object]:  # by place, which is quicker
    """Run forward, and tell an input or a model that cannot be run for what it is; the caller has turned grad mode off.

    taping: whether it was on, so that what came before is on a tape.
    """
    refuse_tape(params, x)
    if isinstance(x, Tensor) and not x.is_floating_point() and not _first_layer(params).takes_integers:
        raise TypeError(f"the input must be floating-point, not {x.dtype}: convert it with x.to(torch.float32)")
    if not isinstance(x, Tensor):
        x = tree.map(_taped_input if taping else _input, x)
    elif x.requires_grad:  # a layer may hand its input through
        x = _taped_input(x) if taping else off_tape(x)
    try:
        output, residuals = run_forward(params, x)
    except Exception as error:
        _require_fit(params, error)
        if _has_meta(params) and not _has_meta(x):
            raise not_initialized() from error
        raise
    if isinstance(output, Tensor) and output.is_meta and not _has_meta(x):
        raise not_initialized()
    return output, residuals


def _input(leaf: Tensor) -> Tensor:
    """A tensor of an input, off any tape; all that is none is refused."""
    suggestions.require_tensor(leaf, "the input must be")
    return off_tape(leaf)


def _taped_input(leaf: Tensor) -> Tensor:
    """The same, where it may have been made of what is to get a gradient by a tape."""
    suggestions.require_tensor(leaf, "the input must be")
    refuse_input(leaf)
    return off_tape(leaf)


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


def not_initialized() -> ValueError:
    return ValueError("the model has no values yet, only shapes: call initialize(key(0), model) and apply what it returns")


# What a tuple keeps for backward is the tuple of what its parts keep. The loops are where a small network spends its time
# outside of the kernels: they do no more than they must, and errors are explained only once they have happened.


class Pass(Generic[P]):
    """A forward pass: its output, and what backward needs, which is given to backward and held nowhere else.

    The memory of a training step is mostly that of residuals, and a layer's are of no more use once its backward has run. So
    nobody holds on to them: who runs a model forward and backward leaves them here, and the walk takes them apart. Then each
    layer's memory is free before the layers below it are run backward. The caller has turned grad mode off.
    """

    __slots__ = ("_kept", "grad", "output", "params")

    def __init__(self, params: P, x: object, taping: bool = False) -> None:  # see `first_forward`
        self.params = params
        self.output: object
        self.output, residuals = first_forward(as_model(params), x, taping)
        self._kept = [residuals]
        self.grad: object = None
        """The gradient with respect to the output, which is to be set before backward."""

    @property
    def residuals(self) -> object:
        """What is kept for backward, until that has run: whoever holds it keeps its memory from being freed."""
        return self._kept[0]

    def differentiate(self, loss: Loss[Prediction, Target], prediction: Prediction, target: Target) -> Tensor:
        """The value of a loss of the output, which is the prediction that it takes; its gradient is to go backward."""
        value, grad = loss_and_gradient(loss, prediction, target)
        refuse_tape(grad)
        require_gradient(grad, prediction, loss)
        self.grad = grad
        return value

    def backward(self) -> tuple[Model, object]:
        """The gradients with respect to the parameters and the input; this and the next can be asked for once."""
        return _run_back(self.params, self._kept, self._taken_grad(), _backward)

    def backward_params(self, taken: "_Taken | None" = None) -> P:
        """The gradient with respect to the parameters.

        Args:
            taken: is given the gradients of each layer as soon as they are there, from the last layer to the first; what it
                returns, a record like them, takes their place.
        """
        grads, _ = _run_back(self.params, self._kept, self._taken_grad(), _backward_params, taken)
        return cast("P", grads)  # each gradient is in its layer's place, which checkers cannot follow through a loop

    def _taken_grad(self) -> object:
        taken, self.grad, self.output = self.grad, None, None  # nor is the output of use
        return taken


def run_forward(params: Model, x: object) -> tuple[object, object]:
    """`forward`, for the layers of a model that is being run."""
    if not isinstance(params, tuple):
        output: tuple[object, object]
        try:
            output = params.forward(x)
        except Exception as error:
            if (wrong := _misuse(error, params, "an input", x)) is not None:
                note_layer(wrong, params, "the input", x)
                raise wrong from error
            note_layer(error, params, "the input", x)
            raise
        return output
    kept: list[object] = []
    try:
        for part in params:
            x, residuals = run_forward(part, x)
            kept.append(residuals)
    except Exception as error:
        note_part(error, params, len(kept))
        raise
    return x, tuple(kept)


def run_backward(params: Model, residuals: object, grad: object) -> tuple[Model, object]:
    """`backward`, for the layers of a model that is being run."""
    kept = [residuals, grad]
    del residuals, grad  # see `Pass`
    return _run_back(params, kept, kept.pop(), _backward)


def run_backward_params(params: Model, residuals: object, grad: object) -> Model:
    """`backward_params`, for the layers of a model that is being run.

    Layers before the first one that has trainable leaves are their own gradients, and need no backward.
    """
    kept = [residuals, grad]
    del residuals, grad
    return _run_back(params, kept, kept.pop(), _backward_params)[0]


def run_backward_input(params: Model, residuals: object, grad: object) -> object:
    """`backward_input`, for the layers of a model that is being run."""
    kept = [residuals, grad]
    del residuals, grad
    return _run_back(params, kept, kept.pop(), _backward_input)[1]


_Run: TypeAlias = Callable[[AnyLayer, list[object], object], tuple[Model, object]]
"""How a layer is run backward: its residuals are the last of the list, and taken out there, so that nobody else holds them."""
_Taken: TypeAlias = Callable[[Model], Model]


def _backward(layer: AnyLayer, kept: list[object], grad: object) -> tuple[Model, object]:
    return layer.backward(kept.pop(), grad)


def _backward_params(layer: AnyLayer, kept: list[object], grad: object) -> tuple[Model, object]:
    return layer.backward_params(kept.pop(), grad), None


def _backward_input(layer: AnyLayer, kept: list[object], grad: object) -> tuple[Model, object]:
    return layer, layer.backward_input(kept.pop(), grad)


def _run_back(params: Model, kept: list[object], grad: object, run: _Run, taken: _Taken | None = None) -> tuple[Model, object]:
    """Run a model backward, of which the residuals are the last of `kept`; they are taken out."""
    if not isinstance(params, tuple):
        try:
            own, grad_x = run(params, kept, grad)
        except Exception as error:
            if (wrong := _misuse(error, params, "a grad", grad) or _misfit(error, params, grad)) is not None:
                note_layer(wrong, params, "grad", grad)
                raise wrong from error
            note_layer(error, params, "grad", grad)
            raise
        return (own if taken is None else taken(own)), grad_x
    first = _first_trainable(params) if run is _backward_params else 0
    inside, grads, place = [*_parts(kept.pop(), len(params))], [*params], len(params)
    try:
        while place > first:
            place -= 1
            later = place > first and run is _backward_params  # what is before it needs the gradient with respect to its input
            grads[place], grad = _run_back(params[place], inside, grad, _backward if later else run, taken)
    except Exception as error:
        note_part(error, params, place)
        raise
    return named_as(params, grads), grad


# --- Backward in two halves, of which the second can wait --------------------------------------------------------------


@runtime_checkable
class InHalves(Protocol):
    """A layer made of layers, which hands the halves of backward on to them."""

    def has_halves(self) -> bool:
        """Whether it does."""

    def input_half(self, residuals: object, grad: object) -> tuple[object, object]:
        """See `run_input_half`."""

    def params_half(self, kept: object) -> object:
        """See `run_params_half`."""


def run_input_half(params: Model, residuals: object, grad: object, *, needed: bool = True) -> tuple[object, object]:
    """The gradient with respect to the input, and what `run_params_half` makes that with respect to the parameters of.

    Both together do the work of backward, and no more; a layer that has no halves of its own does all of it here. If the
    gradient with respect to the input is not needed, what only that needs is left out.
    """
    kept = [residuals]
    del residuals  # see `Pass`
    if not isinstance(params, tuple):
        return _input_half(params, kept, grad, needed=needed)
    first = 0 if needed else _first_trainable(params)
    inside, place = [*_parts(kept.pop(), len(params))], len(params)
    halves: list[object] = [None] * place
    try:
        while place > first:
            place -= 1
            grad, halves[place] = run_input_half(params[place], inside.pop(), grad, needed=needed or place > first)
    except Exception as error:
        note_part(error, params, place)
        raise
    return grad, tuple(halves)


def _input_half(layer: AnyLayer, kept: list[object], grad: object, *, needed: bool) -> tuple[object, object]:
    try:
        if not _has_parameters(layer):
            return layer.backward_input(kept.pop(), grad) if needed else None, None
        if not needed:
            return None, (kept.pop(), grad)
        if isinstance(layer, InHalves) and layer.has_halves():
            return layer.input_half(kept.pop(), grad)
        if _is_of_one_piece(layer):
            grads, grad_x = layer.backward(kept.pop(), grad)
            return grad_x, grads
        return layer.backward_input(kept[0], grad), (kept.pop(), grad)
    except Exception as error:
        note_layer(error, layer, "grad", grad)
        raise


def run_params_half(params: Model, kept: object, *, needed: bool = True) -> Model:
    """The gradient with respect to the parameters, from what `run_input_half` kept, which was asked for as much."""
    if not isinstance(params, tuple):
        return _params_half(params, kept, needed=needed)
    first = 0 if needed else _first_trainable(params)
    halves, grads, place = _parts(kept, len(params)), [*params], first
    try:
        for place in range(first, len(params)):
            grads[place] = run_params_half(params[place], halves[place], needed=needed or place > first)
    except Exception as error:
        note_part(error, params, place)
        raise
    return named_as(params, grads)


def _params_half(layer: AnyLayer, kept: object, *, needed: bool) -> Model:
    try:
        if not _has_parameters(layer):
            return layer
        if needed and isinstance(layer, InHalves) and layer.has_halves():
            return cast("Model", layer.params_half(kept))
        if needed and _is_of_one_piece(layer):
            return cast("Model", kept)  # the gradient itself
        residuals, grad = cast("tuple[object, object]", kept)
        return layer.backward_params(residuals, grad)
    except Exception as error:
        note_layer(error, layer, "what was kept", kept)
        raise


def _is_of_one_piece(layer: AnyLayer) -> bool:
    """Whether a layer has written backward as a whole, so that each half would do all of its work."""
    return type(layer).backward_input is Layer.backward_input


def _parts(residuals: object, count: int) -> tuple[object, ...]:
    if not isinstance(residuals, tuple) or len(residuals) != count:
        raise TypeError(
            f"the residuals of a tuple of {count} {'layer is' if count == 1 else 'layers are'} a tuple of as many, as forward"
            f" returned it, not {describe(residuals)}"
        )
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


def _misuse(error: Exception, layer: AnyLayer, what: str, value: object) -> TypeError | None:
    """The error to raise instead of one that only says what Python or a kernel could not do with what a layer was given."""
    if _noted(error) is not None or not isinstance(error, TypeError | AttributeError | RuntimeError) or is_told(error):
        return None
    if isinstance(error, AttributeError) and error.obj is value and not isinstance(value, Tensor):
        return TypeError(f"{type(layer).__name__} takes {what} that is a tensor, not {describe(value)}")
    return wrong_field(layer, {field.name: field.type for field in attrs.fields(type(layer))})


def _misfit(error: Exception, layer: AnyLayer, grad: object) -> ValueError | None:
    """What is said instead of the error of a kernel that could not compute with what a layer of the library was run back on."""
    if type(error) not in _OF_KERNELS or _noted(error) is not None or is_told(error) or caller_of(error) != "fundl":
        return None
    said = str(error).partition("\n")[0]
    if "memory" in said:
        return None
    return ValueError(
        f"{type(layer).__name__} cannot be run backward with this grad and these residuals: grad must be of the shape and"
        f" dtype of its output, not {describe(grad)}, if that is another, and the residuals what its forward returned ({said})"
    )


_OF_KERNELS: Final = frozenset({RuntimeError, IndexError, TypeError, ValueError, AttributeError})


def note_layer(error: Exception, layer: AnyLayer, name: str, value: object) -> None:
    note = _noted(error)
    if note is None:
        error.add_note(_Place.of("", f"{describe(layer)}; {name} is {describe(value)}"))
    else:  # the layer is made of layers, and it was one of those
        error.__notes__[-1] = _Place.of(note.path if note.named else f".{layer.children[0]}{note.path}", note.what)


def note_part(error: Exception, params: tuple[Model, ...], index: int) -> None:
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
