"""Attention's kernels on CUDA: which of them takes what, and what each wants of its arguments.

All find what `fundl.layers._attending` says, in pieces that fit a GPU's fast memory, and keep the log-sum-exp of each row of
scores. cuDNN's, on GPUs for data centres from Hopper on, and flash attention take 16 bits and no mask; memory-efficient
attention takes float32 as well, and an additive mask. They could drop weights by random numbers of a hidden state, and are
never asked to.

By default, the gradients of all add up in an order that may differ from run to run, and so may their last bits; after
``torch.use_deterministic_algorithms(True)`` it does not, they take more time, and cuDNN's is left out.
"""

import functools
import math
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from fundl._common import kernels
from fundl._common.half import HALF
from fundl._common.modes import is_wrapped

Kernel: TypeAlias = Literal["cudnn", "flash", "efficient"]

_MOST_BLOCKS: Final = 2**16 - 1  # of a grid along its second and third axes, which are sequences and heads
_ALIGNED_BYTES: Final = 16  # how much a kernel loads at once
_CUDNN: Final = 91501  # the first that is right for every number of steps
_CUDNN_GENERATIONS: Final = 9, 10  # of GPUs on which it is the quickest
_MASK_COLUMNS: Final = 16  # the rows of a mask are multiples of so many apart


def kernel_for(q: Tensor, k: Tensor, *, causal: bool, masked: bool) -> Kernel | None:
    """The kernel for queries (B, H, T, d) and keys (B, K, S, d), or None where no kernel takes them."""
    if not q.is_cuda or torch.version.hip or is_wrapped(q):
        return None
    capability = _capability(q.device.index)
    cudnn = capability[0] in _CUDNN_GENERATIONS and _has_cudnn()
    return choice(q.shape, k.shape, q.dtype, capability, causal=causal, masked=masked, cudnn=cudnn)


def choice(
    queries: tuple[int, ...],
    keys: tuple[int, ...],
    dtype: torch.dtype,
    capability: tuple[int, int],
    *,
    causal: bool,
    masked: bool,
    cudnn: bool = False,
) -> Kernel | None:
    """The kernel for the shapes, on a GPU of a compute capability, and whether cuDNN's is among those that there are."""
    batch, heads, steps, size = queries
    if 0 in queries or 0 in keys or max(batch, heads) > _MOST_BLOCKS or (causal and steps != keys[2]):
        return None
    if dtype in HALF and not masked and capability >= (8, 0) and size % 8 == 0 and size <= _flash_size(capability, size):
        is_usual = keys[1] == heads and size <= 128 and min(steps, keys[2]) > 1
        return "cudnn" if cudnn and is_usual and capability[0] in _CUDNN_GENERATIONS else "flash"
    takes = dtype == torch.float32 or (dtype in HALF and (dtype == torch.float16 or capability >= (8, 0)))
    return "efficient" if takes and capability >= (5, 0) and size * dtype.itemsize % _ALIGNED_BYTES == 0 else None


def _flash_size(capability: tuple[int, int], size: int) -> int:
    """The largest size of a head: GPUs with less fast memory than those for data centres lack one range of sizes."""
    has_less = (8, 6) <= capability <= (8, 9) or capability >= (12, 0)
    return 192 if has_less and size <= 224 else 256


@functools.cache
def _capability(index: int | None) -> tuple[int, int]:
    """That of a GPU; where there is none, as for tensors that only tell shapes, the least that has all kernels."""
    return torch.cuda.get_device_capability(index) if torch.cuda.is_available() else (8, 0)


def _has_cudnn() -> bool:
    """Whether cuDNN's attention is there, right for every number of steps, and has not been switched off."""
    return (
        torch._C._has_cudnn
        and torch._C._get_cudnn_enabled()
        and torch._C._get_cudnn_sdp_enabled()
        and not torch.are_deterministic_algorithms_enabled()
        and _cudnn_version() >= _CUDNN
    )


@functools.cache
def _cudnn_version() -> int:
    return torch.backends.cudnn.version() or 0  # type: ignore[no-untyped-call]  # torch does not say


# --- Forward, backward -------------------------------------------------------------------------------------------------


