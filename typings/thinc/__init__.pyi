# The package that the benchmarks use of, and only they need; see api.pyi.
