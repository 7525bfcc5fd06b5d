"""Steps whose gradients are not finite are left out, and counted."""

from collections.abc import Callable
from typing import Generic, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.listed import Listed
from fundl._common.numbers import count_of_steps
from fundl.optim._sometimes import Sometimes
from fundl.optim.flat import StateError, Tensors, all_finite, new_count, select
from fundl.optim.loss_scale import DynamicLossScale
from fundl.optim.transform import Rule, S, Transform, require_transform
from fundl.tree import Record, describe


@final
@attrs.frozen(eq=False)
class SkipState(Record, Generic[S], metaclass=Listed):
    """The state of `skip_nonfinite`.

    Args:
        skipped: how many steps were skipped, int64 without axes.
        inner: the state of the transform that sees the others.
        in_a_row: how many came one after the other, up to now, int64 without axes; if there was a `limit` in `init`.
    """

    skipped: Tensor
    inner: S
    in_a_row: Tensor | None = None


@final
@attrs.frozen
class SkipNonfinite(Sometimes[S, SkipState[S]]):
    """See `skip_nonfinite`."""

    limit: int | None = attrs.field(default=None, validator=attrs.validators.optional(count_of_steps))

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> SkipState[S]:
        in_a_row = None if self.limit is None else new_count(leaves)
        return SkipState(new_count(leaves), self.transform.start(leaves, paths), in_a_row)

    @override
    def _own(self, state: SkipState[S]) -> Tensor:
        return state.skipped

    @override
    def rest(self, state: SkipState[S], params: Tensors) -> tuple[Tensors, SkipState[S]]:
        results, inner = self.transform.rest(state.inner, params)
        return results, SkipState(state.skipped, inner, state.in_a_row)

    @override
    def _copied(self, state: SkipState[S]) -> SkipState[S]:
        in_a_row = None if state.in_a_row is None else state.in_a_row.clone()
        return SkipState(state.skipped.clone(), state.inner, in_a_row)

    @override
    def _selected(
        self, rule: Rule[S], grads: Tensors, state: SkipState[S], params: Tensors, *, otherwise: Tensors
    ) -> tuple[Tensors, SkipState[S]]:
        finite = all_finite(grads, self.splits)
        results, inner = rule(grads, state.inner, params)
        applied = finite if self.limit is None else finite | (self._in_a_row(state) >= self.limit)
        skipped = state.skipped + torch.where(applied, 0, 1)
        in_a_row = None if state.in_a_row is None else torch.where(finite, 0, state.in_a_row + 1)
        return select(applied, results, otherwise), SkipState(skipped, select(applied, inner, state.inner), in_a_row)

    @override
    def _chosen(
        self, rule: Rule[S], grads: Tensors, state: SkipState[S], params: Tensors, *, otherwise: Callable[[Tensors], Tensors]
    ) -> tuple[Tensors, SkipState[S]]:
        finite = bool(all_finite(grads, self.splits))
        applied = finite or (self.limit is not None and bool(self._in_a_row(state) >= self.limit))
        if not applied:
            state.skipped.add_(1)
            self._count_over(state, finite=False)
            return otherwise(params), state
        results, inner = rule(grads, state.inner, params)
        self._count_over(state, finite=finite)
        return results, state if inner is state.inner else SkipState(state.skipped, inner, state.in_a_row)

    def _count_over(self, state: SkipState[S], *, finite: bool) -> None:
        if state.in_a_row is not None:
            state.in_a_row.mul_(0 if finite else 1).add_(0 if finite else 1)

    def _in_a_row(self, state: SkipState[S]) -> Tensor:
        if state.in_a_row is None:
            raise StateError(f"limit={self.limit}", "a count of steps that were skipped one after the other")
        return state.in_a_row


def skip_nonfinite(transform: Transform[S], *, limit: int | None = None) -> SkipNonfinite[S]:
    """Leave out the steps whose gradients are not finite: params and the transform's state stay, and the steps are counted.

    One batch with a NaN or an infinity in its gradient then does no harm, where it would spoil all params. It is for rare ones:
    a loss that stays NaN is never trained, so look at the count. `fit` ends at a loss that is not finite, whatever the
    optimizer makes of its gradient. No value is asked for, so that a step can be traced.

    Around `accumulate` it leaves out micro-batches, so that the others count; within, whole steps. A `dynamic_loss_scale` skips
    by itself, and goes around: it looks at gradients before this does. Clipping by a norm goes within, as NaN stays NaN.

    Args:
        transform: what sees the finite gradients: an optimizer.
        limit: how many are left out one after the other, at least 1; the next is let through, and so are all until a finite one
            comes: the params are lost then, and show that it is not about rare ones. None for no limit.

    Raises:
        TypeError: it is not a transform, or the limit is not an int.
        ValueError: it is a `dynamic_loss_scale`.

    >>> import torch
    >>> from fundl import adam, skip_nonfinite, skipped_steps
    >>> optimizer, params = skip_nonfinite(adam(0.1)), torch.ones(2)
    >>> params, state = optimizer.step(torch.tensor([1.0, torch.nan]), optimizer.init(params), params)
    >>> params, skipped_steps(state)
    (tensor([1., 1.]), tensor(1))
    """
    require_transform(transform)
    if isinstance(transform, DynamicLossScale):
        raise ValueError(
            "dynamic_loss_scale is the outermost of all transforms, and skips such steps by itself: write"
            " dynamic_loss_scale(optimizer)"
        )
    return SkipNonfinite(transform, limit)


def skipped_steps(state: object) -> Tensor:
    """How many steps `skip_nonfinite` left out, int64 without axes; in an ensemble, of each run.

    Args:
        state: of such an optimizer; or what holds one, as a `TrainState` does. Of several, it is their sum.

    Raises:
        ValueError: there is no such state in it.
    """
    counts = [record.skipped for record in tree.records(state) if isinstance(record, SkipState)]
    if not counts:
        raise ValueError(f"{describe(state)} counts no skipped steps: those of skip_nonfinite(optimizer) are counted")
    return torch.stack(counts).sum(0)
