"""Gradients of weights without their mean."""

from typing import final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.suggestions import with_suggestions
from fundl.optim._blocks import BlocksState, OfBlocks, Stacked, is_divided, stacked_axes, unit_axes
from fundl.optim.flat import Tensors
from fundl.optim.transform import Transform
from fundl.tree import Split


@final
@attrs.frozen
class _Centralize(OfBlocks):
    @override
    def axes(self, path: str, leaf: Tensor) -> int:
        axes = unit_axes(path, leaf)
        return axes if axes > stacked_axes(path) else 0  # of no units: no matrix

    @override
    def updates(self, grads: Tensors, axes: Stacked, params: Tensors) -> Tensors:
        splits = self.splits or (None,) * len(grads)
        return tuple(_centred(grad, own, split) if own else grad for grad, own, split in zip(grads, axes, splits, strict=True))


def _centred(grad: Tensor, axes: int, split: Split | None) -> Tensor:
    """A gradient without the mean of each unit, which the first axes tell apart."""
    inner = tuple(range(axes, grad.ndim))
    if split is None or not is_divided(split, grad, axes):
        return grad - grad.mean(inner, keepdim=True) if grad.numel() else grad
    axis = split.axis % grad.ndim
    own = sum(stop - start for start, stop in split.ranges(split.among.rank))
    numbers = grad.narrow(axis, 0, own)  # what a part has beyond is 0, and stays so
    total = split.among.of_all(numbers.sum(inner, keepdim=True).unsqueeze(0)).sum(0)
    count = grad.shape[axes:].numel() // max(grad.shape[axis], 1) * split.whole
    return torch.cat((numbers - total / max(count, 1), grad.narrow(axis, own, grad.shape[axis] - own)), axis)


@with_suggestions
def centralize() -> Transform[BlocksState]:
    """Take the mean of each row out of the gradients of weights: u = g - mean(g), over all axes but the first.

    So the sum of the weights of each unit stays as it is. Vectors, such as biases, are left as they are. Of tensors that
    `repeat` stacks, each block has rows of its own. It goes before what looks at the gradient, as in
    ``chain(centralize(), adam(1e-3))``.

    Source:
        Yong, Huang, Hua and Zhang, Gradient centralization: a new optimization technique for deep neural networks, 2020.

    >>> import torch
    >>> from fundl import centralize
    >>> transform, weight = centralize(), torch.zeros(2, 2)
    >>> transform.update(torch.tensor([[1.0, 3.0], [5.0, 5.0]]), transform.init(weight), weight)[0]
    tensor([[-1.,  1.],
            [ 0.,  0.]])
    """
    return _Centralize()
