"""What all losses share: the reduction, numbers that can be computed with, and what is said of those that cannot."""

import math
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from fundl._common import suggestions
from fundl._common.half import HALF
from fundl._common.modes import is_readable
from fundl._common.numbers import non_negative
from fundl._common.tape import constant

Reduction: TypeAlias = Literal["mean", "sum", "batch_mean"]
"""What becomes of the losses of a batch, see `fundl.losses`."""

ValueAndGrad: TypeAlias = tuple[Tensor, Tensor]

_FULL: Final = frozenset({torch.float32, torch.float64})


def divisor(samples: Tensor, reduction: Reduction, each: int = 1) -> int:
    """What the reduction divides a sum by, if `each` elements make one of what it counts."""
    if reduction == "mean":
        count = samples.numel() // each
    elif reduction == "sum":
        return 1
    elif reduction == "batch_mean":
        if not samples.ndim:
            raise ValueError('reduction="batch_mean" divides by the size of the first axis, but the prediction has no axis')
        count = samples.shape[0]
    else:
        raise ValueError(f'reduction must be "mean", "sum" or "batch_mean", not {reduction!r}')
    if not count:
        raise ValueError(
            f"there is nothing to average: the batch is empty (its shape is {tuple(samples.shape)}); leave it out, or take"
            ' reduction="sum"'
        )
    return count


def elements(prediction: Tensor, _target: Tensor, *, reduction: Reduction = "mean", **_options: object) -> int:
    """What a mean of elements divides by: see `weighed_by`."""
    return divisor(prediction, reduction)


def over_elements(
    formula: Callable[[Tensor, Tensor, Tensor], ValueAndGrad], prediction: Tensor, target: Tensor, reduction: Reduction
) -> ValueAndGrad:
    """A loss of a prediction and a target of one shape, from its formula of both and the reduction's factor."""
    try:
        alike = prediction.shape == target.shape and prediction.dtype is target.dtype
    except AttributeError as error:  # of a list, say
        raise unlike(prediction, target) from error
    if not alike:
        raise unlike(prediction, target)
    if prediction.dtype not in _FULL or prediction.requires_grad or target.requires_grad:
        value, grad = over_elements(formula, computable(prediction), computable(target), reduction)
        return value, grad.to(prediction.dtype)
    # A tensor of the right dtype: kernels are twice as quick with it as with a Python number.
    return formula(prediction, target, prediction.new_full((), 1 / divisor(prediction, reduction)))


def computable(x: Tensor) -> Tensor:
    """A tensor that records no tape, and is at least in single precision."""
    suggestions.require_tensor(x, "predictions and targets must each be")
    x = constant(x)
    if x.dtype in HALF:
        return x.to(torch.float32)
    if x.dtype not in _FULL:
        raise _not_floating(x)
    return x


def require_weights(weights: Tensor | float, name: str) -> None:
    """Raise unless the weights of a loss are finite numbers of 0 or more, as far as that can be seen for nothing."""
    if not isinstance(weights, Tensor):
        non_negative.require(name, weights)
    elif is_readable(weights) and weights.numel():
        low, high = (bound.item() for bound in torch.aminmax(weights.detach()))
        if not 0 <= low <= high < math.inf:
            raise ValueError(f"{name} must hold finite numbers of 0 or more, but goes from {low:g} to {high:g}")


def unlike(prediction: Tensor, target: Tensor) -> Exception:
    """What to tell about a prediction and a target that differ in shape or dtype."""
    suggestions.require_tensor(prediction, "the prediction must be")
    suggestions.require_tensor(target, "the target must be")
    if prediction.shape != target.shape:
        shape, target_shape = tuple(prediction.shape), tuple(target.shape)
        if prediction.numel() != target.numel():
            hint = "the loss does not broadcast"
        elif target.ndim and shape == (*target_shape, 1):
            hint = "give the target an axis with target.unsqueeze(-1)"
        else:
            hint = f"give the target its shape with target.reshape({shape})"
        return ValueError(f"the prediction's shape is {shape}, the target's {target_shape}: they must be equal; {hint}")
    if not prediction.is_floating_point():
        return _not_floating(prediction)
    return TypeError(
        f"the prediction is {prediction.dtype}, the target {target.dtype}: they must be equal; convert the target with"
        f" target.to({prediction.dtype})"
    )


def _not_floating(prediction: Tensor) -> TypeError:
    return TypeError(
        f"the prediction must be floating-point, not {prediction.dtype}: a loss takes the model's outputs, not the classes"
        " found from them"
    )
