"""Gradients of several micro-batches, gathered into one step: a large batch in a small memory."""

import math
from collections.abc import Callable
from typing import Generic, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import Listed
from fundl._common.modes import is_readable
from fundl._common.numbers import count_of_steps
from fundl._common.suggestions import with_suggestions
from fundl.optim._sometimes import Sometimes
from fundl.optim.flat import Tensors, copies, new_count, require_fit, select, times, zeros_like
from fundl.optim.transform import P, Rule, S, State, Transform, require_transform
from fundl.tree import Record, describe
from fundl.weights import Sum


@final
@attrs.frozen(eq=False)
class AccumulateState(Record, Generic[S], metaclass=Listed):
    """The state of `accumulate`.

    Args:
        count: the micro-batches since the last full step, int64 without axes.
        weight: the sum of their weights, float64 without axes; 1 if they are of sums.
        total: the weighted sum of their gradients.
        inner: the state of the transform that sees the mean.
    """

    count: Tensor
    weight: Tensor
    total: Tensors
    inner: S


@final
@attrs.frozen
class Accumulate(Sometimes[S, AccumulateState[S]]):
    """See `accumulate`."""

    steps: int = attrs.field(validator=count_of_steps)
    weight: float | Tensor = attrs.field(default=1.0, kw_only=True)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> AccumulateState[S]:
        weight = torch.zeros((), dtype=torch.float64, device=leaves[0].device)
        return AccumulateState(new_count(leaves), weight, zeros_like(leaves), self.transform.start(leaves, paths))

    @override
    def _own(self, state: AccumulateState[S]) -> Tensor:
        return state.count

    @override
    def update(
        self, grads: P, state: State[P, AccumulateState[S]], params: P, *, weight: float | Tensor | None = None
    ) -> tuple[P, State[P, AccumulateState[S]]]:
        """As `Transform.update`, with the weight of this micro-batch, a number above 0: of how many examples it is."""
        own = self._counting(weight)._for(params)
        return own._run(own.change, grads, state, params)

    @override
    def step(
        self, grads: P, state: State[P, AccumulateState[S]], params: P, *, weight: float | Tensor | None = None
    ) -> tuple[P, State[P, AccumulateState[S]]]:
        """As `Transform.step`, with the weight of this micro-batch, a number above 0: of how many examples it is."""
        own = self._counting(weight)._for(params)
        return own._run(own.move, grads, state, params)

    @override
    def rest(self, state: AccumulateState[S], params: Tensors) -> tuple[Tensors, AccumulateState[S]]:
        require_fit(state.total, params)
        waits = state.count > 0
        results, inner = self.transform.move(_mean(state.total, state.weight), state.inner, params)
        results, inner = self.transform.rest(select(waits, inner, state.inner), select(waits, results, params))
        empty = torch.zeros_like(state.count), torch.zeros_like(state.weight), zeros_like(state.total)
        return results, AccumulateState(*empty, inner)

    def _counting(self, weight: float | Tensor | None) -> Self:
        """The transform for a micro-batch of this weight, which must be one number above 0."""
        if weight is None:
            return self
        if isinstance(weight, Tensor):
            if weight.ndim:
                raise ValueError(f"the weight of a micro-batch is one number: a tensor without axes, not {describe(weight)}")
        elif not 0 < weight < math.inf:
            raise ValueError(f"the weight of a micro-batch is a finite number above 0, not {weight}")
        return self.weighed(weight)

    @override
    def weighed(self, weight: float | Tensor) -> Self:
        return attrs.evolve(self, weight=weight)

    @override
    def loss_scale(self, state: AccumulateState[S]) -> Tensor | None:
        return self.transform.loss_scale(state.inner)

    @override
    def _copied(self, state: AccumulateState[S]) -> AccumulateState[S]:
        return AccumulateState(state.count.clone(), state.weight.clone(), copies(state.total), state.inner)

    @override
    def _selected(
        self,
        rule: Rule[S],
        grads: Tensors,
        state: AccumulateState[S],
        params: Tensors,
        *,
        otherwise: Tensors,
    ) -> tuple[Tensors, AccumulateState[S]]:
        require_fit(state.total, grads)
        if isinstance(self.weight, Tensor):
            total = torch._foreach_add(state.total, _products(grads, self.weight))
        else:
            total = torch._foreach_add(state.total, grads, alpha=self.weight) if self.weight else state.total
        weights = torch.ones_like(state.weight) if isinstance(self.weight, Sum) else state.weight + self.weight
        count = state.count + 1
        full = count >= self.steps  # the state may be of more steps
        results, inner = rule(_mean(total, weights), state.inner, params)
        return select(full, results, otherwise), AccumulateState(
            count=torch.where(full, 0, count),
            weight=torch.where(full, 0.0, weights),
            total=tuple(torch.where(full, 0.0, part) for part in total),
            inner=select(full, inner, state.inner),
        )

    @override
    def _chosen(
        self,
        rule: Rule[S],
        grads: Tensors,
        state: AccumulateState[S],
        params: Tensors,
        *,
        otherwise: Callable[[Tensors], Tensors],
    ) -> tuple[Tensors, AccumulateState[S]]:
        require_fit(state.total, grads)
        if isinstance(self.weight, Tensor):
            torch._foreach_add_(state.total, _products(grads, self.weight))
        elif self.weight:
            torch._foreach_add_(state.total, grads, alpha=self.weight)
        if isinstance(self.weight, Sum):
            state.weight.fill_(1)
        else:
            state.weight.add_(self.weight)
        if state.count.add_(1) < self.steps:
            return otherwise(params), state
        results, inner = rule(_mean(state.total, state.weight), state.inner, params)
        torch._foreach_zero_((*state.total, state.weight, state.count))
        return results, state if inner is state.inner else attrs.evolve(state, inner=inner)


