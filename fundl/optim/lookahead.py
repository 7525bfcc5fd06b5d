"""Slow params that follow fast ones, k steps forward and one back."""

from typing import Generic, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import Listed
from fundl._common.modes import is_readable
from fundl._common.numbers import count_of_steps, share
from fundl._common.suggestions import with_suggestions
from fundl.optim.flat import Number, Tensors, copies, mixed, new_count, require_fit, select
from fundl.optim.transform import S, Transform, require_transform
from fundl.tree import Record, Splits


@final
@attrs.frozen(eq=False)
class LookaheadState(Record, Generic[S], metaclass=Listed):
    """The state of `lookahead`.

    Args:
        count: the steps since the slow params were last moved, int64 without axes.
        slow: the slow params; those of 16 bits in float32.
        inner: the state of the transform that moves the fast ones.
    """

    count: Tensor
    slow: Tensors
    inner: S


@final
@attrs.frozen
class Lookahead(Transform[LookaheadState[S]]):
    """See `lookahead`."""

    transform: Transform[S]
    every: int = attrs.field(validator=count_of_steps)
    share: Number = attrs.field(validator=share)

    @property
    @override
    def numbers(self) -> tuple[str, ...]:
        return ("share",)

    @property
    @override
    def elementwise(self) -> bool:
        return self.transform.elementwise

    @property
    @override
    def writes_over(self) -> bool:
        return self.transform.writes_over

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> LookaheadState[S]:
        return LookaheadState(new_count(leaves), copies(leaves), self.transform.start(leaves, paths))

    @override
    def change(self, grads: Tensors, state: LookaheadState[S], params: Tensors) -> tuple[Tensors, LookaheadState[S]]:
        updates, inner = self.transform.change(grads, state.inner, params)
        count, full = self._counted(state, params)
        if full is False:
            return updates, LookaheadState(count, state.slow, inner)
        slow = mixed(state.slow, torch._foreach_add(params, updates), self.share)
        # As precise where the way is short: params are large beside it.
        back = mixed(torch._foreach_sub(state.slow, params), updates, self.share)
        if full is True:
            return back, LookaheadState(torch.zeros_like(count), slow, inner)
        return select(full, back, updates), self._selected(full, count, slow, state, inner)

    @override
    def move(self, grads: Tensors, state: LookaheadState[S], params: Tensors) -> tuple[Tensors, LookaheadState[S]]:
        fast, inner = self.transform.move(grads, state.inner, params)
        count, full = self._counted(state, params)
        if full is False:
            return fast, LookaheadState(count, state.slow, inner)
        slow = mixed(state.slow, fast, self.share)
        if full is True:
            return copies(slow), LookaheadState(torch.zeros_like(count), slow, inner)
        return select(full, slow, fast), self._selected(full, count, slow, state, inner)

    @override
    def change_over(self, grads: Tensors, state: LookaheadState[S], params: Tensors) -> tuple[Tensors, LookaheadState[S]]:
        if not self.writes_over or not is_readable(state.count):
            return self.change(grads, state, params)
        updates, inner = self.transform.change_over(grads, state.inner, params)
        if self._moves_over(state, params):
            back = mixed(torch._foreach_sub(state.slow, params), updates, self.share)
            torch._foreach_lerp_(state.slow, torch._foreach_add(params, updates), float(self.share))
            updates = back
        return updates, self._with_inner(state, inner)

    @override
    def move_over(self, grads: Tensors, state: LookaheadState[S], params: Tensors) -> tuple[Tensors, LookaheadState[S]]:
        if not self.writes_over or not is_readable(state.count):
            return self.move(grads, state, params)
        fast, inner = self.transform.move_over(grads, state.inner, params)
        if self._moves_over(state, params):
            torch._foreach_lerp_(state.slow, fast, float(self.share))
            torch._foreach_copy_(fast, state.slow)
        return fast, self._with_inner(state, inner)

    def _counted(self, state: LookaheadState[S], params: Tensors) -> tuple[Tensor, bool | Tensor]:
        """The count after this step, and whether the slow params move: a tensor, where it cannot be looked at."""
        require_fit(state.slow, params)
        count = state.count + 1
        full = count >= self.every  # the state may be of more steps
        return count, bool(full) if is_readable(count) and not count.ndim else full

    def _moves_over(self, state: LookaheadState[S], params: Tensors) -> bool:
        """Count a step in the state, and tell whether the slow params move."""
        require_fit(state.slow, params)
        if state.count.add_(1) < self.every:
            return False
        state.count.zero_()
        return True

    def _selected(self, full: Tensor, count: Tensor, slow: Tensors, state: LookaheadState[S], inner: S) -> LookaheadState[S]:
        return LookaheadState(torch.where(full, 0, count), select(full, slow, state.slow), inner)

    def _with_inner(self, state: LookaheadState[S], inner: S) -> LookaheadState[S]:
        return state if inner is state.inner else LookaheadState(state.count, state.slow, inner)

    @override
    def rest(self, state: LookaheadState[S], params: Tensors) -> tuple[Tensors, LookaheadState[S]]:
        results, inner = self.transform.rest(state.inner, params)
        return results, LookaheadState(state.count, state.slow, inner)

    @override
    def loss_scale(self, state: LookaheadState[S]) -> Tensor | None:
        return self.transform.loss_scale(state.inner)

    @override
    def weighed(self, weight: float | Tensor) -> Self:
        transform = self.transform.weighed(weight)
        return self if transform is self.transform else attrs.evolve(self, transform=transform)

    @override
    def divided(self, splits: Splits) -> Self:
        transform = self.transform.divided(splits)
        return self if transform is self.transform else attrs.evolve(self, transform=transform)


@with_suggestions
def lookahead(transform: Transform[S], *, every: int = 5, share: float = 0.5) -> Lookahead[S]:
    """Let an optimizer take some steps, then go a part of the way to where it came, and begin anew from there.

        f = the optimizer's step from f;  every so many steps,  s = s + share (f - s),  f = s

    The params of a run are f, the fast ones. Each time that s has moved they are s, the slow ones, which are in the state as
    well, and take the memory of the params once more. The optimizer's own state goes on. Around `accumulate` it counts
    micro-batches: ``accumulate(lookahead(adam(1e-3)), 4)`` counts whole steps.

    Args:
        transform: an optimizer.
        every: after how many of its steps the slow params move, at least 1.
        share: which part of the way they go, in [0, 1].

    Raises:
        TypeError: it is not a transform.

    Source:
        Zhang, Lucas, Hinton and Ba, Lookahead optimizer: k steps forward, 1 step back, 2019.

    >>> import torch
    >>> from fundl import lookahead, sgd
    >>> optimizer, params = lookahead(sgd(1.0), every=2), torch.zeros(1)
    >>> state = optimizer.init(params)
    >>> for _ in range(4):
    ...     params, state = optimizer.step(torch.tensor([-1.0]), state, params)
    ...     print(params)
    tensor([1.])
    tensor([1.])
    tensor([2.])
    tensor([2.])
    """
    require_transform(transform)
    return Lookahead(transform, every, share)
