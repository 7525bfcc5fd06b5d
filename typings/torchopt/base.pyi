# What the benchmarks use of torchopt.base.

from typing import TypeVar

_T = TypeVar("_T")

class OptState: ...  # any tree

class GradientTransformation:
    def init(self, params: object) -> OptState: ...
    def update(self, updates: _T, state: OptState, *, params: _T, inplace: bool = True) -> tuple[_T, OptState]: ...
