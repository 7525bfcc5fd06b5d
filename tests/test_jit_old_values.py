"""Functions that hand on old values while their state is written over: to another leaf, a further result, a report.

All choices of the next state's leaves among three old ones, each in many forms, with a report of the old leaves: compiled with
donation, without, and as a scan they are what the function computes. Hundreds of cases make one graph.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

import pytest
import torch
from torch import Tensor

from fundl import jit, key, random, scan, tree

State: TypeAlias = dict[str, tuple[Tensor, Tensor, Tensor]]
All: TypeAlias = tuple[Tensor, tuple[Tensor, Tensor], State]
Form: TypeAlias = Callable[[Tensor], Tensor]

HANDED_ON: Final[Mapping[str, Form]] = {
    "itself": lambda old: old,
    "clone": torch.clone,
    "view": lambda old: old.view(-1).view(old.shape),
    "whole slice": lambda old: old[0:],
    "joined": lambda old: torch.cat([old]),
    "joined of parts": lambda old: torch.cat([old[:1], old[1:]]),
    "of another shape": lambda old: old.reshape(-1).clone().reshape(old.shape),
    "transposed twice": lambda old: old.transpose(0, -1).contiguous().transpose(0, -1),
    "as strided": lambda old: old.as_strided(old.shape, old.stride()),
    "unbound": lambda old: torch.stack(old.unbind()),
}
"""The old leaf, number for number: what a compiler may take for nothing to do."""

ARRANGED: Final[Mapping[str, Form]] = {
    "transposed": lambda old: old.transpose(0, -1),
    "reversed": lambda old: old.flip(0),
    "rolled": lambda old: old.roll(1, 0),
    "one row": lambda old: old[-1:].expand(old.shape),
    "diagonal": lambda old: old.diagonal().expand(old.shape) if old.ndim > 1 else old[:1].expand(old.shape),
    "sums": lambda old: old.sum(0, keepdim=True).expand(old.shape),
    "halves": lambda old: old / 2,
    "bits": lambda old: old.view(torch.int32).view(torch.float32),
}
"""The old leaf's numbers, in other places or changed: each must be read before it is written over."""

FORMS: Final[Mapping[str, Form]] = {**HANDED_ON, **ARRANGED}
CHOICES: Final = [*itertools.product(range(3), range(3), range(3))]
SHAPES_OF_CHOICES: Final = [(0, 1, 2), (1, 0, 2), (1, 2, 0), (0, 0, 0), (0, 0, 1), (0, 0, 2), (1, 0, 0)]
"""Of all choices one of each kind: who takes whose place, whatever the names."""
QUICK: Final = [(2, 1, 0), (1, 2, 0), (2, 0, 1), (0, 0, 1), (1, 2, 2), (1, 1, 0)]
Plan: TypeAlias = Mapping[str, tuple[tuple[int, Form], ...]]


def by_turns(choices: Sequence[tuple[int, int, int]]) -> Plan:
    """Choices of three leaves, in forms that come by turns."""
    turns = itertools.cycle(FORMS.items())
    found: dict[str, tuple[tuple[int, Form], ...]] = {}
    for choice in choices:
        forms = [next(turns) for _ in choice]
        found[f"{choice} {', '.join(name for name, _ in forms)}"] = tuple(zip(choice, (form for _, form in forms), strict=True))
    return found


def in_form(form: Form) -> Plan:
    return {str(choice): tuple((old, form) for old in choice) for choice in SHAPES_OF_CHOICES}


def new_state(plan: Plan, shape: tuple[int, ...]) -> State:
    seeds = iter(random.split(key(0), 3 * len(plan)))

    def leaf() -> Tensor:
        return random.normal(next(seeds), shape)

    return {name: (leaf(), leaf(), leaf()) for name in plan}


