"""A step is forward, loss, backward and update; a run is a fold of it, that stops and goes on without a trace."""

import copy
import functools
import io
import math
import pickle
import re
from collections.abc import Callable, Iterable, Iterator

import attrs
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from fundl import (
    AdamChainState,
    Dropout,
    Layer,
    Linear,
    Model,
    Parallel,
    ReLU,
    Residual,
    SGDState,
    accuracy,
    adam,
    apply,
    compose,
    cross_entropy,
    disk,
    frozen,
    generator,
    initialize,
    key,
    linear,
    minibatches,
    mse,
    one_hot,
    random,
    rekey,
    sgd,
    tree,
    value_and_grad,
)
from fundl.layers.dropout import is_stochastic
from fundl.metrics.metric import Metric
from fundl.random import Key
from fundl.training.epochs import described
from fundl.training.evaluation import evaluate
from fundl.training.fitting import fit
from fundl.training.history import Evaluation
from fundl.training.interruption import Interrupted
from fundl.training.step import TrainState, train_state, train_step
from fundl.tree import BUFFER, holds

Batch = tuple[Tensor, Tensor]
Network = tuple[Linear, ReLU, Linear]


def network() -> Network:
    return initialize(key(0), compose(linear(2, 8), ReLU(), linear(8, 2)))


def data(count: int = 50) -> Batch:
    points, labels = disk(key(1), count)
    return points, one_hot(labels, 2)


def copied(value: TrainState[Network, SGDState]) -> TrainState[Network, SGDState]:
    return tree.map(torch.clone, value)


# --- train_state ------------------------------------------------------------------------------------------------------


def test_a_run_starts_at_step_0_with_the_optimizers_own_state() -> None:
    model, optimizer = network(), adam(0.1)
    state = train_state(key(5), model, optimizer)
    assert state.model is model
    assert tree.equal(state.optimizer, optimizer.init(model))
    assert torch.equal(state.key, key(5))
    assert state.step.dtype == torch.int64
    assert state.step.item() == 0


def test_a_state_needs_values_a_model_and_a_key() -> None:
    with pytest.raises(ValueError, match=r"no values yet, only shapes: train what initialize\(key\(0\), model\) returns"):
        train_state(key(0), compose(linear(2, 1)), sgd(0.1))
    with pytest.raises(TypeError, match="the model is the class ReLU, not a layer"):
        train_state(key(0), ReLU, sgd(0.1))  # type: ignore[type-var]  # what the test is about
    with pytest.raises(ValueError, match="one key is needed, but here are 2"):
        train_state(random.split(key(0)), network(), sgd(0.1))
    dropping = compose(*network(), frozen(Dropout(0.5)))
    train_state(key(0), dropping, sgd(0.1))
    with pytest.raises(ValueError, match=r"the model has keys, with which .* train the model that rekey was given"):
        train_state(key(0), rekey(dropping, key(1)), sgd(0.1))


# --- train_step -------------------------------------------------------------------------------------------------------


def test_a_step_is_the_loss_its_gradient_and_the_update() -> None:
    optimizer, (x, target) = sgd(0.1, momentum=0.9), data(10)
    state = train_state(key(0), network(), optimizer)
    after, report = train_step(mse, optimizer)(state, (x, target))

    value, grads = value_and_grad(mse, state.model, x, target)
    model, optimizer_state = optimizer.step(grads, state.optimizer, state.model)
    assert tree.equal(after, TrainState(model, optimizer_state, state.key, torch.tensor(1)))
    assert torch.equal(report.loss, value)
    assert torch.equal(report.prediction, apply(state.model, x))


