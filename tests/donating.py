"""A state that nobody else holds a part of, for steps that write over it."""

from typing import Any, Final, TypeAlias, TypeVar

import pytest
import torch
from torch import Tensor

from fundl import (
    Dropout,
    LayerNorm,
    Linear,
    ReLU,
    TrainState,
    Transform,
    compose,
    initialize,
    key,
    layer_norm,
    linear,
    random,
    train_state,
    tree,
)
from fundl.layer import P
from fundl.optim.chain import AnyTransform
from tests.optimizer_samples import OPTIMIZERS

S = TypeVar("S")

Batch: TypeAlias = tuple[Tensor, Tensor]
Network: TypeAlias = tuple[Linear[int, int], LayerNorm[int], ReLU, Dropout, Linear[int, int]]
State: TypeAlias = TrainState[Network, Any]  # type: ignore[explicit-any]  # of any optimizer

X, TARGET = random.normal(key(0), (6, 3)), random.normal(key(1), (6, 2))
BATCH: Final = X, TARGET

every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def network(dtype: torch.dtype = torch.float32) -> Network:
    model: Network = initialize(key(2), compose(linear(3, 5), layer_norm(5), ReLU(), Dropout(0.2), linear(5, 2)), dtype=dtype)
    return model


def fresh(optimizer: Transform[S], model: P) -> TrainState[P, S]:
    """A state that nobody else holds a part of."""
    return tree.map(torch.clone, train_state(key(3), model, optimizer))


def start(optimizer: AnyTransform, dtype: torch.dtype = torch.float32) -> State:
    """That of the network."""
    return fresh(optimizer, network(dtype))


def written(state: TrainState[P, S]) -> list[Tensor]:
    return [*tree.trainable_leaves((state.model, state.optimizer)), state.step]


def addresses(state: TrainState[P, S]) -> list[int]:
    return [leaf.data_ptr() for leaf in written(state)]
