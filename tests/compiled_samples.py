"""Functions that one process compiles and saves, and another one loads: both import this module."""

import sys
from collections.abc import Callable

import attrs
import torch
from torch import Tensor

import fundl
from fundl import (
    Compiled,
    DonatedError,
    Linear,
    Scanned,
    TrainState,
    initialize,
    jit,
    key,
    lstm,
    mse,
    random,
    scan,
    train_state,
    train_step,
    tree,
)
from fundl.initializers import VarianceScaling, uniform_fan_in
from fundl.optim.sgd import SGDState, sgd
from fundl.training.step import Report
from fundl.tree import Record

State = TrainState[Linear[int, int], SGDState]
Batch = tuple[Tensor, Tensor]
MEMORY = initialize(key(0), lstm(1, 1))
FACTORS = torch.arange(6.0).reshape(3, 2).t()


@attrs.frozen(eq=False)
class Pair(Record):
    first: Tensor
    second: Tensor
    kept: VarianceScaling


Powers = Compiled[[Pair, Callable[[Tensor], Tensor], int], tuple[Pair, Tensor, Tensor]]
Epoch = Scanned[[State, Batch], tuple[State, Report]]


def powers(pair: Pair, how: Callable[[Tensor], Tensor], power: int) -> tuple[Pair, Tensor, Tensor]:
    """Uses a tensor from outside, and hands it through."""
    return Pair(pair.second, how(pair.first**power), pair.kept), FACTORS, FACTORS @ pair.second


def with_memory(x: Tensor) -> Tensor:
    """By a kernel that compiled code calls."""
    return fundl.apply(MEMORY, x.view(1, 3, 1)).view(3)


def new(*, rate: float = 0.125, max_traces: int | None = None) -> tuple[Powers, Epoch]:
    compiled = jit(powers, static=("how", "power"), donate="pair", max_traces=max_traces)
    return compiled, scan(train_step(mse, sgd(rate)), max_traces=max_traces)


def pair(base: Tensor) -> Pair:
    return Pair(base[:3], base[-3:], uniform_fan_in())


def state() -> State:
    return train_state(key(1), Linear(torch.ones(1, 2), torch.zeros(1)), sgd(0.125))


def batches(*shape: int) -> Batch:
    return random.normal(key(2), (*shape, 2)), random.normal(key(3), (*shape, 1))


def results(compiled: Powers, epoch: Epoch) -> object:
    """What compiled functions return, for several kinds of arguments."""
    found: list[object] = []
    run = tree.map(torch.clone, pair(torch.arange(6.0)))
    for _ in range(3):
        before = run
        run, *rest = compiled(run, torch.neg, 2)
        found.append(tree.map(torch.clone, [run, *rest]))
        try:
            tree.map(torch.neg, before)
        except DonatedError:
            continue
        raise AssertionError("what was donated can still be used")
    one_memory = pair(torch.arange(5.0))
    found.append((compiled(one_memory, torch.neg, 2), one_memory))
    found.append(compiled(tree.map(torch.clone, one_memory), with_memory, 3))
    return found, epoch(state(), batches(5, 4))


def run_what_was_saved(folder: str) -> None:
    """Load the files 0.compiled and 1.compiled, and save results: neither may need torch's compiler, let alone one for C++."""
    compiled, epoch = new(max_traces=0)
    compiled.load(f"{folder}/0.compiled")
    epoch.load(f"{folder}/1.compiled")
    fundl.save(f"{folder}/results.safetensors", results(compiled, epoch))
    loaded = [[trace.loaded for trace in traces] for traces in (compiled.traces, epoch.traces)]
    assert loaded == [[True, True], [True]], loaded
    assert "torch._inductor.compile_fx" not in sys.modules
