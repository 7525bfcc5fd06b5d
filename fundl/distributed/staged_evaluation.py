"""What a model in stages is worth on data: batches go through the stages, one behind the other."""

from collections.abc import Iterable, Mapping
from typing import cast

import torch

from fundl._common.checks import loss_and_gradient, require_loss
from fundl._common.modes import no_grad
from fundl._common.running import Pass
from fundl._common.suggestions import with_suggestions
from fundl.collectives import spread
from fundl.distributed._links import Links
from fundl.distributed.pipeline import require_stages, running
from fundl.groups import Group, device_of, require_group
from fundl.layer import Loss, Model, Prediction, Target
from fundl.metrics import Metric, require_metrics
from fundl.runs import ONE
from fundl.training._means import Means
from fundl.training._over import has_rows
from fundl.training.history import Evaluation
from fundl.training.step import Report, X, pair
from fundl.tree import describe


@with_suggestions
def pipeline_evaluate(
    loss: Loss[Prediction, Target],
    model: Model,
    batches: Iterable[tuple[X, Target]],
    *,
    through: Group,
    metrics: Mapping[str, Metric[Prediction, Target]] | None = None,
    over: Group | None = None,
) -> Evaluation:
    """`evaluate` of a model that is in stages: nobody ever has all of it.

        fit(step, state, batches, epochs=3, evaluate=lambda model: pipeline_evaluate(loss, model, test, through=pipeline))

    All processes of the pipeline call it, with the same batches. The first uses x, the last the target; while one stage works
    on a batch, the one before it works on the next. All get the result.

    Args:
        loss: as `evaluate` takes it.
        model: as `stages` made it, with values.
        batches: pairs (x, target), as many in each process.
        through: the processes of the pipeline, that of `stages`.
        metrics: as `evaluate` takes them.
        over: a group of processes that have the same stage, and other rows of each batch.

    Raises:
        TypeError: something is not what it is to be.
        ValueError: there are no batches, or the model is in stages of another group.

    >>> import torch
    >>> from fundl import initialize, key, linear, mse
    >>> from fundl.distributed import pipeline_evaluate, stages, start
    >>> group, device = start()
    >>> model = initialize(key(0), stages(group, (linear(2, 3), linear(3, 1))))
    >>> data = torch.zeros(4, 2), torch.full((4, 1), 2.0)
    >>> round(pipeline_evaluate(mse, model, [data], through=group).loss, 4)
    2.0608
    """
    require_loss(loss)
    require_group(through)
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches are pairs (x, target), such as minibatches(None, (x, target), 1000), not {describe(batches)}")
    if over is not None:
        require_group(over)
    asked = require_metrics(metrics)
    require_stages(model, through)
    means = Means(loss, asked, ONE, over if over is not None and over.size > 1 else None)
    own, links = running(model), Links(model, through, ({}, {}))
    count = 0
    with no_grad():
        for batch in batches:
            count += 1
            x, target = pair(batch)
            output = Pass(own, links.input(x)).output
            if not links.is_last:
                links.give(x, output)
                continue
            prediction = cast("Prediction", output)  # only the model's run tells what it gives: the loss says what it is for
            if means.over is not None and not has_rows(prediction):
                continue
            value, _ = loss_and_gradient(loss, prediction, target)
            means.add(x, target, Report(value, prediction))
        links.finish()
        if not count and means.over is None:
            raise ValueError("there is nothing to evaluate on: no batches came")
        return _told_to_all(means.results()[0] if links.is_last else None, [*asked], through)


def _told_to_all(result: Evaluation | None, names: list[str], through: Group) -> Evaluation:
    """What the last stage has found."""
    numbers = [0.0] * (1 + len(names)) if result is None else [result.loss, *(result.metrics[name] for name in names)]
    told = torch.tensor(numbers, dtype=torch.float64, device=device_of(through))
    loss, *measured = spread([told], through, through.size - 1)[0].tolist()
    return Evaluation(loss, dict(zip(names, measured, strict=True)))
