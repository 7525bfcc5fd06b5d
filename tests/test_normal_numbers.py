"""The logarithm of which normal numbers are made: right at its limits, and no more than a compiler can take."""

import math

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from fundl._common.normal_numbers import BITS, _logarithm

POWERS = [2**power for power in range(BITS + 1)]
MIDDLE = int(2**BITS * math.sqrt(0.5))  # where the fraction begins to be doubled


@pytest.mark.parametrize("near", [-1, 0, 1])
def test_the_logarithm_is_right_around_its_limits(near: int) -> None:
    numbers = [number + near for number in [*POWERS, MIDDLE, MIDDLE // 2**20] if 0 < number + near <= 2**BITS]
    found = _logarithm(torch.tensor(numbers, dtype=torch.float64), BITS)
    expected = [math.log(number) - BITS * math.log(2) if number < 2 ** (BITS - 1) else _near_one(number) for number in numbers]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0.0)


def _near_one(number: int) -> float:
    return math.log1p((number - 2**BITS) / 2**BITS)


def test_a_compiler_that_puts_values_where_they_are_used_can_take_it() -> None:
    """torch 2.13's computes a value anew in each place that uses it, and does so up to 50 operations deep: mind the powers."""

    def logarithm(x: Tensor) -> Tensor:
        return _logarithm(x, BITS)

    sizes: dict[fx.Node, int] = {}
    for node in make_fx(logarithm)(torch.ones(2, dtype=torch.float64)).graph.nodes:
        sizes[node] = 1 + sum(sizes[argument] for argument in node.args if isinstance(argument, fx.Node))
    assert max(sizes.values()) < 5000
