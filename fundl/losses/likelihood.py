"""Negative log-likelihoods: how unlikely the target is under the distribution that a prediction stands for."""

import math

import torch
from torch import Tensor

from fundl._common.modes import is_readable
from fundl._common.numbers import positive
from fundl._common.suggestions import with_explanations
from fundl.losses._several import OF_ELEMENTS, Two, narrowed_all, parts_of
from fundl.losses.reduction import ELEMENTS, Reduction, ValueAndGrad, computable, of_kind, over_elements, reduced, unlike


@of_kind(ELEMENTS)
@with_explanations
def poisson_nll(
    prediction: Tensor,
    target: Tensor,
    *,
    log_input: bool = True,
    full: bool = False,
    epsilon: float = 1e-8,
    reduction: Reduction = "mean",
) -> ValueAndGrad:
    """The negative log-likelihood of counts, which come with a rate: of each element -log(e^-r r^t / t!).

        r = exp(x),    of each element exp(x) - t x [+ log t!],            its gradient exp(x) - t
        r = x,         of each element x - t log(x + e) [+ log t!],        its gradient 1 - t / (x + e)

    The gradients are those before the reduction. A count 0 of the rate 0 costs nothing.

    Args:
        prediction: x, the logarithm of the rate; or the rate itself.
        target: t, counts of 0 or more, of the prediction's dtype.
        log_input: whether x is the logarithm.
        full: whether to add log t!, which no prediction changes: by Stirling's formula, t log t - t + log(2 pi t) / 2, where t
            is above 1.
        epsilon: e, added to a rate of which the logarithm is taken; above 0.
        reduction: see `mse`, which also has the shapes.

    Raises:
        ValueError: epsilon is not above 0; or as for `mse`.

    >>> from fundl import poisson_nll
    >>> poisson_nll(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 3.0]))
    (tensor(1.), tensor([ 0., -1.]))
    """
    positive.require("epsilon", epsilon)
    for name, option in (("log_input", log_input), ("full", full)):
        if type(option) is not bool:
            raise TypeError(f"{name} must be True or False, not {option!r}")

    def formula(x: Tensor, t: Tensor, scale: Tensor) -> ValueAndGrad:
        if log_input:
            rate = x.exp()
            losses, grad = rate - torch.where(t == 0, 0.0, t * x), rate - t
        else:
            rate = x + epsilon
            losses, grad = x - t * rate.log(), 1 - t / rate
        if full:
            losses = losses + torch.where(t > 1, t * t.log() - t + 0.5 * torch.log(2 * math.pi * t), 0.0)
        return losses * scale, grad * scale

    return over_elements(formula, prediction, target, reduction)


@of_kind(OF_ELEMENTS)
@with_explanations
def gaussian_nll(
    prediction: Two, target: Tensor, *, full: bool = False, epsilon: float = 1e-6, reduction: Reduction = "mean"
) -> tuple[Tensor, Two]:
    """The negative log-likelihood of normal distributions, of which the prediction is mean and variance: (m, v).

        s = max(v, e),    d = m - t,    of each element (log s + d^2 / s) / 2 [+ log(2 pi) / 2]
        grad_m = d / s,   grad_v = (1 / s - d^2 / s^2) / 2

    The gradients are those before the reduction. Where a variance is below e, its gradient is that of e, so that it finds its
    way back.

    Args:
        prediction: the pair (m, v), as a model of two outputs gives it, say ``pipe(duplicate, both(mean, variance))``; the
            variances are 0 or more: behind a `Softplus`, say.
        target: t, of the dtype and the shape of both.
        full: whether to add log(2 pi) / 2, which no prediction changes.
        epsilon: e, above 0.
        reduction: see `mse`.

    Shape:
        any, the same for all three, to ()

    Raises:
        TypeError: the prediction is not a pair of tensors; or as for `mse`.
        ValueError: epsilon is not above 0; on CPUs in eager mode also: a variance is below 0; or as for `mse`.

    Source:
        Nix and Weigend, Estimating the mean and variance of the target probability distribution, 1994.

    >>> from fundl import gaussian_nll
    >>> gaussian_nll((torch.tensor([1.0]), torch.tensor([4.0])), torch.tensor([3.0]))
    (tensor(1.1931), (tensor([-0.5000]), tensor([0.])))
    """
    positive.require("epsilon", epsilon)
    if type(full) is not bool:
        raise TypeError(f"full must be True or False, not {full!r}")
    mean, variance = parts_of("gaussian_nll", "(mean, variance)", prediction, 2)
    if target.shape != prediction[0].shape or target.dtype != prediction[0].dtype:
        raise unlike(prediction[0], target)
    t = computable(target)
    if is_readable(variance) and (variance < 0).any():
        raise ValueError(f"a variance is {variance.min().item():g}, below 0: let the model give it behind a Softplus(), say")

    def formula(scale: Tensor) -> tuple[Tensor, Two]:
        precision, difference = 1 / variance.clamp(min=epsilon), mean - t
        ratio = difference * precision
        losses = 0.5 * (difference * ratio - precision.log()) + (0.5 * math.log(2 * math.pi) if full else 0.0)
        return losses * scale, (ratio * scale, 0.5 * (precision - ratio.square()) * scale)

    value, grads = reduced(formula, mean, reduction)
    return value, narrowed_all(grads, prediction)
