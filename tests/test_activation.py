"""Activations: their options, what they keep, and what they make of extreme inputs."""

import math
from collections.abc import Callable
from functools import partial
from typing import Final

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fundl import (
    CELU,
    ELU,
    GELU,
    SELU,
    Hardshrink,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    LeakyReLU,
    LogSigmoid,
    Mish,
    ReLU,
    Sigmoid,
    SiLU,
    Softplus,
    Softshrink,
    Softsign,
    Tanh,
    Tanhshrink,
    Threshold,
    apply,
    forward,
    tree,
    vjp,
)
from fundl.layers.activation import Activation
from tests.samples import ELEMENTWISE

ORACLES: Final[tuple[tuple[Activation, Callable[[Tensor], object]], ...]] = (
    *((row.model, partial(row.formula, row.model)) for row in ELEMENTWISE if isinstance(row.model, Activation)),
    (LeakyReLU(0.0), lambda x: functional.leaky_relu(x, 0.0)),
    (LeakyReLU(-0.5), lambda x: functional.leaky_relu(x, -0.5)),
    (LeakyReLU(2.0), lambda x: functional.leaky_relu(x, 2.0)),
    (Hardtanh(-0.3, 0.7), lambda x: functional.hardtanh(x, -0.3, 0.7)),
    (Hardtanh(0.0, math.inf), functional.relu),
    (ELU(0.0), functional.relu),
    (ELU(2.5), lambda x: functional.elu(x, 2.5)),
    (CELU(2.5), lambda x: torch.where(x > 0, x, 2.5 * torch.expm1(x / 2.5))),  # torch's derivative rounds 1 / 2.5 to float32
    (Softshrink(0.0), lambda x: functional.softshrink(x, 0.0)),
    (Hardshrink(0.0), lambda x: functional.hardshrink(x, 0.0)),
    (Threshold(-math.inf, 3.0), lambda x: functional.threshold(x, -math.inf, 3.0)),
    (Softplus(beta=3.0, threshold=10.0), lambda x: functional.softplus(x, 3.0, 10.0)),
)
ACTIVATIONS: Final = [activation for activation, _ in ORACLES]
TOLERANCES: Final = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


def gradient(activation: Activation, x: Tensor) -> Tensor:
    return vjp(activation, x, torch.ones_like(x))[1]


