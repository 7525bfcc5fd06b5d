"""Losses with a margin: nothing is to be learned from what is right by far enough."""

from typing import Final, Literal

import torch
from torch import Tensor

from fundl._common import kernels
from fundl._common.class_axis import classes_along
from fundl._common.half import narrowed
from fundl._common.numbers import finite
from fundl._common.suggestions import with_explanations
from fundl.losses._several import OF_ELEMENTS, Two, narrowed_all, parts_of, signs
from fundl.losses.classification import class_indices, positions, require_range, weighed_scores
from fundl.losses.reduction import ELEMENTS, Kind, Reduction, ValueAndGrad, computable, divisor, of_kind, ones, reduced


@of_kind(ELEMENTS)
@with_explanations
def hinge(prediction: Tensor, target: Tensor, *, margin: float = 1.0, reduction: Reduction = "mean") -> ValueAndGrad:
    """The hinge loss of yes or no, of support vector machines: of each element max(0, m - y x).

    y is 1 for yes, and -1 for no. Its gradient is, before the reduction, -y where the loss is above 0, else 0.

    Args:
        prediction: x, scores: above 0 for yes.
        target: labels, of any dtype: 1, or True, for yes; -1, or 0, or False, for no.
        margin: m, by how much a score is to be right.
        reduction: see `mse`.

    Shape:
        any, the same for both, to ()

    Raises:
        ValueError: the shapes differ, or there is nothing to average; on CPUs in eager mode also: a label is none of -1, 0, 1.
        TypeError: the prediction is not floating-point.

    Source:
        Cortes and Vapnik, Support-vector networks, 1995.

    >>> from fundl import hinge
    >>> hinge(torch.tensor([0.5, 3.0, 1.0]), torch.tensor([1, 1, 0]))
    (tensor(0.8333), tensor([-0.3333, -0.0000,  0.3333]))
    """
    finite.require("margin", margin)
    x = computable(prediction)
    y = signs(target, x)

    def formula(scale: Tensor) -> ValueAndGrad:
        short = margin - y * x
        return short.clamp(min=0) * scale, -y * (short > 0) * scale

    value, grad = reduced(formula, x, reduction)
    return value, narrowed(grad, prediction)


@of_kind(ELEMENTS)
@with_explanations
def squared_hinge(prediction: Tensor, target: Tensor, *, margin: float = 1.0, reduction: Reduction = "mean") -> ValueAndGrad:
    """The square of `hinge`: of each element max(0, m - y x)^2.

    Its gradient is, before the reduction, -2 y max(0, m - y x): smooth where the margin is reached.

    Args:
        prediction, target, margin, reduction: see `hinge`, which also has the shapes and the errors.

    >>> from fundl import squared_hinge
    >>> squared_hinge(torch.tensor([0.5, 3.0]), torch.tensor([1, 1]))
    (tensor(0.1250), tensor([-0.5000, -0.0000]))
    """
    finite.require("margin", margin)
    x = computable(prediction)
    y = signs(target, x)

    def formula(scale: Tensor) -> ValueAndGrad:
        short = (margin - y * x).clamp(min=0)
        part = short * scale
        return short * part, -2 * y * part

    value, grad = reduced(formula, x, reduction)
    return value, narrowed(grad, prediction)


