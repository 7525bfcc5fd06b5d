"""cuDNN's recurrent networks, without a GPU: what they are given, and torch's for the CPU, with autograd, in their place."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
    Model,
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
from fundl._common import cudnn_recurrent, fused_cells, recurrent_kernels
from fundl._common.cudnn_recurrent import cudnn_runs
from fundl._common.running import run_backward, run_forward
from fundl._compiling import cudnn_operators
from tests.fake_cuda import DEVICE, on_device, watched

Recurrent: TypeAlias = LSTM | GRU | RNN
Make: TypeAlias = Callable[..., Recurrent]  # type: ignore[explicit-any]  # of the options of all
F64: Final = torch.float64

NETWORKS: Final[dict[int, Callable[..., Sequence[Tensor]]]] = {  # type: ignore[explicit-any]  # of one state or two
    0: torch.rnn_relu,
    1: torch.rnn_tanh,
    2: torch.lstm,
    3: torch.gru,
}
GATES: Final = {0: 1, 1: 1, 2: 4, 3: 3}
PADDING: Final = 5  # numbers between the weights: where these are is for cuDNN to say


def _shapes(kind: int, inputs: int, size: int) -> list[tuple[int, ...]]:
    rows = GATES[kind] * size
    return [(rows, inputs), (rows, size), (rows,), (rows,)]


def _pack(weights: list[Tensor], count: int, inputs: int, kind: int, size: int, *_: int) -> Tensor:
    assert [tuple(weight.shape) for weight in weights] == _shapes(kind, inputs, size)
    assert count == len(weights)
    packed = weights[0].new_zeros(sum(weight.numel() + PADDING for weight in weights))
    place = 0
    for weight in [weights[0], weights[1], weights[3], weights[2]]:
        with torch.no_grad():
            weight.set_(packed.untyped_storage(), place, weight.shape, weight.stride())
        place += weight.numel() + PADDING
    return packed


def _unpacked(packed: Tensor, kind: int, inputs: int, size: int) -> list[Tensor]:
    weights = [packed.new_empty(shape) for shape in _shapes(kind, inputs, size)]
    _pack(weights, 4, inputs, kind, size)
    return [packed.as_strided(weight.shape, weight.stride(), weight.storage_offset()) for weight in weights]


def _run(kind: int, x: Tensor, weights: list[Tensor], h: Tensor, c: Tensor | None) -> tuple[Tensor, ...]:
    state = h if c is None else (h, c)
    found = NETWORKS[kind](x, state, weights, True, 1, 0.0, True, False, False)
    return tuple(found)


def _rnn(  # noqa: PLR0917  # as cuDNN has them
    x: Tensor,
    weights: list[Tensor],
    count: int,
    packed: Tensor,
    h: Tensor,
    c: Tensor | None,
    kind: int,
    size: int,
    *settings: object,
) -> tuple[Tensor, ...]:
    assert settings == (0, 1, False, 0.0, True, False, (), None)
    assert all(tensor.is_contiguous() for tensor in (x, packed, h, *(() if c is None else (c,))))
    assert count == len(weights)
    assert (c is not None) == (kind == 2)
    output, *last = _run(kind, x, _unpacked(packed, kind, x.shape[2], size), h, c)
    hidden, cell = (*last, h.new_empty(0))[:2]
    return output, hidden, cell, torch.full((7,), 3, dtype=torch.uint8), packed


def _gradients(  # noqa: PLR0917  # likewise
    kind: int, x: Tensor, weights: list[Tensor], h: Tensor, c: Tensor | None, grads: tuple[Tensor | None, ...]
) -> Sequence[Tensor]:
    """With respect to x, the weights, h and c."""
    own = [tensor.detach().clone().requires_grad_() for tensor in (x, *weights)]
    states = [tensor.detach().clone().requires_grad_() for tensor in (h, c) if tensor is not None]
    found = _run(kind, own[0], own[1:], states[0], states[1] if c is not None else None)
    given = [torch.zeros_like(output) if grad is None else grad for output, grad in zip(found, grads, strict=False)]
    return torch.autograd.grad(found, [*own, *states], given)


def _rnn_backward(  # noqa: PLR0917  # likewise
    x: Tensor,
    weights: list[Tensor],
    count: int,
    packed: Tensor,
    h: Tensor,
    c: Tensor | None,
    output: Tensor,
    grad: Tensor,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    kind: int,
    size: int,
    *rest: object,
) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
    *settings, reserve, wanted = rest
    assert tuple(settings) == (0, 1, False, 0.0, True, False, (), None)
    assert wanted == (True, True, kind == 2, True)
    assert isinstance(reserve, Tensor)
    assert (reserve == 3).all()
    reserve.zero_()  # as cuDNN does
    assert all(tensor.is_contiguous() for tensor in (x, output, grad))
    assert count == len(weights)
    with ThreadPoolExecutor(1) as thread:  # where no graph that runs has switched autograd off
        grads = thread.submit(
            _gradients, kind, x, _unpacked(packed, kind, x.shape[2], size), h, c, (grad, grad_h, grad_c)
        ).result()
    grad_x, *of_weights = grads[:5]
    flat = [torch.zeros(1, dtype=x.dtype), *(one.flatten() for one in of_weights)]
    pieces = torch.cat(flat).split_with_sizes([len(one) for one in flat])[1:]  # in one piece of memory, as cuDNN's are
    of_weights = [piece.view(one.shape) for piece, one in zip(pieces, of_weights, strict=True)]
    return grad_x, grads[5], grads[6] if c is not None else None, of_weights[:count]


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What stands for cuDNN, and takes all tensors but empty ones; the names of what was called."""
    called: list[str] = []

    def noted(name: str, function: Callable[..., object]) -> Callable[..., object]:  # type: ignore[explicit-any]  # of any
        def note(*args: object) -> object:
            called.append(name)
            return function(*args)

        return note

    for name, function in (("cudnn_rnn", _rnn), ("cudnn_rnn_backward", _rnn_backward), ("cudnn_pack", _pack)):
        monkeypatch.setattr(recurrent_kernels, name, noted(name, function))
    monkeypatch.setattr(cudnn_recurrent, "cudnn_runs", lambda _, *given: all(x.numel() > 0 for x in given))
    caches = cudnn_recurrent._places, cudnn_operators._reserve_size
    for cache in caches:
        cache.cache_clear()
    yield called
    for cache in caches:
        cache.cache_clear()


