"""Optimizers that look at the loss at other params than those of a step: what they are given for it, and what gives it."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Self, TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl.optim.flat import Tensors, all_narrowed, all_widened
from fundl.optim.transform import P, S, State, Transform

Evaluate: TypeAlias = Callable[[Tensors], tuple[Tensor, Tensors]]
"""From the trainable leaves of params to the loss there, and its gradients."""


class Search(Transform[S]):
    """An optimizer that evaluates the loss, and its gradient, at other params before it makes a step.

    `train_step` knows it, and evaluates the batch of the step, with the same random numbers. Whoever steps by hand does so with
    `step_by`. It is the outermost of all transforms: what it is made around sees the gradients that it found.

    Whoever derives from it writes `start`, of Transform, and `search`.
    """

    __slots__ = ()

    _is_contract = True

    @abstractmethod
    def search(self, evaluate: Evaluate, value: Tensor, grads: Tensors, state: S, params: Tensors) -> tuple[Tensors, S]:
        """The next params and state, of the loss and its gradients at the params, and of what evaluates others."""

    def for_runs(self, of_runs: "Callable[[Transform[S]], Transform[S]]") -> Self:  # noqa: ARG002  # most are for one
        """The search that does for an ensemble what this one does for each run.

        Args:
            of_runs: makes such a one of any transform.
        """
        raise TypeError(
            f"{type(self).__name__} decides of each run by itself how often it evaluates, and an ensemble evaluates all of its"
            " runs at once: train the models one after the other"
        )

    def step_by(
        self, evaluate: Callable[[P], tuple[Tensor, P]], value: Tensor, grads: P, state: State[P, S], params: P
    ) -> tuple[P, State[P, S]]:
        """The next params, and the next state.

            def evaluate(params):
                return value_and_grad(loss, params, x, target)

            value, grads = evaluate(params)
            params, state = optimizer.step_by(evaluate, value, grads, state, params)

        Args:
            evaluate: a pure function from params to the loss, a tensor without axes, and its gradient.
            value, grads: what it is at the params.
            state: what `init` or the last step returned.
            params: where to step from.
        """
        return self.given(evaluate, value, params).step(grads, state, params)

    def given(self, evaluate: Callable[[P], tuple[Tensor, P]], value: Tensor, params: P) -> Transform[S]:
        """The transform for one step, from these params, at which the loss has this value."""
        leaves = tuple(tree.trainable_leaves(params))

        def flat(others: Tensors) -> tuple[Tensor, Tensors]:
            loss, grads = evaluate(tree.with_trainable_leaves(params, all_narrowed(others, leaves)))
            return loss, all_widened(tuple(tree.trainable_leaves(grads)))

        return _Given(self, flat, value)

    @override
    def change(self, grads: Tensors, state: S, params: Tensors) -> tuple[Tensors, S]:
        raise TypeError(
            f"{type(self).__name__} evaluates the loss at other params, for which it has to be the outermost of all transforms,"
            " as in sam(chain(clip_by_global_norm(1.0), adamw(0.001))): train_step gives it what it needs, and whoever steps by"
            " hand writes optimizer.step_by(evaluate, value, grads, state, params)"
        )


@final
@attrs.frozen(eq=False)
class _Given(Transform[S]):
    """A search with what it needs for one step."""

    search: Search[S]
    evaluate: Evaluate
    value: Tensor

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> S:
        return self.search.start(leaves, paths)

    @override
    def change(self, grads: Tensors, state: S, params: Tensors) -> tuple[Tensors, S]:
        moved, state = self.move(grads, state, params)
        return torch._foreach_sub(moved, params), state

    @override
    def move(self, grads: Tensors, state: S, params: Tensors) -> tuple[Tensors, S]:
        return self.search.search(self.evaluate, self.value, grads, state, params)

    @override
    def divided(self, splits: tree.Splits) -> Self:
        return attrs.evolve(self, search=self.search.divided(splits))
