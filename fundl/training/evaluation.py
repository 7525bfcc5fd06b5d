"""What a model is worth on data that comes in batches: the means of a loss and of metrics."""

from collections.abc import Iterable, Mapping
from typing import cast

from fundl import tree
from fundl._common.checks import loss_and_gradient, require_loss
from fundl._common.modes import no_grad
from fundl._common.running import Pass
from fundl._common.suggestions import with_suggestions
from fundl.groups import Group, require_group
from fundl.layer import Loss, Model, Prediction, Target
from fundl.layers.batch_norm import BatchNorm
from fundl.metrics.metric import Metric, require_metrics
from fundl.runs import ONE
from fundl.training._means import Means
from fundl.training._over import has_rows
from fundl.training.history import Evaluation
from fundl.training.step import Report, X, pair
from fundl.tree import describe


@with_suggestions
def evaluate(
    loss: Loss[Prediction, Target],
    model: Model,
    batches: Iterable[tuple[X, Target]],
    *,
    metrics: Mapping[str, Metric[Prediction, Target]] | None = None,
    over: Group | None = None,
) -> Evaluation:
    """The loss and some metrics of a model on data that comes in batches.

    All are means over the batches, each weighted by what it divided by itself (see `weight_of`). So of a loss or metric that
    is a mean, over examples, elements, tokens that count or weights, it is the mean over all data, however that is cut into
    batches. What is no mean is that of all data, too, where it is known how it is found, as of `f1`, `auroc` and `r2`, and of
    what `metric_of_sums` and `metric_of_rows` make. Of any other that is no mean it is the mean of what it is for each batch,
    weighted by the rows of the batches.

    Args:
        loss: as `train_step` takes it.
        model: a layer or a nested tuple of layers.
        batches: pairs (x, target): ``[(x, target)]`` for a whole data set at once, ``minibatches(None, (x, target), 1000)``
            for one that is too large for that, or a DataLoader. x and target are what the model and the loss take: tensors, or
            any trees of them. They need not be of one length in all batches.
        metrics: by names of your own: ``{"accuracy": accuracy}``. Each goes from a prediction and its target to one number, a
            tensor without axes.
        over: a group of processes, each of which has some of the data, such as ``minibatches(..., part=group)`` gives it. Each
            gets what the data of all amount to.

    Raises:
        TypeError: what `batches` gives are not pairs, or a metric gives no single number.
        ValueError: there are no batches, no example counts, or a metric is called "loss"; or the model has a `BatchNorm`
            without statistics, and the data are those of many processes.

    >>> import torch
    >>> from fundl import Linear, evaluate, minibatches, mse
    >>> layer, data = Linear(torch.ones(1, 2), bias=None), (torch.ones(5, 2), torch.zeros(5, 1))
    >>> evaluate(mse, layer, [data]) == evaluate(mse, layer, minibatches(None, data, 2)) == Evaluation(loss=4.0)
    True
    """
    require_loss(loss)
    if not isinstance(batches, Iterable):
        raise TypeError(
            "batches are pairs (x, target), such as minibatches(None, (x, target), 1000) or [(x, target)], not"
            f" {describe(batches)}"
        )
    if over is not None:
        require_group(over)
    means = Means(loss, require_metrics(metrics), ONE, over if over is not None and over.size > 1 else None)
    if means.over is not None and any(isinstance(record, BatchNorm) and record.mean is None for record in tree.records(model)):
        raise ValueError(
            "a BatchNorm without statistics would normalise with those of the rows that each process has: train with"
            " train_step(..., track=0.1), or give it some by calibrate or with_statistics, before evaluate(..., over=group)"
        )
    came = False
    for batch in batches:
        came = True
        x, target = pair(batch)
        with no_grad():
            output = Pass(model, x).output
            prediction = cast("Prediction", output)  # only the model's run tells what it gives: the loss says what it is for
            if means.over is not None and not has_rows(prediction):
                continue
            value, _ = loss_and_gradient(loss, prediction, target)
            means.add(x, target, Report(value, prediction))
    if not came and means.over is None:
        raise ValueError("there is nothing to evaluate on: no batches came")
    return means.results()[0]
