"""Products of no features, and of inputs with no axes before the features, or empty ones: sizes that -1 would leave open."""

import itertools
from typing import Final

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fundl import Bilinear, Linear, LowRank, assert_trees_close, backward, forward, tree
from tests.samples import normal

LEADS: Final = [(), (4,), (0,), (2, 3), (2, 0), (0, 1, 2)]

every_size = pytest.mark.parametrize(("lead", "inputs", "outputs"), list(itertools.product(LEADS, (0, 3), (0, 2))))


def affine(layer: Linear | LowRank, x: Tensor) -> Tensor:
    y = F.linear(x, layer.weight, layer.bias)
    if isinstance(layer, Linear):
        return y
    return y + layer.scale / layer.down.shape[0] * F.linear(F.linear(x, layer.down), layer.up)


@every_size
def test_affine_maps(lead: tuple[int, ...], inputs: int, outputs: int) -> None:
    weight, bias, x = normal(outputs, inputs), normal(outputs), normal(*lead, inputs)
    for layer in (
        Linear(weight, bias),
        Linear(weight, None),
        LowRank(weight, bias, normal(2, inputs), normal(outputs, 2), scale=3.0),
    ):
        y, kept = forward(layer, x)
        grad = normal(*y.shape)
        grads, grad_x = backward(layer, kept, grad)
        leaves = [leaf.clone().requires_grad_() for leaf in tree.trainable_leaves(layer)]
        variable = x.clone().requires_grad_()
        expected = affine(tree.with_trainable_leaves(layer, leaves), variable)
        theirs = torch.autograd.grad(expected, [*leaves, variable], grad)
        assert_trees_close(
            (y, [*tree.trainable_leaves(grads), grad_x]), (expected.detach(), list(theirs)), rtol=1e-10, atol=1e-12
        )


@every_size
def test_bilinear_maps(lead: tuple[int, ...], inputs: int, outputs: int) -> None:
    layer = Bilinear(normal(outputs, inputs, 2), normal(outputs))
    x1, x2 = normal(*lead, inputs), normal(*lead, 2)
    y, kept = forward(layer, (x1, x2))
    grad = normal(*y.shape)
    grads, grads_x = backward(layer, kept, grad)
    leaves = [leaf.clone().requires_grad_() for leaf in (*tree.leaves(layer), x1, x2)]
    weight, bias, first, second = leaves
    expected = torch.einsum("...i,oij,...j->...o", first, weight, second) + bias
    theirs = torch.autograd.grad(expected, leaves, grad)
    assert_trees_close((y, [*tree.leaves(grads), *grads_x]), (expected.detach(), list(theirs)), rtol=1e-10, atol=1e-12)
