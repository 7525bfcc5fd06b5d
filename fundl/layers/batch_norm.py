"""Batch normalisation, and the statistics that a model takes from training into use.

A `BatchNorm` without statistics normalises with those of its batch, as in training; one with statistics uses them. No layer
updates itself: `calibrate` finds the statistics of a trained model by a pass over data, `track` is the running average of those
of the batches of training, and `without_statistics` is the model as it is trained.
"""

from collections.abc import Iterable
from typing import Generic, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common import half
from fundl._common.checks import as_model
from fundl._common.modes import is_in_forward_mode, no_grad
from fundl._common.numbers import number
from fundl._common.suggestions import with_suggestions
from fundl.groups import Group, require_group
from fundl.initializers import Initializer, ones, zeros
from fundl.layer import Layer, Model, P
from fundl.layers import _batch_over
from fundl.layers._layout import in_a_row, require_sizes
from fundl.layers._normalizing import Channels, Count, require_channels, require_eps, scale_and_shift
from fundl.layers._refusals import require_at_least_one, require_dtype
from fundl.layers._totals import Total
from fundl.model import forward
from fundl.shapes import Batch, Rest, Shape, expect
from fundl.tree import STATISTIC, Record


@final
@attrs.frozen(eq=False)
class Statistics(Record):
    """The statistics of a batch with which a `BatchNorm` normalised it; a part of what it keeps for backward.

    Args:
        mean: of each channel.
        rstd: 1 / sqrt(var + eps) of each channel, var divided by the count.
        count: of the numbers in each channel.
        of_all: likewise in the batch of all processes, an integer without axes; None where one has all of it.
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
        for parameter in tree.leaves(self):
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
    BatchNorm(weight=float32[32], bias=float32[32], mean=None, var=None)
    """
    require_at_least_one(channels=channels)
    weight, shift = scale_and_shift(channels, bias=bias, dtype=dtype)
    return BatchNorm(weight, shift, eps=eps, weight_init=weight_init, bias_init=bias_init)


# --- Statistics --------------------------------------------------------------------------------------------------------

# Statistics find their layer by their order: that of the layers in the model is that of the records in the residuals, since
# layers made of layers keep residuals in the order of their parts.


def without_statistics(model: P) -> P:
    """The model whose BatchNorms normalise with the statistics of their batch, as in training.

    Those inside `frozen` layers are not trained, and keep theirs; `track` and `calibrate`, too, leave them alone.

    Args:
        model: a layer or a nested tuple of layers.

    Returns:
        A new model; the model itself if none of its layers has statistics.

    >>> from fundl import BatchNorm, without_statistics
    >>> without_statistics((BatchNorm(mean=torch.zeros(2), var=torch.ones(2)),))
    (BatchNorm(weight=None, bias=None, mean=None, var=None),)
    """
    return _with_statistics(model, [(None, None)] * len(_layers(model)))


def is_batch_norm(cls: type[Record]) -> bool:
    """Whether records of a class are BatchNorms."""
    return issubclass(cls, BatchNorm)


def normalized_over(model: P, group: Group) -> P:
    """The model whose BatchNorms, where they have no statistics, normalise with those of the batches of all processes."""

    def over(record: Record) -> Record:
        return attrs.evolve(record, over=group) if isinstance(record, BatchNorm) and record.mean is None else record

    return tree.map_records(over, model)


def _by_batch(model: Model) -> list[BatchNorm | None]:
    """For each record of a model: itself, if it is a BatchNorm that normalises with statistics of the batch in training."""
    return [
        record if isinstance(record, BatchNorm) and not (is_frozen and record.mean is not None) else None
        for record, is_frozen in tree.records_and_buffers(model)
    ]


def _layers(model: Model) -> list[BatchNorm]:
    return [layer for layer in _by_batch(as_model(model)) if layer is not None]


