"""What processes tell each other in texts, through the store by which they met: beside all exchanges of tensors."""

import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final, final

from fundl._common.alive import has_died, place_of_process

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_PAUSES: Final = (0.001, 0.05)  # seconds: the first, and the longest
_LOOK: Final = 1.0  # so many seconds after the last time it is looked whether the other is still there


_TIMEOUT: Final = timedelta(minutes=30)


class LeftError(RuntimeError):
    """Another process does not go on."""


@final
class StoreTalk:
    """A talk of some processes. The first of them hears all, and answers: each says and hears one text.

    It asks the store again and again, for whoever waits there keeps it from all other threads; and it looks whether one that it
    waits for has died, as far as this machine tells.

    Args:
        store: by which they met.
        place: of their talks in the store, the same in each of them, and of no others.
        number: of this talk.
        rank: which of them this one is.
        size: how many they are.
    """

    def __init__(self, store: "Store", place: str, number: int, rank: int, size: int) -> None:
        self._store, self._home, self._place, self._rank, self._size = store, place, f"{place}/{number}", rank, size
        self._said = 0
        if number == 0:
            store.set(f"{place}/process/{rank}", place_of_process())
        given: timedelta = getattr(store, "timeout", _TIMEOUT)  # torch says of no store that it has one
        self._seconds = given.total_seconds()

    def told(self, text: str, together: Callable[[Sequence[str]], str], /) -> str:
        """What the first process makes of the texts of all, in their order.

        Raises:
            LeftError: another process has left the talk, or does not come.
        """
        place, before = f"{self._place}/{self._said}", f"{self._place}/{self._said - 1}/answer"
        self._said += 1
        try:
            if self._rank:
                self._store.set(f"{place}/{self._rank}", text)
                return self._heard(f"{place}/answer", 0)
            others = [f"{place}/{rank}" for rank in range(1, self._size)]
            texts = [text, *[self._heard(key, rank) for rank, key in enumerate(others, 1)]]
            answer = together(texts)
            self._store.set(f"{place}/answer", answer)
        except BaseException:
            self.leave()
            raise
        for key in (*others, before):  # which all have heard by now
            self._store.delete_key(key)
        return answer

    def leave(self) -> None:
        """End it for all: whoever waits for this process hears of it."""
        with contextlib.suppress(RuntimeError):  # the store may be gone with the process that had it
            self._store.set(f"{self._place}/left", str(self._rank))

    def _heard(self, key: str, rank: int) -> str:
        pause, longest = _PAUSES
        looked = time.monotonic()
        latest = looked + self._seconds
        while not self._store.check([key]):
            if self._store.check([left := f"{self._place}/left"]) and not self._store.check([key]):
                raise LeftError(f"process {self._store.get(left).decode()} does not go on: its own error says why")
            now = time.monotonic()
            if now > latest:
                raise LeftError(
                    f"process {rank} does not say anything: all processes of a group do the same, in the same order"
                )
            if now - looked > _LOOK:
                looked = now
                self._require_alive(rank, key)
            time.sleep(pause)
            pause = min(1.5 * pause, longest)
        return self._store.get(key).decode()

    def _require_alive(self, rank: int, key: str) -> None:
        """Raise if a process has died before it said what goes under a key."""
        process = f"{self._home}/process/{rank}"
        if self._store.check([process]) and has_died(self._store.get(process).decode()) and not self._store.check([key]):
            raise LeftError(f"process {rank} has died, of {self._size} that were to do this together: nothing comes of it")
