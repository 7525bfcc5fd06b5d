"""fundl as it is, where a step may write over its state, as `fundl.fit` has it from an epoch's second step on."""

from collections.abc import Mapping
from typing import TypeVar

import torch

from benchmarks.cases import Case
from benchmarks.peers import Run
from benchmarks.peers.fundl_networks import batches, loss_of, model_of, tensors, with_optimizer
from fundl import Transform, keep_freed_memory, key, train_state, train_step

S = TypeVar("S")


def prepare(case: Case) -> Mapping[str, Run]:
    """One setting."""
    keep_freed_memory()
    return {"": with_optimizer(case, _update if case.network == "parameters" else _training)}


def _training(case: Case, optimizer: Transform[S]) -> Run:
    step = train_step(loss_of(case), optimizer, donate=True)
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


def _update(case: Case, optimizer: Transform[S]) -> Run:
    params, grads = tuple(tensors(case.parameters())), tuple(tensors(case.gradients()))
    state = optimizer.init(params)

    def run(calls: int) -> float:
        nonlocal params, state
        with torch.inference_mode():
            for _ in range(calls):
                params, state = optimizer.step_over(grads, state, params)
        return params[0][0, 0].item()

    return run
