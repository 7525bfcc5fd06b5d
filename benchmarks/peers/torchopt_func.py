"""torch.func, which makes gradients of a pure function of parameters, and TorchOpt's optimizers."""

from collections.abc import Mapping

import torch
import torchopt
from torch import Tensor
from torch.func import functional_call, grad_and_value
from torchopt.base import GradientTransformation

from benchmarks.cases import MOMENTUM, WEIGHT_DECAY, Case
from benchmarks.peers import Run
from benchmarks.peers.torch_networks import batches, loss_of, module_of


def prepare(case: Case) -> Mapping[str, Run]:
    """One setting."""
    return {"": _update(case) if case.network == "parameters" else _training(case)}


def _optimizer(case: Case) -> GradientTransformation:
    match case.optimizer:
        case "sgd":
            return torchopt.sgd(case.rate)
        case "momentum":
            return torchopt.sgd(case.rate, momentum=MOMENTUM)
        case "adam":
            return torchopt.adam(case.rate)
        case "adamw":
            return torchopt.adamw(case.rate, weight_decay=WEIGHT_DECAY)


def _training(case: Case) -> Run:
    module, loss_function, optimizer = module_of(case), loss_of(case), _optimizer(case)
    params = {name: parameter.detach() for name, parameter in module.named_parameters()}
    state = optimizer.init(params)
    data = [*zip(*batches(case), strict=True)]

    def loss_of_batch(params: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        return loss_function(functional_call(module, params, (x,)), target)

    gradient = grad_and_value(loss_of_batch)

    def run(calls: int) -> float:
        nonlocal params, state
        loss = torch.zeros(())
        for _ in range(calls):
            for x, target in data:
                grads, loss = gradient(params, x, target)
                updates, state = optimizer.update(grads, state, params=params)
                params = torchopt.apply_updates(params, updates)
        return loss.item()

    return run


def _update(case: Case) -> Run:
    params = {str(place): torch.tensor(leaf) for place, leaf in enumerate(case.parameters())}
    grads = {str(place): torch.tensor(leaf) for place, leaf in enumerate(case.gradients())}
    optimizer = _optimizer(case)
    state = optimizer.init(params)

    def run(calls: int) -> float:
        nonlocal params, state
        for _ in range(calls):
            updates, state = optimizer.update(grads, state, params=params, inplace=False)
            params = torchopt.apply_updates(params, updates)
        return params["0"][0, 0].item()

    return run
