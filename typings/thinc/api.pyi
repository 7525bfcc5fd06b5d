# What the benchmarks use of thinc, whose package only they need.

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

_X = TypeVar("_X")
_Y = TypeVar("_Y")

class Optimizer: ...

class Model(Generic[_X, _Y]):
    def initialize(self) -> Model[_X, _Y]: ...
    def set_param(self, name: str, value: NDArray[np.float32]) -> None: ...
    def begin_update(self, X: _X) -> tuple[_Y, Callable[[_Y], _X]]: ...  # noqa: N803
    def finish_update(self, optimizer: Optimizer) -> None: ...

def Linear(nO: int, nI: int) -> Model[NDArray[np.float32], NDArray[np.float32]]: ...  # noqa: N802, N803
def Relu(nO: int, nI: int) -> Model[NDArray[np.float32], NDArray[np.float32]]: ...  # noqa: N802, N803
def chain(*layers: Model[_X, _X]) -> Model[_X, _X]: ...  # of layers that keep the type of their input
def SGD(learn_rate: float, *, grad_clip: float, use_averages: bool) -> Optimizer: ...  # noqa: N802
def Adam(learn_rate: float, *, grad_clip: float, use_averages: bool) -> Optimizer: ...  # noqa: N802
