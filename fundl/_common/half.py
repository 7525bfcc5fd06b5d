"""Half precision: numbers of 16 bits, whose sums need 32.

A sum that is kept in bfloat16 stands still at 256 ones, one in float16 at 2,048: what is added is less than half of its last
digit. Sums, means and products of matrices are right, since their kernels add up in float32 and round once. Kernels that
scatter (gradients of lookups, of windows that overlap, of padding), and the CPU's for normalisation, keep what they add up in
the dtype that they are given. They are given float32, and what they give is rounded.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

import torch
from torch import Tensor

from fundl._common import kernels
from fundl._common.modes import is_traced, is_wrapped

T = TypeVar("T", Tensor, Tensor | None)

HALF: Final = frozenset({torch.bfloat16, torch.float16})


def widened(x: T) -> T:
    """The tensor in float32, if it is in half precision; else itself."""
    if x is None:
        return x
    return x.to(torch.float32) if x.dtype in HALF else x


def narrowed(x: T, like: Tensor) -> T:
    """What was computed of a tensor that was widened, in the dtype of that tensor."""
    if x is None:
        return x
    return x if x.dtype is like.dtype else x.to(like.dtype)


def all_to(tensors: Sequence[Tensor], dtypes: Iterable[torch.dtype]) -> list[Tensor]:
    """Tensors in dtypes of their own, as ``tensor.to(dtype)`` gives each; on a GPU, by one kernel for many of them."""
    if tensors and tensors[0].is_cuda and not is_traced() and not any(map(is_wrapped, tensors)):
        return together(tensors, dtypes)
    return [tensor.to(dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]


def together(tensors: Sequence[Tensor], dtypes: Iterable[torch.dtype]) -> list[Tensor]:
    """The same where nothing traces or wraps the tensors: those of one dtype are cast to another at once."""
    found = [*tensors]
    places: dict[tuple[torch.dtype, torch.dtype], list[int]] = {}
    for place, (tensor, dtype) in enumerate(zip(tensors, dtypes, strict=True)):
        if tensor.dtype is not dtype:
            places.setdefault((tensor.dtype, dtype), []).append(place)
    for (_, dtype), own in places.items():
        old = [tensors[place] for place in own]
        new = [torch.empty_like(tensor, dtype=dtype) for tensor in old]
        torch._foreach_copy_(new, old)
        for place, tensor in zip(own, new, strict=True):
            found[place] = tensor
    return found


def in_float32(kernel: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a kernel makes of a tensor: of half precision in float32, rounded once."""
    return kernel(x) if x.dtype not in HALF else kernel(x.to(torch.float32)).to(x.dtype)


# --- Normalisation -----------------------------------------------------------------------------------------------------

# As the kernels of these names. Mean and rstd are in float32: of numbers that are close to each other, and far from 0, a mean
# of 16 bits leaves no digit. (CUDA's kernel for layers keeps them so, and sums in float32.)


