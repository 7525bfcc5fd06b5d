"""The cells of LSTM and GRU on CUDA, without one: what they are given, and formulas in their place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import attrs
import pytest
import torch
from torch import Tensor

from fundl import (
    GRU,
    LSTM,
    LSTMState,
    Model,
    apply,
    assert_trees_close,
    backward,
    forward,
    gru,
    initialize,
    key,
    lstm,
    stateful,
    tree,
    vjp,
)
from fundl._common import cudnn_recurrent, fused_cells, fused_lstm, modes, recurrent_kernels
from fundl._common.fused_cells import cells_run
from fundl._common.running import run_backward, run_forward
from fundl.layers.recurrent import _sweeps
from tests.fake_cuda import DEVICE, on_device, watched

Make: TypeAlias = Callable[..., LSTM | GRU]  # type: ignore[explicit-any]  # of the options of both
F64 = torch.float64


# As ATen documents them by their code: h, c and i, f, g, o of one step, and their derivatives.


def _require(*tensors: Tensor, sizes: tuple[int, ...]) -> None:
    assert all(tensor.ndim == 2 and tensor.numel() > 0 for tensor in tensors)
    assert tuple(tensor.shape[1] for tensor in tensors) == sizes
    assert len({(tensor.shape[0], tensor.dtype, tensor.device) for tensor in tensors}) == 1


def _lstm_cell(of_input: Tensor, of_hidden: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = before.shape[1]
    _require(of_input, of_hidden, before, sizes=(4 * size, 4 * size, size))
    i, f, g, o = (of_input + of_hidden).chunk(4, 1)
    i, f, g, o = 1 / (1 + torch.exp(-i)), 1 / (1 + torch.exp(-f)), torch.tanh(g), 1 / (1 + torch.exp(-o))
    after = f * before + i * g
    return o * torch.tanh(after), after, torch.cat((i, f, g, o), 1)


def _lstm_cell_backward(  # as the kernel has them
    grad_h: Tensor, grad_c: Tensor, before: Tensor, after: Tensor, gates: Tensor, _biased: bool
) -> tuple[Tensor, Tensor, None]:
    size = before.shape[1]
    _require(grad_h, grad_c, before, after, gates, sizes=(size, size, size, size, 4 * size))
    i, f, g, o = gates.chunk(4, 1)
    of_c = grad_c + grad_h * o * (1 - torch.tanh(after) ** 2)
    of_i, of_f, of_g = of_c * g * i * (1 - i), of_c * before * f * (1 - f), of_c * i * (1 - g**2)
    return torch.cat((of_i, of_f, of_g, grad_h * torch.tanh(after) * o * (1 - o)), 1), of_c * f, None


def _gru_cell(of_input: Tensor, of_hidden: Tensor, before: Tensor, _b: None, _v: None) -> tuple[Tensor, Tensor]:
    size = before.shape[1]
    _require(of_input, of_hidden, before, sizes=(3 * size, 3 * size, size))
    (r, z, n), (from_r, from_z, q) = of_input.chunk(3, 1), of_hidden.chunk(3, 1)
    r, z = 1 / (1 + torch.exp(-(r + from_r))), 1 / (1 + torch.exp(-(z + from_z)))
    n = torch.tanh(n + r * q)
    return n + z * (before - n), torch.cat((r, z, n, before, q), 1)


@pytest.fixture
def formulas(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Formulas where the kernels stand, and all tensors taken for such as they take; the names of what was called."""
    called: list[str] = []

    def noted(function: Callable[..., object]) -> Callable[..., object]:  # type: ignore[explicit-any]  # of any arguments
        def note(*args: object) -> object:
            called.append(function.__name__)
            return function(*args)

        return note

    for function in (_lstm_cell, _lstm_cell_backward, _gru_cell):
        monkeypatch.setattr(recurrent_kernels, function.__name__[1:], noted(function))
    monkeypatch.setattr(_sweeps, "cells_run", lambda *tensors: all(x.numel() > 0 for x in tensors))
    monkeypatch.setattr(fused_lstm, "lstm_runs", lambda *_: False)
    monkeypatch.setattr(cudnn_recurrent, "cudnn_runs", lambda *_: False)
    return called