def track(model: P, residuals: object, *, momentum: float = 0.1) -> P:
    """The model with statistics that follow those of the batches: new = (1 - momentum) old + momentum batch's.

    The batch's var is divided by one less than the number of its elements, as an estimate of the population's. Where there are
    no statistics yet, mean starts from 0 and var from 1, in float32 at least. ``train_step(..., track=0.1)`` does this in each
    step. Whoever writes a step runs the model without statistics, and tracks in the model that it keeps:

        training = without_statistics(model)
        prediction, residuals = forward(training, x)
        ...
        model = track(apply_updates(model, updates), residuals)

    Args:
        model: whose statistics follow.
        residuals: what `forward` returned of the model without statistics.
        momentum: the weight of the batch, between 0 and 1; 0.1 by default.

    Returns:
        A new model; the model itself if it has no BatchNorm.

    Raises:
        ValueError: momentum is not between 0 and 1, or the residuals are not those of the model without statistics.

    >>> from fundl import BatchNorm, forward, track
    >>> _, residuals = forward(BatchNorm(), torch.tensor([[1.0], [3.0]]))
    >>> tracked = track(BatchNorm(), residuals, momentum=0.5)
    >>> tracked.mean, tracked.var
    (tensor([1.]), tensor([1.5000]))
    """
    require_momentum("momentum", momentum)
    with no_grad():
        return _with_statistics(model, [_followed(*pair, momentum) for pair in _paired(model, residuals)])


def require_momentum(name: str, value: float) -> None:
    """Refuse all but numbers between 0 and 1."""
    if not 0 <= number(name, value) <= 1:
        raise ValueError(f"{name} is the weight of the batch, between 0 and 1, not {value}")


def with_statistics(model: P) -> P:
    """The model whose BatchNorms have statistics, those to begin with where there were none: a mean of 0 and a var of 1.

    `track` makes the same ones when it first finds none. Made before, they let a run with ``train_step(..., track=0.1)`` be
    compiled from its first step on, as its state then keeps its structure. A BatchNorm without parameters, whose channels
    nobody knows, stays as it is.

    Args:
        model: a layer or a nested tuple of layers, with values.

    >>> from fundl import batch_norm, initialize, key, with_statistics
    >>> with_statistics(initialize(key(0), batch_norm(2))).var
    tensor([1., 1.])
    """
    with no_grad():
        device = next((leaf.device for leaf in tree.leaves(model)), None)  # of layers in parts, shapes alone are shown
        return _with_statistics(model, [_first_statistics(layer, device) for layer in _layers(model)])


def _rstd(var: Tensor | None, eps: float) -> Tensor | None:
    return None if var is None else (half.widened(var) + eps).rsqrt()


def _first_statistics(layer: BatchNorm, device: torch.device | None) -> tuple[Tensor | None, Tensor | None]:
    like = next(iter(tree.leaves(layer)), None)
    if layer.mean is not None or like is None:
        return layer.mean, layer.var
    dtype, place = torch.promote_types(like.dtype, torch.float32), device if like.is_meta else like.device
    return torch.zeros_like(like, dtype=dtype, device=place), torch.ones_like(like, dtype=dtype, device=place)


def statistics_of(residuals: object) -> tuple[Statistics, ...]:
    """The statistics of the batch, of each BatchNorm that kept some: what `track` needs of the residuals."""
    return tuple([record for record in tree.records(residuals) if isinstance(record, Statistics)])


def _followed(layer: BatchNorm, batch: Statistics, momentum: float) -> tuple[Tensor | None, Tensor | None]:
    if batch.count < 2 and batch.of_all is None:
        return layer.mean, layer.var
    count = batch.count if batch.of_all is None else batch.of_all.to(batch.mean.dtype).clamp(min=2)
    batch_var = _var(layer, batch) * (count / (count - 1))
    mean = torch.zeros_like(batch.mean) if layer.mean is None else layer.mean.to(batch.mean.dtype)
    var = torch.ones_like(batch.mean) if layer.var is None else layer.var.to(batch.mean.dtype)
    dtype = _dtype(layer, batch)
    return torch.lerp(mean, batch.mean, momentum).to(dtype), torch.lerp(var, batch_var, momentum).to(dtype)


