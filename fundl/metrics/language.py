"""Metrics of language models."""

import torch
from torch import Tensor

from fundl._common.suggestions import with_explanations
from fundl.layers.deferred import DeferredLogits
from fundl.losses.chunked import chunked_cross_entropy, samples_of_deferred
from fundl.losses.classification import cross_entropy, samples
from fundl.metrics.metric import Gathering, gathered_as
from fundl.weights import weighed_by


def _predicted(
    prediction: Tensor | DeferredLogits, target: Tensor, *, ignore_index: int = -100, axis: int = 1
) -> int | float | Tensor:
    """How many positions `perplexity` averages over."""
    if isinstance(prediction, DeferredLogits):
        return samples_of_deferred(prediction, target, ignore_index=ignore_index)
    return samples(prediction, target, ignore_index=ignore_index, axis=axis)


def _surprise(prediction: Tensor | DeferredLogits, target: Tensor, *, ignore_index: int = -100, axis: int = 1) -> Tensor:
    """The sum of the cross-entropies, and of how many positions."""
    if isinstance(prediction, DeferredLogits):
        total, _ = chunked_cross_entropy(prediction, target, ignore_index=ignore_index, reduction="sum")
    else:
        total, _ = cross_entropy(prediction, target, ignore_index=ignore_index, axis=axis, reduction="sum")
    return torch.stack((total, (target != ignore_index).sum().to(total.dtype)))


def _perplexity(sums: Tensor, *, ignore_index: int = -100, axis: int = 1) -> Tensor:  # noqa: ARG001  # the sums know them
    return (sums[0] / sums[1]).exp()


@gathered_as(Gathering(_surprise, _perplexity, in_rows=False))
@weighed_by(_predicted)
@with_explanations
def perplexity(prediction: Tensor | DeferredLogits, target: Tensor, *, ignore_index: int = -100, axis: int = 1) -> Tensor:
    """Among how many classes, all as likely, it would be as hard to choose: e to the power of the mean cross-entropy.

    In `evaluate` and `fit` it is that of all data, ``math.exp(evaluate(cross_entropy, model, batches).loss)``: the mean of the
    perplexities of batches would be larger, the more they differ.

    Args:
        prediction: logits; or `DeferredLogits`, whose classes are last.
        target: class indices.
        ignore_index: a class index that marks positions to leave out.
        axis: that of the classes in the logits: -1 for sequences (B, T, C).

    Shape:
        (B, C, ...) and (B, ...) to (); C where `axis` says

    Raises: as `cross_entropy`.

    >>> from fundl import perplexity
    >>> perplexity(torch.zeros(2, 8), torch.tensor([3, 5]))
    tensor(8.)
    """
    if isinstance(prediction, DeferredLogits):
        return chunked_cross_entropy(prediction, target, ignore_index=ignore_index)[0].exp()
    return cross_entropy(prediction, target, ignore_index=ignore_index, axis=axis)[0].exp()
