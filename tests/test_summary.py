"""The summary: its text to the letter, its numbers against the model's, and models that are hard to look into."""

import io
import itertools
import subprocess
import sys
from typing import Final

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.running import run_forward
from fundl.initialization import initialize
from fundl.layer import Layer, Model
from fundl.layers.activation import LeakyReLU, ReLU, Tanh
from fundl.layers.dropout import Dropout, rekey
from fundl.layers.embedding import embedding
from fundl.layers.frozen import frozen
from fundl.layers.linear import Linear, linear
from fundl.layers.masked import LastPosition, Masked, from_masked
from fundl.layers.pairs import Multiply, pipe
from fundl.layers.recurrent.layers import lstm
from fundl.layers.repeated import repeat
from fundl.layers.shared import shared
from fundl.layers.structure import Flatten, parallel, residual
from fundl.layers.weight_norm import weight_norm
from fundl.model import compose
from fundl.model_summary import Shape, Summary, summary
from fundl.random import key
from fundl.tree import BUFFER
from tests.samples import SAMPLES, Sample

SMALL: Final = """\
place  layer                             output    params   size
────────────────────────────────────────────────────────────────
input                                    (10, 2)
[0]    Linear(weight=[25,2], bias=[25])  (10, 25)      75  300 B
[1]    ReLU()                            (10, 25)
[2]    Linear(weight=[1,25], bias=[1])   (10, 1)       26  104 B
────────────────────────────────────────────────────────────────
total                                                 101  404 B"""

NESTED: Final = """\
place                layer                             output    params     size
────────────────────────────────────────────────────────────────────────────────
input                                                  (10, 2)
[0][0]               Linear(weight=[25,2], bias=[25])  (10, 25)      75    300 B
[0][1]               LeakyReLU(negative_slope=0.1)     (10, 25)
[1]                  Residual()                        (10, 25)
  .layers[0]         Linear(weight=[25,25])            (10, 25)     625  2.4 KiB
  .layers[1]         Parallel()                        (10, 25)
    .branches[0]     Tanh()                            (10, 25)
    .branches[1][0]  Dropout(rate=0.5)                 (10, 25)
    .branches[1][1]  Linear(weight=[25,25],            (10, 25)     650  2.5 KiB
                     bias=[25])
────────────────────────────────────────────────────────────────────────────────
total                                                             1,350  5.3 KiB"""


def nested() -> Model:
    branches = parallel(Tanh(), compose(Dropout(0.5), linear(25, 25)))
    return compose(compose(linear(2, 25), LeakyReLU(0.1)), residual(linear(25, 25, bias=False), branches))


def places(summary: Summary) -> list[str]:
    return [row.place for row in summary.rows]


# --- The table --------------------------------------------------------------------------------------------------------


def test_a_small_model_to_the_letter() -> None:
    assert str(summary(compose(linear(2, 25), ReLU(), linear(25, 1)), (10, 2))) == SMALL


def test_a_nested_model_to_the_letter() -> None:
    table = str(summary(nested(), (10, 2)))
    assert table == NESTED
    assert max(map(len, table.splitlines())) == 80


def test_rich_shows_it_in_colour() -> None:
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system="standard", width=100).print(
        summary(compose(linear(2, 25), ReLU()), (10, 2))
    )
    assert "\x1b[36mLinear(weight=[25,2], bias=[25])" in file.getvalue()


def test_the_text_is_plain_wherever_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    assert str(summary(compose(linear(2, 25), ReLU(), linear(25, 1)), (10, 2))) == SMALL


@pytest.mark.parametrize(
    ("features", "size"),
    [(1, "4 B"), (255, "1020 B"), (256, "1.0 KiB"), (2**20, "4.0 MiB"), (2**48, "1.0 PiB"), (2**58, "1,024.0 PiB")],
)
def test_sizes_are_told_in_the_largest_unit(features: int, size: str) -> None:
    total = str(summary(linear(features, 1, bias=False), (1, features))).splitlines()[-1]
    assert total.split(maxsplit=2) == ["total", f"{features:,}", size]


def test_rich_is_loaded_only_when_a_table_is_shown() -> None:
    program = "import sys; from fundl.model_summary import summary; sys.exit('rich' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


# --- The numbers ------------------------------------------------------------------------------------------------------


def test_rows_say_what_each_layer_makes_and_takes() -> None:
    shown = summary(compose(Flatten(), compose(linear(12, 5), Tanh())), (7, 3, 4))
    assert places(shown) == ["[0]", "[1][0]", "[1][1]"]
    assert [row.layer for row in shown.rows] == ["Flatten()", "Linear(weight=[5,12], bias=[5])", "Tanh()"]
    assert [row.output for row in shown.rows] == [(7, 12), (7, 5), (7, 5)]
    assert [row.parameters for row in shown.rows] == [0, 65, 0]
    assert [row.nbytes for row in shown.rows] == [0, 260, 0]
    assert (shown.input, shown.parameters, shown.nbytes) == ((7, 3, 4), 65, 260)


