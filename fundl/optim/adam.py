"""Adam and AdamW: steps of about the size of the learning rate, by the first two moments of the gradient."""

from typing import Self, TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import Listed
from fundl._common.numbers import fraction, non_negative
from fundl._common.suggestions import with_suggestions
from fundl.optim._fused import Columns, can_fuse, joined, read_by_kernels, read_exactly, runs
from fundl.optim.decay import AddDecayedWeights, DecayState, Predicate
from fundl.optim.flat import Number, StateError, Tensors, mixed, new_count, require_fit, scaled_by, shifted, times, zeros_like
from fundl.optim.rate import Rate
from fundl.optim.scaling import RateState, ScaleByLearningRate
from fundl.optim.transform import Transform
from fundl.tree import Record, Splits


@final
@attrs.frozen(eq=False)
class AdamState(Record, metaclass=Listed):
    """The state of `scale_by_adam`.

    Args:
        count: the steps done, int64 without axes.
        first_moment: m, the decayed mean of the gradients.
        second_moment: v, the decayed mean of their squares.
        max_second_moment: the greatest v so far, if there was `amsgrad` in `init`, else nothing.
    """

    count: Tensor
    first_moment: Tensors
    second_moment: Tensors
    max_second_moment: Tensors


@final
@attrs.frozen
class _ScaleByAdam(Transform[AdamState]):
    elementwise = True
    writes_over = True
    numbers = ("beta1", "beta2", "epsilon")

    beta1: Number = attrs.field(validator=fraction)
    beta2: Number = attrs.field(validator=fraction)
    epsilon: Number = attrs.field(validator=non_negative)
    amsgrad: bool

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> AdamState:
        greatest = zeros_like(leaves) if self.amsgrad else ()
        return AdamState(new_count(leaves), zeros_like(leaves), zeros_like(leaves), greatest)

    @override
    def change(self, grads: Tensors, state: AdamState, params: Tensors) -> tuple[Tensors, AdamState]:
        columns, count = self.columns(grads, grads, state), state.count + 1
        if not _can_fuse(columns):
            return self._formula(grads, state, count)
        new = columns.unshared()
        torch._foreach_zero_(new.params)  # from 0, a step of rate -1 leads to the direction
        self.write(new, count, -1.0)
        return new.params, self.next_state(state, count, new)

    @override
    def change_over(self, grads: Tensors, state: AdamState, params: Tensors) -> tuple[Tensors, AdamState]:
        columns = self.columns(zeros_like(grads), grads, state)
        if not _can_fuse(columns):
            return self.change(grads, state, params)
        self.write(columns, state.count.add_(1), -1.0)
        self.keep_greatest_over(state)
        return columns.params, state

    def columns(self, params: Tensors, grads: Tensors, state: AdamState) -> Columns:
        """What of the state the kernel needs, beside the params and gradients that it belongs to."""
        if self.amsgrad and not state.max_second_moment:
            raise StateError("amsgrad=True", "a greatest second moment")
        greatest = state.max_second_moment if self.amsgrad else ()
        return Columns(params, grads, state.first_moment, state.second_moment, greatest)

    def next_state(self, state: AdamState, count: Tensor, new: Columns) -> AdamState:
        """The state after a step of the kernel."""
        greatest = new.max_second_moment or _greatest(state, new.second_moment)
        return AdamState(count, new.first_moment, new.second_moment, greatest)

    def keep_greatest_over(self, state: AdamState) -> None:
        """What is left to do of `next_state` where the kernel wrote over the state."""
        if state.max_second_moment and not self.amsgrad:
            torch._foreach_maximum_(state.max_second_moment, state.second_moment)

    def _formula(self, grads: Tensors, state: AdamState, count: Tensor) -> tuple[Tensors, AdamState]:
        require_fit(state.first_moment, grads)
        require_fit(state.second_moment, grads)
        first = mixed(state.first_moment, grads, 1 - self.beta1)
        # As the kernel has it: once it is infinite it stays so, where a difference of infinities would be NaN; and squares of
        # 2e20 are divided before they are too large, for which inductor has to be told the order.
        kept = scaled_by(state.second_moment, self.beta2)
        second = torch._foreach_addcmul(kept, scaled_by(grads, 1 - self.beta2), grads)
        greatest = _greatest(state, second)

        steps = count.to(torch.float64)
        first_bias, second_bias = 1 - torch.pow(self.beta1, steps), 1 - torch.pow(self.beta2, steps)
        root = times(torch._foreach_sqrt(greatest if self.amsgrad else second), second_bias.rsqrt())
        direction = torch._foreach_div(first, shifted(root, self.epsilon))
        return times(direction, 1 / first_bias), AdamState(count, first, second, greatest)

    def write(
        self, columns: Columns, count: Tensor, rate: float | Tensor, *, weight_decay: float = 0.0, decoupled: bool = False
    ) -> None:
        """Run the fused kernel, which writes the next params and moments over the columns."""
        if not columns.params:
            return
        kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
        kernel(
            *columns,
            (count.to(torch.float32),) * len(columns.params),
            lr=read_by_kernels(rate),
            beta1=float(self.beta1),
            beta2=float(self.beta2),
            weight_decay=weight_decay,
            eps=float(self.epsilon),
            amsgrad=bool(columns.max_second_moment),
            maximize=False,
        )


