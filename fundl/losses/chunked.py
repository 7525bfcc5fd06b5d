"""The cross-entropy of logits that are never there all at once."""

from typing import Final

import torch
from torch import Tensor

from fundl._common import products
from fundl._common.half import HALF, narrowed
from fundl._common.modes import is_untraced, no_grad
from fundl._common.suggestions import require_tensor, with_suggestions
from fundl._common.tape import refuse_tape
from fundl.layers.deferred import DeferredLogits
from fundl.losses.classification import counts_of_samples, cross_entropy, each_cross_entropy, samples
from fundl.losses.reduction import Each, Kind, Reduction, divisor, of_kind, one_by_one
from fundl.tree import describe
from fundl.weights import Weight

LOGITS_AT_ONCE: Final = 2**24
"""How many logits there are at once, if nothing else is said: 64 MiB of them, and as many of their gradient."""


def samples_of_deferred(
    prediction: DeferredLogits,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    **_options: object,
) -> Weight:
    """What a mean over samples divides by: see `samples`."""
    return samples(prediction.features, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def _counts_of_deferred(
    prediction: DeferredLogits,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    **_options: object,
) -> Tensor:
    return counts_of_samples(prediction.features, target, weight=weight, ignore_index=ignore_index)


def _without_deferred(
    prediction: DeferredLogits, target: Tensor, kept: Tensor, *, ignore_index: int = -100, **_options: object
) -> tuple[DeferredLogits, Tensor]:
    return prediction, torch.where(kept, target, ignore_index)


DEFERRED: Final = Kind(samples_of_deferred, _counts_of_deferred, _without_deferred)


@of_kind(DEFERRED)
@with_suggestions
def chunked_cross_entropy(
    prediction: DeferredLogits,
    target: Tensor,
    *,
    chunk: int | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> tuple[Tensor, DeferredLogits]:
    """The `cross_entropy` of class indices, from features and the linear map that makes logits of them, a few rows at a time.

        x = h W^T + b,    its value and g, its gradient with respect to x, as of `cross_entropy`,
        grad_h = g W,     grad_W = g^T h,    grad_b = sum over the rows of g

    Of N rows and V classes, no more than chunk V logits are there at once, and as many numbers of their gradient. All of them,
    of a batch of 8 texts of 1,024 tokens with GPT-2's 50,257, take 3.3 GB in float32. What is computed is the same; that of
    float16 and bfloat16 is added up in float32.

    Args:
        prediction: h, W and b, as a `deferred` model gives them.
        target: class indices, integers from 0 to V - 1.
        chunk: how many rows at once; by default as many as make 2^24 logits.
        weight: of each class, of shape (V,), each of 0 or more; by default all 1.
        label_smoothing, ignore_index, reduction: as `cross_entropy` takes them.

    Shape:
        h (..., F), W (V, F), b (V,), and target (...), to ()

    Raises:
        ValueError: the shapes do not fit, an option is out of its range, or there is nothing to average.
        TypeError: the prediction is not what a `deferred` model gives, or the target is not of integers.
        IndexError: a class index is out of range (checked on CPUs).

    >>> from fundl import DeferredLogits, chunked_cross_entropy
    >>> value, grad = chunked_cross_entropy(DeferredLogits(torch.ones(3, 2), torch.zeros(4, 2), None), torch.tensor([0, 1, 2]))
    >>> value, grad.features.shape, grad.weight.shape
    (tensor(1.3863), torch.Size([3, 2]), torch.Size([4, 2]))
    """
    _require(prediction, target, chunk)
    refuse_tape(prediction)
    each = one_by_one(reduction)
    count = 1 if each is not None else divisor(target, reduction)
    with no_grad():
        h, w, b = prediction.features.flatten(0, -2), prediction.weight, prediction.bias
        rows = max(1, LOGITS_AT_ONCE // w.shape[0]) if chunk is None else chunk
        losses, grad_h, grad_w, grad_b = list[Tensor](), list[Tensor](), _zeros_like(w), _zeros_like(w[:, 0])
        parts = zip(torch.split(h, rows), torch.split(target.flatten(), rows), _scales(each, target, rows), strict=True)
        for own, classes, scale in parts:
            part, grad = _of_rows(products.linear(own, w, b), classes, weight, label_smoothing, ignore_index, scale)
            losses.append(part)
            grad_h.append(products.matmul(grad, w))
            grad_w = _added(grad_w, grad, own)
            if b is not None:
                grad_b = grad_b + grad.sum(0, dtype=grad_b.dtype)
        total = samples(h, target, weight=weight, ignore_index=ignore_index) if reduction == "mean" else count
        divided_by = losses[0].new_full((), 1.0) * total
        factor = torch.where(divided_by == 0, 0.0, 1 / divided_by)
        features = torch.cat(grad_h) if grad_h else h
        grads = DeferredLogits(
            narrowed(features * factor.to(features.dtype), h).reshape(prediction.features.shape),
            narrowed(grad_w * factor, w),
            None if b is None else narrowed(grad_b * factor, b),
        )
    if each is not None:
        return torch.cat(losses).reshape(target.shape), grads
    return torch.stack(losses).sum() / divided_by, grads


def _scales(each: Each | None, target: Tensor, rows: int) -> list[Each] | list[None]:
    """What the losses of so many rows at a time are multiplied by, if they are to be handed out."""
    count = len(torch.split(target.flatten(), rows))
    if each is None:
        return [None] * count
    return [each] * count if each.scale is None else [Each(part) for part in torch.split(each.scale.flatten(), rows)]


def _of_rows(  # noqa: PLR0917  # all that the loss of some rows depends on
    logits: Tensor, classes: Tensor, weight: Tensor | None, label_smoothing: float, ignore_index: int, each: Each | None
) -> tuple[Tensor, Tensor]:
    """The sum of the losses of some rows, or each of them, and the gradient with respect to the logits."""
    if each is not None:
        losses, grad = each_cross_entropy(logits, classes, weight, label_smoothing, ignore_index, each)
        return losses, narrowed(grad, logits)
    return cross_entropy(
        logits, classes, weight=weight, label_smoothing=label_smoothing, ignore_index=ignore_index, reduction="sum"
    )


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in HALF else x.dtype


def _zeros_like(x: Tensor) -> Tensor:
    """Where gradients are added up: of 16 bits in float32."""
    return torch.zeros_like(x, dtype=_wide(x), memory_format=torch.contiguous_format)


def _added(grad_w: Tensor, grad: Tensor, h: Tensor) -> Tensor:
    """The gradient of the weight, with what some rows give; it is written over, since nobody else has seen it."""
    if grad.dtype is grad_w.dtype and is_untraced(grad_w):
        return grad_w.addmm_(grad.t(), h)
    return grad_w + torch.mm(grad.t(), h)


def _require(prediction: object, target: Tensor, chunk: int | None) -> None:
    """Raise unless a prediction is one of deferred logits, and the target and the options fit it."""
    if not isinstance(prediction, DeferredLogits):
        raise TypeError(
            "the prediction of chunked_cross_entropy is what a model gives that is deferred(...), DeferredLogits(features,"
            f" weight, bias), not {describe(prediction)}: for logits, take cross_entropy"
        )
    require_tensor(target, "the target must be")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"the target of chunked_cross_entropy is of class indices, integers, not {target.dtype}")
    features, weight = prediction.features.shape, prediction.weight.shape
    if len(features) < 2 or len(weight) != 2 or features[-1] != weight[1]:
        raise ValueError(
            f"features must be of shape (..., F), and the weight (V, F), not {tuple(features)} and {tuple(weight)}"
        )
    if target.shape != features[:-1]:
        raise ValueError(
            f"for features of shape {tuple(features)}, class indices must have the shape {tuple(features[:-1])}, not"
            f" {tuple(target.shape)}"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk, how many rows of logits are computed at once, must be at least 1, not {chunk}")
