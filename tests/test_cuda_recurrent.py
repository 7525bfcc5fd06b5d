"""On a GPU: recurrent layers, by cuDNN and by kernels of cells, against the formula on the CPU. `pytest -m cuda` runs them."""

from collections.abc import Callable
from typing import Final, TypeAlias

import attrs
import pytest
import torch
from torch import Tensor

from fundl import (
    GRU,
    LSTM,
    RNN,
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
    rnn,
    stateful,
    train_state,
    train_step,
    tree,
    vjp,
)
from fundl._common import recurrent_kernels
from fundl._common.running import run_backward, run_forward
from tests.on_gpu import CPU, DEVICE, IS_GPU, MARKS, moved
from tests.samples import normal

Recurrent: TypeAlias = LSTM | GRU | RNN
Make: TypeAlias = Callable[..., Recurrent]  # type: ignore[explicit-any]  # of the options of all

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16

pytestmark = MARKS

MAKERS: Final[dict[str, Make]] = {
    "lstm": lstm,
    "gru": gru,
    "tanh": rnn,
    "relu": lambda *sizes, **options: rnn(*sizes, activation="relu", **options),
}
every_kind = pytest.mark.parametrize("kind", MAKERS)
gated = pytest.mark.parametrize("kind", ["lstm", "gru"])


@pytest.fixture(autouse=True, params=["cudnn", "cells"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who does the work: cuDNN, without TF32, or the cells, as where it is switched off."""
    by = str(request.param)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", by == "cudnn")
    return by


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are called."""
    called: list[str] = []

    def counting(name: str, kernel: Callable[..., object]) -> Callable[..., object]:  # type: ignore[explicit-any]  # of any
        def counted(*args: object) -> object:
            called.append(name)
            return kernel(*args)

        return counted

    for name in ("lstm_cell", "lstm_cell_backward", "gru_cell", "cudnn_rnn", "cudnn_rnn_backward"):
        monkeypatch.setattr(recurrent_kernels, name, counting(name, getattr(recurrent_kernels, name)))
    return called


def _model(kind: str, masked: bool, **options: object) -> Recurrent:
    model = initialize(key(0), MAKERS[kind](6, 8, dtype=F64, **options))
    return attrs.evolve(model, mask=normal(1, 4, 11)[0] < 0.4) if masked else model


@every_kind
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"depth": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-11), (F32, 1e-4), (BF16, 1e-1), (F16, 1e-2)])
def test_what_the_formula_gives(  # noqa: PLR0917  # an axis each
    kind: str,
    options: dict[str, object],
    masked: bool,
    dtype: torch.dtype,
    tolerance: float,
    by: str,
    calls: list[str],
) -> None:
    model = _model(kind, masked, **options)
    x = normal(1, 4, 11, 6)[0]
    grad = normal(1, *apply(model, x).shape)[0]
    model, x, grad = moved(model, dtype), moved(x, dtype), moved(grad, dtype)
    calls.clear()
    found = vjp(model, x, grad)
    if IS_GPU and by == "cudnn" and not masked:
        assert set(calls) == {"cudnn_rnn", "cudnn_rnn_backward"}
    elif IS_GPU and kind in {"lstm", "gru"}:
        assert set(calls) == ({"lstm_cell", "lstm_cell_backward"} if kind == "lstm" else {"gru_cell"})
    else:
        assert not calls
    expected = vjp(moved(model, F64, CPU), moved(x, F64, CPU), moved(grad, F64, CPU))
    assert_trees_close(moved(found, F64, CPU), expected, rtol=tolerance, atol=tolerance)


