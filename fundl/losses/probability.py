"""Losses of probabilities: how far a prediction is from how likely something is."""

import torch
from torch import Tensor

from fundl._common import kernels
from fundl._common.modes import is_readable
from fundl._common.numbers import share
from fundl._common.suggestions import with_explanations
from fundl.losses.reduction import ELEMENTS, Reduction, ValueAndGrad, of_kind, of_sample, over_elements


@of_kind(ELEMENTS)
@with_explanations
def binary_cross_entropy(
    prediction: Tensor, target: Tensor, *, label_smoothing: float = 0.0, reduction: Reduction = "mean"
) -> ValueAndGrad:
    """The cross-entropy of yes or no, from probabilities: of each element -t log(p) - (1 - t) log(1 - p).

    The logarithms are cut off at -100, so that a wrong certainty costs 100, not inf. The gradient is, before the reduction,
    (p - t) / (p (1 - p)), whose denominator is kept above 1e-12. From logits, `binary_cross_entropy_with_logits` is the
    loss to take: it needs neither.

    Args:
        prediction: p, probabilities of yes.
        target: t, of the prediction's dtype: 1 for yes, 0 for no, or a probability between.
        label_smoothing: s, from 0 to 1: t becomes (1 - s) t + s/2.
        reduction: see `mse`, which also has the shapes.

    Raises:
        ValueError: as for `mse`; on CPUs in eager mode also: a probability is not from 0 to 1.

    >>> from fundl import binary_cross_entropy
    >>> binary_cross_entropy(torch.tensor([0.5, 0.75]), torch.tensor([1.0, 1.0]))
    (tensor(0.4904), tensor([-1.0000, -0.6667]))
    """
    share.require("label_smoothing", label_smoothing)

    def formula(p: Tensor, t: Tensor, scale: Tensor) -> ValueAndGrad:
        require_probabilities(p, "prediction", "; from logits, take binary_cross_entropy_with_logits")
        require_probabilities(t, "target", "")
        t = _smoothed(t, label_smoothing)
        losses = kernels.binary_cross_entropy(p, t, None, 0) * scale
        return losses, kernels.binary_cross_entropy_backward(scale, p, t, None, 2)

    return over_elements(formula, prediction, target, reduction)


@of_kind(ELEMENTS)
@with_explanations
def binary_cross_entropy_with_logits(
    prediction: Tensor,
    target: Tensor,
    *,
    pos_weight: Tensor | float | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> ValueAndGrad:
    """The cross-entropy of yes or no, from logits, with w the weight of yes.

        of each element -w t log(sigmoid(x)) - (1 - t) log(sigmoid(-x))
                      = (1 - t) x - (1 + (w - 1) t) log(sigmoid(x))

    Its gradient is, before the reduction, (1 - t) - (1 + (w - 1) t) sigmoid(-x); without weights, sigmoid(x) - t.

    Args:
        prediction: x, logits: the logarithms of the odds of yes.
        target: t, of the prediction's dtype: 1 for yes, 0 for no, or a probability between.
        pos_weight: w, of 0 or more, a number, or a tensor that broadcasts to one sample's shape: above 1 for more recall, below
            for more precision; by default 1.
        label_smoothing: s, from 0 to 1: t becomes (1 - s) t + s/2.
        reduction: see `mse`, which also has the shapes.

    Raises:
        ValueError: as for `mse`, or pos_weight's shape does not fit; on CPUs in eager mode also: a target is not from 0 to 1.

    >>> from fundl import binary_cross_entropy_with_logits
    >>> binary_cross_entropy_with_logits(torch.tensor([0.0, 1e4]), torch.tensor([1.0, 1.0]))
    (tensor(0.3466), tensor([-0.2500,  0.0000]))
    """
    weight = None if pos_weight is None else of_sample("pos_weight", pos_weight, prediction)
    share.require("label_smoothing", label_smoothing)

    def formula(x: Tensor, t: Tensor, scale: Tensor) -> ValueAndGrad:
        require_probabilities(t, "target", "; of labels -1 and 1, take (target + 1) / 2")
        t = _smoothed(t, label_smoothing)
        log_yes = kernels.log_sigmoid(x)
        no = 1 - t
        if weight is None:
            return (no * x - log_yes) * scale, (torch.sigmoid(x) - t) * scale
        yes = 1 + (weight - 1) * t
        return (no * x - yes * log_yes) * scale, (no - yes * torch.sigmoid(-x)) * scale

    def of_any(x: Tensor, t: Tensor, scale: Tensor) -> Tensor:
        t = _smoothed(t, label_smoothing)
        return _binary_of_any(x, t if weight is None else weight * t, 1 - t, scale)

    return over_elements(formula, prediction, target, reduction, of_any)  # infinite logits make inf - inf, or 0 * inf


def _binary_of_any(x: Tensor, yes: Tensor, no: Tensor, scale: Tensor) -> Tensor:
    """The same losses, of logits that may be infinite: no maximum is taken of what has no weight.

    With r = log(1 + exp(-|x|)), of each element yes (max(-x, 0) + r) + no (max(x, 0) + r).
    """
    slope = torch.where(x < 0, -yes, no)
    return (torch.where(slope == 0, 0.0, slope * x) - (yes + no) * kernels.log_sigmoid(x.abs())) * scale


@of_kind(ELEMENTS)
@with_explanations
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
        reduction: see `mse`, which also has the shapes and the errors.

    Source:
        Kullback and Leibler, On information and sufficiency, 1951.

    >>> from fundl import kl_divergence
    >>> kl_divergence(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]), reduction="batch_mean")
    (tensor(0.6931), tensor([[-1., -0.]]))
    """
    if type(log_target) is not bool:
        raise TypeError(f"log_target must be True or False, not {log_target!r}")

    def formula(x: Tensor, t: Tensor, scale: Tensor) -> ValueAndGrad:
        t, log_t = (t.exp(), t) if log_target else (t, t.log())
        part = t * scale
        return torch.where(t == 0, 0.0, part * (log_t - x)), -part

    return over_elements(formula, prediction, target, reduction)


def _smoothed(t: Tensor, label_smoothing: float) -> Tensor:
    return t * (1 - label_smoothing) + label_smoothing / 2 if label_smoothing else t


def require_probabilities(x: Tensor, name: str, hint: str) -> None:
    """Raise unless all numbers are from 0 to 1, as far as that can be seen for nothing."""
    if not is_readable(x) or not x.numel():
        return
    low, high = (bound.item() for bound in torch.aminmax(x))
    if not 0 <= low <= high <= 1:
        raise ValueError(f"the {name} must hold probabilities, from 0 to 1, but it goes from {low:g} to {high:g}{hint}")
