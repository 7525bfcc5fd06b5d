"""Losses of classes: how likely a prediction has the class that is true."""

from typing import Final, Literal

import torch
from torch import Tensor

from fundl._common import cross_entropy_on_gpu as on_gpu
from fundl._common import kernels
from fundl._common.class_axis import axis_hint, classes_along
from fundl._common.half import narrowed
from fundl._common.modes import is_in_forward_mode, is_readable, may_be_nan
from fundl._common.suggestions import require_tensor, with_explanations
from fundl._common.tape import constant
from fundl.losses.reduction import (
    Each,
    Kind,
    Reduction,
    ValueAndGrad,
    computable,
    divisor,
    of_kind,
    one_by_one,
    require_weights,
    unlike,
)
from fundl.weights import Weight


def samples(
    prediction: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = 1,
    **_options: object,
) -> Weight:
    """What a mean over samples divides by: how many count, or the sum of their weights."""
    if target.is_floating_point():
        return divisor(prediction, reduction, prediction.shape[axis])
    if reduction != "mean":
        return divisor(target, reduction)
    counts = target != ignore_index
    if weight is None:
        return counts.sum()
    weights = constant(weight).to(torch.promote_types(weight.dtype, torch.float32))
    return (weights[torch.where(counts, target, 0)] * counts).sum()


def counts_of_samples(
    prediction: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    axis: int = 1,
    **_options: object,
) -> Tensor:
    """What each sample adds to what a mean divides by: its weight, or 1; 0 where it is left out."""
    if target.is_floating_point():
        return torch.ones_like(prediction.select(axis, 0), dtype=torch.int64)
    counts = target != ignore_index
    if weight is None:
        return counts
    weights = constant(weight).to(torch.promote_types(weight.dtype, torch.float32))
    classes = torch.where(counts, target, 0).to(torch.int64).clamp(0, len(weights) - 1)  # others are for the loss to refuse
    return weights[classes] * counts


def without_samples(
    prediction: Tensor, target: Tensor, kept: Tensor, *, ignore_index: int = -100, axis: int = 1, **_options: object
) -> tuple[Tensor, Tensor]:
    """A prediction and its target, of which the samples that are not kept may be anything, and are left out."""
    if target.is_floating_point():
        along = kept.unsqueeze(axis % prediction.ndim)
        return torch.where(along, prediction, 0), torch.where(along, target, 0)
    return prediction, torch.where(kept, target, ignore_index)


SAMPLES: Final = Kind(samples, counts_of_samples, without_samples)
"""Losses of samples, and of positions in them, each of a class."""


