"""Layers whose weight is divided by its largest singular value."""

import re

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fundl import (
    SpectralNorm,
    apply,
    apply_updates,
    assert_trees_close,
    compose,
    conv2d,
    conv_transpose2d,
    ensemble,
    frozen,
    initialize,
    key,
    linear,
    mse,
    refine,
    sgd,
    spectral_norm,
    split,
    train_state,
    train_step,
    tree,
    value_and_grad,
    vjp,
)
from tests.samples import normal, with_values


def sigma_of(weight: Tensor, axis: int = 0) -> Tensor:
    sigma: Tensor = torch.linalg.matrix_norm(weight.movedim(axis, 0).flatten(1), 2)
    return sigma


@pytest.mark.parametrize("axis", [0, 1])
def test_steps_are_torchs(axis: int) -> None:
    """Output, gradients and vectors over steps of training: torch advances the vectors before each use, and not after it."""
    module: nn.Module = nn.Linear(3, 4, dtype=torch.float64)
    parametrizations.spectral_norm(module, n_power_iterations=2, dim=axis)
    bias, weight = module.parameters()
    left, right = module.buffers()
    x, target = normal(5, 3), normal(5, 4)
    optimizer = sgd(0.1)
    layer = spectral_norm(with_values(linear(3, 4)), axis=axis, iterations=2)
    layer = attrs.evolve(layer, layer=attrs.evolve(layer.layer, weight=weight.detach().clone(), bias=bias.detach().clone()))
    layer = refine(attrs.evolve(layer, left=left.clone(), right=right.clone()))
    state = optimizer.init(layer)
    for _ in range(5):
        output: Tensor = module(x)
        loss = (output - target).square().mean()
        expected = torch.autograd.grad(loss, [weight, bias])
        value, grads = value_and_grad(mse, layer, x, target)
        assert_trees_close(value, loss.detach(), rtol=1e-10, atol=1e-12)
        assert_trees_close([grads.layer.weight, grads.layer.bias], list(expected), rtol=1e-10, atol=1e-12)
        assert_trees_close([layer.left, layer.right], [left, right], rtol=1e-10, atol=1e-12)
        updates, state = optimizer.update(grads, state, layer)
        layer = refine(apply_updates(layer, updates))
        with torch.no_grad():
            for parameter, grad in zip((weight, bias), expected, strict=True):
                parameter.sub_(0.1 * grad)


def test_the_largest_singular_value_is_one() -> None:
    layers = (
        spectral_norm(linear(8, 5)),
        spectral_norm(linear(5, 8), axis=1),
        spectral_norm(conv2d(3, 4, 3)),
        spectral_norm(conv_transpose2d(3, 4, 3), axis=1),
    )
    for layer in layers:
        drawn = refine(initialize(key(3), layer, dtype=torch.float64), iterations=300)
        assert isinstance(drawn, SpectralNorm)
        weight: Tensor = drawn.layer.weight
        x = torch.ones(1, 3, 6, 6, dtype=torch.float64) if weight.ndim > 2 else normal(2, weight.shape[1])
        _, (_, (w, sigma)) = drawn.forward(x)
        torch.testing.assert_close(sigma, sigma_of(weight, drawn.axis), rtol=1e-6, atol=0)
        torch.testing.assert_close(sigma_of(w, drawn.axis), torch.ones((), dtype=torch.float64), rtol=1e-6, atol=0)


def test_initialising_again_is_the_reset() -> None:
    model = compose(linear(2, 3), spectral_norm(linear(3, 4)))
    once = initialize(key(0), model)
    assert tree.equal(initialize(key(0), tree.map(lambda leaf: leaf + 1, once)), once)
    assert not tree.equal(initialize(key(1), once), once)
    assert all(leaf.is_meta for leaf in tree.leaves(initialize(key(0), model, device="meta")))
    kept = initialize(key(0), frozen(spectral_norm(linear(3, 4))))
    assert tree.equal(initialize(key(1), kept), kept)


def test_a_step_of_training_refines() -> None:
    model = initialize(key(0), compose(linear(2, 3), spectral_norm(linear(3, 4))), dtype=torch.float64)
    optimizer = sgd(0.5)
    state = train_state(key(1), model, optimizer)
    batch = normal(5, 2), normal(5, 4)
    after, _ = train_step(mse, optimizer)(state, batch)
    _, grads = value_and_grad(mse, model, *batch)
    updates, _ = optimizer.update(grads, optimizer.init(model), model)
    by_hand = refine(apply_updates(model, updates))
    assert tree.equal(after.model, by_hand)
    assert not torch.equal(after.model[1].left, model[1].left)
    donated, _ = train_step(mse, optimizer, donate=True)(tree.map(torch.clone, state), batch)
    assert tree.equal(donated, after)


def test_runs_of_an_ensemble_are_refined() -> None:
    models = ensemble.initialize(split(key(0), 3), spectral_norm(linear(2, 4)))
    optimizer = sgd(0.5)
    x, y = normal(5, 2).float(), normal(5, 4).float()
    state = ensemble.train_state(split(key(1), 3), models, optimizer)
    after, _ = ensemble.train_step(mse, optimizer)(state, (x.expand(3, 5, 2), y.expand(3, 5, 4)))
    for index, model in enumerate(ensemble.unstack(models)):
        one = train_state(split(key(1), 3)[index], model, optimizer)
        alone, _ = train_step(mse, optimizer)(one, (x, y))
        assert_trees_close(ensemble.unstack(after.model)[index], alone.model, rtol=1e-5, atol=1e-6)


def test_without_such_layers_the_model_is_the_same() -> None:
    model = with_values(linear(2, 3))
    assert refine(model) is model


def test_the_weight_is_a_direction() -> None:
    """The gradient says nothing of its length, once the vectors are those of the weight."""
    layer = refine(spectral_norm(with_values(linear(3, 4))), iterations=200)
    grads, _ = vjp(layer, normal(5, 3), normal(5, 4))
    assert grads.layer.bias is not None
    torch.testing.assert_close(
        (grads.layer.weight * layer.layer.weight).sum(), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-12
    )
    longer = attrs.evolve(layer, layer=attrs.evolve(layer.layer, weight=layer.layer.weight * 7))
    torch.testing.assert_close(apply(longer, normal(5, 3)), apply(layer, normal(5, 3)))


def test_vectors_of_other_sizes_are_refused() -> None:
    layer = spectral_norm(with_values(linear(3, 5)))
    wrong = attrs.evolve(layer, left=normal(4))
    message = (
        "SpectralNorm has vectors of 5 and 3 numbers for a weight of shape (5, 3) and axis=0, but here are left=float64[4] and"
        " right=float64[3]: spectral_norm(layer) makes them"
    )
    for run in (lambda: apply(wrong, normal(2, 3)), lambda: refine(wrong)):
        with pytest.raises(ValueError, match=re.escape(message)):
            run()
    with pytest.raises(ValueError, match=re.escape("spectral_norm(axis=2) needs a weight that has this axis")):
        spectral_norm(linear(3, 4), axis=2)
    with pytest.raises(ValueError, match="iterations must be at least 1, not 0"):
        spectral_norm(linear(3, 4), iterations=0)
    with pytest.raises(TypeError, match="spectral_norm is around one layer, not a tuple of layers"):
        spectral_norm((linear(3, 4),))  # type: ignore[type-var]  # as a beginner might write
