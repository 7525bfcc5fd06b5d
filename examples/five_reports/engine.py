"""One engine for all set-ups: it trains with fundl and with torch.nn, from the same data, parameters and batches."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

import attrs
import torch
from torch import Tensor, nn

import fundl
from five_reports.setups import SGD, LossName, Setup
from fundl import AnyTransform, Key, Linear, Loss, Minibatches, Model, tree

POINTS = 1000  # to train on, and as many others to test on

Tick: TypeAlias = Callable[[], None]
"""Called after each epoch."""
Batch: TypeAlias = tuple[Tensor, Tensor]
Network: TypeAlias = Callable[[Tensor], Tensor]


# --- What both start from ---------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Start:
    """What a run starts from: determined by the seed and the number of the run, and the same for all rows of all tables.

    Args:
        train_points: (1000, 2), in the unit square.
        test_points: others.
        train_labels: 1 inside of the disk, 0 outside.
        test_labels: of the others.
        model_key: of the initial parameters.
        order_key: of the order of the points in each epoch.
        noise_key: of what dropout drops.
    """

    train_points: Tensor
    train_labels: Tensor
    test_points: Tensor
    test_labels: Tensor
    model_key: Key
    order_key: Key
    noise_key: Key


def start_of(seed: int, run: int, dtype: torch.dtype = torch.float32) -> Start:
    """The data and the keys of a run."""
    train, test, *keys = fundl.split(fundl.fold_in(fundl.key(seed), run), 5)
    return Start(*fundl.disk(train, POINTS, dtype=dtype), *fundl.disk(test, POINTS, dtype=dtype), *keys)


def inputs_of(setup: Setup, start: Start) -> tuple[Tensor, Tensor]:
    """What the network sees of the points to train on and of those to test on."""
    return scaled(setup, start, start.train_points), scaled(setup, start, start.test_points)


def scaled(setup: Setup, start: Start, points: Tensor) -> Tensor:
    """What the network sees of some points: normalised as the training points are, if the set-up says so."""
    return fundl.standardize(points, *fundl.mean_and_std(start.train_points)) if setup.is_normalised else points


def targets_of(setup: Setup, labels: Tensor, dtype: torch.dtype) -> Tensor:
    """What the network is to answer, from labels 0 and 1."""
    match setup.labels:
        case "-1/+1":
            return (2 * labels - 1).to(dtype).unsqueeze(1)
        case "0/1":
            return labels.to(dtype).unsqueeze(1)
        case "one-hot":
            return fundl.one_hot(labels, 2, dtype=dtype)
        case "class":
            return labels


def accuracy_of(setup: Setup, prediction: Tensor, target: Tensor) -> Tensor:
    """The fraction of right answers: of an output that decides by its sign, by rounding, or by the higher of two."""
    return fundl.accuracy(prediction, target, threshold={"-1/+1": 0.0, "0/1": 0.5}.get(setup.labels))


def is_inside(setup: Setup, prediction: Tensor) -> Tensor:
    """How much the network takes points for inside: above 0 where it decides so."""
    match setup.labels:
        case "-1/+1":
            return prediction[:, 0]
        case "0/1":
            return prediction[:, 0] - 0.5
        case "one-hot" | "class":
            return prediction[:, 1] - prediction[:, 0]


# --- fundl --------------------------------------------------------------------------------------------------------------


def loss_of(setup: Setup) -> Loss[Tensor, Tensor]:
    """The set-up's loss in fundl."""
    losses: dict[LossName, Loss[Tensor, Tensor]] = {
        "mse": partial(fundl.mse, reduction=setup.reduction),
        "cross-entropy": partial(fundl.cross_entropy, reduction=setup.reduction),
        "binary-cross-entropy": partial(fundl.binary_cross_entropy, reduction=setup.reduction),
    }
    return losses[setup.loss]


def optimizer_of(setup: Setup) -> AnyTransform:
    """The set-up's optimizer in fundl."""
    chosen = setup.optimizer
    rate = fundl.cosine_schedule(chosen.rate, steps_of(setup)) if chosen.is_annealed else chosen.rate
    return fundl.sgd(rate, momentum=chosen.momentum) if isinstance(chosen, SGD) else fundl.adam(rate)


