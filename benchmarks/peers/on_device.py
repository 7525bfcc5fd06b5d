"""fundl's and torch.nn's sides of `benchmarks.on_device`."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from typing_extensions import override

from benchmarks.device_cases import DECAY, RATE, Case
from fundl import AdamChainState, Model, TrainState, adamw, cross_entropy, jit, key, train_state, train_step, tree

State: TypeAlias = TrainState[Model, AdamChainState]
Step: TypeAlias = Callable[[], object]
"""One step, to its loss: on the device, and not waited for."""


def with_fundl(case: Case, device: str, *, donate: bool, compiled: bool) -> Step:
    """A step of fundl's, which may write over its state."""
    optimizer = adamw(RATE, weight_decay=DECAY)
    plain = train_step(_each_position, optimizer, donate=donate and not compiled)
    state = train_state(key(4), tree.map(lambda leaf: leaf.to(device), case.model()), optimizer)
    x, target = (each.to(device) for each in case.batch())

    def next_and_loss(state: State, x: Tensor, target: Tensor) -> tuple[State, Tensor]:
        state, report = plain(state, (x, target))
        return state, report.loss  # as the other sides: who compiles need not write what the network predicts

    step = jit(next_and_loss, donate="state") if compiled else next_and_loss

    def run() -> Tensor:
        nonlocal state
        state, loss = step(state, x, target)
        return loss

    return run


def _each_position(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    value, grad = cross_entropy(prediction.flatten(0, -2), target.flatten())
    return value, grad.reshape(prediction.shape)


class _Mixed(nn.Module):
    """A module that runs on copies of its parameters in another dtype; gradients come to the parameters themselves."""

    def __init__(self, module: nn.Module, compute: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self.compute = compute

    @override
    def forward(self, x: Tensor) -> Tensor:
        copies = {name: parameter.to(self.compute) for name, parameter in self.module.named_parameters()}
        scores: Tensor = functional_call(self.module, copies, (x.to(self.compute) if x.is_floating_point() else x,))
        return scores


def with_torch(case: Case, device: str, *, mode: str | None, autocast: bool = False, whole: bool = False) -> Step:
    """A step of torch.nn and the fused AdamW.

    Args:
        case: what is trained.
        device: where.
        mode: of torch.compile, which is for forward and backward; None for no compiler.
        autocast: whether torch chooses what runs in the dtype of the computation, rather than that all does.
        whole: whether AdamW is compiled as well; the fused one stays as it is.
    """
    module = case.module().to(device)
    apply = _Mixed(module, case.compute) if case.is_mixed and not autocast else module
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=RATE, weight_decay=DECAY, fused=not whole, capturable=whole and device != "cpu"
    )
    x, target = (each.to(device) for each in case.batch())

    def loss_of(x: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(device, case.compute, enabled=autocast and case.is_mixed):
            scores: Tensor = apply(x)
        return functional.cross_entropy(scores.flatten(0, -2).float(), target.flatten())

    loss_of_batch: Callable[[Tensor, Tensor], Tensor] = loss_of if mode is None else torch.compile(loss_of, mode=mode)

    def update() -> None:
        optimizer.step()

    update = torch.compile(update, mode=mode) if whole else update

    def run() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        if mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # torch's own is untyped
        loss = loss_of_batch(x, target)
        torch.autograd.backward(loss)
        update()
        return loss.detach().clone()  # a graph's own is written over by the next step

    return run
