"""A step of training whose model is in stages: micro-batches of one batch go through them, one behind the other."""

import functools
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from fundl import random, tree
from fundl._common import half
from fundl._common.checks import require_loss
from fundl._common.modes import is_traced, no_grad
from fundl._common.running import (
    first_forward,
    named_as,
    run_backward,
    run_backward_params,
    run_input_half,
    run_params_half,
)
from fundl._compiling.function import jit
from fundl.collectives import reduced
from fundl.distributed._links import Links, Told
from fundl.distributed.schedules import Schedule, Task, one_forward_one_backward, simulate
from fundl.distributed.staging import Elsewhere, group_of_stages, layers_before, require_no_batch_statistics
from fundl.groups import Group, require_group
from fundl.layer import Loss, Model, P, Prediction, Target
from fundl.layers.dropout import is_stochastic, with_keys
from fundl.layers.structure import Identity
from fundl.optim.flat import Tensors, copies, times, times_over
from fundl.optim.loss_scale import scaled
from fundl.optim.transform import Transform, require_transform
from fundl.training._over import Shares, mark, mark_in_python, require_whole, scaled_by_share, shares_of
from fundl.training.step import (
    Report,
    TrainState,
    mark_donating,
    mark_finishing,
    ownership_of_states,
    pair,
    refined,
    require_state,
    updated,
    updated_over,
)
from fundl.weights import SUM, adds_up, count_along

S = TypeVar("S")
X = TypeVar("X")

StepThrough: TypeAlias = Callable[[TrainState[P, S], tuple[X, Target]], tuple[TrainState[P, S], Report[None]]]


