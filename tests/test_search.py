"""Optimizers that evaluate the loss at other params: sam and L-BFGS."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from fundl import (
    Dropout,
    Linear,
    Search,
    Tanh,
    TrainState,
    accumulate,
    adamw,
    batch_norm,
    chain,
    clip_by_global_norm,
    compose,
    dynamic_loss_scale,
    ensemble,
    fit,
    initialize,
    jit,
    key,
    lbfgs,
    linear,
    load,
    momentum,
    mse,
    partition,
    sam,
    save,
    sgd,
    skip_nonfinite,
    split,
    train_state,
    train_step,
    tree,
    value_and_grad,
)
from fundl.optim.chain import AnyTransform

S = TypeVar("S")

Pair = tuple[Tensor, Tensor]
Evaluate = Callable[[Pair], tuple[Tensor, Pair]]

GENERATOR = torch.Generator().manual_seed(0)
SIZES = torch.logspace(-1, 1, 8, dtype=torch.float64)
ROWS, LABELS = torch.randn(30, 8, dtype=torch.float64, generator=GENERATOR) * SIZES, torch.arange(30, dtype=torch.float64) % 2


def logistic(params: Pair) -> tuple[Tensor, Pair]:
    """The loss of a logistic regression, with a penalty, and its gradient."""
    weight, bias = params
    logits = ROWS @ weight + bias
    loss = torch.nn.functional.softplus(logits).mean() - (logits * LABELS).mean() + 1e-3 * (weight**2).sum()
    error = (torch.sigmoid(logits) - LABELS) / len(ROWS)
    return loss, (ROWS.T @ error + 2e-3 * weight, error.sum())


def origin() -> Pair:
    return torch.linspace(-0.1, 0.2, 8, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)


def steps(optimizer: Search[S], evaluate: Evaluate, params: Pair, count: int) -> Pair:
    state = optimizer.init(params)
    for _ in range(count):
        value, grads = evaluate(params)
        params, state = optimizer.step_by(evaluate, value, grads, state, params)
    return params


def norm(tensors: Pair) -> Tensor:
    return (tensors[0] ** 2).sum().add(tensors[1] ** 2).sqrt()


# --- sam ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [False, True])
def test_fifty_steps_of_sam_follow_the_formula(adaptive: bool) -> None:
    actual = steps(sam(momentum(0.1), radius=0.3, adaptive=adaptive), logistic, origin(), 50)
    expected, trace = origin(), (torch.zeros(8, dtype=torch.float64), torch.zeros((), dtype=torch.float64))
    for _ in range(50):
        grads = logistic(expected)[1]
        weights = expected if adaptive else (torch.ones_like(expected[0]), torch.ones_like(expected[1]))
        length = norm((grads[0] * weights[0], grads[1] * weights[1]))
        w, b = (p + 0.3 * k**2 * g / length for p, k, g in zip(expected, weights, grads, strict=True))
        dw, db = logistic((w, b))[1]
        trace = 0.9 * trace[0] + dw, 0.9 * trace[1] + db
        expected = expected[0] - 0.1 * trace[0], expected[1] - 0.1 * trace[1]
    assert torch.allclose(torch.hstack(actual), torch.hstack(expected), rtol=0, atol=1e-10)


def model_of(seed: int = 0) -> tuple[Linear, Tanh, Linear]:
    return initialize(key(seed), compose(linear(3, 4), Tanh(), linear(4, 1)), dtype=torch.float64)


def batch_of(seed: int = 1) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, dtype=torch.float64, generator=generator), torch.ones(6, 1, dtype=torch.float64)


def test_a_step_of_training_is_one_by_hand_with_the_loss_where_it_began() -> None:
    optimizer, model, (x, y) = sam(adamw(0.1)), model_of(), batch_of()
    state = train_state(key(1), model, optimizer)
    after, report = train_step(mse, optimizer)(state, (x, y))
    value, grads = value_and_grad(mse, model, x, y)
    by_hand, memory = optimizer.step_by(lambda m: value_and_grad(mse, m, x, y), value, grads, state.optimizer, model)
    assert tree.equal((after.model, after.optimizer), (by_hand, memory))
    assert torch.equal(report.loss, value)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [sam(adamw(0.1)), sam(adamw(0.1), adaptive=True)], ids=["plain", "adaptive"])
def test_sam_compiled_donated_and_as_an_ensemble_is_sam(optimizer: Search[tuple[object, ...]]) -> None:
    step, batch = train_step(mse, optimizer), batch_of()
    state = train_state(key(1), model_of(), optimizer)
    compiled = jit(step)
    expected, fast, donated = state, state, train_state(key(1), model_of(), optimizer)
    donating = train_step(mse, optimizer, donate=True)
    for _ in range(3):
        expected, _ = step(expected, batch)
        fast, _ = compiled(fast, batch)
        donated, _ = donating(donated, batch)
    assert tree.equal(donated, expected)
    assert all(map(torch.allclose, tree.leaves(fast.model), tree.leaves(expected.model)))
    runs = ensemble.train_state(split(key(1), 2), ensemble.stack([model_of(), model_of(5)]), optimizer)
    step_of_all, both = ensemble.train_step(mse, optimizer), tree.map(lambda leaf: torch.stack((leaf, leaf)), batch)
    for _ in range(3):
        runs, _ = step_of_all(runs, both)
    assert all(map(torch.allclose, tree.leaves(ensemble.unstack(runs.model)[0]), tree.leaves(expected.model)))


def test_both_evaluations_drop_the_same_and_follow_the_statistics_of_the_first() -> None:
    model = initialize(key(0), compose(linear(3, 4), batch_norm(4), Dropout(0.5), linear(4, 1)), dtype=torch.float64)
    optimizer, plain = sam(sgd(0.1), radius=1e-9), sgd(0.1)
    found, _ = train_step(mse, optimizer, track=0.1)(train_state(key(1), model, optimizer), batch_of())
    expected, _ = train_step(mse, plain, track=0.1)(train_state(key(1), model, plain), batch_of())
    assert all(map(torch.allclose, tree.leaves(found.model), tree.leaves(expected.model)))


def test_a_gradient_of_zero_leads_nowhere_and_one_that_is_no_number_is_left_out() -> None:
    zeros = torch.zeros(8, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    flat: Evaluate = lambda _params: (torch.zeros(()), zeros)  # noqa: E731
    assert tree.equal(steps(sam(sgd(0.1)), flat, origin(), 2), origin())
    broken: Evaluate = lambda params: (torch.zeros(()), (params[0] * torch.nan, params[1]))  # noqa: E731
    assert tree.equal(steps(sam(skip_nonfinite(sgd(0.1))), broken, origin(), 2), origin())


def test_sam_around_other_transforms() -> None:
    scaled, plain = sam(dynamic_loss_scale(sgd(0.1), initial=8.0)), sam(sgd(0.1))
    after, _ = train_step(mse, scaled)(train_state(key(1), model_of(), scaled), batch_of())
    expected, _ = train_step(mse, plain)(train_state(key(1), model_of(), plain), batch_of())
    assert all(map(torch.allclose, tree.leaves(after.model), tree.leaves(expected.model)))
    gathering = sam(accumulate(sgd(0.1), 4))
    state = train_state(key(1), model_of(), gathering)
    last, _ = fit(train_step(mse, gathering), state, [batch_of()] * 4, epochs=1, progress=False)
    assert all(map(torch.allclose, tree.leaves(last.model), tree.leaves(expected.model)))


# --- L-BFGS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [3, 10])
def test_fifty_steps_of_lbfgs_equal_torchs(history: int) -> None:
    leaves = [leaf.clone().requires_grad_() for leaf in origin()]
    theirs = torch.optim.LBFGS(
        leaves, lr=1, max_iter=1, max_eval=26, history_size=history, tolerance_grad=0, line_search_fn="strong_wolfe"
    )
    counts = [0, 0]

    def closure() -> Tensor:
        counts[0] += 1
        loss, grads = logistic((leaves[0].detach(), leaves[1].detach()))
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad
        return loss

    def evaluate(params: Pair) -> tuple[Tensor, Pair]:
        counts[1] += 1
        return logistic(params)

    optimizer, params = lbfgs(history=history), origin()
    state = optimizer.init(params)
    for _ in range(50):
        theirs.step(closure)  # type: ignore[no-untyped-call]  # torch does not say
        value, grads = evaluate(params)
        params, state = optimizer.step_by(evaluate, value, grads, state, params)
    assert torch.allclose(torch.hstack(params), torch.hstack([leaf.detach() for leaf in leaves]), rtol=0, atol=1e-8)
    assert counts[0] == counts[1]


def test_lbfgs_finds_its_way_through_a_valley() -> None:
    def valley(params: Pair) -> tuple[Tensor, Pair]:
        x, y = params[0], params[1]
        across = y - x[0] ** 2
        grad = torch.stack((-400 * x[0] * across - 2 * (1 - x[0]),))
        return 100 * across**2 + (1 - x[0]) ** 2, (grad, 200 * across)

    start = torch.full((1,), -1.2, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    assert torch.allclose(torch.hstack(steps(lbfgs(), valley, start, 45)), torch.ones(2, dtype=torch.float64), atol=1e-7)


def test_lbfgs_trains_and_is_saved(tmp_path: Path) -> None:
    optimizer, batch = lbfgs(), batch_of()
    step, state = train_step(mse, optimizer, donate=True), train_state(key(1), model_of(), optimizer)
    state, _ = fit(step, state, [batch], epochs=5, progress=False)
    save(tmp_path / "state.safetensors", state)
    again = load(tmp_path / "state.safetensors", train_state(key(1), model_of(), optimizer))
    assert tree.equal(again, state)
    last, history = fit(step, again, [batch], epochs=15, progress=False)
    assert history[-1].train.loss < 1e-6
    assert isinstance(last, TrainState)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lbfgs_of_params_of_other_dtypes(dtype: torch.dtype) -> None:
    optimizer, model = lbfgs(), tree.cast_to(model_of(), dtype)
    step, batch = train_step(mse, optimizer), tree.cast_to(batch_of(), dtype)
    state = train_state(key(1), model, optimizer)
    first = train_step(mse, optimizer)(state, batch)[1].loss
    for _ in range(5):
        state, _ = step(state, batch)
    assert step(state, batch)[1].loss < 0.5 * first
    assert {leaf.dtype for leaf in tree.leaves(state.model)} == {dtype}


def test_lbfgs_stays_where_there_is_nothing_below_and_leaves_what_is_no_number() -> None:
    def bowl(params: Pair) -> tuple[Tensor, Pair]:
        return (params[0] ** 2).sum() + params[1] ** 2, (2 * params[0], 2 * params[1])

    zero = torch.zeros(2), torch.zeros(())
    assert tree.equal(steps(lbfgs(), bowl, zero, 3), zero)

    def fenced(params: Pair) -> tuple[Tensor, Pair]:  # no number beyond a fence
        value, grads = bowl(params)
        return (value if params[0].min() > 0.5 else torch.tensor(torch.nan)), grads

    found = steps(lbfgs(), fenced, (torch.ones(2), torch.ones(())), 20)
    assert found[0].min() > 0.5
    assert fenced(found)[0] < 2.5


# --- Where they cannot be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [sam(sgd(0.1)), lbfgs()], ids=["sam", "lbfgs"])
def test_what_searches_is_the_outermost(optimizer: Search[object]) -> None:
    for make in (
        lambda: chain(clip_by_global_norm(1.0), optimizer),
        lambda: chain(optimizer, sgd(0.1)),
        lambda: sam(optimizer),
    ):
        with pytest.raises((ValueError, TypeError), match=r"outermost of all transforms|evaluates the loss nowhere else"):
            make()
    inside: list[AnyTransform] = [
        accumulate(optimizer, 2),
        skip_nonfinite(optimizer),
        partition({"first": optimizer, "rest": sgd(0.1)}, where={"first": "[0]"}),
        optimizer,
    ]
    params, grads = origin(), logistic(origin())[1]
    for outer in inside:
        for call in (outer.step, outer.update):
            with pytest.raises(TypeError, match=r"it has to be the outermost of all transforms"):
                call(grads, outer.init(params), params)


def test_lbfgs_says_where_it_cannot_run() -> None:
    optimizer = lbfgs()
    with pytest.raises(TypeError, match="lbfgs decides by the loss how often it evaluates it"):
        jit(train_step(mse, optimizer))(train_state(key(1), model_of(), optimizer), batch_of())
    with pytest.raises(TypeError, match="train the models one after the other"):
        ensemble.train_step(mse, optimizer)
    (value, grads), state = logistic(origin()), optimizer.init((torch.zeros(3), torch.zeros(())))
    with pytest.raises(ValueError, match="the state is of other params"):
        optimizer.step_by(logistic, value, grads, state, origin())
