"""Losses: from a prediction and its target to the loss' value and its gradient with respect to the prediction.

Both are found together, by formulas derived by hand. A configured loss is a `functools.partial` of one of these:
``partial(huber, delta=0.1)``. None of them broadcasts, and none records a tape.

All of them take `reduction`, which says what becomes of the losses of a batch of B samples, the first axis:

- ``"mean"`` is the mean of all elements; for classification, of all samples and positions, weighted by their class' weight.
- ``"sum"`` is the sum of all.
- ``"batch_mean"`` is the sum of all, divided by B: each sample's outputs are summed, and the samples averaged. For
  distributions, that is the mean divergence.

A float16 or bfloat16 prediction is compared in float32: its gradient has its dtype, the value is float32.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Final, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from fundl._common import kernels, modes, suggestions
from fundl._common.class_axis import as_rows, axis_hint, is_along
from fundl._common.half import HALF
from fundl.weights import Weight, weighed_by

Reduction: TypeAlias = Literal["mean", "sum", "batch_mean"]
"""What becomes of the losses of a batch: see the module."""

ValueAndGrad: TypeAlias = tuple[Tensor, Tensor]

_FULL: Final = frozenset({torch.float32, torch.float64})

# --- What a mean divides by -------------------------------------------------------------------------------------------


def _elements(prediction: Tensor, _target: Tensor, *, reduction: Reduction = "mean", **_options: object) -> int:
    return _divisor(prediction, reduction)


def _samples(
    prediction: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int = 1,
    **_options: object,
) -> Weight:
    if target.is_floating_point():
        return _divisor(prediction, reduction, prediction.shape[axis])
    if reduction != "mean":
        return _divisor(target, reduction)
    counts = target != ignore_index
    if weight is None:
        return counts.sum()
    weights = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    return (weights[torch.where(counts, target, 0)] * counts).sum()


# --- Differences -------------------------------------------------------------------------------------------------------


@weighed_by(_elements)
def mse(prediction: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> ValueAndGrad:
    """The mean squared error: of each element (x - t)^2, with x the prediction and t the target.

    Its gradient is, before the reduction, 2 (x - t).

    Args:
        prediction: x, floating-point.
        target: t, of the prediction's dtype.
        reduction: "mean", "sum" or "batch_mean".

    Shape:
        any, the same for both, to ()

    Raises:
        ValueError: the shapes differ, there is nothing to average, or the reduction is unknown.
        TypeError: the prediction is not floating-point, or the target's dtype differs.

    >>> from fundl import mse
    >>> mse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    (tensor(2.), tensor([ 0., -2.]))
    """

    def formula(x: Tensor, t: Tensor, scale: Tensor) -> ValueAndGrad:
        difference = x - t
        share = difference * scale
        return (difference * share).sum(), share + share

    return _over_elements(formula, prediction, target, reduction)


@weighed_by(_elements)
def mae(prediction: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> ValueAndGrad:
    """The mean absolute error: of each element |x - t|, with x the prediction and t the target.

    Its gradient is, before the reduction, the sign of x - t: 0 where they are equal.

    Args:
        prediction: x, floating-point.
        target: t, of the prediction's dtype.
        reduction: "mean", "sum" or "batch_mean".

    Shape:
        any, the same for both, to ()

    Raises:
        ValueError: the shapes differ, there is nothing to average, or the reduction is unknown.
        TypeError: the prediction is not floating-point, or the target's dtype differs.

    >>> from fundl import mae
    >>> mae(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    (tensor(1.), tensor([ 0.0000, -0.5000]))
    """

    def formula(x: Tensor, t: Tensor, scale: Tensor) -> ValueAndGrad:
        difference = x - t
        return (difference.abs() * scale).sum(), difference.sgn() * scale

    return _over_elements(formula, prediction, target, reduction)


@weighed_by(_elements)
def huber(prediction: Tensor, target: Tensor, *, delta: float = 1.0, reduction: Reduction = "mean") -> ValueAndGrad:
    """Huber's loss: quadratic near the target, linear far from it, so that outliers pull with a bounded force.

        d = x - t,    c = d clipped to [-delta, delta],    of each element c (d - c/2)

    That is d^2 / 2 where |d| <= delta, and delta (|d| - delta/2) beyond. Its gradient is, before the reduction, c.

    Args:
        prediction: x, floating-point.
        target: t, of the prediction's dtype.
        delta: where the parabola becomes a line, in the prediction's units; above 0.
        reduction: "mean", "sum" or "batch_mean".

    Shape:
        any, the same for both, to ()

    Raises:
        ValueError: delta is not above 0, the shapes differ, there is nothing to average, or the reduction is unknown.
        TypeError: the prediction is not floating-point, or the target's dtype differs.

    Source:
        Huber, Robust estimation of a location parameter, 1964.

    >>> from fundl import huber
    >>> huber(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 2.0]))
    (tensor(1.5000), tensor([-0.5000,  0.5000]))
    """
    if not delta > 0:
        raise ValueError(f"delta, where Huber's parabola becomes a line, must be above 0, not {delta}")

    def formula(x: Tensor, t: Tensor, scale: Tensor) -> ValueAndGrad:
        difference = x - t
        clipped = difference.clamp(-delta, delta)
        grad = clipped * scale
        return (grad * difference.sub(clipped, alpha=0.5)).sum(), grad

    return _over_elements(formula, prediction, target, reduction)


# --- Classes -----------------------------------------------------------------------------------------------------------


@weighed_by(_samples)
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
        weight: w, of shape (C,); by default all 1.
        label_smoothing: s, from 0 to 1.
        ignore_index: a class index that marks samples to leave out. If all are left out, or of weight 0, the mean is nan, and
            its gradient 0.
        axis: of the prediction, that of the classes, and of a target of probabilities; 1 by default. Models of sequences give
            (B, T, C): take -1.
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
    suggestions.require_tensor(target, "the target must be")
    if not is_along(axis, prediction):
        of_rows = partial(cross_entropy, weight=weight, label_smoothing=label_smoothing, ignore_index=ignore_index)
        return _by_rows(of_rows, prediction, target, axis, reduction)
    x, w = _class_scores(prediction, weight)
    log_probabilities = torch.log_softmax(x, 1)
    if target.is_floating_point():
        if ignore_index != -100:
            raise ValueError(f"ignore_index={ignore_index} is for targets of class indices; these are probabilities")
        t = _class_probabilities(prediction, target)
        value, grad = _soft_classes(log_probabilities, t, w, label_smoothing, reduction)
    else:
        indices = _class_indices(prediction, target)
        value, grad, total = _hard_classes(log_probabilities, indices, w, ignore_index, reduction)
        if label_smoothing:
            divisor = total if reduction == "mean" else _divisor(indices, reduction)
            even = _even_part(log_probabilities, indices, w, ignore_index)
            grad = grad * (1 - label_smoothing) - even * (label_smoothing / x.shape[1] / divisor)
            value = _inner(grad, log_probabilities)
            if reduction == "mean" and _may_be_nan(value):
                grad = torch.where(total == 0, 0.0, grad)
        if not _all_count(total, indices, w, ignore_index):
            log_probabilities = _without_left_out(log_probabilities, indices, ignore_index)
    return value, _as(prediction, kernels.log_softmax_backward(grad, log_probabilities, 1, x.dtype))


@weighed_by(_samples)
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
        weight: w, of shape (C,); by default all 1.
        ignore_index: a class index that marks samples to leave out. If all are left out, or of weight 0, the mean is nan, and
            its gradient 0.
        axis: of the prediction, that of the classes; 1 by default. Models of sequences give
            (B, T, C): take -1.
        reduction: "mean", "sum" or "batch_mean".

    Shape:
        (B, C, ...) and (B, ...) to (); C where `axis` says

    Raises:
        ValueError: the shapes do not fit, there is nothing to average, or the reduction is unknown.
        TypeError: the prediction is not floating-point, or the target is not of integers.
        IndexError: a class index is out of range (checked on CPUs; a GPU stops with an assertion of its own).

    >>> from fundl import nll
    >>> nll(torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log(), torch.tensor([1, 0]))
    (tensor(0.4904), tensor([[ 0.0000, -0.5000],
            [-0.5000,  0.0000]]))
    """
    if not is_along(axis, prediction):
        return _by_rows(partial(nll, weight=weight, ignore_index=ignore_index), prediction, target, axis, reduction)
    x, w = _class_scores(prediction, weight)
    indices = _class_indices(prediction, target)
    value, grad, _ = _hard_classes(x, indices, w, ignore_index, reduction)
    return value, _as(prediction, grad)


