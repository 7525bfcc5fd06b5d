"""Dropping elements at random, and scaling up the others: y = x mask / (1 - rate).

On the CPU a function in C goes once through the memory, else tensors do it; both give the same bits.
"""

import ctypes
import functools
from collections.abc import Mapping
from typing import Final, Protocol

import torch
from torch import Tensor

from fundl import random
from fundl._common import draws
from fundl._common.keys import require_key
from fundl._common.modes import is_in_memory, is_readable

_DTYPES: Final = {torch.float32: "float32", torch.float64: "float64"}  # those that functions in C take


def dropped(key: random.Key, x: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """What is left of x, and the mask: of the shape of x, and True where an element stays, as drawn from the key."""
    require_key(key)
    in_one_pass = is_in_memory(x) and is_readable(key) and not draws.is_of_part(key)
    draw = draws.functions().get(f"dropped_{_DTYPES.get(x.dtype)}") if in_one_pass else None
    if draw is None:
        mask = random.bernoulli(key.to(x.device), x.shape, probability=1 - rate)
        return masked(x, mask, rate), mask
    y = torch.empty_like(x)
    return y, draw(key, x.shape, draws.threshold(1 - rate), x.data_ptr(), y.data_ptr(), 1 / (1 - rate))


def masked(x: Tensor, mask: Tensor, rate: float) -> Tensor:
    """The elements of x that stay, scaled up."""
    are_alike = is_in_memory(x) and is_readable(mask) and mask.is_contiguous() and mask.shape == x.shape
    function = _functions().get(x.dtype) if are_alike else None
    if function is None:
        return x * mask * (1 / (1 - rate))
    y = torch.empty_like(x)
    function(x.data_ptr(), x.numel(), y.data_ptr(), mask.data_ptr(), 1 / (1 - rate))
    return y


class _Function(Protocol):
    """A function of draws.c: the addresses of x, y and the mask, how many elements they have, and what scales them."""

    def __call__(self, x: int, count: int, y: int, mask: int, scale: float, /) -> None: ...


@functools.cache
def _functions() -> Mapping[torch.dtype, _Function]:
    if not draws.functions() or (compiled := draws.library()) is None:
        return {}
    found: dict[torch.dtype, _Function] = {}
    for dtype, name in _DTYPES.items():
        function = getattr(compiled, f"fundl_masked_{name}")
        function.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_double)
        function.restype = None
        found[dtype] = function
    return found
