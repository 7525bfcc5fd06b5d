"""Softmax and its logarithm: axes, shapes, and scores of any size."""

import math
from typing import Final, TypeAlias

import pytest
import torch
from torch import Tensor

from fundl.layers.softmax import LogSoftmax, Softmax
from fundl.model import apply, forward, vjp

Either: TypeAlias = type[Softmax] | type[LogSoftmax]

both = pytest.mark.parametrize("layer", [Softmax, LogSoftmax])
TOLERANCES: Final = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@both
@pytest.mark.parametrize("axis", [-3, -1, 0, 1, 2])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_agrees_with_autograd_along_every_axis(layer: Either, axis: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 2, generator=generator).to(dtype).transpose(0, 2)
    grad = torch.randn(2, 5, 3, generator=generator).to(dtype)
    reference = x.to(torch.float64, copy=True).requires_grad_()
    y = reference.softmax(axis) if layer is Softmax else reference.log_softmax(axis)
    (grad_x,) = torch.autograd.grad(y, reference, grad.to(torch.float64))

    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(apply(layer(axis), x), y.detach().to(dtype), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(vjp(layer(axis), x, grad)[1], grad_x.to(dtype), rtol=tolerance, atol=2 * tolerance)


@both
def test_keeps_the_output_itself(layer: Either) -> None:
    y, residuals = forward(layer(), torch.randn(2, 3))
    assert residuals is y


@both
def test_takes_numbers_and_empty_batches(layer: Either) -> None:
    assert apply(layer(), torch.tensor(3.0)).item() == (1.0 if layer is Softmax else 0.0)
    assert vjp(layer(), torch.tensor(3.0), torch.tensor(1.0))[1].item() == 0
    for shape in ((0, 3), (3, 0), (0,)):
        x = torch.empty(shape)
        assert apply(layer(), x).shape == shape
        assert vjp(layer(), x, x)[1].shape == shape
    assert apply(layer(), torch.empty(2, 3, device="meta")).shape == (2, 3)


@both
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_scores_of_any_size_give_finite_gradients(layer: Either, dtype: torch.dtype) -> None:
    x = torch.tensor([[-1e4, 0.0, 1e4], [1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]], dtype=dtype)
    assert apply(layer(), x).isfinite().all()
    assert vjp(layer(), x, torch.ones_like(x))[1].isfinite().all()


def test_a_score_of_minus_infinity_has_probability_zero_and_no_gradient() -> None:
    x = torch.tensor([0.0, -math.inf, 0.0])
    assert apply(Softmax(), x).tolist() == [0.5, 0.0, 0.5]
    assert apply(LogSoftmax(), x).exp().tolist() == [0.5, 0.0, 0.5]
    grad = torch.tensor([1.0, 5.0, 0.0])
    assert vjp(Softmax(), x, grad)[1].tolist() == [0.25, 0.0, -0.25]


def test_logarithm_keeps_the_digits_of_small_probabilities() -> None:
    x = torch.tensor([0.0, -200.0], dtype=torch.float32)
    assert apply(Softmax(), x)[1] == 0  # e^-200 is no float32
    assert apply(LogSoftmax(), x)[1] == -200


@both
@pytest.mark.parametrize(("axis", "shape", "choice"), [(2, (4, 3), "-2 to 1"), (-3, (4, 3), "-2 to 1"), (1, (), "-1 to 0")])
def test_an_axis_that_is_not_there_is_refused(layer: Either, axis: int, shape: tuple[int, ...], choice: str) -> None:
    message = rf"{layer.__name__}\(axis={axis}\) needs an input that has this axis, .* choose an axis from {choice}"
    with pytest.raises(ValueError, match=message):
        apply(layer(axis), torch.zeros(shape))


def each_sums_to_one(y: Tensor, axis: int) -> bool:
    return torch.allclose(y.sum(axis), torch.ones(()))


def test_probabilities_sum_to_one() -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) * 10
    for axis in (0, 1):
        assert each_sums_to_one(apply(Softmax(axis), x), axis)
        assert each_sums_to_one(apply(LogSoftmax(axis), x).exp(), axis)
