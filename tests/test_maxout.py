"""Maxout: which pieces stand together, and where gradients go."""

import math

import pytest
import torch

from fundl import Maxout, apply, compose, initialize, key, linear, random, vjp


def test_it_is_a_convex_function_of_straight_pieces() -> None:
    first, second = random.normal(key(1), (7, 5)), random.normal(key(2), (7, 5))
    y = apply(Maxout(2), torch.stack((first, second), 2).reshape(7, 10))
    assert torch.equal(y, torch.maximum(first, second))
    assert apply(initialize(key(0), compose(linear(2, 3 * 25), Maxout(3))), torch.ones(4, 2)).shape == (4, 25)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2, -3, -4])
def test_any_axis(axis: int) -> None:
    x = random.normal(key(1), (4, 6, 2, 8))
    moved = x.movedim(axis, -1)
    expected = moved.reshape(*moved.shape[:-1], -1, 2).amax(-1).movedim(-1, axis)
    assert torch.equal(apply(Maxout(2, axis=axis), x), expected)
    _, grad_x = vjp(Maxout(2, axis=axis), x, expected)
    assert grad_x.shape == x.shape
    torch.testing.assert_close(grad_x.sum(), expected.sum())
    assert torch.equal(grad_x[grad_x != 0], x[grad_x != 0])


def test_of_equal_ones_the_first_has_the_gradient() -> None:
    _, grad_x = vjp(Maxout(3), torch.tensor([[1.0, 1.0, 0.0, 2.0, 3.0, 3.0]] * 9), torch.ones(9, 2))
    assert grad_x.tolist() == [[1, 0, 0, 0, 1, 0]] * 9


def test_what_is_no_number_is_the_greatest() -> None:
    y = apply(Maxout(2), torch.tensor([[math.inf, math.nan, -math.inf, -math.inf]]))
    assert y[0, 0].isnan()
    assert y[0, 1] == -math.inf


def test_empty_batches_and_one_piece() -> None:
    assert apply(Maxout(2), torch.ones(0, 4)).shape == (0, 2)
    assert vjp(Maxout(2), torch.ones(0, 4), torch.ones(0, 2))[1].shape == (0, 4)
    x = random.normal(key(1), (3, 4))
    assert torch.equal(apply(Maxout(1), x), x)


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(ValueError, match="pieces must be at least 1, not 0"):
        Maxout(0)
    for shape, axis in (((2, 5), -1), ((2, 4), 2), ((), -1)):
        with pytest.raises(ValueError, match="must be a multiple of 2, but the input's shape is"):
            apply(Maxout(2, axis=axis), torch.ones(shape))
