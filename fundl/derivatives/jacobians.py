"""All derivatives of a model's output: a row for each of its numbers."""

from typing import TypeVar, overload

import torch
from torch import Tensor

from fundl import tree
from fundl._common.checks import as_model
from fundl._common.modes import no_grad
from fundl._common.running import first_forward, run_backward, run_backward_input, run_backward_params
from fundl.derivatives._pushing import require_tensor_output
from fundl.derivatives._rows import of_rows
from fundl.layer import Model, P
from fundl.model import Differentiable

Grads = TypeVar("Grads")
X = TypeVar("X")


@overload
def jacobian(params: Differentiable[Grads, X, Tensor], x: X) -> tuple[Grads, X]: ...
@overload
def jacobian(params: P, x: Tensor) -> tuple[P, Tensor]: ...
def jacobian(params: object, x: object) -> tuple[object, object]:
    """The Jacobians of a model with respect to the parameters and the input.

        of_params[i, ...] = dy[i] / dparams,    of_x[i, ...] = dy[i] / dx,    y = apply(params, x)

    Each row is a backward, all of them at once. Ask for the half that is needed, by `jacobian_params` or `jacobian_input`: that
    of the parameters has as many numbers as the output times the parameters.

    Args:
        params: a layer or a nested tuple of layers, which gives a tensor.
        x: the input. For each example of a batch by itself, ``ensemble.each(lambda x: jacobian_input(model, x))(batch)``.

    Returns:
        A tree of the model's type, and one like the input: each tensor has the output's axes in front of its own.

    Raises:
        TypeError: the model does not give a tensor; or as for `apply`.

    >>> import torch
    >>> from fundl import Linear, jacobian
    >>> layer = Linear(weight=torch.tensor([[1.0, 2.0], [3.0, 4.0]]), bias=None)
    >>> of_params, of_x = jacobian(layer, torch.tensor([5.0, 6.0]))
    >>> of_x, of_params.weight[0]
    (tensor([[1., 2.],
            [3., 4.]]), tensor([[5., 6.],
            [0., 0.]]))
    """
    with no_grad():
        model, y, residuals = _ran(params, x, "jacobian")
        rows = of_rows(lambda ran, grad: _of_both(run_backward(*ran, grad)), (model, residuals), _basis(y))
    of_params, of_x = ([_with_axes(leaf, y) for leaf in leaves] for leaves in rows)
    return tree.with_trainable_leaves(model, of_params), tree.with_trainable_leaves(x, of_x)


def jacobian_params(params: P, x: object) -> P:
    """The first half of `jacobian`, of the same arguments.

    >>> import torch
    >>> from fundl import Linear, jacobian_params
    >>> jacobian_params(Linear(weight=torch.tensor([[1.0, 2.0]]), bias=None), torch.tensor([5.0, 6.0])).weight
    tensor([[[5., 6.]]])
    """
    with no_grad():
        model, y, residuals = _ran(params, x, "jacobian_params")
        rows = of_rows(lambda ran, grad: tree.trainable_leaves(run_backward_params(*ran, grad)), (model, residuals), _basis(y))
    return tree.with_trainable_leaves(params, [_with_axes(leaf, y) for leaf in rows])


@overload
def jacobian_input(params: Differentiable[object, X, Tensor], x: X) -> X: ...
@overload
def jacobian_input(params: Model, x: Tensor) -> Tensor: ...
def jacobian_input(params: object, x: object) -> object:
    """The second half of `jacobian`, of the same arguments.

    >>> import torch
    >>> from fundl import Tanh, jacobian_input
    >>> jacobian_input(Tanh(), torch.tensor([0.0, 0.0]))
    tensor([[1., 0.],
            [0., 1.]])
    """
    with no_grad():
        model, y, residuals = _ran(params, x, "jacobian_input")
        rows = of_rows(lambda ran, grad: tree.trainable_leaves(run_backward_input(*ran, grad)), (model, residuals), _basis(y))
    return tree.with_trainable_leaves(x, [_with_axes(leaf, y) for leaf in rows])


def _ran(params: object, x: object, name: str) -> tuple[Model, Tensor, object]:
    """The model, its output, and what backward needs."""
    model = as_model(params)
    output, residuals = first_forward(model, x)
    return model, require_tensor_output(output, name), residuals


def _basis(y: Tensor) -> Tensor:
    """For each number of an output the cotangent that asks for its gradient: (numbers, *shape)."""
    return torch.eye(y.numel(), dtype=y.dtype, device=y.device).reshape(-1, *y.shape)


def _of_both(found: tuple[object, object]) -> tuple[list[Tensor], list[Tensor]]:
    return tree.trainable_leaves(found[0]), tree.trainable_leaves(found[1])


def _with_axes(leaf: Tensor, y: Tensor) -> Tensor:
    """A tensor whose first axis is that of the numbers of an output, with the output's axes in its place."""
    return leaf.reshape([*y.shape, *leaf.shape[1:]])
