"""Random numbers as a pure function of a key: the same key gives the same bits, everywhere and always.

There is no generator to advance and no global state. A key is a value; what is drawn from it is a function of it; new
keys are made from it by `split` and `fold_in`. Draw from a key once: two draws from one key are made of the same words.

Everything is made of a few operations on whole int64 tensors that never overflow, and of operations on floating-point
numbers that are rounded as IEEE 754 says. So eager, compiled and exported code, on any device, agree to the bit. Where a last
bit may differ all the same, `uniform` and `normal` say so. Normal numbers, and uniform ones outside [0, 1), pass through
float64 on the key's device. On the CPU, the same operations run in a loop in C, which is compiled once on each machine; where
there is no compiler for C, tensors do it, which takes some 30 times as long for many numbers.

The stream
----------
Files and papers rely on what follows; it does not change.

*Words* are unsigned 32-bit integers, held in int64. A *key* is two words: of ``key(seed)``, the low one and the high one
of the 64-bit seed. A *block* is four words, Philox4x32-10 of the key and of a *counter* of four words:

- words 0 and 2: the low and the high word of the block's *position*, from 0 to 2**64 - 1;
- words 1 and 3: the *purpose*, which is 0 for `bits` and all that is drawn, 1 for `fold_in`, 2 for `split`.

``fold_in(key, data)`` is words 0 and 1 of the block at position ``data``; key number i of ``split(key, count)`` is words 0
and 1 of the block at position i. A draw of any shape fills it in row-major order, from block 0 on, and the number at
place i depends on nothing but the key and i:

- `bits`, `bernoulli`, and `uniform` in other dtypes than float64: word i % 4 of block i // 4; a float is made of its
  most significant bits.
- `uniform` in float64, `randint`, `permutation`, `normal`, `truncated_normal`: words 2 (i % 2), the more significant, and
  2 (i % 2) + 1 of block i // 2. `normal` takes a block for two numbers: its words 0 and 1 are their common radius, 2 and
  3 their angle.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
"""

import math
from array import array
from numbers import Real
from typing import Final, TypeAlias

import torch
from torch import Tensor

from fundl._common import draws, philox, representable
from fundl._common.keys import require_key, require_key_and_shape
from fundl._common.modes import is_readable
from fundl._common.suggestions import with_explanations

__all__ = [
    "Key", "bernoulli", "bits", "fold_in", "key", "normal", "permutation", "randint", "split", "truncated_normal", "uniform",
]  # fmt: skip

Key: TypeAlias = Tensor
"""Two 32-bit words in an int64 tensor of shape (2,), as `key`, `split` and `fold_in` make them. To checkers it is a Tensor."""

_LARGEST_RANGE: Final = 2**40


# --- Keys -----------------------------------------------------------------------------------------------------------


@with_explanations
def key(seed: int, *, device: torch.device | str | None = None) -> Key:
    """The key of a seed.

    Args:
        seed: any integer from 0 to 2**64 - 1. Neighbouring seeds are as unlike as any two.
        device: where the key lives, and with it all that is drawn from it.

    Raises:
        TypeError: the seed is not an int.
        ValueError: the seed is negative, or does not fit into 64 bits.

    >>> key(7)
    tensor([7, 0])
    """
    _require_64_bits(seed, "a seed")
    return torch.tensor((seed & philox.WORD, seed >> 32), device=device)


def fold_in(key: Key, data: int | Tensor) -> Key:
    """A new key from a key and a number: of a step, an epoch, a layer, a device.

    Args:
        key: the key to derive from.
        data: an int from 0 to 2**64 - 1, or a tensor of one integer, such as the counter of a compiled step. A negative
            integer in a tensor stands for itself plus 2**64.

    Raises:
        TypeError: data is neither an int nor a tensor of integers.
        ValueError: data is negative or does not fit into 64 bits, or is a tensor of more than one number.

    >>> step = torch.tensor(3)
    >>> torch.equal(fold_in(key(0), step), fold_in(key(0), 3))
    True
    """
    require_key(key)
    if isinstance(data, Tensor):
        if data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
            raise TypeError(f"the number to fold in must be an integer, not {data.dtype}")
        if data.numel() != 1:
            raise ValueError(f"one number can be folded in, not a tensor of shape {tuple(data.shape)}")
        if not is_readable(data):
            words = philox.keys(draws.words_of(key), data.to(key.device, torch.int64).reshape(1), philox.FOLD_IN).reshape(2)
            return _of_same_part(words, key)
        data = int(data) % 2**64
    _require_64_bits(data, "the number to fold in")
    return _of_same_part(draws.keys(draws.words_of(key), data if data < 2**63 else data - 2**64, (2,), philox.FOLD_IN), key)