def pipeline_step(
    loss: Loss[Prediction, Target],
    optimizer: Transform[S],
    *,
    through: Group,
    micro_batches: int,
    over: Group | None = None,
    schedule: Schedule = one_forward_one_backward,
    donate: bool = False,
    compile: bool = False,  # noqa: A002  # what it does; nobody compiles Python here
) -> StepThrough[P, S, X, Target]:
    """The step of a training run of a model that is in stages: `train_step`, of micro-batches that go through a pipeline.

        data, pipeline = grid(data=2, pipeline=4)
        model = initialize(key(0), stages(pipeline, compose(...)))
        step = pipeline_step(cross_entropy, optimizer, through=pipeline, micro_batches=16, over=data)
        state, report = step(train_state(key(1), model, optimizer), (x, target))

    Each process of a pipeline is given the same batch. The first uses x, the last the target; of x, the others look at shapes
    alone, so that theirs may be on the meta device. Micro-batch i of m has the rows i, i + m, i + 2m, ... The step is that of
    one process that has the whole batch: losses, gradients and random numbers do not depend on the numbers of stages and
    micro-batches, nor on the schedule. `Report.loss` is that of the whole, the same in all processes; there is no prediction.

    Args:
        loss: from a prediction and its target to the loss and its gradient.
        optimizer: that made the state.
        through: the processes of the pipeline, that of `stages`.
        micro_batches: in how many the batch is cut; a batch of fewer rows is cut in as many as it has rows.
        over: a group of processes that have the same stage, and other rows of each batch, as in `train_step`.
        schedule: in which order each stage works: `one_forward_one_backward`, `zero_bubble`, or a function of your own.
        donate: whether the state that a step is given is used up by it, as in `train_step`: then parameters and moments are
            written over, and not there twice. `fit` lets a step do so.
        compile: whether to compile what each stage computes: forward and backward, or forward and two halves of backward. The
            step itself runs in Python: `jit` does not take it, and `fit` takes it as it is. Stages compile one behind the
            other, as the first micro-batch comes to them, and once more for micro-batches of each other number of rows: with
            batches of m micro-batches of equal size there is one.

    Raises:
        TypeError: something is not what it is to be.
        ValueError: there is no micro-batch; or, when a step is made, the batch is empty, the stages would wait for each other
            for ever, the model is in stages of another group, or has a BatchNorm without statistics.

    >>> from fundl import initialize, key, linear, mse, sgd, train_state
    >>> from fundl.distributed import pipeline_step, stages, start
    >>> group, device = start()
    >>> model = initialize(key(0), stages(group, (linear(2, 3), linear(3, 1))))
    >>> step = pipeline_step(mse, sgd(0.1), through=group, micro_batches=2)
    >>> state, report = step(train_state(key(1), model, sgd(0.1)), (torch.ones(4, 2), torch.zeros(4, 1)))
    >>> state.step, report
    (tensor(1), Report(loss=float32[], prediction=None, weight=float64[]))
    """
    require_loss(loss)
    require_transform(optimizer)
    require_group(through)
    if type(micro_batches) is not int or micro_batches < 1:
        raise ValueError(f"pipeline_step(..., micro_batches=) is an int of 1 or more, not {micro_batches!r}")
    data = shares_of(over, loss)
    own = data if data is not None else Shares(Group("alone", 1, 0), loss)
    parts = _Parts(compiled=compile)
    told: Told = {}, {}
    owned = ownership_of_states()

    def differentiate(state: TrainState[P, S], batch: tuple[X, Target]) -> tuple[P, Transform[S], Report[None]]:
        """The gradients of a batch, the optimizer for it, and its report."""
        if is_traced():
            raise TypeError("the step of a pipeline runs in Python: pipeline_step(..., compile=True) compiles its stages")
        require_state(state)
        require_stages(state.model, through)
        x, target = pair(batch)
        rows = count_along(x, 0)
        if not rows and data is None:
            raise ValueError("there is nothing to average: the batch has no rows; leave it out")
        count = micro_batches if data is not None else min(micro_batches, rows)
        work = _Work(state, x, target, own, through, count, parts, told, optimizer.loss_scale(state.optimizer.inner))
        for task in _tasks(schedule, through.size, count)[through.rank]:
            work.do(task)
        grads, transform, report = _totals(work, data, optimizer)
        work.links.finish()
        return cast("P", grads), transform, report

    def step(state: TrainState[P, S], batch: tuple[X, Target]) -> tuple[TrainState[P, S], Report[None]]:
        with no_grad():
            grads, transform, report = differentiate(state, batch)
            return refined(updated(transform, grads, state)), report

    def donating(state: TrainState[P, S], batch: tuple[X, Target]) -> tuple[TrainState[P, S], Report[None]]:
        with no_grad():
            grads, transform, report = differentiate(state, batch)
            return refined(updated_over(transform, grads, state, owned)), report

    for made in (step, donating):
        made.__qualname__ = "pipeline_step.<locals>.step"  # messages name a step by it
        mark_donating(made, donating)
        mark(made, over)
        mark_finishing(made, optimizer)
        mark_in_python(made)
    return donating if donate else step


@functools.lru_cache(maxsize=64)
def _tasks(schedule: Schedule, size: int, count: int) -> tuple[tuple[Task, ...], ...]:
    """The tasks of each stage, once they are found to fit together."""
    return simulate(schedule, size, count).tasks


def require_stages(model: Model, through: Group) -> None:
    """Raise unless a model is in stages of a group."""
    found = group_of_stages(model)
    if (found is None and through.size > 1) or (found is not None and found != through):
        raise ValueError(
            f"the step goes through the {through.size} processes of {through.name!r}, but the model is"
            + (" whole" if found is None else f" in stages of {found.name!r}")
            + ": make it by stages(group, model), with the same group"
        )
    require_no_batch_statistics(model)


class _Parts:
    """What a stage computes: functions of trees, compiled or as they are."""

    def __init__(self, *, compiled: bool) -> None:
        self.forward = jit(first_forward) if compiled else first_forward
        self.backward = jit(run_backward) if compiled else run_backward
        self.backward_params = jit(run_backward_params) if compiled else run_backward_params
        self.input_half = jit(run_input_half) if compiled else run_input_half
        self.params_half = jit(run_params_half) if compiled else run_params_half
        self.first_input_half = jit(_first_input_half) if compiled else _first_input_half
        self.first_params_half = jit(_first_params_half) if compiled else _first_params_half


