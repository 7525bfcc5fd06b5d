"""Loops over the steps of sequences that a trace keeps as loops, where the program that it is for has them."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, TypeAlias

from torch import Tensor

Tensors: TypeAlias = Sequence[Tensor]
Body: TypeAlias = Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]
"""One step: of what is carried from step to step, of this step's rows, and of what is fixed, the next and what it gives."""


class Loop(Protocol):
    """Runs a body step by step."""

    def __call__(
        self, body: Body, carried: Tensors, rows: Tensors, fixed: Tensors, *, reverse: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What is carried after the last step, and what the steps gave, each with the steps along its first axis.

        Args:
            body: the step; it computes with what it is given alone, and writes to nothing.
            carried: before the first step.
            rows: with the steps along their first axis, one at least.
            fixed: the same in each step.
            reverse: whether it runs from the last row to the first.
        """


class _Tracing(threading.local):
    loop: Loop | None = None


_tracing: Final = _Tracing()


@contextmanager
def kept_as_loops(loop: Loop) -> Iterator[None]:
    """Have this thread keep loops, by what makes one of them."""
    before, _tracing.loop = _tracing.loop, loop
    try:
        yield
    finally:
        _tracing.loop = before


def is_exported() -> bool:
    """Whether this thread traces for a program that is not torch."""
    return _tracing.loop is not None


def loop_for(steps: int) -> Loop | None:
    """What keeps a loop of so many steps, if this thread is to; else it is run step by step."""
    return _tracing.loop if steps else None