def forward(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The output (B, H, T, d), in memory (B, T, H, d), and the log-sum-exp, with `mask` (B, S) True where a key is real."""
    q, k, v = _aligned(q), _aligned(k), _aligned(v)
    if kernel == "cudnn":
        return kernels.cudnn_attention(q, k, v, None, True, 0.0, causal, False)[:2]
    if kernel == "flash":
        return kernels.flash_attention(q, k, v, 0.0, causal, False)[:2]
    few, heads = k.shape[1], q.shape[1]
    k, v = repeated(k, heads // few), repeated(v, heads // few)
    output, logsumexp, *_ = kernels.efficient_attention(q, k, v, _added(mask, q), True, 0.0, causal)
    if mask is not None:  # what is found of no keys may be NaN; with a log-sum-exp of 0, backward finds weights of 0
        blind = _blind(mask, causal)
        output = output.masked_fill(blind.unsqueeze(-1), 0)
        more = logsumexp.shape[2] - blind.shape[2] if causal else 0
        logsumexp = logsumexp.masked_fill(torch.constant_pad_nd(blind, (0, more)), 0)
    return output, logsumexp


def backward(  # noqa: PLR0917  # as in all such kernels
    kernel: Kernel,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    *,
    causal: bool,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to q, k and v."""
    grad, output, q, k, v = _by_steps(grad), _by_steps(output), _aligned(q), _aligned(k), _aligned(v)
    nothing = q.new_empty((), dtype=torch.int64)  # in place of the random numbers' state
    if kernel == "cudnn":
        steps = None, None, q.shape[2], k.shape[2]
        return kernels.cudnn_attention_backward(grad, q, k, v, output, logsumexp, nothing, nothing, None, *steps, 0.0, causal)
    if kernel == "flash":
        kept = output, logsumexp.contiguous(), None, None, q.shape[2], k.shape[2]
        return kernels.flash_attention_backward(grad, q, k, v, *kept, 0.0, causal, nothing, nothing)
    few, heads = k.shape[1], q.shape[1]
    k, v = repeated(k, heads // few), repeated(v, heads // few)
    wanted = True, True, True, False
    grad_q, grad_k, grad_v, _ = kernels.efficient_attention_backward(
        grad, q, k, v, _added(mask, q), output, logsumexp, nothing, nothing, 0.0, wanted, causal
    )
    return grad_q, summed(grad_k, few), summed(grad_v, few)


def repeated(k: Tensor, times: int) -> Tensor:
    """Keys or values (B, K, S, d), repeated for the heads of the queries that share them."""
    return k if times == 1 else k.repeat_interleave(times, 1)


def summed(grad: Tensor, heads: int) -> Tensor:
    """The gradient of keys or values of so many heads from that of their repetitions."""
    return grad if grad.shape[1] == heads else torch.unflatten(grad, 1, (heads, grad.shape[1] // heads)).sum(2)


def _added(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """What is added to the scores for the mask, (B, H, T, S), in memory of B rows."""
    if mask is None:
        return None
    batch, keys = mask.shape
    columns = math.ceil(keys / _MASK_COLUMNS) * _MASK_COLUMNS
    hidden = torch.constant_pad_nd(~mask, (0, columns - keys))
    rows = torch.zeros(batch, columns, dtype=q.dtype, device=mask.device).masked_fill(hidden, -math.inf)
    rows = rows.narrow(1, 0, keys)
    return rows[:, None, None, :].expand(*q.shape[:3], keys)


def _blind(mask: Tensor, causal: bool) -> Tensor:
    """Where a query sees no key, of a shape that broadcasts to (B, H, T)."""
    return (mask.cumsum(1) == 0)[:, None, :] if causal else ~mask.any(1)[:, None, None]


def _aligned(x: Tensor) -> Tensor:
    """The tensor where the kernels can load it, 16 bytes at a time; a copy, if it is not."""
    step = _ALIGNED_BYTES // x.dtype.itemsize
    *strides, last = x.stride()
    if last == 1 and x.storage_offset() % step == 0 and all(stride % step == 0 for stride in strides):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _by_steps(x: Tensor) -> Tensor:
    """A tensor (B, H, T, d) that is in memory (B, T, H, d); a copy, if it was not."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)
