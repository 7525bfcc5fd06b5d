"""What is drawn from a key: by functions in C where there is a compiler and nothing traces, else by whole tensors.

Both give the same bits. In whole tensors, many numbers are drawn in pieces, so that what they are made of stays small.
"""

import ctypes
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor

from fundl._common import native, normal_numbers, philox
from fundl._common.modes import is_readable, is_untraced

Shape = tuple[int, ...]

# --- Integers -----------------------------------------------------------------------------------------------------------


def keys(key: Tensor, position: int, count: int, purpose: int) -> Tensor:
    """Keys (n, 2), of the blocks from a position on."""
    signed = position if position < 2**63 else position - 2**64
    if (function := _in_c("keys", key)) is not None:
        return _drawn(function, key, (count, 2), torch.int64, purpose, position=signed)
    positions = torch.arange(count, device=key.device) + signed
    return philox.keys(key, positions, purpose)


def integers(key: Tensor, shape: Shape, bits: int) -> Tensor:
    """Integers of so many random bits, up to 63: the most significant of one word, or of two if one is too short."""
    if (function := _in_c("long_integers" if bits > 32 else "short_integers", key)) is not None:
        return _drawn(function, key, shape, torch.int64, bits)
    return _in_pieces(lambda at, count: philox.integers(key, at, count, bits), key, shape, 2 if bits > 32 else 4)


def booleans(key: Tensor, shape: Shape, threshold: int) -> Tensor:
    """Whether words are less than a threshold, from 0 to 2**32."""
    if (function := _in_c("booleans", key)) is not None:
        return _drawn(function, key, shape, torch.bool, threshold)
    return _in_pieces(lambda at, count: philox.integers(key, at, count, 32) < threshold, key, shape, 4)


# --- Floating point -----------------------------------------------------------------------------------------------------

# Half precision is rounded from float32, as tensors in float64 are on every device.


def unit(key: Tensor, shape: Shape, bits: int, dtype: torch.dtype) -> Tensor:
    """Multiples of 2**-bits in [0, 1)."""
    if dtype == torch.float64:
        return uniform(key, shape, bits, dtype, span=2.0**-bits, low=0.0, greatest=1.0)
    if (function := _in_c("unit_float32", key)) is not None:
        return _narrowed(_drawn(function, key, shape, torch.float32, bits), dtype)
    return _in_pieces(lambda at, count: philox.integers(key, at, count, bits).to(dtype) * 2.0**-bits, key, shape, 4)


def uniform(key: Tensor, shape: Shape, bits: int, dtype: torch.dtype, *, span: float, low: float, greatest: float) -> Tensor:
    """Numbers low + k span, with integers k of so many random bits, but never more than the greatest."""
    options = (span, low, greatest)
    if dtype == torch.float64:
        if (function := _in_c("uniform_float64", key)) is not None:
            return _drawn(function, key, shape, torch.float64, *options)
    elif (function := _in_c("uniform_float32", key)) is not None:
        return _narrowed(_drawn(function, key, shape, torch.float32, bits, *options), dtype)

    def made(at: int, count: int) -> Tensor:
        numbers = philox.integers(key, at, count, bits).to(torch.float64) * span + low
        return _rounded(numbers.clamp(max=greatest), dtype)

    return _in_pieces(made, key, shape, 2 if bits > 32 else 4)


def normal(key: Tensor, shape: Shape, dtype: torch.dtype, *, std: float, mean: float) -> Tensor:
    """Normal numbers, see `normal_numbers`: a block gives two."""
    if (function := _in_c("normal_float64" if dtype == torch.float64 else "normal_float32", key)) is not None:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return _narrowed(_drawn(function, key, shape, wide, std, mean), dtype)

    def made(at: int, count: int) -> Tensor:
        numbers = normal_numbers.pairs(*philox.wide(key, at, (count + 1) // 2, normal_numbers.BITS))
        return _rounded(numbers.t().reshape(-1)[:count] * std + mean, dtype)

    return _in_pieces(made, key, shape, 2)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if dtype == torch.float64 else _narrowed(x.to(torch.float32), dtype)


def _narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype is dtype else x.to(dtype)  # which takes time even if there is nothing to do


# --- In pieces ----------------------------------------------------------------------------------------------------------

_PIECE: Final = 2**15  # numbers: some ten tensors of them, of 8 bytes each, stay in the cache
_PIECE_ELSEWHERE: Final = 2**17  # where each operation on tensors costs more than its memory


def _in_pieces(made: Callable[[int, int], Tensor], key: Tensor, shape: Shape, per_block: int) -> Tensor:
    """Numbers of a shape, from what makes so many from a block on."""
    count, piece = math.prod(shape), _PIECE if key.is_cpu else _PIECE_ELSEWHERE
    if count <= piece or key.is_meta or not is_untraced(key):  # what is traced or wrapped cannot be written into memory
        return made(0, count).reshape(shape)
    first = made(0, piece)
    numbers = first.new_empty(count)
    numbers[:piece] = first
    for start in range(piece, count, piece):
        stop = min(start + piece, count)
        numbers[start:stop] = made(start // per_block, stop - start)
    return numbers.reshape(shape)


# --- In C ---------------------------------------------------------------------------------------------------------------


class _Function(Protocol):
    """A function of draws.c: the addresses of key and result, the first block, how many numbers, and what is its own."""

    def __call__(self, key: int, position: int, count: int, result: int, *options: float) -> None: ...


_CPU: Final = torch.device("cpu")
_INT, _WORD, _DOUBLE = ctypes.c_int32, ctypes.c_uint64, ctypes.c_double
_OWN: Final = {
    "keys": (ctypes.c_uint32,),
    "short_integers": (_INT,),
    "long_integers": (_INT,),
    "booleans": (_WORD,),
    "unit_float32": (_INT,),
    "uniform_float32": (_INT, _DOUBLE, _DOUBLE, _DOUBLE),
    "uniform_float64": (_DOUBLE, _DOUBLE, _DOUBLE),
    "normal_float32": (_DOUBLE, _DOUBLE),
    "normal_float64": (_DOUBLE, _DOUBLE),
}


def _in_c(name: str, key: Tensor) -> _Function | None:
    """A function of draws.c, if it can be used for a key."""
    return functions().get(name) if is_readable(key) else None


@functools.cache
def functions() -> Mapping[str, _Function]:
    """Those of draws.c, by name; none if they cannot be compiled, or do not give the generator's published numbers."""
    library = native.library(Path(__file__).with_suffix(".c"))
    if library is None:
        return {}
    found: dict[str, _Function] = {}
    for name, own in _OWN.items():
        function = getattr(library, f"fundl_{name}")
        function.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64, ctypes.c_void_p, *own)
        function.restype = None
        found[name] = function
    words = _drawn(found["short_integers"], torch.zeros(2, dtype=torch.int64), (4,), torch.int64, 32)
    return found if words.tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8] else {}


def _drawn(
    function: _Function,
    key: Tensor,
    shape: Shape,
    dtype: torch.dtype,
    *own: float,
    position: int = 0,
) -> Tensor:
    result = torch.empty(shape, dtype=dtype, device=_CPU)
    words = key if key.is_contiguous() else key.contiguous()
    function(words.data_ptr(), position, result.numel(), result.data_ptr(), *own)
    return result
