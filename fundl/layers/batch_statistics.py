"""The statistics of batch normalisation that a model takes from training into use.

A `BatchNorm` without statistics normalises with those of its batch, as in training; one with statistics uses them. No layer
updates itself: `calibrate` finds the statistics of a trained model by a pass over data, `track` is the running average of those
of the batches of training, and `without_statistics` is the model as it is trained.
"""

from collections.abc import Iterable

import attrs
import torch
from torch import Tensor

from fundl import tree
from fundl._common.checks import as_model
from fundl._common.modes import no_grad
from fundl._common.numbers import number
from fundl._common.suggestions import with_suggestions
from fundl.groups import Group
from fundl.layer import Model, P
from fundl.layers._totals import Total
from fundl.layers.batch_norm import BatchNorm, Statistics
from fundl.model import forward
from fundl.tree import Record

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
    (BatchNorm(),)
    """
    return _with_statistics(model, [(None, None)] * len(_layers(model)))


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


def _first_statistics(layer: BatchNorm, device: torch.device | None) -> tuple[Tensor | None, Tensor | None]:
    like = next(iter(_of_channels(layer)), None)
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
    share = momentum if batch.of_all is None else momentum * (batch.of_all > 1).to(mean.dtype)  # of one number, there is no var
    return torch.lerp(mean, batch.mean, share).to(dtype), torch.lerp(var, batch_var, share).to(dtype)


def _dtype(layer: BatchNorm, batch: Statistics) -> torch.dtype:
    """That of the statistics that a layer has; of new ones the layer's, but float32 for half precision.

    The kernels take no other. In 16 bits, a mean that moves by little stands still, and a var above 65,504 is infinite.
    """
    if layer.mean is not None:
        return layer.mean.dtype
    return next((torch.promote_types(leaf.dtype, torch.float32) for leaf in _of_channels(layer)), batch.mean.dtype)


def _of_channels(layer: BatchNorm) -> list[Tensor]:
    """Its tensors that have a number for each channel."""
    return [tensor for tensor in (layer.weight, layer.bias, layer.mean, layer.var) if tensor is not None]


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
    count = batch.count if batch.of_all is None else int(batch.of_all)
    return Total(count, batch.mean.double(), _var(layer, batch).double(), _dtype(layer, batch))


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
        for parameter in _of_channels(layer):
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
