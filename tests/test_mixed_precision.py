"""Computing in few bits, and scaling the loss."""

import math
from typing import TypeVar, assert_type

import pytest
import torch
from torch import Tensor

from fundl import (
    Transform,
    accumulate,
    adam,
    chain,
    clip_by_global_norm,
    dynamic_loss_scale,
    ensemble,
    scale,
    scale_loss,
    sgd,
    tree,
)
from fundl.data import disk, one_hot
from fundl.initialization import initialize
from fundl.layers.activation import ReLU, Tanh
from fundl.layers.dropout import Dropout, rekey
from fundl.layers.embedding import embedding
from fundl.layers.frozen import frozen
from fundl.layers.linear import Linear, linear
from fundl.layers.mixed_precision import MixedPrecision, mixed_precision
from fundl.layers.normalization import layer_norm
from fundl.layers.repeated import repeat
from fundl.layers.structure import residual
from fundl.losses.regression import mse
from fundl.metrics.decisions import accuracy
from fundl.model import apply, backward_input, forward, value_and_grad, vjp
from fundl.random import key, normal, split
from fundl.training.step import train_state, train_step

S = TypeVar("S")

X = normal(key(9), (8, 3))


def dtypes(values: object) -> set[torch.dtype]:
    return {leaf.dtype for leaf in tree.leaves(values)}