class _OfRows(Protocol):
    def __call__(self, prediction: Tensor, target: Tensor, *, reduction: Reduction) -> ValueAndGrad: ...


def _by_rows(loss: _OfRows, prediction: Tensor, target: Tensor, axis: int, reduction: Reduction) -> ValueAndGrad:
    """A loss of classes along another axis than 1, whose samples and positions are put in rows for it."""
    rows = as_rows(prediction, target, axis)
    if reduction != "batch_mean":
        value, grad = loss(rows.prediction, rows.target, reduction=reduction)
        return value, rows.back(grad)
    if target.is_floating_point() and target.dtype != prediction.dtype:
        raise _unlike(prediction, target)
    share, row_target = 1 / _divisor(prediction, reduction), rows.target
    row_target = _computable(row_target) if row_target.is_floating_point() else row_target
    value, grad = loss(_computable(rows.prediction), row_target, reduction="sum")
    return value * share, rows.back(_as(prediction, grad * share))


def _hard_classes(
    log_probabilities: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: Reduction
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of class indices, its gradient with respect to the log-probabilities, and the sum of the samples' weights."""
    shape, divisor = log_probabilities.shape, _divisor(target, reduction)
    if planar := len(shape) > 2:  # The kernels know samples, and planes: all further axes in one make a plane.
        log_probabilities = log_probabilities.flatten(2).unsqueeze(2).contiguous()  # (B, C, 1, M)
        target = target.flatten(1).unsqueeze(1)  # (B, 1, M)
    forward = kernels.nll_loss2d_forward if planar else kernels.nll_loss_forward
    backward = kernels.nll_loss2d_backward if planar else kernels.nll_loss_backward
    kind: Literal[1, 2] = 1 if reduction == "mean" else 2
    try:
        value, total = forward(log_probabilities, target, weight, kind, ignore_index)
        if weight is not None and _may_be_nan(value):
            target = _without_weightless(target, weight, ignore_index)
            value, total = forward(log_probabilities, target, weight, kind, ignore_index)
    except IndexError as error:
        raise _out_of_range(target, shape[1], ignore_index) from error
    scale = log_probabilities.new_full((), 1.0 if reduction == "mean" else 1 / divisor)
    grad = backward(scale, log_probabilities, target, weight, kind, ignore_index, total)
    return value * scale if reduction == "batch_mean" else value, grad.reshape(shape) if planar else grad, total


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
    log_probabilities: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float, reduction: Reduction
) -> ValueAndGrad:
    """The loss of probabilities, and its gradient with respect to the log-probabilities."""
    classes = log_probabilities.shape[1]
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / classes
    if weight is not None:
        target = target * _along_classes(weight, log_probabilities)
    grad = target * (-1 / _divisor(target, reduction, classes))
    return _inner(grad, log_probabilities), grad