def test_steps_agree_with_torch() -> None:
    first, _, second = model = network()
    twin = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        for parameter, leaf in zip(twin.parameters(), (first.weight, first.bias, second.weight, second.bias), strict=True):
            assert leaf is not None
            parameter.copy_(leaf)
    torch_optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    optimizer = sgd(0.1, momentum=0.9)
    state, step = train_state(key(0), model, optimizer), train_step(mse, optimizer)
    for x, target in minibatches(key(2), data(), 10):
        state, report = step(state, (x, target))
        torch_optimizer.zero_grad()
        loss = nn.functional.mse_loss(twin(x), target)
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not say
        torch_optimizer.step()
        torch.testing.assert_close(report.loss, loss.detach())
    for parameter, trained in zip(twin.parameters(), tree.leaves(state.model), strict=True):
        torch.testing.assert_close(trained, parameter.detach())


def test_a_step_is_pure() -> None:
    optimizer, batch = sgd(0.1, momentum=0.9), data(10)
    state, step = train_state(key(0), network(), optimizer), train_step(mse, optimizer)
    before, batch_before = copied(state), tree.map(torch.clone, batch)
    once, again = step(state, batch), step(state, batch)
    assert tree.equal(once, again)
    assert tree.equal(state, before)
    assert tree.equal(batch, batch_before)
    assert not tree.equal(once[0].model, state.model)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_step_records_nothing_in_any_grad_mode(mode: Callable[[], torch.no_grad]) -> None:
    x, target = data(10)
    optimizer = sgd(0.1)
    state, step = train_state(key(0), network(), optimizer), train_step(mse, optimizer)
    expected = step(state, (x, target))
    with mode():
        result = step(state, (x.requires_grad_(), target.clone().requires_grad_()))
    assert tree.equal(result, expected)
    assert not any(leaf.requires_grad for leaf in tree.leaves(result))


def test_what_a_batch_must_be() -> None:
    optimizer = sgd(0.1)
    state, step = train_state(key(0), network(), optimizer), train_step(mse, optimizer)
    with pytest.raises(TypeError, match=r"a batch is a pair \(x, target\), not float32\[2, 2\]"):
        step(state, torch.zeros(2, 2))  # type: ignore[arg-type]  # what the test is about
    with pytest.raises(TypeError, match=r"not \(float32\[1\], float32\[1\], float32\[1\]\)"):
        step(state, (torch.zeros(1), torch.zeros(1), torch.zeros(1)))  # type: ignore[arg-type]  # likewise


# --- Stochastic layers ------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Noise(Layer[None]):
    """A user's own stochastic layer."""

    key: Key | None = attrs.field(default=None, metadata=BUFFER)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x if self.key is None else x + random.normal(self.key, tuple(x.shape)), None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple["Noise", Tensor]:
        return self, grad


@attrs.frozen(eq=False)
class Keyed(Layer[None]):
    """A layer with a parameter that happens to be called key, as attention has one."""

    key: Tensor

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple["Keyed", Tensor]:
        return self, grad


@pytest.mark.parametrize(
    "model",
    [
        ReLU(),
        Dropout(0.5),
        Noise(),
        Keyed(torch.zeros(1)),
        (linear(2, 2), ReLU()),
        (linear(2, 2), (ReLU(), (Dropout(0.1),))),
        Residual((linear(2, 2), ReLU())),
        Residual((linear(2, 2), Noise())),
        (ReLU(), Parallel((ReLU(), Residual((Dropout(0.1),))))),
    ],
    ids=tree.describe,
)
def test_a_step_knows_whether_a_model_draws(model: Model) -> None:
    assert holds(is_stochastic, model) == (rekey(model, key(0)) is not model)


