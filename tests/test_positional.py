"""Positions: what they are good for, rotations beside complex numbers, and what is refused."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fundl import (
    Layer,
    LearnedPositions,
    Rotary,
    SinusoidalPositions,
    apply,
    compose,
    embedding,
    forward,
    initialize,
    key,
    learned_positions,
    random,
    rotation,
    vjp,
)

FLOAT64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return random.normal(key(seed), shape, dtype=FLOAT64)


# --- Learned -----------------------------------------------------------------------------------------------------------


def test_learned_positions_are_an_embedding_of_the_steps() -> None:
    positions = initialize(key(0), learned_positions(7, 4, dtype=FLOAT64))
    x, grad = normal(2, 3, 5, 4), normal(2, 3, 5, 4, seed=1)
    theirs = torch.nn.Embedding(7, 4, dtype=FLOAT64)
    theirs.load_state_dict({"weight": positions.weight})
    expected = x + theirs(torch.arange(5))
    expected.backward(grad)
    grads, grad_x = vjp(positions, x, grad)
    assert torch.equal(apply(positions, x), expected)
    torch.testing.assert_close(grads.weight, theirs.weight.grad, rtol=1e-12, atol=1e-12)
    assert torch.equal(grad_x, grad)


def test_learned_positions_are_small_at_first() -> None:
    weight = initialize(key(0), learned_positions(100, 100)).weight
    assert abs(float(weight.std()) - 0.02) < 0.001


@pytest.mark.parametrize(("length", "features", "name"), [(0, 3, "length"), (3, 0, "features")])
def test_sizes_below_one(length: int, features: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        learned_positions(length, features)


@pytest.mark.parametrize(("length", "steps"), [(7, 8), (1, 2)])
def test_a_sequence_longer_than_there_are_positions(length: int, steps: int) -> None:
    model = compose(initialize(key(0), embedding(10, 4)), initialize(key(1), learned_positions(length, 4)))
    message = f"LearnedPositions knows {length} positions, but the input has {steps} steps: make it longer, or cut"
    with pytest.raises(ValueError, match=message):
        apply(model, torch.zeros(3, steps, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(3, 5, 1), (3, 5, 6), (4,), ()])
def test_learned_positions_of_other_features(shape: tuple[int, ...]) -> None:
    message = re.escape(f"LearnedPositions expects an input of shape (..., steps, 4), but the input's is {shape}")
    with pytest.raises(ValueError, match=message):
        LearnedPositions(torch.zeros(7, 4)).forward(torch.zeros(shape))


def test_learned_positions_of_another_dtype() -> None:
    with pytest.raises(TypeError, match=r"weight is torch.float32, but the input is torch.bfloat16: convert one of them"):
        apply(LearnedPositions(torch.zeros(7, 4)), torch.zeros(5, 4, dtype=torch.bfloat16))


def test_learned_positions_without_values() -> None:
    with pytest.raises(ValueError, match="the model has no values yet"):
        apply(learned_positions(7, 4), torch.zeros(5, 4))


# --- Sinusoidal --------------------------------------------------------------------------------------------------------


def test_the_waves_of_steps_a_distance_apart_are_as_alike_everywhere() -> None:
    waves = apply(SinusoidalPositions(), torch.zeros(40, 16, dtype=FLOAT64))
    products = waves @ waves.t()
    for distance in range(40):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_no_step_is_too_far() -> None:
    far = apply(SinusoidalPositions(), torch.zeros(1_000_001, 2))[-1].double()
    angle = torch.tensor(1_000_000.0, dtype=FLOAT64)
    torch.testing.assert_close(far, torch.stack((angle.sin(), angle.cos())), rtol=0, atol=1e-7)


# --- Rotary ------------------------------------------------------------------------------------------------------------


def neighbours_first(x: Tensor) -> Tensor:
    """Features 0, d/2, 1, d/2 + 1, ...: what the halves pair becomes neighbours."""
    return x.reshape(*x.shape[:-1], 2, -1).transpose(-1, -2).flatten(-2)


def test_is_that_of_the_paper_up_to_the_order_of_the_features() -> None:
    x = normal(3, 5, 8)
    numbers = torch.view_as_complex(neighbours_first(x).reshape(3, 5, 4, 2))
    angles = torch.outer(torch.arange(5, dtype=FLOAT64), 10_000.0 ** (-torch.arange(4, dtype=FLOAT64) / 4))
    expected = torch.view_as_real(numbers * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    torch.testing.assert_close(neighbours_first(apply(Rotary(), x)), expected)


def test_products_depend_on_the_distance_alone() -> None:
    def check(pairs: int, distance: int, first: int, second: int) -> None:
        turn = rotation(100, 2 * pairs, dtype=FLOAT64)
        query, keys = (normal(2 * pairs, seed=seed).expand(100, -1) for seed in (0, 1))
        products = turn.forward(query) @ turn.forward(keys).t()
        torch.testing.assert_close(products[first, first + distance], products[second, second + distance])

    numbers = st.integers(0, 49)
    settings(max_examples=30, deadline=None, derandomize=True)(given(st.integers(1, 4), numbers, numbers, numbers)(check))()


def test_backward_turns_back() -> None:
    turn, x = rotation(5, 6, dtype=FLOAT64), normal(2, 3, 5, 6)
    torch.testing.assert_close(turn.backward(turn.forward(x)), x)
    torch.testing.assert_close(turn.forward(x).norm(dim=-1), x.norm(dim=-1))


def test_a_later_start() -> None:
    whole, late = rotation(9, 6, base=100.0), rotation(4, 6, base=100.0, start=5)
    assert torch.equal(late.cos, whole.cos[5:])
    assert torch.equal(late.sin, whole.sin[5:])


def test_the_layer_is_the_rotation_of_its_steps() -> None:
    x = normal(2, 5, 6)
    y, residuals = forward(Rotary(500.0), x)
    assert torch.equal(y, rotation(5, 6, base=500.0, dtype=FLOAT64).forward(x))
    assert torch.equal(residuals.cos, rotation(5, 6, base=500.0, dtype=FLOAT64).cos)


def test_a_step_may_be_far() -> None:
    turned = rotation(1, 2, start=1_000_000).forward(torch.tensor([[1.0, 0.0]]))
    angle = torch.tensor(1_000_000.0, dtype=FLOAT64)
    torch.testing.assert_close(turned[0].double(), torch.stack((angle.cos(), angle.sin())), rtol=0, atol=1e-7)


def test_under_vmap() -> None:
    x = normal(4, 2, 5, 6)
    assert torch.equal(torch.vmap(lambda each: apply(Rotary(), each))(x), apply(Rotary(), x))


# --- What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [Rotary, SinusoidalPositions])
@pytest.mark.parametrize("base", [1.0, 0.0, -2.0, float("inf"), float("nan")])
def test_a_base_that_does_not_slow_down(layer: type[Rotary | SinusoidalPositions], base: float) -> None:
    with pytest.raises(ValueError, match=f"base must be a finite number above 1, not {base}"):
        layer(base)


def test_an_odd_number_of_features() -> None:
    with pytest.raises(ValueError, match="a rotation turns pairs of features: their number must be even, not 5"):
        apply(Rotary(), torch.zeros(2, 3, 5))


@pytest.mark.parametrize("layer", [Rotary(), SinusoidalPositions()])
def test_no_axis_of_steps(layer: Layer[object]) -> None:
    message = rf"{type(layer).__name__} expects an input of shape \(..., steps, features\), not \(4,\)"
    with pytest.raises(ValueError, match=message):
        apply(layer, torch.zeros(4))
