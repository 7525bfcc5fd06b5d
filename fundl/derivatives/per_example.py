"""The gradients of the examples of a batch, one by one."""

from typing import TypeVar, cast, overload

import torch
from torch import Tensor

from fundl import tree
from fundl._common.checks import as_model, loss_and_gradient, require_gradient, require_loss
from fundl._common.modes import no_grad
from fundl._common.running import Pass
from fundl._common.tape import refuse_tape
from fundl.data import count_rows
from fundl.derivatives._rows import of_rows
from fundl.derivatives._squares import of_squares
from fundl.layer import Loss, Model, P, Prediction, Target
from fundl.layers.batch_norm import BatchNorm
from fundl.layers.dropout import has_keys
from fundl.model import Differentiable
from fundl.runs import each

Grads = TypeVar("Grads")
X = TypeVar("X")
Y = TypeVar("Y")


@overload
def per_example_grads(
    loss: Loss[Y, Target], params: Differentiable[Grads, X, Y], x: X, target: Target
) -> tuple[Tensor, Grads]: ...
@overload
def per_example_grads(loss: Loss[Tensor, Target], params: P, x: Tensor, target: Target) -> tuple[Tensor, P]: ...
def per_example_grads(loss: Loss[Prediction, Target], params: object, x: object, target: Target) -> tuple[Tensor, object]:
    """The loss of each example of a batch, and its gradient with respect to the parameters.

        values[i], grads[i] = value_and_grad(loss, params, x[i : i + 1], target[i : i + 1])

    All examples are computed at once. The gradients take the memory of the parameters times the batch; `per_example_norms`
    gives their norms without.

    Args:
        loss: as `value_and_grad` takes it; it sees batches of one example.
        params: a layer or a nested tuple of layers. A layer that has a key draws the same for all examples.
        x: the batch: a tensor, or a tree, of examples along the first axis.
        target: likewise.

    Returns:
        The values, (B,), and a tree of the model's type, whose trainable tensors have a first axis of B. Buffers have none.

    Raises:
        ValueError: x and target differ in their number of examples, or a BatchNorm mixes them.

    >>> import torch
    >>> from fundl import Linear, mse, per_example_grads
    >>> layer = Linear(weight=torch.tensor([[1.0, 2.0]]), bias=None)
    >>> values, grads = per_example_grads(mse, layer, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1))
    >>> values, grads.weight
    (tensor([1., 4.]), tensor([[[2., 0.]],
    <BLANKLINE>
            [[0., 4.]]]))
    """
    model = as_model(params)
    require_loss(loss)
    require_examples(model, x, target, "per_example_grads")

    def of_one(its_model: Model, example: tuple[object, Target]) -> tuple[Tensor, list[Tensor]]:
        row, its_target = tree.map(_row, example)
        ran = Pass(its_model, row)
        value = ran.differentiate(loss, cast("Prediction", ran.output), its_target)
        return value, tree.trainable_leaves(ran.backward_params())

    with no_grad():
        values, grads = of_rows(of_one, model, (x, target))
    return values, tree.with_trainable_leaves(model, grads)


def _row(leaf: Tensor) -> Tensor:
    return leaf.unsqueeze(0)


def require_examples(model: object, x: object, target: object, name: str) -> int:
    """How many examples there are, none of which depends on another."""
    refuse_tape(model, x, target)
    examples, targets = count_rows(x), count_rows(target)
    if examples != targets:
        raise ValueError(f"{name}: x is of {examples} examples, but the target of {targets}")
    for record in tree.records(model):
        if isinstance(record, BatchNorm) and record.mean is None:
            raise ValueError(
                f"{name}: BatchNorm normalises by the statistics of the whole batch, so no example has a gradient of its own:"
                " give it statistics, by calibrate(model, batches), or take GroupNorm"
            )
    return examples


def per_example_norms(loss: Loss[Prediction, Target], params: Model, x: object, target: Target) -> Tensor:
    """The norm of the gradient of each example of a batch, over all parameters.

        norms[i] = sqrt(sum of squares of grads[i]),    grads of `per_example_grads`

    Of linear maps and embeddings the gradients themselves are never made: their norms come of the products of what goes in,
    and of what comes back. Of any other layer they are made, one layer at a time. It takes one pass over the model for all.

    Args:
        loss: as `value_and_grad` takes it; it sees batches of one example.
        params: a layer or a nested tuple of layers, without keys: each example is for itself.
        x: the batch: a tensor, or a tree, of examples along the first axis.
        target: likewise.

    Returns:
        (B,), in float32 at least.

    Raises:
        ValueError: x and target differ in their number of examples, a BatchNorm mixes them, or a layer has a key.

    Source:
        Goodfellow, Efficient per-example gradient computations, 2015.

    Clipped to a norm of 1 each, as for training with privacy:

    >>> import torch
    >>> from fundl import Linear, mse, per_example_norms
    >>> layer = Linear(weight=torch.tensor([[1.0, 2.0]]), bias=None)
    >>> norms = per_example_norms(mse, layer, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1))
    >>> norms, (1 / norms).clamp(max=1)
    (tensor([2., 4.]), tensor([0.5000, 0.2500]))
    """
    model = as_model(params)
    require_loss(loss)
    examples = require_examples(model, x, target, "per_example_norms")
    if has_keys(model):
        raise ValueError(
            "per_example_norms: a layer has a key, and draws for the batch as a whole: take the model as it is kept, without"
        )
    with no_grad():
        ran = Pass(of_squares(model), x)
        ran.grad = each(lambda prediction, its: _grad_of_one(loss, prediction, its))(ran.output, target)
        found = tree.trainable_leaves(ran.backward_params())
        if not found:
            return torch.zeros(examples)
        return torch.stack(found).sum(0).sqrt()


def _grad_of_one(loss: Loss[Prediction, Target], prediction: object, target: Target) -> object:
    """The gradient of the loss of one example with respect to what is predicted for it."""
    row = cast("Prediction", tree.map(_row, prediction))  # the loss says what it is for
    _, grad = loss_and_gradient(loss, row, tree.map(_row, target))
    require_gradient(grad, row, loss)
    return tree.map(_first, grad)


def _first(leaf: Tensor) -> Tensor:
    return leaf[0]
