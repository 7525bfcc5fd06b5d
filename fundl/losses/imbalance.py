"""Losses for what is rare: the focal loss, which turns to what is hard, and the overlap of regions."""

from typing import Final

import torch
from torch import Tensor

from fundl._common import kernels
from fundl._common.class_axis import classes_along
from fundl._common.half import narrowed
from fundl._common.numbers import non_negative, positive, share
from fundl._common.suggestions import with_explanations
from fundl.losses.classification import (
    SAMPLES,
    class_indices,
    counts_of_samples,
    positions,
    require_range,
    weighed_scores,
)
from fundl.losses.probability import require_probabilities
from fundl.losses.reduction import (
    ELEMENTS,
    Kind,
    Reduction,
    ValueAndGrad,
    computable,
    divisor,
    of_kind,
    ones,
    over_elements,
    reduced,
    unlike,
    weighted_mean,
)


@of_kind(SAMPLES)
@with_explanations
def focal(
    prediction: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    axis: int = 1,
    reduction: Reduction = "mean",
) -> ValueAndGrad:
    """The focal loss of classes, from logits: the cross-entropy, but that what is easy counts for little.

        q = log_softmax(x),    p = exp(q) of the true class y,    of each sample -w_y (1 - p)^g q_y

    Its derivative with respect to q_y is, before the reduction, e = w_y (1 - p)^g (g p q_y / (1 - p) - 1), and its gradient
    with respect to x is e (one_hot(y) - softmax(x)). With g = 0 it is `cross_entropy`, as which it is weighted and averaged.

    Args:
        prediction: x, logits.
        target: y, class indices, integers from 0 to C - 1.
        gamma: g, of 0 or more: how much less the easy ones count.
        weight, ignore_index, axis, reduction: see `cross_entropy`, which also has the errors. What is called alpha elsewhere is
            the weight here.

    Shape:
        (B, C, ...) and (B, ...) to (); C where `axis` says

    Source:
        Lin, Goyal, Girshick, He and Dollar, Focal loss for dense object detection, 2017.

    >>> from fundl import focal
    >>> focal(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    (tensor(0.1733), tensor([[-0.2983,  0.2983]]))
    """
    non_negative.require("gamma", gamma)
    scores, labels, back = classes_along(axis, prediction, target)
    x, w = weighed_scores(scores, weight)
    y = class_indices(scores, labels)
    require_range(y, x.shape[1], ignore_index)
    counts, place = y != ignore_index, positions(prediction, axis)
    classes = torch.where(counts, y, 0).unsqueeze(1)

    def formula(scale: Tensor) -> ValueAndGrad:
        weights = counts.to(x.dtype) if w is None else torch.where(counts, w[classes.squeeze(1)], 0.0)
        scale = weights * (scale.reshape(y.shape) if scale.ndim else scale)
        log_p = torch.where(counts.unsqueeze(1), torch.log_softmax(x, 1), 0.0)
        q = log_p.gather(1, classes).squeeze(1)
        rest = -torch.expm1(q)  # 1 - p
        factor = rest.pow(gamma)
        losses = torch.where(scale == 0, 0.0, -scale * factor * q)
        ratio = torch.where(rest == 0, -1.0, torch.where(q == -torch.inf, 0.0, q.exp() * q) / torch.where(rest == 0, 1.0, rest))
        slope = scale * factor * (gamma * ratio - 1)
        grad = torch.zeros_like(x).scatter(1, classes, slope.unsqueeze(1))
        grad_x = kernels.log_softmax_backward(grad, log_p, 1, x.dtype)
        return losses.reshape(place), grad_x if back is None else back(grad_x)

    own = counts_of_samples(prediction, target, weight=weight, ignore_index=ignore_index, axis=axis)
    value, grad = weighted_mean(formula, own, x, reduction)
    return value, narrowed(grad, prediction)


@of_kind(ELEMENTS)
@with_explanations
def binary_focal(
    prediction: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    reduction: Reduction = "mean",
) -> ValueAndGrad:
    """The focal loss of yes or no, from logits: the cross-entropy, but that what is easy counts for little.

        f(z) = -sigmoid(-z)^g log(sigmoid(z)),    of each element a t f(x) + (1 - a) (1 - t) f(-x)
        f'(z) = sigmoid(-z)^g (g sigmoid(z) log(sigmoid(z)) - sigmoid(-z))

    Its gradient is, before the reduction, a t f'(x) - (1 - a) (1 - t) f'(-x).

    Args:
        prediction: x, logits.
        target: t, of the prediction's dtype: 1 for yes, 0 for no, or a probability between.
        gamma: g, of 0 or more: how much less the easy ones count.
        alpha: a, from 0 to 1: how much yes counts against no. None, the default, counts both fully; torchvision has 0.25.
        reduction: see `mse`, which also has the shapes.

    Raises:
        ValueError: an option is out of its range, or a target not from 0 to 1 (on CPUs in eager mode); or as for `mse`.

    Source:
        Lin, Goyal, Girshick, He and Dollar, Focal loss for dense object detection, 2017.

    >>> from fundl import binary_focal
    >>> binary_focal(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]))
    (tensor(0.1733), tensor([-0.1491,  0.1491]))
    """
    non_negative.require("gamma", gamma)
    if alpha is not None:
        share.require("alpha", alpha)

    def formula(x: Tensor, t: Tensor, scale: Tensor) -> ValueAndGrad:
        require_probabilities(t, "target", "; of labels -1 and 1, take (target + 1) / 2")
        yes, no = (t, 1 - t) if alpha is None else (alpha * t, (1 - alpha) * (1 - t))
        cost_yes, slope_yes = _focal_of(x, gamma)
        cost_no, slope_no = _focal_of(-x, gamma)
        losses = torch.where(yes == 0, 0.0, yes * cost_yes) + torch.where(no == 0, 0.0, no * cost_no)
        return losses * scale, (yes * slope_yes - no * slope_no) * scale

    return over_elements(formula, prediction, target, reduction)


