"""What all losses share: the reduction, numbers that can be computed with, and what is said of those that cannot."""

import math
from collections.abc import Callable
from typing import Final, Literal, TypeAlias, TypeVar, cast, final

import attrs
import torch
from torch import Tensor

from fundl._common import suggestions
from fundl._common.half import HALF
from fundl._common.modes import is_readable, may_be_nan
from fundl._common.numbers import non_negative, share
from fundl._common.tape import constant
from fundl.weights import Weight, weighed_by

Reduction: TypeAlias = Literal["mean", "sum", "batch_mean"]
"""What becomes of the losses of a batch, see `fundl.losses`."""

ValueAndGrad: TypeAlias = tuple[Tensor, Tensor]
F = TypeVar("F")
G = TypeVar("G")
OfOptions: TypeAlias = Callable[..., G]  # type: ignore[explicit-any]  # of a loss' own prediction, target and options

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
        raise _no_reduction(reduction)
    if not count:
        raise ValueError(
            f"there is nothing to average: the batch is empty (its shape is {tuple(samples.shape)}); leave it out, or take"
            ' reduction="sum"'
        )
    return count


@final
@attrs.frozen(eq=False)
class Each:
    """In the place of a reduction: the losses are not added up, but handed out, each times a number of its own.

    Args:
        scale: the numbers, of the losses' shape; None for 1.
    """

    scale: Tensor | None = None

    def scale_for(self, like: Tensor) -> Tensor:
        """The numbers, in the dtype of what they are for."""
        return like.new_ones(()) if self.scale is None else self.scale.to(like.dtype)


def one_by_one(reduction: object) -> Each | None:
    """What stands in the place of a reduction, if the losses are to be handed out."""
    return reduction if type(reduction) is Each else None


def reduced(formula: Callable[[Tensor], tuple[Tensor, G]], like: Tensor, reduction: Reduction) -> tuple[Tensor, G]:
    """A loss from its formula: from what each of its losses is multiplied by, to these and the gradient of their sum.

    Args:
        formula: takes a tensor without axes, or one of the losses' shape.
        like: of the shape of the losses, and of the dtype to compute in.
        reduction: what becomes of them.
    """
    if (each := one_by_one(reduction)) is not None:
        return formula(each.scale_for(like))
    # A tensor of the right dtype: kernels are twice as quick with it as with a Python number.
    losses, grad = formula(like.new_full((), 1 / divisor(like, reduction)))
    return losses.sum(), grad


def weighted_mean(
    formula: Callable[[Tensor], tuple[Tensor, G]], counts: Tensor, like: Tensor, reduction: Reduction
) -> tuple[Tensor, G]:
    """`reduced`, where the mean divides by the sum of what each loss counts; of nothing it is nan, and its gradient 0."""
    if (each := one_by_one(reduction)) is not None:
        return formula(each.scale_for(like))
    count = divisor(counts, reduction)
    if reduction != "mean":
        losses, grad = formula(like.new_full((), 1 / count))
        return losses.sum(), grad
    total = counts.sum().to(like.dtype)
    losses, grad = formula(torch.where(total == 0, 0.0, 1 / total))
    return torch.where(total == 0, math.nan, losses.sum()), grad


# --- Kinds of losses ---------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Kind:
    """What the losses are that a loss adds up, which takes `Each` in the place of its reduction.

    Args:
        rule: what the loss divides by, as of `weighed_by`.
        counts: what each of its losses adds to what a mean divides by, a tensor of the shape of the losses.
        without: the prediction and the target, with something harmless in the place of what is not kept.
    """

    rule: OfOptions[Weight]
    counts: OfOptions[Tensor]
    without: OfOptions[tuple[object, object]]


_KIND: Final = "__fundl_kind__"


def of_kind(kind: Kind) -> Callable[[F], F]:
    """Say of a loss what it adds up, and so what it divides by: a decorator, as `weighed_by` is."""

    def mark(function: F) -> F:
        setattr(function, _KIND, kind)
        return weighed_by(kind.rule)(function)

    return mark


def kind_of(loss: object) -> Kind | None:
    """What a loss adds up, if it can hand it out."""
    return cast("Kind | None", getattr(loss, _KIND, None))  # only `of_kind` writes it


def _no_reduction(reduction: object) -> ValueError:
    hint = "; the losses one by one are what unreduced(loss)(prediction, target) gives" if reduction == "none" else ""
    return ValueError(f'reduction must be "mean", "sum" or "batch_mean", not {reduction!r}{hint}')


