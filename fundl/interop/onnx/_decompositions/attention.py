"""Attention by the CPU's kernel, and its gradient, as products and a softmax."""

import math

import torch
from torch import Tensor

from fundl._compiling.graphs import Decompositions
from fundl.interop.onnx._decompositions.normalization import wide

_aten = torch.ops.aten


def _scale(q: Tensor, scale: float | None) -> float:
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None, *, causal: bool) -> Tensor:
    scores = torch.matmul(q, k.transpose(-1, -2)) * _scale(q, scale)
    if mask is not None:
        scores = scores + mask
    if causal:
        rows, columns = torch.arange(q.shape[2]).unsqueeze(1), torch.arange(k.shape[2]).unsqueeze(0)
        scores = torch.where(columns <= rows, scores, torch.full((), -math.inf, dtype=scores.dtype))
    return scores


def _for_each_head(q: Tensor, k: Tensor) -> Tensor:
    """The keys or values of each head of q, some of which share theirs."""
    batch, heads, *rest = k.shape
    share = q.shape[1] // heads
    return k if share == 1 else k.unsqueeze(2).expand(batch, heads, share, *rest).reshape(batch, q.shape[1], *rest)


def _zero_where_empty(top: Tensor) -> Tensor:
    """A maximum of scores, but 0 where nothing may be seen."""
    return torch.where(top == -math.inf, torch.zeros((), dtype=top.dtype), top)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    _dropout: float = 0.0,
    causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """What is attended to, and the logarithm of the sum of exponentials of each row."""
    dtype = q.dtype
    q, k, v = map(wide, (q, k, v))
    scores = _scores(q, _for_each_head(q, k), attn_mask, scale, causal=causal)
    top = _zero_where_empty(scores.amax(-1, keepdim=True))
    exponentials = (scores - top).exp()
    total = exponentials.sum(-1, keepdim=True)
    shares = exponentials / torch.where(total == 0, torch.ones((), dtype=total.dtype), total)
    return torch.matmul(shares, _for_each_head(q, v)).to(dtype), (top + total.log()).squeeze(-1)


def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    logarithms: Tensor,
    _dropout: float,
    causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = q.dtype
    grad, q, k, v, output = map(wide, (grad, q, k, v, output))
    keys, values = _for_each_head(q, k), _for_each_head(q, v)
    scores = _scores(q, keys, attn_mask, scale, causal=causal)
    shares = (scores - _zero_where_empty(logarithms.unsqueeze(-1))).exp()
    grad_shares = torch.matmul(grad, values.transpose(-1, -2))
    grad_scores = shares * (grad_shares - (grad * output).sum(-1, keepdim=True)) * _scale(q, scale)
    grad_k, grad_v = torch.matmul(grad_scores.transpose(-1, -2), q), torch.matmul(shares.transpose(-1, -2), grad)
    return torch.matmul(grad_scores, keys).to(dtype), _summed(grad_k, k).to(dtype), _summed(grad_v, v).to(dtype)


def _summed(grad: Tensor, like: Tensor) -> Tensor:
    """The gradients of heads that share keys, or values, added."""
    batch, heads, *rest = like.shape
    share = grad.shape[1] // heads
    return grad if share == 1 else grad.reshape(batch, heads, share, *rest).sum(2)


TABLE: Decompositions = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attention_backward,
}