def _focal_of(z: Tensor, gamma: float) -> ValueAndGrad:
    """f(z) and f'(z)."""
    log_p, p, rest = kernels.log_sigmoid(z), torch.sigmoid(z), torch.sigmoid(-z)
    factor = rest.pow(gamma)
    return -factor * log_p, factor * (gamma * torch.where(z == -torch.inf, 0.0, p * log_p) - rest)


# --- Overlap -----------------------------------------------------------------------------------------------------------


def _regions(prediction: Tensor, axis: int) -> tuple[int, ...]:
    """The shape of what has an overlap: (B, C)."""
    return (prediction.shape[0], prediction.shape[axis])


def _weight(prediction: Tensor, _target: Tensor, *, axis: int = 1, reduction: Reduction = "mean", **_options: object) -> int:
    return divisor(prediction.new_empty(_regions(prediction, axis)), reduction)


def _counts(prediction: Tensor, _target: Tensor, *, axis: int = 1, **_options: object) -> Tensor:
    return ones(prediction.new_empty(_regions(prediction, axis)))


def _harmless(prediction: Tensor, target: Tensor, kept: Tensor, *, axis: int = 1, **_options: object) -> tuple[Tensor, Tensor]:
    along = kept.reshape(*kept.shape, *[1] * (prediction.ndim - 2)).movedim(1, axis)
    return torch.where(along, prediction, 1), torch.where(along, target, 1)


REGIONS: Final = Kind(_weight, _counts, _harmless)
"""Losses of the regions of classes, one for each sample and class."""


@of_kind(REGIONS)
@with_explanations
def dice(
    prediction: Tensor, target: Tensor, *, smooth: float = 1.0, axis: int = 1, reduction: Reduction = "mean"
) -> ValueAndGrad:
    """How little a predicted region overlaps with the true one: 1 minus Dice's coefficient, of each sample and class.

        i = sum of p t,    s = sum of p + t,    over all positions;    of each region 1 - (2 i + e) / (s + e)

    Its gradient is, before the reduction, ((2 i + e) / (s + e) - 2 t) / (s + e).

    Args:
        prediction: p, probabilities: of a model that ends in `Sigmoid`, or in `Softmax` over the classes.
        target: t, of the prediction's dtype and shape: 1 inside of the region, 0 outside; of class indices it is made by
            ``torch.nn.functional.one_hot(classes).movedim(-1, 1)``.
        smooth: e, above 0: with it, two empty regions are alike.
        axis: that of the classes.
        reduction: see `mse`, whose elements are regions here.

    Shape:
        (B, C, ...) with at least one axis of positions, the same for both, to (); C where `axis` says

    Raises:
        ValueError: the shapes differ, or there are no positions, or nothing to average; on CPUs in eager mode also: a number is
            not from 0 to 1.
        TypeError: as for `mse`.

    Source:
        Milletari, Navab and Ahmadi, V-Net: fully convolutional neural networks for volumetric medical image segmentation, 2016.

    >>> from fundl import dice
    >>> dice(torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[1.0, 0.0]]]))
    (tensor(0.3333), tensor([[[-0.4444,  0.2222]]]))
    """
    positive.require("smooth", smooth)
    if prediction.shape != target.shape or prediction.dtype != target.dtype:
        raise unlike(prediction, target)
    if prediction.ndim < 3:
        raise ValueError(
            f"dice takes regions of classes, (batch, classes, positions ...), not {tuple(prediction.shape)}: of one class, take"
            " prediction.unsqueeze(1) and target.unsqueeze(1)"
        )
    if not -prediction.ndim < axis < prediction.ndim or axis == 0:
        raise ValueError(f"axis={axis} is to be that of the classes, any but the first of {prediction.ndim}")
    p, t = computable(prediction), computable(target)
    require_probabilities(p, "prediction", ": let the model end in Sigmoid(), or in Softmax()")
    require_probabilities(t, "target", "")
    over = [place for place in range(1, p.ndim) if place != axis % p.ndim]

    def formula(scale: Tensor) -> ValueAndGrad:
        common, size = (p * t).sum(over), (p + t).sum(over) + smooth
        coefficient = (2 * common + smooth) / size
        of_region = scale / size
        along = [of_region.reshape(shape), coefficient.reshape(shape)]
        return (1 - coefficient) * scale, along[0] * (along[1] - 2 * t)

    shape = [size if place in (0, axis % p.ndim) else 1 for place, size in enumerate(p.shape)]
    value, grad = reduced(formula, p.new_empty(_regions(p, axis)), reduction)
    return value, narrowed(grad, prediction)
