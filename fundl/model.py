"""Models: layers and nested tuples of layers, applied and differentiated as one function."""

from typing import Final, Never, Protocol, TypeVarTuple, cast, overload

from torch import Tensor
from typing_extensions import TypeVar

from fundl._common.alike import Findings, likeness
from fundl._common.checks import as_model, models, require_gradient, require_loss, require_model
from fundl._common.modes import no_grad
from fundl._common.running import Pass, first_forward, run_backward, run_backward_input, run_backward_params
from fundl._common.tape import refuse_tape
from fundl.layer import Layer, Loss, Model, P, Prediction, Target
from fundl.shapes import AnyShape, Shape, of_model
from fundl.tree import describe

Ts = TypeVarTuple("Ts")
Grads = TypeVar("Grads", covariant=True)
X = TypeVar("X")
Y = TypeVar("Y")
R = TypeVar("R")
Kept = TypeVar("Kept", contravariant=True, default=Never)


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
    require_fitting(layers or models(*layers))
    return layers


_FITTING: Final[Findings[bool]] = Findings()


def require_fitting(model: object) -> None:
    """Raise an error unless this is a model, and its layers fit together."""
    like = likeness(model)
    if not _FITTING.get(like):
        require_model(model)
        of_model(Shape(...), model)
        _FITTING.keep(like, found=True)


class Differentiable(Protocol[Grads, X, Y, Kept]):
    """What every layer is, seen so that a checker finds the type of its gradient, which is its own type."""

    def forward(self, x: X, /) -> tuple[Y, object]:
        """The output, and what backward needs of the computation."""

    def backward(self, residuals: Kept, grad: Y, /) -> tuple[Grads, X]:
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
    require_model(params)
    if not isinstance(shape, Shape | None):
        raise TypeError(f"the shape of an input is written Shape(10, 2), not {describe(shape)}")
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

    >>> import torch
    >>> from fundl import Tanh, backward, forward
    >>> y, residuals = forward((Tanh(),), torch.zeros(2))
    >>> backward((Tanh(),), residuals, torch.ones(2))
    ((Tanh(),), tensor([1., 1.]))
    """
    with no_grad() as taping:
        return first_forward(as_model(params), x, taping)


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
        return run_backward(as_model(params), residuals, grad)


def backward_params(params: P, residuals: object, grad: object) -> P:
    """The first half of `backward`, of the same arguments, without the work that only the input's gradient would need.

    Returns:
        The gradient with respect to the parameters, of the model's type.
    """
    refuse_tape(params, residuals, grad)
    with no_grad():
        return cast("P", run_backward_params(as_model(params), residuals, grad))  # see `Pass`


@overload
def backward_input(params: Layer[R, X, Y], residuals: R, grad: Y) -> X: ...  # type: ignore[overload-overlap]  # see above
@overload
def backward_input(params: Model, residuals: object, grad: Tensor) -> Tensor: ...
def backward_input(params: object, residuals: object, grad: object) -> object:
    """The second half of `backward`, of the same arguments, without the work that only the parameters' gradients would need.

    Returns:
        The gradient with respect to the input.

    >>> import torch
    >>> from fundl import Linear, backward_input, forward
    >>> layer = Linear(weight=torch.tensor([[1.0, 2.0]]), bias=None)
    >>> y, residuals = forward(layer, torch.zeros(3, 2))
    >>> backward_input(layer, residuals, torch.ones(3, 1))[0]
    tensor([1., 2.])
    """
    refuse_tape(params, residuals, grad)
    with no_grad():
        return run_backward_input(as_model(params), residuals, grad)


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

    >>> import torch
    >>> from fundl import ReLU, apply, compose, linear
    >>> apply(compose(linear(2, 25), ReLU(), linear(25, 1)), torch.empty(10, 2, device="meta")).shape
    torch.Size([10, 1])
    """
    with no_grad() as taping:
        return first_forward(as_model(params), x, taping)[0]


@overload
def vjp(params: Differentiable[Grads, X, Y], x: X, grad: Y) -> tuple[Grads, X]: ...
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

    >>> import torch
    >>> from fundl import Linear, vjp
    >>> layer = Linear(weight=torch.tensor([[1.0, 2.0]]), bias=None)
    >>> grads, grad_x = vjp(layer, torch.ones(3, 2), torch.ones(3, 1))
    >>> grads.weight, grad_x[0]
    (tensor([[3., 3.]]), tensor([1., 2.]))
    """
    with no_grad() as taping:
        ran = Pass(as_model(params), x, taping)
        refuse_tape(grad)
        require_gradient(grad, ran.output)
        ran.grad = grad
        return ran.backward()


@overload
def value_and_grad(
    loss: Loss[Y, Target], params: Differentiable[Grads, X, Y], x: X, target: Target
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

    >>> import torch
    >>> from fundl import Linear, mse, value_and_grad
    >>> layer = Linear(weight=torch.tensor([[1.0, 2.0]]), bias=None)
    >>> value, grads = value_and_grad(mse, layer, torch.ones(4, 2), torch.zeros(4, 1))
    >>> value, grads.weight
    (tensor(9.), tensor([[6., 6.]]))
    """
    with no_grad() as taping:
        try:
            model = as_model(params)
        except TypeError:
            require_loss(loss)  # the model may be in its place
            raise
        unchecked: object = loss
        if not callable(unchecked):
            require_loss(loss)
        ran = Pass(model, x, taping)
        # the overloads say that the loss is for what the model gives
        value = ran.differentiate(loss, cast("Prediction", ran.output), target)
        return value, ran.backward_params()
