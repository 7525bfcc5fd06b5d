"""Derivatives along a direction: of a model's output, and of a loss' gradient."""

from collections.abc import Callable
from typing import TypeVar, cast, overload

from torch import Tensor

from fundl import tree
from fundl._common.checks import as_model, require_loss
from fundl._common.modes import no_grad
from fundl._common.running import Pass, first_forward
from fundl.derivatives._pushing import Moving, pushed
from fundl.layer import Loss, Model, P, Prediction, Target
from fundl.model import Differentiable

Grads = TypeVar("Grads")
X = TypeVar("X")
Y = TypeVar("Y")

_NAMES = ("the model", "its tangent")
_INPUTS = ("the input", "its tangent")


@overload
def jvp(params: Differentiable[Grads, X, Y], x: X, tangent: Grads | None, tangent_x: X | None) -> tuple[Y, Y]: ...
@overload
def jvp(params: P, x: Tensor, tangent: P, tangent_x: Tensor | None) -> tuple[Tensor, Tensor]: ...
@overload
def jvp(params: Model, x: Tensor, tangent: None, tangent_x: Tensor) -> tuple[Tensor, Tensor]: ...
def jvp(params: object, x: object, tangent: object | None, tangent_x: object | None) -> tuple[object, object]:
    """The Jacobian-vector product of a model: how its output changes as parameters and input move.

        tangent_y = dy/dparams tangent + dy/dx tangent_x,    y = apply(params, x)

    Torch differentiates the layers' forward, kernel by kernel, as it goes (forward mode): nothing is kept for a backward. For
    any cotangent grad, <grad, tangent_y> is the product of what `vjp` gives and the tangents.

    Args:
        params: a layer or a nested tuple of layers.
        x: the input.
        tangent: the direction of the parameters, of the model's type, such as a gradient; None if they stay. Buffers stay.
        tangent_x: that of the input, of its shapes; None if it stays.

    Returns:
        The output, and its derivative, of the same form.

    Raises:
        ValueError: a tangent is not of the shape, dtype and device of what it belongs to, or both are None; or as for `apply`.
        TypeError: it is of another structure.

    >>> import torch
    >>> from fundl import Tanh, jvp
    >>> y, tangent_y = jvp(Tanh(), torch.zeros(2), None, torch.tensor([1.0, 3.0]))
    >>> tangent_y
    tensor([1., 3.])
    """
    model = as_model(params)
    if tangent is None and tangent_x is None:
        raise ValueError("jvp(params, x, tangent, tangent_x): one of the two tangents must be given, else nothing moves")
    moving = Moving((model, x), [(model, tangent, *_NAMES), (x, tangent_x, *_INPUTS)])
    return pushed(_output, moving)


def _output(point: object) -> object:
    return first_forward(*cast("tuple[Model, object]", point))[0]


@overload
def linearize(params: Differentiable[Grads, X, Y], x: X) -> tuple[Y, Callable[[Grads | None, X | None], Y]]: ...
@overload
def linearize(params: P, x: Tensor) -> tuple[Tensor, Callable[[P | None, Tensor | None], Tensor]]: ...
def linearize(params: object, x: object) -> tuple[object, object]:
    """A model at a point as a linear function: its output, and what maps tangents to that of the output.

        y + push(tangent, tangent_x) is the output near by, up to the square of the distance

    Args:
        params: a layer or a nested tuple of layers.
        x: the input.

    Returns:
        The output, and the function push(tangent, tangent_x), as `jvp` takes them. Each call runs the model once more.

    Raises:
        ValueError: as for `apply`; and push as `jvp`.

    >>> import torch
    >>> from fundl import Tanh, linearize
    >>> y, push = linearize(Tanh(), torch.zeros(2))
    >>> y, push(None, torch.tensor([1.0, 3.0]))
    (tensor([0., 0.]), tensor([1., 3.]))
    """
    model = as_model(params)
    with no_grad():
        y, _ = first_forward(model, x)

    def push(tangent: object, tangent_x: object) -> object:
        moving = Moving((model, x), [(model, tangent, *_NAMES), (x, tangent_x, *_INPUTS)])
        return pushed(_output, moving)[1]

    return y, push


@overload
def hvp(
    loss: Loss[Y, Target], params: Differentiable[Grads, X, Y], x: X, target: Target, tangent: Grads
) -> tuple[Grads, Grads]: ...
@overload
def hvp(loss: Loss[Tensor, Target], params: P, x: Tensor, target: Target, tangent: P) -> tuple[P, P]: ...
def hvp(loss: Loss[Prediction, Target], params: object, x: object, target: Target, tangent: object) -> tuple[object, object]:
    """The Hessian of a loss with respect to the parameters, times a vector; and the gradient, which is found on the way.

        product = (d^2 loss / dparams^2) tangent,    grads = d loss / dparams

    The layers' backward, which is derived by hand, is differentiated along the tangent by forward mode; no matrix is made. It
    is for curvature, conjugate gradients, the influence of examples.

    Args:
        loss: as `value_and_grad` takes it.
        params: a layer or a nested tuple of layers.
        x: the batch.
        target: what the loss compares the model's output with.
        tangent: the vector, of the model's type.

    Returns:
        The gradient, and the product: both of the model's type.

    Raises:
        ValueError: the tangent is not of the parameters' shapes, dtypes and devices.
        TypeError: it is of another structure.

    >>> import torch
    >>> from fundl import Linear, hvp, mse
    >>> layer = Linear(weight=torch.tensor([[1.0, 2.0]]), bias=None)
    >>> grads, product = hvp(mse, layer, torch.ones(4, 2), torch.zeros(4, 1), Linear(torch.tensor([[1.0, 0.0]]), bias=None))
    >>> grads.weight, product.weight
    (tensor([[6., 6.]]), tensor([[2., 2.]]))
    """
    try:
        model = as_model(params)
    except TypeError:
        require_loss(loss)  # the model may be in its place
        raise
    require_loss(loss)

    def gradient(point: object) -> Model:
        ran = Pass(cast("Model", point), x)
        ran.differentiate(loss, cast("Prediction", ran.output), target)
        return ran.backward_params()

    moving = Moving(model, [(model, tangent, *_NAMES)])
    grads, product = pushed(lambda point: tree.trainable_leaves(gradient(point)), moving)
    return tree.with_trainable_leaves(model, grads), tree.with_trainable_leaves(model, product)
