"""Fused kernels: one pass over the memory, in place, where a formula would take several."""

from itertools import chain, compress
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fundl._common.modes import is_untraced
from fundl.optim.flat import Tensors, copies


class Columns(NamedTuple):
    """What the kernel of Adam works on: leaf by leaf the params, their gradients, and Adam's moments."""

    params: Tensors
    grads: Tensors
    first_moment: Tensors
    second_moment: Tensors
    max_second_moment: Tensors  # for amsgrad, else nothing

    def rows(self, mask: tuple[bool, ...]) -> "Columns":
        """The leaves where the mask is true."""
        return Columns(*(tuple(compress(column, mask)) for column in self))

    def part(self, start: int, stop: int) -> "Columns":
        """Some leaves that follow each other."""
        return Columns(*(column[start:stop] for column in self))

    def unshared(self) -> "Columns":
        """The gradients as they are, and copies of all else, for the kernel to write over."""
        n = len(self.params)
        new = copies(self.params + self.first_moment + self.second_moment + self.max_second_moment)
        return Columns(new[:n], self.grads, new[n : 2 * n], new[2 * n : 3 * n], new[3 * n :])


def joined(parts: list[Columns]) -> Columns:
    """Columns whose leaves follow each other, as one."""
    if len(parts) == 1:
        return parts[0]
    fields = range(len(Columns._fields))
    return Columns(*(tuple(chain.from_iterable([part[field] for part in parts])) for field in fields))


_RUN: Final = 2**18  # numbers


def runs(params: Tensors) -> list[tuple[int, int]]:
    """Where leaves start and stop of which copies are still in the cache as the kernel writes over them: on a GPU, all."""
    if params[0].is_cuda:
        return [(0, len(params))]
    found, start, numbers = [], 0, 0
    for stop, leaf in enumerate(params, 1):
        numbers += leaf.numel()
        if numbers >= _RUN or stop == len(params):
            found.append((start, stop))
            start, numbers = stop, 0
    return found


def read_by_kernels(rate: float | Tensor) -> float | Tensor:
    """A rate as the kernels read it: those of devices read float32, that of the CPU takes any number."""
    return rate.to(torch.float32) if isinstance(rate, Tensor) and not rate.is_cpu else rate


def read_exactly(rate: object, params: Tensors) -> bool:
    """Whether the kernels for some params read a rate, or what a schedule gives, as exactly as the params are."""
    return isinstance(rate, int | float) or params[0].is_cpu or params[0].dtype != torch.float64


def can_fuse(params: Tensors, *columns: Tensors) -> bool:
    """Whether a fused kernel, which trusts whoever calls it, computes what the formula says.

    Args:
        params: the leaves.
        columns: what belongs to them, leaf by leaf; or nothing, where the kernel takes that for none.

    It takes all memory for that of contiguous tensors of the first one's shape, dtype and device. It is not for traces
    either: there a compiler fuses the formula, with what comes before and after it.
    """
    first, n = params[0], len(params)
    if not is_untraced(first) or not (first.is_cpu or first.is_cuda):
        return False
    tensors = params
    for column in columns:
        if column and (len(column) != n or column[0].device != first.device):
            return False
        tensors += column
    shapes = [tensor.shape for tensor in tensors]
    return (
        all(map(Tensor.is_contiguous, tensors))
        and len({tensor.dtype for tensor in tensors}) == 1
        and shapes == shapes[:n] * (len(shapes) // n)
    )
