"""Stochastic gradient descent, with and without momentum."""

from typing import TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import Listed
from fundl._common.numbers import fraction, share
from fundl._common.suggestions import with_suggestions
from fundl.optim._fused import can_fuse, read_by_kernels, read_exactly, runs
from fundl.optim.decay import AddDecayedWeights, DecayState
from fundl.optim.flat import Number, StateError, Tensors, copies, new_count, plus, require_fit, times, zeros_like
from fundl.optim.rate import Rate
from fundl.optim.scaling import RateState, ScaleByLearningRate
from fundl.optim.transform import Transform
from fundl.tree import Record


@final
@attrs.frozen(eq=False)
class TraceState(Record, metaclass=Listed):
    """The state of `trace`.

    Args:
        trace: the decayed sum of the gradients; nothing if the momentum was 0 in `init`.
        count: the steps done, int64 without axes, if there was dampening as well.
    """

    trace: Tensors
    count: Tensor | None


@final
@attrs.frozen
class _Trace(Transform[TraceState]):
    elementwise = True
    writes_over = True

    momentum: Number = attrs.field(validator=fraction)
    dampening: Number = attrs.field(validator=share)
    nesterov: bool

    @property
    @override
    def numbers(self) -> tuple[str, ...]:
        return ("momentum", *(["dampening"] if self.dampening else [])) if self.momentum else ()

    def __attrs_post_init__(self) -> None:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                "nesterov needs a momentum above 0 and no dampening,"
                f" not momentum={self.momentum} and dampening={self.dampening}"
            )

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> TraceState:
        if self.momentum == 0:
            return TraceState((), None)
        return TraceState(zeros_like(leaves), new_count(leaves) if self.dampening else None)

    @override
    def change(self, grads: Tensors, state: TraceState, params: Tensors) -> tuple[Tensors, TraceState]:
        if not self._has_trace(state, grads):
            return grads, state
        count = None if state.count is None else state.count + 1
        if not self._remembers:
            return grads, TraceState(copies(grads), count)
        total = plus(self._damped(grads, state), state.trace, self.momentum)
        return self._direction(grads, total), TraceState(total, count)

    @override
    def change_over(self, grads: Tensors, state: TraceState, params: Tensors) -> tuple[Tensors, TraceState]:
        if not self._has_trace(state, grads):
            return grads, state
        if not self._remembers:
            torch._foreach_copy_(state.trace, grads)
        else:
            for damped, total in zip(self._damped(grads, state), state.trace, strict=True):
                torch.add(damped, total, alpha=float(self.momentum), out=total)
        if state.count is not None:
            state.count.add_(1)
        return grads if not self._remembers else self._direction(grads, state.trace), state

    @property
    def _remembers(self) -> bool:
        """Whether there is momentum: that of a tensor is not looked at."""
        return isinstance(self.momentum, Tensor) or self.momentum != 0

    def _has_trace(self, state: TraceState, grads: Tensors) -> bool:
        """Whether the state, which must be one for this transform, gathers anything."""
        if not state.trace:
            if self._remembers:
                raise StateError(f"momentum={self.momentum}", "a trace of the gradients")
            return False
        require_fit(state.trace, grads)
        if state.count is None and self._remembers and not isinstance(self.dampening, Tensor) and self.dampening:
            raise StateError(f"dampening={self.dampening}", "a count of steps")
        return True

    def _damped(self, grads: Tensors, state: TraceState) -> Tensors:
        """What of the gradients is added to the trace."""
        if state.count is None:
            return grads
        return times(grads, 1 - self.dampening * (state.count > 0).to(torch.float64))

    def _direction(self, grads: Tensors, total: Tensors) -> Tensors:
        return plus(grads, total, self.momentum) if self.nesterov else total


@with_suggestions
def trace(momentum: float, *, dampening: float = 0.0, nesterov: bool = False) -> Transform[TraceState]:
    """Momentum: replace the gradient by a decayed sum of all so far.

        b = momentum b + (1 - dampening) g    (b = g at the first step),    u = b, or u = g + momentum b with `nesterov`

    Args:
        momentum: how much of the sum is kept, in [0, 1); 0 leaves the gradient as it is.
        dampening: how much of the gradient is not added, in [0, 1].
        nesterov: whether to look ahead; this needs a momentum above 0 and no dampening.

    Source:
        Polyak, Some methods of speeding up the convergence of iteration methods, 1964; Sutskever et al., On the importance of
        initialization and momentum in deep learning, 2013.

    >>> from fundl import trace
    >>> transform, params = trace(0.5), torch.zeros(1)
    >>> updates, state = transform.update(torch.ones(1), transform.init(params), params)
    >>> transform.update(torch.ones(1), state, params)[0]
    tensor([1.5000])
    """
    return _Trace(momentum, dampening, nesterov)


SGDState: TypeAlias = tuple[DecayState, TraceState, RateState]
"""What `sgd` and `momentum` remember, part by part of their chain."""


