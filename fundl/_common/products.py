"""Products of matrices, each by the faster of two libraries.

torch multiplies float32 matrices with MKL, which uses half of what AMD's processors with AVX-512 can do. oneDNN, a part of
torch, uses all of it, but takes longer to begin, and needs a contiguous first factor.
Measured on a Zen 4, one thread and two, over 140 shapes: from 2^24 multiplications on and with 16 rows or more, it takes 0.6
to 1.0 of the time. Which library it is depends on the processor, the shapes and the dtype alone.
"""

import functools
from typing import Final

import torch
from torch import Tensor

from fundl._common import kernels, processor
from fundl._common.modes import is_traced

_MULTIPLICATIONS: Final = 2**24
_ROWS: Final = 16
_FEW: Final = 2**12  # numbers: a matrix of fewer is in no product of so many multiplications that matters


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product x W^T + b over any leading axes."""
    if _is_large(x) and _suits_onednn(x, weight.t()) and (bias is None or bias.dtype == x.dtype):
        return _onednn(x, weight, bias)
    return kernels.linear(x, weight, bias)


def matmul(x: Tensor, matrix: Tensor) -> Tensor:
    """The product x A over any leading axes of x."""
    if _is_large(x) and _suits_onednn(x, matrix):
        return _onednn(x, matrix.t(), None)
    return torch.matmul(x, matrix)


def _is_large(x: Tensor) -> bool:
    """Whether a matrix may be in a product for which the library matters; of one whose size is a symbol, nothing is asked."""
    numbers: object = x.numel()
    return type(numbers) is int and numbers > _FEW


def suits_onednn(rows: int, inner: int, columns: int, dtype: torch.dtype) -> bool:
    """Whether oneDNN is faster, for matrices on the CPU of (rows, inner) and (inner, columns)."""
    large = rows >= _ROWS and rows * inner * columns >= _MULTIPLICATIONS
    return large and dtype == torch.float32 and is_onednn_quicker() and torch._C._get_mkldnn_enabled()


@functools.cache
def is_onednn_quicker() -> bool:
    """Whether this processor is one on which oneDNN is faster than MKL."""
    return (
        kernels.linear_onednn is not None
        and torch._C.has_mkl
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and processor.is_amd()
    )


def _suits_onednn(x: Tensor, matrix: Tensor) -> bool:
    """Whether oneDNN is faster for two tensors; never in a trace: a compiler decides by itself, and exports run anywhere."""
    inner, columns = matrix.shape[-2:]
    return (
        x.shape[-1] == inner > 0
        and x.is_contiguous()
        and matrix.ndim == 2
        and suits_onednn(x.numel() // inner, inner, columns, x.dtype)
        and matrix.dtype == x.dtype
        and x.is_cpu
        and matrix.is_cpu
        and not is_traced()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and not torch._C._functorch.is_functorch_wrapped_tensor(matrix)
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    assert kernels.linear_onednn is not None
    return kernels.linear_onednn(x, weight, bias, "none", [], "")
