"""What processes that make a run together agree on: when they look at each other, and what ends the run in all of them."""

import time
from collections.abc import Callable
from typing import Final, final

import attrs

from fundl.collectives import gather_numbers
from fundl.groups import Group
from fundl.training._signals import HeldSignals
from fundl.tree import whole_and_pieces

SECONDS: Final = 1.0  # about so long it takes until a signal is heard


@final
@attrs.frozen
class Partners:
    """The processes that make a run together: those that have other rows, and those that have other parts of the state.

    Args:
        along: the groups of this process, along each axis of their grid; none, where it makes the run alone.
    """

    along: tuple[Group, ...]

    @classmethod
    def of(cls, state: object, over: Group | None) -> "Partners":
        """Those of a run over a group, with a state that may be divided among others."""
        found = [among for piece in whole_and_pieces(state)[1] for among in piece.among]
        others = dict.fromkeys(one for one in found if isinstance(one, Group) and one.size > 1)
        if over is None:
            return cls(tuple(others))
        return cls((over, *[one for one in others if not {*one.ranks} <= {*over.ranks}]))

    def __bool__(self) -> bool:
        return bool(self.along)

    @property
    def is_first(self) -> bool:
        """Whether this process decides what only one can tell, such as the time."""
        return not any(group.rank for group in self.along)

    @property
    def number(self) -> int:
        """The number of this process among all that `start` found."""
        return self.along[0].ranks[self.along[0].rank] if self.along else 0

    def largest(self, *numbers: int) -> list[int]:
        """The largest of the numbers that each of them has, 0 or more; all of them ask together."""
        found = [*numbers]
        for group in self.along:
            of_all = gather_numbers(found, group)
            found = [max(of_all[place :: len(numbers)]) for place in range(len(numbers))]
        return found

    def of_first(self, *numbers: int) -> list[int]:
        """The numbers that the first of them has."""
        return self.largest(*[number if self.is_first else 0 for number in numbers])

    def each(self, share: Callable[[], None]) -> None:
        """Do the share of this process; if one of them cannot, all of them raise an error.

        Raises:
            Exception: that of the share.
            RuntimeError: another process raised one.
        """
        failure: Exception | None = None
        try:
            share()
        except Exception as error:
            if not self:
                raise
            failure = error
        if not self:
            return
        (who,) = self.largest(0 if failure is None else 1 + self.number)
        if failure is not None:
            raise failure
        if who:
            raise RuntimeError(f"process {who - 1} cannot go on, so the run ends in all of them: its own error says why")

    def stop(self, signals: HeldSignals) -> BaseException | None:
        """What a signal that waited ends the run with: in the process that it was sent to, and so in all of them."""
        error = signals.heard()
        (who,) = self.largest(0 if error is None else 1 + self.number)
        if who and error is None:
            return KeyboardInterrupt(f"a signal was sent to process {who - 1}, which ends the run in all of them")
        return error


@final
@attrs.define
class Looks:
    """When they look at each other: after as many turns in each, about once a second.

    All of them have to do so at the same place between the exchanges of their steps, and no two of them have the same clock: so
    the first tells, at each look, after how many turns the next one is.

    Args:
        partners: the processes.
        seconds: between two looks; they are less often where a turn takes longer.
    """

    partners: Partners
    seconds: float = SECONDS
    _turns: int = attrs.field(default=1, init=False)  # from the last look to the next one
    _made: int = attrs.field(default=0, init=False)  # since the last look
    _since: float = attrs.field(factory=time.monotonic, init=False)

    def is_due(self) -> bool:
        """Whether a look is due after one more turn."""
        self._made += 1
        return self._made >= self._turns

    def look(self, signals: HeldSignals, *, is_late: bool, is_settled: bool) -> tuple[bool, bool]:
        """Whether a signal waits in one of them, and whether a checkpoint is due; neither, if it has to wait for a later turn.

        Args:
            signals: of this process.
            is_late: whether a checkpoint is due, as the first one finds.
            is_settled: whether this process could write one.
        """
        now = time.monotonic()
        fitting = int(self._made * self.seconds / max(now - self._since, 1e-9))
        is_first = self.partners.is_first
        told = (fitting, is_late) if is_first else (0, False)
        fitting, late, waits, unsettled = self.partners.largest(*told, signals.are_waiting, not is_settled)
        if (late or waits) and unsettled:
            self._turns = self._made + 1  # look again at once
            return False, False
        self._turns = max(1, min(fitting, 2 * self._made))  # a first turn may have taken long, or the last ones no time
        self._made, self._since = 0, now
        return bool(waits), bool(late)
