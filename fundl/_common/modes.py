"""The modes that torch computes in: with a tape or without, watched by a compiler or not."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

import torch
from torch import Tensor


class no_grad:  # noqa: N801  # torch's own is called so, and does the same in three times the time
    """``with no_grad():`` records no tape: each public function that computes opens it once."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = torch.is_grad_enabled()
        if self._before:
            torch._C._set_grad_enabled(False)

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
_is_wrapped: Final[Callable[[Tensor], bool]] = getattr(torch._C._functorch, "is_functorch_wrapped_tensor", lambda _: True)


def is_traced() -> bool:
    """Whether a compiler or a mode sees what this thread computes, for which it must be made of operations that they know."""
    return torch.compiler.is_compiling() or bool(_dispatch_modes())


def is_in_forward_mode() -> bool:
    """Whether ``torch.func.jvp`` differentiates what this thread computes, by torch's own formulas for each kernel."""
    functorch = torch._C._functorch
    return functorch.maybe_current_level() is not None and any(
        interpreter.key() == functorch.TransformType.Jvp for interpreter in functorch.get_interpreter_stack()
    )


def is_untraced(x: Tensor) -> bool:
    """Whether a tensor is one that holds its numbers, and nothing traces or wraps it."""
    return type(x) is Tensor and not is_traced() and not _is_wrapped(x)


def is_readable(x: Tensor) -> bool:
    """Whether a tensor's values can be looked at for nothing: it is on the CPU, and nothing traces or wraps it."""
    return is_untraced(x) and x.is_cpu


def may_be_nan(value: Tensor) -> bool:
    """Whether a number is NaN, or cannot be looked at: then a slower formula is taken, which holds everywhere."""
    return not is_readable(value) or math.isnan(value.item())