def _dtype(layer: BatchNorm, batch: Statistics) -> torch.dtype:
    """That of the statistics that a layer has; of new ones the layer's, but float32 for half precision.

    The kernels take no other. In 16 bits, a mean that moves by little stands still, and a var above 65,504 is infinite.
    """
    if layer.mean is not None:
        return layer.mean.dtype
    return next((torch.promote_types(leaf.dtype, torch.float32) for leaf in tree.leaves(layer)), batch.mean.dtype)


def _var(layer: BatchNorm, batch: Statistics) -> Tensor:
    """The variance of the batch: as exact as it is used, that is up to a rounding of var + eps."""
    return (batch.rstd.pow(-2) - layer.eps).clamp(min=0)


@with_suggestions
def calibrate(model: P, batches: Iterable[Tensor]) -> P:
    """The model with the statistics of data: of what its BatchNorms see, when the data run through the model in these batches.

    Each BatchNorm gets the mean and variance of all that it was given, as if it had been one batch. Meanwhile all layers
    normalise with the statistics of the batches, as in training: so one pass, which may be over a generator, serves a model of
    any depth, and what a layer is given is what the layers before it gave in training. Batches should be of the size that the
    model was trained with, and shuffled. Statistics that the model has do not matter. Those of half precision are in float32.

    Args:
        model: a layer or a nested tuple of layers.
        batches: inputs of the model: ``[x]`` for all data at once, ``minibatches(key, x, 128)`` for data in batches.

    Returns:
        A new model; the model itself if it has no BatchNorm.

    Raises:
        ValueError: there are no batches, or they are empty.

    Source:
        Wu and Johnson, Rethinking "batch" in batch normalization, 2021 (there: precise BatchNorm).

    >>> from fundl import BatchNorm, apply, calibrate
    >>> model = calibrate(BatchNorm(), [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [6.0]])])
    >>> model.mean, model.var
    (tensor([3.]), tensor([3.5000]))
    """
    if not _layers(model):
        return model
    training = without_statistics(model)
    totals: list[Total] = []
    for batch in batches:
        _, residuals = forward(training, batch)
        with no_grad():
            seen = [_total(*pair) for pair in _paired(training, residuals)]
            totals = list(map(Total.joined, totals, seen)) if totals else seen
    if not totals or not all(total.count for total in totals):
        raise ValueError("there is nothing to calibrate on: no batches came, or only empty ones")
    return _with_statistics(model, [(total.mean.to(total.dtype), total.var.to(total.dtype)) for total in totals])


def _total(layer: BatchNorm, batch: Statistics) -> Total:
    return Total(batch.count, batch.mean.double(), _var(layer, batch).double(), _dtype(layer, batch))


def _paired(model: Model, residuals: object) -> list[tuple[BatchNorm, Statistics]]:
    """Each BatchNorm of a model with the statistics of the batch that it normalised."""
    layers = _layers(model)
    found = statistics_of(residuals)
    if len(found) != len(layers):
        raise ValueError(
            f"the model has {len(layers)} BatchNorm layers, but the residuals hold the statistics of {len(found)}: residuals"
            " are what forward(without_statistics(model), x) returns, of the same model"
        )
    for layer, batch in zip(layers, found, strict=True):
        for parameter in tree.leaves(layer):
            if parameter.shape != batch.mean.shape:
                raise ValueError(
                    f"{layer!r} has {parameter.shape[-1]} channels, but the residuals hold, in its place, the statistics of"
                    f" {batch.mean.shape[-1]}: residuals are those of the same model, and layers made of layers keep theirs in"
                    " the order of the layers"
                )
    return [*zip(layers, found, strict=True)]


def _with_statistics(model: P, statistics: Iterable[tuple[Tensor | None, Tensor | None]]) -> P:
    remaining, turns = iter(statistics), iter(_by_batch(model))

    def with_next(record: Record) -> Record:
        if next(turns) is None or not isinstance(record, BatchNorm):
            return record
        mean, var = next(remaining)
        return record if mean is record.mean and var is record.var else attrs.evolve(record, mean=mean, var=var)

    return tree.map_records(with_next, model)
