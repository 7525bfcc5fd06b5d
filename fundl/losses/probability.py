"""Losses of probabilities: how far a prediction is from how likely something is."""

import torch
from torch import Tensor

from fundl._common import kernels
from fundl._common.modes import is_readable, may_be_nan
from fundl._common.suggestions import with_explanations
from fundl._common.tape import constant
from fundl.losses.reduction import Reduction, ValueAndGrad, elements, over_elements, require_weights
from fundl.weights import weighed_by


@weighed_by(elements)
@with_explanations
def binary_cross_entropy(prediction: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> ValueAndGrad:
    """The cross-entropy of yes or no, from probabilities: of each element -t log(p) - (1 - t) log(1 - p).

    The logarithms are cut off at -100, so that a wrong certainty costs 100, not inf. The gradient is, before the reduction,
    (p - t) / (p (1 - p)), whose denominator is kept above 1e-12. From logits, `binary_cross_entropy_with_logits` is the
    loss to take: it needs neither.

    Args:
        prediction: p, probabilities of yes.
        target: t, of the prediction's dtype: 1 for yes, 0 for no, or a probability between.
        reduction: see `mse`, which also has the shapes.

    Raises:
        ValueError: as for `mse`; on CPUs in eager mode also: a probability is not from 0 to 1.

    >>> from fundl import binary_cross_entropy
    >>> binary_cross_entropy(torch.tensor([0.5, 0.75]), torch.tensor([1.0, 1.0]))
    (tensor(0.4904), tensor([-1.0000, -0.6667]))
    """

    def formula(p: Tensor, t: Tensor, scale: Tensor) -> ValueAndGrad:
        _require_probabilities(p, "prediction", "; from logits, take binary_cross_entropy_with_logits")
        _require_probabilities(t, "target", "")
        value = kernels.binary_cross_entropy(p, t, None, 2)
        return value * scale, kernels.binary_cross_entropy_backward(scale, p, t, None, 2)

    return over_elements(formula, prediction, target, reduction)


@weighed_by(elements)
@with_explanations
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
        pos_weight: w, of 0 or more, a number, or a tensor that broadcasts to one sample's shape: above 1 for more recall, below
            for more precision; by default 1.
        reduction: see `mse`, which also has the shapes.

    Raises:
        ValueError: as for `mse`, or pos_weight's shape does not fit; on CPUs in eager mode also: a target is not from 0 to 1.

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
        if may_be_nan(value):  # infinite logits made inf - inf, or 0 * inf
            value = _binary_of_any(x, t if weight is None else weight * t, no, scale)
        return value, grad

    return over_elements(formula, prediction, target, reduction)


def _sample_weight(weight: Tensor | float | None, prediction: Tensor) -> Tensor | float | None:
    if weight is not None:
        require_weights(weight, "pos_weight")
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
    return constant(weight).to(torch.promote_types(prediction.dtype, torch.float32))


def _binary_of_any(x: Tensor, yes: Tensor, no: Tensor, scale: Tensor) -> Tensor:
    """The same value, of logits that may be infinite: no maximum is taken of what has no weight.

    With r = log(1 + exp(-|x|)), of each element yes (max(-x, 0) + r) + no (max(x, 0) + r).
    """
    slope = torch.where(x < 0, -yes, no)
    return ((torch.where(slope == 0, 0.0, slope * x) - (yes + no) * kernels.log_sigmoid(x.abs())) * scale).sum()


@weighed_by(elements)
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
        share = t * scale
        return torch.where(t == 0, 0.0, share * (log_t - x)).sum(), -share

    return over_elements(formula, prediction, target, reduction)


def _require_probabilities(x: Tensor, name: str, hint: str) -> None:
    if not is_readable(x) or not x.numel():
        return
    low, high = (bound.item() for bound in torch.aminmax(x))
    if not 0 <= low <= high <= 1:
        raise ValueError(f"the {name} must hold probabilities, from 0 to 1, but it goes from {low:g} to {high:g}{hint}")