@final
@attrs.frozen
class _SGD(Transform[SGDState]):
    """Weight decay, momentum and learning rate: a chain, whose step on the params is a fused kernel where it can be."""

    elementwise = True
    writes_over = True

    decay: AddDecayedWeights
    trace: _Trace
    rate: ScaleByLearningRate

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> SGDState:
        return self.decay.start(leaves, paths), self.trace.start(leaves, paths), self.rate.start(leaves, paths)

    @override
    def change(self, grads: Tensors, state: SGDState, params: Tensors) -> tuple[Tensors, SGDState]:
        updates, trace = self.trace.change(self._decayed(grads, state, params), state[1], params)
        updates, rate = self.rate.change(updates, state[2], params)
        return updates, (state[0], trace, rate)

    @override
    def move(self, grads: Tensors, state: SGDState, params: Tensors) -> tuple[Tensors, SGDState]:
        decay, trace, rate_state = state
        if self._can_fuse(grads, trace, params):
            rate, rate_state = self.rate.next_rate(rate_state)
            moved: Tensors = ()
            total: Tensors = ()
            for start, stop in runs(params):
                n, new = stop - start, copies(params[start:stop] + trace.trace[start:stop])
                self._write(new[:n], grads[start:stop], new[n:], rate)
                moved, total = moved + new[:n], total + new[n:]
            return moved, (decay, TraceState(total, None), rate_state)
        updates, trace = self.trace.change(self._decayed(grads, state, params), trace, params)
        moved, rate_state = self.rate.move(updates, rate_state, params)
        return moved, (decay, trace, rate_state)

    @override
    def change_over(self, grads: Tensors, state: SGDState, params: Tensors) -> tuple[Tensors, SGDState]:
        updates, _ = self.trace.change_over(self._decayed(grads, state, params), state[1], params)
        return self.rate.change_over(updates, state[2], params)[0], state

    @override
    def move_over(self, grads: Tensors, state: SGDState, params: Tensors) -> tuple[Tensors, SGDState]:
        _, trace, rate_state = state
        if self._can_fuse(grads, trace, params):
            self._write(params, grads, trace.trace, self.rate.rate_at(rate_state))
            self.rate.count_over(rate_state)
        else:
            updates, _ = self.trace.change_over(self._decayed(grads, state, params), trace, params)
            self.rate.move_over(updates, rate_state, params)
        return params, state

    def _decayed(self, grads: Tensors, state: SGDState, params: Tensors) -> Tensors:
        return self.decay.change(grads, state[0], params)[0]

    def _can_fuse(self, grads: Tensors, trace: TraceState, params: Tensors) -> bool:
        """Whether there is a kernel: one that dampens would have to know which step is the first."""
        if not trace.trace or trace.count is not None or not can_fuse(params, grads, trace.trace):
            return False
        return bool(self.trace.momentum) and not self.trace.dampening and read_exactly(self.rate.rate, params)

    def _write(self, params: Tensors, grads: Tensors, trace: Tensors, rate: float | Tensor) -> None:
        """Write the next params and the next trace over these."""
        torch._fused_sgd_(
            params,
            grads,
            trace,
            weight_decay=float(self.decay.weight_decay),
            momentum=float(self.trace.momentum),
            lr=read_by_kernels(rate),
            dampening=0.0,
            nesterov=self.trace.nesterov,
            maximize=False,
            is_first_step=False,
        )


@with_suggestions
def sgd(
    rate: Rate, *, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> Transform[SGDState]:
    """Stochastic gradient descent: p = p - rate g, where weight decay and momentum may change g before.

    It computes ``chain(add_decayed_weights(weight_decay), trace(momentum, ...), scale_by_learning_rate(rate))``, and `step`
    does so in one fused kernel where there is momentum.

    Args:
        rate: the learning rate, a number of 0 or more or a schedule.
        momentum, dampening, nesterov: see `trace`.
        weight_decay: the weight of the L2 penalty, of 0 or more.

    Source:
        Robbins and Monro, A stochastic approximation method, 1951.

    >>> from fundl import sgd
    >>> optimizer, params = sgd(0.1), torch.ones(2)
    >>> optimizer.step(torch.tensor([1.0, -1.0]), optimizer.init(params), params)[0]
    tensor([0.9000, 1.1000])
    """
    return _SGD(AddDecayedWeights(weight_decay), _Trace(momentum, dampening, nesterov), ScaleByLearningRate(rate))


@with_suggestions
def momentum(rate: Rate, *, momentum: float = 0.9, nesterov: bool = False) -> Transform[SGDState]:
    """Stochastic gradient descent with momentum: `sgd` with another default.

    Args:
        rate, momentum, nesterov: see `sgd`.

    >>> from fundl import momentum, sgd
    >>> momentum(0.1) == sgd(0.1, momentum=0.9)
    True
    """
    return sgd(rate, momentum=momentum, nesterov=nesterov)
