"""Gamma numbers that are drawn from a key, and the shares that some of them have of all: beta and Dirichlet numbers."""

import math

import torch
from torch import Tensor

from fundl._common import draws, representable
from fundl._common.elementary import exponential
from fundl._common.keys import require_key_and_shape
from fundl._common.modes import is_readable
from fundl.random._keys import Key, split
from fundl.random._requirements import positive, require_scale
from fundl.random._standard_gamma import standard_gamma


def gamma(
    key: Key,
    shape: tuple[int, ...],
    *,
    concentration: float | Tensor,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Random numbers of the gamma distribution, with the density x^(a - 1) exp(-x / scale) / (Gamma(a) scale^a) above 0.

    By the method of Marsaglia and Tsang, and for a concentration a below 1 by numbers of a + 1, times u^(1/a). It rejects some
    numbers, and tries others, up to 12 times, with a new key each time; with a probability of less than 2**-52 all are
    rejected, and (a - 1/3) scale is taken. Compiled code, and that on a GPU, always makes all 12, and takes so much longer.

    All is computed in float64, without functions of a library, and rounded once, as in `normal`. What is below the dtype's
    smallest number comes as 0: of a concentration of 0.01, 4 float32 numbers of 10. Key, shape and dtype are as in `uniform`.

    Args:
        concentration: a, above 0: a number, or a tensor that goes with the shape. What is drawn is a constant: it has no
            derivative with respect to this.
        scale: what the numbers are multiplied by, one divided by the rate; not negative.

    Raises:
        ValueError: the concentration is not above 0, or does not go with the shape; the scale is negative, or the numbers could
            be too large for the dtype. Where tensors cannot be looked at, as in compiled code and on a GPU, NaN is drawn of
            what is not above 0.

    Source: Marsaglia and Tsang, "A simple method for generating gamma variables", 2000.

    >>> from fundl import key, random
    >>> random.gamma(key(0), (3,), concentration=2.5)
    tensor([6.4084, 0.5292, 0.6601])
    """
    require_key_and_shape(key, shape)
    each = positive("concentration", concentration, shape, key.device)
    greatest = each.max().item() if is_readable(each) and each.numel() else 1.0
    require_scale(scale, dtype, greatest=_bound(greatest))
    factor, logarithm = standard_gamma(key, shape, each)
    return draws.rounded(factor * exponential(logarithm) * scale, dtype)


def _bound(concentration: float) -> float:
    """What no gamma number of a concentration is greater than: d (1 + c x)^3 of the greatest normal number x."""
    d = concentration + 1
    return d * (1 + 4 / math.sqrt(d)) ** 3


def beta(
    key: Key, shape: tuple[int, ...], *, alpha: float | Tensor, beta: float | Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Random numbers of the beta distribution, with a density in proportion to x^(alpha - 1) (1 - x)^(beta - 1) in (0, 1).

    x / (x + y), of gamma numbers x and y of the concentrations alpha and beta. All is computed in float64 and rounded once,
    which may give 0 or 1. Key, shape and dtype are as in `uniform`; exactness and speed as in `gamma`.

    Args:
        alpha: above 0: a number, or a tensor that goes with the shape. What is drawn has no derivative with respect to it.
        beta: likewise.

    Raises:
        ValueError: alpha or beta is not above 0, or does not go with the shape.

    >>> from fundl import key, random
    >>> random.beta(key(0), (3,), alpha=2.0, beta=5.0)
    tensor([0.1437, 0.2473, 0.1805])
    """
    representable.digits_of(dtype)
    require_key_and_shape(key, shape)
    one, other = positive("alpha", alpha, shape, key.device), positive("beta", beta, shape, key.device)
    (x, log_x), (y, log_y) = (standard_gamma(own, shape, each) for own, each in zip(split(key), (one, other), strict=True))
    largest = torch.maximum(log_x, log_y)
    x, y = x * exponential(log_x - largest), y * exponential(log_y - largest)
    return draws.rounded(x / (x + y), dtype)


def dirichlet(key: Key, shape: tuple[int, ...], *, concentration: float | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random vectors of the Dirichlet distribution, along the last axis: numbers from 0 to 1 whose sum is 1.

    Their density is in proportion to the product of all x_i^(a_i - 1): gamma numbers of the concentrations a_i, divided by
    their sum. All is computed in float64 and rounded once; the last bit of float64 may differ, with the order of the sum. Key,
    shape and dtype are as in `uniform`; exactness and speed as in `gamma`.

    Args:
        concentration: above 0: a number for all, or a tensor that goes with the shape, such as one of a number for each place
            of a vector. What is drawn has no derivative with respect to it.

    Raises:
        ValueError: the shape has no axis; the concentration is not above 0, or does not go with the shape.

    >>> from fundl import key, random
    >>> random.dirichlet(key(0), (2, 3), concentration=1.0).sum(-1)
    tensor([1., 1.])
    """
    representable.digits_of(dtype)
    require_key_and_shape(key, shape)
    if not shape:
        raise ValueError("vectors have an axis at least: write dirichlet(key, (3,), concentration=1.0), say, not ()")
    factor, logarithm = standard_gamma(key, shape, positive("concentration", concentration, shape, key.device))
    logarithm = logarithm.expand(factor.shape)
    largest = logarithm.amax(-1, keepdim=True) if shape[-1] else logarithm
    shares = factor * exponential(logarithm - largest)
    return draws.rounded(shares / shares.sum(-1, keepdim=True), dtype)
