"""Gains and offsets alone."""

import pytest
import torch

from fundl import Bias, Gain, apply, bias, constant, gain, initialize, key, linear, random, residual, vjp

X = random.normal(key(1), (5, 2, 3))


def test_both_are_an_affine_map_of_each_feature() -> None:
    model = Gain(torch.tensor([1.0, 2.0, 3.0])), Bias(torch.tensor([4.0, 5.0, 6.0]))
    assert torch.equal(apply(model, X), X * model[0].weight + model[1].bias)
    grads, grad_x = vjp(model, X, torch.ones_like(X))
    torch.testing.assert_close(grads[0].weight, X.sum((0, 1)))
    assert grads[1].bias.tolist() == [10, 10, 10]
    assert torch.equal(grad_x, model[0].weight.expand_as(X))


def test_first_values() -> None:
    assert initialize(key(0), gain(3)).weight.tolist() == [1, 1, 1]
    assert initialize(key(0), bias(3)).bias.tolist() == [0, 0, 0]
    block = initialize(key(0), residual(linear(3, 3), gain(3, weight_init=constant(1e-5))))
    torch.testing.assert_close(apply(block, X), X, rtol=1e-3, atol=1e-4)


def test_lone_rows_and_none() -> None:
    layer = Gain(torch.ones(3))
    assert vjp(layer, torch.ones(3), torch.ones(3))[0].weight.tolist() == [1, 1, 1]
    assert vjp(layer, torch.ones(0, 3), torch.ones(0, 3))[0].weight.tolist() == [0, 0, 0]


def test_sums_of_many_rows_in_half_precision() -> None:
    x = torch.ones(5000, 2, dtype=torch.bfloat16)
    assert vjp(Bias(torch.ones(2, dtype=torch.bfloat16)), x, x)[0].bias[0].item() == pytest.approx(5000, rel=1e-2)


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(ValueError, match=r"Gain expects 4 features, but the input's shape is \(5, 2, 3\)"):
        apply(Gain(torch.ones(4)), X)
    with pytest.raises(ValueError, match=r"Bias expects 1 features, but the input's shape is \(5, 2, 3\)"):
        apply(Bias(torch.ones(1)), X)
    with pytest.raises(TypeError, match=r"Bias's bias is torch.float64, but the input is torch.float32"):
        apply(Bias(torch.ones(3, dtype=torch.float64)), X)
    with pytest.raises(ValueError, match="features must be at least 1, not 0"):
        gain(0)
