"""PReLU: which slope is whose, and what is refused."""

import math

import pytest
import torch

from fundl import PReLU, adam, apply, initialize, key, mse, prelu, random, value_and_grad, vjp


def test_slopes_begin_at_a_quarter() -> None:
    layer = initialize(key(0), prelu(3))
    assert layer.weight.tolist() == [0.25] * 3
    assert apply(initialize(key(0), prelu()), torch.tensor([-4.0, 0.0, 2.0])).tolist() == [-1, 0, 2]


def test_each_channel_has_its_slope() -> None:
    layer, x = PReLU(torch.tensor([0.5, 2.0])), random.normal(key(1), (3, 2, 4, 5))
    y = apply(layer, x)
    for channel, slope in enumerate((0.5, 2.0)):
        assert torch.equal(y[:, channel], torch.where(x[:, channel] > 0, x[:, channel], slope * x[:, channel]))
    grads, grad_x = vjp(layer, x, torch.ones_like(x))
    torch.testing.assert_close(grads.weight, x.clamp(max=0).sum((0, 2, 3)))
    torch.testing.assert_close(grad_x, torch.where(x > 0, 1.0, torch.tensor([0.5, 2.0]).reshape(2, 1, 1)))


def test_a_slope_is_learned() -> None:
    x = random.normal(key(1), (64, 1))
    target = torch.where(x > 0, x, -0.7 * x)
    model, optimizer = initialize(key(0), prelu()), adam(0.1)
    state = optimizer.init(model)
    for _ in range(200):
        _, grads = value_and_grad(mse, model, x, target)
        model, state = optimizer.step(grads, state, model)
    assert model.weight.item() == pytest.approx(-0.7, abs=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_extremes(channels: int) -> None:
    layer = PReLU(torch.full((channels,), 0.5))
    x = torch.tensor([-math.inf, math.inf, math.nan]).reshape(1, 3)
    y, (grads, grad_x) = apply(layer, x), vjp(layer, x[:, :2].repeat(1, 3)[:, :3], torch.ones(1, 3))
    assert y[0, :2].tolist() == [-math.inf, math.inf]
    assert y[0, 2].isnan()
    assert grad_x.tolist() == [[0.5, 1.0, 0.5]]
    assert grads.weight[0].item() == -math.inf
    empty = torch.ones(0, 3)
    assert vjp(layer, empty, empty)[0].weight.tolist() == [0.0] * channels


def test_many_rows_in_half_precision() -> None:
    layer, x = PReLU(torch.tensor([0.5], dtype=torch.bfloat16)), torch.full((5000,), -1.0, dtype=torch.bfloat16)
    assert vjp(layer, x, x)[0].weight.item() == pytest.approx(5000, rel=1e-2)


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(ValueError, match="channels must be at least 1, not 0"):
        prelu(0)
    with pytest.raises(
        ValueError, match=r"PReLU has the slopes of 3 channels, .* but the input's shape is \(2, 4\): take prelu"
    ):
        apply(PReLU(torch.ones(3)), torch.ones(2, 4))
    with pytest.raises(TypeError, match=r"PReLU's weight is torch.float32, but the input is torch.float64"):
        apply(PReLU(torch.ones(3)), torch.ones(2, 3, dtype=torch.float64))