def _greatest(state: AdamState, second_moment: Tensors) -> Tensors:
    """The greatest second moment, if the state keeps it, also if it is not what this transform divides by."""
    if not state.max_second_moment:
        return ()
    require_fit(state.max_second_moment, second_moment)
    return torch._foreach_maximum(state.max_second_moment, second_moment)


@with_suggestions
def scale_by_adam(
    *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, amsgrad: bool = False
) -> Transform[AdamState]:
    """Divide the mean of the gradients by the root of the mean of their squares.

        m = beta1 m + (1 - beta1) g,    v = beta2 v + (1 - beta2) g^2,
        u = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)    at step t = 1, 2, ...

    The square of a gradient beyond 2e20 is more than float32 holds: v is infinite from then on, and u is 0. Clip before.

    Args:
        beta1: the decay of m, in [0, 1).
        beta2: the decay of v, in [0, 1).
        epsilon: keeps the denominator from 0; of 0 or more.
        amsgrad: whether to divide by the greatest v so far.

    Source:
        Kingma and Ba, Adam: a method for stochastic optimization, 2015; Reddi, Kale and Kumar, On the convergence of Adam
        and beyond, 2018 (amsgrad).

    >>> from fundl import scale_by_adam
    >>> transform, params = scale_by_adam(), torch.zeros(2)
    >>> transform.update(torch.tensor([100.0, -0.01]), transform.init(params), params)[0]
    tensor([ 1.0000, -1.0000])
    """
    return _ScaleByAdam(beta1, beta2, epsilon, amsgrad)


AdamChainState: TypeAlias = tuple[AdamState, DecayState, RateState]
"""What `adam` and `adamw` remember, part by part of their chain."""


@final
@attrs.frozen
class _Adam(Transform[AdamChainState]):
    """Moments, weight decay and learning rate: a chain, whose step on the params is a fused kernel where that can be."""

    writes_over = True

    moments: _ScaleByAdam
    decay: AddDecayedWeights
    rate: ScaleByLearningRate
    decoupled: bool  # whether the decay is added after the moments (AdamW), or to the gradient (Adam)

    @property
    @override
    def elementwise(self) -> bool:
        return self.decay.elementwise

    @override
    def divided(self, splits: Splits) -> Self:
        return self  # whichever leaves decay

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> AdamChainState:
        return self.moments.start(leaves, paths), self.decay.start(leaves, paths), self.rate.start(leaves, paths)

    @override
    def change(self, grads: Tensors, state: AdamChainState, params: Tensors) -> tuple[Tensors, AdamChainState]:
        updates, moments = self._direction(grads, state, params)
        updates, rate = self.rate.change(updates, state[2], params)
        return updates, (moments, state[1], rate)

    @override
    def move(self, grads: Tensors, state: AdamChainState, params: Tensors) -> tuple[Tensors, AdamChainState]:
        columns = self.moments.columns(params, grads, state[0])
        if _can_fuse(columns) and read_exactly(self.rate.rate, params):
            return self._move_fused(columns, state)
        updates, moments = self._direction(grads, state, params)
        moved, rate = self.rate.move(updates, state[2], params)
        return moved, (moments, state[1], rate)

    @override
    def change_over(self, grads: Tensors, state: AdamChainState, params: Tensors) -> tuple[Tensors, AdamChainState]:
        moments, decay, rate = state
        if not self.decoupled:
            grads, _ = self.decay.change(grads, decay, params)
        updates, moments = self.moments.change_over(grads, moments, params)
        if self.decoupled:
            updates, _ = self.decay.change(updates, decay, params)
        updates, _ = self.rate.change_over(updates, rate, params)
        return updates, state if moments is state[0] else (moments, decay, rate)

    @override
    def move_over(self, grads: Tensors, state: AdamChainState, params: Tensors) -> tuple[Tensors, AdamChainState]:
        moments, decay, rate_state = state
        columns = self.moments.columns(params, grads, moments)
        if not _can_fuse(columns) or not read_exactly(self.rate.rate, params):
            return self.move(grads, state, params)
        rate, mask = self.rate.rate_at(rate_state), self.decay.mask(decay, grads)
        self._write(columns, mask, moments.count.add_(1), rate)
        self.moments.keep_greatest_over(moments)
        self.rate.count_over(rate_state)
        return params, state

    def _direction(self, grads: Tensors, state: AdamChainState, params: Tensors) -> tuple[Tensors, AdamState]:
        moments, decay, _ = state
        if self.decoupled:
            updates, moments = self.moments.change(grads, moments, params)
            return self.decay.change(updates, decay, params)[0], moments
        return self.moments.change(self.decay.change(grads, decay, params)[0], moments, params)

    def _move_fused(self, columns: Columns, state: AdamChainState) -> tuple[Tensors, AdamChainState]:
        moments, decay, rate_state = state
        rate, next_rate_state = self.rate.next_rate(rate_state)
        count, mask = moments.count + 1, self.decay.mask(decay, columns.grads)
        parts: list[Columns] = []
        for start, stop in runs(columns.params):
            parts.append(columns.part(start, stop).unshared())
            self._write(parts[-1], mask[start:stop], count, rate)
        new = joined(parts)
        return new.params, (self.moments.next_state(moments, count, new), decay, next_rate_state)

    def _write(self, columns: Columns, mask: tuple[bool, ...], count: Tensor, rate: float | Tensor) -> None:
        """Run the kernel on the leaves that decay, and on those that do not."""
        weight_decay = float(self.decay.weight_decay)
        if False not in mask:
            self.moments.write(columns, count, rate, weight_decay=weight_decay, decoupled=self.decoupled)
        else:
            self.moments.write(columns.rows(mask), count, rate, weight_decay=weight_decay, decoupled=self.decoupled)
            self.moments.write(columns.rows(tuple(not on for on in mask)), count, rate)


