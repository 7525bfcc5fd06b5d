"""What is drawn on an NVIDIA GPU: by kernels of draws.cu, each number in a thread.

In whole tensors, each number passes through memory a hundred times.
"""

import math
import struct
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor

from fundl._common import gpu_kernels

SOURCE: Final = Path(__file__).with_name("draws.cu")
THREADS: Final = 256  # of a block
NUMBERS: Final = 4  # that a thread makes
OF_ALL: Final = "@PiqqqP"  # as `struct` says it: the keys and their sizes, and where to; see draws.cu


class Draw(Protocol):
    """A function of draws.c or draws.cu: a tensor of a shape, from a key and what is the function's own.

    Of keys (..., 2), each of which draws, the axes come first.
    """

    def __call__(self, key: Tensor, shape: tuple[int, ...], *own: float) -> Tensor: ...


def draw(name: str, key: Tensor, dtype: torch.dtype, own: str) -> Draw | None:
    """The function of a name, for keys on a GPU, with what is its own as `struct` says it; None if there is none."""
    kernel = gpu_kernels.kernels(SOURCE, key.device.index).get(f"fundl_{name}")
    if kernel is None:
        return None

    def drawn(key: Tensor, shape: tuple[int, ...], *own_values: float) -> Tensor:
        words = key.contiguous()
        result = torch.empty((*key.shape[:-1], *shape), dtype=dtype, device=key.device)
        if total := result.numel():
            sizes = key.shape[-1], math.prod(shape), shape[0] if shape else 1, total
            given = struct.pack(OF_ALL + own, words.data_ptr(), *sizes, result.data_ptr(), *own_values)
            gpu_kernels.launch(kernel, key.device.index, -(-total // (THREADS * NUMBERS)), THREADS, given)
        return result

    return drawn
