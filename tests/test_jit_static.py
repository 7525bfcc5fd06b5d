"""Static values: which are told apart, which are the same, and what is said of those that cannot be static."""

import dataclasses
import itertools
import math
import pickle
from typing import Final

import attrs
import pytest
import torch
from torch import Tensor

from fundl import jit, scan, tree
from fundl._compiling.static_values import StaticValue
from fundl.tree import Record


@attrs.frozen
class Config:
    rate: object
    name: str = attrs.field(default="", eq=False)


@dataclasses.dataclass(frozen=True)
class Options:
    rate: object


@attrs.frozen(eq=False)
class Scaled(Record):
    value: Tensor
    factor: object


class Text(str):
    __slots__ = ()


ALIKE_TO_PYTHON: Final[tuple[tuple[object, ...], ...]] = (
    (2, 2.0, complex(2), torch.tensor(2).item() * 1.0 + 0j),
    (1, True, 1.0),
    (0, False, 0.0, -0.0, 0j, complex(0.0, -0.0), complex(-0.0, 0.0)),
    ("a", Text("a")),
    ((1, 2), (1.0, 2), (True, 2), (1, 2.0)),
    ((0.0, (0.0,)), (0.0, (-0.0,))),
    (frozenset({1, 2}), frozenset({1.0, 2}), frozenset({True, 2.0})),
    (Config(2), Config(2.0), Config((2,)), Config((2.0,))),
    (Options(1), Options(True), Options(1.0)),
)
"""Values of which most are equal: those of different types or bits are different to a program."""

DIFFERENT: Final = [
    pair for values in ALIKE_TO_PYTHON for pair in itertools.combinations(values, 2) if repr(pair[0]) != repr(pair[1])
]
SAME: Final[tuple[tuple[object, object], ...]] = (
    (float("nan"), math.nan),
    (complex(float("nan"), 0), complex(math.nan, 0)),
    ((1, float("nan")), (1, math.nan)),
    (10**18, 10**17 * 10),
    ("ab" * 50, "".join(["ab"] * 50)),
    (Config(0.5, "one"), Config(0.5, "another")),
    (Options(math.pi), Options(math.pi)),
)


def double(x: Tensor, value: object) -> tuple[Tensor, object]:
    told = value if isinstance(value, int | float | complex | str | tuple) else None  # of what a result can be
    return x * (value if isinstance(value, int | float) else 2), told


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("one", "other"), DIFFERENT, ids=repr)
def test_what_is_equal_for_python_alone_is_told_apart(one: object, other: object) -> None:
    """As an argument, as a field of a record, as a key, and in a result."""
    x = torch.arange(3)
    compiled = jit(double, static="value")
    for value in (one, other, one, other):
        (product, told), (expected, expected_told) = compiled(x, value), double(x, value)
        assert type(told) is type(expected_told)
        assert repr(told) == repr(expected_told)
        assert product.dtype is expected.dtype
        assert torch.equal(product, expected)
    assert len(compiled.traces) == 2
    of_records = jit(lambda scaled: tree.map(torch.neg, scaled))
    of_keys = jit(lambda parts: {key: -value for key, value in parts.items()})
    for value in (one, other, one, other):
        assert repr(of_records(Scaled(x, value)).factor) == repr(value)
        assert repr([*of_keys({value: x})]) == repr([value])
    assert len(of_records.traces) == len(of_keys.traces) == 2


@pytest.mark.usefixtures("interpreted", "interpreted_loop")
@pytest.mark.parametrize(("one", "other"), SAME, ids=repr)
def test_what_a_program_cannot_tell_apart_is_compiled_once(one: object, other: object) -> None:
    x = torch.arange(3)
    compiled, of_records = jit(double, static="value"), jit(lambda scaled: tree.map(torch.neg, scaled))
    scanned = scan(lambda state, y: (tree.map(lambda leaf: leaf + y, state), state.value))
    for value in (one, other, one, other):
        compiled(x, value)
        of_records(Scaled(x, value))
        scanned(Scaled(x, value), torch.ones(2, 3, dtype=torch.int64))
    assert len(compiled.traces) == len(of_records.traces) == len(scanned.traces) == 1
    assert pickle.loads(pickle.dumps(StaticValue(one))) == StaticValue(other)


@pytest.mark.usefixtures("interpreted")
def test_a_product_has_the_dtype_that_eager_gives() -> None:
    compiled, x = jit(lambda x, n: x * n, static="n"), torch.arange(3)
    assert [compiled(x, n).dtype for n in (2, 2.0, True, 2)] == [torch.int64, torch.float32, torch.int64, torch.int64]
    assert [trace.reason for trace in compiled.traces] == [
        "it is the first call",
        "n was 2, and is 2.0",
        "n was 2, and is True",
    ]


@pytest.mark.usefixtures("interpreted")
def test_what_cannot_be_static_is_told() -> None:
    x = torch.ones(2)
    with pytest.raises(TypeError, match=r"^scaled\.factor is \[1\], of type list, which cannot be hashed .* take a tuple"):
        jit(lambda scaled: scaled.value * 2)(Scaled(x, [1]))
    with pytest.raises(TypeError, match=r"^value is \{'a': 1\}, of type dict, which cannot be hashed .* take a tuple"):
        jit(double, static="value")(x, {"a": 1})
    with pytest.raises(TypeError, match=r"^value is a tensor, which is no static value"):
        jit(double, static="value")(x, x)
    with pytest.raises(TypeError, match=r"^state\.factor is \[1\], of type list, which cannot be hashed"):
        scan(lambda state, _: (state, x))(Scaled(x, [1]), torch.ones(3, 2))
    compiled = jit(lambda scaled: scaled.value * 2)
    for _ in range(2):  # also where there is a quick way already
        assert torch.equal(compiled(Scaled(x, (1,))), x * 2)
        with pytest.raises(TypeError, match=r"^scaled\.factor is \[1\]"):
            compiled(Scaled(x, [1]))
