"""One process alone that takes itself for one of many: it allocates and sends as it would among them; the numbers are wrong."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal, TypeVar
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fundl import tree
from fundl._common import exchanges
from fundl.distributed import _links, pipeline
from fundl.distributed.staging import codes_of
from fundl.groups import Group

T = TypeVar("T")

PARTS: Final = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}
"""How many times each process sends the parts of the others along a ring."""


class Sent:
    """What a process has sent, in bytes, if all exchanges go along rings."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes, self.nbytes = sizes, 0

    def count(self, kind: str, whole: int, group: str) -> None:
        self.nbytes += PARTS[kind] * whole * (self.sizes[group] - 1) // self.sizes[group]


class _There:
    is_done = True

    def wait(self) -> None:
        pass


class _Came:
    def __init__(self, values: object) -> None:
        self.values = values

    def wait(self) -> object:
        return self.values


@contextmanager
def alone_of(*axes: Group, dtype: torch.dtype = torch.float32) -> Iterator[tuple[Group, Sent]]:
    """The group of all processes of a grid, whose process 0 along each axis, or one along the last, is answered by itself.

    Stages of a pipeline pass on numbers of a dtype.
    """
    every = Group(f"all of {', '.join(axis.name for axis in axes)}", math.prod(axis.size for axis in axes), 0)
    sent = Sent({group.name: group.size for group in (every, *axes)})
    ranks = {every.name: tuple(range(every.size))}
    for place, axis in enumerate(axes):
        step = math.prod(later.size for later in axes[place + 1 :])
        ranks[axis.name] = tuple(range(0, axis.size * step, step))
    code = int(codes_of([torch.empty(0, dtype=dtype)], torch.device("cpu")))

    def all_reduce(x: Tensor, _how: Literal["sum", "max"], name: str) -> Tensor:
        sent.count("all_reduce", x.nbytes, name)
        return x.clone()

    def all_reduce_(x: Tensor, _how: Literal["sum", "max"], name: str) -> Tensor:
        sent.count("all_reduce", x.nbytes, name)
        return x

    def all_gather(x: Tensor, size: int, name: str) -> Tensor:
        sent.count("all_gather", size * x.nbytes, name)
        return torch.cat([x] * size)

    def reduce_scatter(x: Tensor, _how: Literal["sum"], size: int, name: str) -> Tensor:
        sent.count("reduce_scatter", x.nbytes, name)
        return x[: x.shape[0] // size].clone()

    def send(values: object, _group: Group, *, to: int, tag: int) -> _There:  # noqa: ARG001
        sent.nbytes += tree.nbytes(values)
        return _There()

    def receive(like: object, _group: Group, *, source: int, tag: int) -> _Came:  # noqa: ARG001
        return _Came(tree.map(came, like))

    def came(leaf: Tensor) -> Tensor:
        return torch.full(leaf.shape, 0.0 if leaf.is_floating_point() else code, dtype=leaf.dtype)

    pipeline._tasks.cache_clear()  # which are of the rank that this was before
    with (
        mock.patch.multiple(
            exchanges,
            all_reduce=all_reduce,
            all_reduce_=all_reduce_,
            all_gather=all_gather,
            reduce_scatter=reduce_scatter,
            wait=lambda x: x,
        ),
        mock.patch.multiple(_links, send=send, receive=receive),
        mock.patch.object(Group, "process_group", property(lambda _: "of nobody")),
        mock.patch.object(Group, "ranks", property(lambda group: ranks[group.name])),
        mock.patch.object(torch.distributed, "get_backend", return_value="gloo"),
    ):
        yield every, sent


@contextmanager
def counted(group: Group) -> Iterator[Sent]:
    """What this process, really one of a group, gives to the others."""
    sent = Sent({group.name: group.size})

    def all_reduce(x: Tensor, how: Literal["sum", "max"], name: str) -> Tensor:
        sent.count("all_reduce", x.nbytes, name)
        return reduce(x, how, name)

    def all_reduce_(x: Tensor, how: Literal["sum", "max"], name: str) -> Tensor:
        sent.count("all_reduce", x.nbytes, name)
        return reduce_(x, how, name)

    def all_gather(x: Tensor, size: int, name: str) -> Tensor:
        sent.count("all_gather", size * x.nbytes, name)
        return gather(x, size, name)

    def reduce_scatter(x: Tensor, how: Literal["sum"], size: int, name: str) -> Tensor:
        sent.count("reduce_scatter", x.nbytes, name)
        return scatter(x, how, size, name)

    reduce, reduce_ = exchanges.all_reduce, exchanges.all_reduce_
    gather, scatter = exchanges.all_gather, exchanges.reduce_scatter
    with mock.patch.multiple(
        exchanges, all_reduce=all_reduce, all_reduce_=all_reduce_, all_gather=all_gather, reduce_scatter=reduce_scatter
    ):
        yield sent


def most_allocated(function: Callable[[], T]) -> tuple[T, int]:
    """What a function gives, and the most bytes on the CPU that it had at a time, beside those that were there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = function()
    assert profiled.profiler is not None
    found = profiled.profiler.kineto_results
    assert found is not None
    changes = sorted((event.start_ns(), event.nbytes()) for event in found.events() if event.name() == "[memory]")
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return result, most
