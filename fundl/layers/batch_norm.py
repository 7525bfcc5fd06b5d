"""Batch normalisation; the statistics that a model takes from training into use are found in `batch_statistics`."""

from typing import Generic, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common import half
from fundl._common.modes import is_in_forward_mode
from fundl._common.suggestions import with_suggestions
from fundl.groups import Group, require_group
from fundl.initializers import Initializer, ones, zeros
from fundl.layer import Layer
from fundl.layers import _batch_over, _real
from fundl.layers._layout import in_a_row, require_sizes
from fundl.layers._normalizing import Channels, Count, require_channels, require_eps, scale_and_shift
from fundl.layers._refusals import require_at_least_one, require_dtype
from fundl.shapes import Batch, Rest, Shape, expect
from fundl.tree import BUFFER, STATISTIC, Record

_BUT_CHANNELS = (0, 2, 3)  # of an input (B, C, 1, S)


@final
@attrs.frozen(eq=False)
class Statistics(Record):
    """The statistics of a batch with which a `BatchNorm` normalised it; a part of what it keeps for backward.

    Args:
        mean: of each channel.
        rstd: 1 / sqrt(var + eps) of each channel, var divided by the count.
        count: of the numbers in each channel.
        of_all: likewise in the batch of all processes, or of those that a mask calls real, an integer without axes; None where
            one has all of it, and all is real.
    """

    mean: Tensor
    rstd: Tensor
    count: int
    of_all: Tensor | None = None


