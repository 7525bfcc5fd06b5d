"""fundl as it is, where a step may write over its state, as `fundl.fit` has it from an epoch's second step on."""

from collections.abc import Mapping
from typing import TypeVar

from benchmarks.cases import Case
from benchmarks.peers import Run
from benchmarks.peers.fundl_networks import loss_of, steps, updates, with_optimizer
from fundl import Transform, keep_freed_memory, train_step

S = TypeVar("S")


def prepare(case: Case) -> Mapping[str, Run]:
    """One setting."""
    keep_freed_memory()
    return {"": with_optimizer(case, _update if case.network == "parameters" else _training)}


def _training(case: Case, optimizer: Transform[S]) -> Run:
    return steps(case, optimizer, train_step(loss_of(case), optimizer, donate=True))


def _update(case: Case, optimizer: Transform[S]) -> Run:
    return updates(case, optimizer, over=True)
