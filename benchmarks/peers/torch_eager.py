"""torch.nn, autograd and torch.optim, with each of torch.optim's settings: the fastest counts."""

from collections.abc import Mapping
from typing import Final

import torch

from benchmarks.cases import Case
from benchmarks.peers import Run
from benchmarks.peers.torch_networks import batches, loss_of, module_of, optimizer_of, parameters_of

SETTINGS: Final = ("plain", "foreach", "fused")


def prepare(case: Case) -> Mapping[str, Run]:
    """A run for each setting."""
    if case.network == "rows":
        return {"randperm": _batches(case)}
    return {setting: (_update if case.network == "parameters" else _training)(case, setting) for setting in SETTINGS}


def _training(case: Case, setting: str) -> Run:
    module, loss_function = module_of(case), loss_of(case)
    optimizer = optimizer_of(case, module.parameters(), setting)
    data = [*zip(*batches(case), strict=True)]

    def run(calls: int) -> float:
        loss = torch.zeros(())
        for _ in range(calls):
            for x, target in data:
                optimizer.zero_grad()
                loss = loss_function(module(x), target)
                torch.autograd.backward(loss)
                optimizer.step()
        return loss.item()

    return run


def _batches(case: Case) -> Run:
    """Without a DataLoader, which puts each row of a batch together by itself."""
    rows = torch.tensor(case.rows())

    def run(calls: int) -> float:
        seen = 0
        for _ in range(calls):
            for chosen in torch.split(torch.randperm(len(rows)), case.batch):
                seen += len(rows[chosen])
        return seen / calls

    return run


def _update(case: Case, setting: str) -> Run:
    parameters = parameters_of(case.parameters(), case.gradients())
    optimizer = optimizer_of(case, parameters, setting)

    def run(calls: int) -> float:
        for _ in range(calls):
            optimizer.step()
        return parameters[0][0, 0].item()

    return run
