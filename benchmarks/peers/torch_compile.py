"""torch.compile of a whole step of torch.nn, its optimizer included; and of its network alone, with a fused optimizer."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.peers import Run
from benchmarks.peers.torch_networks import batches, loss_of, module_of, optimizer_of, parameters_of


def prepare(case: Case) -> Mapping[str, Run]:
    """A run with each of the two; an optimizer alone has but one."""
    if case.network == "parameters":
        return {"step": _update(case)}
    return {"step": _training(case, whole=True), "network": _training(case, whole=False)}


def _training(case: Case, *, whole: bool) -> Run:
    module, loss_function = module_of(case), loss_of(case)
    optimizer = optimizer_of(case, module.parameters(), "plain" if whole else "fused")
    data = [*zip(*batches(case), strict=True)]

    def loss_of_batch(x: Tensor, target: Tensor) -> Tensor:
        return loss_function(module(x), target)

    forward = loss_of_batch if whole else _compiled(loss_of_batch)

    def written(x: Tensor, target: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = forward(x, target)
        torch.autograd.backward(loss)
        optimizer.step()
        return loss

    step = _compiled(written) if whole else written

    def run(calls: int) -> float:
        loss = torch.zeros(())
        for _ in range(calls):
            for x, target in data:
                loss = step(x, target)
        return loss.item()

    return run


def _update(case: Case) -> Run:
    parameters = parameters_of(case.parameters(), case.gradients())
    optimizer = optimizer_of(case, parameters, "plain")

    def update() -> None:
        optimizer.step()

    update = torch.compile(update, dynamic=False)

    def run(calls: int) -> float:
        for _ in range(calls):
            update()
        return parameters[0][0, 0].item()

    return run


def _compiled(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return torch.compile(function, dynamic=False)
