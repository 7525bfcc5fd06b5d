"""Exponential numbers, Gumbel's and signs: against their distributions, and at their ends."""

import math

import pytest
import torch
from torch import Tensor

from fundl._common import draws
from fundl._common import philox as ours
from fundl.random import bernoulli, exponential, gumbel, key, rademacher, split
from tests.test_random import MILLION, every_dtype, fits, wide

EULER = 0.5772156649015329


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_they_fit_their_distributions(dtype: torch.dtype) -> None:
    assert fits(exponential(key(50), (MILLION,), dtype=dtype), "expon")
    assert fits(exponential(key(51), (MILLION,), scale=7.0, dtype=dtype), "expon", 0.0, 7.0)
    assert fits(gumbel(key(52), (MILLION,), dtype=dtype), "gumbel_r")
    assert fits(gumbel(key(53), (MILLION,), location=-3.0, scale=0.2, dtype=dtype), "gumbel_r", -3.0, 0.2)


@every_dtype
def test_moments(dtype: torch.dtype) -> None:
    waiting, extreme = exponential(key(54), (MILLION,), dtype=dtype), gumbel(key(55), (MILLION,), dtype=dtype)
    assert waiting.dtype == extreme.dtype == dtype
    for power, (moment, variance) in enumerate(((1, 1), (2, 20), (6, 684)), start=1):
        assert abs(waiting.double().pow(power).mean() - moment) < 4 * math.sqrt(variance / MILLION)
    assert abs(extreme.double().mean() - EULER) < 4 * math.pi / math.sqrt(6 * MILLION)
    assert abs(extreme.double().var() - math.pi**2 / 6) < 0.015


def test_they_are_those_of_the_formula() -> None:
    uniform = [((number >> 11) | 1) * 2.0**-53 for number in wide(key(3), 1000)]
    waiting = torch.tensor([-math.log(one) for one in uniform], dtype=torch.float64)
    torch.testing.assert_close(exponential(key(3), (1000,), dtype=torch.float64), waiting, rtol=1e-15, atol=0)
    torch.testing.assert_close(gumbel(key(3), (1000,), dtype=torch.float64), -waiting.log(), rtol=1e-15, atol=1e-15)


def test_golden_values() -> None:
    """If this fails, the stream has changed."""
    some_key = key(2**63 + 12345)
    torch.testing.assert_close(exponential(some_key, (3,)), torch.tensor([1.6327816, 0.4282458, 0.0353240]))
    torch.testing.assert_close(gumbel(some_key, (3,)), torch.tensor([-0.4902851, 0.8480578, 3.3431935]))
    assert rademacher(some_key, (8,)).tolist() == [1, -1, -1, 1, -1, -1, 1, 1]


@every_dtype
def test_the_ends(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """The first and the last of all integers: log 0 is never taken."""
    monkeypatch.setattr(draws, "functions", dict)
    monkeypatch.setattr(ours, "wide", lambda _key, _positions, bits: torch.tensor([[0], [2**bits - 1]]))
    waiting, extreme = exponential(key(0), (2,), dtype=dtype).double(), gumbel(key(0), (2,), dtype=dtype).double()
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(waiting[0].item(), 53 * math.log(2), rtol=step, atol=0)
    assert waiting[1] == (0.0 if dtype == torch.float16 else torch.tensor(2.0**-53).to(dtype))
    torch.testing.assert_close(extreme[0].item(), -math.log(53 * math.log(2)), rtol=step, atol=0)
    torch.testing.assert_close(extreme[1].item(), 53 * math.log(2), rtol=step, atol=0)


@every_dtype
def test_signs(dtype: torch.dtype) -> None:
    signs = rademacher(key(56), (MILLION // 10, 10), dtype=dtype)
    assert signs.dtype == dtype
    assert (signs.abs() == 1).all()
    assert torch.equal(signs == 1, bernoulli(key(56), (MILLION // 10, 10), probability=0.5))
    assert abs(signs.double().mean()) < 4 / math.sqrt(MILLION)


def test_keys_are_independent() -> None:
    for draw in (exponential, gumbel, rademacher):
        numbers = torch.stack([draw(one, (1000,), dtype=torch.float64) for one in split(key(57), 300)])
        correlations = numbers.corrcoef()[torch.ones(300, 300, dtype=torch.bool).triu(1)] * math.sqrt(1000)
        assert correlations.abs().max() < 6
        assert abs(correlations.mean()) < 4 / math.sqrt(300 * 299 / 2)


def test_shapes() -> None:
    for shape in ((), (0,), (3, 0), (1,), (2, 3)):
        for draw in (exponential, gumbel, rademacher):
            assert draw(key(0), shape).shape == shape
            whole: Tensor = draw(key(0), (6,))
            assert torch.equal(draw(key(0), shape).flatten(), whole[: math.prod(shape)])


def test_wrong_scales() -> None:
    for scale in (-1.0, math.nan):
        with pytest.raises(ValueError, match=f"a scale is a number of 0 or more, not {scale}"):
            exponential(key(0), (1,), scale=scale)
    with pytest.raises(ValueError, match=r"numbers of scale=2000\.0 are not all finite in torch\.float16"):
        exponential(key(0), (1,), scale=2000.0, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"numbers of location=inf and scale=1\.0 are not all finite in torch\.float32"):
        gumbel(key(0), (1,), location=math.inf)
    assert exponential(key(0), (2,), scale=0).tolist() == [0.0, 0.0]
    for draw in (exponential, gumbel, rademacher):
        with pytest.raises(TypeError, match=r"float64, float32, float16 and bfloat16, not in torch\.int64"):
            draw(key(0), (1,), dtype=torch.int64)
