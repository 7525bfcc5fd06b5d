"""Pooling by a norm: how large all is that a sliding window sees, channel by channel."""

import math
from typing import Generic, Literal, Never, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common import kernels
from fundl._common.half import HALF, in_float32, widened
from fundl._common.kernels import PerAxis
from fundl.layers._pooling import CeilMode, OnePerAxis, Padding, Windowed
from fundl.layers._spatial import KernelSize, Stride
from fundl.shapes import Batch, Channels, Depth, Height, Length, Shape, Width, Windows


@attrs.frozen(eq=False)
class _LPPool(Windowed[tuple[Tensor, Tensor], OnePerAxis]):
    """The norm of what a window sees, over any number of axes.

        y[{i}] = (sum over {u} in 0 ... k-1 of |x[{i s + u}]|^q)^(1/q)

    with power q, kernel size k and stride s: sums of absolute values for q = 1, and closer to their maximum the larger q.
    Around x, where the padding is, all is 0. Where a window reaches beyond the padding, as it may by ceil_mode, what it sees
    counts for all of it: the sum is multiplied by {volume}, and divided by the number of elements seen.

    Its vjp: grad_x is (|x| / y)^(q-1) times the sign of x times grad, added up over all places of the window that saw the
    element; 0 where y is 0.

    Powers must fit into the dtype of x, or into float32 for half precision: of q = 2, numbers above 1e19 are infinite in
    float32, and those below 1e-23 are 0.

    Args:
        kernel_size: k{each}.
        power: q, at least 1 and finite; 2 by default.
        stride: s, from one place of the window to the next{each}; k by default.
        padding: zeros to put before each axis, and as many behind it; 0 by default, at most k / 2. "same" for as many as give
            the window a place for each stride; where that is an odd number, the one more is behind.
        ceil_mode: whether there is one more place for the window if it then reaches beyond the padding, but starts before it;
            by default, what is left over at the end is not seen.

    Shape:
        (B, C, {L}) to (B, C, {L'}), each size n to floor((n + 2 padding - k) / s) + 1, with ceil for ceil_mode, or to
        ceil(n / s) by "same"; or both without B

    Residuals:
        The input and the output, shared.

    Raises:
        TypeError: an argument is not {integer}; the input is not floating-point.
        ValueError: an argument is too small, or the padding too large; the input has other axes, or no place for the window.

    Source:
        Gulcehre, Cho, Pascanu and Bengio, Learned-norm pooling for deep feedforward and recurrent neural networks, 2014.
    """

    power: float = attrs.field(default=2.0, kw_only=True)
    ceil_mode: bool = attrs.field(default=False, kw_only=True)

    @override
    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if not 1 <= self.power < math.inf:
            raise ValueError(
                f"{type(self).__name__}'s power must be a finite number of at least 1, not {self.power}; the largest of all is"
                f" what MaxPool{self.axes}d gives"
            )

    @override
    def _pool(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y = in_float32(self._norms, x)
        return y, (x, y)

    def _norms(self, x: Tensor) -> Tensor:
        square = self.power == 2
        powers = self._padded(x.square() if square else x.abs().pow_(self.power), 0)
        sums = kernels.average_pool[self.axes](powers, *self._settings()).mul_(self._volume)
        return sums.sqrt_() if square else sums.pow_(1 / self.power)

    @override
    def _spread(self, grad: Tensor, x: Tensor, indices: tuple[Tensor, Tensor]) -> Tensor:
        given, y = indices
        wide = widened(given)
        if given.dtype in HALF:  # in which y was rounded
            y = self._norms(wide)
        shares = torch.where(y == 0, 0, grad * self._volume * y.pow(1 - self.power))
        spread = kernels.average_pool_backward[self.axes](shares, self._like_padded(x, shares), *self._settings())
        slope = wide if self.power == 2 else wide.abs().pow_(self.power - 1).mul_(wide.sign())
        return self._without_padding(spread, x) * slope

    @property
    def _volume(self) -> int:
        return math.prod(self._each(self.kernel_size))

    def _settings(self) -> tuple[PerAxis, PerAxis, PerAxis, bool, bool, None]:
        return *self._window(), self.ceil_mode, True, None


@final
@attrs.frozen(eq=False)
class LPPool1d(_LPPool[Never], Generic[KernelSize, Stride, Padding, CeilMode]):
    """The norm of what a window sees that slides over sequences, channel by channel.

    >>> import torch
    >>> from fundl import LPPool1d, apply
    >>> apply(LPPool1d(2), torch.tensor([[3.0, -4.0, 0.0, 2.0]]))
    tensor([[5., 2.]])
    """

    counterpart = "LPPool1d(norm_type=power)"
    axes = 1

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Length]
    ) -> Windows[Batch, Channels, tuple[KernelSize, Stride, Padding, Literal[1], CeilMode], Length]:
        return self._windows(shape, 1, self.ceil_mode)


@final
@attrs.frozen(eq=False)
class LPPool2d(_LPPool[tuple[int, int]], Generic[KernelSize, Stride, Padding, CeilMode]):
    """The norm of what a window sees that slides over images, channel by channel.

    >>> import torch
    >>> from fundl import LPPool2d, apply
    >>> apply(LPPool2d(2), torch.tensor([[[1.0, -1.0], [1.0, 1.0]]]))
    tensor([[[2.]]])
    """

    counterpart = "LPPool2d(norm_type=power)"
    axes = 2

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Height, Width]
    ) -> Windows[Batch, Channels, tuple[KernelSize, Stride, Padding, Literal[1], CeilMode], Height, Width]:
        return self._windows(shape, 1, self.ceil_mode)


@final
@attrs.frozen(eq=False)
class LPPool3d(_LPPool[tuple[int, int, int]], Generic[KernelSize, Stride, Padding, CeilMode]):
    """The norm of what a window sees that slides over volumes, channel by channel.

    >>> import torch
    >>> from fundl import LPPool3d, apply
    >>> apply(LPPool3d(2, power=1), -torch.ones(1, 2, 2, 2))
    tensor([[[[8.]]]])
    """

    counterpart = "LPPool3d(norm_type=power)"
    axes = 3

    @override
    def output_shape(
        self, shape: Shape[Batch, Channels, Depth, Height, Width]
    ) -> Windows[Batch, Channels, tuple[KernelSize, Stride, Padding, Literal[1], CeilMode], Depth, Height, Width]:
        return self._windows(shape, 1, self.ceil_mode)
