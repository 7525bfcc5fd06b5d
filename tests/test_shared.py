"""One model on two inputs."""

from typing import TypeAlias, assert_type

import pytest
import torch
from torch import Tensor

from fundl import (
    Add,
    BatchNorm,
    Dropout,
    Duplicate,
    Identity,
    Linear,
    Multiply,
    Pipe,
    Shared,
    Tanh,
    adam,
    apply,
    backward_input,
    backward_params,
    batch_norm,
    both,
    calibrate,
    check_vjp,
    checkpoint,
    compose,
    embedding,
    forward,
    frozen,
    initialize,
    key,
    linear,
    mse,
    pipe,
    random,
    rekey,
    shared,
    track,
    tree,
    value_and_grad,
    vjp,
    without_statistics,
)
from fundl.layers.shared import KeptOfBoth

X1, X2 = random.normal(key(1), (8, 3)), random.normal(key(2), (8, 3)) * 3 + 1


Siamese: TypeAlias = Pipe[tuple[Tensor, Tensor], Tensor, Shared[Linear, Tanh], Multiply, Linear]


def siamese() -> Siamese:
    return initialize(key(0), pipe(shared(linear(3, 8), Tanh()), Multiply(), linear(8, 1)))


def test_its_gradient_is_the_sum_over_both_uses() -> None:
    layer = initialize(key(0), shared((linear(3, 4), Tanh()), linear(4, 5)))
    (y1, y2), residuals = forward(layer, (X1, X2))
    assert torch.equal(y1, apply(layer.layers, X1))
    assert torch.equal(y2, apply(layer.layers, X2))
    grad = random.normal(key(3), (8, 5)), random.normal(key(4), (8, 5))
    grads, grad_x = vjp(layer, (X1, X2), grad)
    (one, grad_x1), (other, grad_x2) = vjp(layer.layers, X1, grad[0]), vjp(layer.layers, X2, grad[1])
    assert tree.equal(grads.layers, tree.map(torch.add, one, other))
    assert tree.equal(grad_x, (grad_x1, grad_x2))
    assert tree.equal(backward_params(layer, residuals, grad), grads)
    assert tree.equal(backward_input(layer, residuals, grad), grad_x)


def test_a_siamese_network_learns_as_one_model() -> None:
    """What it learns of pairs is symmetric: the product of two embeddings by one model."""
    model = siamese()
    target = (X1.sum(1) * X2.sum(1)).tanh().unsqueeze(1)
    optimizer = adam(0.05)
    state = optimizer.init(model)
    first, _ = value_and_grad(mse, model, (X1, X2), target)
    for _ in range(100):
        _, grads = value_and_grad(mse, model, (X1, X2), target)
        assert_type(grads.layers[0], Shared[Linear, Tanh])
        model, state = optimizer.step(grads, state, model)
    last, _ = value_and_grad(mse, model, (X1, X2), target)
    assert float(last) < 0.1 * float(first)
    assert torch.equal(apply(model, (X1, X2)), apply(model, (X2, X1)))
    assert tree.count(model) == 3 * 8 + 8 + 8 + 1


def test_two_models_with_a_parameter_in_common_are_refused() -> None:
    f = initialize(key(0), linear(3, 4))
    message = (
        r"the models of both\(f, g\) have a parameter in common, g\[0\].weight, of which each would train a copy of its own:"
        r" shared\(f\) is one model for both inputs, pipe\(shared\(f\), both\(g, h\)\) begins with one; for two models that"
        r" begin alike, make the second of copies, tree.map\(torch.clone, f\)"
    )
    with pytest.raises(ValueError, match=message):
        both(f, (f, Tanh()))
    with pytest.raises(ValueError, match=r"in common, g.weight"):
        both(f, f)
    assert tree.count(both(f, tree.map(torch.clone, f))) == 2 * tree.count(f)
    tanh = Tanh()
    assert both(tanh, tanh).first is tanh
    assert both(frozen(f), frozen(f)).second.layers == (f,)


def test_it_runs_on_tokens_and_inside_other_layers() -> None:
    layer = initialize(key(0), shared(embedding(5, 3), checkpoint(linear(3, 2), Tanh())), dtype=torch.float64)
    x = torch.tensor([1, 4]), torch.tensor([[0, 1, 2]])
    assert [tuple(y.shape) for y in apply(layer, x)] == [(2, 2), (1, 3, 2)]
    check_vjp(layer, x)
    check_vjp(initialize(key(0), shared(frozen(linear(3, 2)), linear(2, 2)), dtype=torch.float64), (X1.double(), X2.double()))


def test_dropout_drops_the_same_of_both() -> None:
    y1, y2 = apply(rekey(shared(Dropout(0.5)), key(0)), (torch.ones(64), torch.ones(64)))
    assert torch.equal(y1, y2)
    assert {0.0, 2.0} == {*y1.tolist()}


def test_statistics_follow_both_inputs_as_one_batch() -> None:
    model = initialize(key(0), shared(linear(3, 4), batch_norm(4), Tanh(), checkpoint(batch_norm(4))))
    seen = apply(model.layers[0], torch.cat((X1, X2)))
    tracked = track(model, forward(model, (X1, X2))[1], momentum=1.0)
    found = tracked.layers[1]
    assert found.mean is not None
    assert found.var is not None
    torch.testing.assert_close(found.mean, seen.mean(0))
    torch.testing.assert_close(found.var, seen.var(0))
    assert tracked.layers[3].layers[0].mean is not None
    assert tree.equal(without_statistics(tracked), model)


def test_calibration_sees_both_inputs() -> None:
    twice = Linear(2 * torch.eye(3), None)
    model = calibrate(compose(Duplicate(), both(Identity(), twice), shared(BatchNorm()), Add()), [X1[:5], X1[5:]])
    found, seen = model[2].layers[0], torch.cat((X1, 2 * X1))
    assert found.mean is not None
    assert found.var is not None
    torch.testing.assert_close(found.mean, seen.mean(0))
    torch.testing.assert_close(found.var, seen.var(0, correction=0))


@pytest.mark.parametrize("rows", [(8, 2), (8, 0), (0, 8)], ids=str)
def test_statistics_weigh_inputs_by_their_sizes(rows: tuple[int, int]) -> None:
    x, layer = (X1[: rows[0]], X2[: rows[1]]), shared(BatchNorm())
    found, every = track(layer, forward(layer, x)[1], momentum=1.0).layers[0], torch.cat(x)
    assert found.mean is not None
    assert found.var is not None
    torch.testing.assert_close(found.mean, every.mean(0))
    torch.testing.assert_close(found.var, every.var(0))


def test_its_residuals_are_a_tree() -> None:
    _, residuals = forward(siamese().layers[0], (X1, X2))
    assert isinstance(residuals, KeptOfBoth)
    assert len(tree.leaves(residuals)) == 4
    assert tree.equal(tree.map(lambda leaf: leaf, residuals), residuals)