# --- Mixed precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
def test_it_computes_in_few_bits_and_keeps_many(compute: torch.dtype) -> None:
    model = initialize(key(0), mixed_precision(linear(3, 4), layer_norm(4), Tanh(), linear(4, 2), compute=compute))
    y, residuals = forward(model, X)
    assert y.dtype == torch.float32
    assert torch.equal(y, apply(tree.cast_to(model.layers, compute), X.to(compute)).float())
    assert compute in dtypes(residuals)
    assert torch.float64 not in dtypes(residuals)
    grads, grad_x = vjp(model, X, torch.ones_like(y))
    assert_type(grads.layers[2], Tanh)
    assert dtypes(grads) == {torch.float32}
    assert grad_x.dtype == torch.float32
    exact, exact_x = vjp(model.layers, X, torch.ones_like(y))
    for got, wanted in zip(tree.leaves((grads.layers, grad_x)), tree.leaves((exact, exact_x)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0.1, atol=0.1)
    assert not torch.equal(grad_x, exact_x)
    assert backward_input(model, residuals, torch.ones_like(y)).dtype == torch.float32


def test_the_output_is_of_the_dtype_that_is_asked_for() -> None:
    model = initialize(key(0), mixed_precision(linear(3, 2)))
    assert apply(model, X.to(torch.bfloat16)).dtype == torch.bfloat16
    assert apply(initialize(key(0), mixed_precision(linear(3, 2), output=torch.float64)), X).dtype == torch.float64
    tokens = initialize(key(0), mixed_precision(embedding(5, 3), Tanh()))
    y, grad = apply(tokens, torch.tensor([[1, 4]])), torch.ones(1, 2, 3)
    assert y.dtype == torch.float32
    grads, grad_x = vjp(tokens, torch.tensor([[1, 4]]), grad)
    assert dtypes(grads) == {torch.float32}
    assert torch.equal(grad_x, torch.zeros(1, 2, dtype=torch.int64))
    assert apply(mixed_precision(Tanh()), X).dtype == torch.float32


def test_what_is_inside_may_compute_in_many_bits() -> None:
    precise = mixed_precision(layer_norm(4), compute=torch.float32)
    model = initialize(key(0), mixed_precision(linear(3, 4), residual(precise), linear(4, 2)))
    seen = model.layers[1].layers[0]
    y, residuals = forward(model, X)
    hidden = apply(tree.cast_to(model.layers[0], torch.bfloat16), X.to(torch.bfloat16))
    normed = hidden + apply(seen.layers[0], hidden.float()).to(torch.bfloat16)
    assert torch.equal(y, apply(tree.cast_to(model.layers[2], torch.bfloat16), normed).float())
    grads, _ = vjp(model, X, torch.ones_like(y))
    assert dtypes(grads) == {torch.float32}
    assert tree.flatten(residuals)[0]


def test_parameters_inside_another_are_not_rounded() -> None:
    third = Linear(torch.full((3, 3), 1 / 3), None)
    model = mixed_precision(Tanh(), mixed_precision(third, compute=torch.float32, output=torch.float32), output=torch.float32)
    x = torch.zeros(1, 3).fill_(0.5)
    assert torch.equal(apply(model, x), apply(third, x.to(torch.bfloat16).tanh().float()))


def test_buffers_are_cast_for_the_run_and_handed_back_as_they_are() -> None:
    model = initialize(key(0), mixed_precision(frozen(linear(3, 3)), Dropout(0.5), linear(3, 2)))
    keyed = rekey(model, key(1))
    grads, _ = vjp(keyed, X, torch.ones(8, 2))
    assert grads.layers[0] is keyed.layers[0]
    assert grads.layers[1].key is keyed.layers[1].key


def test_repeated_blocks_in_few_bits() -> None:
    model = initialize(key(0), repeat(2, mixed_precision(residual(linear(3, 3)))))
    assert apply(model, X).dtype == torch.float32
    around = initialize(key(0), mixed_precision(repeat(2, residual(linear(3, 3)))))
    grads, _ = vjp(around, X, X)
    assert dtypes(grads) == {torch.float32}


def test_only_floating_point_dtypes_are_accepted() -> None:
    with pytest.raises(TypeError, match=r"compute must be a floating-point dtype.*not torch\.int32"):
        mixed_precision(Tanh(), compute=torch.int32)
    with pytest.raises(TypeError, match=r"mixed_precision's output must be a floating-point dtype"):
        MixedPrecision((Tanh(),), output=torch.int64)
    with pytest.raises(ValueError, match="at least one layer"):
        mixed_precision()


# --- Training ----------------------------------------------------------------------------------------------------------


def points() -> tuple[Tensor, Tensor]:
    x, labels = disk(key(1), 1000)
    return x - 0.5, one_hot(labels, 2)


def accuracy_of(compute: torch.dtype, optimizer: Transform[S]) -> float:
    """What a small network reaches on the disk."""
    model = initialize(key(0), mixed_precision(linear(2, 25), ReLU(), linear(25, 25), ReLU(), linear(25, 2), compute=compute))
    x, target = points()
    state = train_state(key(2), model, optimizer)
    step = train_step(mse, optimizer)
    for _ in range(150):
        state, _ = step(state, (x, target))
    assert dtypes(state.model) == {torch.float32}
    return float(accuracy(apply(state.model, x), target))


def test_the_disk_is_learned_in_few_bits() -> None:
    assert accuracy_of(torch.bfloat16, adam(1e-2)) > 0.95
    assert accuracy_of(torch.float16, dynamic_loss_scale(adam(1e-2), every=20)) > 0.95


# --- The scale of the loss ---------------------------------------------------------------------------------------------


def test_a_scaled_loss_has_its_value_and_a_scaled_gradient() -> None:
    prediction, target = torch.tensor([1.0, 3.0]), torch.zeros(2)
    value, grad = mse(prediction, target)
    for factor in (8.0, torch.tensor(8.0)):
        scaled_value, scaled = scale_loss(mse, factor)(prediction, target)
        assert torch.equal(scaled_value, value)
        assert torch.equal(scaled, 8 * grad)
    model = initialize(key(0), linear(3, 2))
    optimizer, scaled_optimizer = sgd(0.5), chain(scale(1 / 1024), sgd(0.5))
    y = torch.zeros(8, 2)
    _, grads = value_and_grad(mse, model, X, y)
    _, more = value_and_grad(scale_loss(mse, 1024.0), model, X, y)
    plain, _ = optimizer.step(grads, optimizer.init(model), model)
    scaled_model, _ = scaled_optimizer.step(more, scaled_optimizer.init(model), model)
    assert tree.equal(plain, scaled_model)


def test_an_overflow_skips_the_step_and_halves_the_scale() -> None:
    model = initialize(key(0), mixed_precision(linear(3, 2), compute=torch.float16))
    optimizer = dynamic_loss_scale(adam(1e-2), initial=2.0**10, every=3)
    step = train_step(mse, optimizer)
    state = train_state(key(1), model, optimizer)
    target = normal(key(2), (8, 2))

    good, _ = step(state, (X, target))
    assert tree.leaves(good.optimizer)[0] == 2.0**10
    assert not tree.equal(good.model, state.model)
    bad, report = step(good, (X, target * 1e6))  # its gradient is no number of float16
    assert math.isfinite(float(report.loss))
    assert tree.equal(bad.model, good.model)
    assert tree.equal(bad.optimizer.inner.inner, good.optimizer.inner.inner)
    assert float(bad.optimizer.inner.scale) == 2.0**9
    assert int(bad.optimizer.inner.good_steps) == 0
    assert int(bad.step) == 2
    for _ in range(3):
        bad, _ = step(bad, (X, target))
    assert float(bad.optimizer.inner.scale) == 2.0**10
    assert int(bad.optimizer.inner.good_steps) == 0


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_changes_nothing(wrong: float) -> None:
    optimizer = dynamic_loss_scale(chain(clip_by_global_norm(1.0), adam(0.1)), initial=4.0)
    params = (torch.ones(2), torch.ones(3))
    state = optimizer.init(params)
    params, state = optimizer.step((torch.ones(2), torch.ones(3)), state, params)
    grads = (torch.ones(2), torch.tensor([0.0, wrong, 1.0]))
    updates, _ = optimizer.update(grads, state, params)
    assert tree.equal(updates, (torch.zeros(2), torch.zeros(3)))
    after, state_after = optimizer.step(grads, state, params)
    assert tree.equal(after, params)
    assert tree.equal(state_after.inner.inner, state.inner.inner)
    assert float(state_after.inner.scale) == 2.0


def test_the_scale_has_bounds() -> None:
    optimizer = dynamic_loss_scale(sgd(0.1), initial=2.0, every=1)
    params = torch.ones(1)
    state = optimizer.init(params)
    for _ in range(3):
        params, state = optimizer.step(torch.tensor([math.nan]), state, params)
    assert float(state.inner.scale) == 1.0
    for _ in range(30):
        params, state = optimizer.step(torch.tensor([0.0]), state, params)
    assert float(state.inner.scale) == 2.0**24


def test_micro_batches_share_a_scale() -> None:
    optimizer = accumulate(dynamic_loss_scale(sgd(1.0), initial=4.0, every=1), 2)
    params = torch.zeros(1)
    state = optimizer.init(params)
    scales = []
    for _ in range(3):
        scale_now = optimizer.loss_scale(state.inner)
        assert scale_now is not None
        scales.append(float(scale_now))
        params, state = optimizer.step(scale_now * torch.ones(1), state, params)
    assert scales == [4.0, 4.0, 8.0]
    assert torch.equal(params, torch.tensor([-1.0]))


def test_each_run_of_an_ensemble_has_its_own_scale() -> None:
    model = mixed_precision(linear(3, 2), compute=torch.float16)
    models = ensemble.initialize(split(key(0), 2), model)
    optimizer = dynamic_loss_scale(sgd(0.1), initial=2.0**10)
    state = ensemble.train_state(split(key(1), 2), models, optimizer)
    step = ensemble.train_step(mse, optimizer)
    targets = torch.stack((torch.zeros(8, 2), torch.full((8, 2), 1e7)))
    after, _ = step(state, (ensemble.share(X, 2), targets))
    assert after.optimizer.inner.scale.tolist() == [2.0**10, 2.0**9]
    assert tree.equal(ensemble.unstack(after.model)[1], ensemble.unstack(models)[1])
    assert not tree.equal(ensemble.unstack(after.model)[0], ensemble.unstack(models)[0])


def test_options_of_the_scale_are_checked() -> None:
    with pytest.raises(ValueError, match="initial must be a finite number above 0"):
        dynamic_loss_scale(sgd(0.1), initial=0.0)
    with pytest.raises(ValueError, match=r"not growth=0\.5 and backoff=0\.5"):
        dynamic_loss_scale(sgd(0.1), growth=0.5)
    with pytest.raises(ValueError, match=r"not growth=2\.0 and backoff=1\.0"):
        dynamic_loss_scale(sgd(0.1), backoff=1.0)
    with pytest.raises(ValueError, match="every must be 1 or more"):
        dynamic_loss_scale(sgd(0.1), every=0)
    with pytest.raises(ValueError, match="dynamic_loss_scale is the outermost of all transforms"):
        chain(dynamic_loss_scale(sgd(0.1)), scale(1.0))
