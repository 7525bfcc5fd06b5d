"""Perceptrons: what is between the linear maps, and what is refused."""

from typing import assert_type

import pytest
import torch

from fundl import (
    GELU,
    BatchNorm,
    Dropout,
    Linear,
    ReLU,
    Tanh,
    apply,
    batch_norm,
    compose,
    initialize,
    key,
    linear,
    mlp,
    tree,
)


def test_it_is_a_composition() -> None:
    plain = compose(linear(2, 25), ReLU(), linear(25, 8), ReLU(), linear(8, 3))
    made = mlp(2, (25, 8), 3)
    assert repr(made) == repr(plain)
    assert tree.equal(tree.leaves(initialize(key(0), made)), tree.leaves(initialize(key(0), plain)))
    assert apply(initialize(key(0), made), torch.ones(4, 2)).shape == (4, 3)


def test_options_stand_behind_each_map_but_the_last() -> None:
    model = mlp(2, (25, 8), 3, activation=GELU(), norm=batch_norm, dropout=0.2, bias=False, dtype=torch.float64)
    kinds = [Linear, BatchNorm, GELU, Dropout]
    assert [type(layer) for layer in model] == [*kinds, *kinds, Linear]
    assert {leaf.dtype for leaf in tree.trainable_leaves(model)} == {torch.float64}
    assert [layer.bias for layer in model if isinstance(layer, Linear)] == [None] * 3


def test_the_first_and_the_last_map_are_typed() -> None:
    model = mlp(2, 25, 3, activation=Tanh())
    assert model[0].weight.shape == (25, 2)
    assert_type(model[0].weight, torch.Tensor)
    assert model[-1].weight.shape == (3, 25)


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(ValueError, match=r"hidden must have at least one size: without a hidden layer, .* linear\(\.\.\.\)"):
        mlp(2, (), 3)
    with pytest.raises(ValueError, match="hidden must be at least 1, not 0"):
        mlp(2, (25, 0), 3)
    with pytest.raises(TypeError, match="activation must be a layer"):
        mlp(2, 25, 3, activation=torch.relu)  # type: ignore[arg-type]  # the point
    with pytest.raises(TypeError, match="what norm makes must be a layer"):
        mlp(2, 25, 3, norm=torch.empty)  # type: ignore[arg-type]  # the point
