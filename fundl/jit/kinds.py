"""Kinds of arguments: a function is compiled once for each. Which there are is remembered, and what was new in each is told."""

import threading
import time
import warnings
from collections.abc import Callable, Hashable
from typing import Generic, TypeAlias, TypeVar, final

import attrs
import torch
from torch import Tensor

from fundl.jit import torch_private
from fundl.jit.ambient import Ambient
from fundl.jit.walk import explain

F = TypeVar("F")


class RetraceError(RuntimeError):
    """A function was called with arguments that it is not compiled for, more often than it may be; the message says which."""


@final
@attrs.frozen
class Trace:
    """One compilation of a function.

    Args:
        reason: why it was necessary: what of the arguments was new.
        seconds: that tracing and compiling took.
        cached: whether the compiled code was on disk.
        compiled: whether there is any: without a compiler the function runs as it is, which a warning says.
    """

    reason: str
    seconds: float
    cached: bool
    compiled: bool = True


# --- Kinds --------------------------------------------------------------------------------------------------------------


@attrs.frozen
class Signature:
    """The structures of arguments, by place and by name."""

    arguments: tuple[tuple[str, Hashable], ...]
    positional: int  # so many of them are given by place

    def explain(self, old: "Signature") -> str:
        """Where it differs from another one."""
        names, old_names = [name for name, _ in self.arguments], [name for name, _ in old.arguments]
        if names != old_names or self.positional != old.positional:
            return (
                f"the arguments were ({', '.join(old_names)}), and are ({', '.join(names)}), {self.positional} of them by place"
            )
        columns = zip(old.arguments, self.arguments, strict=True)
        return next(explain(before, after, name) for (name, before), (_, after) in columns if before != after)


LeafKind: TypeAlias = tuple[torch.dtype, tuple[int, ...], tuple[int, ...] | None, torch.device]
"""A tensor's dtype, shape, strides (None if it is contiguous) and device."""


@attrs.frozen
class Kind:
    """What a compiled form is for: structures, tensors, and what torch is set to. Where the tensors are is for messages."""

    signature: Signature
    leaves: tuple[LeafKind, ...]
    ambient: Ambient
    paths: tuple[str, ...] = attrs.field(eq=False)

    def explain(self, old: "Kind") -> str:
        """Where it differs from another one."""
        if old.signature != self.signature:
            return self.signature.explain(old.signature)
        changed = [
            f"{path} was {_named(before)}, and is {_named(after)}"
            for path, before, after in zip(self.paths, old.leaves, self.leaves, strict=True)
            if before != after
        ]
        if changed:
            more = f" (and {len(changed) - 1} more tensors differ)" if len(changed) > 1 else ""
            return changed[0] + more
        return self.ambient.explain(old.ambient)


def leaf_kind(leaf: Tensor) -> LeafKind:
    """A tensor, from some axis on, as far as compiled code depends on it; the strides of axes of one element do not matter."""
    steps = tuple([step if size > 1 else 1 for step, size in zip(leaf.stride(), leaf.shape, strict=True)])
    return leaf.dtype, tuple(leaf.shape), None if leaf.is_contiguous() else steps, leaf.device


def _named(leaf: LeafKind) -> str:
    dtype, shape, strides, device = leaf
    with_strides = "" if strides is None else f" with strides {list(strides)}"
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}{with_strides}{'' if device.type == 'cpu' else f' on {device}'}"


# --- Compiled forms -----------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Forms(Generic[F]):
    """The compiled forms of a function, one for each kind of arguments; None where it must run as it is.

    Args:
        name: of the function.
        most: how many there may be; None for any number.
    """

    name: str
    most: int | None
    traces: tuple[Trace, ...] = ()
    _found: dict[Kind, F | None] = attrs.field(factory=dict)
    _lock: threading.RLock = attrs.field(factory=threading.RLock)

    def find(self, kind: Kind, make: Callable[[], tuple[F, bool]]) -> F | None:
        """The form for arguments of a kind.

        Args:
            kind: of the arguments.
            make: compiles it, if there is none; and tells whether it was on disk.

        Raises:
            RetraceError: there is none, and may not be another.
        """
        with self._lock:
            if kind not in self._found:
                self._found[kind] = self._make(kind, make)
            return self._found[kind]

    def _make(self, kind: Kind, make: Callable[[], tuple[F, bool]]) -> F | None:
        reason, start = self._reason(kind), time.perf_counter()
        if self.most is not None and len(self.traces) >= self.most:
            raise RetraceError(
                f"{self.name} was traced {len(self.traces)} times, and may not be traced again (max_traces={self.most}),"
                f" but {reason}"
            )
        torch_private.require_known()
        form: F | None = None
        cached = False
        try:
            form, cached = make()
        except torch_private.CompilerError as error:
            warnings.warn(f"{self.name} is not compiled, and runs as it is: {error}", RuntimeWarning, stacklevel=5)
        self.traces = (*self.traces, Trace(reason, time.perf_counter() - start, cached, compiled=form is not None))
        return form

    def _reason(self, kind: Kind) -> str:
        """What is new in a kind, compared to the one before it that differs the least."""
        if not self._found:
            return "it is the first call"
        reasons = [kind.explain(old) for old in reversed(self._found)]
        return min(reasons, key=len)