def _models() -> dict[str, LSTM | GRU]:
    return {
        f"{kind.__name__}, {name}": kind(5, 4, dtype=F64, **options)  # type: ignore[arg-type]  # of both
        for kind in (lstm, gru)
        for name, options in {
            "plain": {},
            "no bias": {"bias": False},
            "deep": {"depth": 2},
            "both ways": {"bidirectional": True, "depth": 2},
        }.items()
    }


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@contextmanager
def _without_cells() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sweeps, "cells_run", lambda *_: False)
        yield


@pytest.mark.parametrize("name", _models())
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "steps"), [(3, 6), (1, 1), (3, 1), (0, 4), (3, 0)])
def test_cells_give_what_the_formula_gives(name: str, masked: bool, batch: int, steps: int, formulas: list[str]) -> None:
    model = initialize(key(0), _models()[name])
    if masked:
        model = attrs.evolve(model, mask=_random(2, batch, steps) < 0.3)
    x = _random(1, batch, steps, 5)
    grad = _random(3, *apply(model, x).shape)
    formulas.clear()
    found = vjp(model, x, grad)
    assert bool(formulas) == (batch > 0 and steps > 0)
    with _without_cells():
        assert_trees_close(found, vjp(model, x, grad), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", _models())
@pytest.mark.parametrize("masked", [False, True])
def test_states_go_through(name: str, masked: bool, formulas: list[str]) -> None:
    model = initialize(key(0), _models()[name])
    if masked:
        model = attrs.evolve(model, mask=_random(2, 3, 6) < 0.3)
    count = sum(map(len, model.layers))
    begin: object = _random(4, 3, count, 4)
    if isinstance(model, LSTM):
        begin = LSTMState(_random(4, 3, count, 4), _random(5, 3, count, 4))
    own, given = stateful(model), (_random(1, 3, 6, 5), begin)
    found = _there_and_back(own, given)
    assert formulas
    with _without_cells():
        assert_trees_close(found, _there_and_back(own, given), rtol=1e-12, atol=1e-12)


def _there_and_back(model: Model, x: object) -> tuple[object, ...]:
    y, kept = run_forward(model, x)
    grad = tree.map(lambda leaf: _random(leaf.numel(), *leaf.shape), y)
    return y, *run_backward(model, kept, grad)


@pytest.mark.usefixtures("formulas")
@pytest.mark.parametrize("make", [lstm, gru])
def test_what_is_kept_is_what_the_formula_keeps_and_is_left_alone(make: Make) -> None:
    model, x = initialize(key(0), make(5, 4, dtype=F64)), _random(1, 3, 6, 5)
    y, kept = forward(model, x)
    before = tree.map(Tensor.clone, (x, y, kept))
    first = backward(model, kept, y)
    assert tree.equal((x, y, kept), before)
    assert tree.equal(backward(model, kept, y), first)
    with _without_cells():
        assert_trees_close(kept, forward(model, x)[1], rtol=1e-12, atol=1e-12)
        assert_trees_close(backward(model, kept, y), first, rtol=1e-12, atol=1e-12)  # a graph may come after, or before


@pytest.mark.parametrize("make", [lstm, gru])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_waits(make: Make, dtype: torch.dtype, formulas: list[str]) -> None:
    model = make(8, 16, depth=2, bidirectional=True, dtype=dtype)
    with watched() as watch:
        layer, x = on_device(model), torch.empty(5, 7, 8, dtype=dtype, device=DEVICE)
        y, kept = forward(layer, x)
        grads, grad_x = backward(layer, kept, y)
    assert formulas
    assert not watch.waits
    assert (grad_x.shape, grad_x.dtype) == (x.shape, dtype)
    assert all(
        (one.shape, one.dtype) == (other.shape, dtype) for one, other in zip(*map(tree.leaves, (grads, layer)), strict=True)
    )


def test_which_tensors_the_cells_take(monkeypatch: pytest.MonkeyPatch) -> None:
    with watched():
        one, wide = torch.empty(3, 4, device=DEVICE), torch.empty(3, 4, dtype=F64, device=DEVICE)
        empty, far = torch.empty(0, 4, device=DEVICE), torch.empty(3, 4, device="cuda:1")
        assert not cells_run(one)  # as it is traced
        monkeypatch.setattr(fused_cells, "is_untraced", lambda _: True)
        assert cells_run(one, one)
        assert cells_run(wide)
        assert not any(cells_run(one, other) or cells_run(other, one) for other in (wide, empty, far))
    assert not cells_run(torch.ones(3, 4))
    monkeypatch.undo()
    assert not modes.is_untraced(torch._C._functorch._add_batch_dim(torch.ones(3, 4), 0, 1))