def elements(prediction: Tensor, _target: Tensor, *, reduction: Reduction = "mean", **_options: object) -> int:
    """What a mean of elements divides by: see `weighed_by`."""
    return divisor(prediction, reduction)


def ones(like: Tensor) -> Tensor:
    """A count of 1 for each loss."""
    return like.new_ones((), dtype=torch.int64).expand(like.shape)


def _counts_of_elements(prediction: Tensor, _target: object, **_options: object) -> Tensor:
    return ones(prediction)


def _without_elements(prediction: Tensor, target: Tensor, kept: Tensor, **_options: object) -> tuple[Tensor, Tensor]:
    """1 is a probability, a label and a count, and costs something finite everywhere."""
    return torch.where(kept, prediction, 1), torch.where(kept, target, 1)


ELEMENTS: Final = Kind(elements, _counts_of_elements, _without_elements)
"""Losses of the elements of a prediction, each with an element of the target."""


def over_elements(
    formula: Callable[[Tensor, Tensor, Tensor], ValueAndGrad],
    prediction: Tensor,
    target: Tensor,
    reduction: Reduction,
    of_any: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> ValueAndGrad:
    """A loss of a prediction and a target of one shape, from its formula of both and of what each loss is multiplied by.

    `of_any` gives the same losses, if those of the formula may be NaN where they should be numbers.
    """
    try:
        alike = prediction.shape == target.shape and prediction.dtype is target.dtype
    except AttributeError as error:  # of a list, say
        raise unlike(prediction, target) from error
    if not alike:
        raise unlike(prediction, target)
    if prediction.dtype not in _FULL or prediction.requires_grad or target.requires_grad:
        value, grad = over_elements(formula, computable(prediction), computable(target), reduction, of_any)
        return value, grad.to(prediction.dtype)
    if (each := one_by_one(reduction)) is not None:
        scale = each.scale_for(prediction)
        losses, grad = formula(prediction, target, scale)
        return losses if of_any is None else of_any(prediction, target, scale), grad
    # A tensor of the right dtype: kernels are twice as quick with it as with a Python number.
    scale = prediction.new_full((), 1 / divisor(prediction, reduction))
    losses, grad = formula(prediction, target, scale)
    value = losses.sum()
    if of_any is not None and may_be_nan(value):  # a choice, so that what is traced gives the bits of what is not
        value = torch.where(value.isnan(), of_any(prediction, target, scale).sum(), value)
    return value, grad


def computable(x: Tensor) -> Tensor:
    """A tensor that records no tape, and is at least in single precision."""
    suggestions.require_tensor(x, "predictions and targets must each be")
    x = constant(x)
    if x.dtype in HALF:
        return x.to(torch.float32)
    if x.dtype not in _FULL:
        raise _not_floating(x)
    return x


def require_weights(weights: Tensor | float, name: str, highest: float = math.inf) -> None:
    """Raise unless the weights of a loss are finite numbers from 0 to the highest, as far as that can be seen for nothing."""
    if not isinstance(weights, Tensor):
        (non_negative if highest == math.inf else share).require(name, weights)
    elif is_readable(weights) and weights.numel():
        low, high = (bound.item() for bound in torch.aminmax(weights.detach()))
        if not 0 <= low <= high <= highest or high == math.inf:
            words = "finite numbers of 0 or more" if highest == math.inf else f"numbers from 0 to {highest:g}"
            raise ValueError(f"{name} must hold {words}, but goes from {low:g} to {high:g}")


def of_sample(name: str, given: Tensor | float, prediction: Tensor, highest: float = math.inf) -> Tensor | float:
    """An option of 0 or more, a number, or a tensor that broadcasts to one sample's shape, ready to compute with."""
    require_weights(given, name, highest)
    if not isinstance(given, Tensor):
        return given
    sample = prediction.shape[1:]
    if given.ndim > len(sample) or any(
        own not in (1, size) for own, size in zip(reversed(given.shape), reversed(sample), strict=False)
    ):
        raise ValueError(
            f"{name} is of shape {tuple(given.shape)}, but must broadcast to one sample's shape {tuple(sample)}: give one"
            " number, or one for each output"
        )
    return constant(given).to(torch.promote_types(prediction.dtype, torch.float32))


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
