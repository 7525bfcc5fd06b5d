"""Losses of differences: how far a prediction is from a number that it should be."""

from torch import Tensor

from fundl._common.suggestions import with_explanations
from fundl.losses.reduction import Reduction, ValueAndGrad, elements, over_elements
from fundl.weights import weighed_by


@weighed_by(elements)
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
        return (difference * share).sum(), share + share

    return over_elements(formula, prediction, target, reduction)


@weighed_by(elements)
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
        return (difference.abs() * scale).sum(), difference.sgn() * scale

    return over_elements(formula, prediction, target, reduction)


@weighed_by(elements)
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
        return (grad * difference.sub(clipped, alpha=0.5)).sum(), grad

    return over_elements(formula, prediction, target, reduction)
