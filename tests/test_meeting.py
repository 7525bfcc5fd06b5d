"""Processes that torchrun has started again meet, whatever those before them have left in its store."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]  # torch does not say that it hands it on

from fundl._common.meeting import place_of_start

SHORT, LONG = timedelta(seconds=0.1), timedelta(minutes=1)


def met(store: HashStore, size: int) -> set[str]:
    """The places that so many processes find, the first of which comes last."""
    with ThreadPoolExecutor(size) as threads:
        found = [threads.submit(place_of_start, store, rank, size, LONG) for rank in reversed(range(size))]
    return {one.result() for one in found}


def test_all_find_one_place_and_each_start_another() -> None:
    store = HashStore()
    starts = [met(store, 3) for _ in range(20)]
    assert all(len(places) == 1 for places in starts)
    assert len(set.union(*starts)) == 20


def test_a_start_that_was_killed_is_no_part_of_the_next() -> None:
    store = HashStore()
    with pytest.raises(RuntimeError, match="the first process has not answered within the time that start"):
        place_of_start(store, 1, 3, SHORT)  # its question stays in the store
    with pytest.raises(RuntimeError, match="of 3 processes, number 1, 2 did not come"):
        place_of_start(store, 0, 3, SHORT)
    assert len(met(store, 3)) == 1