def test_a_step_draws_anew_from_its_own_key_and_the_model_keeps_none() -> None:
    optimizer, batch = sgd(0.0), data(20)
    model = initialize(key(0), compose(linear(2, 50), Dropout(0.5), linear(50, 2), Noise()))
    state, step = train_state(key(3), model, optimizer), train_step(mse, optimizer)
    first, one = step(state, batch)
    _, same = step(state, batch)
    second, other = step(first, batch)
    assert torch.equal(one.prediction, same.prediction)
    assert not torch.equal(one.prediction, other.prediction)  # though nothing was learned
    assert tree.equal(second.model, model)
    assert second.model[1].key is None
    elsewhere = train_state(key(4), model, optimizer)
    assert not torch.equal(step(elsewhere, batch)[1].prediction, one.prediction)
    assert not torch.equal(one.prediction, apply(model, batch[0]))


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluating_in_batches_is_evaluating_at_once() -> None:
    x, target = data(50)
    model = network()
    loss, _ = mse(apply(model, x), target)
    expected = Evaluation(loss.item(), {"accuracy": accuracy(apply(model, x), target).item()})
    assert evaluate(mse, model, [(x, target)], metrics={"accuracy": accuracy}) == expected
    for batch_size in (1, 7, 50):
        result = evaluate(mse, model, minibatches(None, (x, target), batch_size), metrics={"accuracy": accuracy})
        assert result.loss == pytest.approx(expected.loss, rel=1e-6)
        assert result.metrics["accuracy"] == pytest.approx(expected.metrics["accuracy"], rel=1e-6)