@contextmanager
def _without() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cudnn_recurrent, "cudnn_runs", lambda *_: False)
        yield


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


MAKERS: Final[dict[str, Make]] = {
    "lstm": lstm,
    "gru": gru,
    "tanh": rnn,
    "relu": lambda *sizes, **options: rnn(*sizes, activation="relu", **options),
}
OPTIONS: Final[dict[str, dict[str, object]]] = {
    "plain": {},
    "no bias": {"bias": False},
    "both ways": {"bidirectional": True, "depth": 2},
}
every_kind = pytest.mark.parametrize("kind", MAKERS)
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def _there_and_back(model: Model, x: object) -> tuple[object, ...]:
    y, kept = run_forward(model, x)
    grad = tree.map(lambda leaf: _random(leaf.numel(), *leaf.shape), y)
    return y, *run_backward(model, kept, grad)


@every_kind
@every_option
@pytest.mark.parametrize(("batch", "steps"), [(3, 6), (1, 1), (0, 4), (3, 0)])
def test_what_it_is_given_and_gives(
    kind: str, options: dict[str, object], batch: int, steps: int, stand_ins: list[str]
) -> None:
    model, x = initialize(key(0), MAKERS[kind](5, 4, dtype=F64, **options)), _random(1, batch, steps, 5)
    found = _there_and_back(model, x)
    assert bool(stand_ins) == (batch > 0 and steps > 0)
    with _without():
        assert_trees_close(found, _there_and_back(model, x), rtol=1e-11, atol=1e-11)


@every_kind
@every_option
def test_states_go_through(kind: str, options: dict[str, object], stand_ins: list[str]) -> None:
    model = stateful(initialize(key(0), MAKERS[kind](5, 4, dtype=F64, **options)))
    count = sum(map(len, model.layer.layers))
    begin: object = _random(4, 3, count, 4)
    if kind == "lstm":
        begin = LSTMState(_random(4, 3, count, 4), _random(5, 3, count, 4))
    given = _random(1, 3, 6, 5), begin
    found = _there_and_back(model, given)
    assert "cudnn_rnn_backward" in stand_ins
    with _without():
        assert_trees_close(found, _there_and_back(model, given), rtol=1e-11, atol=1e-11)


@every_kind
def test_a_mask_is_for_the_steps(kind: str, stand_ins: list[str]) -> None:
    model = attrs.evolve(initialize(key(0), MAKERS[kind](5, 4, dtype=F64)), mask=torch.ones(3, 6, dtype=torch.bool))
    apply(model, _random(1, 3, 6, 5))
    assert not stand_ins


@every_kind
def test_backward_is_as_often_as_one_likes_and_by_whom_one_likes(kind: str, stand_ins: list[str]) -> None:
    model, x = initialize(key(0), MAKERS[kind](5, 4, dtype=F64, bidirectional=True)), _random(1, 3, 6, 5)
    y, kept = forward(model, x)
    before = tree.map(Tensor.clone, (x, y, kept))
    first = backward(model, kept, y)
    assert tree.equal(backward(model, kept, y), first)
    assert tree.equal((x, y, kept), before)
    assert stand_ins.count("cudnn_rnn_backward") == 4
    with _without():  # as in a trace or a map of backward alone
        assert_trees_close(backward(model, kept, y), first, rtol=1e-11, atol=1e-11)


def _both(model: Recurrent, x: Tensor) -> tuple[object, ...]:
    y, kept = run_forward(model, x)
    return y, *run_backward(model, kept, tree.map(torch.cos, y))


