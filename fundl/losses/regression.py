"""Losses of differences: how far a prediction is from a number that it should be."""

import math

import torch
from torch import Tensor

from fundl._common.suggestions import with_explanations
from fundl.losses.reduction import ELEMENTS, Reduction, ValueAndGrad, of_kind, of_sample, over_elements


@of_kind(ELEMENTS)
@with_explanations
def mse(prediction: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> ValueAndGrad:
    """The mean squared error: of each element (x - t)^2, with x the prediction and t the target.

    Its gradient is, before the reduction, 2 (x - t).

    Args:
        prediction: x, floating-point.
        target: t, of the prediction's dtype.
        reduction: "mean", "sum" or "batch_mean": see `fundl.losses`.

    Shape:
        any, the same for both, to ()

    Raises:
        ValueError: the shapes differ, there is nothing to average, or the reduction is unknown.
        TypeError: the prediction is not floating-point, or the target's dtype differs.

    >>> import torch
    >>> from fundl import mse
    >>> mse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    (tensor(2.), tensor([ 0., -2.]))
    """

    def formula(x: Tensor, t: Tensor, scale: Tensor) -> ValueAndGrad:
        difference = x - t
        share = difference * scale
        return difference * share, share + share

    return over_elements(formula, prediction, target, reduction)


@of_kind(ELEMENTS)
@with_explanations
def mae(prediction: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> ValueAndGrad:
    """The mean absolute error: of each element |x - t|, with x the prediction and t the target.

    Its gradient is, before the reduction, the sign of x - t: 0 where they are equal.

    Args:
        prediction, target, reduction: see `mse`, which also has the shapes and the errors.

    >>> import torch
    >>> from fundl import mae
    >>> mae(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    (tensor(1.), tensor([ 0.0000, -0.5000]))
    """

    def formula(x: Tensor, t: Tensor, scale: Tensor) -> ValueAndGrad:
        difference = x - t
        return difference.abs() * scale, difference.sgn() * scale

    return over_elements(formula, prediction, target, reduction)


@of_kind(ELEMENTS)
@with_explanations
def huber(prediction: Tensor, target: Tensor, *, delta: float = 1.0, reduction: Reduction = "mean") -> ValueAndGrad:
    """Huber's loss: quadratic near the target, linear far from it, so that outliers pull with a bounded force.

        d = x - t,    c = d clipped to [-delta, delta],    of each element c (d - c/2)

    That is d^2 / 2 where |d| <= delta, and delta (|d| - delta/2) beyond. Its gradient is, before the reduction, c.

    Args:
        prediction, target, reduction: see `mse`, which also has the shapes.
        delta: where the parabola becomes a line, in the prediction's units; above 0.

    Raises:
        ValueError: delta is not above 0; or as for `mse`.

    Source:
        Huber, Robust estimation of a location parameter, 1964.

    >>> import torch
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
        return grad * difference.sub(clipped, alpha=0.5), grad

    return over_elements(formula, prediction, target, reduction)


@of_kind(ELEMENTS)
@with_explanations
def log_cosh(prediction: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> ValueAndGrad:
    """The logarithm of the hyperbolic cosine: of each element log(cosh(x - t)), with x the prediction and t the target.

    It is about (x - t)^2 / 2 near the target, and |x - t| - log(2) far from it: like `huber`, but smooth everywhere. Its
    gradient is, before the reduction, tanh(x - t).

    Args:
        prediction, target, reduction: see `mse`, which also has the shapes and the errors.

    >>> import torch
    >>> from fundl import log_cosh
    >>> log_cosh(torch.tensor([0.0, 100.0]), torch.tensor([0.0, 0.0]))
    (tensor(49.6534), tensor([0.0000, 0.5000]))
    """

    def formula(x: Tensor, t: Tensor, scale: Tensor) -> ValueAndGrad:
        difference = x - t
        size = difference.abs()
        far = size + torch.log1p(torch.exp(-2 * size)) - math.log(2)
        near = torch.log1p(2 * torch.sinh(size.clamp(max=1) / 2).square())  # cosh d = 1 + 2 sinh^2 (d/2), to the last digit
        return torch.where(size < 1, near, far) * scale, difference.tanh() * scale

    return over_elements(formula, prediction, target, reduction)


@of_kind(ELEMENTS)
@with_explanations
def pinball(
    prediction: Tensor, target: Tensor, *, quantile: Tensor | float = 0.5, reduction: Reduction = "mean"
) -> ValueAndGrad:
    """The quantile loss: least where the prediction is the quantile q of the target, above which a share 1 - q of it is.

        d = x - t,    of each element (1 - q) d where d > 0, and -q d where d < 0

    Its gradient is, before the reduction, 1 - q where the prediction is too high, -q where it is too low, and 0 where it is
    right. With q = 1/2, the median, it is half of `mae`.

    Args:
        prediction, target, reduction: see `mse`, which also has the shapes.
        quantile: q, from 0 to 1: a number, or a tensor that broadcasts to one sample's shape. For several quantiles of the
            same target, each an output of the model, give the target once for each: ``target.expand_as(prediction)``.

    Raises:
        ValueError: a quantile is not from 0 to 1, or its shape does not fit; or as for `mse`.

    Source:
        Koenker and Bassett, Regression quantiles, 1978.

    >>> import torch
    >>> from fundl import pinball
    >>> pinball(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 2.0]), quantile=0.75)
    (tensor(0.7500), tensor([-0.3750,  0.1250]))
    """
    q = of_sample("quantile", quantile, prediction, highest=1.0)

    def formula(x: Tensor, t: Tensor, scale: Tensor) -> ValueAndGrad:
        difference = x - t
        above, below = (difference > 0).to(x.dtype), (difference < 0).to(x.dtype)
        grad = (above * (1 - q) - below * q) * scale
        return difference * grad, grad

    return over_elements(formula, prediction, target, reduction)