def test_it_is_all_one_whether_the_model_is_initialised() -> None:
    model = nested()
    assert summary(model, (10, 2)) == summary(initialize(key(0), model), (10, 2))


def test_totals_are_those_of_the_tree() -> None:
    def check(sizes: list[int], bias: bool, dtype: torch.dtype) -> None:
        layers = [linear(one, other, bias=bias, dtype=dtype) for one, other in itertools.pairwise(sizes)]
        model: tuple[Model, ...] = (*layers, residual(linear(sizes[-1], sizes[-1], dtype=dtype), residual(Tanh())))
        shown = summary(model, (4, sizes[0]), dtype=dtype)
        assert shown.parameters == tree.count(model)
        assert shown.nbytes == tree.nbytes(model)
        assert len(shown.rows) == len(layers) + 4
        assert shown.rows[-1].output == (4, sizes[-1])

    sizes = st.lists(st.integers(1, 20), min_size=1, max_size=4)
    dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
    settings(deadline=None, derandomize=True, max_examples=20)(given(sizes, st.booleans(), dtypes)(check))()


def test_a_lone_layer_is_a_model() -> None:
    shown = summary(linear(2, 3), (2,))
    assert places(shown) == [""]
    assert shown.rows[0].output == (3,)
    assert places(summary(residual(Tanh()), (2,))) == ["", ".layers[0]"]


def test_no_memory_is_taken_and_nothing_is_computed() -> None:
    assert summary(linear(10**9, 10**9), (10**9, 10**9)).parameters == 10**18 + 10**9


def test_a_model_with_keys() -> None:
    model = rekey(compose(Dropout(0.5), linear(2, 2)), key(0))
    assert summary(model, (4, 2)).rows[0].layer == "Dropout(rate=0.5, key=[2])"


# --- Layers of the user's own -----------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Statistics(Layer[None]):
    mean: Tensor = attrs.field(metadata=BUFFER)
    scale: Tensor

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return (x - self.mean) * self.scale, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple["Statistics", Tensor]:
        return self, grad


def test_buffers_are_bytes_but_not_parameters() -> None:
    (row,) = summary(Statistics(mean=torch.zeros(5), scale=torch.ones(5)), (2, 5)).rows
    assert row.layer == "Statistics(mean=[5], scale=[5])"
    assert (row.parameters, row.nbytes) == (5, 40)


@attrs.frozen(eq=False)
class Twice(Layer[None, Tensor, tuple[Tensor, Tensor]]):
    """Runs its layer twice, and makes two tensors."""

    part: Linear
    unused: Linear
    weights: tuple[Tensor, Tensor | None]

    @override
    def forward(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], None]:
        once, _ = run_forward(self.part, x)
        twice, _ = run_forward(self.part, once)
        assert isinstance(twice, Tensor)
        return (twice, twice[0]), None

    @override
    def backward(self, residuals: None, grad: tuple[Tensor, Tensor]) -> tuple["Twice", Tensor]:
        return self, grad[0]


def test_a_layer_that_runs_twice_has_one_row_and_one_that_never_runs_none() -> None:
    outer, inner = summary(Twice(linear(3, 3), linear(3, 4), (torch.zeros(2), None)), (2, 3)).rows
    assert outer.layer == "Twice(weights=([2],None))"
    assert outer.output == ((2, 3), (3,))
    assert (outer.parameters, inner.parameters) == (18, 12)
    assert (inner.place, inner.depth, inner.output) == (".part", 1, (2, 3))


@attrs.frozen(eq=False)
class Transposed(Layer[None]):
    """Uses its layer's weight, and does not run it."""

    part: Linear

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x @ self.part.weight, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple["Transposed", Tensor]:
        return self, grad


def test_a_layer_that_does_not_run_its_part_has_one_row() -> None:
    (row,) = summary(Transposed(linear(3, 4)), (2, 4)).rows
    assert (row.layer, row.output, row.parameters) == ("Transposed()", (2, 3), 16)


@attrs.frozen(eq=False)
class Lookup(Layer[None]):
    takes_integers = True

    table: Tensor

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.table[x], None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple["Lookup", Tensor]:
        return self, grad


def test_the_input_may_be_of_integers() -> None:
    shown = summary(compose(Lookup(torch.zeros(50, 6)), linear(6, 2)), (3, 7), dtype=torch.int64)
    assert [row.output for row in shown.rows] == [(3, 7, 6), (3, 7, 2)]


# --- Layers made of layers --------------------------------------------------------------------------------------------

# Of the samples, those with a batch, whose input is of one dtype and no record but a masked batch.
ROWS: Final = [
    row
    for row in SAMPLES
    if row.batched
    and len({leaf.dtype for leaf in tree.leaves(row.x) if leaf.dtype != torch.bool}) == 1
    and all(isinstance(part, Masked) for part in tree.records(row.x))
]
FUSED: Final = {"GLU", "GLU, axis", "stateful RNN", "stateful GRU, deep, both directions"}
"""Samples of a layer that does itself what the one inside would do."""


