"""An embedding that is also the last layer."""

from typing import Self

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from fundl import adam, tree
from fundl.initialization import initialize
from fundl.initializers import normal as normally
from fundl.layer import Layer
from fundl.layers.activation import Tanh
from fundl.layers.dropout import Dropout, rekey
from fundl.layers.embedding import embedding
from fundl.layers.linear import linear
from fundl.layers.structure import residual
from fundl.layers.tied import Tied, tied
from fundl.losses.classification import cross_entropy
from fundl.model import apply, backward_input, backward_params, forward, output_shape, value_and_grad, vjp
from fundl.random import key, normal
from fundl.shapes import Shape

TOKENS = torch.tensor([[1, 4, 4], [0, 2, 1]])


@attrs.frozen(eq=False)
class Half(Layer[None]):
    """Half of the features, of which it says nothing beforehand."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x[..., : x.shape[-1] // 2], None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, torch.cat((grad, torch.zeros_like(grad)), -1)


def test_the_gradient_is_the_sum_of_both_uses() -> None:
    model = initialize(key(0), tied(embedding(5, 3), linear(3, 3), Tanh()))
    grad = normal(key(1), (2, 3, 5))
    weight = model.embedding.weight.clone().requires_grad_()
    first, last = weight.clone(), weight.clone()
    layer = model.layers[0]
    y = torch.tanh(F.linear(F.embedding(TOKENS, first), layer.weight, layer.bias)) @ last.t()
    assert torch.equal(apply(model, TOKENS), y.detach())
    grads, grad_x = vjp(model, TOKENS, grad)
    read, told = torch.autograd.grad(y, (first, last), grad)
    torch.testing.assert_close(grads.embedding.weight, read + told)
    assert torch.equal(grad_x, torch.zeros_like(TOKENS))
    _, residuals = forward(model, TOKENS)
    assert tree.equal(backward_params(model, residuals, grad), grads)
    assert torch.equal(backward_input(model, residuals, grad), grad_x)


def test_the_matrix_is_there_once() -> None:
    model = tied(embedding(100, 16), linear(16, 16))
    assert tree.count(model) == 100 * 16 + 16 * 16 + 16
    assert tree.trainable_paths(model) == [".embedding.weight", ".layers[0].weight", ".layers[0].bias"]


def test_padding_is_told_but_not_read() -> None:
    model = initialize(key(0), tied(embedding(5, 3, padding=0), Tanh()))
    grads, _ = vjp(model, torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2, 5))
    assert grads.embedding.padding == 0
    assert torch.equal(grads.embedding.weight, torch.zeros(5, 3))  # h is 0, too
    grads, _ = vjp(model, torch.tensor([[0, 1]]), torch.ones(1, 2, 5))
    torch.testing.assert_close(grads.embedding.weight[0], model.embedding.weight[1].tanh())


def test_it_learns() -> None:
    model = initialize(key(0), tied(embedding(6, 16, weight_init=normally(0.25)), residual(linear(16, 16), Tanh())))
    x = torch.arange(6)
    target, optimizer = (x + 1) % 6, adam(0.05)
    state = optimizer.init(model)
    for _ in range(60):
        _, grads = value_and_grad(cross_entropy, model, x, target)
        model, state = optimizer.step(grads, state, model)
    assert torch.equal(apply(model, x).argmax(-1), target)


def test_dropout_inside() -> None:
    model = rekey(initialize(key(0), tied(embedding(5, 3), Dropout(0.9))), key(1))
    assert (apply(model, TOKENS) == 0).all(-1).any()


def test_shapes_and_errors() -> None:
    assert output_shape(tied(embedding(10, 4), Tanh()), Shape(2, 3)).sizes == (2, 3, 10)
    with pytest.raises(ValueError, match=r"^Tied expects 4 features but layer 1 \(Linear\) gives 3 features$"):
        tied(embedding(10, 4), linear(4, 3))  # type: ignore[layer-misfit]  # the point
    with pytest.raises(ValueError, match=r"layer 1 \(Linear\) expects 5 features but the input has 4 features"):
        tied(embedding(10, 4), linear(5, 4))  # type: ignore[layer-misfit]  # the point
    with pytest.raises(ValueError, match=r"as many features as the embedding, 4, but their output's shape is \(2, 3, 2\)"):
        apply(initialize(key(0), Tied(embedding(10, 4), (Half(),))), TOKENS)
    with pytest.raises(TypeError, match=r"tied begins with an Embedding, such as embedding\(1000, 16\), not Linear"):
        tied(linear(3, 3), Tanh())  # type: ignore[arg-type]  # the point
    with pytest.raises(ValueError, match="at least one layer"):
        tied(embedding(10, 4))
