"""Classes by their logits and integers by their probabilities: how often they come, and what never does."""

import itertools
import math
from typing import Final

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fundl.random import categorical, choice, gumbel, key, permutation, randint, split
from tests.test_random import DTYPES, chi_square, even

INFINITE: Final = math.inf
MANY: Final = 200_000


def come(found: Tensor, likelihoods: Tensor) -> bool:
    """Whether integers come as often as they should."""
    counts = found.flatten().bincount(minlength=len(likelihoods))
    possible = likelihoods > 0
    expected = likelihoods[possible].double() / likelihoods.sum() * found.numel()
    scaled = counts[possible] / expected * found.numel() / possible.sum()  # as if all were alike
    statistic = ((counts[possible] - expected) ** 2 / expected).sum().item()
    free = int(possible.sum()) - 1
    return bool(counts[~possible].sum() == 0) and statistic < free + 5 * math.sqrt(2 * free) and len(scaled) > 0


# --- By logits ----------------------------------------------------------------------------------------------------------


def test_classes_come_as_often_as_they_should() -> None:
    logits = torch.tensor([0.0, 1.0, -INFINITE, 2.5, -3.0, -INFINITE])
    assert come(categorical(key(80), logits, shape=(MANY,)), logits.softmax(-1))
    assert come(categorical(key(81), logits + 1e6, shape=(MANY,)), logits.softmax(-1))
    rows = torch.stack((logits, logits.flip(0)))
    drawn = categorical(key(82), rows, shape=(MANY,))
    assert come(drawn[:, 0], logits.softmax(-1))
    assert come(drawn[:, 1], logits.flip(0).softmax(-1))
    assert even((drawn[:, 0] == 3).long().mul(2).add(drawn[:, 1] == 2).bincount()[1:3])  # neither more often than the other


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_the_place_of_the_greatest(dtype: torch.dtype) -> None:
    logits = torch.linspace(-1, 1, 24).reshape(2, 4, 3).to(dtype)
    noise = gumbel(key(83), (5, 2, 4, 3), dtype=torch.float64)
    assert torch.equal(categorical(key(83), logits, shape=(5,)), (logits.double() + noise).argmax(-1))


def test_axes_and_layouts() -> None:
    logits = torch.linspace(-1, 1, 24).reshape(2, 4, 3)
    expected = categorical(key(84), logits)
    assert expected.shape == (2, 4)
    assert torch.equal(categorical(key(84), logits.movedim(-1, 0), axis=0), expected)
    assert torch.equal(categorical(key(84), logits.movedim(-1, 1).contiguous(), axis=-2), expected)
    assert categorical(key(84), logits[:0]).shape == (0, 4)
    assert categorical(key(84), logits, shape=(0, 5)).shape == (0, 5, 2, 4)
    assert categorical(key(84), logits[0, 0]).shape == ()
    assert categorical(key(84), torch.zeros(3, 1)).tolist() == [0, 0, 0]


def test_logits_that_are_no_distribution() -> None:
    for wrong in (math.nan, INFINITE):
        with pytest.raises(ValueError, match="the greatest logit of each distribution must be finite, and not all are"):
            categorical(key(0), torch.tensor([[0.0, 1.0], [0.0, wrong]]))
    nothing = torch.tensor([[0.0, 1.0], [-INFINITE, -INFINITE]])
    with pytest.raises(ValueError, match="the greatest logit"):
        categorical(key(0), nothing)
    traced = make_fx(lambda logits: categorical(key(0), logits))(torch.zeros(2, 2))
    assert traced(nothing).tolist()[1] == -1
    assert traced(torch.tensor([[math.nan, 0.0], [1.0, INFINITE]])).tolist() == [-1, -1]


def test_wrong_logits() -> None:
    with pytest.raises(TypeError, match=r"logits must be a tensor of floating-point numbers, not of torch\.int64"):
        categorical(key(0), torch.tensor([1, 2]))
    for axis in (1, -2):
        with pytest.raises(ValueError, match=rf"axis={axis} is none of the logits, whose shape is \(2,\)"):
            categorical(key(0), torch.zeros(2), axis=axis)
    with pytest.raises(ValueError, match="axis=-1 is none of the logits"):
        categorical(key(0), torch.zeros(()))
    with pytest.raises(ValueError, match=r"there is no class along axis -1 of logits of shape \(2, 0\)"):
        categorical(key(0), torch.zeros(2, 0))


def test_ensembles_draw_as_each_by_itself() -> None:
    keys, logits = split(key(85), 3), torch.linspace(-1, 1, 12).reshape(3, 4)
    expected = torch.stack([categorical(one, own, shape=(5,)) for one, own in zip(keys, logits, strict=True)])
    assert torch.equal(torch.vmap(lambda one, own: categorical(one, own, shape=(5,)))(keys, logits), expected)
    assert not categorical(key(0), logits.requires_grad_()).requires_grad