def _products(grads: Tensors, weight: Tensor) -> Tensors:
    """The gradients by their weight: one of weight 0 adds nothing, whatever it is, as that of a loss that divided by 0."""
    if is_readable(weight):
        return times(grads, weight) if weight.item() else zeros_like(grads)
    return tuple([torch.where(weight == 0, 0.0, product) for product in times(grads, weight)])


def _mean(total: Tensors, weights: Tensor) -> Tensors:
    """A weighted sum by the sum of the weights; where nothing counts, the mean is 0."""
    return times(total, torch.where(weights == 0, 0.0, weights.reciprocal()))


@with_suggestions
def accumulate(transform: Transform[S], steps: int) -> Accumulate[S]:
    """Apply a transform once in so many micro-batches, to the mean of their gradients.

        g = (w_1 g_1 + ... + w_k g_k) / (w_1 + ... + w_k)

    ``accumulate(...)`` is called for each micro-batch. Until the last of k it gives updates of 0, and the state of the inner
    transform stays as it is. If the loss is a mean over examples (or tokens, ...), and the micro-batches are not all of the
    same size, give `update` and `step` that size as the weight, and k micro-batches are just one large batch:

        params, state = optimizer.step(grads, state, params, weight=len(x))

    `train_step` does so, by itself and wherever in an optimizer the accumulation is: the weight is what the loss divided by
    (see `weight_of`). Of a loss that is a sum, which divides by nothing, the transform is given the sum of the gradients. A
    weight that is a tensor without axes may differ from call to call of a traced step; what has the weight 0 adds nothing.

    Where batches end in the middle of a window, what was gathered waits for more, in the next epoch say: nothing is lost, and
    a run that ends so tells it. `finish` makes a step of what waits:

        state = finish(step, state)

    Args:
        transform: what sees the mean: an optimizer.
        steps: k, of 1 or more.

    >>> from fundl import accumulate, sgd
    >>> optimizer, params = accumulate(sgd(1.0), steps=2), torch.zeros(1)
    >>> params, state = optimizer.step(torch.tensor([1.0]), optimizer.init(params), params, weight=3)
    >>> params
    tensor([0.])
    >>> optimizer.step(torch.tensor([5.0]), state, params, weight=1)[0]
    tensor([-2.])
    """
    require_transform(transform)
    return Accumulate(transform, steps)
