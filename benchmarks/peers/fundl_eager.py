"""fundl as it is, in inference mode and with the memory that it frees, as `fundl.fit` has it."""

from collections.abc import Mapping
from typing import TypeVar

import torch

from benchmarks.cases import Case
from benchmarks.peers import Run
from benchmarks.peers.fundl_networks import loss_of, steps, updates, with_optimizer
from fundl import Transform, fold_in, keep_freed_memory, key, minibatches, train_step

S = TypeVar("S")


def prepare(case: Case) -> Mapping[str, Run]:
    """One setting."""
    keep_freed_memory()
    if case.network == "rows":
        return {"": _batches(case)}
    return {"": with_optimizer(case, _update if case.network == "parameters" else _training)}


def _training(case: Case, optimizer: Transform[S]) -> Run:
    return steps(case, optimizer, train_step(loss_of(case), optimizer))


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
    return updates(case, optimizer, over=False)
