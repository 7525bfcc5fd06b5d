"""ATen's operations that are not called, but found in graphs, and put into them, by `fundl.jit`.

The annotations are strings, as in `kernels`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch._ops import OpOverload

_aten: Final = torch.ops.aten

mm: "OpOverload[[Tensor, Tensor], Tensor]" = _aten.mm.default
addmm: "OpOverload[[Tensor, Tensor, Tensor], Tensor]" = _aten.addmm.default
# tensors, order, dtype.
foreach_norm: "OpOverload[[list[Tensor], float, torch.dtype | None], list[Tensor]]" = _aten._foreach_norm.Scalar
clone: "OpOverload[[Tensor], Tensor]" = _aten.clone.default
# x, sizes, strides: the memory of x seen so.
as_strided: "OpOverload[[Tensor, Sequence[int], Sequence[int]], Tensor]" = _aten.as_strided.default
# x, dtype.
convert_element_type: "OpOverload[[Tensor, torch.dtype], Tensor]" = torch.ops.prims.convert_element_type.default
# What computes, number by number, something new from any input.
ARITHMETIC: Final[frozenset[object]] = frozenset(
    {
        _aten.add.Tensor,
        _aten.sub.Tensor,
        _aten.rsub.Scalar,
        _aten.mul.Tensor,
        _aten.div.Tensor,
        _aten.neg.default,
        _aten.reciprocal.default,
        _aten.sqrt.default,
        _aten.rsqrt.default,
        _aten.pow.Scalar,
        _aten.exp.default,
        _aten.log.default,
        _aten.sin.default,
        _aten.cos.default,
    }
)
# Those of the poolings that compiled code is to call, see `fundl._compiling.corrections`.
POOLS: Final[frozenset[Callable[..., object]]] = frozenset(  # type: ignore[explicit-any]  # of their arguments
    {
        _aten.max_pool2d_with_indices.default,
        _aten.max_pool3d_with_indices.default,
        _aten.adaptive_max_pool2d.default,
        _aten.adaptive_max_pool3d.default,
        _aten.avg_pool2d_backward.default,
        _aten.avg_pool3d_backward.default,
    }
)
# x, axis, index, and more: no index may be negative, though they take those from 0 on as indexing does.
INDEXED: Final[frozenset[Callable[..., object]]] = frozenset(  # type: ignore[explicit-any]  # of their arguments
    {
        _aten.gather.default,
        _aten.index_add.default,
        _aten.index_copy.default,
        _aten.index_select.default,
        _aten.scatter.reduce,
        _aten.scatter.src,
        _aten.scatter.value,
        _aten.scatter.value_reduce,
        _aten.scatter_add.default,
        _aten.scatter_reduce.two,
    }
)
# Likewise, but a negative index counts from the end.
FILLED: Final[frozenset[Callable[..., object]]] = frozenset(  # type: ignore[explicit-any]  # of their arguments
    {_aten.index_fill.int_Scalar, _aten.index_fill.int_Tensor}
)
# destination, source: writes to it.
copy_: "OpOverload[[Tensor, Tensor], Tensor]" = _aten.copy_.default
# x, indices for its first axes, values, whether to add them: x with the values there; and the same written over x.
_Put: TypeAlias = "OpOverload[[Tensor, Sequence[Tensor | None], Tensor, bool], Tensor]"
index_put: _Put = _aten.index_put.default
index_put_: _Put = _aten.index_put_.default
