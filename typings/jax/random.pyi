# What the benchmarks use of jax.random.

from jax import Array

def key(seed: int) -> Array: ...