# --- By probabilities ---------------------------------------------------------------------------------------------------

WEIGHTS: Final = torch.tensor([0.0, 3.0, 1.0, 0.0, 0.5, 2.0, 0.0])


def test_choices_with_replacement() -> None:
    assert torch.equal(choice(key(90), 7, (3, 4)), randint(key(90), (3, 4), low=0, high=7))
    for weights in (WEIGHTS, WEIGHTS.double() * 1e-300, WEIGHTS.bfloat16()):
        assert come(
            choice(key(91), 7, (MANY,), probabilities=weights), weights.float() if weights.dtype != torch.float64 else WEIGHTS
        )
    assert choice(key(91), 1, (3,), probabilities=torch.ones(1)).tolist() == [0] * 3


def test_choices_without_replacement() -> None:
    assert torch.equal(choice(key(92), 9, (2, 3), replace=False), permutation(key(92), 9)[:6].reshape(2, 3))
    drawn = choice(key(92), 7, (2, 2), replace=False, probabilities=WEIGHTS)
    assert sorted(drawn.flatten().tolist()) == [1, 2, 4, 5]


def test_orders_come_as_often_as_they_should() -> None:
    """Each next one by the probabilities of those that are left."""
    weights = torch.tensor([3.0, 1.0, 0.5])
    keys = split(key(93), 40_000)
    drawn = torch.vmap(lambda one: choice(one, 3, (2,), replace=False, probabilities=weights))(keys)
    likelihoods = torch.zeros(9)
    for first, second in itertools.permutations(range(3), 2):
        likelihoods[3 * first + second] = weights[first] / 4.5 * weights[second] / (4.5 - weights[first])
    assert come(drawn[:, 0] * 3 + drawn[:, 1], likelihoods)
    alike = torch.vmap(lambda one: choice(one, 4, (2,), replace=False))(split(key(94), 12_000))
    counts = (alike[:, 0] * 4 + alike[:, 1]).bincount(minlength=16)
    assert chi_square(counts[counts > 0].numpy()).pvalue > 1e-3
    assert (counts > 0).sum() == 12


def test_no_choices() -> None:
    for replace in (True, False):
        assert choice(key(0), 3, (0, 2), replace=replace).shape == (0, 2)
        assert choice(key(0), 0, (0,), replace=replace).shape == (0,)
        assert choice(key(0), 3, (), replace=replace, probabilities=torch.ones(3)).shape == ()


def test_wrong_choices() -> None:
    with pytest.raises(ValueError, match="4 integers cannot be chosen from 3 without replacement"):
        choice(key(0), 3, (2, 2), replace=False)
    with pytest.raises(ValueError, match="2 integers cannot be chosen from 0"):
        choice(key(0), 0, (2,))
    with pytest.raises(ValueError, match="0 integers cannot be chosen from -1"):
        choice(key(0), -1, (0,))
    with pytest.raises(ValueError, match=r"probabilities must be of shape \(3,\), one for each integer, not \(2,\)"):
        choice(key(0), 3, (2,), probabilities=torch.ones(2))
    for wrong in (-1.0, math.nan, INFINITE):
        with pytest.raises(ValueError, match="probabilities must be finite numbers of 0 or more, and not all of these are"):
            choice(key(0), 2, (2,), probabilities=torch.tensor([1.0, wrong]))
    with pytest.raises(ValueError, match="2 integers cannot be chosen, for 1 of the probabilities are above 0"):
        choice(key(0), 2, (2,), replace=False, probabilities=torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="1 integers cannot be chosen, for 0 of the probabilities are above 0"):
        choice(key(0), 2, (2,), probabilities=torch.zeros(2))


@pytest.mark.parametrize("replace", [True, False])
def test_where_probabilities_cannot_be_looked_at(replace: bool) -> None:
    def chosen(weights: Tensor) -> Tensor:
        return choice(key(0), 3, (2,), replace=replace, probabilities=weights)

    traced = make_fx(chosen)(torch.ones(3))
    for weights in (torch.zeros(3), torch.full((3,), math.nan)):
        assert traced(weights).tolist() == [-1, -1]
    assert torch.equal(traced(WEIGHTS[1:4] + 1), chosen(WEIGHTS[1:4] + 1))


def test_golden_values() -> None:
    """If this fails, the stream has changed."""
    some_key, weights = key(2**63 + 12345), torch.linspace(0.1, 1, 9)
    assert categorical(some_key, torch.zeros(9), shape=(6,)).tolist() == [2, 1, 1, 0, 6, 7]
    assert choice(some_key, 9, (4,)).tolist() == [0, 3, 2, 4]
    assert choice(some_key, 9, (4,), probabilities=weights).tolist() == [3, 7, 8, 5]
    assert choice(some_key, 9, (4,), replace=False).tolist() == [6, 8, 0, 4]
    assert choice(some_key, 9, (4,), replace=False, probabilities=weights).tolist() == [7, 2, 5, 1]
