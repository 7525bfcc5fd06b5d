"""Recurrent layers: what torch.nn makes of the same parameters, masks, states, and the fused kernel."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, Literal, TypeAlias

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fundl import (
    GRU,
    LSTM,
    RNN,
    LastPosition,
    LSTMState,
    Masked,
    ReLU,
    apply,
    assert_trees_close,
    backward,
    backward_params,
    constant,
    forward,
    from_masked,
    gru,
    initialize,
    key,
    lstm,
    orthogonal,
    rnn,
    stateful,
    tree,
    vjp,
    with_mask,
)
from fundl._common import fused_lstm

AnyRecurrent: TypeAlias = RNN | GRU | LSTM
Reference: TypeAlias = nn.RNN | nn.GRU | nn.LSTM

quietly: Final = settings(deadline=None, derandomize=True, max_examples=20)
Kind: TypeAlias = Literal["RNN", "GRU", "LSTM", "RNN of ReLU"]
every_kind = pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])


def make(
    kind: Kind, features: int, hidden: int, *, depth: int = 1, bidirectional: bool = False, bias: bool = True
) -> AnyRecurrent:
    match kind:
        case "RNN":
            return rnn(features, hidden, depth=depth, bidirectional=bidirectional, bias=bias)
        case "RNN of ReLU":
            return rnn(features, hidden, activation="relu", depth=depth, bidirectional=bidirectional, bias=bias)
        case "GRU":
            return gru(features, hidden, depth=depth, bidirectional=bidirectional, bias=bias)
        case "LSTM":
            return lstm(features, hidden, depth=depth, bidirectional=bidirectional, bias=bias)


def random_normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


# --- Beside torch.nn ---------------------------------------------------------------------------------------------------


def reference(layer: AnyRecurrent) -> Reference:
    """The module of torch.nn with the same parameters."""
    first, depth = layer.layers[0], len(layer.layers)
    rows, features = first[0].weight_ih.shape
    options = {"batch_first": True, "bidirectional": len(first) == 2, "bias": first[0].bias_ih is not None}
    module: Reference
    match layer:
        case RNN():
            module = nn.RNN(features, rows, depth, nonlinearity=layer.activation, **options)
        case GRU():
            module = nn.GRU(features, rows // 3, depth, **options)
        case LSTM():
            module = nn.LSTM(features, rows // 4, depth, **options)
    module.to(first[0].weight_ih.dtype)
    for parameter, leaf in zip(module.parameters(), tree.leaves(layer), strict=True):
        parameter.data.copy_(leaf)
    return module


def states_of(state: Tensor | LSTMState) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else (state.hidden, state.cell)


def random_state(layer: AnyRecurrent, batch: int) -> tuple[Tensor, ...]:
    weight = layer.layers[0][0].weight_hh
    shape = (batch, sum(map(len, layer.layers)), weight.shape[1])
    return tuple(random_normal(*shape, dtype=weight.dtype) + place for place in range(2 if isinstance(layer, LSTM) else 1))


def by_torch(
    layer: AnyRecurrent, x: Tensor, states: tuple[Tensor, ...], lengths: Tensor | None = None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Output and last states, and the gradients, of their sum with cotangents, to parameters, x and states, by torch.nn."""
    module = reference(layer)
    variables = [tensor.detach().requires_grad_() for tensor in (x, *states)]
    given = tuple(state.transpose(0, 1) for state in variables[1:])
    sequences = (
        variables[0] if lengths is None else pack_padded_sequence(variables[0], lengths, batch_first=True, enforce_sorted=False)
    )
    output, last = module(sequences, given if isinstance(layer, LSTM) else given[0])
    if lengths is not None:
        output, _ = pad_packed_sequence(output, batch_first=True, total_length=x.shape[1])
    results = (output, *(state.transpose(0, 1) for state in (last if isinstance(layer, LSTM) else (last,))))
    cotangents = [random_normal(*result.shape, dtype=x.dtype) for result in results]
    gradients = torch.autograd.grad(results, [*module.parameters(), *variables], cotangents)
    return tuple(result.detach() for result in results), gradients