@of_kind(ELEMENTS)
@with_explanations
def soft_margin(prediction: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> ValueAndGrad:
    """The logistic loss: of each element log(1 + exp(-y x)), with y 1 for yes and -1 for no.

    It is `binary_cross_entropy_with_logits` for labels. Its gradient is, before the reduction, -y sigmoid(-y x).

    Args:
        prediction, target, reduction: see `hinge`, which also has the shapes and the errors.

    >>> from fundl import soft_margin
    >>> soft_margin(torch.tensor([0.0, 0.0]), torch.tensor([1, -1]))
    (tensor(0.6931), tensor([-0.2500,  0.2500]))
    """
    x = computable(prediction)
    y = signs(target, x)

    def formula(scale: Tensor) -> ValueAndGrad:
        score = y * x
        return -kernels.log_sigmoid(score) * scale, -y * torch.sigmoid(-score) * scale

    value, grad = reduced(formula, x, reduction)
    return value, narrowed(grad, prediction)


@of_kind(ELEMENTS)
@with_explanations
def hinge_embedding(prediction: Tensor, target: Tensor, *, margin: float = 1.0, reduction: Reduction = "mean") -> ValueAndGrad:
    """Distances that are to be small for yes, and at least a margin for no: of each element x, or max(0, m - x).

    Its gradient is, before the reduction, 1 for yes; for no it is -1 below the margin, else 0.

    Args:
        prediction: x, distances.
        margin: m, how far apart is far enough.
        target, reduction: see `hinge`, which also has the shapes and the errors.

    >>> from fundl import hinge_embedding
    >>> hinge_embedding(torch.tensor([0.5, 0.25]), torch.tensor([1, -1]))
    (tensor(0.6250), tensor([ 0.5000, -0.5000]))
    """
    finite.require("margin", margin)
    x = computable(prediction)
    yes = signs(target, x) > 0

    def formula(scale: Tensor) -> ValueAndGrad:
        short = margin - x
        losses = torch.where(yes, x, short.clamp(min=0))
        return losses * scale, (yes.to(x.dtype) - (~yes & (short > 0)).to(x.dtype)) * scale

    value, grad = reduced(formula, x, reduction)
    return value, narrowed(grad, prediction)


@of_kind(OF_ELEMENTS)
@with_explanations
def margin_ranking(
    prediction: Two, target: Tensor, *, margin: float = 0.0, reduction: Reduction = "mean"
) -> tuple[Tensor, Two]:
    """Which of two scores is to be higher: of each element max(0, m - y (x1 - x2)).

    y is 1 where the first is to be higher, and -1 where the second is. Before the reduction, where the loss is above 0,
    grad_1 = -y and grad_2 = y; else both are 0.

    Args:
        prediction: the pair of scores (x1, x2), as a model ``shared(model)`` gives them for two inputs.
        target: labels: 1, or True, where the first is to be higher; -1, or 0, or False, where the second is.
        margin: m, by how much.
        reduction: see `mse`.

    Shape:
        any, the same for all three, to ()

    Raises:
        TypeError: the prediction is not a pair of tensors; or as for `hinge`.
        ValueError: as for `hinge`.

    Source:
        Herbrich, Graepel and Obermayer, Large margin rank boundaries for ordinal regression, 2000.

    >>> from fundl import margin_ranking
    >>> margin_ranking((torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])), torch.tensor([1, 1]))
    (tensor(0.5000), (tensor([-0.5000, -0.0000]), tensor([0.5000, 0.0000])))
    """
    finite.require("margin", margin)
    first, second = parts_of("margin_ranking", "(x1, x2)", prediction, 2)
    y = signs(target, first)

    def formula(scale: Tensor) -> tuple[Tensor, Two]:
        short = margin - y * (first - second)
        grad = y * (short > 0) * scale
        return short.clamp(min=0) * scale, (-grad, grad)

    value, grads = reduced(formula, first, reduction)
    return value, narrowed_all(grads, prediction)


# --- Of classes --------------------------------------------------------------------------------------------------------


def _weight(prediction: Tensor, _target: Tensor, *, axis: int = 1, reduction: Reduction = "mean", **_options: object) -> int:
    return divisor(prediction, reduction, prediction.shape[axis])


def _counts(prediction: Tensor, _target: Tensor, *, axis: int = 1, **_options: object) -> Tensor:
    return ones(prediction.select(axis, 0))


def _harmless(prediction: Tensor, target: Tensor, kept: Tensor, *, axis: int = 1, **_options: object) -> tuple[Tensor, Tensor]:
    along = kept.unsqueeze(axis % prediction.ndim)
    return torch.where(along, prediction, 1), torch.where(along if target.ndim == prediction.ndim else kept, target, 0)


CLASSES: Final = Kind(_weight, _counts, _harmless)
"""Losses of samples and positions, of which each counts for one."""


@of_kind(CLASSES)
@with_explanations
def multi_class_margin(
    prediction: Tensor,
    target: Tensor,
    *,
    power: Literal[1, 2] = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    axis: int = 1,
    reduction: Reduction = "mean",
) -> ValueAndGrad:
    """The hinge loss of C classes: the score of the true class y is to be higher than all others by a margin.

        r_i = max(0, m - x_y + x_i) for i != y,    of each sample w_y / C sum over i != y of r_i^p

    Its gradient is, before the reduction, g_i = w_y / C p r_i^(p-1) where r_i > 0, else 0, and minus the sum of these at y. The
    mean divides by the number of samples, also where there are weights.

    Args:
        prediction: x, scores.
        target: y, class indices, integers from 0 to C - 1.
        power: p, 1 or 2.
        margin: m.
        weight: w, of shape (C,), each of 0 or more; by default all 1.
        axis, reduction: see `cross_entropy`, which also has the errors.

    Shape:
        (B, C, ...) and (B, ...) to (); C where `axis` says

    Source:
        Crammer and Singer, On the algorithmic implementation of multiclass kernel-based vector machines, 2001; the sum of all
        classes is that of Weston and Watkins, Support vector machines for multi-class pattern recognition, 1999.

    >>> from fundl import multi_class_margin
    >>> multi_class_margin(torch.tensor([[1.0, 0.5], [3.0, 0.0]]), torch.tensor([0, 0]))
    (tensor(0.1250), tensor([[-0.2500,  0.2500],
            [-0.0000,  0.0000]]))
    """
    finite.require("margin", margin)
    if power not in {1, 2}:
        raise ValueError(f"power must be 1 or 2, not {power!r}")
    scores, labels, back = classes_along(axis, prediction, target)
    x, w = weighed_scores(scores, weight)
    y = class_indices(scores, labels)
    require_range(y, x.shape[1])

    def formula(scale: Tensor) -> ValueAndGrad:
        scale = _as_rows(scale, y) if w is None else _as_rows(scale, y) * w[y]
        true = torch.zeros_like(x, dtype=torch.bool).scatter(1, y.unsqueeze(1), True)
        short = (margin - x.gather(1, y.unsqueeze(1)) + x).clamp(min=0)
        short = torch.where(true, 0.0, short)
        part = scale.unsqueeze(1) / x.shape[1]
        others = (short > 0) * part if power == 1 else 2 * short * part
        losses = (short if power == 1 else short.square()) * part
        grad = torch.where(true, -others.sum(1, keepdim=True), others)
        return losses.sum(1).reshape(positions(prediction, axis)), grad if back is None else back(grad)

    value, grad = reduced(formula, x.new_empty(positions(prediction, axis)), reduction)
    return value, narrowed(grad, prediction)


@of_kind(CLASSES)
@with_explanations
def multi_label_margin(
    prediction: Tensor, target: Tensor, *, margin: float = 1.0, axis: int = 1, reduction: Reduction = "mean"
) -> ValueAndGrad:
    """The hinge loss of samples that have several of C labels: each label's score is to be higher than that of all others.

        r_ji = max(0, m - x_j + x_i),    of each sample 1 / C sum over labels j, and others i, of r_ji

    Its gradient is, before the reduction, for a label j minus the number of others i with r_ji > 0, over C; for another i the
    number of such labels j, over C. It takes memory for C^2 numbers of each sample.

    Args:
        prediction: x, scores.
        target: of the prediction's shape, and any dtype: 1, or True, for a label of the sample; 0, or -1, or False, for others.
        margin: m, by how much.
        axis, reduction: see `cross_entropy`.

    Shape:
        (B, C, ...), the same for both, to (); C where `axis` says

    Raises: as `hinge`.

    >>> from fundl import multi_label_margin
    >>> multi_label_margin(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1, 0, 1]]))
    (tensor(1.6667), tensor([[-0.3333,  0.6667, -0.3333]]))
    """
    finite.require("margin", margin)
    yes = signs(target, prediction) > 0
    scores, labels, back = classes_along(axis, prediction, yes)
    x, _ = weighed_scores(scores, None)

    def formula(scale: Tensor) -> ValueAndGrad:
        part = _as_rows(scale, x.select(1, 0)).unsqueeze(1) / x.shape[1]  # (B, 1, ...)
        counts = labels.unsqueeze(2) & ~labels.unsqueeze(1)  # (B, j, i, ...)
        short = margin - x.unsqueeze(2) + x.unsqueeze(1)
        short = torch.where(counts, short.clamp(min=0), 0.0)
        above = (short > 0).to(x.dtype)
        losses = (short.sum((1, 2)).unsqueeze(1) * part).squeeze(1)
        grad = (above.sum(1) - above.sum(2)) * part
        return losses.reshape(positions(prediction, axis)), grad if back is None else back(grad)

    value, grad = reduced(formula, x.new_empty(positions(prediction, axis)), reduction)
    return value, narrowed(grad, prediction)


def _as_rows(scale: Tensor, like: Tensor) -> Tensor:
    """One number for all, or one for each sample and position, of a shape."""
    return scale.reshape(like.shape) if scale.ndim else scale.expand(like.shape)