def _first_input_half(params: Model, residuals: object, grad: object) -> tuple[object, object]:
    return run_input_half(params, residuals, grad, needed=False)


def _first_params_half(params: Model, kept: object) -> Model:
    return run_params_half(params, kept, needed=False)


class _Work(Generic[P, S, Prediction, Target]):
    """What a stage has while it works on the micro-batches of one batch."""

    def __init__(  # noqa: PLR0917  # it is made in one place
        self,
        state: TrainState[P, S],
        x: object,
        target: Target,
        shares: Shares[Prediction, Target],
        through: Group,
        count: int,
        parts: _Parts,
        told: Told,
        scale: Tensor | None,
    ) -> None:
        self.state, self.x, self.target, self.shares, self.through, self.count = state, x, target, shares, through, count
        self.parts, self.scale = parts, scale
        self.model = running(state.model)
        self.links = Links(state.model, through, told)
        self.is_first, self.is_last = self.links.is_first, self.links.is_last
        self.kept: dict[int, tuple[Model, object]] = {}  # of each micro-batch on its way: the model, and what it keeps
        self.grads: dict[int, object] = {}  # of the last stage: those with respect to its output
        self.like: dict[int, object] = {}  # of the others: what it looks like
        self.total: Tensors | None = None
        self.value: Tensor | None = None
        self.weight: Tensor | None = None
        self.unit: Tensor | None = None

    def do(self, task: Task) -> None:
        """One task of the schedule."""
        do = {"forward": self.forward, "backward": self.backward, "input": self.input_half, "params": self.params_half}
        do[task.what](task.micro_batch)

    # --- Forward ---

    def forward(self, place: int) -> None:
        own = self._rows(self.x, place)
        model = self._keyed(place, own)
        y, residuals = self.parts.forward(model, self.links.input(own))
        self.kept[place] = model, residuals
        if self.is_last:
            self._judge(place, cast("Prediction", y))
            return
        self.like[place] = tree.map(lambda leaf: torch.empty(leaf.shape, dtype=leaf.dtype, device="meta"), y)
        self.links.give(own, y)

    def _judge(self, place: int, prediction: Prediction) -> None:
        """The loss of a micro-batch; its gradient is that of a sum, in units of the first one's weight."""
        value, grad, weight = self.shares.own(prediction, self._rows(self.target, place))
        if adds_up(self.shares.loss):
            weight, counted, share = torch.ones_like(value), value, None
        else:
            counted = torch.where(weight == 0, 0.0, value * weight)
            if self.unit is None:
                unit = torch.exp2(torch.ceil(torch.log2(weight.clamp(min=1.0) * self.count)))  # which rounds nothing
                (self.unit,) = reduced([unit], self.shares.group, "max")  # one for all whose gradients are added up on the way
            share = weight / self.unit
        self.value = counted if self.value is None else self.value + counted
        self.weight = weight if self.weight is None else self.weight + weight
        if share is not None:
            divisor = share
            grad = tree.map(lambda leaf: scaled_by_share(leaf, divisor), grad)
        self.grads[place] = grad if self.scale is None else scaled(grad, self.scale)

    def _keyed(self, place: int, x: object) -> Model:
        """The model with the keys of a micro-batch, which draw for its rows as for those of the whole batch."""
        if not tree.holds(is_stochastic, self.model):
            return self.model
        rank, size = self.shares.group.rank, self.shares.group.size
        key = self.state.key
        part = torch.tensor([rank + size * place, size * self.count, count_along(x, 0)], device=key.device)
        before = _draws_before(self.state.model)
        own = sum(is_stochastic(record) for record in tree.records(self.model))
        drawn = random.split(random.fold_in(random.of_part(key, part), self.state.step), before + own)
        return with_keys(self.model, drawn[before:].unbind())

    def _rows(self, values: X, place: int) -> X:
        """The rows of a micro-batch."""
        return tree.map(lambda leaf: leaf[place :: self.count].contiguous() if leaf.ndim else leaf, values)

    # --- Backward ---

    def backward(self, place: int) -> None:
        grad = self._grad(place)
        model, residuals = self.kept.pop(place)
        kept = [residuals]
        del residuals  # each layer's go as its backward has run
        if self.is_first:
            self._add(self.parts.backward_params(model, kept.pop(), grad))
            return
        grads, grad_x = self.parts.backward(model, kept.pop(), grad)
        self.links.give_back(grad_x)
        self._add(grads)

    def input_half(self, place: int) -> None:
        grad = self._grad(place)
        model, residuals = self.kept.pop(place)
        kept = [residuals]
        del residuals
        run = self.parts.first_input_half if self.is_first else self.parts.input_half
        grad_x, half_done = run(model, kept.pop(), grad)
        if not self.is_first:
            self.links.give_back(grad_x)
        self.kept[place] = model, half_done

    def params_half(self, place: int) -> None:
        run = self.parts.first_params_half if self.is_first else self.parts.params_half
        self._add(run(*self.kept.pop(place)))

    def _grad(self, place: int) -> object:
        return self.grads.pop(place) if self.is_last else self.links.given_back(self.like.pop(place))

    def _add(self, grads: object) -> None:
        """Add the gradients of a micro-batch to the total; those of 16 bits in float32."""
        leaves = tuple([half.widened(leaf) for leaf in tree.trainable_leaves(grads)])
        if self.total is None:
            self.total = leaves if self.count == 1 else copies(leaves)  # to be written over: a layer may have made its gradient
        else:  # of what it keeps
            torch._foreach_add_(self.total, leaves)


