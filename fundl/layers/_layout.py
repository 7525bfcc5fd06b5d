"""How tensors lie in memory, for kernels that read it as if it were of the sizes and in the order that they expect."""

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from fundl.tree import Record


@attrs.frozen(eq=False)
class Layout(Record):
    """What backward is to know of images or volumes: their sizes, and whether the channels are the last in memory."""

    sizes: tuple[int, ...]
    channels_last: bool


def layout_of(x: Tensor) -> Layout:
    """The layout of a tensor."""
    return Layout(x.shape, channels_are_last(x))


def channels_are_last(x: Tensor) -> bool:
    """Whether channels are last in memory, as they can be if the axes are (B, C, H, W) or (B, C, D, H, W)."""
    return x.ndim in {4, 5} and x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous()


def stand_in(layout: Layout, grad: Tensor) -> Tensor:
    """A tensor in place of the input, of its layout, without numbers; in row-major order it takes no memory either."""
    if not layout.channels_last:
        return grad.new_empty(()).expand(layout.sizes)
    order = torch.channels_last if len(layout.sizes) == 4 else torch.channels_last_3d
    return torch.empty(layout.sizes, dtype=grad.dtype, device=grad.device, memory_format=order)


def in_a_row(parameter: Tensor | None) -> Tensor | None:
    """A parameter of a kernel that reads it as if it were contiguous, and does not ask."""
    return None if parameter is None else parameter.contiguous()


def require_sizes(grad: Tensor, sizes: Sequence[int]) -> None:
    """Raise unless a gradient is of the output's sizes: a kernel that does not ask would read what is behind its memory."""
    if grad.shape != sizes:
        raise ValueError(
            f"grad is the gradient with respect to the output, and must have its shape {tuple(sizes)}, not {tuple(grad.shape)}"
        )


def as_matrix(x: Tensor) -> Tensor:
    """The rows of all leading axes, one below the other: there may be no axes, no rows, and nothing in them."""
    if x.ndim == 2:
        return x
    return x.flatten(0, -2) if x.ndim > 1 else x.unsqueeze(0)
