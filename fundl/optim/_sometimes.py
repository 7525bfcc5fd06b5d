"""Transforms around another one that they apply in some steps only."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Generic, Self

import attrs
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common.modes import is_readable
from fundl.optim.flat import Tensors, copies, zeros_like
from fundl.optim.transform import Rule, S, Transform
from fundl.tree import Splits

Own = TypeVar("Own")
"""The state of such a transform, with that of the other one inside."""


@attrs.frozen
class Sometimes(Transform[Own], Generic[S, Own]):
    """A transform around another one, which it applies in some steps only. In the others params and that one's state stay.

    Where the leaves are parts, the other one may ask all processes for a norm. So it is applied in the same steps in each of
    them, whether a state is written over or not: that depends on who else holds it, in one process for longer than in another.

    Args:
        transform: the other one.
        splits: what the leaves are parts of.
    """

    transform: Transform[S]
    splits: Splits = attrs.field(default=(), kw_only=True, repr=False)

    @abstractmethod
    def _selected(
        self, rule: Rule[S], grads: Tensors, state: Own, params: Tensors, *, otherwise: Tensors
    ) -> tuple[Tensors, Own]:
        """Apply a rule of the other transform in any case, and select what comes out, so that a traced step is one graph."""

    @abstractmethod
    def _chosen(
        self, rule: Rule[S], grads: Tensors, state: Own, params: Tensors, *, otherwise: Callable[[Tensors], Tensors]
    ) -> tuple[Tensors, Own]:
        """The same, where it can be looked at whether the rule is to be applied; the state's own tensors are written over."""

    @abstractmethod
    def _own(self, state: Own) -> Tensor:
        """A tensor of the state: where it can be read, so can what decides."""

    @abstractmethod
    def _copied(self, state: Own) -> Own:
        """The state with copies of its own tensors; that of the other transform stays."""

    @override
    def change(self, grads: Tensors, state: Own, params: Tensors) -> tuple[Tensors, Own]:
        if not any(self.splits) or not is_readable(self._own(state)):
            return self._selected(self.transform.change, grads, state, params, otherwise=zeros_like(params))
        return self._chosen(self.transform.change, grads, self._copied(state), params, otherwise=zeros_like)

    @override
    def move(self, grads: Tensors, state: Own, params: Tensors) -> tuple[Tensors, Own]:
        if not any(self.splits) or not is_readable(self._own(state)):
            return self._selected(self.transform.move, grads, state, params, otherwise=params)
        return self._chosen(self.transform.move, grads, self._copied(state), params, otherwise=copies)

    @override
    def divided(self, splits: Splits) -> Self:
        return attrs.evolve(self, transform=self.transform.divided(splits), splits=splits)

    @override
    def weighed(self, weight: float | Tensor) -> Self:
        transform = self.transform.weighed(weight)
        return self if transform is self.transform else attrs.evolve(self, transform=transform)

    @property
    @override
    def writes_over(self) -> bool:
        return self.transform.writes_over

    @override
    def change_over(self, grads: Tensors, state: Own, params: Tensors) -> tuple[Tensors, Own]:
        if not is_readable(self._own(state)):
            return self.change(grads, state, params)
        return self._chosen(self.transform.change_over, grads, state, params, otherwise=zeros_like)

    @override
    def move_over(self, grads: Tensors, state: Own, params: Tensors) -> tuple[Tensors, Own]:
        if not is_readable(self._own(state)):
            return self.move(grads, state, params)
        return self._chosen(self.transform.move_over, grads, state, params, otherwise=lambda params: params)
