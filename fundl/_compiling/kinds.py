"""Kinds of arguments: a function is compiled once for each. Which there are is remembered, and what was new in each is told."""

import time
import warnings
from collections.abc import Callable, Hashable
from typing import Generic, TypeAlias, TypeVar, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._compiling import inductor, torch_private, tracing
from fundl._compiling.alone import ALONE, uninterrupted
from fundl._compiling.ambient import Ambient
from fundl._compiling.walk import explain, statics

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
        loaded: whether it came from a file that was loaded; then nothing was traced.
    """

    reason: str
    seconds: float
    cached: bool
    compiled: bool = True
    loaded: bool = False


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

    def counterparts(self, other: "Signature") -> dict[int, object]:
        """Of static values of this one, by their ids, those of an equal signature."""
        columns = zip(self.arguments, other.arguments, strict=True)
        pairs = [zip(statics(one, ""), statics(same, ""), strict=True) for (_, one), (_, same) in columns]
        return {id(value): same for part in pairs for (_, value), (_, same) in part}


LeafKind: TypeAlias = tuple[torch.dtype, tuple[int, ...], tuple[int, ...] | None, torch.device]
"""A tensor's dtype, shape, strides (None if it is contiguous) and device."""


Like: TypeAlias = tuple[torch.dtype, tuple[int, ...], torch.device]
"""What a contiguous tensor is like."""


def like(tensor: Tensor) -> Like:
    """What a tensor is like."""
    return tensor.dtype, tuple(tensor.shape), tensor.device


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
        most: how many may be traced; None for any number.
    """

    name: str
    most: int | None
    traces: tuple[Trace, ...] = ()
    _found: dict[Kind, F | None] = attrs.field(factory=dict)

    def find(self, kind: Kind, make: Callable[[], tuple[F, bool]]) -> F | None:
        """The form for arguments of a kind.

        Args:
            kind: of the arguments.
            make: compiles it, if there is none; and tells whether it was on disk.

        Raises:
            RetraceError: there is none, and may not be another.
        """
        if kind in self._found:
            return self._found[kind]
        with ALONE:
            if kind not in self._found:
                self._found[kind] = self._make(kind, make)
            return self._found[kind]

    def there(self) -> list[F]:
        """All forms that are compiled."""
        with ALONE:
            return [form for form in self._found.values() if form is not None]

    def add(self, kind: Kind, form: F, trace: Trace) -> None:
        """Add a form that was compiled elsewhere, unless there is one for its kind."""
        with ALONE:
            if self._found.get(kind) is None:
                self._found[kind] = form
                self.traces = (*self.traces, trace)

    @override
    def __str__(self) -> str:
        loaded = sum(trace.loaded for trace in self.traces)
        return f"traced {len(self.traces) - loaded} times" + (f", loaded {loaded}" if loaded else "")

    def _make(self, kind: Kind, make: Callable[[], tuple[F, bool]]) -> F | None:
        reason, start = self._reason(kind), time.perf_counter()
        traced = sum(not trace.loaded for trace in self.traces)
        if self.most is not None and traced >= self.most:
            raise RetraceError(
                f"{self.name} was traced {traced} times, and may not be traced again (max_traces={self.most}), but {reason}"
            )
        form: F | None = None
        cached = False
        try:
            with uninterrupted():
                torch_private.require_known(torch_private.NAMES)
                tracing.prepare()
            with torch_private.sources_forgotten():
                form, cached = make()
        except (inductor.CompilerError, torch_private.UnknownTorchError) as error:
            warnings.warn(f"{self.name} is not compiled, and runs as it is: {error}", RuntimeWarning, stacklevel=5)
        self.traces = (*self.traces, Trace(reason, time.perf_counter() - start, cached, compiled=form is not None))
        return form

    def _reason(self, kind: Kind) -> str:
        """What is new in a kind, compared to the one before it that differs the least."""
        if not self._found:
            return "it is the first call"
        reasons = [kind.explain(old) for old in reversed(self._found)]
        return min(reasons, key=len)
