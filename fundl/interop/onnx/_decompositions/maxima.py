"""Adaptive max pooling by gathering what each output sees, and the gradient of all max pooling."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fundl._compiling.graphs import Decompositions
from fundl.interop.onnx._decompositions.convolution import each
from fundl.interop.onnx._decompositions.matrices import windows_of

_aten = torch.ops.aten


def _adaptive_maximum(x: Tensor, sizes: int | Sequence[int], *, axes: int) -> tuple[Tensor, Tensor]:
    """The maxima, and the place of each in its image."""
    lead, image = x.shape[:-axes], x.shape[-axes:]
    seen = [windows_of(size, outputs) for size, outputs in zip(image, each(sizes, axes), strict=True)]
    cells = [_flat(corner, image) for corner in itertools.product(*seen)]
    width = max(map(len, cells))
    places = torch.tensor(
        [[*cell, *cell[:1] * (width - len(cell))] for cell in cells]
    )  # one more of the same is no other maximum
    found = x.reshape(*lead, math.prod(image)).index_select(-1, places.reshape(-1)).reshape(*lead, *places.shape)
    which = found.argmax(-1, keepdim=True)
    place = torch.gather(places.expand(*lead, *places.shape), -1, which).squeeze(-1)
    shape = (*lead, *map(len, seen))
    return found.amax(-1).reshape(shape), place.reshape(shape)


def _flat(ranges: Sequence[range], image: Sequence[int]) -> list[int]:
    """The places of a window, counted row by row."""
    places: list[int] = []
    for cell in itertools.product(*ranges):
        place = 0
        for index, size in zip(cell, image, strict=True):
            place = place * size + index
        places.append(place)
    return places


def _maximum_backward(grad: Tensor, x: Tensor, *options: object, axes: int) -> Tensor:
    """The gradient of each output added to its place; the places come last."""
    places = options[-1]
    assert isinstance(places, Tensor)
    lead, image = x.shape[:-axes], x.shape[-axes:]
    outputs = math.prod(grad.shape[-axes:])
    zeros = torch.zeros(*lead, math.prod(image), dtype=grad.dtype)
    added = zeros.scatter_add(-1, places.reshape(*lead, outputs), grad.reshape(*lead, outputs))
    return added.reshape(x.shape)


def _table() -> dict[object, Callable[..., object]]:  # type: ignore[explicit-any]  # of any arguments
    table: dict[object, Callable[..., object]] = {}  # type: ignore[explicit-any]  # likewise
    for axes in (2, 3):
        backward = functools.partial(_maximum_backward, axes=axes)
        table[getattr(_aten, f"max_pool{axes}d_with_indices_backward").default] = backward
        table[getattr(_aten, f"adaptive_max_pool{axes}d_backward").default] = backward
        table[getattr(_aten, f"adaptive_max_pool{axes}d").default] = functools.partial(_adaptive_maximum, axes=axes)
    return table


TABLE: Decompositions = _table()