def _inner(grad: Tensor, log_probabilities: Tensor) -> Tensor:
    """The loss from its gradient, in which it is linear; a coefficient 0 hides a log-probability -inf."""
    return torch.where(grad == 0, 0.0, grad * log_probabilities).sum()


def _along_classes(weight: Tensor, scores: Tensor) -> Tensor:
    """The classes' weights, of shape (C, 1, ...), which lines up with scores (B, C, ...)."""
    return weight.reshape(-1, *[1] * (scores.ndim - 2))


# --- Probabilities -----------------------------------------------------------------------------------------------------


@weighed_by(_elements)
def binary_cross_entropy(prediction: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> ValueAndGrad:
    """The cross-entropy of yes or no, from probabilities: of each element -t log(p) - (1 - t) log(1 - p).

    The logarithms are cut off at -100, so that a wrong certainty costs 100, not inf. The gradient is, before the reduction,
    (p - t) / (p (1 - p)), whose denominator is kept above 1e-12. From logits, `binary_cross_entropy_with_logits` is the
    loss to take: it needs neither.

    Args:
        prediction: p, probabilities of yes.
        target: t, of the prediction's dtype: 1 for yes, 0 for no, or a probability between.
        reduction: "mean", "sum" or "batch_mean".

    Shape:
        any, the same for both, to ()

    Raises:
        ValueError: the shapes differ, there is nothing to average, or the reduction is unknown; on CPUs in eager mode also: a
            probability is not from 0 to 1.
        TypeError: the prediction is not floating-point, or the target's dtype differs.

    >>> from fundl import binary_cross_entropy
    >>> binary_cross_entropy(torch.tensor([0.5, 0.75]), torch.tensor([1.0, 1.0]))
    (tensor(0.4904), tensor([-1.0000, -0.6667]))
    """

    def formula(p: Tensor, t: Tensor, scale: Tensor) -> ValueAndGrad:
        _require_probabilities(p, "prediction", "; from logits, take binary_cross_entropy_with_logits")
        _require_probabilities(t, "target", "")
        value = kernels.binary_cross_entropy(p, t, None, 2)
        return value * scale, kernels.binary_cross_entropy_backward(scale, p, t, None, 2)

    return _over_elements(formula, prediction, target, reduction)


@weighed_by(_elements)
def binary_cross_entropy_with_logits(
    prediction: Tensor, target: Tensor, *, pos_weight: Tensor | float | None = None, reduction: Reduction = "mean"
) -> ValueAndGrad:
    """The cross-entropy of yes or no, from logits, with w the weight of yes.

        of each element -w t log(sigmoid(x)) - (1 - t) log(sigmoid(-x))
                      = (1 - t) x - (1 + (w - 1) t) log(sigmoid(x))

    Its gradient is, before the reduction, (1 - t) - (1 + (w - 1) t) sigmoid(-x); without weights, sigmoid(x) - t.

    Args:
        prediction: x, logits: the logarithms of the odds of yes.
        target: t, of the prediction's dtype: 1 for yes, 0 for no, or a probability between.
        pos_weight: w, a number, or a tensor that broadcasts to one sample's shape: above 1 for more recall, below for more
            precision; by default 1.
        reduction: "mean", "sum" or "batch_mean".

    Shape:
        any, the same for both, to ()

    Raises:
        ValueError: the shapes differ or pos_weight's does not fit, there is nothing to average, or the reduction is unknown;
            on CPUs in eager mode also: a target is not from 0 to 1.
        TypeError: the prediction is not floating-point, or the target's dtype differs.

    >>> from fundl import binary_cross_entropy_with_logits
    >>> binary_cross_entropy_with_logits(torch.tensor([0.0, 1e4]), torch.tensor([1.0, 1.0]))
    (tensor(0.3466), tensor([-0.2500,  0.0000]))
    """
    weight = _sample_weight(pos_weight, prediction)

    def formula(x: Tensor, t: Tensor, scale: Tensor) -> ValueAndGrad:
        _require_probabilities(t, "target", "; of labels -1 and 1, take (target + 1) / 2")
        log_yes = kernels.log_sigmoid(x)
        no = 1 - t
        if weight is None:
            value, grad = ((no * x - log_yes) * scale).sum(), (torch.sigmoid(x) - t) * scale
        else:
            yes = 1 + (weight - 1) * t
            value, grad = ((no * x - yes * log_yes) * scale).sum(), (no - yes * torch.sigmoid(-x)) * scale
        if _may_be_nan(value):  # infinite logits made inf - inf, or 0 * inf
            value = _binary_of_any(x, t if weight is None else weight * t, no, scale)
        return value, grad

    return _over_elements(formula, prediction, target, reduction)


def _binary_of_any(x: Tensor, yes: Tensor, no: Tensor, scale: Tensor) -> Tensor:
    """The same value, of logits that may be infinite: no maximum is taken of what has no weight.

    With r = log(1 + exp(-|x|)), of each element yes (max(-x, 0) + r) + no (max(x, 0) + r).
    """
    slope = torch.where(x < 0, -yes, no)
    return ((torch.where(slope == 0, 0.0, slope * x) - (yes + no) * kernels.log_sigmoid(x.abs())) * scale).sum()


@weighed_by(_elements)
def kl_divergence(
    prediction: Tensor, target: Tensor, *, log_target: bool = False, reduction: Reduction = "mean"
) -> ValueAndGrad:
    """The Kullback-Leibler divergence of a prediction from its target: of each element t (log(t) - x).

    It is 0 where t is 0. Its gradient is, before the reduction, -t. The divergence of distributions is the sum over their
    axes: "batch_mean" averages it over the batch, while "mean" divides by the number of all elements.

    Args:
        prediction: x, log-probabilities.
        target: t, probabilities, or their logarithms; of the prediction's dtype.
        log_target: whether the target holds log(t).
        reduction: "mean", "sum" or "batch_mean".

    Shape:
        any, the same for both, to ()

    Raises:
        ValueError: the shapes differ, there is nothing to average, or the reduction is unknown.
        TypeError: the prediction is not floating-point, or the target's dtype differs.

    Source:
        Kullback and Leibler, On information and sufficiency, 1951.

    >>> from fundl import kl_divergence
    >>> kl_divergence(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]), reduction="batch_mean")
    (tensor(0.6931), tensor([[-1., -0.]]))
    """

    def formula(x: Tensor, t: Tensor, scale: Tensor) -> ValueAndGrad:
        t, log_t = (t.exp(), t) if log_target else (t, t.log())
        share = t * scale
        return torch.where(t == 0, 0.0, share * (log_t - x)).sum(), -share

    return _over_elements(formula, prediction, target, reduction)


# --- What losses of elements share -------------------------------------------------------------------------------------


def _over_elements(
    formula: Callable[[Tensor, Tensor, Tensor], ValueAndGrad], prediction: Tensor, target: Tensor, reduction: Reduction
) -> ValueAndGrad:
    """A loss of a prediction and a target of one shape, from its formula of both and the reduction's factor."""
    try:
        alike = prediction.shape == target.shape and prediction.dtype is target.dtype
    except AttributeError as error:  # of a list, say
        raise _unlike(prediction, target) from error
    if not alike:
        raise _unlike(prediction, target)
    if prediction.dtype not in _FULL or prediction.requires_grad or target.requires_grad:
        value, grad = _over_elements(formula, _computable(prediction), _computable(target), reduction)
        return value, grad.to(prediction.dtype)
    # A tensor of the right dtype: kernels are twice as quick with it as with a Python number.
    return formula(prediction, target, prediction.new_full((), 1 / _divisor(prediction, reduction)))


def _unlike(prediction: Tensor, target: Tensor) -> Exception:
    """What to tell about a prediction and a target that differ in shape or dtype."""
    suggestions.require_tensor(prediction, "the prediction must be")
    suggestions.require_tensor(target, "the target must be")
    if prediction.shape != target.shape:
        shapes = f"the prediction's shape is {tuple(prediction.shape)}, the target's {tuple(target.shape)}"
        if prediction.numel() != target.numel():
            return ValueError(f"{shapes}: they must be equal; the loss does not broadcast")
        if target.ndim and prediction.shape == (*target.shape, 1):
            return ValueError(f"{shapes}: they must be equal; give the target an axis with target.unsqueeze(-1)")
        return ValueError(
            f"{shapes}: they must be equal; give the target its shape with target.reshape({tuple(prediction.shape)})"
        )
    if not prediction.is_floating_point():
        return _not_floating(prediction)
    return TypeError(
        f"the prediction is {prediction.dtype}, the target {target.dtype}: they must be equal; convert the target with"
        f" target.to({prediction.dtype})"
    )


def _computable(x: Tensor) -> Tensor:
    """A tensor that records no tape, and is at least in single precision."""
    suggestions.require_tensor(x, "predictions and targets must each be")
    if x.requires_grad:
        x = x.detach()
    if x.dtype in HALF:
        return x.to(torch.float32)
    if x.dtype not in _FULL:
        raise _not_floating(x)
    return x


def _not_floating(prediction: Tensor) -> TypeError:
    return TypeError(
        f"the prediction must be floating-point, not {prediction.dtype}: a loss takes the model's outputs, not the classes"
        " found from them"
    )


def _as(prediction: Tensor, grad: Tensor) -> Tensor:
    return grad if grad.dtype is prediction.dtype else grad.to(prediction.dtype)


def _divisor(samples: Tensor, reduction: Reduction, each: int = 1) -> int:
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


def _sample_weight(weight: Tensor | float | None, prediction: Tensor) -> Tensor | float | None:
    if not isinstance(weight, Tensor):
        return weight
    sample = prediction.shape[1:]
    if weight.ndim > len(sample) or any(
        own not in (1, size) for own, size in zip(reversed(weight.shape), reversed(sample), strict=False)
    ):
        raise ValueError(
            f"pos_weight is of shape {tuple(weight.shape)}, but must broadcast to one sample's shape {tuple(sample)}: give one"
            " number, or one for each output"
        )
    return weight.detach().to(torch.promote_types(prediction.dtype, torch.float32))


# --- What losses of probabilities share --------------------------------------------------------------------------------


def _require_probabilities(x: Tensor, name: str, hint: str) -> None:
    if not is_readable(x) or not x.numel():
        return
    low, high = (bound.item() for bound in torch.aminmax(x))
    if not 0 <= low <= high <= 1:
        raise ValueError(f"the {name} must hold probabilities, from 0 to 1, but it goes from {low:g} to {high:g}{hint}")


def is_readable(x: Tensor) -> bool:
    """Whether a tensor's values can be looked at for nothing: it is on the CPU, and nothing traces or batches it."""
    return type(x) is Tensor and x.is_cpu and not modes.is_traced() and not torch._C._functorch.is_batchedtensor(x)


def _may_be_nan(value: Tensor) -> bool:
    """Whether a loss is not a number, or cannot be looked at: then the slower formula is taken, which holds everywhere."""
    return not is_readable(value) or math.isnan(value.item())


# --- What losses of classes share --------------------------------------------------------------------------------------


def _class_scores(prediction: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The prediction and the weights, ready to compute with."""
    if prediction.ndim < 2 or not prediction.shape[1]:
        raise ValueError(
            f"the prediction's shape must be (batch, classes, ...), not {tuple(prediction.shape)}: for one sample, take"
            " prediction.unsqueeze(0)"
        )
    x = _computable(prediction)
    if weight is None:
        return x, None
    if weight.shape != (prediction.shape[1],):
        raise ValueError(f"weight must be of shape ({prediction.shape[1]},), one for each class, not {tuple(weight.shape)}")
    return x, weight.detach().to(x.dtype)


def _class_probabilities(prediction: Tensor, target: Tensor) -> Tensor:
    """The target as probabilities, of the prediction's shape, ready to compute with."""
    if target.shape != prediction.shape:
        raise ValueError(
            f"a {target.dtype} target holds the classes' probabilities, and must have the prediction's shape"
            f" {tuple(prediction.shape)}, not {tuple(target.shape)}: if it holds class indices, take target.to(torch.int64)"
        )
    if target.dtype != prediction.dtype:
        raise _unlike(prediction, target)
    return _computable(target)


def _class_indices(prediction: Tensor, target: Tensor) -> Tensor:
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


def _out_of_range(target: Tensor, classes: int, ignore_index: int) -> IndexError:
    wrong = target[(target != ignore_index) & ((target < 0) | (target >= classes))]
    return IndexError(
        f"a class index is {int(wrong[0])}, but there are {classes} classes: indices go from 0 to {classes - 1}, and"
        f" {ignore_index} (ignore_index) marks samples to leave out"
    )
