"""Normalisation is as exact as its input: its error is that of an input rounded to float32, times a few.

What counts is the mean's size in standard deviations. A variance that is taken to be the mean of squares less the square of the
mean, or a gradient in which two large means cancel, loses the square of it; the input itself, rounded, is off by it once.
"""

from collections.abc import Callable
from typing import Final

import attrs
import pytest
import torch
from torch import Tensor

from fundl import batch_norm, group_norm, initialize, instance_norm, key, layer_norm, rms_norm, tree
from fundl.layer import AnyLayer, Layer

ROUNDING: Final = 2.0**-24  # the greatest of float32, relative


@attrs.frozen
class Norm:
    """A layer, and the shape of an input with `count` numbers for each mean."""

    make: Callable[[int], AnyLayer]
    shape: Callable[[int], tuple[int, ...]]


NORMS: Final = {
    "LayerNorm": Norm(layer_norm, lambda count: (16, count)),
    "RMSNorm": Norm(rms_norm, lambda count: (16, count)),
    "GroupNorm of channels": Norm(lambda count: group_norm(2, 2 * count), lambda count: (8, 2 * count)),
    "GroupNorm of images": Norm(lambda _: group_norm(2, 4), lambda count: (8, 4, count, 2)),
    "InstanceNorm": Norm(lambda _: instance_norm(3), lambda count: (8, 3, 1, count)),
    "BatchNorm": Norm(lambda _: batch_norm(16), lambda count: (count, 16)),
    "BatchNorm of images": Norm(lambda _: batch_norm(4), lambda count: (count, 4, 2, 2)),
}


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def run(layer: AnyLayer, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient with respect to the input."""
    assert isinstance(layer, Layer)
    y, residuals = layer.forward(x)
    _, grad_x = layer.backward(residuals, grad)
    return y, grad_x


def largest(x: Tensor) -> float:
    return float(x.abs().max())


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("count", [3, 8, 100, 2000])
@pytest.mark.parametrize("mean", [0.0, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last, transposed])
@pytest.mark.parametrize("first", [0.0, 1000.0])
def test_error_is_that_of_a_rounded_input(
    name: str, count: int, mean: float, layout: Callable[[Tensor], Tensor], first: float
) -> None:
    norm, generator = NORMS[name], torch.Generator().manual_seed(count)
    shape = norm.shape(count)
    layer = initialize(key(0), norm.make(count))
    x = 3 * (torch.randn(shape, generator=generator) + mean)
    x[(0,) * x.ndim] += first
    grad = torch.randn(shape, generator=generator)
    exact_layer, exact_x, exact_grad = tree.map(Tensor.double, layer), x.double(), grad.double()
    exact = run(exact_layer, exact_x, exact_grad)
    allowed = [ROUNDING * largest(part) for part in exact]
    for _ in range(4):
        moved = exact_x * (1 + ROUNDING * torch.empty(shape, dtype=torch.float64).uniform_(-1, 1, generator=generator))
        found = run(exact_layer, moved, exact_grad)
        allowed = [max(most, largest(a - b)) for most, a, b in zip(allowed, found, exact, strict=True)]
    # A mean of many numbers is rounded more often: its error grows as the root of how many they are.
    times = 8 + 2 * count**0.5
    for actual, part, most in zip(run(layer, layout(x), layout(grad)), exact, allowed, strict=True):
        assert largest(actual.double() - part) <= times * most, f"off by {largest(actual.double() - part) / most} roundings"