def split(key: Key, count: int = 2) -> Tensor:
    """New keys from a key, independent of each other and of it.

    Args:
        key: the key to split. Do not draw from it afterwards.
        count: how many keys to make. The first keys are the same for any count.

    Shape:
        (count, 2): iterating over it gives keys.

    Raises:
        ValueError: the count is negative.

    >>> weight_key, bias_key = split(key(0))
    >>> weight_key.shape
    torch.Size([2])
    """
    require_key(key)
    if type(count) is not int:
        raise TypeError(f"how many keys to make must be an int, not {count!r}: write split(key, 2), say")
    if count < 0:
        raise ValueError(f"a key can be split into 0 or more keys, not {count}")
    return _of_same_part(draws.keys(draws.words_of(key), 0, (count, 2), philox.SPLIT), key)


def of_part(key: Key, part: Tensor) -> Key:
    """The key that draws a part of the rows of what a key draws: each process draws those of its own rows of a batch.

    Each draw is of rows along its first axis. Of a whole draw, it gives the rows place, place + size, place + 2 size, ... A
    draw may have several lines for each row, one behind the other, such as the steps of sequences that were made one axis.
    Keys that are made from it, by `split` and `fold_in`, draw the same part. `train_step` gives such keys to the layers of a
    model that is trained over a group of processes.

    Args:
        key: of the whole draw.
        part: three integers, on the key's device: place, the first row; size, the distance to the next one; and how many rows
            there are.

    >>> part = of_part(key(0), torch.tensor([1, 2, 2]))
    >>> torch.equal(uniform(part, (2, 3)), uniform(key(0), (4, 3))[1::2])
    True
    """
    require_key(key)
    unchecked: object = part
    if not isinstance(unchecked, Tensor) or part.shape != (3,) or part.dtype != torch.int64:
        raise TypeError(f"a part is an int64 tensor of three numbers, place, size and rows, not {part!r}")
    return torch.cat((draws.words_of(key), part))


def of_piece(key: Key, piece: Tensor) -> Key:
    """The key that draws a piece of each line of what a key draws: a process that has some of the features draws those.

    Each draw is of lines, along its last axis. Of n equal pieces, which the lines of a whole draw would have, one behind the
    other, it gives the piece of one place in each. The key may be one `of_part`. `distributed.tensor_parallel` gives such keys
    to layers that change each feature by itself.

    Args:
        key: of the whole draw.
        piece: two integers, on the key's device: place, from 0 on; and n.

    >>> piece = of_piece(key(0), torch.tensor([1, 2]))
    >>> torch.equal(uniform(piece, (3, 4)), uniform(key(0), (3, 8))[:, 4:])
    True
    """
    require_key(key)
    unchecked: object = piece
    if not isinstance(unchecked, Tensor) or piece.shape != (2,) or piece.dtype != torch.int64:
        raise TypeError(f"a piece is an int64 tensor of two numbers, place and how many pieces there are, not {piece!r}")
    if key.shape == (7,):
        raise ValueError("the key is of a piece already: make the other piece of the key that it was made of")
    rows = key if draws.is_of_part(key) else torch.cat((key, key.new_tensor([0, 1, 1])))
    return torch.cat((rows, piece))


def _of_same_part(keys: Tensor, key: Key) -> Tensor:
    """Keys that draw the part of the rows that another one draws."""
    if not draws.is_of_part(key):
        return keys
    return torch.cat((keys, key[2:].expand(*keys.shape[:-1], key.shape[-1] - 2)), -1)


