"""Compiling pure functions of trees as one graph each."""

from fundl.donated import DonatedError
from fundl.jit.function import Compiled, jit
from fundl.jit.kinds import RetraceError, Trace
from fundl.jit.scan import Scanned, scan
from fundl.jit.tracing import TraceError

__all__ = ["Compiled", "DonatedError", "RetraceError", "Scanned", "Trace", "TraceError", "jit", "scan"]
