"""One input for several models, whose outputs are a tuple."""

from typing import assert_type

import pytest
import torch
from torch import Tensor

from fundl import (
    Concatenate,
    Dropout,
    Duplicate,
    Fork,
    Tanh,
    adam,
    apply,
    backward_input,
    backward_params,
    compose,
    embedding,
    fork,
    forward,
    initialize,
    key,
    linear,
    mse,
    parallel,
    pipe,
    random,
    rekey,
    train_state,
    train_step,
    tree,
    vjp,
)

X = random.normal(key(1), (8, 3))


def test_branches_see_one_input_and_their_gradients_are_added() -> None:
    layer = initialize(key(0), fork((linear(3, 4), Tanh()), linear(3, 2)))
    y, residuals = forward(layer, X)
    assert_type(y, tuple[Tensor, Tensor])
    first, second = layer.branches
    assert torch.equal(y[0], apply(first, X))
    assert torch.equal(y[1], apply(second, X))
    grad = torch.ones(8, 4), torch.ones(8, 2)
    grads, grad_x = vjp(layer, X, grad)
    of_first, of_second = vjp(first, X, grad[0]), vjp(second, X, grad[1])
    assert tree.equal(grads.branches, (of_first[0], of_second[0]))
    assert torch.equal(grad_x, of_first[1] + of_second[1])
    assert tree.equal(backward_params(layer, residuals, grad), grads)
    assert torch.equal(backward_input(layer, residuals, grad), grad_x)


def test_a_fork_that_is_concatenated_is_parallel() -> None:
    model = initialize(key(0), pipe(fork(linear(3, 4), linear(3, 2)), Concatenate()))
    joined = parallel(*model.layers[0].branches, join="concatenate")
    assert torch.equal(apply(model, X), apply(joined, X))


def test_heads_are_trained() -> None:
    model = initialize(key(0), compose(linear(3, 8), Tanh(), fork(linear(8, 1), linear(8, 1), linear(8, 1))))
    targets = tuple(X[:, place : place + 1] for place in range(3))

    def loss(prediction: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        values, grads = zip(*map(mse, prediction, target), strict=True)
        return torch.stack(values).sum(), grads

    optimizer = adam(0.05)
    step, state = train_step(loss, optimizer), train_state(key(1), model, optimizer)
    losses = []
    for _ in range(100):
        state, report = step(state, (X, targets))
        losses.append(float(report.loss))
    assert losses[-1] < 0.1 * losses[0]


def test_dropout_in_branches_has_keys_of_its_own() -> None:
    y1, y2 = apply(rekey(fork(Dropout(0.5), Dropout(0.5)), key(0)), torch.ones(64))
    assert not torch.equal(y1, y2)


def test_tokens_go_both_ways() -> None:
    layer = initialize(key(0), fork(embedding(5, 3), embedding(5, 2)))
    assert_type(layer.branches[0].weight, Tensor)
    grads, grad_x = vjp(layer, torch.tensor([1, 4]), (torch.ones(2, 3), torch.ones(2, 2)))
    assert isinstance(grads, Fork)
    assert grad_x.tolist() == [0, 0]


def test_errors_tell_the_branch() -> None:
    layer = initialize(key(0), fork(Tanh(), (Tanh(), linear(3, 1))))
    with pytest.raises(ValueError, match="Linear expects 3 features") as info:
        apply(layer, torch.ones(2, 4))
    assert ".branches[1][1]" in info.value.__notes__[-1]
    with pytest.raises(ValueError, match=r"layer 2\.2 \(Linear\) expects 4 features but layer 1 \(Linear\) gives 3"):
        compose(linear(2, 3), fork(Tanh(), linear(4, 1)))  # type: ignore[layer-misfit]  # the point
    with pytest.raises(TypeError, match="the layers inside must give a tensor"):
        apply(fork(Duplicate(), Tanh()), X)
