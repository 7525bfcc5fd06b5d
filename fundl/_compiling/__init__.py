"""Compiling pure functions of trees as one graph each: `jit` and `scan`."""
