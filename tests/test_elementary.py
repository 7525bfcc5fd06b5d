"""Functions of which random numbers are made: right at their limits, and no more than a compiler can take."""

import math

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from fundl._common.elementary import exponential, logarithm
from fundl._common.looping import kept_as_loops
from fundl._common.normal_numbers import BITS

POWERS = [2**power for power in range(BITS + 1)]
MIDDLE = int(2**BITS * math.sqrt(0.5))  # where the fraction begins to be doubled


@pytest.mark.parametrize("near", [-1, 0, 1])
def test_thelogarithm_is_right_around_its_limits(near: int) -> None:
    numbers = [number + near for number in [*POWERS, MIDDLE, MIDDLE // 2**20] if 0 < number + near <= 2**BITS]
    found = logarithm(torch.tensor(numbers, dtype=torch.float64), BITS)
    expected = [math.log(number) - BITS * math.log(2) if number < 2 ** (BITS - 1) else _near_one(number) for number in numbers]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0.0)


def _near_one(number: int) -> float:
    return math.log1p((number - 2**BITS) / 2**BITS)


def test_a_compiler_that_puts_values_where_they_are_used_can_take_it() -> None:
    """torch 2.13's computes a value anew in each place that uses it, and does so up to 50 operations deep: mind the powers."""

    def of_integers(x: Tensor) -> Tensor:
        return logarithm(x, BITS)

    sizes: dict[fx.Node, int] = {}
    for node in make_fx(of_integers)(torch.ones(2, dtype=torch.float64)).graph.nodes:
        sizes[node] = 1 + sum(sizes[argument] for argument in node.args if isinstance(argument, fx.Node))
    assert max(sizes.values()) < 5000


def _no_loop(*_: object, **__: object) -> tuple[list[Tensor], list[Tensor]]:
    raise AssertionError("there is no loop")


def test_the_exponential_function() -> None:
    numbers = [0.0, -1e-300, -(2.0**-53), -0.1, -0.5 * math.log(2), -1.0, -3.7, -36.7, -100.0, -345.6, -699.9, -700.0]
    found = exponential(torch.tensor(numbers, dtype=torch.float64))
    expected = torch.tensor([math.exp(number) for number in numbers], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=3e-16, atol=0.0)
    with kept_as_loops(_no_loop):  # where bits cannot be looked at
        assert torch.equal(exponential(torch.tensor(numbers, dtype=torch.float64)), found)
    assert exponential(torch.tensor([-700.1, -1e300, -math.inf], dtype=torch.float64)).tolist() == [0.0] * 3


def test_both_ways_to_take_a_number_apart() -> None:
    numbers = torch.logspace(0, 18.9, 1000, dtype=torch.float64)
    found = logarithm(numbers, BITS)
    torch.testing.assert_close(found, numbers.log() - BITS * math.log(2), rtol=1e-15, atol=1e-14)
    with kept_as_loops(_no_loop):
        assert torch.equal(logarithm(numbers, BITS), found)