@final
@attrs.frozen(eq=False)
class BatchNorm(Layer[tuple[Tensor, Statistics | None]], Generic[Channels]):
    """Normalises each channel, over batch and space: y = (x - mean) rstd weight + bias, rstd = 1 / sqrt(var + eps).

    Without statistics, mean and var are those of the channel in the batch (var divided by the number of its elements), so that
    examples see each other, also where the model is evaluated and used. With statistics, they are these: an affine map of each
    channel. ``train_step(..., track=0.1)`` follows them while it trains; `calibrate` finds them afterwards.

    Its vjp, with n = (x - mean) rstd, g = grad weight, and sums and means over batch and space:

        grad_weight = sum of grad n,    grad_bias = sum of grad
        grad_x = rstd (g - mean of g - n mean of g n)    without statistics
        grad_x = rstd g                                  with statistics

    Args:
        weight: of shape (channels,), or None, the default, for 1.
        bias: of shape (channels,), or None, the default, for 0.
        mean: the statistics: of shape (channels,), or None, the default, for those of the batch. Of a layer in half precision
            they may be in float32, as `track` and `calibrate` make them.
        var: likewise.
        eps: added to the variance; 1e-5 by default.
        weight_init: how `initialize` draws the weight; ones by default.
        bias_init: how `initialize` draws the bias; zeros by default.
        over: a group of processes, each of which has some examples of the batch: without statistics, mean and var are those of
            all of them. A `train_step` over a group sees to it.
        mask: of shape (B, ...) and dtype bool, that of the input without its channels, True where a position is real; None, the
            default, if all are. Without statistics, mean and var are those of what is real; the output at padding is 0.
            `with_mask` fills it, and so does `on_masked` in an `over_time`.

    Shape:
        (B, channels, ...), kept, with any number of axes of space, or none

    Residuals:
        The input, shared; without statistics those of the batch: 2 numbers per channel (of half precision in float32).

    Raises:
        ValueError: the input's channels are not the layer's; there is one number in each, and no statistics; mean is given
            without var, or var without mean; or eps is negative.
        TypeError: the input's dtype is not the weight's.

    Source:
        Ioffe and Szegedy, Batch normalization: accelerating deep network training by reducing internal covariate shift, 2015.

    >>> from fundl import BatchNorm, apply
    >>> apply(BatchNorm(), torch.tensor([[1.0, 0.0], [3.0, 100.0]]))
    tensor([[-1.0000, -1.0000],
            [ 1.0000,  1.0000]])
    >>> apply(BatchNorm(mean=torch.zeros(2), var=torch.ones(2)), torch.tensor([[1.0, 0.0], [3.0, 100.0]])).round(decimals=2)
    tensor([[  1.,   0.],
            [  3., 100.]])
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    mean: Tensor | None = attrs.field(default=None, kw_only=True, metadata=STATISTIC)
    var: Tensor | None = attrs.field(default=None, kw_only=True, metadata=STATISTIC)
    eps: float = attrs.field(default=1e-5, kw_only=True)
    weight_init: Initializer = attrs.field(default=ones(), kw_only=True)
    bias_init: Initializer = attrs.field(default=zeros(), kw_only=True)
    over: Group | None = attrs.field(default=None, kw_only=True)
    mask: Tensor | None = attrs.field(default=None, kw_only=True, metadata=BUFFER)

    def __attrs_post_init__(self) -> None:
        require_eps(self.eps)
        if self.over is not None:
            require_group(self.over)
        if (self.mean is None) != (self.var is None):
            raise ValueError(
                "BatchNorm has a mean and a var, or neither: give both, or let calibrate(model, batches) find them"
            )

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Statistics | None]]:
        require_channels("BatchNorm", self.weight, self.bias, self.mean, self.var, x=x)  # the kernel would read past the end
        if self.mask is not None:
            return self._forward_of_real(self.mask, x)
        if self.mean is None and self.over is not None and self.over.size > 1:
            return self._forward_over(self.over, x)
        count = x.numel() // max(x.shape[1], 1)
        if count == 1 and self.mean is None:
            raise ValueError(
                f"BatchNorm expects more than one number in each channel of a batch, but the input's shape is {tuple(x.shape)}:"
                " give it larger batches, or statistics with calibrate(model, batches)"
            )
        if not count:  # the kernels take no empty batch
            nothing = x.new_zeros(x.shape[1])
            return x, (x, Statistics(nothing, nothing, count) if self.mean is None else None)
        try:
            y, mean, rstd = half.batch_norm(x, self.weight, self.bias, self.mean, self.var, self.eps)
        except RuntimeError as error:
            for parameter in tree.leaves(self):
                require_dtype("BatchNorm's parameters are", parameter, x, error)
            raise
        if self.mean is None and is_in_forward_mode():  # where torch takes the statistics to be constant
            mean, rstd = self._statistics(half.widened(x))
        return y, (x, Statistics(mean, rstd, count) if self.mean is None else None)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and rstd of each channel, by the formula."""
        space = (0, *range(2, x.ndim))
        return x.mean(space), (x.var(space, correction=0) + self.eps).rsqrt()

    @override
    def backward(self, residuals: tuple[Tensor, Statistics | None], grad: Tensor) -> tuple[Self, Tensor]:
        x, statistics = residuals
        require_sizes(grad, x.shape)
        require_channels("BatchNorm", self.weight, self.mean, x=x)
        if self.mask is not None:
            return self._backward_of_real(self.mask, x, statistics, grad)
        if statistics is not None and statistics.of_all is not None and self.over is not None:
            return self._backward_over(self.over, x, statistics, statistics.of_all, grad)
        if not x.numel():
            return tree.with_trainable_leaves(self, [torch.zeros_like(leaf) for leaf in tree.trainable_leaves(self)]), grad
        # The kernel for inputs without space reads what belongs to the channels as if it were contiguous.
        weight, mean, var = in_a_row(self.weight), in_a_row(self.mean), in_a_row(self.var)
        # With statistics, the kernel for CPUs does not look at those of the batch; vmap's rule and the one for GPUs do.
        batch_mean, rstd = (mean, _rstd(var, self.eps)) if statistics is None else (statistics.mean, statistics.rstd)
        from_batch = statistics is not None
        grads = half.batch_norm_backward(self.bias, grad, x, weight, mean, var, batch_mean, rstd, from_batch, self.eps)
        return self.gradient(*grads[1:]), grads[0]

    def _forward_of_real(self, mask: Tensor, x: Tensor) -> tuple[Tensor, tuple[Tensor, Statistics | None]]:
        """The same of what a mask calls real."""
        require_dtype("BatchNorm's parameters are", self.weight if self.weight is not None else self.bias, x)
        wide, real = self._apart(mask, x)
        statistics: Statistics | None = None
        if self.mean is None or self.var is None:
            if self.over is not None and self.over.size > 1:
                raise ValueError("BatchNorm with a mask and without statistics sees the batch of one process, not of a group")
            mean, var, count = _real.moments(wide, real, _BUT_CHANNELS)
            rstd = (var + self.eps).rsqrt()
            statistics = Statistics(mean.flatten(), rstd.flatten(), x.numel() // max(x.shape[1], 1), count.amax())
        else:
            mean, rstd = (
                half.widened(self.mean).view(1, -1, 1, 1),
                (half.widened(self.var) + self.eps).rsqrt().view(1, -1, 1, 1),
            )
        y = _real.scaled(wide, real, mean, rstd, (self.weight, self.bias)).reshape(x.shape)
        return half.narrowed(y, x), (x, statistics)

    def _backward_of_real(self, mask: Tensor, x: Tensor, statistics: Statistics | None, grad: Tensor) -> tuple[Self, Tensor]:
        wide, real = self._apart(mask, x)
        grad = _real.in_groups(half.widened(grad), x.shape[1])
        if statistics is not None:
            mean, rstd = statistics.mean.view(1, -1, 1, 1), statistics.rstd.view(1, -1, 1, 1)
            found = _real.gradients(grad, wide, real, mean, rstd, self.weight, _BUT_CHANNELS)
        else:
            assert self.mean is not None
            assert self.var is not None
            mean, rstd = (
                half.widened(self.mean).view(1, -1, 1, 1),
                (half.widened(self.var) + self.eps).rsqrt().view(1, -1, 1, 1),
            )
            grad = torch.where(real, grad, 0)
            normal = torch.where(real, (wide - mean) * rstd, 0)
            g = grad if self.weight is None else grad * half.widened(self.weight).view(1, -1, 1, 1)
            found = g * rstd, (grad * normal).sum(_BUT_CHANNELS), grad.sum(_BUT_CHANNELS)
        grad_x, *grads = half.rounded((found[0].reshape(x.shape), *found[1:]), x, self.weight, self.bias)
        return self.gradient(*grads), grad_x

    @staticmethod
    def _apart(mask: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input as (B, C, 1, S), and where it is real."""
        return _real.in_groups(half.widened(x), x.shape[1]), _real.in_groups(_real.real_in(mask, x, "BatchNorm"), 1)

    def _forward_over(self, group: Group, x: Tensor) -> tuple[Tensor, tuple[Tensor, Statistics | None]]:
        mean, var, total = _batch_over.moments(group, x)
        y = half.batch_norm(x, self.weight, self.bias, mean, var, self.eps)[0] if x.numel() else x
        return y, (x, Statistics(mean, (var + self.eps).rsqrt(), x.numel() // max(x.shape[1], 1), total))

    def _backward_over(self, group: Group, x: Tensor, batch: Statistics, total: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        shape = (1, -1, *[1] * (x.ndim - 2))
        normal = (half.widened(x) - batch.mean.view(shape)) * batch.rstd.view(shape)
        factor = batch.rstd if self.weight is None else batch.rstd * half.widened(self.weight)
        found = _batch_over.gradients(group, half.widened(grad), normal, factor, total)
        grad_x, *grads = half.rounded(found, x, self.weight, self.bias)
        return self.gradient(*grads), grad_x

    @override
    def output_shape(self, shape: Shape[Batch, Channels, *Rest]) -> Shape[Batch, Channels, *Rest]:
        batch, channels, *space = shape.leading(2)
        for parameter in (self.weight, self.bias, self.mean, self.var):
            if parameter is not None:
                expect("channels", channels, parameter.shape[-1])
        return Shape(batch, channels, *space)


@with_suggestions
def batch_norm(
    channels: Count,
    *,
    bias: bool = True,
    eps: float = 1e-5,
    weight_init: Initializer = ones(),
    bias_init: Initializer = zeros(),
    dtype: torch.dtype = torch.float32,
) -> BatchNorm[Count]:
    """A `BatchNorm` with a weight, without values and statistics: give it some with `initialize`, and `calibrate`.

    One without parameters is made by its class: ``BatchNorm()``.

    Args:
        channels: the size of the input's axis 1.
        bias: whether to add a bias.
        dtype: the parameters' dtype.

    All other options are fields of `BatchNorm`.

    Raises:
        ValueError: there is no channel, or eps is negative.

    >>> from fundl import batch_norm
    >>> batch_norm(32)
    BatchNorm(weight=float32[32], bias=float32[32])
    """
    require_at_least_one(channels=channels)
    weight, shift = scale_and_shift(channels, bias=bias, dtype=dtype)
    return BatchNorm(weight, shift, eps=eps, weight_init=weight_init, bias_init=bias_init)


def is_batch_norm(cls: type[Record]) -> bool:
    """Whether records of a class are BatchNorms."""
    return issubclass(cls, BatchNorm)


def _rstd(var: Tensor | None, eps: float) -> Tensor | None:
    return None if var is None else (half.widened(var) + eps).rsqrt()


def _known(mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The mean and rstd of statistics, for an input (B, C, 1, S)."""
    return half.widened(mean).view(1, -1, 1, 1), (half.widened(var) + eps).rsqrt().view(1, -1, 1, 1)
