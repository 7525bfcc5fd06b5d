"""Metrics of numbers: how far predictions are from them."""

import torch
from torch import Tensor

from fundl._common.suggestions import with_explanations
from fundl.losses.reduction import unlike
from fundl.metrics.metric import Gathering, gathered_as
from fundl.weights import weighed_by


def _elements(prediction: Tensor, _target: Tensor) -> int:
    return prediction.numel()


@weighed_by(_elements)
@with_explanations
def mean_absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean of |x - t| over all elements, with x the prediction and t the target. As a loss to train with it is `mae`.

    Shape:
        any, the same for both, to ()

    Raises:
        ValueError: the shapes differ, or the prediction is empty.
        TypeError: the dtypes differ, or are not floating-point.

    >>> from fundl import mean_absolute_error
    >>> mean_absolute_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor(1.)
    """
    return (_wide(prediction, target)[0] - _wide(prediction, target)[1]).abs().mean()


def _squares(prediction: Tensor, target: Tensor) -> Tensor:
    x, t = _wide(prediction, target)
    squares = (x - t).double().square().sum()
    return torch.stack((squares, squares.new_full((), x.numel())))


def _root(sums: Tensor) -> Tensor:
    return (sums[0] / sums[1]).sqrt()


@gathered_as(Gathering(_squares, _root, in_rows=False))
@with_explanations
def root_mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """The root of the mean of (x - t)^2 over all elements, with x the prediction and t the target.

    In `evaluate` and `fit` it is the root of the mean over all data.

    Args:
        prediction, target: see `mean_absolute_error`, which also has the shapes and the errors.

    >>> from fundl import root_mean_squared_error
    >>> root_mean_squared_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor(1.4142)
    """
    return _root(_squares(prediction, target)).float()


def _moments(prediction: Tensor, target: Tensor) -> Tensor:
    """Of each output: how many there are, the sums of t and of t^2, and that of the squared errors."""
    x, t = (part.double().reshape(len(prediction), -1) for part in _wide(prediction, target))
    return torch.stack((torch.ones_like(t).sum(0), t.sum(0), t.square().sum(0), (x - t).square().sum(0))).flatten()


def _explained(sums: Tensor) -> Tensor:
    count, total, squares, errors = sums.reshape(4, -1)
    spread = squares - total.square() / count
    spread = torch.where(spread <= 1e-12 * squares, 0.0, spread)  # what rounding leaves of a constant
    constant = torch.where(errors == 0, 1.0, 0.0)
    return torch.where(spread == 0, constant, 1 - errors / torch.where(spread == 0, 1.0, spread)).mean()


@gathered_as(Gathering(_moments, _explained, in_rows=False))
@with_explanations
def r2(prediction: Tensor, target: Tensor) -> Tensor:
    """The coefficient of determination: how much of the target's variance the prediction explains.

        1 - sum of (x - t)^2 / sum of (t - mean of t)^2

    1 is perfect; 0 is as good as the mean of the targets; it may be below 0. Where there are several outputs, it is the mean of
    that of each. Where all targets are the same, it is 1 if they are predicted exactly, else 0. In `evaluate` and `fit` it is
    that of all data. Its sums are in float64.

    Args:
        prediction, target: see `mean_absolute_error`, which also has the errors.

    Shape:
        (B, ...), the same for both, to ()

    >>> from fundl import r2
    >>> r2(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0]))
    tensor(0.5000)
    """
    return _explained(_moments(prediction, target)).float()


def _wide(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The two, in single precision at least, once they are found to be alike."""
    if prediction.shape != target.shape or prediction.dtype != target.dtype or not prediction.is_floating_point():
        raise unlike(prediction, target)
    if not prediction.numel():
        raise ValueError(f"there is no prediction to judge: the prediction's shape is {tuple(prediction.shape)}")
    if not prediction.ndim:
        prediction, target = prediction.reshape(1), target.reshape(1)
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return prediction.to(dtype), target.to(dtype)
