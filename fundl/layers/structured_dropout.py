"""Dropout of what belongs together: of whole channels, and of whole examples."""

from typing import final

import attrs
from torch import Tensor
from typing_extensions import override

from fundl._common import dropping
from fundl.layers._drawing import Dropping
from fundl.random import Key


@final
@attrs.frozen(eq=False)
class ChannelDropout(Dropping):
    """Drops whole channels of each example at random, and scales up the others: y = x mask / (1 - rate).

    The mask has one number for each channel of each example, which is 1 with probability 1 - rate, else 0, as drawn from the
    key. Neighbours in an image say nearly the same, so that an element that is dropped alone is hardly missed: a channel is.
    Without a key, as in a model that is not being trained, or with rate 0: y = x.

    Its vjp: grad_x = grad mask / (1 - rate), with the same mask.

    Args:
        rate: the probability to drop a channel, from 0 up to, but not including, 1.
        key: what the mask is drawn from; None, the default, for no dropout. `rekey` gives each layer of a model its own.
        axis: of the channels, not that of the batch; 1, the first after it, by default. In sequences (B, T, d), -1 drops the
            same features at all steps.

    Shape:
        (B, C, ...), kept

    Residuals:
        The mask: 1 byte for each channel of each example. None without a key.

    Raises:
        ValueError: the rate is not in [0, 1); the axis is that of the batch, or the input has no such axis.
        TypeError: the key is not a tensor.

    Source:
        Tompson, Goroshin, Jain, LeCun and Bregler, Efficient object localization using convolutional networks, 2014.

    >>> import torch
    >>> from fundl import ChannelDropout, apply, key
    >>> apply(ChannelDropout(0.5, key(0)), torch.ones(1, 4, 2))
    tensor([[[2., 2.],
             [0., 0.],
             [0., 0.],
             [0., 0.]]])
    """

    dropped = "a channel"

    axis: int = attrs.field(default=1, kw_only=True)

    @override
    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.axis == 0:
            raise ValueError("ChannelDropout's axis is that of the channels, 1 or -1, say: 0 is that of the batch")

    @override
    def _drawn(self, key: Key, x: Tensor) -> tuple[Tensor, Tensor]:
        axis = self.axis if self.axis > 0 else x.ndim + self.axis
        if not 0 < axis < x.ndim:
            raise ValueError(
                f"ChannelDropout(axis={self.axis}) takes an input with this axis after that of the batch, but the input's shape"
                f" is {tuple(x.shape)}"
            )
        mask = self._mask(key, (x.shape[0], x.shape[axis]), x)
        mask = mask.reshape(x.shape[0], *(1,) * (axis - 1), x.shape[axis], *(1,) * (x.ndim - axis - 1))
        return dropping.masked(x, mask, self.rate), mask


@final
@attrs.frozen(eq=False)
class DropPath(Dropping):
    """Drops whole examples at random, and scales up the others: y = x mask / (1 - rate). Also known as stochastic depth.

    The mask has one number for each example, which is 1 with probability 1 - rate, else 0, as drawn from the key. It is the
    last layer of a residual branch, ``residual(linear(8, 8), ReLU(), DropPath(0.1))``: an example of which the branch is
    dropped goes past it, through a shallower network. Without a key, as in a model that is not being trained, or with rate 0:
    y = x.

    Its vjp: grad_x = grad mask / (1 - rate), with the same mask.

    Args:
        rate: the probability to drop an example, from 0 up to, but not including, 1. It often grows from block to block.
        key: what the mask is drawn from; None, the default, for no dropout. `rekey` gives each layer of a model its own.

    Shape:
        (B, ...), kept

    Residuals:
        The mask: 1 byte for each example. None without a key.

    Raises:
        ValueError: the rate is not in [0, 1).
        TypeError: the key is not a tensor.

    Source:
        Huang, Sun, Liu, Sedra and Weinberger, Deep networks with stochastic depth, 2016; Larsson, Maire and Shakhnarovich,
        FractalNet, 2016.

    >>> import torch
    >>> from fundl import DropPath, apply, key
    >>> apply(DropPath(0.5, key(0)), torch.ones(3, 2))
    tensor([[2., 2.],
            [0., 0.],
            [0., 0.]])
    """

    dropped = "an example"

    @override
    def _drawn(self, key: Key, x: Tensor) -> tuple[Tensor, Tensor]:
        mask = self._mask(key, x.shape[:1], x)
        mask = mask.reshape(*x.shape[:1], *(1,) * (x.ndim - 1))
        return dropping.masked(x, mask, self.rate), mask
