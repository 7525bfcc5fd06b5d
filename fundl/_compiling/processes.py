"""Compiled functions of many processes: one of them compiles, and all run the same collectives, or none is compiled.

What the processes say to each other here goes through the store by which they met, not through collectives: those of a step may
be on their way in another process.
"""

import itertools
import json
import platform
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

import torch
import torch.distributed

from fundl._common import folder
from fundl._compiling.graphs import Graph
from fundl._compiling.inductor import CompilerError
from fundl._compiling.lock import COMPILER_LOCK

if TYPE_CHECKING:
    from torch._C._distributed_c10d import ProcessGroup, Store

NAMES: Final = ("torch.distributed.distributed_c10d._get_default_store", "torch._C._distributed_c10d._resolve_process_group")
"""What is private in torch and used here."""

F = TypeVar("F")


class UnlikeProcessesError(RuntimeError):
    """Processes that compute together would not do the same; the message says what differs."""


def compiled_once(graph: Graph, key: str, make: Callable[[], F]) -> F:
    """What is made of a graph: on each machine by one process, for whose result the others wait, to find it on disk.

    Raises:
        UnlikeProcessesError: a process has another sequence of exchanges, or cannot compile.
        CompilerError: none can.
    """
    groups = {name: group for name, group in zip(graph.groups, map(_group, graph.groups), strict=True) if group.size() > 1}
    if not groups:
        return make()
    store = _store()
    for name, group in groups.items():
        _require_same_exchanges(name, group, store, graph.collectives)
    place = f"fundl/{platform.node()}/{folder.chosen()}/{key}"
    is_first = store.add(f"{place}/begun", 1) == 1
    if not is_first:
        _heard(store, f"{place}/done")
    made: list[F] = []
    failure: CompilerError | None = None
    try:
        made.append(make())
    except CompilerError as error:
        failure = error
    finally:
        if is_first:
            store.set(f"{place}/done", "")
    for name, group in groups.items():
        _require_same_success(name, group, store, failure)
    if failure is not None:
        raise failure
    return made[0]


def _require_same_exchanges(name: str, group: "ProcessGroup", store: "Store", own: Sequence[str]) -> None:
    """Raise unless all processes of a group exchange the same tensors in the same order."""
    for rank, text in enumerate(_told(name, group, store, json.dumps([*own]))):
        for place, (mine, other) in enumerate(itertools.zip_longest(own, json.loads(text), fillvalue="nothing")):
            if mine != other:
                raise UnlikeProcessesError(
                    f"the processes would wait for each other for ever: exchange {place} of the function is {mine} in process"
                    f" {group.rank()}, and {other} in process {rank}. A function must do the same in each of them, whatever its"
                    " rank, and with tensors of the same shapes"
                )


def _require_same_success(name: str, group: "ProcessGroup", store: "Store", failure: CompilerError | None) -> None:
    """Raise unless all processes of a group have compiled, or none has."""
    told = _told(name, group, store, "" if failure is None else str(failure))
    if "" in told and any(told):
        rank = next(rank for rank, text in enumerate(told) if text)
        raise UnlikeProcessesError(
            f"process {rank} cannot compile what others have compiled, so that they would compute unlike numbers: {told[rank]}"
        )


_numbers: dict[str, "itertools.count[int]"] = {}  # of what was told in each group


def _told(name: str, group: "ProcessGroup", store: "Store", text: str) -> list[str]:
    """What each process of a group tells, by its rank, where all of them tell something in the same order."""
    place = f"fundl/{name}/{torch.distributed.get_process_group_ranks(group)}"
    place = f"{place}/{next(_numbers.setdefault(place, itertools.count()))}"
    store.set(f"{place}/{group.rank()}", text)
    return [_heard(store, f"{place}/{rank}") for rank in range(group.size())]


_PAUSES: Final = (0.001, 0.05)  # seconds: the first, and the longest
_TIMEOUT: Final = timedelta(minutes=30)
_others: Final = threading.Condition(COMPILER_LOCK)


def _heard(store: "Store", key: str) -> str:
    """What stands under a key of the store, once it is there.

    Other threads may compile meanwhile: what this one waits for, that of another process may have begun after that for which
    another thread here waits.
    """
    pause, longest = _PAUSES
    given: timedelta = getattr(store, "timeout", _TIMEOUT)  # torch says of no store that it has one
    latest = time.monotonic() + given.total_seconds()
    with _others:
        while not store.check([key]) and time.monotonic() < latest:
            _others.wait(pause)  # which lets go of the lock
            pause = min(1.5 * pause, longest)
    store.wait([key], timedelta(seconds=1))  # if it did not come, this says so
    return store.get(key).decode()


def _group(name: str) -> "ProcessGroup":
    from torch._C import _distributed_c10d as c10d  # noqa: PLC0415  # not every torch has it

    return c10d._resolve_process_group(name)  # type: ignore[arg-type]  # a name is a str


def _store() -> "Store":
    from torch.distributed import distributed_c10d  # noqa: PLC0415  # likewise

    return distributed_c10d._get_default_store()