def split_twice(key: Key, places: "array[int]", count: int) -> tuple[Key, ...]:
    """The keys ``split(split(key, ...)[place], count)`` of some places, in order, of 64 bits each; one behind the other."""
    require_key(key)
    return draws.nested_keys(draws.words_of(key), places, count, philox.SPLIT)


# --- Integers -------------------------------------------------------------------------------------------------------


def bits(key: Key, shape: tuple[int, ...]) -> Tensor:
    """Random 32-bit words: integers from 0 to 2**32 - 1, all equally likely, in int64.

    Args:
        key: a key that nothing else was drawn from.
        shape: of the result.

    The first block of key 0 is a published test vector of Philox:

    >>> [f"{word:08x}" for word in bits(key(0), (4,)).tolist()]
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

    >>> randint(key(0), (5,), low=1, high=7)
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

    >>> permutation(key(0), 5)
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

    >>> bernoulli(key(0), (4,), probability=0.5)
    tensor([ True, False, False, False])
    """
    if type(probability) is not float:
        _require_numbers(probability=probability)
    if not 0 <= probability <= 1:
        raise ValueError(f"a probability is a number from 0 to 1, not {probability}")
    require_key_and_shape(key, shape)
    return draws.booleans(key, shape, draws.threshold(probability))


# --- Floating point -------------------------------------------------------------------------------------------------


