"""Where the batches of a run come from: one pass through them after the other, of which epochs are parts."""

import operator
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, Generic, TypeAlias

import attrs

from fundl._common.modes import callers_mode
from fundl.data import Minibatches
from fundl.layer import Target
from fundl.random import Key
from fundl.runs import T
from fundl.training.step import X
from fundl.tree import describe

Batches: TypeAlias = Callable[[Key], Iterable[tuple[X, Target]]] | Iterable[tuple[X, Target]]
"""The batches (x, target) of an epoch, as a function of the epoch's key, or something to go through once per epoch."""


@attrs.define
class Source(Generic[X, Target]):
    """The batches of a run.

    Args:
        batches: of a pass.
        key_of: the key of a pass that begins at a step.
        every: how many steps an epoch has; None for those of a pass.
    """

    batches: Batches[X, Target]
    key_of: Callable[[int], Key]
    every: int | None = None
    began: int = attrs.field(default=0, init=False)  # the step at which the current pass began
    _begun: list[int] = attrs.field(factory=list, init=False)  # the passes that the current epoch goes through, likewise
    _pass: Iterable[tuple[X, Target]] = attrs.field(default=(), init=False)
    _rest: Iterator[tuple[X, Target]] | None = attrs.field(default=None, init=False)  # of it
    _length: int = attrs.field(default=0, init=False)  # of a pass, as far as is known

    @property
    def steps(self) -> int:
        """How many steps an epoch has, as far as is known once it has begun; else 0."""
        return self.every or self._length

    def epoch(self, first: int, step: int) -> Iterator[tuple[X, Target]]:
        """The batches of the epoch that began at a first step, from another step on.

        Whatever a user wrote is asked in the mode of now.
        """
        self._begun = [self.began]
        if self._rest is None:
            self._begin_pass(step)
        return self._through_passes(step, first + self.every) if self.every else self._through_one(step)

    def how_to_get(self, step: int, key: str) -> str:
        """What gives the batch of a step of the current epoch once more, as Python; the key of a pass is called so.

        The pass that it belongs to began at the step that stands in the key's place of ``{began}``.
        """
        began = max(one for one in self._begun if one <= step)
        made = f"batches({key.format(began=began)})" if callable(self.batches) else "batches"
        return f"next(itertools.islice({made}, {step - began}, None))"

    def take_up(self, began: int, step: int) -> tuple[X, Target] | None:
        """Go on at a step, in the pass that began at one before it; the first batch of that pass, if there is one."""
        self._begin_pass(began)
        done, first = step - began, None
        if self._rest is not None and done:
            first = next(self._rest, None)
            if isinstance(self._pass, Minibatches):
                self._rest = iter(self._pass.after(done))
            else:
                next(islice(self._rest, done - 1, done - 1), None)
        return first

    def _through_one(self, step: int) -> Iterator[tuple[X, Target]]:
        rest, self._rest = self._rest or iter(()), None
        for batch in rest:
            step += 1
            yield batch
        self._length = step - self.began

    def _through_passes(self, step: int, end: int) -> Iterator[tuple[X, Target]]:
        mode = callers_mode()
        while step < end:
            for batch in islice(self._rest or iter(()), end - step):
                step += 1
                yield batch
            if step < end:
                if step == self.began:  # a whole pass without a batch
                    return
                with mode:
                    self._begin_pass(step)

    def _begin_pass(self, step: int) -> None:
        self.began = step
        self._begun.append(step)
        self._pass = self.batches(self.key_of(step)) if callable(self.batches) else self.batches
        if not hasattr(self._pass, "__iter__") and not hasattr(self._pass, "__getitem__"):
            raise TypeError(
                "batches are pairs (x, target) in a list, a DataLoader, or what a function of the epoch's key returns, such as"
                f" lambda key: minibatches(key, (x, target), 32), not {describe(self._pass)}"
            )
        self._length = operator.length_hint(self._pass) or self._length
        self._rest = iter(self._pass) if type(self._pass) in _OURS else _outside(callers_mode(), self._pass)


_OURS: Final = frozenset({list, tuple, Minibatches})
"""What runs nothing of a user's as it is gone through."""


def _outside(mode: callers_mode, batches: Iterable[T]) -> Iterator[T]:
    """The batches, made in another mode than that of who takes them."""
    with mode:
        iterator = iter(batches)
    while True:
        with mode:
            try:
                batch = next(iterator)
            except StopIteration:
                return
        yield batch
