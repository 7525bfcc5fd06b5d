"""Compiling pure functions of trees as one graph each."""

from fundl.jit.function import Compiled, RetraceError, Trace, jit
from fundl.jit.tracing import TraceError

__all__ = ["Compiled", "RetraceError", "Trace", "TraceError", "jit"]
