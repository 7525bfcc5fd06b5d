"""How processes meet that torchrun has started again: at a place in its store where nothing is left of those before them.

torchrun's own store outlives the processes. What those of an earlier start have said there, their addresses among it, would be
taken for what the new ones say. No number that torchrun gives is the same in all of them and new in each start: how often it
has started differs from machine to machine. So the first process draws a name for the place, and tells it to each that asks in
this start.
"""

import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import torch.distributed

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_PAUSE: Final = 0.01  # seconds


def outlives_processes() -> bool:
    """Whether the store by which the processes meet is torchrun's own."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def meet(backend: str, timeout: timedelta) -> None:
    """Make torch's process group of all processes that a launcher has started.

    Raises:
        RuntimeError: not all came within the time.
    """
    if not outlives_processes():
        torch.distributed.init_process_group(backend, timeout=timeout)
        return
    from torch.distributed.distributed_c10d import PrefixStore  # noqa: PLC0415  # not every torch has it
    from torch.distributed.rendezvous import rendezvous  # noqa: PLC0415  # likewise

    store, rank, size = next(rendezvous("env://", timeout=timeout))
    own = PrefixStore(place_of_start(store, rank, size, timeout), store)
    torch.distributed.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timeout)


def place_of_start(store: "Store", rank: int, size: int, timeout: timedelta) -> str:
    """A name that all processes of this start have in common, and none of another one.

    Raises:
        RuntimeError: not all came within the time.
    """
    latest = time.monotonic() + timeout.total_seconds()
    if rank == 0:
        return _tell(store, size, latest)
    mine = os.urandom(8).hex()
    store.set(f"fundl/asks/{rank}", mine)
    answer = f"fundl/answer/{mine}"
    while not store.check([answer]):
        _pause(latest, "the first process has not answered")
    place = store.get(answer).decode()
    store.set(f"{place}/here/{rank}", "")
    return place


def _tell(store: "Store", size: int, latest: float) -> str:
    """Tell the place to each process that asks, until all are there: one that asked in an earlier start will ask once more."""
    place = f"fundl/start/{os.urandom(8).hex()}"
    missing = set(range(1, size))
    while missing:
        for rank in sorted(missing):
            if store.check([f"{place}/here/{rank}"]):
                missing.remove(rank)
            elif store.check([asks := f"fundl/asks/{rank}"]):
                store.set(f"fundl/answer/{store.get(asks).decode()}", place)
        if missing:
            _pause(latest, f"of {size} processes, {_listed(missing)} did not come")
    return place


def _listed(ranks: set[int]) -> str:
    shown = sorted(ranks)[:5]
    return f"number {', '.join(map(str, shown))}{', ...' if len(ranks) > len(shown) else ''}"


def _pause(latest: float, missing: str) -> None:
    if time.monotonic() > latest:
        raise RuntimeError(f"the processes did not meet: {missing} within the time that start(minutes=) gives")
    time.sleep(_PAUSE)
