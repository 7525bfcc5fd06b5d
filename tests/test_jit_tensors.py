"""Tensors of rare kinds in compiled functions: lazily negated or conjugated ones, zeros that are nowhere, inference mode."""

from collections.abc import Callable, Mapping
from typing import Final

import pytest
import torch
from torch import Tensor

from fundl import DonatedError, jit, key, random, scan, tree

COMPLEX: Final = torch.complex(random.normal(key(0), (4, 3)), random.normal(key(1), (4, 3)))
NUMBERS: Final = random.normal(key(2), (4, 3))

LAZY: Final[Mapping[str, Callable[[], Tensor]]] = {
    "imaginary part of a conjugate": lambda: COMPLEX.conj().imag,
    "negative view": lambda: torch._neg_view(NUMBERS),
    "negative view of columns": lambda: torch._neg_view(NUMBERS.t()).t(),
    "conjugate": COMPLEX.conj,
    "negative conjugate": lambda: torch._neg_view(COMPLEX.conj()),
    "zeros": lambda: torch._efficientzerotensor((4, 3)),
}


def parts(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return (x * 2, x + y, x, x[0], x.abs(), (x * 3).conj(), x.sum())


def assert_alike(actual: object, expected: object) -> None:
    for one, other in zip(tree.leaves(actual), tree.leaves(expected), strict=True):
        torch.testing.assert_close(one.resolve_conj().resolve_neg(), other.resolve_conj().resolve_neg())


@pytest.mark.usefixtures("interpreted", "interpreted_loop")
@pytest.mark.parametrize("make", LAZY.values(), ids=LAZY)
@pytest.mark.parametrize("first", ["lazy", "in memory"])
def test_lazy_tensors_are_what_they_stand_for(make: Callable[[], Tensor], first: str) -> None:
    lazy = make()
    others = [lazy, lazy.clone(), lazy] if first == "lazy" else [lazy.clone(), lazy, lazy.clone()]
    compiled, donating, scanned = jit(parts), jit(parts, donate="y"), scan(lambda state, x: (state + x, (state, x, x * 2)))
    with_outside = jit(lambda y: (lazy * y, lazy + y, lazy.abs()))
    for x in others:
        assert_alike(compiled(x, x), parts(x, x))
        assert_alike(compiled(NUMBERS.to(x.dtype), x), parts(NUMBERS.to(x.dtype), x))
        assert_alike(donating(NUMBERS.to(x.dtype), x.clone() + 0), parts(NUMBERS.to(x.dtype), x))
        assert_alike(with_outside(x), (lazy * x, lazy + x, lazy.abs()))
        state, (states, xs, twice) = scanned(x[0], x)
        assert_alike((state, xs, twice), (x[0] + x.sum(0), x, x * 2))
        assert_alike(states[0], x[0])
    assert len(compiled.traces) <= 2  # of columns, and of rows


@pytest.mark.usefixtures("interpreted")
def test_a_lazy_tensor_can_be_donated() -> None:
    compiled, lazy = jit(lambda state, x: (state + x, state), donate="state"), COMPLEX.conj().imag
    state, expected = lazy, lazy.clone()
    for _ in range(3):
        (state, told), (expected, expected_told) = compiled(state, NUMBERS), (expected + NUMBERS, expected)
        assert_alike((state, told), (expected, expected_told))
    assert_alike(lazy, -COMPLEX.imag)  # a copy was written over


@pytest.mark.slow
def test_compiled_code_reads_what_lazy_tensors_stand_for() -> None:
    compiled, outside = jit(lambda parts: {name: (x * 2, x + outside) for name, x in parts.items()}), COMPLEX.conj().imag
    lazy = {name: make() for name, make in LAZY.items()}
    for given in (lazy, tree.map(lambda leaf: leaf.clone() + 0, lazy), lazy):
        assert_alike(compiled(given), {name: (x * 2, x + outside) for name, x in given.items()})
    assert all(trace.compiled for trace in compiled.traces)


@pytest.mark.parametrize("inference", [False, True])
def test_a_state_of_inference_mode_can_be_donated(inference: bool) -> None:
    with torch.inference_mode():
        first, x = torch.ones(3), torch.ones(3)
    compiled = jit(lambda state, x: (state + x, state * 2), donate="state")
    with torch.inference_mode(inference):
        state = first
        for number in range(3):
            before = state
            state, told = compiled(state, x)
            assert torch.equal(state, torch.full((3,), number + 2.0))
            assert torch.equal(told, torch.full((3,), 2.0 * number + 2))
            with pytest.raises(DonatedError):
                before + 1
    assert compiled.traces[0].compiled