def running(model: Model) -> Model:
    """The model in which nothing is in the places of others' layers, so that errors name the places of the whole."""
    if isinstance(model, tuple):
        return named_as(model, [running(part) for part in model])
    return Identity() if isinstance(model, Elsewhere) else model


def _draws_before(model: Model) -> int:
    """How many layers before the own ones draw random numbers."""
    before = layers_before(model) if group_of_stages(model) is not None else None
    return 0 if before is None else sum(is_stochastic(record) for record in tree.records(before))


def _totals(
    work: _Work[P, S, Prediction, Target], data: Shares[Prediction, Target] | None, optimizer: Transform[S]
) -> tuple[object, Transform[S], Report[None]]:
    """The gradients of the whole batch, the optimizer for it, and the report."""
    params = tree.trainable_leaves(work.state.model)
    told = params[0].new_zeros(3, dtype=torch.float64)
    if work.value is not None and work.weight is not None:
        unit = torch.ones_like(work.weight) if work.unit is None else work.unit
        told = torch.stack([one.to(torch.float64) for one in (work.value, work.weight, unit)])
    (told,) = reduced([told], work.through)
    unit = told[2]
    if data is not None:
        (told,) = reduced([told], data.group)
    is_sum = adds_up(work.shares.loss)
    total, work.total = work.total, None  # whose memory is free as soon as the sums of all take its place
    if total is None:
        total = tuple([torch.zeros_like(half.widened(leaf)) for leaf in params])
    if not is_sum:
        share = torch.where(told[1] == 0, 0.0, unit / told[1])
        total = times(total, share) if work.count == 1 else times_over(total, share)
    grads: object = tree.with_trainable_leaves(work.state.model, total)
    del total
    if data is None:
        require_whole(grads)
    else:
        grads = data.summed(grads)
    narrow = [half.narrowed(leaf, like) for leaf, like in zip(tree.trainable_leaves(grads), params, strict=True)]
    transform = optimizer.weighed(SUM if is_sum else told[1]) if optimizer.weighed(1.0) is not optimizer else optimizer
    value = told[0] if is_sum else told[0] / told[1]
    dtype = torch.float64 if any(leaf.dtype == torch.float64 for leaf in params) else torch.float32
    report = Report(value.to(dtype), None, None if is_sum else told[1])
    return tree.with_trainable_leaves(work.state.model, narrow), transform, report
