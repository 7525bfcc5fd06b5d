"""A step on blocks that `repeat` stacks is one on each block, as where they stand one after the other: of every optimizer."""

import itertools
from typing import Final

import pytest
import torch

from fundl import (
    Model,
    Tanh,
    add_noise,
    apply_updates,
    assert_trees_close,
    compose,
    initialize,
    key,
    layer_norm,
    lbfgs,
    linear,
    mse,
    random,
    repeat,
    residual,
    sam,
    sgd,
    train_state,
    train_step,
    tree,
)
from fundl.layers.repeated import Repeat
from fundl.optim.chain import AnyTransform
from tests.optimizer_samples import OPTIMIZERS

BLOCKS: Final = 3
DRAWS: Final = {name for name in OPTIMIZERS if name.partition(":")[0] == add_noise.__name__}
"""What draws a number for each number of a leaf: other leaves, other numbers."""


def stacked_model() -> tuple[Model, ...]:
    inner = repeat(2, linear(4, 4), Tanh())
    model = compose(
        linear(3, 4), repeat(BLOCKS, residual(linear(4, 5), Tanh(), linear(5, 4)), layer_norm(4), inner), linear(4, 2)
    )
    return initialize(key(0), model, dtype=torch.float64)


def unrolled(model: Model) -> Model:
    """The model with its blocks one after the other, also those in blocks."""
    if isinstance(model, Repeat):
        return tuple(unrolled(block) for block in model.blocks)
    return tuple(unrolled(part) for part in model) if isinstance(model, tuple) else model


def random_like(model: Model, seed: int) -> Model:
    seeds = itertools.count(seed)
    return tree.map(lambda leaf: random.normal(key(next(seeds)), tuple(leaf.shape), dtype=leaf.dtype), model)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in DRAWS])
def test_steps_on_stacked_blocks_are_those_on_each(name: str) -> None:
    optimizer: AnyTransform = OPTIMIZERS[name]
    params: Model = stacked_model()
    plain = unrolled(params)
    state, plain_state = optimizer.init(params), optimizer.init(plain)
    for step in range(3):
        grads = random_like(params, 100 * step)
        updates, state = optimizer.update(grads, state, params)
        plain_updates, plain_state = optimizer.update(unrolled(grads), plain_state, plain)
        params, plain = apply_updates(params, updates), apply_updates(plain, plain_updates)
        assert_trees_close(unrolled(params), plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", [sam(sgd(0.1), radius=0.1), lbfgs()], ids=["sam", "lbfgs"])
def test_searches_on_stacked_blocks(optimizer: AnyTransform) -> None:
    model, x, target = stacked_model(), torch.ones(5, 3, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.float64)
    step = train_step(mse, optimizer)
    state, plain = (train_state(key(1), one, optimizer) for one in (model, unrolled(model)))
    for _ in range(2):
        state, plain = step(state, (x, target))[0], step(plain, (x, target))[0]
    assert_trees_close(unrolled(state.model), plain.model, rtol=1e-9, atol=1e-12)
