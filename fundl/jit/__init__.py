"""Compiling pure functions of trees as one graph each."""

from fundl.donated import DonatedError
from fundl.jit.function import Compiled, RetraceError, Trace, jit
from fundl.jit.scan import Scanned, scan
from fundl.jit.tracing import TraceError

__all__ = ["Compiled", "DonatedError", "RetraceError", "Scanned", "Trace", "TraceError", "jit", "scan"]
