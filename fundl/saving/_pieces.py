"""Where the numbers of a part of a tensor are in the whole, and the checksum of a whole of which several have parts.

CRC-32 without its first and last step is linear: the remainder of a whole is the sum (exclusive or) of those of its parts, each
with zeros in place of all that it has not; and a remainder is taken past zeros by a matrix of bits.

Source: Adler, crc32_combine of zlib, 2006.
"""

import functools
import itertools
import zlib
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from fundl.tree import Cuts, Split


class Run(NamedTuple):
    """So many numbers that are one behind the other both in a part, from a place on, and in the whole."""

    own: int
    whole: int
    length: int


def runs(shape: Sequence[int], whole: Sequence[int], cuts: Cuts) -> Iterator[Run]:
    """The numbers of a part of some shape in the whole, in their order there. Rows that the whole has not are left out."""
    along = [_along(size, [split for split in cuts if split.axis == axis - len(shape)]) for axis, size in enumerate(shape)]
    inner = 1  # numbers of the last axes, which are the same in both
    while along and along[-1] == [Run(0, 0, shape[len(along) - 1])] and shape[len(along) - 1] == whole[len(along) - 1]:
        inner *= shape[len(along) - 1]
        along.pop()
    if not along:
        yield Run(0, 0, inner)
        return
    own_steps, whole_steps = (_steps(sizes[: len(along)], inner) for sizes in (shape, whole))
    before = [[(one.own + place, one.whole + place) for one in axis for place in range(one.length)] for axis in along[:-1]]
    for outer in itertools.product(*before):
        own = sum(place * step for (place, _), step in zip(outer, own_steps, strict=False))
        start = sum(place * step for (_, place), step in zip(outer, whole_steps, strict=False))
        for one in along[-1]:
            yield Run(own + one.own * inner, start + one.whole * inner, one.length * inner)


def _steps(sizes: Sequence[int], inner: int) -> list[int]:
    """How many numbers there are from one place to the next, along each axis."""
    return [*itertools.accumulate((inner, *reversed(sizes[1:])), int.__mul__)][::-1]


def _along(size: int, splits: Sequence[Split]) -> list[Run]:
    """Where the places of an axis are in the whole, if it is a part, maybe of a part, and so on."""
    found = [Run(0, 0, size)]
    for split in splits:
        found = [both for first in found for then in _of(split) if (both := _through(first, then)).length > 0]
    return sorted(found, key=lambda run: run.whole)


def _of(split: Split) -> Iterator[Run]:
    """Where the places of this process's part are."""
    own = 0
    for start, stop in split.ranges(split.among.rank):
        yield Run(own, start, stop - start)
        own += stop - start


def _through(first: Run, then: Run) -> Run:
    """The places of a run that another one leads on from."""
    begin = max(first.whole, then.own)
    end = min(first.whole + first.length, then.own + then.length)
    return Run(first.own + begin - first.whole, then.whole + begin - then.own, end - begin)


# --- Checksums --------------------------------------------------------------------------------------------------------

_ONES: Final = 2**32 - 1
_Matrix: TypeAlias = tuple[int, ...]  # what becomes of each bit
_ONE_BIT: Final[_Matrix] = (0xEDB88320, *[1 << bit for bit in range(31)])  # past a bit of zero


def remainder(numbers: memoryview, places: Sequence[Run], size: int) -> int:
    """The remainder of so many bytes, which are zeros but for what is at some places; runs are of bytes."""
    found = end = 0
    for own, start, count in places:
        found = zlib.crc32(numbers[own : own + count], past_zeros(found, start - end) ^ _ONES) ^ _ONES
        end = start + count
    return past_zeros(found, size - end)


def sum_of_remainder(found: int, size: int) -> int:
    """The checksum of so many bytes, from their remainder."""
    return found ^ past_zeros(_ONES, size) ^ _ONES


def past_zeros(found: int, count: int) -> int:
    """The remainder once so many bytes of zero come behind."""
    return _times(_zeros(count), found) if found and count else found


@functools.lru_cache(256)
def _zeros(count: int) -> _Matrix:
    """What takes a remainder past so many bytes of zero."""
    if count == 1:
        return functools.reduce(lambda matrix, _: _product(matrix, matrix), range(3), _ONE_BIT)
    half = _zeros(count // 2)
    twice = _product(half, half)
    return _product(_zeros(1), twice) if count % 2 else twice


def _product(first: _Matrix, second: _Matrix) -> _Matrix:
    return tuple([_times(first, column) for column in second])


def _times(matrix: _Matrix, bits: int) -> int:
    found = place = 0
    while bits:
        if bits & 1:
            found ^= matrix[place]
        bits >>= 1
        place += 1
    return found
