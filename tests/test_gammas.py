"""Gamma, beta and Dirichlet numbers: against their distributions, at small and large concentrations, and what is refused."""

import math
from typing import Final

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fundl._common import draws, gamma_numbers
from fundl.random import beta, dirichlet, exponential, gamma, key, normal, split
from tests.test_draws import IN_FORWARD_MODE
from tests.test_random import MILLION, every_dtype, fits

CONCENTRATIONS: Final = (1e-3, 0.05, 0.5, 0.999, 1.0, 1.5, 4.0, 50.0, 1e4, 1e7)
DOUBLE: Final = torch.float64


@pytest.mark.parametrize("concentration", CONCENTRATIONS)
def test_gamma_fits_its_distribution(concentration: float) -> None:
    numbers = gamma(key(60), (MILLION // 5,), concentration=concentration, dtype=DOUBLE)
    if concentration < 0.01:  # most of them are less than any float64 number
        for bound in (1e-300, 1e-200, 1e-100, 1e-10):
            share = math.exp(concentration * math.log(bound) - math.lgamma(1 + concentration))
            assert abs((numbers < bound).double().mean() - share) < 4 * math.sqrt(share * (1 - share) / (MILLION // 5))
        return
    assert fits(numbers, "gamma", concentration)
    scaled = gamma(key(60), (MILLION // 5,), concentration=concentration, scale=3.0)
    assert torch.equal(scaled, (numbers * 3.0).float())


@pytest.mark.parametrize("concentration", [0.3, 2.5, 30.0])
def test_moments_and_tails(concentration: float) -> None:
    numbers = gamma(key(61), (MILLION,), concentration=concentration)
    mean, var = numbers.double().mean(), numbers.double().var()
    assert abs(mean - concentration) < 4 * math.sqrt(concentration / MILLION)
    assert abs(var - concentration) < 4 * math.sqrt((2 * concentration**2 + 6 * concentration) / MILLION)
    distribution = torch.distributions.Gamma(concentration, 1.0)
    exact = torch.special.gammainc(torch.tensor(concentration, dtype=DOUBLE), numbers.double())  # uniform numbers
    for tail in (1e-4, 1e-3, 1e-2):
        for share in ((exact < tail).double().mean(), (exact > 1 - tail).double().mean()):
            assert abs(share - tail) < 4 * math.sqrt(tail / MILLION)
    assert abs(distribution.mean - mean) < 0.1


def test_huge_concentrations() -> None:
    """Where t^3 and its logarithm nearly cancel out."""
    for concentration in (1e12, 1e16, 1e30, 1e200):
        numbers = gamma(key(62), (MILLION // 10,), concentration=concentration, dtype=DOUBLE)
        if concentration < 1e20:
            assert fits((numbers - concentration) / math.sqrt(concentration), "norm")
        assert ((numbers / concentration - 1).abs() <= 9 / math.sqrt(concentration) + 1e-15).all()


def test_a_concentration_for_each_number() -> None:
    each = torch.tensor([0.01, 0.7, 1.0, 30.0])
    numbers = gamma(key(63), (MILLION // 10, 4), concentration=each, dtype=DOUBLE)
    for place, concentration in enumerate(each.tolist()):
        if concentration > 0.1:
            assert fits(numbers[:, place], "gamma", concentration)
        alone = gamma(key(63), (MILLION // 10, 4), concentration=concentration, dtype=DOUBLE)
        assert torch.equal(alone[:, place], numbers[:, place])
    transposed = gamma(key(63), (5, 4), concentration=torch.ones(4, 5).t() * each, dtype=DOUBLE)
    assert torch.equal(transposed, numbers[:5])
    of_rows = gamma(key(63), (3, 2), concentration=torch.tensor([[1.0], [2.0], [3.0]]))
    assert of_rows.shape == (3, 2)
    integers = gamma(key(63), (3, 2), concentration=torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.bfloat16))
    assert torch.equal(of_rows, integers)


def test_rounds_are_those_of_the_definition() -> None:
    """Number by number, in Python: the first round that accepts."""
    concentration, keys = 1.2, split(key(64), 1 + 2 * gamma_numbers.ROUNDS)
    d = concentration - 1 / 3
    proposed = torch.stack([normal(one, (400,), dtype=DOUBLE) for one in keys[1::2]])
    waiting = torch.stack([exponential(one, (400,), dtype=DOUBLE) for one in keys[2::2]])
    later = 0
    for place, number in enumerate(gamma(key(64), (400,), concentration=concentration, dtype=DOUBLE).tolist()):
        t = 1.0
        for turn in range(gamma_numbers.ROUNDS):
            x = proposed[turn, place].item()
            t = 1 + x / (3 * math.sqrt(d))
            if t > 0 and -waiting[turn, place].item() < x * x / 2 + d - d * t**3 + 3 * d * math.log(t):
                break
            later += turn == 0
        assert math.isclose(number, d * t**3, rel_tol=1e-13)
    assert later > 4


def test_few_numbers_are_rejected_often() -> None:
    """Of a concentration of 1, which is the worst, one in twenty: twelve rounds leave one in 2**52."""
    thirds = gamma_numbers.thirds(
        normal(key(65), (MILLION,), dtype=DOUBLE), exponential(key(66), (MILLION,), dtype=DOUBLE), torch.ones((), dtype=DOUBLE)
    )
    assert (thirds == 0).double().mean() ** gamma_numbers.ROUNDS < 2.0**-51.5


def test_what_no_round_gives_is_there_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "functions", dict)
    monkeypatch.setattr(gamma_numbers, "thirds", lambda normal, _waiting, _concentration: torch.zeros_like(normal))
    assert gamma(key(0), (2,), concentration=1.5, dtype=DOUBLE).tolist() == [1.5 - 1 / 3] * 2


@every_dtype
def test_dtypes(dtype: torch.dtype) -> None:
    for numbers in (
        gamma(key(67), (1000,), concentration=0.7, dtype=dtype),
        beta(key(67), (1000,), alpha=0.7, beta=2.0, dtype=dtype),
        dirichlet(key(67), (100, 10), concentration=0.7, dtype=dtype),
    ):
        assert numbers.dtype == dtype
        assert numbers.isfinite().all()
        assert (numbers >= 0).all()
    double = gamma(key(67), (1000,), concentration=0.7, dtype=DOUBLE)
    assert torch.equal(
        gamma(key(67), (1000,), concentration=0.7, dtype=dtype), double if dtype == DOUBLE else double.float().to(dtype)
    )


@pytest.mark.parametrize(("alpha", "other"), [(0.5, 0.5), (1.0, 1.0), (2.0, 5.0), (0.05, 3.0), (300.0, 0.2)])
def test_beta_fits_its_distribution(alpha: float, other: float) -> None:
    numbers = beta(key(68), (MILLION // 5,), alpha=alpha, beta=other, dtype=DOUBLE)
    if alpha > 0.1 and other > 0.3:
        assert fits(numbers, "beta", alpha, other)
    mean, total = alpha / (alpha + other), alpha + other
    variance = mean * (1 - mean) / (total + 1)
    assert abs(numbers.mean() - mean) < 4 * math.sqrt(variance / (MILLION // 5))
    assert 0 <= numbers.min() <= numbers.max() <= 1


def test_beta_of_tiny_concentrations() -> None:
    """Gamma numbers of which are 0 in float64, both."""
    numbers = beta(key(69), (MILLION // 10,), alpha=1e-5, beta=3e-5)
    assert numbers.isfinite().all()
    assert abs(numbers.mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / (MILLION // 10))


def test_dirichlet_fits_its_distribution() -> None:
    concentration = torch.tensor([0.3, 1.0, 4.0])
    vectors = dirichlet(key(70), (MILLION // 5, 3), concentration=concentration, dtype=DOUBLE)
    torch.testing.assert_close(vectors.sum(-1), torch.ones(MILLION // 5, dtype=DOUBLE))
    for place, own in enumerate(concentration.tolist()):
        assert fits(vectors[:, place], "beta", own, 5.3 - own)
    mean = concentration.double() / 5.3
    covariance = (mean.diag() - mean[:, None] * mean) / 6.3
    torch.testing.assert_close(vectors.t().cov(), covariance, rtol=0, atol=1e-3)
    sparse = dirichlet(key(71), (1000, 5), concentration=1e-5)
    assert sparse.isfinite().all()
    assert (sparse.amax(-1) > 0.999).double().mean() > 0.99


def test_keys_are_independent() -> None:
    numbers = torch.stack([gamma(one, (1000,), concentration=2.0, dtype=DOUBLE) for one in split(key(72), 300)])
    correlations = numbers.corrcoef()[torch.ones(300, 300, dtype=torch.bool).triu(1)] * math.sqrt(1000)
    assert correlations.abs().max() < 6
    assert abs(correlations.mean()) < 4 / math.sqrt(300 * 299 / 2)


def test_shapes() -> None:
    for shape in ((), (0,), (3, 0), (1,), (2, 3)):
        assert gamma(key(0), shape, concentration=1.0).shape == shape
        assert gamma(key(0), shape, concentration=torch.tensor(0.5)).shape == shape
        assert beta(key(0), shape, alpha=1.0, beta=0.5).shape == shape
        if shape:
            assert dirichlet(key(0), shape, concentration=1.0).shape == shape
    assert gamma(key(0), (0, 2), concentration=torch.ones(0, 2)).shape == (0, 2)
    assert dirichlet(key(0), (2, 1), concentration=0.1).tolist() == [[1.0], [1.0]]


@IN_FORWARD_MODE
def test_what_is_drawn_is_a_constant() -> None:
    concentration = torch.tensor([0.5, 2.0], requires_grad=True)
    assert not gamma(key(0), (2,), concentration=concentration).requires_grad
    assert not dirichlet(key(0), (2,), concentration=concentration).requires_grad

    def drawn(each: Tensor) -> Tensor:
        return gamma(key(0), (2,), concentration=each) * each

    expected = gamma(key(0), (2,), concentration=concentration.detach())
    assert torch.equal(torch.func.grad(lambda each: drawn(each).sum())(concentration.detach()), expected)
    assert torch.equal(torch.func.jvp(drawn, (concentration.detach(),), (torch.ones(2),))[1], expected)


def test_ensembles_draw_as_each_by_itself() -> None:
    keys, each = split(key(73), 3), torch.tensor([[0.5, 1.0], [3.0, 0.1], [1.0, 2.0]])
    expected = torch.stack([gamma(one, (4, 2), concentration=own) for one, own in zip(keys, each, strict=True)])
    assert torch.equal(torch.vmap(lambda one, own: gamma(one, (4, 2), concentration=own))(keys, each), expected)
    same = torch.stack([dirichlet(one, (4, 2), concentration=0.3) for one in keys])
    torch.testing.assert_close(torch.vmap(lambda one: dirichlet(one, (4, 2), concentration=0.3))(keys), same)


def test_wrong_parameters() -> None:
    for concentration in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"concentration must be a finite number above 0, not {concentration}"):
            gamma(key(0), (1,), concentration=concentration)
    with pytest.raises(ValueError, match="alpha must be of finite numbers above 0, and not all of these are"):
        beta(key(0), (2,), alpha=torch.tensor([1.0, 0.0]), beta=1.0)
    with pytest.raises(ValueError, match=r"concentration of shape \(3,\) does not go with numbers of shape \(2,\)"):
        gamma(key(0), (2,), concentration=torch.ones(3))
    with pytest.raises(TypeError, match=r"concentration must be a tensor of floating-point numbers, not of torch\.int64"):
        gamma(key(0), (2,), concentration=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"numbers of scale=1\.0 are not all finite in torch\.float16"):
        gamma(key(0), (2,), concentration=1e5, dtype=torch.float16)
    with pytest.raises(ValueError, match="a scale is a number of 0 or more, not -1"):
        gamma(key(0), (2,), concentration=1.0, scale=-1)
    with pytest.raises(ValueError, match="vectors have an axis at least"):
        dirichlet(key(0), (), concentration=1.0)


def test_where_concentrations_cannot_be_looked_at() -> None:
    traced = make_fx(lambda each: gamma(key(0), (2, 3), concentration=each))(torch.ones(3))
    assert traced(torch.tensor([1.0, -0.5, 0.0])).isnan().tolist() == [[False, True, True]] * 2


def test_golden_values() -> None:
    """If this fails, the stream has changed."""
    some_key = key(2**63 + 12345)
    torch.testing.assert_close(gamma(some_key, (3,), concentration=0.7), torch.tensor([0.09781631, 2.48365045, 1.98442543]))
    torch.testing.assert_close(beta(some_key, (2,), alpha=2.0, beta=0.5), torch.tensor([0.81873238, 0.98336822]))
    torch.testing.assert_close(dirichlet(some_key, (3,), concentration=1.0), torch.tensor([0.21001257, 0.34307197, 0.44691548]))
