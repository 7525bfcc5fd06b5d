"""What is drawn from a key: by functions in C, or by kernels on a GPU, where nothing traces, else by whole tensors.

All give the same bits. In whole tensors, many numbers are drawn in pieces, so that what they are made of stays small.
A key of five numbers draws a part of the rows of what its first two draw, one of seven a piece of each of these.
"""

import ctypes
import functools
import math
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from fundl._common import draws_on_gpu, gpu_kernels, modes, native, normal_numbers, philox, waiting_times
from fundl._common.draws_on_gpu import Draw
from fundl._common.modes import is_readable, is_untraced

Shape = tuple[int, ...]

# --- Integers -----------------------------------------------------------------------------------------------------------


def keys(key: Tensor, position: int, shape: Shape, purpose: int) -> Tensor:
    """Keys, (2,) or (n, 2), of the blocks from a position on, as a signed number."""
    if (drawn := in_c("keys", key)) is not None:
        return drawn(key, shape, purpose, position)
    positions = torch.arange(math.prod(shape) // 2, device=key.device) + position
    return philox.keys(key, positions, purpose).reshape(shape)


def nested_keys(key: Tensor, places: "array[int]", size: int, purpose: int) -> tuple[Tensor, ...]:
    """Keys of keys: of each of those at some places, in order, so many from block 0 on, one behind the other."""
    if not places or not size:
        return ()
    if key.is_cuda and (drawn := _on_gpu("nested_keys", key)) is not None:
        inner = drawn(key, (places[-1] + 1, size, 2), purpose, size)
        return tuple(one for place in places for one in inner[place].unbind())
    if (drawn := in_c("nested_keys", key)) is not None:
        return drawn(key, (len(places) * size, 2), purpose, places.buffer_info()[0], size).unbind()
    outer = philox.keys(key, torch.arange(places[-1] + 1, device=key.device), purpose)
    positions = torch.arange(size, device=key.device).repeat(len(outer))
    inner = philox.keys(outer.repeat_interleave(size, 0), positions, purpose).reshape(-1, size, 2)
    return tuple(one for place in places for one in inner[place].unbind())


def integers(key: Tensor, shape: Shape, bits: int) -> Tensor:
    """Integers of so many random bits, up to 63: the most significant of one word, or of two if one is too short."""
    if (drawn := in_c("long_integers" if bits > 32 else "short_integers", key)) is not None:
        return drawn(key, shape, bits)
    return _drawn(lambda words, blocks: philox.integers(words, blocks, bits), key, shape, 2 if bits > 32 else 4)


def threshold(probability: float) -> int:
    """What a word is less than with a probability."""
    return round(probability * 2**32)


def booleans(key: Tensor, shape: Shape, threshold: int) -> Tensor:
    """Whether words are less than a threshold."""
    if (drawn := in_c("booleans", key)) is not None:
        return drawn(key, shape, threshold)
    if key.is_meta:  # masks of a model without values, which takes many more operations to draw than to run
        return key.new_empty(shape, dtype=torch.bool)
    if is_of_part(key) and is_readable(key) and (compiled := library()) is not None and functions():
        made = torch.empty(shape, dtype=torch.bool, device="cpu")
        count, *each = _lines(key, shape)
        numbers = math.prod(each)
        compiled.fundl_booleans_of_part(key.contiguous().data_ptr(), len(key), count, numbers, made.data_ptr(), threshold)
        return made
    return _drawn(lambda words, blocks: philox.integers(words, blocks, 32) < threshold, key, shape, 4)


# --- Floating point -----------------------------------------------------------------------------------------------------

# Half precision is rounded from float32, as tensors in float64 are on every device.


def unit(key: Tensor, shape: Shape, bits: int, dtype: torch.dtype) -> Tensor:
    """Multiples of 2**-bits in [0, 1)."""
    if dtype == torch.float64:
        return uniform(key, shape, bits, dtype, span=2.0**-bits, low=0.0, greatest=1.0)
    if (drawn := in_c("unit_float32", key)) is not None:
        return _narrowed(drawn(key, shape, bits), dtype)
    return _drawn(lambda words, blocks: philox.integers(words, blocks, bits).to(dtype) * 2.0**-bits, key, shape, 4)


def uniform(key: Tensor, shape: Shape, bits: int, dtype: torch.dtype, *, span: float, low: float, greatest: float) -> Tensor:
    """Numbers low + k span, with integers k of so many random bits, but never more than the greatest."""
    if dtype == torch.float64:
        if (drawn := in_c("uniform_float64", key)) is not None:
            return drawn(key, shape, span, low, greatest)
    elif (drawn := in_c("uniform_float32", key)) is not None:
        return _narrowed(drawn(key, shape, bits, span, low, greatest), dtype)

    def made(words: Tensor, blocks: Tensor) -> Tensor:
        numbers = philox.integers(words, blocks, bits).to(torch.float64) * span + low
        return rounded(numbers.clamp(max=greatest), dtype)

    return _drawn(made, key, shape, 2 if bits > 32 else 4)


def normal(key: Tensor, shape: Shape, dtype: torch.dtype, *, std: float, mean: float) -> Tensor:
    """Normal numbers, see `normal_numbers`: a block gives two."""
    if (drawn := in_c("normal_float64" if dtype == torch.float64 else "normal_float32", key)) is not None:
        return _narrowed(drawn(key, shape, std, mean), dtype)

    def made(words: Tensor, blocks: Tensor) -> Tensor:
        numbers = normal_numbers.pairs(*philox.wide(words, blocks, normal_numbers.BITS))
        return rounded(numbers * std + mean, dtype)

    return _drawn(made, key, shape, 2)


def exponential(key: Tensor, shape: Shape, dtype: torch.dtype, *, scale: float) -> Tensor:
    """Exponential numbers, see `waiting_times`."""
    return _waiting_times("exponential", key, shape, dtype, scale=scale, location=0.0)


def gumbel(key: Tensor, shape: Shape, dtype: torch.dtype, *, scale: float, location: float) -> Tensor:
    """Gumbel's numbers, likewise."""
    return _waiting_times("gumbel", key, shape, dtype, scale=scale, location=location)


def _waiting_times(
    name: Literal["exponential", "gumbel"], key: Tensor, shape: Shape, dtype: torch.dtype, *, scale: float, location: float
) -> Tensor:
    if (drawn := in_c(f"{name}_float64" if dtype == torch.float64 else f"{name}_float32", key)) is not None:
        return _narrowed(drawn(key, shape, scale, location), dtype)

    def made(words: Tensor, blocks: Tensor) -> Tensor:
        numbers = waiting_times.OF[name](philox.wide(words, blocks, waiting_times.BITS))
        return rounded(numbers * scale + location, dtype)

    return _drawn(made, key, shape, 2)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers of float64 in another dtype."""
    return x if dtype == torch.float64 else _narrowed(x.to(torch.float32), dtype)


def _narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype is dtype else x.to(dtype)  # which takes time even if there is nothing to do


# --- In whole tensors ---------------------------------------------------------------------------------------------------

_PIECE: Final = 2**15  # numbers: some ten tensors of them, of 8 bytes each, stay in the cache
_PIECE_ELSEWHERE: Final = 2**17  # where each operation on tensors costs more than its memory

Made = Callable[[Tensor, Tensor], Tensor]
"""From a key of two words and the positions of blocks (n,) to their numbers: (k, n), with k of them for each block."""


def _drawn(made: Made, key: Tensor, shape: Shape, per_block: int) -> Tensor:
    """Numbers of a shape, from block 0 on, or those of the rows that a key is for."""
    if is_of_part(key):
        return _of_part(made, key, shape, per_block)

    def numbers(start: int, stop: int) -> Tensor:
        blocks = torch.arange(start // per_block, (stop + per_block - 1) // per_block, device=key.device)
        return made(key, blocks).t().reshape(-1)[: stop - start]

    count, piece = math.prod(shape), _PIECE if key.is_cpu else _PIECE_ELSEWHERE
    is_small = type(count) is not int or count <= piece  # of a size that is a symbol, nothing is asked
    if is_small or key.is_meta or not is_untraced(key):  # what is traced or wrapped cannot be written into memory
        return numbers(0, count).reshape(shape)
    first = numbers(0, piece)
    drawn = first.new_empty(count)
    drawn[:piece] = first
    for start in range(piece, count, piece):
        stop = min(start + piece, count)
        drawn[start:stop] = numbers(start, stop)
    return drawn.reshape(shape)


_OF_ROWS: Final = 5  # numbers of a key for a part of the rows


def is_of_part(key: Tensor) -> bool:
    """Whether a key is for a part of what is drawn: see `fundl.random.of_part` and `fundl.random.of_piece`."""
    return key.shape[-1] > 2


def is_of_piece(key: Tensor) -> bool:
    """Whether a key is for a piece of each line of what is drawn: see `fundl.random.of_piece`."""
    return key.shape[-1] > _OF_ROWS


def _lines(key: Tensor, shape: Shape) -> Shape:
    """A shape as that of lines, which are along its first axis; a key for a piece of each has them along its last."""
    return (math.prod(shape[:-1]), *shape[-1:]) if is_of_piece(key) else shape


def words_of(key: Tensor) -> Tensor:
    """The two words of a key."""
    return key[..., :2] if is_of_part(key) else key


def _of_part(made: Made, key: Tensor, shape: Shape, per_block: int) -> Tensor:
    """What a key draws that is for the rows `place`, `place + size`, ... of a whole draw; so many `rows` are as many lines.

    Or for a piece of each of these lines, the one at `piece` of so many `pieces`.
    """
    place, size, rows, *own = key[2:].unbind()
    piece, pieces = own or (0, 1)
    count, *axes = _lines(key, shape)
    numbers = math.prod(axes)  # of a line, or of a piece of it
    lines = torch.arange(count, device=key.device)
    each = (count // rows.clamp(min=1)).clamp(min=1)  # lines of a row
    lines = (lines // each * size + place) * each + lines % each
    lines = (lines * pieces + piece).unsqueeze(1)
    if numbers % per_block == 0:
        blocks = lines * (numbers // per_block) + torch.arange(numbers // per_block, device=key.device)
        return made(key[:2], blocks.reshape(-1)).t().reshape(shape)
    places = (lines * numbers + torch.arange(numbers, device=key.device)).reshape(-1)
    return made(key[:2], places // per_block).gather(0, (places % per_block).unsqueeze(0)).reshape(shape)


# --- In C ---------------------------------------------------------------------------------------------------------------


_INT, _WORD, _DOUBLE, _ADDRESS = ctypes.c_int32, ctypes.c_uint64, ctypes.c_double, ctypes.c_void_p
_OF_ALL: Final = (_ADDRESS, _WORD, _WORD, _ADDRESS)  # the keys, how many, how many numbers for each, and where to
_FUNCTIONS: Final = {  # the dtype of the result, and what is their own
    "keys": (torch.int64, (ctypes.c_uint32, ctypes.c_int64)),
    "nested_keys": (torch.int64, (ctypes.c_uint32, _ADDRESS, _WORD)),
    "short_integers": (torch.int64, (_INT,)),
    "long_integers": (torch.int64, (_INT,)),
    "booleans": (torch.bool, (_WORD,)),
    "unit_float32": (torch.float32, (_INT,)),
    "uniform_float32": (torch.float32, (_INT, _DOUBLE, _DOUBLE, _DOUBLE)),
    "uniform_float64": (torch.float64, (_DOUBLE, _DOUBLE, _DOUBLE)),
    "normal_float32": (torch.float32, (_DOUBLE, _DOUBLE)),
    "normal_float64": (torch.float64, (_DOUBLE, _DOUBLE)),
    **dict.fromkeys(("exponential_float32", "gumbel_float32"), (torch.float32, (_DOUBLE, _DOUBLE))),
    **dict.fromkeys(("exponential_float64", "gumbel_float64"), (torch.float64, (_DOUBLE, _DOUBLE))),
    "gamma_float64": (torch.float64, (_ADDRESS, _WORD)),
    "dropped_float32": (torch.bool, (_WORD, _ADDRESS, _ADDRESS, _DOUBLE)),
    "dropped_float64": (torch.bool, (_WORD, _ADDRESS, _ADDRESS, _DOUBLE)),
}


def in_c(name: str, key: Tensor) -> Draw | None:
    """A function of draws.c, or of draws.cu, if it can be used for a key; of keys in torch.vmap, for all of them."""
    if key.is_cuda and (drawn := _on_gpu(name, key)) is not None:
        return drawn
    if is_of_part(key):
        return None
    if is_readable(key):
        return functions().get(name)
    batch = modes.batch_of(key)
    draw = None if batch is None else in_c(name, batch.tensors)
    if batch is None or draw is None:
        return None
    return lambda _, shape, *own: batch.wrapped(draw(batch.tensors, shape, *own))


def _on_gpu(name: str, key: Tensor) -> Draw | None:
    """A kernel of draws.cu, likewise; also for a key of a part."""
    if name not in _ON_GPU or not gpu_kernels.takes(key):
        return None
    draw = draws_on_gpu.draw(name, key, _FUNCTIONS[name][0], _ON_GPU[name])
    if draw is None or not is_of_piece(key):
        return draw
    return lambda key, shape, *own: draw(key, _lines(key, shape), *own).reshape(shape)


_ON_GPU: Final = {  # what is their own, as `struct` says it
    "keys": "Iq",
    "nested_keys": "Iq",
    "short_integers": "i",
    "long_integers": "i",
    "booleans": "Q",
    "unit_float32": "i",
    "uniform_float32": "iddd",
    "uniform_float64": "ddd",
    "normal_float32": "dd",
    "normal_float64": "dd",
    **dict.fromkeys(("exponential_float32", "exponential_float64", "gumbel_float32", "gumbel_float64"), "dd"),
}


@functools.cache
def functions() -> Mapping[str, Draw]:
    """Those of draws.c that draw; none if they cannot be compiled, or do not give the generator's published numbers."""
    if (compiled := library()) is None:
        return {}
    found = {name: _drawing(getattr(compiled, f"fundl_{name}"), *own) for name, own in _FUNCTIONS.items()}
    words = found["short_integers"](torch.zeros(2, dtype=torch.int64, device="cpu"), (4,), 32)
    return found if words.tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8] else {}


@functools.cache
def library() -> ctypes.CDLL | None:
    """What draws.c is compiled to; None if it cannot be."""
    compiled = native.library(Path(__file__).with_suffix(".c"))
    if compiled is not None:
        of_part = compiled.fundl_booleans_of_part
        of_part.argtypes, of_part.restype = (_ADDRESS, _WORD, _WORD, _WORD, _ADDRESS, _WORD), None
    return compiled


def _drawing(function: "ctypes._NamedFuncPointer", dtype: torch.dtype, own: tuple[type, ...]) -> Draw:
    function.argtypes, function.restype = (*_OF_ALL, *own), None
    empty = torch.empty(0, dtype=dtype, device="cpu").new_empty  # in half the time of torch.empty with these options

    def drawn(key: Tensor, shape: Shape, *own: float) -> Tensor:
        words = key if key.is_contiguous() else key.contiguous()
        if key.ndim == 1:
            result = empty(shape)
            function(words.data_ptr(), 1, result.numel(), result.data_ptr(), *own)
        else:
            result = empty((*key.shape[:-1], *shape))
            function(words.data_ptr(), key.numel() // 2, math.prod(shape), result.data_ptr(), *own)
        return result

    return drawn