@pytest.mark.usefixtures("interpreted")
@every_kind
@every_option
def test_a_graph_holds_it_as_an_operator(kind: str, options: dict[str, object], stand_ins: list[str]) -> None:
    model, x = initialize(key(0), MAKERS[kind](5, 4, dtype=F64, **options)), _random(1, 3, 6, 5)
    expected = _both(model, x)
    stand_ins.clear()
    compiled = jit(_both)
    assert_trees_close(compiled(model, x), expected, rtol=1e-11, atol=1e-11)
    assert stand_ins.count("cudnn_rnn_backward") == sum(map(len, model.layers))


@pytest.mark.usefixtures("stand_ins")
@every_kind
@every_option
def test_what_the_operators_give_begins_where_kernels_can_load_it(kind: str, options: dict[str, object]) -> None:
    model, x = initialize(key(0), MAKERS[kind](5, 3, dtype=F64, **options)), _random(1, 6, 2, 5)
    weights = tree.leaves(model.layers[0][0])
    states = [torch.zeros(2, 3, dtype=F64)] * (2 if kind == "lstm" else 1)
    output, hidden, cell, reserve = cudnn_operators._recurrent(kind, x, weights, states)
    grads = cudnn_operators._recurrent_backward(kind, x, weights, states, output, reserve, output, states)
    assert all(made.storage_offset() == 0 and made.is_contiguous() for made in (output, hidden, cell, reserve, *grads))
    shapes = [made.shape for made in (output, hidden, cell)]
    assert [made.shape for made in cudnn_operators._recurrent_shapes(kind, x, weights, states)[:3]] == shapes
    found = cudnn_operators._recurrent_backward_shapes(kind, x, weights, states)
    assert [made.shape for made in found] == [made.shape for made in grads]


@pytest.mark.slow  # it compiles
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_compiled_steps_call_it(kind: str, stand_ins: list[str]) -> None:
    model = initialize(key(0), compose(MAKERS[kind](5, 4, dtype=F64, bidirectional=True), linear(8, 2, dtype=F64)))
    step = train_step(mse, adam(1e-2))
    compiled, batch = jit(step, donate="state"), (_random(1, 3, 6, 5), _random(2, 3, 6, 2))
    state = train_state(key(1), model, adam(1e-2))
    own = tree.map(Tensor.clone, state)
    for _ in range(3):
        state, _ = step(state, batch)
    stand_ins.clear()
    for _ in range(3):
        own, _ = compiled(own, batch)
    assert all(found.compiled for found in compiled.traces)
    assert "cudnn_rnn_backward" in stand_ins
    assert_trees_close(own, state, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("make", [lstm, gru, rnn])
def test_a_graph_of_backward_alone_where_cudnn_is_not(
    make: Make, stand_ins: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = initialize(key(0), make(5, 4, dtype=F64)), _random(1, 3, 6, 5)
    y, kept = forward(model, x)
    expected = backward(model, kept, y)
    stand_ins.clear()
    monkeypatch.setattr(cudnn_recurrent, "cudnn_runs", cudnn_runs)
    assert_trees_close(jit(backward)(model, kept, y), expected, rtol=1e-11, atol=1e-11)
    assert not stand_ins


@every_kind
def test_odd_layouts(kind: str, stand_ins: list[str]) -> None:
    model = initialize(key(0), MAKERS[kind](5, 4, dtype=F64))
    model = tree.map(lambda leaf: leaf.t().contiguous().t() if leaf.ndim == 2 else leaf, model)
    x = torch.empty(5, 12, 3, dtype=F64)[:, ::2].permute(2, 1, 0).copy_(_random(1, 3, 6, 5))
    grad = _random(2, 1, 6, 4).expand(3, 6, 4)
    found = vjp(model, x, grad)
    assert stand_ins
    with _without():
        assert_trees_close(found, vjp(model, x, grad), rtol=1e-11, atol=1e-11)


def test_which_tensors_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    with watched():
        x = torch.empty(4, 3, 5, device=DEVICE)
        monkeypatch.setattr(torch._C, "_has_cudnn", True)
        assert not cudnn_runs(16, x)  # as it is traced
        monkeypatch.setattr(fused_cells, "is_untraced", lambda _: True)
        assert cudnn_runs(16, x, x)
        assert cudnn_runs(16, on_device(torch.ones(4, 3, 5, dtype=F64)))
        assert not cudnn_runs(16, on_device(torch.ones(4, 3, 5, dtype=torch.bfloat16)))
        assert not cudnn_runs(16, x, on_device(torch.ones(4, dtype=F64)))
        assert not cudnn_runs(16, torch.empty(1, 2**16, 5, device=DEVICE))
        assert not cudnn_runs(2**12, torch.empty(2**16, 2**4, 5, device=DEVICE))
        torch.use_deterministic_algorithms(True)
        try:
            assert not cudnn_runs(16, x)
        finally:
            torch.use_deterministic_algorithms(False)
        monkeypatch.setattr(torch._C, "_has_cudnn", False)
        assert not cudnn_runs(16, x)
    assert not cudnn_runs(16, torch.ones(4, 3, 5))