@of_kind(SAMPLES)
@with_explanations
def cross_entropy(
    prediction: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    axis: int = 1,
    reduction: Reduction = "mean",
) -> ValueAndGrad:
    """The cross-entropy of classes, from logits.

        q = log_softmax(x) over the classes,    of each sample -sum over c of a_c q_c

    with the target's coefficients, for a class index y, or for probabilities t:

        a_c = w_c ((1 - s) [c = y] + s / C),    a_c = w_c ((1 - s) t_c + s / C)

    where s is the label smoothing and w the weight. The gradient is, before the reduction, softmax(x)_c (sum of a) - a_c.
    The mean over class indices is weighted: the sum is divided by the sum of the samples' w_y. That over probabilities is
    divided by the number of samples. A class of probability or weight 0 adds nothing, even if its logit is -inf, and neither
    does a sample that is left out, even if its logits are not numbers. A logit inf makes the loss nan, as it makes softmax.

    Args:
        prediction: x, logits.
        target: class indices, integers from 0 to C - 1; or probabilities of the prediction's dtype.
        weight: w, of shape (C,), each of 0 or more; by default all 1.
        label_smoothing: s, from 0 to 1.
        ignore_index: a class index that marks samples to leave out. If all are left out, or of weight 0, the mean is nan, and
            its gradient 0.
        axis: that of the classes, in the prediction and in a target of probabilities: -1 for sequences (B, T, C).
        reduction: "mean", "sum" or "batch_mean".

    Shape:
        (B, C, ...) and (B, ...) for class indices, or (B, C, ...) for probabilities, to (); C where `axis` says

    Raises:
        ValueError: the shapes do not fit, an option is out of its range, or there is nothing to average.
        TypeError: the prediction is not floating-point, or the target is neither integers nor of the prediction's dtype.
        IndexError: a class index is out of range (checked on CPUs; a GPU stops with an assertion of its own).

    Source:
        Label smoothing: Szegedy et al., Rethinking the inception architecture for computer vision, 2016.

    >>> from fundl import cross_entropy
    >>> cross_entropy(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    (tensor(0.6931), tensor([[-0.2500,  0.2500],
            [ 0.2500, -0.2500]]))
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing, a probability, must be from 0 to 1, not {label_smoothing}")
    scores, labels, back = classes_along(axis, prediction, target)
    if (each := one_by_one(reduction)) is not None:
        losses, grad_x = each_cross_entropy(scores, labels, weight, label_smoothing, ignore_index, each)
        grad_x = grad_x if back is None else back(grad_x)
        return losses.reshape(positions(prediction, axis)), narrowed(grad_x, prediction)
    if weight is None and not target.is_floating_point() and (kernel := on_gpu.kernel_for(scores, labels)) is not None:
        indices, count = class_indices(scores, labels), None if reduction == "mean" else divisor(target, reduction)
        value, grad = on_gpu.cross_entropy(
            kernel, scores, indices, ignore_index=ignore_index, label_smoothing=label_smoothing, count=count
        )
        return value, grad if back is None else back(grad)
    x, w = weighed_scores(scores, weight)
    log_probabilities = torch.log_softmax(x, 1)
    if target.is_floating_point():
        if ignore_index != -100:
            raise ValueError(f"ignore_index={ignore_index} is for targets of class indices; these are probabilities")
        t = _probabilities(scores, labels)
        value, grad = _soft_classes(log_probabilities, t, w, label_smoothing, divisor(target, reduction, x.shape[1]))
    else:
        indices, count = class_indices(scores, labels), divisor(target, reduction)
        value, grad, total = _hard_classes(log_probabilities, indices, w, ignore_index, reduction, count)
        if label_smoothing:
            even = _even_part(log_probabilities, indices, w, ignore_index)
            share = label_smoothing / x.shape[1] / (total if reduction == "mean" else count)
            grad = grad * (1 - label_smoothing) - even * share
            value = _inner(grad, log_probabilities)
            if reduction == "mean" and may_be_nan(value):
                grad = torch.where(total == 0, 0.0, grad)
        if not _all_count(total, indices, w, ignore_index):
            log_probabilities = _without_left_out(log_probabilities, indices, ignore_index)
    grad_x = kernels.log_softmax_backward(grad, log_probabilities, 1, x.dtype)
    return value, narrowed(grad_x if back is None else back(grad_x), prediction)


@of_kind(SAMPLES)
@with_explanations
def nll(
    prediction: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    axis: int = 1,
    reduction: Reduction = "mean",
) -> ValueAndGrad:
    """The negative log-likelihood of classes, from log-probabilities: of each sample -w_y x_y, with y its class.

    Its gradient is, before the reduction, -w_y at the class y, and 0 elsewhere. The mean is weighted: the sum is divided by
    the sum of the samples' w_y. A class of weight 0 adds nothing, even if its log-probability is -inf. From logits,
    `cross_entropy` is the loss to take.

    Args:
        prediction: x, log-probabilities.
        target: y, class indices, integers from 0 to C - 1.
        weight, ignore_index, axis, reduction: see `cross_entropy`, which also has the errors.

    Shape:
        (B, C, ...) and (B, ...) to (); C where `axis` says

    >>> from fundl import nll
    >>> nll(torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log(), torch.tensor([1, 0]))
    (tensor(0.4904), tensor([[ 0.0000, -0.5000],
            [-0.5000,  0.0000]]))
    """
    scores, labels, back = classes_along(axis, prediction, target)
    x, w = weighed_scores(scores, weight)
    indices = class_indices(scores, labels)
    if (each := one_by_one(reduction)) is not None:
        losses, grad = each_inner(_coefficients(x, indices, w, 0.0, ignore_index), x, each)
        value = losses.reshape(positions(prediction, axis))
    else:
        value, grad, _ = _hard_classes(x, indices, w, ignore_index, reduction, divisor(target, reduction))
    return value, narrowed(grad if back is None else back(grad), prediction)


def each_cross_entropy(  # noqa: PLR0917  # all that such a loss depends on
    scores: Tensor, labels: Tensor, weight: Tensor | None, label_smoothing: float, ignore_index: int, each: Each
) -> ValueAndGrad:
    """The losses of `cross_entropy` one by one, each times its scale, and the gradient of their sum."""
    x, w = weighed_scores(scores, weight)
    log_probabilities = torch.log_softmax(x, 1)
    if labels.is_floating_point():
        coefficients = _soft_coefficients(_probabilities(scores, labels), w, label_smoothing)
    else:
        indices = class_indices(scores, labels)
        coefficients = _coefficients(x, indices, w, label_smoothing, ignore_index)
        # The gradient of what is left out would be 0 times nan.
        log_probabilities = torch.where((indices != ignore_index).unsqueeze(1), log_probabilities, 0.0)
    losses, grad = each_inner(coefficients, log_probabilities, each)
    return losses, kernels.log_softmax_backward(grad, log_probabilities, 1, x.dtype)


def _coefficients(x: Tensor, indices: Tensor, weight: Tensor | None, label_smoothing: float, ignore_index: int) -> Tensor:
    """a_c of class indices, (B, C, ...)."""
    counts = indices != ignore_index
    require_range(indices, x.shape[1], ignore_index)
    classes = torch.where(counts, indices, 0)
    weights = counts.to(x.dtype) if weight is None else torch.where(counts, weight[classes], 0.0)
    own = torch.zeros_like(x).scatter(1, classes.unsqueeze(1), weights.unsqueeze(1))
    if not label_smoothing:
        return own
    return own * (1 - label_smoothing) + _even_part(x, indices, weight, ignore_index) * (label_smoothing / x.shape[1])


def each_inner(coefficients: Tensor, log_probabilities: Tensor, each: Each) -> ValueAndGrad:
    """The losses -sum over c of a_c q_c, times their scales, and the gradient of their sum with respect to q."""
    scale = each.scale_for(log_probabilities)
    if scale.ndim:
        scale = scale.reshape(log_probabilities.select(1, 0).shape).unsqueeze(1)
    grad = coefficients.neg() * scale
    return torch.where(grad == 0, 0.0, grad * log_probabilities).sum(1), grad


def positions(prediction: Tensor, axis: int) -> tuple[int, ...]:
    """The shape of what has a class: that of the prediction without the axis of the classes."""
    axis %= prediction.ndim
    return (*prediction.shape[:axis], *prediction.shape[axis + 1 :])


def _hard_classes(  # noqa: PLR0917  # all that such a loss depends on
    log_probabilities: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: Reduction, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of class indices, its gradient with respect to the log-probabilities, and the sum of the samples' weights."""
    if weight is not None and is_in_forward_mode():  # where torch takes the weights to be constant
        return _by_formula(log_probabilities, target, weight, ignore_index, None if reduction == "mean" else count)
    shape = log_probabilities.shape
    if planar := len(shape) > 2:  # The kernels know samples, and planes: all further axes in one make a plane.
        log_probabilities = log_probabilities.flatten(2).unsqueeze(2).contiguous()  # (B, C, 1, M)
        target = target.flatten(1).unsqueeze(1)  # (B, 1, M)
    forward = kernels.nll_loss2d_forward if planar else kernels.nll_loss_forward
    backward = kernels.nll_loss2d_backward if planar else kernels.nll_loss_backward
    kind: Literal[1, 2] = 1 if reduction == "mean" else 2
    try:
        value, total = forward(log_probabilities, target, weight, kind, ignore_index)
        if weight is not None and may_be_nan(value):
            target = _without_weightless(target, weight, ignore_index)
            value, total = forward(log_probabilities, target, weight, kind, ignore_index)
    except IndexError as error:
        raise out_of_range(target, shape[1], ignore_index) from error
    scale = log_probabilities.new_full((), 1.0 if reduction == "mean" else 1 / count)
    grad = backward(scale, log_probabilities, target, weight, kind, ignore_index, total)
    return value * scale if reduction == "batch_mean" else value, grad.reshape(shape) if planar else grad, total


