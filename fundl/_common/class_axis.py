"""Along which axis the classes are: what losses and metrics of classes share.

They compute along axis 1, as kernels of images want it. Where the classes are along another axis, samples and positions become
rows: of the last axis, as language models have it, that copies nothing.
"""

from collections.abc import Callable

from torch import Tensor

from fundl._common.suggestions import require_tensor


def classes_along(axis: int, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor] | None]:
    """A prediction and its target, whose classes are along some axis, with the classes along axis 1.

    Returns:
        The two, of shapes (B, C, ...) and (B, ...), or as rows, (N, C) and (N,); and if they are rows, what gives a gradient
        the shape of the prediction again.
    """
    require_tensor(prediction, "the prediction must be")
    require_tensor(target, "the target must be")
    if axis == 1 or prediction.ndim < 2 or (axis == -1 and prediction.ndim == 2):
        return prediction, target, None
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
    rows = moved.flatten(0, -2), target.flatten(0, moved.ndim - 2)
    return *rows, lambda grad: grad.reshape(moved.shape).movedim(-1, axis)


def axis_hint(prediction: tuple[int, ...], target: tuple[int, ...]) -> str:
    """What to add to an error on the shapes of a prediction and a target, where the classes seem to be along the last axis."""
    if len(prediction) > 2 and target == prediction[:-1]:
        return "the classes are looked for along axis 1; if they are along the last one, say axis=-1"
    return ""