@every_kind
@pytest.mark.parametrize("masked", [False, True])
def test_states_go_through(kind: str, masked: bool) -> None:
    model = stateful(_model(kind, masked, depth=2))
    begin: object = normal(1, 4, 2, 8)[0]
    if kind == "lstm":
        begin = LSTMState(*normal(2, 4, 2, 8))
    given = normal(1, 4, 11, 6)[0], begin
    after, kept = run_forward(model, given)
    there = after, *run_backward(model, kept, after)
    own = moved(model)
    again, kept = run_forward(own, moved(given))
    here = again, *run_backward(own, kept, again)
    assert_trees_close(moved(here, F64, CPU), there, rtol=1e-10, atol=1e-10)


@every_kind
@pytest.mark.parametrize(("batch", "steps"), [(0, 5), (3, 0), (1, 1), (1, 300), (700, 2)])
def test_odd_sizes(kind: str, batch: int, steps: int) -> None:
    model, x = initialize(key(0), MAKERS[kind](6, 33, dtype=F64)), normal(1, batch, steps, 6)[0]
    y = apply(model, x)
    here = vjp(moved(model), moved(x), moved(y))
    assert_trees_close(moved(here, F64, CPU), vjp(model, x, y), rtol=1e-9, atol=1e-9)


@every_kind
@pytest.mark.parametrize("size", [64, 128, 160, 192, 256, 512])
def test_sizes_for_which_cudnn_has_kernels_of_their_own(kind: str, size: int, by: str) -> None:
    if by == "cells":
        pytest.skip("they have none")
    model, x = initialize(key(0), MAKERS[kind](128, size)), normal(1, 8, 20, 128)[0].to(F32)
    grad = normal(1, 8, 20, size)[0].to(F32)
    here = vjp(moved(model), moved(x), moved(grad))
    expected = vjp(moved(model, F64, CPU), moved(x, F64, CPU), moved(grad, F64, CPU))
    assert_trees_close(moved(here, F64, CPU), expected, rtol=1e-4, atol=1e-3)


@every_kind
def test_residuals_are_left_alone(kind: str) -> None:
    model, x = moved(initialize(key(0), MAKERS[kind](6, 8, dtype=F64))), moved(normal(1, 4, 11, 6)[0])
    y, kept = forward(model, x)
    before = tree.map(Tensor.clone, (x, y, kept))
    first = backward(model, kept, y)
    assert tree.equal((x, y, kept), before)
    assert_trees_close(backward(model, kept, y), first, rtol=1e-13, atol=1e-13)


@every_kind
def test_odd_layouts(kind: str) -> None:
    model, x = initialize(key(0), MAKERS[kind](6, 8, dtype=F64)), normal(1, 4, 11, 6)[0]
    grad = normal(1, 1, 11, 8)[0].expand(4, 11, 8)
    there = vjp(model, x, grad)
    own = tree.map(lambda leaf: leaf.t().contiguous().t() if leaf.ndim == 2 else leaf, moved(model))
    strided = torch.empty(6, 22, 4, dtype=F64, device=DEVICE)[:, ::2].permute(2, 1, 0).copy_(x)
    here = vjp(own, strided, grad.to(DEVICE))
    assert_trees_close(moved(here, F64, CPU), there, rtol=1e-10, atol=1e-10)


@gated
def test_numbers_that_are_none(kind: str) -> None:
    """NaN at a step is in all later steps of its sequence alone, and infinity saturates the gates."""
    model, x = initialize(key(0), MAKERS[kind](6, 8, dtype=F64)), normal(1, 4, 11, 6)[0]
    x[1, 3, 0], x[2, 5] = torch.nan, 1e300
    there, here = apply(model, x), apply(moved(model), moved(x))
    assert torch.equal(here.isnan().cpu(), there.isnan())
    assert_trees_close(here.cpu(), there, rtol=1e-10, atol=1e-10)
    assert not here[[0, 2, 3]].isnan().any()


@gated
def test_compiled_steps_are_eager_ones(kind: str, by: str) -> None:
    if by == "cells":
        pytest.skip("the graph is the same")
    model = initialize(key(0), compose(MAKERS[kind](6, 8, dtype=F64), linear(8, 3, dtype=F64)))
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