def steps_of(setup: Setup) -> int:
    """How many steps a run has."""
    return setup.epochs * math.ceil(POINTS / setup.batch_size)


# --- torch.nn -----------------------------------------------------------------------------------------------------------


def torch_network(model: Model) -> nn.Module:
    """The same network in torch.nn, with copies of the parameters."""
    if isinstance(model, tuple):
        return nn.Sequential(*map(torch_network, model))
    if isinstance(model, Linear):
        return torch_linear(model.weight, model.bias)
    match model:
        case fundl.ReLU():
            return nn.ReLU()
        case fundl.Tanh():
            return nn.Tanh()
        case fundl.Sigmoid():
            return nn.Sigmoid()
        case fundl.Dropout(rate=rate):
            return nn.Dropout(rate)
        case _:
            raise TypeError(f"none of the five reports has a layer such as {model!r}")


def torch_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """The same layer in torch.nn."""
    outputs, inputs = weight.shape
    copy = nn.Linear(inputs, outputs, bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        copy.weight.copy_(weight)
        if bias is not None:
            copy.bias.copy_(bias)
    return copy


def torch_loss(setup: Setup) -> Callable[[Tensor, Tensor], Tensor]:
    """The set-up's loss in torch.nn, which has no mean over the samples alone."""
    reduction = "mean" if setup.reduction == "mean" else "sum"
    modules: dict[LossName, nn.Module] = {
        "mse": nn.MSELoss(reduction=reduction),
        "cross-entropy": nn.CrossEntropyLoss(reduction=reduction),
        "binary-cross-entropy": nn.BCELoss(reduction=reduction),
    }
    module = modules[setup.loss]

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        value: Tensor = module(prediction, target)
        return value / len(target) if setup.reduction == "batch_mean" else value

    return loss


def torch_optimizer(setup: Setup, network: nn.Module) -> torch.optim.Optimizer:
    """The set-up's optimizer in torch.optim, in its fastest variant."""
    chosen = setup.optimizer
    if isinstance(chosen, SGD):
        return torch.optim.SGD(network.parameters(), lr=chosen.rate, momentum=chosen.momentum, fused=True)
    return torch.optim.Adam(network.parameters(), lr=chosen.rate, fused=True)


def torch_step(setup: Setup, network: nn.Module) -> Callable[[Tensor, Tensor], None]:
    """A function that trains the network by one step each time it is called."""
    loss, optimizer, numbers = torch_loss(setup), torch_optimizer(setup, network), itertools.count()

    def step(x: Tensor, target: Tensor) -> None:
        if setup.optimizer.is_annealed:
            part = next(numbers) / steps_of(setup)
            for group in optimizer.param_groups:
                group["lr"] = setup.optimizer.rate * (1 + math.cos(math.pi * part)) / 2
        optimizer.zero_grad()
        torch.autograd.backward(loss(network(x), target))
        optimizer.step()

    return step


# --- A run --------------------------------------------------------------------------------------------------------------


@attrs.frozen
class Learned:
    """How a training went.

    Args:
        curve: the test accuracy after each epoch, from 0 to 1.
        train: the accuracy on the training points, at the end.
        seconds: that the steps took, without the measuring.
    """

    curve: tuple[float, ...]
    train: float
    seconds: float

    @property
    def test(self) -> float:
        """The accuracy on the test points, at the end."""
        return self.curve[-1]


@attrs.frozen
class Run:
    """One run: the same training by fundl and by torch.nn.

    Args:
        fundl: how it went with fundl.
        torch: how it went with torch.nn.
        wrong: the test points that fundl's network misclassified at the end.
    """

    fundl: Learned
    torch: Learned
    wrong: tuple[tuple[float, float], ...]


def run_both(setup: Setup, seed: int, run: int, tick: Tick) -> tuple[Run, Model]:
    """Train with fundl and with torch.nn; also fundl's trained model."""
    start = start_of(seed, run)
    model = fundl.initialize(start.model_key, setup.model)
    trained, ours = learn_with_fundl(setup, start, model, tick)
    theirs = learn_with_torch(setup, start, model, tick)
    is_wrong = (is_inside(setup, fundl.apply(trained, inputs_of(setup, start)[1])) > 0) != (start.test_labels == 1)
    wrong = tuple((float(x), float(y)) for x, y in start.test_points[is_wrong])
    return Run(ours, theirs, wrong), trained


def epochs_of(setup: Setup, start: Start) -> Iterator[Minibatches[Batch]]:
    """The batches of each epoch: the same ones whoever asks."""
    x, _ = inputs_of(setup, start)
    data = x, targets_of(setup, start.train_labels, x.dtype)
    for epoch in range(setup.epochs):
        key = fundl.fold_in(start.order_key, epoch) if setup.is_shuffled else None
        yield fundl.minibatches(key, data, setup.batch_size)


def learn_with_fundl(setup: Setup, start: Start, model: Model, tick: Tick) -> tuple[Model, Learned]:
    """Train a model with fundl: a fold of a pure step over the batches."""
    on_train, on_test = accuracies_of(setup, start)
    optimizer = optimizer_of(setup)
    step = fundl.train_step(loss_of(setup), optimizer)
    state = fundl.train_state(start.noise_key, model, optimizer)
    curve: list[float] = []
    seconds = 0.0
    for batches in epochs_of(setup, start):
        state, (epoch,) = fundl.fit(step, state, batches, epochs=1, progress=False)
        seconds += epoch.seconds
        curve.append(on_test(partial(fundl.apply, state.model)))
        tick()
    return state.model, Learned(tuple(curve), on_train(partial(fundl.apply, state.model)), seconds)


def learn_with_torch(setup: Setup, start: Start, model: Model, tick: Tick) -> Learned:
    """Train a copy of the model with torch.nn, in place."""
    on_train, on_test = accuracies_of(setup, start)
    torch.manual_seed(0)  # of its dropout; nothing else in here draws from torch's own generator
    network = torch_network(model)
    step = torch_step(setup, network)
    curve: list[float] = []
    seconds = 0.0
    for batches in epochs_of(setup, start):
        before = time.perf_counter()
        for x, target in batches:
            step(x, target)
        seconds += time.perf_counter() - before
        curve.append(on_test(network.eval()))
        network.train()
        tick()
    return Learned(tuple(curve), on_train(network.eval()), seconds)


def accuracies_of(setup: Setup, start: Start) -> tuple[Callable[[Network], float], Callable[[Network], float]]:
    """Two functions that measure the accuracy of a network: on the training points, and on the test points."""
    train, test = inputs_of(setup, start)
    train_target, test_target = (targets_of(setup, labels, train.dtype) for labels in (start.train_labels, start.test_labels))

    def measure(x: Tensor, target: Tensor, network: Network) -> float:
        with torch.no_grad():
            return float(accuracy_of(setup, network(x), target))

    return partial(measure, train, train_target), partial(measure, test, test_target)


# --- How far the two are apart --------------------------------------------------------------------------------------


def distance(setup: Setup, seed: int, steps: int) -> float:
    """The largest difference of any parameter between fundl and torch.nn over some steps in float64."""
    start = start_of(seed, 0, torch.float64)
    model = fundl.initialize(start.model_key, setup.model, dtype=torch.float64)
    optimizer = optimizer_of(setup)
    step = fundl.train_step(loss_of(setup), optimizer)
    state = fundl.train_state(start.noise_key, model, optimizer)
    network = torch_network(model)
    other_step = torch_step(setup, network)
    largest = 0.0
    for x, target in first(steps, epochs_of(setup, start)):
        state, _ = step(state, (x, target))
        other_step(x, target)
        pairs = zip(tree.leaves(state.model), network.parameters(), strict=True)
        largest = max(largest, *(float((ours - theirs.detach()).abs().max()) for ours, theirs in pairs))
    return largest


def first(steps: int, epochs: Iterator[Minibatches[Batch]]) -> Iterator[Batch]:
    """As many batches, over as many epochs as it takes."""
    batches = (batch for epoch in epochs for batch in epoch)
    for _, batch in zip(range(steps), batches, strict=False):
        yield batch
