"""The cross-entropy of class indices on an NVIDIA GPU: by a kernel of cross_entropy.cu, which goes twice through the logits.

ATen's kernels go through them ten times, in float32 throughout: of 8,192 positions and 50,304 tokens, 1.6 GB each time.
"""

import struct
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from fundl._common import gpu_kernels

SOURCE: Final = Path(__file__).with_name("cross_entropy.cu")
GIVEN: Final = "@PqPqPffiPP"  # as `struct` says it: see cross_entropy.cu
_MOST_THREADS: Final = 512
_NUMBERS: Final = 4  # that a thread reads at once
_DTYPES: Final = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def kernel_for(logits: Tensor, target: Tensor) -> int | None:
    """The kernel that takes logits (N, C) and class indices (N,); None if none does."""
    name = _DTYPES.get(logits.dtype)
    if logits.ndim != 2 or not logits.numel() or name is None or not gpu_kernels.takes(logits):
        return None
    if target.device != logits.device or not gpu_kernels.takes(target):
        return None
    return gpu_kernels.kernels(SOURCE, logits.device.index).get(f"fundl_cross_entropy_{name}")


def cross_entropy(
    kernel: int, logits: Tensor, target: Tensor, *, ignore_index: int, label_smoothing: float, count: int | None
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient.

    Args:
        kernel: see `kernel_for`.
        logits: of shape (N, C).
        target: class indices, of shape (N,) and of any dtype of integers.
        ignore_index: what marks samples to leave out.
        label_smoothing: see `fundl.cross_entropy`.
        count: what the sum over the samples is divided by; None for as many as are not left out.
    """
    x, indices = logits.contiguous(), target.to(torch.int64).contiguous()
    rows, classes = x.shape
    grad, losses = torch.empty_like(x), torch.empty(rows, dtype=torch.float32, device=x.device)
    divisor = (indices != ignore_index).sum() if count is None else count
    at_once = _NUMBERS * x.element_size()
    aligned = classes % _NUMBERS == 0 and x.data_ptr() % at_once == 0
    options = float(count or 1), label_smoothing, int(aligned)
    place = divisor.data_ptr() if isinstance(divisor, Tensor) else 0
    read = x.data_ptr(), classes, indices.data_ptr(), ignore_index, place
    given = struct.pack(GIVEN, *read, *options, grad.data_ptr(), losses.data_ptr())
    gpu_kernels.launch(kernel, x.device.index, rows, threads(classes), given)
    return losses.sum() / divisor, grad


def threads(classes: int) -> int:
    """How many threads a row has: a power of 2, of a warp at least."""
    return min(_MOST_THREADS, max(32, 1 << (-(-classes // _NUMBERS) - 1).bit_length()))
