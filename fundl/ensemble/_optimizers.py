"""The transforms that do for all runs what a transform does for each."""

from collections.abc import Sequence
from typing import Self, final

import attrs
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl.optim.flat import Tensors
from fundl.optim.search import Search
from fundl.optim.transform import Rule, S, Transform, require_transform


def of_runs(transform: Transform[S]) -> Transform[S]:
    """The transform that does for an ensemble what a transform does for each run."""
    require_transform(transform)
    if isinstance(transform, Search):
        return transform.for_runs(of_runs)
    return transform if transform.elementwise else _EachRun(transform)


@final
@attrs.frozen
class _EachRun(Transform[S]):
    """Applies a transform to one run after the other. Its state is that of the transform, with a first axis of runs.

    What gathers micro-batches (`accumulate`) is among them, since the weights of the runs may differ.
    """

    transform: Transform[S]
    weights: float | Tensor | None = None

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> S:
        of_one = tuple(path.removeprefix(".models") for path in paths)
        states = [self.transform.start(leaves_of_one, of_one) for leaves_of_one in tree.unstack(leaves, len(leaves[0]))]
        for run, state in enumerate(states):
            tree.require_same_structure(states[0], state, names=("the optimizer's state of run 0", f"that of run {run}"))
        return tree.stack(states)

    @override
    def change(self, grads: Tensors, state: S, params: Tensors) -> tuple[Tensors, S]:
        return self._of_each([transform.change for transform in self._transforms(params)], grads, state, params)

    @override
    def move(self, grads: Tensors, state: S, params: Tensors) -> tuple[Tensors, S]:
        return self._of_each([transform.move for transform in self._transforms(params)], grads, state, params)

    @override
    def rest(self, state: S, params: Tensors) -> tuple[Tensors, S]:
        def rest(_grads: Tensors, of_one: S, params: Tensors) -> tuple[Tensors, S]:
            return self.transform.rest(of_one, params)

        return self._of_each([rest] * len(params[0]), params, state, params)

    @override
    def loss_scale(self, state: S) -> Tensor | None:
        return self.transform.loss_scale(state)

    @override
    def weighed(self, weight: float | Tensor) -> Self:
        return self if self.transform.weighed(1.0) is self.transform else attrs.evolve(self, weights=weight)

    def _transforms(self, params: Tensors) -> list[Transform[S]]:
        """The transform, with the weight of each run's gradient if there are any."""
        runs, weights = params[0].shape[0], self.weights
        if weights is None:
            return [self.transform] * runs
        of_runs = weights.unbind() if isinstance(weights, Tensor) and weights.ndim else [weights] * runs
        return [self.transform.weighed(weight) for weight in of_runs]

    def _of_each(self, rules: Sequence[Rule[S]], grads: Tensors, state: S, params: Tensors) -> tuple[Tensors, S]:
        of_runs = tree.unstack((grads, state, params), len(rules))
        return tree.stack([rule(*of_run) for rule, of_run in zip(rules, of_runs, strict=True)])
