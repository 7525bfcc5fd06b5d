# What the benchmarks use of equinox, whose package only they need.

from collections.abc import Callable
from typing import TypeVar

from equinox import nn as nn

_R = TypeVar("_R")

class Module: ...

def filter_vmap(fun: Callable[[], _R], *, axis_size: int) -> Callable[[], _R]: ...