def by_fundl(layer: AnyRecurrent, x: Tensor, states: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The same by fundl."""
    if isinstance(layer, LSTM):
        model = stateful(layer)
        (y, last), residuals = forward(model, (x, LSTMState(*states)))
        results = (y, last.hidden, last.cell)
        cotangents = [random_normal(*result.shape, dtype=x.dtype) for result in results]
        grads, (grad_x, first) = backward(model, residuals, (cotangents[0], LSTMState(*cotangents[1:])))
        return results, (*tree.trainable_leaves(grads), grad_x, first.hidden, first.cell)
    other = stateful(layer)
    (y, state), kept = forward(other, (x, states[0]))
    cotangents = [random_normal(*result.shape, dtype=x.dtype) for result in (y, state)]
    other_grads, (grad_x, grad_state) = backward(other, kept, (cotangents[0], cotangents[1]))
    return (y, state), (*tree.trainable_leaves(other_grads), grad_x, grad_state)


def check_against_torch(
    kind: Kind,
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int],
    options: tuple[int, bool, bool],
    *,
    masked: bool,
) -> None:
    batch, steps, features, hidden = sizes
    depth, bidirectional, bias = options
    layer = initialize(key(1), make(kind, features, hidden, depth=depth, bidirectional=bidirectional, bias=bias), dtype=dtype)
    x, states = random_normal(batch, steps, features, dtype=dtype), random_state(layer, batch)
    lengths = 1 + torch.arange(batch) * 2 % steps if masked else None
    expected = by_torch(layer, x, states, lengths)
    if lengths is not None:
        layer = with_mask(layer, torch.arange(steps) < lengths.unsqueeze(1))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    assert_trees_close(by_fundl(layer, x, states), expected, rtol=tolerance, atol=tolerance)


SIZES: Final = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
OPTIONS: Final = st.tuples(st.integers(1, 3), st.booleans(), st.booleans())
DTYPES: Final = st.sampled_from((torch.float64, torch.float32))


@pytest.mark.parametrize("kind", ["RNN", "RNN of ReLU", "GRU", "LSTM"])
@pytest.mark.parametrize("masked", [False, True])
def test_torch_gives_the_same_for_the_same_parameters(kind: Kind, masked: bool) -> None:
    """With a mask, as torch does for packed sequences."""

    def check(dtype: torch.dtype, sizes: tuple[int, int, int, int], options: tuple[int, bool, bool]) -> None:
        check_against_torch(kind, dtype, sizes, options, masked=masked)

    quietly(given(DTYPES, SIZES, OPTIONS)(check))()


@every_kind
def test_the_initial_distribution_is_that_of_torch(kind: Kind) -> None:
    layer = initialize(key(0), make(kind, 7, 64, depth=2))
    for leaf in tree.leaves(layer):
        assert leaf.abs().max() <= 1 / 8
        assert leaf.std() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.1)


def test_initialisers_of_the_users() -> None:
    layer = initialize(key(0), gru(3, 4, weight_ih_init=constant(2.0), weight_hh_init=orthogonal(), bias_init=constant(1.0)))
    weights = layer.layers[0][0]
    assert torch.equal(weights.weight_ih, torch.full((12, 3), 2.0))
    assert torch.allclose(weights.weight_hh.t() @ weights.weight_hh, torch.eye(4), atol=1e-6)
    assert weights.bias_ih is not None
    assert weights.bias_hh is not None
    assert torch.equal(weights.bias_ih, torch.ones(12))
    assert torch.equal(weights.bias_hh, torch.ones(12))


# --- Sequences of any length -------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("masked", [False, True])
def test_no_steps_leave_the_state_as_it_is(kind: Kind, dtype: torch.dtype, masked: bool) -> None:
    layer = initialize(key(0), make(kind, 3, 2, depth=2, bidirectional=True), dtype=dtype)
    if masked:
        layer = with_mask(layer, torch.ones(5, 0, dtype=torch.bool))
    states = random_state(layer, 5)
    (y, *last), gradients = by_fundl(layer, torch.zeros(5, 0, 3, dtype=dtype), states)
    count = len(tree.trainable_leaves(layer))
    assert y.shape == (5, 0, 4)
    assert tree.equal(tuple(last), states)
    assert not any(leaf.any() for leaf in gradients[:count])
    assert gradients[count].shape == (5, 0, 3)
    assert tree.equal(gradients[count + 1 :], tuple(random_normal(*state.shape, dtype=dtype) for state in states))


@every_kind
def test_a_batch_without_sequences(kind: Kind) -> None:
    layer = initialize(key(0), make(kind, 3, 2))
    y, residuals = forward(layer, torch.zeros(0, 4, 3))
    grads, grad_x = backward(layer, residuals, torch.zeros(0, 4, 2))
    assert y.shape == (0, 4, 2)
    assert grad_x.shape == (0, 4, 3)
    assert not any(leaf.any() for leaf in tree.leaves(grads))


@every_kind
def test_what_stands_in_padding_does_not_matter(kind: Kind) -> None:
    layer = initialize(key(0), make(kind, 3, 2, depth=2, bidirectional=True), dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True], [False, True, False, False]])
    x, grad = random_normal(2, 4, 3), random_normal(2, 4, 4)
    other_x, other_grad = (torch.where(mask.unsqueeze(2), tensor, 1e3) for tensor in (x, grad))
    model = with_mask(layer, mask)
    assert tree.equal(vjp(model, x, grad), vjp(model, other_x, other_grad))
    y = apply(model, x)
    assert not y[~mask].any()
    assert_trees_close(y[:1, [0, 1, 3]], apply(layer, x[:1, [0, 1, 3]]), rtol=1e-12, atol=1e-12)


@every_kind
def test_a_sequence_in_two_parts(kind: Kind) -> None:
    layer = initialize(key(0), make(kind, 3, 2, depth=2), dtype=torch.float64)
    x = random_normal(4, 5, 3)
    zeros = tuple(torch.zeros_like(state) for state in random_state(layer, 4))
    (first, *states), _ = by_fundl(layer, x[:, :2], zeros)
    (second, *_), _ = by_fundl(layer, x[:, 2:], tuple(states))
    assert_trees_close(torch.cat((first, second), 1), apply(layer, x), rtol=1e-12, atol=1e-12)


def test_zeros_are_the_state_from_which_layers_start() -> None:
    x = random_normal(4, 5, 3)
    long = initialize(key(0), lstm(3, 2, depth=2, bidirectional=True), dtype=torch.float64)
    zeros = stateful(long).zeros(4)
    assert zeros.cell.shape == (4, 4, 2)
    assert tree.equal(apply(stateful(long), (x, zeros))[0], apply(long, x))
    short = initialize(key(0), gru(3, 2), dtype=torch.float64)
    assert tree.equal(apply(stateful(short), (x, stateful(short).zeros(4)))[0], apply(short, x))


def test_the_last_position_of_a_masked_batch_is_the_last_state() -> None:
    model = initialize(key(0), from_masked(lstm(3, 2), LastPosition()), dtype=torch.float64)
    x, mask = random_normal(3, 4, 3), torch.arange(4) < torch.tensor([[4], [2], [1]])
    layer = stateful(with_mask(model.layers[0], mask))
    _, state = apply(layer, (x, layer.zeros(3)))
    assert torch.equal(apply(model, Masked(x, mask)), state.hidden[:, 0])


def test_the_last_position_of_no_positions_is_zero() -> None:
    x = torch.ones(2, 0, 3)
    y, residuals = forward(LastPosition(), x)
    assert torch.equal(y, torch.zeros(2, 3))
    assert backward(LastPosition(), residuals, torch.ones(2, 3))[1].shape == (2, 0, 3)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_halves_of_backward(kind: Kind, dtype: torch.dtype) -> None:
    layer = initialize(key(0), make(kind, 3, 2, depth=2, bidirectional=True), dtype=dtype)
    y, residuals = forward(layer, random_normal(5, 4, 3, dtype=dtype))
    grad = torch.ones_like(y)
    both = backward(layer, residuals, grad)
    assert tree.equal(
        both, (backward_params(layer, residuals, torch.ones_like(y)), layer.backward_input(residuals, torch.ones_like(y)))
    )


# --- The fused kernel --------------------------------------------------------------------------------------------------

X: Final = random_normal(5, 4, 3, dtype=torch.float32)


def fused(layer: LSTM, x: Tensor) -> bool:
    """Whether the layer runs as one kernel, which keeps a workspace of bytes."""
    (_, kept) = layer.forward(x)[1]
    return any(leaf.dtype == torch.uint8 for own in kept for leaf in own)


def test_the_fused_kernel_runs_in_float32_without_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = initialize(key(0), lstm(3, 2))
    assert fused(layer, X)
    assert not fused(tree.cast_to(layer, torch.float64), X.double())
    assert not fused(with_mask(layer, torch.ones(5, 4, dtype=torch.bool)), X)
    assert not fused(layer, X[:0])
    monkeypatch.setattr(torch._C, "_get_mkldnn_enabled", lambda: False)
    assert not fused(layer, X)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_fused_kernel_and_the_steps_agree(bias: bool, bidirectional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = initialize(key(0), lstm(3, 2, depth=2, bias=bias, bidirectional=bidirectional))
    states = random_state(layer, 5)
    actual = by_fundl(layer, X, states)
    monkeypatch.setattr(fused_lstm, "lstm_runs", lambda *_: False)
    expected = by_fundl(layer, X, states)
    assert_trees_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_strides_do_not_matter_to_the_fused_kernel() -> None:
    layer = initialize(key(0), lstm(3, 2, depth=2, bidirectional=True))
    states = random_state(layer, 5)
    expected = by_fundl(layer, X, states)

    def strided(leaf: Tensor) -> Tensor:
        return torch.stack((leaf, torch.ones_like(leaf)), -1)[..., 0]

    other = tree.map(strided, layer)
    assert fused(other, strided(X))
    assert tree.equal(by_fundl(other, strided(X), tuple(map(strided, states))), expected)
    y, residuals = forward(layer, X)
    ones = backward(layer, residuals, torch.ones_like(y))
    assert tree.equal(backward(layer, residuals, torch.ones(()).expand(y.shape)), ones)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_fused_kernel_records_no_tape(mode: Callable[[], AbstractContextManager[None]]) -> None:
    layer = initialize(key(0), lstm(3, 2))
    expected = vjp(layer, X, torch.ones(5, 4, 2))
    variables = tree.map(lambda leaf: leaf.clone().requires_grad_(), layer)
    with mode():
        before = torch.is_grad_enabled()
        y, residuals = forward(variables, X.clone().requires_grad_())
        actual = backward(variables, residuals, torch.ones(5, 4, 2))
        assert torch.is_grad_enabled() is before
    assert any(leaf.dtype == torch.uint8 for leaf in tree.leaves(residuals))
    assert all(leaf.grad_fn is None and not leaf.requires_grad for leaf in tree.leaves((y, actual)))
    assert tree.equal(actual, expected)


@every_kind
def test_a_traced_graph_computes_the_same(kind: Kind) -> None:
    layer = initialize(key(0), make(kind, 3, 2, depth=2, bidirectional=True))
    leaves = tree.leaves(layer)

    def gradients(x: Tensor, *parameters: Tensor) -> list[Tensor]:
        return tree.leaves(vjp(tree.with_trainable_leaves(layer, parameters), x, torch.ones(5, 4, 4)))

    graph = make_fx(gradients, tracing_mode="fake")(X, *leaves)
    assert_trees_close(graph(X + 1, *leaves), gradients(X + 1, *leaves), rtol=1e-4, atol=1e-5)


# --- Errors ------------------------------------------------------------------------------------------------------------


@every_kind
def test_sizes_below_1(kind: Kind) -> None:
    with pytest.raises(ValueError, match="in_features must be at least 1, not 0"):
        make(kind, 0, 2)
    with pytest.raises(ValueError, match="hidden_features must be at least 1, not -1"):
        make(kind, 2, -1)
    with pytest.raises(ValueError, match="depth must be at least 1, not 0"):
        make(kind, 2, 3, depth=0)


def test_an_unknown_activation() -> None:
    with pytest.raises(ValueError, match="RNN's activation must be 'tanh' or 'relu', not 'gelu'"):
        RNN((), activation="gelu")  # type: ignore[arg-type]  # the mistake under test


@every_kind
def test_inputs_that_do_not_fit(kind: Kind) -> None:
    layer = initialize(key(0), make(kind, 3, 2))
    with pytest.raises(ValueError, match=rf"{kind} expects an input of shape \(B, T, F\), but it is of shape \(5, 3\)"):
        apply(layer, torch.zeros(5, 3))
    with pytest.raises(ValueError, match=rf"{kind} expects 3 features, but the input's shape is \(5, 4, 2\)"):
        apply(layer, torch.zeros(5, 4, 2))
    with pytest.raises(TypeError, match=rf"{kind}'s weights are torch.float32, but the input is torch.float64"):
        apply(layer, torch.zeros(5, 4, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=rf"{kind} expects an input of shape \(5, 3, F\) by its mask, but it is of shape"):
        apply(with_mask(layer, torch.ones(5, 3, dtype=torch.bool)), torch.zeros(5, 4, 3))


def test_states_that_do_not_fit() -> None:
    long, short = initialize(key(0), (stateful(lstm(3, 2)), stateful(gru(3, 2, depth=2))))
    x, state = torch.zeros(5, 4, 3), torch.zeros(5, 2, 2)
    with pytest.raises(TypeError, match=r"the input of a stateful layer is \(x, state\), a tensor and a state, not float32"):
        apply(short, x)
    with pytest.raises(TypeError, match=r"the state of GRU is a tensor, not LSTMState\("):
        apply(short, (x, LSTMState(state, state)))  # type: ignore[misc]  # the mistake under test
    with pytest.raises(TypeError, match=r"the state of LSTM is LSTMState\(hidden, cell\), not float32\[5, 2, 2\]"):
        apply(long, (x, state))  # type: ignore[misc]  # the mistake under test
    with pytest.raises(ValueError, match=r"LSTM expects a state of shape \(5, 1, 2\), .* but it is of shape \(5, 2, 2\)"):
        apply(long, (x, LSTMState(state[:, :1], state)))
    with pytest.raises(TypeError, match=r"the state of GRU is torch.float64, but the input is torch.float32: convert one"):
        apply(short, (x, state.double()))
    with pytest.raises(TypeError, match=r"stateful is for a recurrent layer, an RNN, GRU or LSTM, not ReLU\(\)"):
        stateful(ReLU())  # type: ignore[call-overload]  # the mistake under test


def test_the_last_position_of_what_is_no_sequence() -> None:
    with pytest.raises(ValueError, match=r"LastPosition expects an input of shape \(B, T, F\), but it is of shape \(5, 3\)"):
        apply(LastPosition(), torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"LastPosition expects an input of shape \(5, 4, F\) by its mask"):
        apply(LastPosition(torch.ones(5, 4, dtype=torch.bool)), torch.zeros(5, 3, 2))


def test_recurrences_read_without_their_initialisers() -> None:
    assert repr(rnn(3, 2)) == (
        "RNN(layers=((Recurrence(weight_ih=float32[2, 3], weight_hh=float32[2, 2], bias_ih=float32[2], bias_hh=float32[2]),),))"
    )
