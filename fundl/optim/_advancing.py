"""The base of transforms that say once how their state goes on, whether anew or written over the last one."""

from abc import abstractmethod
from typing import TypeVar

import attrs
from typing_extensions import override

from fundl.optim.flat import Tensors
from fundl.optim.transform import Transform

S = TypeVar("S")


@attrs.frozen
class Advancing(Transform[S]):
    """A transform whose `change` and `change_over` are one function, of the helpers of `_moments`, say."""

    writes_over = True

    @abstractmethod
    def advance(self, grads: Tensors, state: S, params: Tensors, *, over: bool) -> tuple[Tensors, S]:
        """The updates and the next state; the same bits, whether it is new, or the given one, written over."""

    @override
    def change(self, grads: Tensors, state: S, params: Tensors) -> tuple[Tensors, S]:
        return self.advance(grads, state, params, over=False)

    @override
    def change_over(self, grads: Tensors, state: S, params: Tensors) -> tuple[Tensors, S]:
        return self.advance(grads, state, params, over=True)