def uniform(
    key: Key, shape: tuple[int, ...], *, low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Random numbers from low up to, but never, high: low + (high - low) k / 2**d, where k has d random bits.

    d is the precision of the dtype: 53 bits for float64, 24 for float32, 11 for float16, 8 for bfloat16. In [0, 1) these
    numbers are exact. Elsewhere they are computed in float64, rounded once, and where that would give high, the next
    number below it is taken. In float64 itself, whether the last bit is that of two roundings or of one (where a compiler
    fuses the multiplication with the addition) is the one thing that may differ between machines.

    Args:
        key: a key that nothing else was drawn from.
        shape: of the result.
        low: the least number that may come.
        high: the bound that never comes. Both bounds are rounded to the dtype.
        dtype: float64, float32, float16 or bfloat16.

    Raises:
        TypeError: the dtype is none of these.
        ValueError: no number of the dtype is in [low, high), or a bound is too large for the dtype.

    >>> uniform(key(0), (3,))
    tensor([0.3990, 0.8805, 0.7357])
    """
    digits = representable.digits_of(dtype)
    require_key_and_shape(key, shape)
    if type(low) is not float or type(high) is not float:
        _require_numbers(low=low, high=high)
    if low == 0 and high == 1:
        return draws.unit(key, shape, digits, dtype)
    is_compiling = torch.compiler.is_compiling()  # which warns of caches
    bounds = representable.bounds if is_compiling else representable.kept_bounds
    span, greatest = bounds(low, high, dtype)
    return draws.uniform(key, shape, digits, dtype, span=span, low=low, greatest=greatest)


def normal(
    key: Key, shape: tuple[int, ...], *, mean: float = 0.0, std: float = 1.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Random numbers of the normal distribution, by the method of Box and Muller.

    Two at a time: mean + std sqrt(-2 log u) (cos(2 pi v), sin(2 pi v)), with u uniform in (0, 1] and v in [0, 1).

    u and v have 53 bits, so no number is further than 8.58 std from the mean. All is computed in float64, without functions of
    a library, and rounded once. Where a compiler contracts products and sums, as those for GPUs do, the last bit of float64
    may differ, which shows in float32 less than once in 10**8 numbers.
    Key, shape and dtype are as in `uniform`.

    Args:
        mean: of the distribution.
        std: its standard deviation, not negative.

    Raises:
        ValueError: std is negative, or the numbers could be too large for the dtype.

    Source: Box and Muller, "A note on the generation of random normal deviates", 1958.

    >>> normal(key(0), (3,))
    tensor([-0.1215, -1.3500, -0.0819])
    """
    _require_scale(mean, std, dtype, reach=9.0)
    require_key_and_shape(key, shape)
    return draws.normal(key, shape, dtype, std=std, mean=mean)


def truncated_normal(
    key: Key,
    shape: tuple[int, ...],
    *,
    mean: float = 0.0,
    std: float = 1.0,
    low: float = -2.0,
    high: float = 2.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Random numbers of the normal distribution, given that they are between two bounds.

    By inversion: mean + std Q(P(low) + (P(high) - P(low)) u), with u uniform in (0, 1), P the distribution function of the
    standard normal distribution, and Q the inverse of P.

    mean and std are those of the distribution before it is truncated, and as in `normal`, like all but the bounds. All is
    computed in float64 and rounded once, but never across a bound, if a number of the dtype is between the two.

    Args:
        low: the least number that may come, in standard deviations from the mean; may be -inf.
        high: the greatest, likewise; may be inf.

    Raises:
        ValueError: as `normal`; or low is not less than high, or hardly any probability is between them (less than 1e-300,
            some 37 standard deviations away).

    >>> truncated_normal(key(0), (3,), std=0.02)
    tensor([-0.0049,  0.0120,  0.0330])
    """
    if type(low) is not float or type(high) is not float:
        _require_numbers(low=low, high=high)
    if not low < high:
        raise ValueError(f"the bounds of a truncated normal must be low < high, not low={low}, high={high}")
    _require_scale(mean, std, dtype, reach=min(max(abs(low), abs(high)), 38.0))
    mirrored = low > 0  # small probabilities are precise, those near 1 are not
    left, right = (-high, -low) if mirrored else (low, high)
    least = _normal_probability(left)
    mass = _normal_probability(right) - least
    if mass < 1e-300:
        raise ValueError(f"less than 1e-300 of the normal distribution is between low={low} and high={high}")
    halves = 2 * _integers(key, shape, 52) + 1  # odd: u is neither 0 nor 1
    probabilities = halves.to(torch.float64) * (mass * 2.0**-53) + least
    deviations: Tensor = torch.special.ndtri(probabilities).clamp(left, right)
    numbers = deviations * (-std if mirrored else std) + mean
    ends = _ends(mean + low * std, mean + high * std, dtype) if std else (mean, mean)  # 0 times infinity is not a number
    return numbers.clamp(*ends).to(dtype)


def _ends(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The least and the greatest number of a dtype in [low, high]; if none is, the bounds, which then are rounded alike."""
    least, greatest = representable.rounded_to(low, dtype, math.ceil), representable.rounded_to(high, dtype, math.floor)
    return (least, greatest) if least <= greatest else (low, high)


def _normal_probability(x: float) -> float:
    """The probability that a standard normal number is less than x, precise where it is small."""
    return math.erfc(-x / math.sqrt(2)) / 2


def _integers(key: Key, shape: tuple[int, ...], digits: int) -> Tensor:
    require_key_and_shape(key, shape)
    return draws.integers(key, shape, digits)


# --- Errors ---------------------------------------------------------------------------------------------------------


def _require_64_bits(number: int, name: str) -> None:
    if type(number) is not int:
        raise TypeError(f"{name} must be an int, not {number!r}")
    if not 0 <= number < 2**64:
        raise ValueError(f"{name} must be from 0 to 2**64 - 1, not {number}")


def _require_numbers(**numbers: object) -> None:
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Real):
            raise TypeError(f"{name} must be a number, not {number!r}")


def _require_scale(mean: float, std: float, dtype: torch.dtype, *, reach: float) -> None:
    """Raise unless all numbers within so many standard deviations are finite in the dtype."""
    representable.digits_of(dtype)
    if type(mean) is not float or type(std) is not float:
        _require_numbers(mean=mean, std=std)
    if not std >= 0:
        raise ValueError(f"a standard deviation is a number of 0 or more, not {std}")
    if not abs(mean) + reach * std <= representable.GREATEST[dtype]:
        raise ValueError(f"numbers of mean={mean} and std={std} are not all finite in {dtype}")
