"""Training without a schedule: the gradient is that of a mixture of fast params and their average, which is the result."""

from typing import Generic, Self, TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import ListedABC
from fundl._common.numbers import proper_fraction
from fundl._common.suggestions import with_suggestions
from fundl.optim.chain import chain
from fundl.optim.decay import DecayState, Predicate, add_decayed_weights
from fundl.optim.ema import Averaging
from fundl.optim.flat import Number, Tensors, copies, plus, require_fit, times
from fundl.optim.rate import Rate
from fundl.optim.rms import RMSState, scale_by_rms
from fundl.optim.scaling import RateState, ScaleByLearningRate
from fundl.optim.transform import S, Transform, require_transform
from fundl.tree import Splits


@final
@attrs.frozen(eq=False)
class ScheduleFreeState(Averaging, Generic[S], metaclass=ListedABC):
    """The state of `schedule_free`.

    Args:
        fast: z, the params that the steps alone would make.
        interpolation: how much of the average the params have, float64 without axes.
        greatest_rate: the greatest learning rate so far, float64 without axes.
        weight: the sum of the weights of all that is in the average, float64 without axes.
        rate: the state of the learning rate.
        inner: the state of the transform that gives the direction.
    """

    fast: Tensors
    interpolation: Tensor
    greatest_rate: Tensor
    weight: Tensor
    rate: RateState
    inner: S

    @override
    def with_newest(self, params: Tensors) -> Tensors:
        require_fit(self.fast, params)
        beyond = 1 / self.interpolation - 1
        apart = torch._foreach_sub(params, self.fast)
        # Of an ensemble there may be a number for each run.
        shares = [beyond.reshape((*beyond.shape, *[1] * (leaf.ndim - beyond.ndim))).to(leaf) for leaf in params]
        return torch._foreach_add(params, torch._foreach_mul(apart, shares))


