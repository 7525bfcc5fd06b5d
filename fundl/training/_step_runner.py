"""How the steps of a training run are taken: one by one, or many in one compiled call."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import ClassVar, Final, Generic, Literal, TypeAlias, TypeVar

from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._compiling import inductor, torch_private, waiting
from fundl._compiling.processes import UnlikeProcessesError
from fundl._compiling.scan import Scanned, scan
from fundl._compiling.tracing import TraceError
from fundl.collectives import gather_numbers
from fundl.groups import Group
from fundl.training._progress import Progress
from fundl.training._signals import HeldSignals

S = TypeVar("S")
B = TypeVar("B")
R = TypeVar("R")

Compile: TypeAlias = Literal["auto"] | bool
"""Whether to compile: True, False, or "auto", where it pays."""

_MOST_STEPS: Final = 256  # in one call, so that progress is seen, and Ctrl-C heard
_MOST_BYTES: Final = 2**24  # of the batches of one call, which are copied side by side
_COST: Final = 20.0  # seconds: more than compiling a step of a small network takes
_SAVING: Final = 1e-5  # seconds: less than what a compiled step saves for each trainable leaf


def pays(steps: int, model: object) -> bool:
    """Whether compiling saves more time than it costs, as far as the number of steps and the model tell.

    What is saved is the time between the kernels, some of which each trainable leaf needs. The answer is the same on every
    machine, whatever was compiled before, so that a run can be repeated to the bit.
    """
    return steps * len(tree.trainable_leaves(model)) * _SAVING > _COST


class StepRunner(Generic[S, B, R]):
    """Takes steps one by one: each goes from a state and a batch to the next state and a report."""

    writes_over: ClassVar[bool] = False
    """Whether steps write over a state that nobody else holds, and leave any other as it is."""

    def __init__(self, step: Callable[[S, B], tuple[S, R]]) -> None:
        self.step = step

    def expect(self, batch: B) -> None:
        """A batch that the others are like, where the first that comes may be another."""

    def take(self, state: S, batches: Iterable[B], signals: HeldSignals) -> Iterator[tuple[S, B, R, int]]:
        """The states after some steps, their batches and reports, and how many these are; 0 for one without a first axis.

        The signals are held; whoever takes a state releases them once all is done with it.
        """
        for batch in batches:
            returned: object = self.step(state, batch)
            if type(returned) is not tuple or len(returned) != 2:
                raise TypeError(f"a step returns a pair, the next state and a report, not {tree.describe(returned)}")
            state, report = returned
            signals.hold()
            yield state, batch, report, 0


class DonatingStepRunner(StepRunner[S, B, R]):
    """Takes steps of `train_step` that donate, one by one: a signal leaves no state half-written."""

    writes_over = True

    @override
    def take(self, state: S, batches: Iterable[B], signals: HeldSignals) -> Iterator[tuple[S, B, R, int]]:
        for batch in batches:
            signals.hold()
            state, report = self.step(state, batch)
            yield state, batch, report, 0


class CompiledStepRunner(StepRunner[S, B, R]):
    """Takes many steps in one compiled call, where their batches are like the first; any other is taken by itself.

    If it is to insist, a step that cannot be compiled is an error; else all are taken one by one.
    """

    def __init__(
        self, step: Callable[[S, B], tuple[S, R]], shown: Progress, *, insist: bool, over: Group | None = None
    ) -> None:
        super().__init__(step)
        self._over = over
        if insist:
            torch_private.require_known(torch_private.NAMES)
        self._many: Scanned[[S, B], tuple[S, R]] | None = scan(step) if torch_private.is_known("the step") else None
        self._shown, self._insist = shown, insist
        self._kind: _Kind | None = None

    @override
    def expect(self, batch: B) -> None:
        self._kind = _kind_of(batch)

    @override
    def take(self, state: S, batches: Iterable[B], signals: HeldSignals) -> Iterator[tuple[S, B, R, int]]:
        for is_like_first, group in self._alike(_Coming(batches)):
            many = self._compiled(state, group[0]) if is_like_first else None
            if many is None:
                for taken in super().take(state, group, signals):
                    state = taken[0]
                    yield taken
            else:
                stacked = tree.stack(group)
                state, reports = many(state, stacked)
                signals.hold()
                yield state, stacked, reports, len(group)

    def _alike(self, coming: "_Coming[B]") -> Iterator[tuple[bool, list[B]]]:
        """Groups of batches, and whether they are like the first: in all processes or in none, and of as many in each."""
        while True:
            kind, group = coming.group()
            self._kind = self._kind or kind
            count, is_like_first = len(group), kind == self._kind
            if self._over is not None:
                counts = gather_numbers([count, is_like_first], self._over)
                count, is_like_first = min(counts[::2]), all(counts[1::2])
                if not count and any(counts[::2]):
                    raise ValueError(
                        f"process {counts[::2].index(0)} has no more batches, while others have: give each process its part of"
                        " the same batches, minibatches(key, data, batch_size, part=group)"
                    )
                coming.give_back(group[count:])  # so that groups are the same wherever a run is taken up
            if not count:
                return
            yield is_like_first, group[:count]

    def _compiled(self, state: S, batch: B) -> "Scanned[[S, B], tuple[S, R]] | None":
        """What takes many steps at once, compiled by now; None if it cannot be."""
        if self._many is None or self._many.traces:
            return self._many
        self._shown.say("tracing the step ...")
        start = time.perf_counter()
        try:
            with waiting.told_to(self._shown.say):
                self._many(state, tree.stack([batch]))
        except UnlikeProcessesError:
            raise
        except Exception as error:  # what is wrong with the step itself comes up again as it runs as it is
            if self._insist:
                raise
            self._many = None
            self._shown.say(f"not compiled: {_reason(error)}; compile=True says where")
        else:
            if self._insist and not any(trace.compiled for trace in self._many.traces):
                inductor.require_known()  # says so if it is why
            self._shown.say(f"compiled in {time.perf_counter() - start:.1f} s")
        return self._many


def _reason(error: Exception) -> str:
    """Why a step was not compiled, in a few words."""
    if isinstance(error, TraceError):
        return "the step does what no graph can hold"
    return "the step gives a state of another structure" if isinstance(error, TypeError) else f"{type(error).__name__}"


_Kind: TypeAlias = tuple[object, ...]


class _Coming(Generic[B]):
    """Batches that come one after the other."""

    def __init__(self, batches: Iterable[B]) -> None:
        self._batches = iter(batches)
        self._given_back: deque[B] = deque()

    def group(self) -> tuple[_Kind | None, list[B]]:
        """The next ones of the same structure, shapes and dtypes, as many as one call takes, and what these are; or none."""
        kind: _Kind | None = None
        group: list[B] = []
        most = 1
        while len(group) < most and (batch := self._next()):
            its_kind = _kind_of(batch[0])
            if kind is None:
                kind, most = its_kind, max(1, min(_MOST_STEPS, _MOST_BYTES // max(1, tree.nbytes(batch[0]))))
            elif its_kind != kind:
                self.give_back(batch)
                break
            group += batch
        return kind, group

    def give_back(self, batches: Sequence[B]) -> None:
        """Let some come once more, before all others."""
        self._given_back.extendleft(reversed(batches))

    def _next(self) -> Sequence[B]:
        """The next one, if there is one."""
        return (self._given_back.popleft(),) if self._given_back else tuple(islice(self._batches, 1))


def _kind_of(batch: object) -> _Kind:
    """What batches have in common that one compiled step can take."""
    leaves, structure = tree.flatten(batch)
    return structure, *((leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