def layer_norm(
    x: Tensor, sizes: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As the kernel."""
    if x.dtype not in HALF or x.is_cuda:
        return kernels.layer_norm(x, sizes, weight, bias, eps)
    y, mean, rstd = kernels.layer_norm(widened(x), sizes, alike(x, weight), alike(x, bias), eps)
    return y.to(x.dtype), mean, rstd


def layer_norm_backward(*given: *kernels.LayerNormGiven) -> kernels.Gradients:
    """As the kernel, of all that is there."""
    grad, x, sizes, mean, rstd, weight, bias = given
    if x.dtype in HALF and not x.is_cuda:
        given = widened(grad), widened(x), sizes, mean, rstd, widened(weight), widened(bias)
    return rounded(kernels.layer_norm_backward(*given, (True, weight is not None, bias is not None)), x, weight, bias)


def weight_norm(v: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """As the kernel; compiled, it would keep the norm in float16, which the kernel of its gradient refuses.

    CUDA's takes the roots of float64 in float32: there, it is the formula.
    """
    if v.is_cuda and v.dtype == torch.float64:
        norm = torch.linalg.vector_norm(v, 2, tuple(range(1, v.ndim)), keepdim=True)
        return gain * (v / norm), norm
    weight, norm = kernels.weight_norm(widened(v), widened(gain), 0)
    return narrowed(weight, v), norm


def weight_norm_backward(grad: Tensor, v: Tensor, gain: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """As the kernel."""
    grad_v, grad_gain = kernels.weight_norm_backward(widened(grad), widened(v), widened(gain), norm, 0)
    return narrowed(grad_v, v), narrowed(grad_gain, gain)


def batch_norm(  # noqa: PLR0917  # as the kernel has them
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As the kernel, with the statistics of x if there is no mean; those that are given may be in float32."""
    if x.dtype not in HALF:
        return kernels.batch_norm(x, weight, bias, mean, var, mean is None, 0.0, eps)
    wide = widened(x), alike(x, weight), alike(x, bias), widened(mean), widened(var)
    y, batch_mean, rstd = kernels.batch_norm(*wide, mean is None, 0.0, eps)
    return y.to(x.dtype), batch_mean, rstd


def batch_norm_backward(bias: Tensor | None, *given: *kernels.BatchNormGiven) -> kernels.Gradients:
    """As the kernel, of all that is there."""
    grad, x, weight, mean, var, batch_mean, rstd, from_batch, eps = given
    if x.dtype in HALF:
        wide = widened(grad), widened(x), widened(weight), widened(mean), widened(var), widened(batch_mean), widened(rstd)
        given = *wide, from_batch, eps
    return rounded(kernels.batch_norm_backward(*given, (True, weight is not None, bias is not None)), x, weight, bias)


def alike(x: Tensor, parameter: T) -> T:
    """A parameter of x's dtype, widened; one of another stays as it is, for the kernel to refuse."""
    if parameter is None:
        return parameter
    return widened(parameter) if parameter.dtype is x.dtype else parameter


def rounded(found: kernels.Gradients, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> kernels.Gradients:
    """Gradients in the dtypes of what they are with respect to, and None for None: in forward mode, torch has zeros for it."""
    grad_x, grad_weight, grad_bias = found
    grad_weight = None if weight is None else narrowed(grad_weight, weight)
    return narrowed(grad_x, x), grad_weight, None if bias is None else narrowed(grad_bias, bias)


# --- Lookups and convolutions ------------------------------------------------------------------------------------------


def embedding_backward(grad: Tensor, tokens: Tensor, vocabulary: int, padding: int) -> Tensor:
    """As the kernel: each row of the gradient is a sum over all places of its token."""
    return in_float32(lambda wide: kernels.embedding_backward(wide, tokens, vocabulary, padding, False), grad)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, settings: kernels.ConvolutionSettings) -> Tensor:
    """As the kernel."""
    if x.dtype not in HALF or not _convolves_slowly(x, settings):
        return torch.convolution(x, weight, bias, *settings)
    return torch.convolution(widened(x), alike(x, weight), alike(x, bias), *settings).to(x.dtype)


def convolution_backward(
    *given: *tuple[Tensor, Tensor, Tensor, Sequence[int] | None, kernels.ConvolutionSettings, kernels.Mask],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As the kernel."""
    grad, x, weight, sizes, settings, mask = given
    if x.dtype not in HALF or not _convolves_slowly(x, settings):
        return kernels.convolution_backward(grad, x, weight, sizes, *settings, mask)
    found = kernels.convolution_backward(widened(grad), widened(x), widened(weight), sizes, *settings, mask)
    return narrowed(found[0], x), narrowed(found[1], weight), narrowed(found[2], weight)


def _convolves_slowly(x: Tensor, settings: kernels.ConvolutionSettings) -> bool:
    """Whether ATen's own kernel for the CPU would run, not oneDNN's: it adds up in 16 bits, and takes ten times as long."""
    stride, *_, transposed, output_padding, _ = settings
    is_beyond = transposed and any(more >= step for more, step in zip(output_padding, stride, strict=True))
    return x.is_cpu and (is_beyond or not kernels.onednn_runs(x.dtype))


# --- Attention ---------------------------------------------------------------------------------------------------------

# What many keys share is so little for each that float16 has no more than a few of its digits, or takes it for 0.


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """As the kernel."""
    if q.dtype != torch.float16:
        return kernels.attention(q, k, v, 0, causal, attn_mask=mask)
    output, logsumexp = kernels.attention(widened(q), alike(q, k), alike(q, v), 0, causal, attn_mask=widened(mask))
    return output.to(q.dtype), logsumexp


def attention_backward(
    *given: *tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], causal: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As the kernel."""
    grad, q, k, v, output, logsumexp = given
    if q.dtype != torch.float16:
        return kernels.attention_backward(*given, 0, causal, attn_mask=mask)
    wide = widened(grad), widened(q), widened(k), widened(v), widened(output), logsumexp
    grad_q, grad_k, grad_v = kernels.attention_backward(*wide, 0, causal, attn_mask=widened(mask))
    return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)