@pytest.mark.parametrize("numbers", [0, 30, 10**6])
def test_how_many_predictions_wait_to_be_measured_changes_nothing(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    x, target = data(50)
    expected = accuracy(apply(network(), x), target).item()
    monkeypatch.setattr("fundl.training._means._BUFFER_NUMBERS", numbers)
    result = evaluate(mse, network(), minibatches(key(0), (x, target), 7), metrics={"accuracy": accuracy})
    assert result.metrics["accuracy"] == pytest.approx(expected, rel=1e-6)


def test_targets_may_be_trees_and_metrics_configured() -> None:
    target = {"value": torch.tensor([[1.0], [-1.0], [1.0]]), "weight": torch.ones(3, 1)}

    def loss(prediction: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return mse(prediction * target["weight"], target["value"])

    def agreement(prediction: Tensor, target: dict[str, Tensor], *, threshold: float) -> Tensor:
        return accuracy(prediction, target["value"], threshold=threshold)

    layer = Linear(torch.ones(1, 1), bias=None)
    batches = minibatches(None, (torch.tensor([[1.0], [2.0], [-3.0]]), target), 2)
    result = evaluate(loss, layer, batches, metrics={"accuracy": functools.partial(agreement, threshold=0.0)})
    assert result.loss == pytest.approx((0 + 9 + 16) / 3)
    assert result.metrics["accuracy"] == pytest.approx(1 / 3)


def test_without_metrics_there_is_the_loss() -> None:
    result = evaluate(mse, network(), [data()])
    assert result.metrics == {}
    assert result == evaluate(mse, network(), [data()]) == Evaluation(result.loss)
    with pytest.raises(KeyError, match="there is no number 'accuracy', but none at all"):
        _ = result.metrics["accuracy"]


def test_evaluate_refuses_data_that_does_not_come_in_batches() -> None:
    with pytest.raises(TypeError, match=r"or \[\(x, target\)\] for all in one"):
        evaluate(mse, network(), data())  # type: ignore[arg-type]  # what the test is about
    with pytest.raises(ValueError, match="nothing to evaluate on: no batches came"):
        evaluate(mse, network(), [])


def test_a_loss_is_a_single_number() -> None:
    def rows(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        difference = prediction - target
        return difference.square().sum(1), 2 * difference

    with pytest.raises(ValueError, match=r"the loss is a single number, a tensor without axes, not of shape \(50,\)"):
        evaluate(rows, network(), [data()])


# --- fit --------------------------------------------------------------------------------------------------------------


def test_a_run_is_a_fold_of_the_step() -> None:
    optimizer = adam(0.01)
    step, batches = train_step(mse, optimizer), list(minibatches(key(2), data(), 8))
    expected = state = train_state(key(0), network(), optimizer)
    losses: list[float] = []
    for _ in range(2):
        for batch in batches:
            expected, report = step(expected, batch)
            losses.append(report.loss.item() * len(batch[0]))
    state, history = fit(step, state, batches, epochs=2, progress=False)
    assert tree.equal(state, expected)
    assert [epoch.train.loss for epoch in history] == pytest.approx([sum(losses[:7]) / 50, sum(losses[7:]) / 50], rel=1e-12)


def test_the_history_is_plain_data() -> None:
    train, test, optimizer = data(), disk(key(8), 30), adam(0.01)
    state, history = fit(
        train_step(mse, optimizer),
        train_state(key(0), network(), optimizer),
        lambda epoch_key: minibatches(epoch_key, train, 8),
        epochs=5,
        metrics={"accuracy": accuracy},
        evaluate=lambda model: evaluate(cross_entropy, model, [test], metrics={"accuracy": accuracy}),
        evaluate_every=2,
        progress=False,
    )
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4, 5]
    assert [epoch.step for epoch in history] == [7, 14, 21, 28, 35]
    assert [epoch.test is not None for epoch in history] == [False, True, False, True, True]
    assert history[-1].test == evaluate(cross_entropy, state.model, [test], metrics={"accuracy": accuracy})
    assert all(0 <= epoch.train.metrics["accuracy"] <= 1 for epoch in history)
    assert all(epoch.seconds > 0 for epoch in history)
    assert state.step.item() == 35


def test_the_training_metric_is_measured_before_the_updates() -> None:
    optimizer, (x, target) = sgd(0.1), data()
    state = train_state(key(0), network(), optimizer)
    _, history = fit(train_step(mse, optimizer), state, [(x, target)], epochs=1, metrics={"accuracy": accuracy}, progress=False)
    assert history[0].train == evaluate(mse, state.model, [(x, target)], metrics={"accuracy": accuracy})


def trained(
    seed: int, epochs: int, parts: int = 1
) -> tuple[TrainState[tuple[Linear, Dropout, Linear], AdamChainState], list[float]]:
    """A run with all that is random in it, whole or in parts."""
    train, optimizer = data(), adam(0.01)
    model = initialize(key(0), compose(linear(2, 8), Dropout(0.2), linear(8, 2)))
    state, step, losses = train_state(key(seed), model, optimizer), train_step(mse, optimizer), list[float]()
    for _ in range(parts):
        state, history = fit(
            step, state, lambda epoch_key: minibatches(epoch_key, train, 8), epochs=epochs // parts, progress=False
        )
        losses += [epoch.train.loss for epoch in history]
    return state, losses


def test_the_same_key_gives_the_same_bits() -> None:
    state, losses = trained(3, 2)
    again, same_losses = trained(3, 2)
    other, _ = trained(4, 2)
    assert tree.equal(state, again)
    assert losses == same_losses
    assert not tree.equal(state.model, other.model)


def test_a_run_in_parts_gives_the_bits_of_a_run_at_once() -> None:
    whole, losses = trained(3, 4)
    for parts in (2, 4):
        resumed, resumed_losses = trained(3, 4, parts)
        assert tree.equal(resumed, whole)
        assert resumed_losses == losses


def test_each_epoch_has_a_key_of_its_own_that_no_step_uses() -> None:
    keys: list[tuple[int, ...]] = []
    optimizer, train = sgd(0.1), data()
    state = train_state(key(0), network(), optimizer)

    def batches(epoch_key: Key) -> Iterable[Batch]:
        keys.append(tuple(epoch_key.tolist()))
        return minibatches(epoch_key, train, 25)

    fit(train_step(mse, optimizer), state, batches, epochs=3, progress=False)
    of_steps = {tuple(random.fold_in(state.key, step).tolist()) for step in range(10)}
    assert len({*keys, tuple(state.key.tolist()), *of_steps}) == 3 + 1 + 10


def test_fit_is_pure() -> None:
    optimizer, train = sgd(0.1, momentum=0.9), data()
    state = train_state(key(0), network(), optimizer)
    before, train_before = copied(state), tree.map(torch.clone, train)
    fit(train_step(mse, optimizer), state, lambda epoch_key: minibatches(epoch_key, train, 8), epochs=2, progress=False)
    assert tree.equal(state, before)
    assert tree.equal(train, train_before)


def test_no_epochs_change_nothing() -> None:
    optimizer = sgd(0.1)
    state = train_state(key(0), network(), optimizer)
    same, history = fit(train_step(mse, optimizer), state, [data()], epochs=0, progress=False)
    assert tree.equal(same, state)
    assert history == ()


def test_what_fit_returns_serves_autograd_and_writing_in_place() -> None:
    optimizer = sgd(0.1, momentum=0.9)
    state = train_state(key(0), network(), optimizer)
    state, _ = fit(train_step(mse, optimizer), state, [data()], epochs=1, progress=False)
    assert not any(leaf.is_inference() for leaf in tree.leaves(state))
    assert not any(leaf.requires_grad for leaf in tree.leaves(state))


def test_the_disk_can_be_learned() -> None:
    train, test, optimizer = disk(key(1), 500), disk(key(2), 500), adam(0.01)
    model = initialize(key(0), compose(linear(2, 25), ReLU(), linear(25, 2)))
    _, history = fit(
        train_step(cross_entropy, optimizer),
        train_state(key(3), model, optimizer),
        lambda epoch_key: minibatches(epoch_key, train, 10),
        epochs=20,
        metrics={"accuracy": accuracy},
        evaluate=lambda model: evaluate(cross_entropy, model, [test], metrics={"accuracy": accuracy}),
        progress=False,
    )
    assert history[-1].train.loss < history[0].train.loss / 2
    assert history[-1].train.metrics["accuracy"] > 0.9
    assert history[-1].test is not None
    assert history[-1].test.metrics["accuracy"] > 0.9


# --- A DataLoader -----------------------------------------------------------------------------------------------------


def test_a_data_loader_feeds_fit_in_an_order_that_the_key_decides() -> None:
    optimizer, dataset = adam(0.01), TensorDataset(*data())
    step = train_step(mse, optimizer)

    def loader(epoch_key: Key) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(dataset, batch_size=8, shuffle=True, generator=generator(epoch_key))

    def run(seed: int) -> TrainState[Network, AdamChainState]:
        state = train_state(key(seed), network(), optimizer)
        state, history = fit(step, state, loader, epochs=2, metrics={"accuracy": accuracy}, progress=False)
        assert [epoch.step for epoch in history] == [7, 14]
        return state

    assert tree.equal(run(0), run(0))
    assert not tree.equal(run(0).model, run(1).model)


def test_a_data_loader_serves_as_it_is_for_each_epoch_and_for_evaluate() -> None:
    optimizer, train = sgd(0.1), data()
    loader = DataLoader(TensorDataset(*train), batch_size=8)
    state = train_state(key(0), network(), optimizer)
    loaded, _ = fit(train_step(mse, optimizer), state, loader, epochs=2, progress=False)
    expected, _ = fit(train_step(mse, optimizer), state, minibatches(None, train, 8), epochs=2, progress=False)
    assert tree.equal(loaded, expected)
    result = evaluate(mse, loaded.model, loader, metrics={"accuracy": accuracy})
    assert result == evaluate(mse, loaded.model, minibatches(None, train, 8), metrics={"accuracy": accuracy})


# --- What goes wrong --------------------------------------------------------------------------------------------------


def test_fit_refuses_impossible_numbers() -> None:
    optimizer = sgd(0.1)
    state, step = train_state(key(0), network(), optimizer), train_step(mse, optimizer)
    with pytest.raises(ValueError, match="the number of epochs must be 0 or more, not -1"):
        fit(step, state, [data()], epochs=-1, progress=False)
    with pytest.raises(ValueError, match="evaluate_every must be 1 epoch or more, not 0"):
        fit(step, state, [data()], epochs=1, evaluate_every=0, progress=False)


def test_an_epoch_without_batches() -> None:
    optimizer = sgd(0.1)
    state, step = train_state(key(0), network(), optimizer), train_step(mse, optimizer)
    with pytest.raises(ValueError, match="epoch 1 has no batches"):
        fit(step, state, [], epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"epoch 2 has no batches.*an iterator can be gone through only once"):
        fit(step, state, iter([data()]), epochs=2, progress=False)
    with pytest.raises(TypeError, match=r"a batch is a pair.*minibatches\(key, \(x, target\), batch_size\)"):
        fit(step, state, data(), epochs=1, progress=False)  # type: ignore[arg-type]  # what the test is about


@pytest.mark.parametrize(("value", "text"), [(math.nan, "nan"), (math.inf, "inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(value: float, text: str) -> None:
    x, target = data(10)
    optimizer = sgd(0.0)
    good, bad = (x, target), (x, torch.full_like(target, value))

    def batches(_key: Key) -> Iterator[Batch]:
        epochs.append(0)
        yield from [good, good, bad if len(epochs) == 3 else good, good]

    epochs: list[int] = []
    with pytest.raises(FloatingPointError, match=rf"the loss is {text} in epoch 3, at step 11: .*smaller learning rate"):
        fit(train_step(mse, optimizer), train_state(key(0), network(), optimizer), batches, epochs=5, progress=False)


def test_ctrl_c_loses_nothing() -> None:
    optimizer, train, step = sgd(0.1), data(), train_step(mse, sgd(0.1))
    state = train_state(key(0), network(), optimizer)
    presses: list[int] = []

    def batches(epoch_key: Key) -> Iterator[Batch]:
        for place, batch in enumerate(minibatches(epoch_key, train, 10)):
            presses.append(place)
            if len(presses) == 8:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(Interrupted, match=r"finished epochs: 1\. Nothing is lost") as caught:
        fit(step, state, batches, epochs=5, progress=False)
    assert isinstance(caught.value, KeyboardInterrupt)  # what is written for Ctrl-C works
    assert [epoch.step for epoch in caught.value.history] == [5]
    stopped = caught.value.state
    assert isinstance(stopped, TrainState)
    assert stopped.step.item() == 7
    resumed, _ = fit(step, stopped, [train], epochs=1, progress=False)
    assert resumed.step.item() == 8


# --- What it shows ----------------------------------------------------------------------------------------------------


def shown(console: Console | bool, *, epochs: int = 3) -> None:
    optimizer, train = sgd(0.1), data()
    fit(
        train_step(mse, optimizer),
        train_state(key(0), network(), optimizer),
        lambda epoch_key: minibatches(epoch_key, train, 8),
        epochs=epochs,
        metrics={"accuracy": functools.partial(accuracy, threshold=None)},
        evaluate=lambda model: evaluate(mse, model, [train], metrics={"accuracy": accuracy}),
        progress=console,
    )


def test_elsewhere_than_on_a_terminal_an_epoch_is_a_line() -> None:
    console = Console(file=io.StringIO(), width=40)
    shown(console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 3
    for place, line in enumerate(lines):
        words = [
            "epoch",
            f"{place + 1}/3",
            "loss",
            "N",
            "accuracy",
            "N",
            "test",
            "loss",
            "N",
            "test",
            "accuracy",
            "N",
            "S",
            "examples/s",
        ]
        assert re.sub(r"[\d,]+ examples", "S examples", re.sub(r"\d\.\d{4}", "N", line)).split() == words


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    shown(True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 3


def test_progress_can_be_turned_off(capsys: pytest.CaptureFixture[str]) -> None:
    shown(False)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_is_a_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=80, color_system=None)
    shown(console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "epoch 3/3 ━━━━━━━━━━" in text
    assert "test accuracy 0." in text
    assert "examples/s" in text


def test_small_numbers_stay_readable() -> None:
    assert described(Evaluation(0.5, {"accuracy": 0.25, "f1": 1e-9})) == ["loss 0.5000", "accuracy 0.2500", "f1 1e-09"]
    assert described(Evaluation(math.nan)) == ["loss nan"]


# --- Several metrics --------------------------------------------------------------------------------------------------


def test_an_evaluation_is_plain_data() -> None:
    one = Evaluation(math.nan, {"accuracy": 0.5, "recall": math.nan})
    other = Evaluation(float("nan"), {"recall": float("nan"), "accuracy": 0.5})
    assert one == other
    assert hash(one) == hash(other)
    assert one != Evaluation(math.nan, {"accuracy": 0.5})
    assert one.metrics == {"recall": math.nan, "accuracy": 0.5}
    assert repr(one) == "Evaluation(loss=nan, metrics={'accuracy': 0.5, 'recall': nan})"
    for copied in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert copied == one
    mine = {"accuracy": 0.5}
    result = Evaluation(1, mine)
    mine["accuracy"] = 0.25
    assert result.metrics["accuracy"] == 0.5
    assert type(result.loss) is float


@pytest.mark.parametrize(
    ("loss", "metrics", "error", "text"),
    [
        (torch.ones(()), {}, TypeError, r"its loss is float32\[\]: of a tensor take number.item\(\)"),
        (1.0, {"accuracy": "high"}, TypeError, "its accuracy is 'high'"),
        (1.0, 0.5, TypeError, r"metrics are numbers by their names, such as \{\"accuracy\": 0.5\}, not 0.5"),
        (1.0, {"loss": 0.5}, ValueError, 'no metric can be called "loss"'),
        (1.0, {3: 0.5}, TypeError, 'the name of a metric is a word, such as "accuracy", not 3'),
    ],
)
def test_what_is_no_evaluation_is_said(loss: float, metrics: dict[str, float], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Evaluation(loss, metrics)


@pytest.mark.parametrize(
    ("metrics", "error", "text"),
    [
        (accuracy, TypeError, r'metrics=\{"accuracy": accuracy\}, not <function accuracy'),
        ({"accuracy": 0.5}, TypeError, r"not \{'accuracy': 0.5\}"),
        ({"loss": accuracy}, ValueError, 'no metric can be called "loss"'),
        ({"": accuracy}, TypeError, "the name of a metric is a word"),
    ],
)
def test_what_are_no_metrics_is_said(metrics: dict[str, Metric[Tensor, Tensor]], error: type[Exception], text: str) -> None:
    optimizer = sgd(0.1)
    state = train_state(key(0), network(), optimizer)
    with pytest.raises(error, match=text):
        evaluate(mse, network(), [data()], metrics=metrics)
    with pytest.raises(error, match=text):
        fit(train_step(mse, optimizer), state, [data()], epochs=1, metrics=metrics, progress=False)


def largest(prediction: Tensor, _target: Tensor) -> Tensor:
    """No mean: it is measured batch by batch."""
    return prediction.max()


def right(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction.argmax(1) == target.argmax(1)).to(torch.float64).mean()


@pytest.mark.parametrize("compiled", [False, True])
def test_metrics_side_by_side_are_what_each_is_alone(compiled: bool) -> None:
    """Those that wait, and are measured together, and those that do not."""
    metrics: dict[str, Metric[Tensor, Tensor]] = {"accuracy": accuracy, "largest": largest, "again": accuracy, "right": right}
    optimizer, rows = sgd(0.1), data(50)
    step, state = train_step(mse, optimizer), train_state(key(0), network(), optimizer)

    def measured(some: dict[str, Metric[Tensor, Tensor]]) -> Evaluation:
        _, history = fit(
            step,
            state,
            lambda key: minibatches(key, rows, 7),
            epochs=2,
            metrics=some,
            compile=compiled,
            progress=False,
        )
        return history[-1].train

    together = measured(metrics)
    assert [*together.metrics] == [*metrics]
    assert together.metrics["again"] == together.metrics["accuracy"]
    assert together.metrics["right"] == pytest.approx(together.metrics["accuracy"], rel=1e-6)
    for name, metric in metrics.items():
        assert measured({name: metric}).metrics[name] == together.metrics[name]
