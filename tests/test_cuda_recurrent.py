"""On a GPU: LSTM and GRU, by the kernels of their cells, against the formula there and on the CPU. `pytest -m cuda` runs them.

With FUNDL_TEST_DEVICE=cpu they run against the CPU itself, which tests the tests.
"""

import os
from collections.abc import Callable
from typing import Final, TypeAlias, TypeVar

import attrs
import pytest
import torch
from torch import Tensor

from fundl import (
    GRU,
    LSTM,
    LSTMState,
    adam,
    apply,
    assert_trees_close,
    backward,
    compose,
    forward,
    gru,
    initialize,
    jit,
    key,
    linear,
    lstm,
    mse,
    stateful,
    train_state,
    train_step,
    tree,
    vjp,
)
from fundl._common import kernels
from fundl._common.running import run_backward, run_forward
from tests.samples import normal

T = TypeVar("T")
Recurrent: TypeAlias = LSTM | GRU
Make: TypeAlias = Callable[..., Recurrent]  # type: ignore[explicit-any]  # of the options of both

DEVICE: Final = torch.device(os.environ.get("FUNDL_TEST_DEVICE", "cuda"))
CPU: Final = torch.device("cpu")
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels of cells that are called."""
    called: list[str] = []

    def counting(name: str, kernel: Callable[..., object]) -> Callable[..., object]:  # type: ignore[explicit-any]  # of any
        def counted(*args: object) -> object:
            called.append(name)
            return kernel(*args)

        return counted

    for name in ("lstm_cell", "lstm_cell_backward", "gru_cell"):
        monkeypatch.setattr(kernels, name, counting(name, getattr(kernels, name)))
    return called


def _moved(values: T, dtype: torch.dtype = F64, device: torch.device = DEVICE) -> T:
    return tree.map(lambda leaf: leaf.to(device, dtype if leaf.is_floating_point() else leaf.dtype), values)


def _model(make: Make, masked: bool, **options: object) -> Recurrent:
    model = initialize(key(0), make(6, 8, dtype=F64, **options))
    return attrs.evolve(model, mask=normal(1, 4, 11)[0] < 0.4) if masked else model


@pytest.mark.parametrize("make", [lstm, gru])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"depth": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-11), (F32, 1e-4), (BF16, 1e-1), (F16, 1e-2)])
def test_cells_give_what_the_formula_gives(  # noqa: PLR0917  # an axis each
    make: Make,
    options: dict[str, object],
    masked: bool,
    dtype: torch.dtype,
    tolerance: float,
    calls: list[str],
) -> None:
    model = _model(make, masked, **options)
    x = normal(1, 4, 11, 6)[0]
    grad = normal(1, *apply(model, x).shape)[0]
    model, x, grad = _moved(model, dtype), _moved(x, dtype), _moved(grad, dtype)
    calls.clear()
    found = vjp(model, x, grad)
    assert bool(calls) == (DEVICE.type == "cuda")
    expected = vjp(_moved(model, F64, CPU), _moved(x, F64, CPU), _moved(grad, F64, CPU))
    assert_trees_close(_moved(found, F64, CPU), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("make", [lstm, gru])
@pytest.mark.parametrize("masked", [False, True])
def test_states_go_through(make: Make, masked: bool) -> None:
    model = stateful(_model(make, masked, depth=2))
    begin: object = normal(1, 4, 2, 8)[0]
    if make is lstm:
        begin = LSTMState(*normal(2, 4, 2, 8))
    given = normal(1, 4, 11, 6)[0], begin
    after, kept = run_forward(model, given)
    there = after, *run_backward(model, kept, after)
    own = _moved(model)
    again, kept = run_forward(own, _moved(given))
    here = again, *run_backward(own, kept, again)
    assert_trees_close(_moved(here, F64, CPU), there, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [lstm, gru])
@pytest.mark.parametrize(("batch", "steps"), [(0, 5), (3, 0), (1, 1), (1, 300), (700, 2)])
def test_odd_sizes(make: Make, batch: int, steps: int) -> None:
    model, x = initialize(key(0), make(6, 33, dtype=F64)), normal(1, batch, steps, 6)[0]
    y = apply(model, x)
    here = vjp(_moved(model), _moved(x), _moved(y))
    assert_trees_close(_moved(here, F64, CPU), vjp(model, x, y), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [lstm, gru])
def test_residuals_are_left_alone(make: Make) -> None:
    model, x = _moved(initialize(key(0), make(6, 8))), _moved(normal(1, 4, 11, 6)[0])
    y, kept = forward(model, x)
    before = tree.map(Tensor.clone, (x, y, kept))
    first = backward(model, kept, y)
    assert tree.equal((x, y, kept), before)
    assert_trees_close(backward(model, kept, y), first, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("make", [lstm, gru])
def test_odd_layouts(make: Make) -> None:
    model, x = initialize(key(0), make(6, 8, dtype=F64)), normal(1, 4, 11, 6)[0]
    grad = normal(1, 1, 11, 8)[0].expand(4, 11, 8)
    there = vjp(model, x, grad)
    own = tree.map(lambda leaf: leaf.t().contiguous().t() if leaf.ndim == 2 else leaf, _moved(model))
    strided = torch.empty(6, 22, 4, dtype=F64, device=DEVICE)[:, ::2].permute(2, 1, 0).copy_(x)
    here = vjp(own, strided, grad.to(DEVICE))
    assert_trees_close(_moved(here, F64, CPU), there, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [lstm, gru])
def test_numbers_that_are_none(make: Make) -> None:
    """NaN at a step is in all later steps of its sequence alone, and infinity saturates the gates."""
    model, x = initialize(key(0), make(6, 8, dtype=F64)), normal(1, 4, 11, 6)[0]
    x[1, 3, 0], x[2, 5] = torch.nan, 1e300
    there, here = apply(model, x), apply(_moved(model), _moved(x))
    assert torch.equal(here.isnan().cpu(), there.isnan())
    assert_trees_close(here.cpu(), there, rtol=1e-10, atol=1e-10)
    assert not here[[0, 2, 3]].isnan().any()


@pytest.mark.parametrize("make", [lstm, gru])
def test_compiled_steps_are_eager_ones(make: Make) -> None:
    model = initialize(key(0), compose(make(6, 8, dtype=F64), linear(8, 3, dtype=F64)))
    optimizer = adam(1e-2)
    x, target = (part.to(DEVICE) for part in (normal(1, 4, 2, 6)[0], normal(1, 4, 2, 3)[0]))
    step = train_step(mse, optimizer)
    compiled = jit(step, donate="state")
    eager = train_state(key(1, device=DEVICE), tree.map(lambda leaf: leaf.to(DEVICE), model), optimizer)
    own = tree.map(Tensor.clone, eager)
    for _ in range(5):
        eager, _ = step(eager, (x, target))
        own, _ = compiled(own, (x, target))
    assert all(trace.compiled for trace in compiled.traces)
    assert_trees_close(own, eager, rtol=1e-8, atol=1e-8)