def expected(function: Callable[[Tensor], object], x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient by autograd, in float64."""
    x = x.to(torch.float64, copy=True).requires_grad_()
    y = function(x)
    assert isinstance(y, Tensor)
    return y.detach(), torch.autograd.grad(y, x, grad.to(torch.float64))[0]


@pytest.mark.parametrize(("activation", "function"), ORACLES, ids=[repr(activation) for activation in ACTIVATIONS])
@every_dtype
def test_agrees_with_autograd_in_every_dtype(
    activation: Activation, function: Callable[[Tensor], object], dtype: torch.dtype
) -> None:
    # 39 is no multiple of a vector's length: the kernels' vectors and their remainders are both tried
    x = torch.linspace(-4.05, 4.1, 39, dtype=dtype).reshape(3, 13).t()
    grad = torch.linspace(0.5, -1, 39, dtype=dtype).reshape(13, 3)
    y, grad_x = expected(function, x, grad)
    assert apply(activation, x).dtype == dtype
    torch.testing.assert_close(apply(activation, x).to(torch.float64), y, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
    _, actual = vjp(activation, x, grad)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.to(torch.float64), grad_x, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@every_activation
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 0), (1, 1, 1, 1, 2)], ids=str)
def test_takes_any_shape(activation: Activation, shape: tuple[int, ...]) -> None:
    x = torch.full(shape, 0.25)
    assert apply(activation, x).shape == shape
    grads, grad_x = vjp(activation, x, x)
    assert grads is activation
    assert grad_x.shape == shape


@every_activation
def test_meta_input_gives_the_shape(activation: Activation) -> None:
    x = torch.empty(2, 3, device="meta")
    assert apply(activation, x).shape == (2, 3)
    assert vjp(activation, x, x)[1].is_meta


# --- What is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "activation",
    [
        ReLU(),
        LeakyReLU(),
        LeakyReLU(0.0),
        ELU(),
        CELU(),
        SELU(),
        Sigmoid(),
        LogSigmoid(),
        Tanh(),
        Softshrink(),
        Hardshrink(),
    ],
    ids=repr,
)
def test_keeps_the_output_itself(activation: Activation) -> None:
    y, residuals = forward(activation, torch.randn(5))
    assert residuals is y


@pytest.mark.parametrize(
    "activation",
    [
        LeakyReLU(-1.0),
        Hardtanh(),
        Hardsigmoid(),
        Hardswish(),
        Softplus(),
        Softsign(),
        Tanhshrink(),
        Threshold(0.0, 0.0),
        GELU(),
        GELU("tanh"),
        SiLU(),
        Mish(),
    ],
    ids=repr,
)
def test_keeps_the_input_itself(activation: Activation) -> None:
    x = torch.randn(5)
    assert forward(activation, x)[1] is x


# --- Extremes -------------------------------------------------------------------------------------------------------


@every_activation
@every_dtype
def test_large_inputs_are_finite(activation: Activation, dtype: torch.dtype) -> None:
    x = torch.tensor([-1e4, -1e3, -100, -10, -0.0, 0.0, 10, 100, 1e3, 1e4], dtype=dtype).repeat(5)
    assert apply(activation, x).isfinite().all()
    assert gradient(activation, x).isfinite().all()


@pytest.mark.parametrize(
    ("activation", "low", "high", "slopes"),
    [
        (ReLU(), 0.0, math.inf, (0.0, 1.0)),
        (LeakyReLU(0.5), -math.inf, math.inf, (0.5, 1.0)),
        (Hardtanh(-3.0, 2.0), -3.0, 2.0, (0.0, 0.0)),
        (ELU(), -1.0, math.inf, (0.0, 1.0)),
        (ELU(0.0), 0.0, math.inf, (0.0, 1.0)),
        (SELU(), -1.7580993408473766, math.inf, (0.0, 1.0507009873554805)),
        (CELU(2.0), -2.0, math.inf, (0.0, 1.0)),
        (Sigmoid(), 0.0, 1.0, (0.0, 0.0)),
        (Hardsigmoid(), 0.0, 1.0, (0.0, 0.0)),
        (LogSigmoid(), -math.inf, 0.0, (1.0, 0.0)),
        (Softsign(), -1.0, 1.0, (0.0, 0.0)),
        (Softshrink(), -math.inf, math.inf, (1.0, 1.0)),
        (Hardshrink(), -math.inf, math.inf, (1.0, 1.0)),
        (Tanhshrink(), -math.inf, math.inf, (1.0, 1.0)),
        (Threshold(1.0, 2.0), 2.0, math.inf, (0.0, 1.0)),
        (Tanh(), -1.0, 1.0, (0.0, 0.0)),
        (Softplus(), 0.0, math.inf, (0.0, 1.0)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_infinite_inputs_give_the_limits(
    activation: Activation, low: float, high: float, slopes: tuple[float, float], dtype: torch.dtype
) -> None:
    x = torch.tensor([-math.inf, math.inf], dtype=dtype).repeat(9)
    y, grad_x = apply(activation, x), gradient(activation, x)
    torch.testing.assert_close(y, torch.tensor([low, high], dtype=dtype).repeat(9))
    torch.testing.assert_close(grad_x, torch.tensor(slopes, dtype=dtype).repeat(9), atol=2e-7, rtol=1e-6)


@pytest.mark.parametrize("activation", [GELU(), GELU("tanh"), SiLU(), Mish(), Hardswish()], ids=repr)
def test_products_with_a_sigmoid_tend_to_zero_and_to_the_identity(activation: Activation) -> None:
    x = torch.tensor([-1e4, 1e4]).repeat(9)
    assert torch.equal(apply(activation, x), x.clamp(min=0))
    assert torch.equal(gradient(activation, x), (x > 0).float())


@every_activation
def test_not_a_number_stays_one(activation: Activation) -> None:
    x = torch.tensor([math.nan]).repeat(9)
    assert apply(activation, x).isnan().all()


# --- Options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LeakyReLU(math.nan), "LeakyReLU's negative_slope must be a finite number, not nan"),
        (lambda: LeakyReLU(-math.inf), "negative_slope must be a finite number, not -inf"),
        (lambda: Hardtanh(1.0, 1.0), r"Hardtanh's bounds must be low < high, not low=1\.0, high=1\.0"),
        (lambda: Hardtanh(low=2.0), r"low < high, not low=2\.0, high=1\.0"),
        (lambda: Hardtanh(math.nan), "low < high, not low=nan"),
        (lambda: ELU(-1.0), r"ELU's alpha must be a finite number of 0 or more, not -1\.0"),
        (lambda: ELU(math.inf), "finite number of 0 or more, not inf"),
        (lambda: ELU(math.nan), "finite number of 0 or more, not nan"),
        (lambda: CELU(0.0), r"CELU's alpha must be a finite number above 0, not 0\.0"),
        (lambda: CELU(math.nan), "finite number above 0, not nan"),
        (lambda: Softshrink(-0.1), r"Softshrink's bound must be a finite number of 0 or more, not -0\.1"),
        (lambda: Hardshrink(math.inf), "Hardshrink's bound must be a finite number of 0 or more, not inf"),
        (lambda: Threshold(math.nan, 0.0), r"Threshold's threshold and value must be numbers, not threshold=nan, value=0\.0"),
        (lambda: Softplus(beta=0.0), r"Softplus' beta must be a finite number above 0, not 0\.0"),
        (lambda: Softplus(beta=math.nan), "beta must be a finite number above 0, not nan"),
        (lambda: Softplus(threshold=0.0), r"threshold must be above 0 and at most 40, not 0\.0"),
        (lambda: Softplus(threshold=41.0), r"at most 40, not 41\.0: beyond 40 it would not change a bit"),
        (lambda: GELU("erf"), "GELU's approximate must be 'none' or 'tanh', not 'erf'"),  # type: ignore[arg-type]  # the point
    ],
)
def test_options_out_of_range_are_refused(make: Callable[[], Activation], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_options_are_static() -> None:
    assert tree.flatten(ELU(2.0))[1] == tree.flatten(ELU(2.0))[1]
    assert tree.flatten(ELU(2.0))[1] != tree.flatten(ELU(1.0))[1]
    assert tree.leaves([*ACTIVATIONS]) == []


def test_hardtanh_passes_no_gradient_at_bounds_that_bfloat16_rounds_inwards() -> None:
    x = torch.tensor([-5.0, 0.0, 5.0], dtype=torch.bfloat16).repeat(9)
    assert apply(Hardtanh(-0.7, 0.7), x)[2].item() < 0.7  # 0.7 itself is no bfloat16
    assert gradient(Hardtanh(-0.7, 0.7), x)[:3].tolist() == [0.0, 1.0, 0.0]


def test_gelu_by_tanh_is_off_by_less_than_it_says() -> None:
    x = torch.linspace(-8, 8, 10_001, dtype=torch.float64)
    error = (apply(GELU("tanh"), x) - apply(GELU(), x)).abs().max()
    assert 1e-4 < error < 5e-4


def test_softplus_jumps_at_the_threshold_by_no_more_than_it_says() -> None:
    for threshold in (5.0, 20.0):
        softplus = Softplus(beta=2.0, threshold=threshold)
        x = torch.tensor([threshold / 2, math.nextafter(threshold / 2, math.inf)], dtype=torch.float64)
        below, above = apply(softplus, x).tolist()
        assert below - above == pytest.approx(math.exp(-threshold) / 2, rel=1e-2)


def test_selu_keeps_mean_and_variance_of_normal_numbers() -> None:
    quantiles = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    y = apply(SELU(), torch.special.ndtri(quantiles))
    assert abs(y.mean().item()) < 1e-3
    assert abs(y.var().item() - 1) < 1e-2


def test_gelu_is_right_up_to_its_limit() -> None:
    x = torch.tensor([1e12, -1e12])
    for approximate in ("none", "tanh"):
        _, grad_x = vjp(GELU(approximate=approximate), x, torch.ones(2))
        assert torch.equal(grad_x, torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(
    ("activation", "x", "slopes"),
    [
        (Hardswish(), (-3.0, 3.0), (0.0, 1.0)),
        (Hardsigmoid(), (-3.0, 3.0), (0.0, 0.0)),
        (Softshrink(0.5), (-0.5, 0.5), (0.0, 0.0)),
        (Hardshrink(0.5), (-0.5, 0.5), (0.0, 0.0)),
        (Threshold(0.5, 0.5), (0.5, 0.75), (0.0, 1.0)),
    ],
    ids=repr,
)
@every_dtype
def test_slopes_at_kinks(
    activation: Activation, x: tuple[float, float], slopes: tuple[float, float], dtype: torch.dtype
) -> None:
    assert gradient(activation, torch.tensor(x, dtype=dtype).repeat(9)).tolist() == [*slopes] * 9


@pytest.mark.parametrize("activation", [Softshrink(), Hardshrink(), Threshold(0.0, 0.0), ReLU()], ids=repr)
def test_what_is_not_a_number_has_one_slope_wherever_it_is(activation: Activation) -> None:
    assert gradient(activation, torch.full((19,), math.nan)).tolist() == [1.0] * 19  # in vectors, and what is left of them


def test_the_slope_of_softsign_in_float16_is_not_lost() -> None:
    x = torch.tensor([300.0, -6e4], dtype=torch.float16)
    torch.testing.assert_close(gradient(Softsign(), x).double(), (1 + x.double().abs()) ** -2, rtol=1e-2, atol=6e-8)