def _can_fuse(columns: Columns) -> bool:
    return bool(columns.first_moment and columns.second_moment) and can_fuse(*columns)


@with_suggestions
def adam(
    rate: Rate,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
) -> Transform[AdamChainState]:
    """Adam: p = p - rate u, with u from `scale_by_adam`.

    It computes ``chain(add_decayed_weights(weight_decay), scale_by_adam(...), scale_by_learning_rate(rate))``, and `step`
    does so in one fused kernel.

    Args:
        rate: the learning rate, a number of 0 or more or a schedule.
        beta1, beta2, epsilon, amsgrad: see `scale_by_adam`, which also has the source.
        weight_decay: the weight of the L2 penalty, of 0 or more; see `adamw` for the other kind.

    >>> from fundl import adam
    >>> optimizer, params = adam(0.1), torch.ones(2)
    >>> optimizer.step(torch.tensor([100.0, -0.01]), optimizer.init(params), params)[0]
    tensor([0.9000, 1.1000])
    """
    return _Adam(
        moments=_ScaleByAdam(beta1, beta2, epsilon, amsgrad),
        decay=AddDecayedWeights(weight_decay),
        rate=ScaleByLearningRate(rate),
        decoupled=False,
    )


@with_suggestions
def adamw(
    rate: Rate,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
    where: Predicate | None = None,
    amsgrad: bool = False,
) -> Transform[AdamChainState]:
    """Adam with decoupled weight decay: p = p - rate (u + weight_decay p), with u from `scale_by_adam`.

    It computes ``chain(scale_by_adam(...), add_decayed_weights(weight_decay, where=where), scale_by_learning_rate(rate))``,
    and `step` does so in one fused kernel.

    Args:
        rate, beta1, beta2, epsilon, amsgrad: see `adam`.
        weight_decay, where: see `add_decayed_weights`.

    Source:
        Loshchilov and Hutter, Decoupled weight decay regularization, 2019.

    >>> from fundl import adamw, is_matrix
    >>> optimizer, params = adamw(0.1, weight_decay=0.5, where=is_matrix), {"weight": torch.ones(1, 1), "bias": torch.ones(1)}
    >>> optimizer.step({"weight": torch.ones(1, 1), "bias": torch.ones(1)}, optimizer.init(params), params)[0]
    {'weight': tensor([[0.8500]]), 'bias': tensor([0.9000])}
    """
    return _Adam(
        moments=_ScaleByAdam(beta1, beta2, epsilon, amsgrad),
        decay=AddDecayedWeights(weight_decay, where),
        rate=ScaleByLearningRate(rate),
        decoupled=True,
    )