@final
@attrs.frozen
class _ScheduleFree(Transform[ScheduleFreeState[S]]):
    numbers = ("interpolation",)

    direction: Transform[S]
    rate: ScaleByLearningRate
    interpolation: Number = attrs.field(validator=proper_fraction)

    @property
    @override
    def elementwise(self) -> bool:
        return self.direction.elementwise

    @property
    @override
    def writes_over(self) -> bool:
        return self.direction.writes_over

    @override
    def divided(self, splits: Splits) -> Self:
        return attrs.evolve(self, direction=self.direction.divided(splits))

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> ScheduleFreeState[S]:
        zero = torch.zeros((), dtype=torch.float64, device=leaves[0].device)
        return ScheduleFreeState(
            fast=copies(leaves),
            interpolation=zero + self.interpolation,
            greatest_rate=zero,
            weight=zero.clone(),
            rate=self.rate.start(leaves, paths),
            inner=self.direction.start(leaves, paths),
        )

    @override
    def change(self, grads: Tensors, state: ScheduleFreeState[S], params: Tensors) -> tuple[Tensors, ScheduleFreeState[S]]:
        require_fit(state.fast, grads)
        direction, inner = self.direction.change(grads, state.inner, params)
        rate, rate_state = self.rate.next_rate(state.rate)
        greatest, weight, own = self._weights(state, rate)
        fast = plus(state.fast, direction, -rate)
        updates = self._updates(direction, state, params, rate, own / weight)
        interpolation = torch.zeros_like(weight) + self.interpolation
        return updates, ScheduleFreeState(fast, interpolation, greatest, weight, rate_state, inner)

    @override
    def change_over(self, grads: Tensors, state: ScheduleFreeState[S], params: Tensors) -> tuple[Tensors, ScheduleFreeState[S]]:
        require_fit(state.fast, grads)
        direction, inner = self.direction.change_over(grads, state.inner, params)
        rate = self.rate.rate_at(state.rate)
        greatest, weight, own = self._weights(state, rate)
        updates = self._updates(direction, state, params, rate, own / weight)
        if isinstance(rate, Tensor):
            torch._foreach_add_(state.fast, times(direction, -rate))
        else:
            torch._foreach_add_(state.fast, direction, alpha=-rate)
        state.interpolation.fill_(self.interpolation)
        state.greatest_rate.copy_(greatest)
        state.weight.copy_(weight)
        self.rate.count_over(state.rate)
        return updates, state if inner is state.inner else attrs.evolve(state, inner=inner)

    def _weights(self, state: ScheduleFreeState[S], rate: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The greatest rate so far, the weight of all params in the average, and that of the newest."""
        greatest = torch.maximum(state.greatest_rate, torch.zeros_like(state.weight) + rate)
        own = greatest * greatest
        return greatest, state.weight + own, own

    def _updates(
        self, direction: Tensors, state: ScheduleFreeState[S], params: Tensors, rate: float | Tensor, share: Tensor
    ) -> Tensors:
        """From the params to the next ones, of which the average has a share of the newest: see `schedule_free`."""
        share = share.nan_to_num(0.0)  # 0 / 0, while all rates are 0
        before, after = state.interpolation, self.interpolation
        of_newest = 1 - after + after * share
        of_apart = of_newest - after * (1 / before - 1) * (1 - share)
        apart = torch._foreach_sub(state.fast, params)
        return torch._foreach_sub(times(apart, of_apart), times(direction, of_newest * rate))


@with_suggestions
def schedule_free(direction: Transform[S], rate: Rate, *, interpolation: float = 0.9) -> Transform[ScheduleFreeState[S]]:
    """Training without a schedule that has to know its end: the average of all params takes the place of small last steps.

        z = z - rate d,    x = (1 - c) x + c z,    p = (1 - interpolation) z + interpolation x

    d is the direction for the gradient at p, where the loss is computed; c is r^2 over the sum of r^2 in all steps so far, with
    r the greatest rate so far: 1/t at step t of a rate that is a number. x is the result, which is evaluated and used:

        for epoch in epochs(step, state, batches, count=100, evaluate=test, evaluated=averaged):
            ...
        model = averaged(epoch.state)

    A model with `BatchNorm` needs the statistics for x, ``calibrate(averaged(state), batches)``. The rate may grow in the
    beginning, ``linear_schedule(0.0, 0.01, steps=1000)``, and then stays. It remembers z, and finds x where p and z are; so
    params of 16 bits are for `mixed_precision`.

    Args:
        direction: a transform without a learning rate: ``scale(1.0)`` makes SGD of it. Momentum is what the interpolation does.
        rate: the learning rate, a number of 0 or more or a schedule.
        interpolation: how much of x there is in p, above 0 and below 1.

    Source:
        Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky, The road less scheduled, 2024.

    >>> import torch
    >>> from fundl import averaged, scale, schedule_free
    >>> optimizer, params = schedule_free(scale(1.0), 0.5), torch.ones(1)
    >>> state = optimizer.init(params)
    >>> for _ in range(20):
    ...     params, state = optimizer.step(2 * params, state, params)  # of the loss p^2
    >>> bool(averaged(state, params).abs() < 0.1)
    True
    """
    require_transform(direction)
    return _ScheduleFree(direction, ScaleByLearningRate(rate), interpolation)


ScheduleFreeAdamWState: TypeAlias = ScheduleFreeState[tuple[RMSState, DecayState]]
"""What `schedule_free_adamw` remembers."""


@with_suggestions
def schedule_free_adamw(
    rate: Rate,
    *,
    interpolation: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    where: Predicate | None = None,
) -> Transform[ScheduleFreeAdamWState]:
    """AdamW without a schedule: `averaged` of the state is the model to evaluate and use.

    It is ``schedule_free(chain(scale_by_rms(decay=beta2, epsilon=epsilon, debias=True), add_decayed_weights(weight_decay,
    where=where)), rate, interpolation=interpolation)``: the interpolation takes the place of beta1. It takes as much memory as
    `adamw`.

    Args:
        rate, interpolation: see `schedule_free`, which also has the source, and says how to evaluate.
        beta2, epsilon: see `scale_by_rms`.
        weight_decay, where: see `add_decayed_weights`.

    >>> import torch
    >>> from fundl import averaged, schedule_free_adamw
    >>> optimizer, params = schedule_free_adamw(0.1), torch.ones(2)
    >>> params, state = optimizer.step(torch.tensor([100.0, -0.01]), optimizer.init(params), params)
    >>> averaged(state, params)
    tensor([0.9000, 1.1000])
    """
    direction = chain(scale_by_rms(decay=beta2, epsilon=epsilon, debias=True), add_decayed_weights(weight_decay, where=where))
    return schedule_free(direction, rate, interpolation=interpolation)
