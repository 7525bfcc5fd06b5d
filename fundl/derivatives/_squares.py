"""For each example of a batch, the sum of squares of its gradient, without the gradient itself where that can be had.

For y = x W^T with x (T, in) and grad (T, out), the gradient of W is grad^T x, and the sum of its squares is

    sum over t, s of (x x^T)[t, s] (grad grad^T)[t, s]

which needs T^2 numbers in place of in times out (Goodfellow, Efficient per-example gradient computations, 2015; Li et al.,
Large language models can be strong differentially private learners, 2022). An embedding is such a layer whose x are rows of
zeros with a 1: x x^T tells which tokens are the same.
"""

from typing import Final, Self, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.half import widened
from fundl._common.running import named_as, run_backward_input, run_backward_params, run_forward
from fundl.derivatives._rows import of_rows
from fundl.layer import AnyLayer, Layer, Model
from fundl.layers.embedding import Embedding
from fundl.layers.fork import Fork
from fundl.layers.linear import Linear
from fundl.layers.pairs import Both, Pipe
from fundl.layers.structure import Checkpoint, Parallel, Residual
from fundl.tree import BUFFER

_AROUND: Final = (Both, Checkpoint, Fork, Parallel, Pipe, Residual)
"""Layers that hand each row on to models inside, and whose gradients are those of the models, side by side."""


def of_squares(model: Model) -> Model:
    """The model whose gradient holds, in the place of each layer's, its sums of squares: one for each example."""
    if isinstance(model, tuple):
        return named_as(model, [of_squares(part) for part in model])
    if not tree.trainable_leaves(model):
        return model
    if isinstance(model, _AROUND):
        inside = [of_squares(cast("Model", getattr(model, name))) for name in model.children]
        return cast("AnyLayer", model._with_children(*inside))
    return _Squares(tree.trainable_leaves(model)[0], model)


@final
@attrs.frozen(eq=False)
class _Squares(Layer[tuple[object, object], object, object]):
    """A layer whose gradient with respect to the parameters is (B,): the sums of squares of that of each example."""

    takes_integers = True  # if the layer does

    squares: Tensor  # has the gradient's place; its own numbers are of no use
    layer: AnyLayer = attrs.field(metadata=BUFFER)

    @override
    def forward(self, x: object) -> tuple[object, tuple[object, object]]:
        y, residuals = run_forward(self.layer, x)
        return y, (residuals, x)

    @override
    def backward_params(self, residuals: tuple[object, object], grad: object) -> Self:
        x = residuals[1]
        if isinstance(self.layer, Linear) and isinstance(x, Tensor) and isinstance(grad, Tensor):
            return self.gradient(_of_linear(self.layer, widened(x), widened(grad)))
        if isinstance(self.layer, Embedding) and isinstance(x, Tensor) and isinstance(grad, Tensor):
            return self.gradient(_of_embedding(self.layer, x, widened(grad)))
        return self.gradient(of_rows(_of_one, self.layer, (x, grad)))

    @override
    def backward_input(self, residuals: tuple[object, object], grad: object) -> object:
        return run_backward_input(self.layer, residuals[0], grad)


def _of_one(layer: AnyLayer, example: tuple[object, object]) -> Tensor:
    """The sum of squares for an example, from its gradient."""
    x, grad = tree.map(_row, example)
    _, residuals = run_forward(layer, x)
    found = tree.trainable_leaves(run_backward_params(layer, residuals, grad))
    return torch.stack([widened(leaf).square().sum() for leaf in found if leaf.is_floating_point()]).sum()


def _row(leaf: Tensor) -> Tensor:
    return leaf.unsqueeze(0)


def _of_linear(layer: Linear, x: Tensor, grad: Tensor) -> Tensor:
    rows, grads = _in_rows(x), _in_rows(grad)
    steps, inputs, outputs = rows.shape[1], rows.shape[2], grads.shape[2]
    if steps * (inputs + outputs) < inputs * outputs:
        squares = (torch.bmm(rows, rows.mT) * torch.bmm(grads, grads.mT)).sum((1, 2))
    else:  # so many positions that the gradient itself is the less work
        squares = torch.bmm(grads.mT, rows).square().sum((1, 2))
    return squares if layer.bias is None else squares + grads.sum(1).square().sum(1)


def _of_embedding(layer: Embedding, tokens: Tensor, grad: Tensor) -> Tensor:
    tokens, grads = tokens.reshape(len(tokens), -1), _in_rows(grad)
    if layer.padding is not None:
        grads = grads.masked_fill((tokens == layer.padding).unsqueeze(2), 0)
    same = tokens.unsqueeze(1) == tokens.unsqueeze(2)
    return torch.where(same, torch.bmm(grads, grads.mT), 0).sum((1, 2))


def _in_rows(x: Tensor) -> Tensor:
    """(B, ..., features) as (B, T, features)."""
    return x.reshape(x.shape[0], -1, x.shape[-1])
