"""Predictions of several tensors, and labels of yes or no: what the losses share that compare, or that have a margin."""

from collections.abc import Sequence
from typing import Final, TypeAlias, TypeVar

import torch
from torch import Tensor

from fundl import tree
from fundl._common.half import narrowed
from fundl._common.modes import is_readable
from fundl._common.suggestions import require_tensor
from fundl._common.tape import constant
from fundl.losses.reduction import Kind, Reduction, computable, divisor, ones
from fundl.tree import describe

G = TypeVar("G")
Two: TypeAlias = tuple[Tensor, Tensor]
Three: TypeAlias = tuple[Tensor, Tensor, Tensor]


# --- Several tensors ---------------------------------------------------------------------------------------------------


def parts_of(loss: str, words: str, prediction: Sequence[Tensor], count: int) -> list[Tensor]:
    """The tensors of a prediction, of one shape and dtype, ready to compute with."""
    given: object = prediction
    if not isinstance(given, tuple) or len(given) != count or not all(isinstance(part, Tensor) for part in given):
        raise TypeError(f"the prediction of {loss} is a tuple of {count} tensors, {words}, not {describe(given)}")
    if not all(part.shape == prediction[0].shape and part.dtype is prediction[0].dtype for part in prediction):
        found = " and ".join(f"{part.dtype} of {tuple(part.shape)}" for part in prediction)
        raise ValueError(f"the tensors of {loss}'s prediction, {words}, must be of one shape and dtype, not {found}")
    return [computable(part) for part in prediction]


def narrowed_all(grads: G, like: G) -> G:
    """Gradients in the dtypes of the parts of a prediction."""
    return tree.map(narrowed, grads, like)


def rows_of(x: Tensor) -> Tensor:
    """A tensor that is like one number for each of the vectors, which are along the last axis."""
    return x.new_empty(x.shape[:-1])


def _first(prediction: Tensor | Sequence[Tensor]) -> Tensor:
    return prediction if isinstance(prediction, Tensor) else prediction[0]


def _weight_of_elements(
    prediction: Sequence[Tensor], _target: object, *, reduction: Reduction = "mean", **_options: object
) -> int:
    return divisor(_first(prediction), reduction)


def _weight_of_vectors(
    prediction: Sequence[Tensor], _target: object, *, reduction: Reduction = "mean", **_options: object
) -> int:
    return divisor(rows_of(_first(prediction)), reduction)


def _count_elements(prediction: Sequence[Tensor], _target: object, **_options: object) -> Tensor:
    return ones(_first(prediction))


def _count_vectors(prediction: Sequence[Tensor], _target: object, **_options: object) -> Tensor:
    return ones(rows_of(_first(prediction)))


def _harmless(
    prediction: Sequence[Tensor], target: object, kept: Tensor, **_options: object
) -> tuple[tuple[Tensor, ...], object]:
    """1 in the place of all that is not kept: it is a label, a variance, and a number as any other."""

    def filled(x: Tensor) -> Tensor:
        return torch.where(kept.reshape([*kept.shape, *[1] * (x.ndim - kept.ndim)]), x, 1)

    if isinstance(target, Tensor) and target.shape[: kept.ndim] == kept.shape:
        target = filled(target)
    return tuple([filled(part) for part in prediction]), target


OF_ELEMENTS: Final = Kind(_weight_of_elements, _count_elements, _harmless)
"""Losses of the elements of a prediction of several tensors."""
OF_VECTORS: Final = Kind(_weight_of_vectors, _count_vectors, _harmless)
"""Losses of its vectors."""


# --- Labels ------------------------------------------------------------------------------------------------------------


def signs(target: Tensor, like: Tensor) -> Tensor:
    """1 where a label means yes, which it does above 0, else -1; of the dtype and shape of what there is a label for."""
    require_tensor(target, "the target must be")
    if target.shape != like.shape:
        raise ValueError(
            f"the target must hold labels of shape {tuple(like.shape)}, 1 for yes, and -1 or 0 for no, but its shape is"
            f" {tuple(target.shape)}"
        )
    if target.is_complex():
        raise TypeError(f"labels are 1 for yes, and -1 or 0 for no, not of {target.dtype}")
    if target.dtype != torch.bool and is_readable(target):
        wrong = target[(target != 0) & (target.abs() != 1)]
        if wrong.numel():
            raise ValueError(f"labels are 1 for yes, and -1 or 0 for no, but one is {wrong[0].item():g}")
    return torch.where(constant(target) > 0, 1.0, -1.0).to(like.dtype)
