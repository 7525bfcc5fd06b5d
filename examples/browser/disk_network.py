"""The disk network as graphs for a page: its data, where it starts, the order of an epoch, a step, and what it answers.

All that is random comes from a seed, as in ``examples/disk.py``. So a page that runs these graphs has the numbers that
`fundl.epochs` has, up to rounding.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

import fundl
from fundl import AdamChainState, AdjustableState, Key, Model, TrainState
from fundl.interop import onnx

TRAIN_COUNT: Final = 1000
TEST_COUNT: Final = 1000
MOST_POINTS: Final = 2000  # that a page may hold, with those that are drawn
HIDDEN: Final[Sequence[Sequence[int]]] = ((), (4,), (8, 8), (25, 25, 25))
OPTIMIZER: Final = fundl.adjustable(fundl.adam(0.01))

State = TrainState[Model, AdjustableState[AdamChainState]]
Points = tuple[Tensor, Tensor]


def network(hidden: Sequence[int]) -> Model:
    """Linear layers from two coordinates to two classes, with ReLU between them; as yet without values."""
    layers = [part for pair in itertools.pairwise((2, *hidden, 2)) for part in (fundl.linear(*pair), fundl.ReLU())]
    return fundl.compose(*layers[:-1])


def start(key: Key, hidden: Sequence[int]) -> State:
    """What a run starts from."""
    _, _, model_key, run_key = fundl.split(key, 4)
    return fundl.train_state(run_key, fundl.initialize(model_key, network(hidden)), OPTIMIZER)


def data(key: Key, noise: Tensor) -> tuple[Points, Points]:
    """Points to learn from, which noise has moved after they had their labels, and others to test on, which it has not."""
    train_key, test_key, _, _ = fundl.split(key, 4)
    points, labels = fundl.disk(train_key, TRAIN_COUNT)
    moves = fundl.random.normal(fundl.fold_in(train_key, 0), (TRAIN_COUNT, 2))
    return ((points + noise * moves).clamp(0, 1), labels), fundl.disk(test_key, TEST_COUNT)


def order(key: Key, began: Tensor) -> Tensor:
    """The order of the epoch that begins after so many steps, of the most points; of n points, what of it is below n.

    It is that of `fundl.epochs` with `fundl.minibatches`: a number's place among the others does not depend on how many follow.
    """
    return fundl.random.permutation(fundl.fold_in(key, began + -(2**63)), MOST_POINTS)  # 2**63 + began, in 64 bits


step: Final = fundl.train_step(fundl.cross_entropy, OPTIMIZER)


def answer(model: Model, x: Tensor) -> Tensor:
    """What a model makes of points: a score for outside, and one for inside."""
    return fundl.apply(model, x)


def name_of(hidden: Sequence[int]) -> str:
    """What the files of a network are called, after the sizes of its hidden layers."""
    return "-".join(map(str, hidden)) or "linear"


def write(folder: Path, networks: Sequence[Sequence[int]] = HIDDEN) -> None:
    """Write all that the page needs into a folder, with some networks by the sizes of their hidden layers."""
    key = fundl.key(0)
    onnx.export(folder / "data.onnx", data, key, torch.tensor(0.0), results=("train", "test"))
    onnx.export(folder / "order.onnx", order, key, torch.tensor(0), results="order")
    for hidden in networks:
        write_network(folder, hidden)
    place = [*fundl.hyperparameters(start(key, ()))].index("rate")
    about = {"networks": [name_of(hidden) for hidden in networks], "rate": f"state.optimizer.inner.numbers.{place}"}
    (folder / "about.json").write_text(json.dumps(about))


def write_network(folder: Path, hidden: Sequence[int]) -> None:
    """Write the graphs of a network, and a file of its model, whose numbers the page replaces."""

    def first(key: Key) -> State:
        return start(key, hidden)

    key, name = fundl.key(0), name_of(hidden)
    state, batch = first(key), fundl.disk(key, 7)
    onnx.export(folder / f"start-{name}.onnx", first, key, results="state")
    onnx.export(folder / f"step-{name}.onnx", step, state, batch, free="batch", results=("next.state", "report"))
    onnx.export(folder / f"answer-{name}.onnx", answer, state.model, batch[0], free="x", results="scores")
    fundl.save(folder / f"model-{name}.safetensors", state.model)
