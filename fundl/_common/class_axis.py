"""Along which axis the classes are: what losses and metrics of classes share.

They compute along axis 1, as kernels of images want it. Where the classes are along another axis, samples and positions become
rows: of the last axis, as language models have it, that copies nothing.
"""

from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """Samples and positions as the rows of one batch."""

    prediction: Tensor  # (N, C)
    target: Tensor  # (N,), or (N, C)
    shape: tuple[int, ...]  # of the prediction with the classes last
    axis: int

    def back(self, grad: Tensor) -> Tensor:
        """The gradient with respect to the rows in the prediction's shape."""
        return grad.reshape(self.shape).movedim(-1, self.axis)


def is_along(axis: int, prediction: Tensor) -> bool:
    """Whether the classes are along axis 1, or there are too few axes for any other."""
    return axis == 1 or prediction.ndim < 2 or (axis == -1 and prediction.ndim == 2)


def as_rows(prediction: Tensor, target: Tensor, axis: int) -> Rows:
    """A prediction and its target, whose classes are along some axis, as rows.

    Raises:
        ValueError: the prediction has no such axis, or the target does not fit.
    """
    if axis in {0, -prediction.ndim} or not -prediction.ndim <= axis < prediction.ndim:
        raise ValueError(
            f"axis={axis} is to be that of the classes, any but the first, which is the batch's; the prediction's shape is"
            f" {tuple(prediction.shape)}"
        )
    moved = prediction.movedim(axis, -1)
    if target.shape == prediction.shape:
        target = target.movedim(axis, -1)
    elif target.shape != moved.shape[:-1]:
        raise ValueError(
            f"for a prediction of shape {tuple(prediction.shape)}, with the classes along axis {axis}, class indices must have"
            f" the shape {tuple(moved.shape[:-1])}, not {tuple(target.shape)}"
        )
    return Rows(moved.flatten(0, -2), target.flatten(0, moved.ndim - 2), moved.shape, axis)


def axis_hint(prediction: tuple[int, ...], target: tuple[int, ...]) -> str:
    """What to add to an error on the shapes of a prediction and a target, where the classes seem to be along the last axis."""
    if len(prediction) > 2 and target == prediction[:-1]:
        return "the classes are looked for along axis 1; if they are along the last one, say axis=-1"
    return ""
