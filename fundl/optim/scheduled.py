"""Any hyper-parameter of a transform by a schedule."""

from collections.abc import Callable, Mapping
from typing import Generic, TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common import suggestions
from fundl._common.listed import Listed
from fundl._common.modes import is_readable
from fundl.optim._numbers import Path, WithNumbers, listed, number_at, numbers_of, replaced
from fundl.optim.flat import Tensors, new_count
from fundl.optim.rate import value_at
from fundl.optim.transform import S, Transform, require_transform
from fundl.tree import Record, describe

AnySchedule: TypeAlias = Callable[[Tensor], Tensor]


@final
@attrs.frozen(eq=False)
class ScheduledState(Record, Generic[S], metaclass=Listed):
    """The state of `scheduled`.

    Args:
        count: the steps done, int64 without axes.
        inner: the state of the transform that has the hyper-parameters.
    """

    count: Tensor
    inner: S


@final
@attrs.frozen
class Scheduled(WithNumbers[S, ScheduledState[S]]):
    """See `scheduled`."""

    schedules: tuple[tuple[str, AnySchedule], ...]
    _paths: tuple[Path, ...] = attrs.field(init=False, eq=False, repr=False)  # of their numbers, which each step asks for

    def __attrs_post_init__(self) -> None:
        places = numbers_of(self.transform)
        for name, schedule in self.schedules:
            if name not in places:
                raise ValueError(
                    f"the transform has no hyper-parameter {name!r} that could follow a schedule: it has {listed(places)}. What"
                    " follows one already is not among them, nor what is turned off in it, as a momentum of 0 is"
                )
            _require_schedule(name, schedule, number_at(self.transform, places[name]))
        object.__setattr__(self, "_paths", tuple(places[name] for name, _ in self.schedules))

    @property
    @override
    def decides(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.schedules)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> ScheduledState[S]:
        return ScheduledState(new_count(leaves), self.transform.start(leaves, paths))

    @override
    def rest(self, state: ScheduledState[S], params: Tensors) -> tuple[Tensors, ScheduledState[S]]:
        results, inner = self._adjusted(state).rest(state.inner, params)
        return results, ScheduledState(state.count, inner)

    @override
    def _inner(self, state: ScheduledState[S]) -> S:
        return state.inner

    @override
    def _after(self, state: ScheduledState[S], inner: S) -> ScheduledState[S]:
        return ScheduledState(state.count + 1, inner)

    @override
    def _after_over(self, state: ScheduledState[S], inner: S) -> ScheduledState[S]:
        state.count.add_(1)
        return state if inner is state.inner else ScheduledState(state.count, inner)

    @override
    def _adjusted(self, state: ScheduledState[S]) -> Transform[S]:
        if type(state) is not ScheduledState:
            raise TypeError("the state is of another transform")
        values = {
            path: value_at(schedule, state.count) for path, (_, schedule) in zip(self._paths, self.schedules, strict=True)
        }
        if not is_readable(state.count) or state.count.ndim:
            exact = {path: value.to(torch.float64) if isinstance(value, Tensor) else value for path, value in values.items()}
            return replaced(self.transform, exact, check=False)
        try:
            return replaced(self.transform, {path: float(value) for path, value in values.items()}, check=True)
        except ValueError as error:
            error.add_note(f"a schedule gave that after {int(state.count)} steps")
            raise


def scheduled(
    transform: Transform[S], numbers: Mapping[str, AnySchedule] | None = None, /, **more: AnySchedule
) -> Scheduled[S]:
    """Let any hyper-parameters of a transform follow schedules: beta1, weight_decay, momentum, max_norm, epsilon, rate, ...

        optimizer = scheduled(adamw(1e-3), weight_decay=cosine_schedule(0.1, 1000), beta1=linear_schedule(0.85, 0.95, 100))

    They are the numbers that `adjustable` knows, by the same names. What the transform itself has in their place is the value
    for which `init` makes the state; no step takes it. The count of steps is in the state, and so in a checkpoint: a step that
    is compiled is compiled once, and a run that is taken up goes on to the bit. In an eager step the bits are those of the
    transform with these numbers.

    It counts its own steps: around `accumulate` all micro-batches, within it whole steps. `adjustable` goes around it, and has
    the numbers that no schedule decides.

    Args:
        transform: an optimizer, or any other transform.
        numbers: schedules by name, for names with a dot: ``{"head.rate": schedule}``.
        more: by name.

    Raises:
        TypeError: it is not a transform, or what is given for a number is not a schedule.
        ValueError: the transform has no such number, or another one decides it; none is given. In a step that is not compiled:
            a schedule gives a value that the transform would refuse.

    >>> from fundl import adamw, linear_schedule, scheduled
    >>> optimizer, params = scheduled(adamw(0.1), weight_decay=linear_schedule(0.0, 1.0, steps=2)), torch.ones(2)
    >>> state = optimizer.init(params)
    >>> for _ in range(2):
    ...     params, state = optimizer.step(torch.zeros(2), state, params)
    ...     print(params)
    tensor([1., 1.])
    tensor([0.9500, 0.9500])
    """
    require_transform(transform)
    if numbers is not None and not isinstance(numbers, Mapping):
        raise TypeError(f'numbers are a dict of schedules by name, such as {{"head.rate": schedule}}, not {describe(numbers)}')
    given, places = {**(numbers or {}), **more}, numbers_of(transform)
    if not given:
        raise ValueError(f"no number is given a schedule: write scheduled(optimizer, name=schedule), of {listed(places)}")
    return Scheduled(transform, tuple(given.items()))


def _require_schedule(name: str, schedule: object, value: float) -> None:
    if isinstance(schedule, type) or getattr(schedule, "__name__", "").endswith("_schedule"):
        made = suggestions.name_of(schedule)
        raise TypeError(f"{name} is a schedule, but {made} only makes one: call it, {made}(...)")
    if not callable(schedule):
        hint = f": a number is the transform's own, as now {value:g}" if isinstance(schedule, int | float) else ""
        raise TypeError(f"{name} is a schedule, such as cosine_schedule({value:g}, 1000), not {describe(schedule)}{hint}")
