"""What is linear along each axis, as a product with a constant matrix: resampling, average pooling, the gradient of padding."""

import functools
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fundl._compiling.graphs import Decompositions
from fundl.interop.onnx._decompositions.convolution import each

_aten = torch.ops.aten
Entries: TypeAlias = Iterable[tuple[int, int, float]]
"""Of a matrix: row, column, value; values at the same place are added."""


def _along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """A matrix (out, in) times the numbers along an axis."""
    return torch.matmul(x.movedim(axis, -1), matrix.t()).movedim(-1, axis)


def _matrix(entries: Entries, rows: int, columns: int, like: Tensor) -> Tensor:
    values = [[0.0] * columns for _ in range(rows)]
    for row, column, value in entries:
        values[row][column] += value
    return torch.tensor(values, dtype=like.dtype)


def _last_axes(x: Tensor, count: int) -> range:
    return range(x.ndim - count, x.ndim)


# --- Adaptive average pooling --------------------------------------------------------------------------------------------


def windows_of(size: int, outputs: int) -> list[range]:
    """The places that each output of adaptive pooling sees."""
    return [range(index * size // outputs, -(-(index + 1) * size // outputs)) for index in range(outputs)]


def _means(size: int, outputs: int, like: Tensor) -> Tensor:
    windows = enumerate(windows_of(size, outputs))
    return _matrix(((row, place, 1 / len(seen)) for row, seen in windows for place in seen), outputs, size, like)


def _adaptive_average(x: Tensor, sizes: Sequence[int]) -> Tensor:
    for axis, size in zip(_last_axes(x, len(sizes)), sizes, strict=True):
        x = _along(x, axis, _means(x.shape[axis], size, x))
    return x


def _adaptive_average_backward(grad: Tensor, x: Tensor, *, axes: int) -> Tensor:
    for axis in _last_axes(x, axes):
        grad = _along(grad, axis, _means(x.shape[axis], grad.shape[axis], x).t())
    return grad


# --- Average pooling -----------------------------------------------------------------------------------------------------


def windows(size: int, kernel: int, stride: int, padding: int, *, ceil: bool) -> list[range]:
    """The places that each output sees: those in the padding are below 0, or size and above."""
    room = size + 2 * padding - kernel
    outputs = (-(-room // stride) if ceil else room // stride) + 1
    if ceil and (outputs - 1) * stride >= size + padding:
        outputs -= 1
    return [range(index * stride - padding, index * stride - padding + kernel) for index in range(outputs)]


def _sums(seen: Sequence[range], size: int, like: Tensor) -> Tensor:
    inside = ((row, place, 1.0) for row, places in enumerate(seen) for place in places if 0 <= place < size)
    return _matrix(inside, len(seen), size, like)


def _pooled(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] | int = 0,
    ceil: bool = False,
    count_padding: bool = True,
    divisor: int | None = None,
    *,
    axes: int,
    grad: Tensor | None = None,
) -> Tensor:
    kernels, paddings = each(kernel, axes), each(padding, axes)
    strides = each(stride, axes) if stride else kernels
    sizes = [x.shape[axis] for axis in _last_axes(x, axes)]
    seen = [windows(*of_axis, ceil=ceil) for of_axis in zip(sizes, kernels, strides, paddings, strict=True)]
    scale = _shares(seen, sizes, paddings if count_padding else [0] * axes, divisor, x)
    y = x if grad is None else grad * scale
    for axis, places, size in zip(_last_axes(x, axes), seen, sizes, strict=True):
        matrix = _sums(places, size, x)
        y = _along(y, axis, matrix if grad is None else matrix.t())
    return y * scale if grad is None else y


def _shares(
    seen: Sequence[Sequence[range]], sizes: Sequence[int], paddings: Sequence[int], divisor: int | None, like: Tensor
) -> Tensor:
    """What each sum is multiplied by: one over how many numbers it is of."""
    if divisor is not None:
        return torch.tensor(1 / divisor, dtype=like.dtype)
    counts = torch.ones((), dtype=torch.float64)
    for places, size, padding in zip(seen, sizes, paddings, strict=True):
        own = [sum(-padding <= place < size + padding for place in window) for window in places]
        counts = counts.unsqueeze(-1) * torch.tensor(own, dtype=torch.float64)
    return (1 / counts).to(like.dtype)


def _average(x: Tensor, *options: object, axes: int) -> Tensor:
    return _with_options(x, None, options, axes)


def _average_backward(grad: Tensor, x: Tensor, *options: object, axes: int) -> Tensor:
    return _with_options(x, grad, options, axes)


def _with_options(x: Tensor, grad: Tensor | None, options: Sequence[object], axes: int) -> Tensor:
    pooled: Callable[..., Tensor] = functools.partial(_pooled, axes=axes, grad=grad)  # type: ignore[explicit-any]  # as ATen orders them
    return pooled(x, *options)


# --- Resampling ----------------------------------------------------------------------------------------------------------

Kind: TypeAlias = Literal["nearest", "linear"]


def _resampling(
    kind: Kind, size: int, outputs: int, corners: bool, scale: float | None, like: Tensor, *, backward: bool = False
) -> Tensor:
    """The matrix of an axis: what each output is made of; kernels of gradients find the nearest in float32 always."""
    step = 1 / scale if scale else size / outputs
    if kind == "nearest":
        places = _nearest(size, outputs, step, exact=like.dtype is torch.float64 and not backward)
        return _matrix(((row, place, 1.0) for row, place in enumerate(places)), outputs, size, like)
    entries: list[tuple[int, int, float]] = []
    for row in range(outputs):
        exact = max((row + 0.5) * step - 0.5, 0.0)
        if corners:
            exact = row * (size - 1) / (outputs - 1) if outputs > 1 else 0.0
        low = min(int(exact), size - 1)
        entries += [(row, low, 1 - (exact - low)), (row, min(low + 1, size - 1), exact - low)]
    return _matrix(entries, outputs, size, like)


def _nearest(size: int, outputs: int, step: float, *, exact: bool) -> list[int]:
    """Where each output comes from, with the kernel's rounding: in float32, 41 steps of 1/41 end below 1."""
    if outputs in {size, 2 * size}:
        return [index * size // outputs for index in range(outputs)]
    rounded: Callable[[float], float] = float if exact else _in_float32
    return [min(int(rounded(index * rounded(step))), size - 1) for index in range(outputs)]


def _in_float32(number: float) -> float:
    (rounded,) = struct.unpack("f", struct.pack("f", number))
    assert isinstance(rounded, float)
    return rounded


def _options(kind: Kind, given: Sequence[object], axes: int) -> tuple[bool, list[float | None]]:
    """Whether corners are aligned, which only linear resampling is asked, and the scales."""
    rest = [*given]
    corners = bool(rest.pop(0)) if kind == "linear" else False
    scales = [scale if isinstance(scale, float) else None for scale in rest]
    return corners, scales + [None] * (axes - len(scales))


def _upsample(x: Tensor, sizes: Sequence[int], *given: object, kind: Kind) -> Tensor:
    axes = len(sizes)
    corners, scales = _options(kind, given, axes)
    for axis, size, scale in zip(_last_axes(x, axes), sizes, scales, strict=True):
        x = _along(x, axis, _resampling(kind, x.shape[axis], size, corners, scale, x))
    return x


def _upsample_backward(grad: Tensor, sizes: Sequence[int], before: Sequence[int], *given: object, kind: Kind) -> Tensor:
    axes = len(sizes)
    corners, scales = _options(kind, given, axes)
    for axis, size, had, scale in zip(_last_axes(grad, axes), sizes, before[2:], scales, strict=True):
        grad = _along(grad, axis, _resampling(kind, had, size, corners, scale, grad, backward=True).t())
    return grad


# --- Padding with what is there --------------------------------------------------------------------------------------------

Padding: TypeAlias = Literal["reflection", "replication", "circular"]


def _padded_places(mode: Padding, size: int, before: int, after: int) -> list[int]:
    """Where each number of a padded axis comes from."""
    places: list[int] = []
    for place in range(-before, size + after):
        if mode == "reflection":
            back = abs(place)
            places.append(2 * (size - 1) - back if back >= size else back)
        else:
            places.append(min(max(place, 0), size - 1) if mode == "replication" else place % size)
    return places


def _pad(x: Tensor, padding: Sequence[int], *, mode: Padding) -> Tensor:
    for index in range(len(padding) // 2):
        axis = x.ndim - 1 - index
        places = _padded_places(mode, x.shape[axis], *padding[2 * index : 2 * index + 2])
        x = x.index_select(axis, torch.tensor(places))
    return x


def _pad_backward(grad: Tensor, x: Tensor, padding: Sequence[int], *, mode: Padding) -> Tensor:
    for index in range(len(padding) // 2):
        axis = x.ndim - 1 - index
        places = _padded_places(mode, x.shape[axis], *padding[2 * index : 2 * index + 2])
        entries = ((place, column, 1.0) for column, place in enumerate(places))
        grad = _along(grad, axis, _matrix(entries, x.shape[axis], len(places), grad))
    return grad


def _table() -> dict[object, Callable[..., Tensor]]:  # type: ignore[explicit-any]  # of any arguments
    table: dict[object, Callable[..., Tensor]] = {}  # type: ignore[explicit-any]  # likewise
    for axes in (2, 3):
        for name in ("adaptive_avg_pool", "_adaptive_avg_pool"):
            table[getattr(_aten, f"{name}{axes}d").default] = _adaptive_average
        backward = getattr(_aten, f"_adaptive_avg_pool{axes}d_backward").default
        table[backward] = functools.partial(_adaptive_average_backward, axes=axes)
        table[getattr(_aten, f"avg_pool{axes}d").default] = functools.partial(_average, axes=axes)
        table[getattr(_aten, f"avg_pool{axes}d_backward").default] = functools.partial(_average_backward, axes=axes)
    names: dict[Kind, tuple[str, ...]] = {
        "nearest": ("nearest1d", "nearest2d", "nearest3d"),
        "linear": ("linear1d", "bilinear2d", "trilinear3d"),
    }
    for kind, of_kind in names.items():
        for name in of_kind:
            table[getattr(_aten, f"upsample_{name}").default] = functools.partial(_upsample, kind=kind)
            table[getattr(_aten, f"upsample_{name}_backward").default] = functools.partial(_upsample_backward, kind=kind)
    modes: tuple[Padding, ...] = ("reflection", "replication")
    for mode in modes:
        for axes in (1, 2, 3):
            table[getattr(_aten, f"{mode}_pad{axes}d").default] = functools.partial(_pad, mode=mode)
            table[getattr(_aten, f"{mode}_pad{axes}d_backward").default] = functools.partial(_pad_backward, mode=mode)
    table[_aten._pad_circular.default] = functools.partial(_pad, mode="circular")
    return table


TABLE: Decompositions = _table()
