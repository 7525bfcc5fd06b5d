"""Noise for training that is not dropout's: what keeps the mean and the variance, and what is added."""

import math
from typing import Final, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import random
from fundl._common.half import narrowed, widened
from fundl.layers._drawing import Drawing, Dropping
from fundl.layers.activation import SELU_ALPHA, SELU_SCALE
from fundl.random import Key
from fundl.tree import BUFFER

_LEAST: Final = -SELU_SCALE * SELU_ALPHA


@final
@attrs.frozen(eq=False)
class AlphaDropout(Dropping):
    """Puts SELU's least output in the place of elements at random, and keeps mean 0 and variance 1: for use after `SELU`.

        y = a (x mask + c (1 - mask)) + b,    a = 1 / sqrt((1 - rate) (1 + rate c^2)),    b = -a c rate

    c = -1.7581 is the limit of SELU for x to -inf. Each element of the mask is 1 with probability 1 - rate, else 0, as drawn
    from the key. Without a key, as in a model that is not being trained, or with rate 0: y = x.

    Its vjp: grad_x = a grad mask, with the same mask.

    Args:
        rate: the probability to drop an element, from 0 up to, but not including, 1.
        key: what the mask is drawn from; None, the default, for no dropout. `rekey` gives each layer of a model its own.

    Shape:
        any, kept

    Residuals:
        The mask: 1 byte per input element. None without a key.

    Raises:
        ValueError: the rate is not in [0, 1).
        TypeError: the key is not a tensor.

    Source:
        Klambauer, Unterthiner, Mayr and Hochreiter, Self-normalizing neural networks, 2017.

    >>> from fundl import AlphaDropout, apply, key
    >>> apply(AlphaDropout(0.5), torch.ones(4))
    tensor([1., 1., 1., 1.])
    >>> apply(AlphaDropout(0.5, key(0)), torch.ones(4))
    tensor([ 1.6656, -0.7792, -0.7792, -0.7792])
    """

    counterpart = "AlphaDropout(p=rate)"
    dropped = "an element"

    @override
    def _drawn(self, key: Key, x: Tensor) -> tuple[Tensor, Tensor]:
        mask = self._mask(key, x.shape, x)
        factor = self._factor
        shift = -factor * _LEAST * self.rate
        return torch.where(mask, narrowed(widened(x) * factor + shift, x), factor * _LEAST + shift), mask

    @override
    def backward(self, residuals: Tensor | None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad if residuals is None else grad * residuals * self._factor

    @property
    def _factor(self) -> float:
        return 1 / math.sqrt((1 - self.rate) * (1 + self.rate * _LEAST**2))


@final
@attrs.frozen(eq=False)
class GaussianNoise(Drawing[None]):
    """Adds normal noise: y = x + std n, where each number of n is normal, of mean 0 and variance 1, as drawn from the key.

    Without a key, as in a model that is not being trained, or with std 0: y = x.

    Its vjp: grad_x = grad.

    Args:
        std: the standard deviation of the noise, at least 0.
        key: what the noise is drawn from; None, the default, for none. `rekey` gives each layer of a model its own.

    Shape:
        any, kept

    Residuals:
        None.

    Raises:
        ValueError: std is negative, infinite or not a number.
        TypeError: the key is not a tensor.

    Source:
        Bishop, Training with noise is equivalent to Tikhonov regularization, 1995.

    >>> from fundl import GaussianNoise, apply, key
    >>> apply(GaussianNoise(0.1), torch.ones(3))
    tensor([1., 1., 1.])
    >>> apply(GaussianNoise(0.1, key(0)), torch.ones(3))
    tensor([0.9878, 0.8650, 0.9918])
    """

    std: float
    key: Key | None = attrs.field(default=None, metadata=BUFFER)

    @override
    def __attrs_post_init__(self) -> None:
        if not 0 <= self.std < math.inf:
            raise ValueError(f"GaussianNoise's std must be a finite number of 0 or more, not {self.std}")
        super().__attrs_post_init__()

    @property
    @override
    def draws(self) -> bool:
        return self.std > 0

    @override
    def _drawn(self, key: Key, x: Tensor) -> tuple[Tensor, None]:
        return x + random.normal(key.to(x.device), x.shape, std=self.std, dtype=x.dtype), None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad
