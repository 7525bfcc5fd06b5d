"""What is drawn in C is to the bit what is drawn in tensors, and goes without a compiler too."""

import math
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor

from fundl import key, tree
from fundl._common import draws, dropping, elementary, native, normal_numbers, philox
from fundl._common.store import Store
from fundl.random import (
    bernoulli,
    beta,
    bits,
    exponential,
    fold_in,
    gamma,
    gumbel,
    normal,
    permutation,
    rademacher,
    randint,
    split,
    split_twice,
    truncated_normal,
    uniform,
)
from tests.test_random import DTYPES, wide

IN_FORWARD_MODE: Final = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # with which torch has it
PIECES: Final = 3 * draws._PIECE

OF_COUNTS: Final[dict[str, Callable[[Tensor, int], Tensor]]] = {
    "bits": lambda key, count: bits(key, (count,)),
    "bernoulli": lambda key, count: bernoulli(key, (count,), probability=0.9),
    "never": lambda key, count: bernoulli(key, (count,), probability=0.0),
    "always": lambda key, count: bernoulli(key, (count,), probability=1.0),
    "randint": lambda key, count: randint(key, (count,), low=-5, high=2**40 - 5),
    "permutation": permutation,
    "rademacher": lambda key, count: rademacher(key, (count,)),
    "gamma": lambda key, count: gamma(key, (count,), concentration=1.0, dtype=torch.float64),
    "gamma of concentrations": lambda key, count: gamma(key, (count,), concentration=torch.linspace(0.01, 9, count)),
    "beta": lambda key, count: beta(key, (count,), alpha=0.01, beta=1e-3),
    "split": split,
    "fold_in": lambda key, count: fold_in(key, 2**64 - 1 - count),
    "fold_in a counter": lambda key, count: fold_in(key, torch.tensor(-count)),
    "truncated_normal": lambda key, count: truncated_normal(key, (count,)),
}
OF_DTYPES: Final[dict[str, Callable[[Tensor, int, torch.dtype], Tensor]]] = {
    "uniform": lambda key, count, dtype: uniform(key, (count,), dtype=dtype),
    "uniform in a range": lambda key, count, dtype: uniform(key, (count,), low=-0.1, high=1e-3, dtype=dtype),
    "exponential": lambda key, count, dtype: exponential(key, (count,), scale=3.7, dtype=dtype),
    "gumbel": lambda key, count, dtype: gumbel(key, (count,), location=-3.0, scale=0.1, dtype=dtype),
    "normal": lambda key, count, dtype: normal(key, (count,), dtype=dtype),
    "normal, scaled": lambda key, count, dtype: normal(key, (count,), mean=-3.0, std=0.1, dtype=dtype),
}


@pytest.fixture
def in_tensors(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Tensor]], Tensor]:
    """Draws as they are without a compiler."""

    def drawn(draw: Callable[[], Tensor]) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(draws, "functions", dict)
            patch.setattr(dropping, "_functions", dict)
            return draw()

    assert draws.functions(), "there is no compiler for C, or it does not take draws.c"
    return drawn


InTensors = Callable[[Callable[[], Tensor]], Tensor]

COUNTS: Final = (0, 1, 2, 3, 4, 7, 127, 128, 129, 255, 256, 257, 1000, PIECES - 1, PIECES + 5)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("draw", OF_COUNTS.values(), ids=OF_COUNTS.keys())
def test_bits_are_those_of_tensors(draw: Callable[[Tensor, int], Tensor], count: int, in_tensors: InTensors) -> None:
    for some_key in (key(0), key(2**64 - 1), split(key(3), 2).t()[:, 1]):  # of which the last has a stride
        result = draw(some_key, count)
        expected = in_tensors(lambda of=some_key: draw(of, count))  # type: ignore[misc]  # mypy knows no defaults of lambdas
        assert result.dtype == expected.dtype
        assert torch.equal(result, expected)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("draw", OF_DTYPES.values(), ids=OF_DTYPES.keys())
def test_floats_are_those_of_tensors(
    draw: Callable[[Tensor, int, torch.dtype], Tensor], dtype: torch.dtype, count: int, in_tensors: InTensors
) -> None:
    result, expected = draw(key(7), count, dtype), in_tensors(lambda: draw(key(7), count, dtype))
    assert result.dtype == expected.dtype == dtype
    assert torch.equal(result, expected)


def test_a_million_normal_numbers_are_those_of_tensors(in_tensors: InTensors) -> None:
    result = normal(key(1), (10**6,), dtype=torch.float64)
    assert torch.equal(result, in_tensors(lambda: normal(key(1), (10**6,), dtype=torch.float64)))


def test_normal_numbers_are_those_of_the_formula() -> None:
    """To the last bits, by Python's functions; near an axis the angle is more exact than 2 pi v in float64."""
    numbers = normal(key(3), (2000,), dtype=torch.float64).tolist()
    stream = [number >> 11 for number in wide(key(3), 2000)]
    for radius, angle, x, y in zip(stream[::2], stream[1::2], numbers[::2], numbers[1::2], strict=True):
        length, turn = math.sqrt(-2 * math.log((radius + 1) * 2.0**-53)), 2 * math.pi * (angle * 2.0**-53)
        assert math.isclose(x, length * math.cos(turn), rel_tol=1e-15, abs_tol=2e-15 * length)
        assert math.isclose(y, length * math.sin(turn), rel_tol=1e-15, abs_tol=2e-15 * length)


def test_normal_numbers_at_the_ends() -> None:
    """Of the least and the greatest integers, and at the ends of quarters and of powers of 2."""
    integers = [0, 1, 2**53 - 1, 2**52 - 1, 2**52, 2**51 - 1, 2**50, 2**50 - 1, 3 * 2**50, 2**53 - 2**50]
    for radius in integers:
        for angle in integers:
            x, y = normal_numbers.pairs(torch.tensor([[radius]]), torch.tensor([[angle]])).flatten().tolist()
            length = math.sqrt(-2 * math.log((radius + 1) * 2.0**-53))
            assert math.isclose(math.hypot(x, y), length, rel_tol=1e-15)
            turn = math.remainder(math.atan2(y, x) / (2 * math.pi) - angle * 2.0**-53, 1) if length else 0.0
            assert abs(turn) < 1e-15


def test_roots_are_rounded_as_python_rounds_them() -> None:
    numbers = torch.cat([torch.rand(10_000, dtype=torch.float64) * 80, torch.tensor([0.0, 1.0, 4.0, 2.0**-52])])
    assert elementary.square_root(numbers).tolist() == [math.sqrt(number) for number in numbers.tolist()]


def test_pieces_are_no_more_than_they_must_be(in_tensors: InTensors, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    whole = philox.integers

    def counted(some_key: Tensor, blocks: Tensor, bits_of_each: int) -> Tensor:
        counts.append(len(blocks))
        return whole(some_key, blocks, bits_of_each)

    monkeypatch.setattr(philox, "integers", counted)
    in_tensors(lambda: bits(key(0), (PIECES + 5,)))
    assert counts == [draws._PIECE // 4] * 3 + [2]
    batched = torch.vmap(lambda some_key: bits(some_key, (PIECES + 5,)))(split(key(0), 2))  # nothing can be written into these
    assert torch.equal(batched[1], bits(split(key(0), 2)[1], (PIECES + 5,)))


@pytest.mark.parametrize("draw", OF_COUNTS.values(), ids=OF_COUNTS.keys())
def test_keys_in_vmap_draw_as_each_by_itself(draw: Callable[[Tensor, int], Tensor], in_tensors: InTensors) -> None:
    keys = split(key(5), 6)
    expected = torch.stack([draw(one, 9) for one in keys])
    across, nested = keys.t().contiguous(), keys.reshape(2, 3, 2)

    def drawn(one: Tensor) -> Tensor:
        return draw(one, 9)

    assert torch.equal(torch.vmap(drawn)(keys), expected)
    assert torch.equal(torch.vmap(drawn, in_dims=1)(across), expected)
    assert torch.equal(torch.vmap(torch.vmap(drawn))(nested).flatten(0, 1), expected)
    assert torch.equal(in_tensors(lambda: torch.vmap(drawn)(keys)), expected)
    inside = torch.vmap(lambda one: torch.vmap(lambda number: drawn(one) + number)(torch.zeros(3, dtype=torch.int64)))(keys)
    assert torch.equal(inside[:, 2], expected + torch.zeros((), dtype=torch.int64))


@IN_FORWARD_MODE
def test_keys_in_vmap_are_drawn_from_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are not differentiated, or traced: then tensors draw."""
    keys, x = split(key(5), 3), torch.ones(4)
    expected = torch.stack([normal(one, (4,)) for one in keys])

    def scaled(one: Tensor, factor: Tensor) -> Tensor:
        return normal(one, (4,)) * factor

    tangents = torch.vmap(lambda one: torch.func.jvp(lambda factor: scaled(one, factor), (x,), (x,))[1])(keys)
    assert torch.equal(tangents, expected)
    monkeypatch.setattr(philox, "philox", None)
    assert torch.equal(torch.vmap(scaled, in_dims=(0, None))(keys, x), expected)


@pytest.mark.parametrize("size", [0, 1, 3, 200])
@pytest.mark.parametrize("places", [[], [0], [1, 2, 9], [300]], ids=str)
def test_keys_of_keys_are_split_twice(places: list[int], size: int, in_tensors: InTensors) -> None:
    expected = [one for place in places for one in split(split(key(5), place + 1)[place], size)]

    def found() -> Tensor:
        return torch.stack([*split_twice(key(5), array("q", places), size), key(0)])

    assert torch.equal(found(), torch.stack([*expected, key(0)]))
    assert torch.equal(in_tensors(found), found())
    if places and size:
        in_vmap = torch.vmap(lambda one: torch.stack(split_twice(one, array("q", places), size)))(split(key(5), 3))
        assert torch.equal(in_vmap[1], torch.stack(split_twice(split(key(5), 3)[1], array("q", places), size)))


# --- Dropout ------------------------------------------------------------------------------------------------------------

X: Final = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e38, -3e-39]).repeat(900)
INPUTS: Final[dict[str, Tensor]] = {
    "long": X,
    "matrix": X[:1000].reshape(50, 20),
    "transposed": X[:1000].reshape(50, 20).t(),
    "strided": X[::3],
    "expanded": X[:7].expand(3, 7),
    "channels last": X[:480].reshape(2, 4, 6, 10).to(memory_format=torch.channels_last),
    "empty": X[:0].reshape(0, 3),
    "no axes": X[4],
    "float64": X.double() * 1e200,
    "bfloat16": X.bfloat16(),
    "float16": X.half(),
}


@pytest.mark.parametrize("rate", [0.1, 0.5, 1 - 2.0**-40])
@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS.keys())
def test_dropout_is_that_of_tensors(x: Tensor, rate: float, in_tensors: InTensors) -> None:
    y, mask = dropping.dropped(key(3), x, rate)
    assert torch.equal(mask, bernoulli(key(3), x.shape, probability=1 - rate))
    for found, of in ((y, x), (dropping.masked(x, mask, rate), x), (dropping.masked(y, mask, rate), y)):
        expected = in_tensors(lambda of=of: dropping.masked(of, mask, rate))  # type: ignore[misc]  # mypy knows no defaults of lambdas
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(found.signbit() & ~found.isnan(), expected.signbit() & ~expected.isnan())


@IN_FORWARD_MODE
def test_dropout_lets_torch_differentiate_it() -> None:
    """Who reads memory sees no tangents and no tape."""
    x, mask = torch.randn(5, requires_grad=True), torch.tensor([True, False, True, True, False])
    dropping.masked(x, mask, 0.5).sum().backward()  # type: ignore[no-untyped-call]  # torch does not say
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 0.0, 2.0, 2.0, 0.0]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.ones(5), torch.ones(5))  # type: ignore[no-untyped-call]  # likewise
        y, drawn = dropping.dropped(key(0), dual, 0.5)
        tangent: Tensor = torch.autograd.forward_ad.unpack_dual(y).tangent  # type: ignore[no-untyped-call]  # likewise
        assert torch.equal(tangent, drawn * 2.0)
    negative = torch.complex(torch.zeros(1), torch.ones(1)).conj().imag
    assert dropping.masked(negative, mask[:1], 0.5).tolist() == [-2.0]


# --- The library --------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to compile, and a folder of its own to keep it in."""
    monkeypatch.setenv("FUNDL_CACHE_DIR", str(tmp_path / "cache"))
    file = tmp_path / "seven.c"
    file.write_text("int seven(void) { return 7; }\n")
    return file


def test_a_library_is_compiled_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = native.library(source)
    assert library is not None
    assert library.seven() == 7
    assert len([*Store(tmp_path / "cache").folder.glob("libraries/*")]) == 1

    def refused(*_arguments: object, **_options: object) -> None:
        raise AssertionError("it is compiled again")

    monkeypatch.setattr(subprocess, "run", refused)
    again = native.library(source)
    assert again is not None
    assert again.seven() == 7


def test_without_a_compiler_there_is_no_library(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    assert native.library(source) is None


def test_a_compiler_that_fails_is_passed_over(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    library = native.library(source)
    assert library is not None
    assert library.seven() == 7


def test_what_cannot_be_compiled_is_no_library(source: Path) -> None:
    source.write_text("this is no C")
    assert native.library(source) is None
    assert native.library(source.with_name("missing.c")) is None


def test_where_nothing_can_be_kept_the_library_goes_with_the_process(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNDL_CACHE_DIR", str(source / "below a file"))
    library = native.library(source)
    assert library is not None
    assert library.seven() == 7


def test_processes_without_a_compiler_draw_the_same(tmp_path: Path) -> None:
    program = """
from fundl import random
from fundl._common import draws
print(bool(draws.functions()), random.normal(random.key(1), (5,)).tolist(), random.bits(random.key(1), (3,)).tolist())
"""

    def run(**environment: str) -> str:
        settings = {"FUNDL_CACHE_DIR": str(tmp_path / "cache"), **environment}
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=settings).stdout

    expected = f"{normal(key(1), (5,)).tolist()} {bits(key(1), (3,)).tolist()}\n"
    assert run(PATH="") == f"False {expected}"
    assert run(PATH="/usr/local/bin:/usr/bin:/bin") == f"True {expected}"


def test_draws_on_other_devices_are_made_of_tensors() -> None:
    drawn = tree.map(lambda some_key: bits(some_key, (3,)), (key(0, device="meta"), key(0)))
    assert drawn[0].is_meta
    assert not drawn[1].is_meta
