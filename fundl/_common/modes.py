"""The modes that torch computes in: with a tape or without, watched by a compiler or not."""

import math
import operator
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

import torch
from torch import Tensor


class no_grad:  # noqa: N801  # torch's own is called so, and does the same in three times the time
    """``with no_grad():`` records no tape: each public function that computes opens it once."""

    __slots__ = ("_before",)

    def __enter__(self) -> bool:
        """Whether a tape was recorded before."""
        self._before = before = torch.is_grad_enabled()
        if before:
            torch._C._set_grad_enabled(False)
        return before

    def __exit__(self, *_: object) -> None:
        if self._before:
            torch._C._set_grad_enabled(True)


def inference_mode() -> AbstractContextManager[None]:
    """A context that records no tape and makes small kernels cheaper: what comes of it serves for computing with it alone."""
    return torch._C._InferenceMode(True)  # torch's own does the same in three times the time


class callers_mode:  # noqa: N801  # likewise
    """The mode that it was made in; ``with`` it, inside of `inference_mode`, what a user wrote runs in the user's own mode."""

    __slots__ = ("_grad", "_guard", "_inference")

    def __init__(self) -> None:
        self._grad, self._inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def __enter__(self) -> None:
        self._guard = torch._C._InferenceMode(self._inference)
        self._guard.__enter__()  # type: ignore[no-untyped-call]  # torch does not say
        if torch.is_grad_enabled() is not self._grad:
            torch._C._set_grad_enabled(self._grad)

    def __exit__(self, *_: object) -> None:
        self._guard.__exit__(None, None, None)


# A torch that lacks one of these is taken to trace or to wrap all: what goes round that is slower, and right.
_dispatch_modes: Final[Callable[[], int]] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_is_compiling: Final[Callable[[], bool]] = torch.compiler.is_compiling
is_wrapped: Final[Callable[[Tensor], bool]] = getattr(torch._C._functorch, "is_functorch_wrapped_tensor", lambda _: True)
_forward_mode: Final = operator.attrgetter("autograd.forward_ad")(torch)  # asked whether it is in use, and not used


def is_traced() -> bool:
    """Whether a compiler or a mode sees what this thread computes, for which it must be made of operations that they know."""
    return _is_compiling() or bool(_dispatch_modes())


def is_in_forward_mode() -> bool:
    """Whether forward mode, as of ``torch.func.jvp``, may differentiate what is computed, kernel by kernel."""
    return _forward_mode._current_level >= 0  # type: ignore[no-any-return]  # of a module that is not typed


def is_untraced(x: Tensor) -> bool:
    """Whether a tensor is one that holds its numbers, and nothing traces or wraps it."""
    return type(x) is Tensor and not is_traced() and not is_wrapped(x)


def is_readable(x: Tensor) -> bool:
    """Whether a tensor's values can be looked at for nothing: it is on the CPU, and nothing traces or wraps it."""
    return type(x) is Tensor and x.is_cpu and not (_is_compiling() or _dispatch_modes() or is_wrapped(x))


class Batch(NamedTuple):
    """What torch.vmap batches: a tensor whose first axis is that of the batch, and which vmap it is."""

    tensors: Tensor
    level: int

    def wrapped(self, tensors: Tensor) -> Tensor:
        """Another tensor with that axis, as vmap shows it to the function that it maps."""
        wrapped: Tensor = torch._C._functorch._add_batch_dim(tensors, 0, self.level)
        return wrapped


def batch_of(x: Tensor) -> Batch | None:
    """What is behind a tensor that torch.vmap shows; None if there is nothing, or torch does not let it be seen."""
    functorch = torch._C._functorch
    if type(x) is not Tensor or is_traced() or not all(hasattr(functorch, name) for name in _OF_BATCHES):
        return None
    if not functorch.is_batchedtensor(x):
        return None
    return Batch(functorch.get_unwrapped(x).movedim(functorch.maybe_get_bdim(x), 0), functorch.maybe_get_level(x))


_OF_BATCHES: Final = ("is_batchedtensor", "get_unwrapped", "maybe_get_bdim", "maybe_get_level", "_add_batch_dim")


def is_in_memory(x: Tensor) -> bool:
    """Whether who reads a tensor's memory, number by number, misses nothing: it has no tape, no tangent, no sign to take."""
    return is_readable(x) and x.is_contiguous() and not x.requires_grad and not x.is_neg() and not is_in_forward_mode()


def may_be_nan(value: Tensor) -> bool:
    """Whether a number is NaN, or cannot be looked at: then a slower formula is taken, which holds everywhere."""
    return not is_readable(value) or math.isnan(value.item())
