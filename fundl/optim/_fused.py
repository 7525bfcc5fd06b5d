"""The fused kernel of Adam: one pass over the memory, in place, where the formula would take a dozen."""

from itertools import compress
from typing import NamedTuple

from torch import Tensor

from fundl._common.modes import is_traced
from fundl.optim.flat import Tensors, copies


class Columns(NamedTuple):
    """What the kernel works on: leaf by leaf the params, their gradients, and Adam's moments."""

    params: Tensors
    grads: Tensors
    first_moment: Tensors
    second_moment: Tensors
    max_second_moment: Tensors  # for amsgrad, else nothing

    def rows(self, mask: tuple[bool, ...]) -> "Columns":
        """The leaves where the mask is true."""
        return Columns(*(tuple(compress(column, mask)) for column in self))

    def unshared(self) -> "Columns":
        """The gradients as they are, and copies of all else, for the kernel to write over."""
        n = len(self.params)
        new = copies(self.params + self.first_moment + self.second_moment + self.max_second_moment)
        return Columns(new[:n], self.grads, new[n : 2 * n], new[2 * n : 3 * n], new[3 * n :])


def can_fuse(columns: Columns) -> bool:
    """Whether the kernel, which trusts whoever calls it, computes what the formula says.

    It takes all memory for that of contiguous tensors of the first one's shape, dtype and device. It is not for traces
    either: there a compiler fuses the formula, with what comes before and after it.
    """
    if is_traced():
        return False
    params, grads, first, second, greatest = columns
    tensors = params + grads + first + second + greatest
    shapes, n = [tensor.shape for tensor in tensors], len(params)
    return (
        len(grads) == len(first) == len(second) == n
        and len(greatest) in {0, n}
        and shapes == shapes[:n] * (len(shapes) // n)
        and len({tensor.dtype for tensor in tensors}) == 1
        and all(map(Tensor.is_contiguous, tensors))
        and params[0].device == grads[0].device == first[0].device == second[0].device == (greatest or first)[0].device
        and (params[0].is_cpu or params[0].is_cuda)
    )
