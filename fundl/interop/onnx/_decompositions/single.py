"""Operations that take a few others: embedding's gradient, GELU, interpolation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fundl._compiling.graphs import Decompositions
from fundl.interop.onnx._decompositions.lists import lerp

_aten = torch.ops.aten


def _embedding_backward(grad: Tensor, tokens: Tensor, count: int, padding: int, by_frequency: bool) -> Tensor:
    features = grad.shape[-1]
    places, rows = tokens.reshape(-1), grad.reshape(-1, features)
    if padding >= 0:
        rows = torch.where((places != padding).unsqueeze(-1), rows, torch.zeros((), dtype=rows.dtype))
    if by_frequency:
        ones = torch.ones_like(places, dtype=rows.dtype)
        counts = torch.zeros(count, dtype=rows.dtype).scatter_add(0, places, ones)
        rows = rows / counts.index_select(0, places).unsqueeze(-1)
    zeros = torch.zeros(count, features, dtype=grad.dtype)
    return zeros.scatter_add(0, places.unsqueeze(-1).expand(rows.shape), rows)


def _view(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """What is decomposed may have other strides than eager's, which its views were made for; in ONNX, nothing has strides."""
    viewed: Tensor = _aten._unsafe_view.default(_aten.clone.default(x, memory_format=torch.contiguous_format), sizes)
    return viewed


def _copy(x: Tensor, source: Tensor, _non_blocking: bool = False) -> Tensor:
    return source.to(x.dtype).expand(x.shape)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


TABLE: Decompositions = {
    _aten.copy.default: _copy,
    _aten.embedding_dense_backward.default: _embedding_backward,
    _aten.gelu.default: _gelu,
    _aten.lerp.Scalar: lerp,
    _aten.lerp.Tensor: lerp,
    _aten.view.default: _view,
}
