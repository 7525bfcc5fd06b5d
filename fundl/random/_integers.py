"""Integers, booleans and signs that are drawn from a key."""

from typing import Final

import torch
from torch import Tensor

from fundl._common import draws, representable
from fundl._common.keys import require_key, require_key_and_shape
from fundl.random._keys import Key
from fundl.random._requirements import require_numbers

_LARGEST_RANGE: Final = 2**40


def bits(key: Key, shape: tuple[int, ...]) -> Tensor:
    """Random 32-bit words: integers from 0 to 2**32 - 1, all equally likely, in int64.

    Args:
        key: a key that nothing else was drawn from.
        shape: of the result.

    The first block of key 0 is a published test vector of Philox:

    >>> from fundl import key, random
    >>> [f"{word:08x}" for word in random.bits(key(0), (4,)).tolist()]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    return _integers(key, shape, 32)


def randint(key: Key, shape: tuple[int, ...], *, low: int, high: int) -> Tensor:
    """Random integers from low to high - 1, in int64: 63 random bits modulo (high - low), plus low.

    Their probabilities differ by less than (high - low) / 2**63 of their size: by 2**-32 for a range of 2**31. Key and shape
    are as in `bits`.

    Args:
        low: the least integer that may come.
        high: one more than the greatest, at most low + 2**40.

    Raises:
        TypeError: a bound is not an int.
        ValueError: there is no integer in [low, high), there are more than 2**40, or they do not fit into int64.

    >>> from fundl import key, random
    >>> random.randint(key(0), (5,), low=1, high=7)
    tensor([5, 1, 4, 4, 4])
    """
    if type(low) is not int or type(high) is not int:
        raise TypeError(f"the bounds of random integers are ints, not low={low!r} and high={high!r}")
    if low >= high:
        raise ValueError(f"no integer is in [low, high) = [{low}, {high}): low must be less than high")
    if high - low > _LARGEST_RANGE:
        raise ValueError(
            f"[low, high) = [{low}, {high}) is wider than 2**40: make such integers from the words of bits(key, shape)"
        )
    if low < -(2**63) or high > 2**63:
        raise ValueError(f"the integers in [low, high) = [{low}, {high}) do not fit into int64")
    return _integers(key, shape, 63) % (high - low) + low


def permutation(key: Key, count: int) -> Tensor:
    """The integers from 0 to count - 1 in random order, all orders equally likely: the argsort of 63 random bits each.

    Args:
        key: as in `bits`.
        count: how many integers.

    Raises:
        ValueError: the count is negative.

    >>> from fundl import key, random
    >>> random.permutation(key(0), 5)
    tensor([4, 0, 3, 1, 2])
    """
    unchecked: object = count
    if type(count) is not int and not isinstance(unchecked, torch.SymInt):  # a size that an exported function leaves free
        raise TypeError(f"how many integers to permute must be an int, not {count!r}: write permutation(key, 10), say")
    if count < 0:
        raise ValueError(f"a permutation is of 0 or more integers, not {count}")
    require_key(key)
    return _integers(draws.words_of(key), (count,), 63).argsort(stable=True)


def bernoulli(key: Key, shape: tuple[int, ...], *, probability: float) -> Tensor:
    """Random booleans that are True with a probability.

    The probability is rounded to a multiple of 2**-32. Of 0 comes nothing but False, of 1 nothing but True. Key and shape are
    as in `bits`.

    Args:
        probability: of True, from 0 to 1.

    Raises:
        ValueError: the probability is not in [0, 1].

    >>> from fundl import key, random
    >>> random.bernoulli(key(0), (4,), probability=0.5)
    tensor([ True, False, False, False])
    """
    if type(probability) is not float:
        require_numbers(probability=probability)
    if not 0 <= probability <= 1:
        raise ValueError(f"a probability is a number from 0 to 1, not {probability}")
    require_key_and_shape(key, shape)
    return draws.booleans(key, shape, draws.threshold(probability))


def rademacher(key: Key, shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random signs, 1 and -1, equally likely: 1 where `bernoulli` of 1/2 is True. Key, shape and dtype are as in `uniform`.

    >>> from fundl import key, random
    >>> random.rademacher(key(0), (4,))
    tensor([ 1., -1., -1., -1.])
    """
    representable.digits_of(dtype)
    require_key_and_shape(key, shape)
    return draws.booleans(key, shape, draws.threshold(0.5)).to(dtype) * 2 - 1


def _integers(key: Key, shape: tuple[int, ...], digits: int) -> Tensor:
    require_key_and_shape(key, shape)
    return draws.integers(key, shape, digits)