def _by_formula(
    log_probabilities: Tensor, target: Tensor, weight: Tensor, ignore_index: int, count: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As the kernels, divided by the count, or by the sum of the weights."""
    counts = target != ignore_index
    classes = torch.where(counts, target, 0)
    weights = torch.where(counts, weight[classes], 0.0)
    total = weights.sum()
    coefficients = (weights / (total if count is None else count)).neg()
    grad = torch.zeros_like(log_probabilities).scatter(1, classes.unsqueeze(1), coefficients.unsqueeze(1))
    return _inner(grad, log_probabilities), grad, total


def _without_weightless(target: Tensor, weight: Tensor, ignore_index: int) -> Tensor:
    """The indices, those of classes of weight 0 marked to be left out: the kernels would take 0 times their logarithm -inf."""
    classes = target.clamp(0, len(weight) - 1)  # what is out of range is for the kernels to find
    return target.masked_fill((classes == target) & (weight == 0)[classes], ignore_index)


def _all_count(total: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> bool:
    """Whether no sample is left out, if that is quickly seen."""
    if not is_readable(total):
        return False
    count = target.numel()
    if weight is None:
        return total.item() == count
    if not count:
        return True
    low, high = torch.aminmax(target)
    return not low.item() <= ignore_index <= high.item()


def _without_left_out(log_probabilities: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """The log-probabilities, without those of samples that are left out: their gradient would be 0 times nan."""
    left_out = target == ignore_index
    if is_readable(left_out) and not (left_out & log_probabilities.select(1, 0).isnan()).any():  # a row has none, or only nan
        return log_probabilities
    return log_probabilities.masked_fill(left_out.unsqueeze(1), 0.0)


def _even_part(log_probabilities: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """What smoothing adds to the targets' coefficients, before the factor s/C: w_c in every sample that counts, else 0."""
    kept = (target != ignore_index).unsqueeze(1).to(log_probabilities.dtype)  # (B, 1, ...)
    return kept if weight is None else kept * _along_classes(weight, log_probabilities)  # (B, C, ...)


def _soft_classes(
    log_probabilities: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float, count: int
) -> ValueAndGrad:
    """The loss of probabilities, and its gradient with respect to the log-probabilities."""
    grad = _soft_coefficients(target, weight, label_smoothing) * (-1 / count)
    return _inner(grad, log_probabilities), grad


def _soft_coefficients(target: Tensor, weight: Tensor | None, label_smoothing: float) -> Tensor:
    """a_c of probabilities, (B, C, ...)."""
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / target.shape[1]
    return target if weight is None else target * _along_classes(weight, target)


def _inner(grad: Tensor, log_probabilities: Tensor) -> Tensor:
    """The loss from its gradient, in which it is linear; a coefficient 0 hides a log-probability -inf."""
    return torch.where(grad == 0, 0.0, grad * log_probabilities).sum()


def _along_classes(weight: Tensor, scores: Tensor) -> Tensor:
    """The classes' weights, of shape (C, 1, ...), which lines up with scores (B, C, ...)."""
    return weight.reshape(-1, *[1] * (scores.ndim - 2))


def weighed_scores(prediction: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The prediction and the weights, ready to compute with."""
    if prediction.ndim < 2 or not prediction.shape[1]:
        raise ValueError(
            f"the prediction's shape must be (batch, classes, ...), not {tuple(prediction.shape)}: for one sample, take"
            " prediction.unsqueeze(0)"
        )
    x = computable(prediction)
    if weight is None:
        return x, None
    require_tensor(weight, "weight, of the classes, must be")
    if weight.shape != (prediction.shape[1],):
        raise ValueError(f"weight must be of shape ({prediction.shape[1]},), one for each class, not {tuple(weight.shape)}")
    require_weights(weight, "weight")
    return x, constant(weight).to(x.dtype)


def _probabilities(prediction: Tensor, target: Tensor) -> Tensor:
    """The target as probabilities, of the prediction's shape, ready to compute with."""
    if target.shape != prediction.shape:
        raise ValueError(
            f"a {target.dtype} target holds the classes' probabilities, and must have the prediction's shape"
            f" {tuple(prediction.shape)}, not {tuple(target.shape)}: if it holds class indices, take target.to(torch.int64)"
        )
    if target.dtype != prediction.dtype:
        raise unlike(prediction, target)
    return computable(target)


def class_indices(prediction: Tensor, target: Tensor) -> Tensor:
    """The target as class indices, which the kernels want as int64."""
    if target.dtype != torch.int64:
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise TypeError(f"class indices must be integers, not {target.dtype}: convert them with target.to(torch.int64)")
        target = target.to(torch.int64)
    if target.shape != prediction.shape[:1] + prediction.shape[2:]:
        raise _misshapen_indices(prediction, target)
    return target


def _misshapen_indices(prediction: Tensor, target: Tensor) -> ValueError:
    wanted = (prediction.shape[0], *prediction.shape[2:])
    message = f"for a prediction of shape {tuple(prediction.shape)}, class indices must have the shape {wanted}, not"
    if target.shape == prediction.shape:
        return ValueError(f"{message} {tuple(target.shape)}: if they are one-hot, take target.argmax(1)")
    if said := axis_hint(prediction.shape, target.shape):
        return ValueError(f"{message} {tuple(target.shape)}: {said}")
    if target.numel() == prediction.numel() // prediction.shape[1]:
        return ValueError(f"{message} {tuple(target.shape)}: take target.reshape({wanted})")
    return ValueError(f"{message} {tuple(target.shape)}: the batch's predictions and targets must belong together")


def require_range(target: Tensor, classes: int, ignore_index: int | None = None) -> None:
    """Raise unless class indices, but for those to leave out, are in their range, as far as that can be seen for nothing."""
    if isinstance(ignore_index, float):
        raise TypeError(f"ignore_index must be an int, not {ignore_index!r}")
    if is_readable(target):
        wrong = (target < 0) | (target >= classes)
        if (wrong if ignore_index is None else wrong & (target != ignore_index)).any():
            raise out_of_range(target, classes, ignore_index)


def out_of_range(target: Tensor, classes: int, ignore_index: int | None) -> IndexError:
    """What to tell about class indices, some of which are none."""
    outside = (target < 0) | (target >= classes)
    wrong = target[outside if ignore_index is None else outside & (target != ignore_index)]
    marks = "" if ignore_index is None else f", and {ignore_index} (ignore_index) marks samples to leave out"
    return IndexError(
        f"a class index is {int(wrong[0])}, but there {'is' if classes == 1 else 'are'} {classes} class{'es' * (classes != 1)}:"
        f" indices go from 0 to {classes - 1}{marks}"
    )
