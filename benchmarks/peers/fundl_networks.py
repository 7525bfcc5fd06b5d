"""The networks of the cases as fundl has them."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Protocol, TypeVar

import torch
from torch import Tensor

import fundl
from benchmarks.cases import CLASSES, DROPPED, FEATURES, HEADS, MOMENTUM, TOKENS, WEIGHT_DECAY, WIDTH, Case, Floats
from benchmarks.peers import Run
from fundl import Loss, Model, Step, Transform, key, train_state, tree

S = TypeVar("S")


def model_of(case: Case) -> Model:
    """The network with the first parameters."""
    return tree.with_trainable_leaves(_network(case), tensors(case.parameters()))


def tensors(leaves: Iterable[Floats]) -> Iterator[Tensor]:
    """Copies of arrays."""
    return map(torch.tensor, leaves)


def batches(case: Case) -> tuple[Tensor, Tensor]:
    """The inputs and the targets of the steps of a call, along a first axis."""
    x, target = case.batches()
    return torch.tensor(x), torch.tensor(target)


def loss_of(case: Case) -> Loss[Tensor, Tensor]:
    """The loss."""
    if case.network == "transformer":
        return _each_position
    return fundl.mse if case.mean_squared else fundl.cross_entropy


class Maker(Protocol):
    """Makes a run with an optimizer, whatever its state is."""

    def __call__(self, case: Case, optimizer: Transform[S], /) -> Run:
        """The run."""


def with_optimizer(case: Case, make: Maker) -> Run:
    """The run with the optimizer of a case."""
    match case.optimizer:
        case "sgd":
            return make(case, fundl.sgd(case.rate))
        case "momentum":
            return make(case, fundl.momentum(case.rate, momentum=MOMENTUM))
        case "adam":
            return make(case, fundl.adam(case.rate))
        case "adamw":
            return make(case, fundl.adamw(case.rate, weight_decay=WEIGHT_DECAY))


def steps(case: Case, optimizer: Transform[S], step: Step[Model, S, Tensor, Tensor, Tensor]) -> Run:
    """Steps over the batches of a case, one by one."""
    state = train_state(key(0), model_of(case), optimizer)
    data = [*zip(*batches(case), strict=True)]

    def run(calls: int) -> float:
        nonlocal state
        loss = torch.zeros(())
        with torch.inference_mode():
            for _ in range(calls):
                for batch in data:
                    state, report = step(state, batch)
                    loss = report.loss
        return loss.item()

    return run


def updates(case: Case, optimizer: Transform[S], *, over: bool) -> Run:
    """Updates of the parameters of a case, which are written over or not."""
    params, grads = tuple(tensors(case.parameters())), tuple(tensors(case.gradients()))
    state, update = optimizer.init(params), optimizer.step_over if over else optimizer.step

    def run(calls: int) -> float:
        nonlocal params, state
        with torch.inference_mode():
            for _ in range(calls):
                params, state = update(grads, state, params)
        return params[0][0, 0].item()

    return run


def _each_position(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    value, grad = fundl.cross_entropy(prediction.flatten(0, 1), target.flatten())
    return value, grad.reshape(prediction.shape)


def _network(case: Case) -> Model:
    match case.network:
        case "convolutional":
            return fundl.compose(
                fundl.conv2d(1, 32, 3, padding=1),
                fundl.ReLU(),
                fundl.MaxPool2d(2),
                fundl.conv2d(32, 64, 3, padding=1),
                fundl.ReLU(),
                fundl.MaxPool2d(2),
                fundl.Flatten(),
                fundl.linear(64 * 7 * 7, 128),
                fundl.ReLU(),
                fundl.linear(128, CLASSES),
            )
        case "lstm":
            return fundl.compose(fundl.lstm(64, 128), fundl.MeanOfPositions(), fundl.linear(128, CLASSES))
        case "transformer":
            block = fundl.transformer_block(FEATURES, HEADS, causal=True)
            before, after = fundl.embedding(TOKENS, FEATURES), fundl.layer_norm(FEATURES)
            return fundl.compose(before, *_blocks(case, block), after, fundl.linear(FEATURES, TOKENS))
        case "deep":
            return fundl.compose(*_blocks(case, fundl.linear(WIDTH, WIDTH), fundl.ReLU()), fundl.linear(WIDTH, CLASSES))
        case _:
            dropout = [fundl.Dropout(DROPPED)] if case.network == "dropout" else []
            layers: list[Model] = []
            for sizes in pairwise(case.sizes):
                layers += [fundl.linear(*sizes), fundl.ReLU(), *dropout]
            return tuple(layers[: -1 - len(dropout)])


def _blocks(case: Case, *block: Model) -> list[Model]:
    return [fundl.repeat(case.repeated, *block)] if case.repeat else [*block] * case.repeated
