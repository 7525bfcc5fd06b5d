"""The training of all runs at once."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import attrs
from torch import Tensor

from fundl._common.suggestions import with_suggestions
from fundl.ensemble._optimizers import of_runs
from fundl.ensemble.models import Ensemble, require_keys
from fundl.layer import Loss, P, Prediction, Target
from fundl.metrics.metric import Metric, require_metrics
from fundl.optim.transform import Transform
from fundl.runs import MANY
from fundl.training._means import for_any_use
from fundl.training._run import Run
from fundl.training.batches import Batches
from fundl.training.checkpoints import Checkpoints
from fundl.training.epochs import reached
from fundl.training.history import Epoch, Evaluation
from fundl.training.step import Report, S, Step, TrainState, X, step_of
from fundl.training.step import train_state as train_state_of_one
from fundl.tree import describe

if TYPE_CHECKING:
    from rich.console import Console


@with_suggestions
def train_state(keys: Tensor, models: Ensemble[P], optimizer: Transform[S]) -> TrainState[Ensemble[P], S]:
    """The state that the training of an ensemble starts from.

    Args:
        keys: one for each run: where all its randomness comes from, as in `train_state`.
        models: with values, as `ensemble.initialize` gives them.
        optimizer: makes its own first state.

    Shape:
        keys (R, 2)

    Raises:
        TypeError: `keys` are not keys, or `models` is not an ensemble.
        ValueError: there are not as many keys as models, or these have no values yet.

    >>> from fundl import ensemble, key, linear, sgd, split
    >>> models = ensemble.initialize(split(key(0), 3), linear(2, 1))
    >>> ensemble.train_state(split(key(1), 3), models, sgd(0.1)).key.shape
    torch.Size([3, 2])
    """
    if not isinstance(models, Ensemble):
        raise TypeError(f"an ensemble is what ensemble.initialize or ensemble.stack makes, not {describe(models)}")
    if require_keys(keys) != models.runs:
        raise ValueError(f"each run needs a key of its own, but the ensemble has {models.runs} runs, and keys are {len(keys)}")
    state = train_state_of_one(keys[0], models, of_runs(optimizer))
    return attrs.evolve(state, key=keys.to(state.key.device))


@with_suggestions  # what it returns is a Step, written out: see train_step of one run
def train_step(
    loss: Loss[Prediction, Target], optimizer: Transform[S], *, donate: bool = False, track: float | None = None
) -> Callable[[TrainState[Ensemble[P], S], tuple[X, Target]], tuple[TrainState[Ensemble[P], S], Report[Prediction]]]:
    """The step of all runs at once: of each what `train_step` does.

        state, report = step(state, (x, target))

    Args:
        loss: of one run; see `each` for what it may do.
        optimizer: that made the state. One that looks at more than each number by itself (`clip_by_global_norm`, a weight
            decay with a predicate, one of your own) takes the runs one after the other, and R times as long.
        donate, track: as `train_step` of one run takes them.

    Shape:
        x (R, B, ...), target (R, B, ...), `Report.loss` (R,), `Report.prediction` (R, B, ...)

    >>> import torch
    >>> from fundl import ensemble, key, linear, mse, sgd, split
    >>> optimizer = sgd(0.1)
    >>> state = ensemble.train_state(split(key(1), 3), ensemble.initialize(split(key(0), 3), linear(2, 1)), optimizer)
    >>> state, report = ensemble.train_step(mse, optimizer)(state, (torch.ones(3, 4, 2), torch.zeros(3, 4, 1)))
    >>> report
    Report(loss=float32[3], prediction=float32[3, 4, 1])
    """
    return step_of(MANY, loss, of_runs(optimizer), donate=donate, track=track)


@with_suggestions
def fit(
    step: Step[Ensemble[P], S, X, Target, Prediction],
    state: TrainState[Ensemble[P], S],
    batches: Batches[X, Target],
    *,
    epochs: int,
    every: int | None = None,
    metrics: Mapping[str, Metric[Prediction, Target]] | None = None,
    evaluate: Callable[[P], Evaluation] | None = None,
    evaluated: Callable[[TrainState[Ensemble[P], S]], Ensemble[P]] | None = None,
    evaluate_every: int = 1,
    checkpoints: Checkpoints | None = None,
    donate: bool = False,
    progress: "bool | Console" = True,
) -> tuple[TrainState[Ensemble[P], S], tuple[tuple[Epoch, ...], ...]]:
    """The training of an ensemble: of each run what `fit` does.

    Args:
        step: makes the next state, as that of `ensemble.train_step` does.
        state: to begin with; it stays as it is, unless it is donated.
        batches: of an epoch, for all runs: as `fit` takes them, but that a function has the epoch's keys, one for each run:
            ``lambda keys: ensemble.minibatches(keys, data, 10)``.
        epochs, every, evaluated, evaluate_every, checkpoints, donate: see `fit`.
        metrics: of one run, by their names, to be measured on the training batches as well.
        evaluate: measures one model, on other data; it is called for each.
        progress: as `fit` takes it; shown are the means over the runs.

    Returns:
        The state after the last step, and for each run its history, as `fit` gives it (`Epoch.seconds` is that of all runs
        together).

    Raises:
        Exception: what `fit` raises, which says of which run a loss or a parameter is no longer finite. The history that
            `Interrupted` and `last_good` have is that of the means over the runs.

    >>> from fundl import disk, ensemble, key, linear, mse, one_hot, sgd, split
    >>> points, labels = disk(key(0), 100)
    >>> data, optimizer = ensemble.share((points, one_hot(labels, 2)), 3), sgd(0.1)
    >>> state = ensemble.train_state(split(key(2), 3), ensemble.initialize(split(key(1), 3), linear(2, 2)), optimizer)
    >>> step = ensemble.train_step(mse, optimizer)
    >>> state, histories = ensemble.fit(
    ...     step, state, lambda keys: ensemble.minibatches(keys, data, 10), epochs=5, progress=False
    ... )
    >>> [history[-1].step for history in histories]
    [50, 50, 50]
    """
    run = Run(MANY, step, state, batches, require_metrics(metrics), donate=donate, every=every)
    of_one = None if evaluate is None else lambda ensemble: evaluate(ensemble.models)
    for _ in reached(
        run,
        epochs,
        evaluate=of_one,
        evaluated=evaluated,
        evaluate_every=evaluate_every,
        checkpoints=checkpoints,
        progress=progress,
    ):
        pass
    return for_any_use(run.good), tuple(zip(*run.history, strict=True)) or ((),) * len(run.good.key)
