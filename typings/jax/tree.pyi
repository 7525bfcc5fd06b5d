# What the benchmarks use of jax.tree.

from collections.abc import Iterable
from typing import Generic, TypeVar

from jax import Array

_T = TypeVar("_T")

class Structure(Generic[_T]): ...  # JAX's own does not say of what

def flatten(tree: _T) -> tuple[list[Array], Structure[_T]]: ...
def unflatten(treedef: Structure[_T], leaves: Iterable[Array]) -> _T: ...
