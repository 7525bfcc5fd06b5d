"""Gamma numbers of any concentration, by rounds of which the first that gives a number counts."""

import torch
from torch import Tensor

from fundl._common import draws, gamma_numbers
from fundl._common.gamma_numbers import ROUNDS
from fundl._common.modes import is_readable
from fundl.random._keys import Key, split


def standard_gamma(key: Key, shape: tuple[int, ...], concentration: Tensor) -> tuple[Tensor, Tensor]:
    """Factors and logarithms of others, whose products factor exp(logarithm) are gamma numbers: both in float64.

    Numbers of a concentration a below 1 are those of a + 1 times u^(1/a), which may be less than any float64 number. Of others,
    the logarithm is 0.
    """
    is_small = concentration < 1
    factor = _of_large(key, shape, torch.where(is_small, concentration + 1, concentration))
    if is_readable(is_small) and not is_small.any():
        return factor, factor.new_zeros(())
    waiting = draws.exponential(split(key, 1)[0], shape, torch.float64, scale=1.0)
    return factor, torch.where(is_small, -waiting / concentration, 0.0)


def _of_large(key: Key, shape: tuple[int, ...], concentration: Tensor) -> Tensor:
    """Gamma numbers of concentrations of 1 or more."""
    if is_readable(concentration) and (drawn := draws.in_c("gamma_float64", key)) is not None:
        each = concentration.expand(shape).contiguous() if concentration.ndim else concentration
        return drawn(key, shape, each.data_ptr(), min(concentration.ndim, 1))
    found = torch.ones((), dtype=torch.float64, device=key.device)
    for third in reversed(_rounds(key, shape, concentration)):
        found = torch.where(third > 0, third, found)
    return gamma_numbers.cubed(found, concentration)


def _rounds(key: Key, shape: tuple[int, ...], concentration: Tensor) -> list[Tensor]:
    """What each round gives, 0 where it gives nothing; no more rounds than are needed, where that can be seen."""

    def thirds(keys: Tensor) -> Tensor:
        normal = draws.normal(keys[0], shape, torch.float64, std=1.0, mean=0.0)
        return gamma_numbers.thirds(normal, draws.exponential(keys[1], shape, torch.float64, scale=1.0), concentration)

    keys = split(key, 1 + 2 * ROUNDS)[1:].reshape(ROUNDS, 2, -1)
    if not (is_readable(key) and is_readable(concentration)):
        return [*torch.vmap(thirds)(keys).unbind()]
    rounds: list[Tensor] = []
    are_missing = torch.ones(shape, dtype=torch.bool, device=key.device)
    for of_round in keys:
        rounds.append(thirds(of_round))
        are_missing = are_missing & (rounds[-1] == 0)
        if not are_missing.any():
            break
    return rounds
