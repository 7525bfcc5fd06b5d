"""fundl compiled: a step whose state is donated, or an epoch as one call."""

from collections.abc import Mapping
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.peers import Run
from benchmarks.peers.fundl_networks import batches, loss_of, model_of, steps, tensors, with_optimizer
from fundl import State, Transform, jit, key, scan, train_state, train_step

S = TypeVar("S")
Leaves: TypeAlias = tuple[Tensor, ...]


def prepare(case: Case) -> Mapping[str, Run]:
    """One setting; both where it is told how each goes on."""
    if case.network == "parameters":
        return {"": with_optimizer(case, _update)}
    if case.network == "dying":
        return {"scan": with_optimizer(case, _epoch), "step": with_optimizer(case, _training)}
    return {"": with_optimizer(case, _epoch if case.epoch else _training)}


def _training(case: Case, optimizer: Transform[S]) -> Run:
    return steps(case, optimizer, jit(train_step(loss_of(case), optimizer), donate="state"))


def _epoch(case: Case, optimizer: Transform[S]) -> Run:
    epoch = scan(train_step(loss_of(case), optimizer))
    state = train_state(key(0), model_of(case), optimizer)
    data = batches(case)

    def run(calls: int) -> float:
        nonlocal state
        losses = torch.zeros(1)
        with torch.inference_mode():
            for _ in range(calls):
                state, reports = epoch(state, data)
                losses = reports.loss
        return losses[-1].item()

    return run


def _update(case: Case, optimizer: Transform[S]) -> Run:
    params, grads = tuple(tensors(case.parameters())), tuple(tensors(case.gradients()))

    def update(state: tuple[Leaves, State[Leaves, S]], grads: Leaves) -> tuple[Leaves, State[Leaves, S]]:
        params, inner = state
        return optimizer.step(grads, inner, params)

    compiled, state = jit(update, donate="state"), (params, optimizer.init(params))
    del params

    def run(calls: int) -> float:
        nonlocal state
        with torch.inference_mode():
            for _ in range(calls):
                state = compiled(state, grads)
        return state[0][0][0, 0].item()

    return run
