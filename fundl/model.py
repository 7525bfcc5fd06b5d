"""Models: layers and nested tuples of layers, applied and differentiated as one function."""

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeAlias, TypeVar, TypeVarTuple, cast, overload

import torch
from torch import Tensor

from fundl import tree
from fundl._common import suggestions
from fundl._common.modes import no_grad
from fundl._common.tape import refuse_tape
from fundl.layer import AnyLayer, Layer, Model
from fundl.shapes import AnyShape, Misfit, Shape, of_model
from fundl.tree import describe

P = TypeVar("P", bound=Model)
Ts = TypeVarTuple("Ts")
Grads = TypeVar("Grads", covariant=True)
X = TypeVar("X")
Y = TypeVar("Y")
R = TypeVar("R")
Prediction = TypeVar("Prediction")
Target = TypeVar("Target")

Loss: TypeAlias = Callable[[Prediction, Target], tuple[Tensor, Prediction]]
"""A loss: from a prediction and its target to the loss' value and its gradient with respect to the prediction."""


def compose(*layers: *Ts) -> tuple[*Ts]:
    """A model that applies its layers from left to right: a tuple of them, no more.

    Args:
        layers: layers, or models (tuples of layers) for a nested model.

    Raises:
        ValueError: there is no layer, or a layer does not take what the ones before it give.
        TypeError: a part is not a layer (a class where an instance is due, say).

    >>> from fundl import ReLU, compose, linear
    >>> model = compose(linear(2, 25), ReLU(), linear(25, 2))
    >>> len(model)
    3
    >>> compose(linear(2, 25), ReLU(), linear(24, 2))
    Traceback (most recent call last):
    fundl.shapes.Misfit: layer 3 (Linear) expects 24 features but layer 1 (Linear) gives 25 features
    """
    of_model(Shape(...), models(*layers))
    return layers


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
    place = f"layer {'.'.join(map(str, path))}" if path else "the model"
    if isinstance(part, tuple):
        if not part:
            raise ValueError(f"{place} is an empty tuple: a model needs at least one layer")
        steps: Sequence[int | str] = getattr(part, "_fields", range(1, len(part) + 1))
        for step, inner in zip(steps, part, strict=True):
            require_model(inner, *path, step)
    elif not isinstance(part, Layer):
        raise TypeError(f"{place} is {_no_layer(part)}")
    elif "__attrs_attrs__" not in vars(type(part)):
        raise TypeError(f"{place}: {type(part).__name__} is not a record: decorate the class with @attrs.frozen(eq=False)")
    elif misplaced := tree.misplaced_tensors(part):
        raise TypeError(
            f"{place}: {misplaced[0]} holds a tensor, but its annotation names none: annotate the field with Tensor, so that"
            " it counts as a parameter"
        )
    elif modules := tree.static_fields(part, suggestions.is_module):
        raise TypeError(
            f"{place}: {modules[0]} holds a module of torch.nn, whose parameters nothing here would see or train: make it a"
            " layer with fundl.interop.torch_nn.from_torch(module), and annotate the field with its type"
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


class Differentiable(Protocol[Grads, X, Y, R]):
    """What every layer is, seen so that a checker finds the type of its gradient, which is its own type."""

    def forward(self, x: X, /) -> tuple[Y, R]:
        """The output, and what backward needs of the computation."""

    def backward(self, residuals: R, grad: Y, /) -> tuple[Grads, X]:
        """The gradients with respect to the parameters and the input."""


def output_shape(params: Model, shape: AnyShape | None = None) -> AnyShape:
    """The shape of a model's output, found by its layers' rules, without arithmetic.

    Args:
        params: a layer or a nested tuple of layers.
        shape: of the input, as far as it is known.

    Raises:
        ValueError: a layer does not take what the ones before it give, or the first of them the input.

    >>> from fundl import ReLU, Shape, compose, linear, output_shape
    >>> output_shape(compose(linear(2, 25), ReLU()), Shape(10, 2))
    Shape(10, 25)
    """
    return of_model(Shape(...) if shape is None else shape, params)


# --- The public functions ----------------------------------------------------------------------------------------------

# A layer states the types of its input and output, and the first overload of each function uses them. The second is for
# tuples, and for functions that are generic in the model: these take and give tensors. That a lone layer with other types
# would match the second as well, if the first did not come before it, is what the overlap is about.


@overload
def forward(params: Layer[R, X, Y], x: X) -> tuple[Y, R]: ...  # type: ignore[overload-overlap]  # see above
@overload
def forward(params: Model, x: Tensor) -> tuple[Tensor, object]: ...
def forward(params: object, x: object) -> tuple[object, object]:
    """The output of a model, and the residuals that `backward` needs.

    Args:
        params: a layer or a nested tuple of layers.
        x: the input, of the shape that the first layer takes.

    Returns:
        The output, and the residuals: for a tuple of layers the tuple of theirs.

    Raises:
        ValueError: the model has no values yet, or the input does not fit; a note names the layer's place.
        TypeError: the input is of a wrong dtype.

    >>> from fundl import Tanh, backward, forward
    >>> y, residuals = forward((Tanh(),), torch.zeros(2))
    >>> backward((Tanh(),), residuals, torch.ones(2))
    ((Tanh(),), tensor([1., 1.]))
    """
    with no_grad():
        return _forward(_as_model(params), x)


def _as_model(params: object) -> Model:
    if not isinstance(params, Layer | tuple):
        first = "; the model is the first argument, apply(model, x)" if isinstance(params, Tensor) else ""
        raise TypeError(f"the model is {_no_layer(params)}{first}")
    if params == ():
        raise ValueError("a model needs at least one layer, but this is an empty tuple")
    return params


def _forward(params: Model, x: object) -> tuple[object, object]:
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
        _require_layers(params, error)
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


def _require_layers(params: Model, error: Exception) -> None:
    """Raise the fault of a model that was not made by `compose`, if the error comes from one."""
    try:
        require_model(params)
    except TypeError as wrong:
        raise wrong from error


def _require_fit(params: Model, error: Exception) -> None:
    """Raise a misfit of a model that was not made by `compose`, if the error comes from one."""
    try:
        output_shape(params)
    except Misfit as misfit:
        raise misfit from error


def _first_layer(params: Model) -> AnyLayer:
    return _first_layer(params[0]) if isinstance(params, tuple) else params


def _has_meta(value: object) -> bool:
    return any(leaf.is_meta for leaf in tree.leaves(value))


def _not_initialized() -> ValueError:
    return ValueError("the model has no values yet, only shapes: call initialize(key(0), model) and apply what it returns")


@overload
def backward(params: Differentiable[Grads, X, Y, R], residuals: R, grad: Y) -> tuple[Grads, X]: ...
@overload
def backward(params: P, residuals: object, grad: Tensor) -> tuple[P, Tensor]: ...
def backward(params: object, residuals: object, grad: object) -> tuple[object, object]:
    """The gradients with respect to the parameters and the input, from that with respect to the output.

    Args:
        params: the model that `forward` ran.
        residuals: what `forward` kept.
        grad: the gradient with respect to the output, of its shape.

    Returns:
        The gradient with respect to the parameters, of the model's type, and that with respect to the input.
    """
    refuse_tape(params, residuals, grad)
    with no_grad():
        return run_backward(_as_model(params), residuals, grad)


def backward_params(params: P, residuals: object, grad: object) -> P:
    """The first half of `backward`, without the work that only the input's gradient would need.

    Args:
        params: the model that `forward` ran.
        residuals: what `forward` kept.
        grad: the gradient with respect to the output, of its shape.

    Returns:
        The gradient with respect to the parameters, of the model's type.
    """
    refuse_tape(params, residuals, grad)
    with no_grad():
        return cast("P", run_backward_params(_as_model(params), residuals, grad))  # see `Pass`


@overload
def backward_input(params: Layer[R, X, Y], residuals: R, grad: Y) -> X: ...  # type: ignore[overload-overlap]  # see above
@overload
def backward_input(params: Model, residuals: object, grad: Tensor) -> Tensor: ...
def backward_input(params: object, residuals: object, grad: object) -> object:
    """The second half of `backward`, without the work that only the parameters' gradients would need.

    Args:
        params: the model that `forward` ran.
        residuals: what `forward` kept.
        grad: the gradient with respect to the output, of its shape.

    Returns:
        The gradient with respect to the input.

    >>> from fundl import Linear, backward_input, forward
    >>> layer = Linear(weight=torch.tensor([[1.0, 2.0]]), bias=None)
    >>> y, residuals = forward(layer, torch.zeros(3, 2))
    >>> backward_input(layer, residuals, torch.ones(3, 1))[0]
    tensor([1., 2.])
    """
    refuse_tape(params, residuals, grad)
    with no_grad():
        return run_backward_input(_as_model(params), residuals, grad)


@overload
def apply(params: Layer[R, X, Y], x: X) -> Y: ...  # type: ignore[overload-overlap]  # see above
@overload
def apply(params: Model, x: Tensor) -> Tensor: ...
def apply(params: object, x: object) -> object:
    """The output of a model: the first half of `forward`.

    A model on the meta device computes the shape of its output, without memory or arithmetic.

    Args:
        params: a layer or a nested tuple of layers.
        x: the input, of the shape that the first layer takes.

    Raises:
        ValueError: the model has no values yet, or the input does not fit; a note names the layer's place.
        TypeError: the input is of a wrong dtype.

    >>> from fundl import ReLU, apply, compose, linear
    >>> apply(compose(linear(2, 25), ReLU(), linear(25, 1)), torch.empty(10, 2, device="meta")).shape
    torch.Size([10, 1])
    """
    with no_grad():
        return _forward(_as_model(params), x)[0]


@overload
def vjp(params: Differentiable[Grads, X, Y, R], x: X, grad: Y) -> tuple[Grads, X]: ...
@overload
def vjp(params: P, x: Tensor, grad: Tensor) -> tuple[P, Tensor]: ...
def vjp(params: object, x: object, grad: object) -> tuple[object, object]:
    """The vector-Jacobian product of a model: `forward`, then `backward`.

        grad_params = (dy/dparams)^T grad,    grad_x = (dy/dx)^T grad,    y = apply(params, x)

    Args:
        params: a layer or a nested tuple of layers.
        x: the input.
        grad: the gradient of some number with respect to the output, of the output's shape.

    Returns:
        The gradients of that number with respect to the parameters, of the model's type, and to the input.

    Raises:
        ValueError: the model has no values yet, the input does not fit, or `grad` is not of the output's shape.
        TypeError: the input is of a wrong dtype.

    >>> from fundl import Linear, vjp
    >>> layer = Linear(weight=torch.tensor([[1.0, 2.0]]), bias=None)
    >>> grads, grad_x = vjp(layer, torch.ones(3, 2), torch.ones(3, 1))
    >>> grads.weight, grad_x[0]
    (tensor([[3., 3.]]), tensor([1., 2.]))
    """
    with no_grad():
        ran = Pass(_as_model(params), x)
        refuse_tape(grad)
        require_gradient(grad, ran.output)
        ran.grad = grad
        return ran.backward()


@overload
def value_and_grad(
    loss: Loss[Y, Target], params: Differentiable[Grads, X, Y, R], x: X, target: Target
) -> tuple[Tensor, Grads]: ...
@overload
def value_and_grad(loss: Loss[Tensor, Target], params: P, x: Tensor, target: Target) -> tuple[Tensor, P]: ...
def value_and_grad(loss: Loss[Prediction, Target], params: object, x: object, target: Target) -> tuple[Tensor, object]:
    """The loss of a model on a batch, and its gradient with respect to the parameters.

    Args:
        loss: a function of a prediction and its target; it returns the loss and its gradient with respect to the prediction.
        params: a layer or a nested tuple of layers.
        x: the batch.
        target: what the loss compares the model's output with.

    Returns:
        The loss' value, and the gradient, of the model's type.

    >>> from fundl import Linear, mse, value_and_grad
    >>> layer = Linear(weight=torch.tensor([[1.0, 2.0]]), bias=None)
    >>> value, grads = value_and_grad(mse, layer, torch.ones(4, 2), torch.zeros(4, 1))
    >>> value, grads.weight
    (tensor(9.), tensor([[6., 6.]]))
    """
    with no_grad():
        try:
            model = _as_model(params)
        except TypeError:
            require_loss(loss)  # the model may be in its place
            raise
        ran = Pass(model, x)
        # the overloads say that the loss is for what the model gives
        value = ran.differentiate(loss, cast("Prediction", ran.output), target)
        return value, ran.backward_params()


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
    """Raise unless a gradient is of the form of what it is the gradient with respect to, for kernels that take it on trust.

    Args:
        grad: the gradient.
        output: what it belongs to.
        loss: the loss that gave it, or None if the caller did.
    """
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


# --- Running a model ---------------------------------------------------------------------------------------------------

# Layers that contain models call these, too, in the caller's grad mode. What a tuple keeps for backward is the tuple of what
# its parts keep. The loops are where a small network spends its time outside of the kernels: they do no more than they must,
# and errors are explained only once they have happened.


class Pass(Generic[P]):
    """A forward pass: its output, and what backward needs, which is given to backward and held nowhere else.

    The memory of a training step is mostly that of residuals, and a layer's are of no more use once its backward has run. So
    nobody holds on to them: who runs a model forward and backward leaves them here, and the walk takes them apart. Then each
    layer's memory is free before the layers below it are run backward. The caller has turned grad mode off.
    """

    __slots__ = ("_params", "_residuals", "grad", "output")

    def __init__(self, params: P, x: object) -> None:
        self._params = params
        self.output, self._residuals = _forward(_as_model(params), x)
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

    Args:
        params: the parts.
        kept: the residuals of the parts and, at the end, the gradient with respect to the output. They are taken out, and
            the gradient with respect to the input of the part at `last` is put there.
        run_part: runs one part.
        last: the place of the part to end with.
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
        if part.trainable if not isinstance(part, tuple) else _first_trainable(part) < len(part):
            return place
    return len(params)


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
    """Put a step in front of the place where an error arose: for layers that run several models.

    Args:
        error: what is being raised.
        step: from the layer, such as ".second", or from its first field, such as "[1]".
    """
    _put_in_front(error, step, named=step.startswith("."))


def _put_in_front(error: Exception, step: str, *, named: bool) -> None:
    if note := _noted(error):
        error.__notes__[-1] = _Place.of(f"{step}{note.path}", note.what, named=named)


def _noted(error: Exception) -> _Place | None:
    notes = getattr(error, "__notes__", ())
    return notes[-1] if notes and isinstance(notes[-1], _Place) else None
