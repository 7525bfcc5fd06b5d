"""Windows of micro-batches that end before they are full, and averages that are evaluated in place of the params."""

import pytest
import torch

from fundl import (
    Linear,
    accumulate,
    adam,
    chain,
    clip_by_global_norm,
    initialize,
    key,
    linear,
    mse,
    random,
    sgd,
    train_state,
    train_step,
    tree,
    value_and_grad,
)

X, TARGET = random.normal(key(0), (7, 3)), random.normal(key(1), (7, 2))


def model() -> Linear[int, int]:
    return initialize(key(2), linear(3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_window_that_is_not_full_is_finished(dtype: torch.dtype) -> None:
    inner = chain(clip_by_global_norm(0.1), adam(0.1))
    optimizer = accumulate(inner, steps=3)
    (x, target), first = tree.cast_to((X, TARGET), dtype), tree.cast_to(model(), dtype)
    state = train_state(key(3), first, optimizer)
    step = train_step(mse, optimizer)
    for start, stop in ((0, 2), (2, 7)):  # of 2 rows and of 5
        state, _ = step(state, (x[start:stop], target[start:stop]))
    assert tree.equal(state.model, first)
    assert int(state.optimizer.inner.count) == 2

    finished, memory = optimizer.finish(state.optimizer, state.model)
    _, grads = value_and_grad(mse, first, x, target)
    expected, _ = inner.step(grads, inner.init(first), first)
    for one, other in zip(tree.leaves(finished), tree.leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4 if dtype == torch.float32 else 2e-2, atol=1e-5)
    assert (int(memory.inner.count), float(memory.inner.weight)) == (0, 0.0)
    assert not any(bool(total.any()) for total in memory.inner.total)
    again, same = optimizer.finish(memory, finished)
    assert tree.equal((again, same), (finished, memory))


def test_finish_refuses_what_step_refuses() -> None:
    optimizer = accumulate(sgd(0.1), steps=2)
    with pytest.raises(ValueError, match="the state is of"):
        optimizer.finish(optimizer.init(torch.ones(2)), torch.ones(3))
