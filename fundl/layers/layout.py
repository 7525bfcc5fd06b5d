"""How a tensor of images or volumes lies in memory, for backward kernels that ask for no more of the input than that."""

from typing import final

import attrs
import torch
from torch import Tensor

from fundl.tree import Record


@final
@attrs.frozen(eq=False)
class Layout(Record):
    """What backward is to know of an input: its sizes, and whether the channels are the last in memory."""

    sizes: tuple[int, ...]
    channels_last: bool


def layout_of(x: Tensor) -> Layout:
    """The layout of a tensor, whose channels can be last in memory if its axes are (B, C, H, W) or (B, C, D, H, W)."""
    return Layout(x.shape, x.ndim in {4, 5} and x.stride(1) == 1 and x.shape[1] > 1)


def stand_in(layout: Layout, grad: Tensor) -> Tensor:
    """A tensor in place of the input, of its layout, without numbers; in row-major order it takes no memory either."""
    if not layout.channels_last:
        return grad.new_empty(()).expand(layout.sizes)
    order = torch.channels_last if len(layout.sizes) == 4 else torch.channels_last_3d
    return torch.empty(layout.sizes, dtype=grad.dtype, device=grad.device, memory_format=order)
