"""The gradients of convolutions, as convolutions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fundl._compiling.graphs import Decompositions
from fundl.interop.onnx._decompositions.normalization import wide

_aten = torch.ops.aten

_Sizes = Sequence[int]


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    _bias_sizes: _Sizes | None,
    stride: _Sizes,
    padding: _Sizes,
    dilation: _Sizes,
    transposed: bool,
    _output_padding: _Sizes,
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    axes = x.ndim - 2
    stride, padding, dilation = (each(values, axes) for values in (stride, padding, dilation))
    grad_x: Tensor | None = None
    grad_weight: Tensor | None = None
    if wanted[0] and transposed:
        grad_x = _aten.convolution(grad, weight, None, stride, padding, dilation, False, [0] * axes, groups)
        for axis in range(2, x.ndim):  # an output padding of a stride or more makes it larger
            grad_x = grad_x if grad_x.shape[axis] == x.shape[axis] else grad_x.narrow(axis, 0, x.shape[axis])
    elif wanted[0]:
        # Several sizes of the input give the same size of the output: output padding tells which it was.
        kernel = weight.shape[2:]
        least = [(grad.shape[i + 2] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i] - 1) + 1 for i in range(axes)]
        missing = [x.shape[i + 2] - least[i] for i in range(axes)]
        grad_x = _aten.convolution(grad, weight, None, stride, padding, dilation, True, missing, groups)
    if wanted[1]:
        pair = (grad, x) if transposed else (x, grad)
        grad_weight = _grad_weight(*pair, weight.shape[2:], stride, padding, dilation, groups)
    return grad_x, grad_weight, grad.sum([0, *range(2, x.ndim)]) if wanted[2] else None


def _grad_weight(
    x: Tensor, grad: Tensor, kernel: _Sizes, stride: _Sizes, padding: _Sizes, dilation: _Sizes, groups: int
) -> Tensor:
    """The sum over the batch of x correlated with grad: a convolution with batch and channels, stride and dilation exchanged.

    x of shape (B, G c, ...) becomes (c, G B, ...), grad of shape (B, G o, ...) becomes (G o, B, ...), and of G groups comes
    (c, G o, kernel).
    """
    batch, channels, *sizes = x.shape
    grouped = x.reshape(batch, groups, channels // groups, *sizes).permute(2, 1, 0, *range(3, x.ndim + 1))
    exchanged = grouped.reshape(channels // groups, groups * batch, *sizes)
    zeros = [0] * len(sizes)
    whole: Tensor = _aten.convolution(exchanged, grad.transpose(0, 1), None, dilation, padding, stride, False, zeros, groups)
    for axis, size in enumerate(kernel, 2):
        whole = whole.narrow(axis, 0, size)
    return whole.transpose(0, 1)


def each(values: int | _Sizes, axes: int) -> list[int]:
    """A setting for each axis, of one for all of them or one for each."""
    listed = [values] if isinstance(values, int) else [*values]
    return listed * axes if len(listed) == 1 else listed


def _weight_norm(direction: Tensor, gain: Tensor, axis: int = 0) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(wide(direction), 2, _others(direction, axis), True)
    return (direction * (gain / norm)).to(direction.dtype), norm


def _weight_norm_backward(grad: Tensor, direction: Tensor, gain: Tensor, norm: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    along = (wide(grad) * direction).sum(_others(direction, axis), keepdim=True)
    grad_direction = (gain / norm) * (grad - direction * along / (norm * norm))
    return grad_direction.to(direction.dtype), (along / norm).to(gain.dtype)


def _others(x: Tensor, axis: int) -> list[int]:
    return [other for other in range(x.ndim) if other != axis % x.ndim]


TABLE: Decompositions = {
    _aten.convolution_backward.default: _convolution_backward,
    _aten._weight_norm_interface.default: _weight_norm,
    _aten._weight_norm_interface_backward.default: _weight_norm_backward,
}
