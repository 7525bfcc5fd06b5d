"""A loop as one operator of fundl's own, which a graph holds, and which is no operation of ATen."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, cast

import torch
from torch import Tensor

from fundl._common.looping import Body, Tensors, kept_as_loops


class _Bodies(threading.local):
    known: tuple[Body, ...] = ()  # of the loops of a trace, by number


_bodies: Final = _Bodies()


@contextmanager
def loops_kept() -> Iterator[None]:
    """Have this thread keep loops as operators, whose bodies are known in it."""
    before = _bodies.known
    with kept_as_loops(_loop):
        try:
            yield
        finally:
            _bodies.known = before


def body_of(number: int) -> Body:
    """The body of a loop."""
    return _bodies.known[number]


def _loop(body: Body, carried: Tensors, rows: Tensors, fixed: Tensors, *, reverse: bool) -> tuple[list[Tensor], list[Tensor]]:
    _bodies.known = (*_bodies.known, body)
    found = registered()([*carried], [*rows], [*fixed], len(_bodies.known) - 1, reverse)
    return found[: len(carried)], found[len(carried) :]


_Operator = Callable[[list[Tensor], list[Tensor], list[Tensor], int, bool], list[Tensor]]


@functools.cache
def registered() -> _Operator:
    """The operator, which this makes known to torch."""
    operator = torch.library.custom_op("fundl::loop", _steps, mutates_args=())
    operator.register_fake(_shapes)
    return cast("_Operator", operator._opoverload)


def _steps(carried: list[Tensor], rows: list[Tensor], fixed: list[Tensor], number: int, reverse: bool) -> list[Tensor]:
    steps, order = len(rows[0]), range(len(rows[0]))
    gave: list[Tensors] = []
    state: Tensors = [tensor.clone() for tensor in carried]
    for step in order[::-1] if reverse else order:
        state, given = body_of(number)(state, [row[step] for row in rows], fixed)
        gave.append(given)
    assert len(gave) == steps
    return [*state, *(torch.stack(column) for column in zip(*(gave[::-1] if reverse else gave), strict=True))]


def _shapes(
    carried: list[Tensor],
    rows: list[Tensor],
    fixed: list[Tensor],
    number: int,
    reverse: bool,  # noqa: ARG001  # it is the same for both
) -> list[Tensor]:
    state, given = body_of(number)(carried, [row[0] for row in rows], fixed)
    after = [tensor.new_empty(tensor.shape) for tensor in state]
    return [*after, *(tensor.new_empty((len(rows[0]), *tensor.shape)) for tensor in given)]
