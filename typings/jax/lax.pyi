# What the benchmarks use of jax.lax.

from collections.abc import Callable
from typing import TypeVar

from jax import Array

_S = TypeVar("_S")
_X = TypeVar("_X")
_Y = TypeVar("_Y")

def rsqrt(x: Array) -> Array: ...
def scan(f: Callable[[_S, _X], tuple[_S, _Y]], init: _S, xs: _X) -> tuple[_S, _Y]: ...