def shape_of(x: object) -> tuple[Shape, ...]:
    """The shape of an input, as `summary` takes it."""
    match x:
        case Tensor():
            return tuple(x.shape)
        case Masked():
            return tuple(x.values.shape)
        case tuple():
            return tuple(map(shape_of, x))
        case _:
            raise AssertionError(x)


def places_of_layers(model: object, place: str = "") -> list[str]:
    """The places of all layers of a model, those that are many blocks once."""
    if isinstance(model, tuple):
        return [at for index, part in enumerate(model) for at in places_of_layers(part, f"{place}[{index}]")]
    if not isinstance(model, Layer):
        return []
    return [place, *(at for name in model.children for at in places_of_layers(getattr(model, name), f"{place}.{name}"))]


@pytest.mark.parametrize("sample", ROWS, ids=lambda sample: sample.name)
def test_every_layer_of_every_sample_has_its_row(sample: Sample) -> None:
    dtype = next(leaf.dtype for leaf in tree.leaves(sample.x) if leaf.dtype != torch.bool)
    shown = summary(sample.model, shape_of(sample.x), dtype=dtype)
    every = [""] if sample.name in FUSED else places_of_layers(sample.model)
    assert sorted(places(shown)) == sorted(every)
    assert (shown.parameters, shown.nbytes) == (tree.count(sample.model), tree.nbytes(sample.model))
    assert all(row.parameters >= 0 and row.nbytes >= 0 for row in shown.rows)


REPEATED: Final = """\
place           layer                               output  params     size
───────────────────────────────────────────────────────────────────────────
input                                               (4, 2)
[0]             WeightNorm(gain=[8,1])              (4, 8)       8     32 B
  .layer        Linear(weight=[8,2], bias=[8])      (4, 8)      24     96 B
[1]             Repeat(count=3)                     (4, 8)
  .stacked[0]   Residual()                          (4, 8)
    .layers[0]  Linear(weight=[3,8,8], bias=[3,8])  (4, 8)     216    864 B
    .layers[1]  ReLU()                              (4, 8)
[2]             Frozen()                            (4, 1)
  .layers[0]    Linear(weight=[1,8], bias=[1])      (4, 1)       0     36 B
───────────────────────────────────────────────────────────────────────────
total                                                          248  1.0 KiB"""


def test_blocks_and_reparametrised_and_frozen_layers_to_the_letter() -> None:
    model = compose(weight_norm(linear(2, 8)), repeat(3, residual(linear(8, 8), ReLU())), frozen(linear(8, 1)))
    assert str(summary(model, (4, 2))) == REPEATED


def test_tokens_of_sequences_of_different_lengths() -> None:
    shown = summary(from_masked(embedding(10, 4), lstm(4, 8), LastPosition()), (2, 5), dtype=torch.int64)
    assert [row.output for row in shown.rows] == [(2, 8), (2, 5, 4), (2, 5, 8), (2, 8)]


def test_a_model_of_two_inputs() -> None:
    shown = summary(pipe(shared(linear(3, 8), Tanh()), Multiply(), linear(8, 1)), ((10, 3), (10, 3)))
    assert shown.input == ((10, 3), (10, 3))
    assert [row.output for row in shown.rows][:2] == [(10, 1), ((10, 8), (10, 8))]


@attrs.frozen(eq=False)
class Choosy(Layer[None]):
    """Runs its part only if it is of that very class."""

    part: Linear

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        assert type(self.part) is Linear
        return self.part.forward(x)[0], None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple["Choosy", Tensor]:
        return self, grad


def test_a_layer_that_cannot_be_looked_into_has_one_row() -> None:
    shown = summary(compose(Choosy(linear(3, 4)), residual(Tanh())), (2, 3))
    assert [(row.place, row.parameters) for row in shown.rows] == [("[0]", 16), ("[1]", 0)]


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_an_input_that_does_not_fit_is_told_with_the_place() -> None:
    with pytest.raises(ValueError, match=r"^layer 2\.1 \(Linear\) expects 2 features but the input has 3 features$"):
        summary(compose(Tanh(), compose(linear(2, 5), ReLU())), (10, 3))
    with pytest.raises(TypeError, match=r"must be floating-point, not torch\.int64"):
        summary(linear(2, 5), (10, 2), dtype=torch.int64)


def test_a_shape_that_is_none_is_told() -> None:
    message = r"input_shape is a tuple of sizes, the batch axis included, such as \(10, 2\), not "
    with pytest.raises(TypeError, match=message + "10"):
        summary(linear(2, 5), 10)  # type: ignore[arg-type]  # the error under test
    with pytest.raises(TypeError, match=message + r"\(-1, 2\)"):
        summary(linear(2, 5), (-1, 2))


def test_what_is_no_model_is_told() -> None:
    with pytest.raises(TypeError, match="the model is of type list, not a layer or a tuple of layers"):
        summary([linear(2, 5)], (10, 2))  # type: ignore[arg-type]  # the error under test
