"""fundl as it is, in inference mode and with the memory that it frees, as `fundl.fit` has it."""

from collections.abc import Mapping
from typing import TypeVar

import torch

from benchmarks.cases import Case
from benchmarks.peers import Run
from benchmarks.peers.fundl_networks import batches, loss_of, model_of, tensors, with_optimizer
from fundl import Transform, fold_in, keep_freed_memory, key, minibatches, train_state, train_step

S = TypeVar("S")


def prepare(case: Case) -> Mapping[str, Run]:
    """One setting."""
    keep_freed_memory()
    if case.network == "rows":
        return {"": _batches(case)}
    return {"": with_optimizer(case, _update if case.network == "parameters" else _training)}


def _training(case: Case, optimizer: Transform[S]) -> Run:
    step = train_step(loss_of(case), optimizer)
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


def _batches(case: Case) -> Run:
    rows, number = torch.tensor(case.rows()), 0

    def run(calls: int) -> float:
        nonlocal number
        seen = 0
        for _ in range(calls):
            number += 1
            for batch in minibatches(fold_in(key(0), number), rows, case.batch):
                seen += len(batch)
        return seen / calls

    return run


def _update(case: Case, optimizer: Transform[S]) -> Run:
    params, grads = tuple(tensors(case.parameters())), tuple(tensors(case.gradients()))
    state = optimizer.init(params)

    def run(calls: int) -> float:
        nonlocal params, state
        with torch.inference_mode():
            for _ in range(calls):
                params, state = optimizer.step(grads, state, params)
        return params[0][0, 0].item()

    return run
