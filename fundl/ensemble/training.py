"""The training of all runs at once."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

import attrs
from torch import Tensor

from fundl import random, tree
from fundl._common.modes import no_grad
from fundl._common.step_runner import StepRunner
from fundl.layer import Model
from fundl.layers.dropout import rekey
from fundl.model import Loss, Pass
from fundl.optim.transform import Transform
from fundl.training import step as of_one_run
from fundl.training.evaluation import Evaluation, Metric, for_any_use
from fundl.training.run import EPOCHS, Batches, Epoch, Run
from fundl.training.step import Report, Step, TrainState, draws, pair
from fundl.tree import describe
from fundl.weights import by_rows, rule_of, weighed_by

if TYPE_CHECKING:
    from rich.console import Console
from fundl.ensemble._optimizers import of_runs
from fundl.ensemble.models import Ensemble, require_keys, unstack
from fundl.runs import each

P = TypeVar("P", bound=Model)
S = TypeVar("S")
X = TypeVar("X")
Target = TypeVar("Target")
Prediction = TypeVar("Prediction")


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
    return attrs.evolve(of_one_run.train_state(keys[0], models, of_runs(optimizer)), key=keys)


def train_step(loss: Loss[Prediction, Target], optimizer: Transform[S]) -> Step[Ensemble[P], S, X, Target, Prediction]:
    """The step of all runs at once: of each what `train_step` does.

        state, report = step(state, (x, target))

    Args:
        loss: of one run; see `each` for what it may do.
        optimizer: that made the state. One that looks at more than each number by itself (`clip_by_global_norm`, a weight
            decay with a predicate, one of your own) takes the runs one after the other, and R times as long.

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
    losses, rule, of_all = each(loss), rule_of(loss) or by_rows, of_runs(optimizer)
    gathers = of_all.weighed(1.0) is not of_all

    @weighed_by(rule)
    def step(
        state: TrainState[Ensemble[P], S], batch: tuple[X, Target]
    ) -> tuple[TrainState[Ensemble[P], S], Report[Prediction]]:
        x, target = pair(batch)
        model = _rekeyed(state) if draws(state.model) else state.model
        with no_grad():
            ran = Pass(model, x)
            prediction = cast("Prediction", ran.output)  # only running tells what they give: the loss says what it is for
            values = ran.differentiate(losses, prediction, target)
            if (scale := of_all.loss_scale(state.optimizer.inner)) is not None:
                ran.grad = _scaled(ran.grad, scale)
            grads = ran.backward_params()
            transform = of_all.weighed(each(rule)(prediction, target)) if gathers else of_all
            trained, memory = transform.step(grads, state.optimizer, state.model)
            return TrainState(trained, memory, state.key, state.step + 1), Report(values, prediction)

    return step


def _scaled(grad: Prediction, scales: Tensor) -> Prediction:
    """The gradients of scaled losses: each run has a scale of its own."""

    def scaled(leaf: Tensor) -> Tensor:
        return leaf * scales.reshape(-1, *[1] * (leaf.ndim - 1)) if leaf.is_floating_point() else leaf

    return tree.map(scaled, grad)


def _rekeyed(state: TrainState[Ensemble[P], S]) -> Ensemble[P]:
    """The models with the keys of the step, for each run its own."""
    step = state.step

    def of_one(models: P, key: Tensor) -> P:
        return rekey(models, random.fold_in(key, step))

    return Ensemble(each(of_one)(state.model.models, state.key))


def fit(
    step: Step[Ensemble[P], S, X, Target, Prediction],
    state: TrainState[Ensemble[P], S],
    batches: Batches[X, Target],
    *,
    epochs: int,
    metric: Metric[Prediction, Target] | None = None,
    evaluate: Callable[[P], Evaluation] | None = None,
    evaluate_every: int = 1,
    progress: "bool | Console" = True,
) -> tuple[TrainState[Ensemble[P], S], tuple[tuple[Epoch, ...], ...]]:
    """The training of an ensemble: of each run what `fit` does.

    Args:
        step: makes the next state, as that of `ensemble.train_step` does.
        state: to begin with; it stays as it is.
        batches: of an epoch, for all runs. A function of the epoch's keys, one for each run:
            ``lambda keys: ensemble.minibatches(keys, data, 10)``; or anything that gives pairs (x, target) each time it is
            gone through.
        epochs: how often to go through the batches.
        metric: of one run, to be measured on the training batches as well.
        evaluate: measures one model, on other data; it is called for each.
        evaluate_every: after how many epochs to do so. After the last it is done in any case.
        progress: whether to show a bar (on a terminal) or some lines (elsewhere) on standard error, of the means over the
            runs; or where to show them.

    Returns:
        The state after the last step, and for each run its history, as `fit` gives it (`Epoch.seconds` is that of all runs
        together).

    Raises:
        ValueError: `epochs` is negative, `evaluate_every` less than 1, or an epoch has no batches.
        TypeError: what `batches` gives are not pairs, the state is none, or the metric or `evaluate` returns something else.
        FloatingPointError: the loss, or a parameter, of a run is no longer finite.
        Interrupted: Ctrl-C was pressed. Its history, and that which `last_good` has of any error, is that of the means over
            the runs.

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
    run = Run(
        step,
        state,
        batches,
        _epoch_keys,
        metric,
        None if evaluate is None else lambda models: [evaluate(model) for model in unstack(models)],
        evaluate_every,
        lambda _steps, _shown: StepRunner(step),
        ensemble=True,
    )
    run.go(epochs, progress)
    return for_any_use(run.good), tuple(zip(*run.history, strict=True)) if run.history else ((),) * len(state.key)


def _epoch_keys(keys: Tensor, first_step: int) -> Tensor:
    """The keys of an epoch that begins with a step, as `fit` derives each from that of its run."""
    return each(lambda key: random.fold_in(key, EPOCHS + first_step))(keys)