def step_of(plan: Plan) -> Callable[[State, Tensor], tuple[State, dict[str, object]]]:
    def step(state: State, x: Tensor) -> tuple[State, dict[str, object]]:
        """The chosen leaves; the last one moves on, for all steps to be of other numbers. Told are all old ones."""
        after, report = State(), dict[str, object]()
        for name, choices in plan.items():
            old = state[name]
            first, second, third = (form(old[number]) for number, form in choices)
            after[name] = (first, second, third + x)
            report[name] = (old, old[0].transpose(0, -1), old[1][:1], old[2] + x, old[2])
        return after, report

    return step


def assert_alike(actual: object, expected: object) -> None:
    for path, one, other in zip(tree.paths(actual), tree.leaves(actual), tree.leaves(expected), strict=True):

        def with_path(said: str, path: str = path) -> str:
            return f"{path}: {said}"

        torch.testing.assert_close(one, other, msg=with_path)


def assert_old_values_are_handed_on(plan: Plan, shape: tuple[int, ...]) -> None:
    step, first = step_of(plan), new_state(plan, shape)
    xs = random.normal(key(1), (3, *shape))
    compiled, donating, scanned = jit(step), jit(step, donate="state"), scan(step)
    state, expected, reports = tree.map(torch.clone, first), first, list[object]()
    for x in xs:
        assert_alike(compiled(expected, x), step(expected, x))
        expected, report = step(expected, x)
        state, donated_report = donating(state, x)
        assert_alike((state, donated_report), (expected, report))
        reports.append(report)
    after, stacked = scanned(first, xs)
    assert_alike((after, stacked), (expected, tree.map(lambda *parts: torch.stack(parts), *reports)))
    assert all(trace.compiled for function in (compiled, donating, scanned) for trace in function.traces)


def test_old_values_are_handed_on() -> None:
    """The small ones in numbers, and some of all others, in the same graphs."""
    plan = by_turns(QUICK)
    step, first = step_of(plan), new_state(plan, (4, 4))

    def all_of_them(state: All, x: Tensor) -> tuple[All, tuple[Tensor, Tensor, dict[str, object]]]:
        total, (one, other), others = state
        after, report = step(others, x)
        return (total + 10, (other, one), after), (total, one, report)

    v, xs = torch.arange(4.0), random.normal(key(1), (3, 4, 4))
    compiled, state, expected = jit(all_of_them, donate="state"), (v.clone(), (v.clone(), v + 100), first), first
    state = tree.map(torch.clone, state)
    reports = list[object]()
    for number, x in enumerate(xs):
        expected, report = step(expected, x)
        reports.append(report)
        state, (told, pair, others) = compiled(state, x)
        assert_alike((state[2], others), (expected, report))
        assert torch.equal(told, v + 10 * number)
        assert torch.equal(pair, v + 100 * (number % 2))
        assert tree.equal(state[1], (v + 100, v) if number % 2 == 0 else (v, v + 100))
    scanned = scan(all_of_them)
    after, (told, _, stacked) = scanned((v, (v, v + 100), first), xs)
    assert torch.equal(told, torch.stack([v, v + 10, v + 20]))
    assert tree.equal(after[1], (v + 100, v))
    assert_alike((after[2], stacked), (expected, tree.map(lambda *parts: torch.stack(parts), *reports)))
    assert all(trace.compiled for trace in (*compiled.traces, *scanned.traces))


def test_a_view_of_a_view_of_an_input_begins_where_it_does() -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        square = x[4:8].view(2, 2)
        return square.as_strided((2, 2), (2, 1)) + 1, square.as_strided((2,), (3,)) * 2

    compiled = jit(f)
    for given in (torch.arange(12.0), torch.arange(-2.0, 12.0)[2:]):
        assert tree.equal(compiled(given), f(given))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(17,), (4, 4)], ids=str)
def test_all_choices_of_old_values_are_handed_on(shape: tuple[int, ...]) -> None:
    assert_old_values_are_handed_on(by_turns(CHOICES), shape)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_old_values_are_handed_on_in_every_form(form: Form) -> None:
    assert_old_values_are_handed_on(in_form(form), (3, 3))
