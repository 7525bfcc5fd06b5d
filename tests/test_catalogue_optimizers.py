"""The optimizers of the catalogue against others' of the same name: 50 steps in float64."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import pytest
import torch

from fundl import adadelta, adamax, add_decayed_weights, chain, nadam, radam, tree
from fundl.optim.chain import AnyTransform
from tests.test_optim import Make, distance, run, sample_grads, sample_params, torch_run

L2: Final = add_decayed_weights(0.1)  # torch's penalty, where it has no decoupled decay

COUNTERPARTS: Final[Mapping[str, tuple[AnyTransform, Make]]] = {
    "radam": (radam(0.1), lambda p: torch.optim.RAdam(p, lr=0.1)),
    "radam: options": (
        radam(0.1, beta1=0.5, beta2=0.9, epsilon=1e-3, weight_decay=0.3),
        lambda p: torch.optim.RAdam(
            p, lr=0.1, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.3, decoupled_weight_decay=True
        ),
    ),
    "radam: penalty": (chain(L2, radam(0.1)), lambda p: torch.optim.RAdam(p, lr=0.1, weight_decay=0.1)),
    "radam: never long enough": (radam(0.1, beta2=0.5), lambda p: torch.optim.RAdam(p, lr=0.1, betas=(0.9, 0.5))),
    "nadam": (nadam(0.1), lambda p: torch.optim.NAdam(p, lr=0.1)),
    "nadam: options": (
        nadam(0.1, beta1=0.5, beta2=0.9, epsilon=1e-3, momentum_decay=0.1, weight_decay=0.3),
        lambda p: torch.optim.NAdam(
            p, lr=0.1, betas=(0.5, 0.9), eps=1e-3, momentum_decay=0.1, weight_decay=0.3, decoupled_weight_decay=True
        ),
    ),
    "nadam: penalty": (chain(L2, nadam(0.1)), lambda p: torch.optim.NAdam(p, lr=0.1, weight_decay=0.1)),
    "adamax": (adamax(0.1), lambda p: torch.optim.Adamax(p, lr=0.1)),
    "adamax: options": (
        chain(L2, adamax(0.1, beta1=0.5, beta2=0.9, epsilon=1e-3)),
        lambda p: torch.optim.Adamax(p, lr=0.1, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1),
    ),
    "adadelta": (adadelta(), torch.optim.Adadelta),
    "adadelta: options": (
        chain(L2, adadelta(0.5, decay=0.7, epsilon=1e-3)),
        lambda p: torch.optim.Adadelta(p, lr=0.5, rho=0.7, eps=1e-3, weight_decay=0.1),
    ),
}  # fmt: skip


@contextmanager
def in_float64() -> Iterator[None]:
    """Where torch.optim keeps its own numbers, such as NAdam's product of momenta, in float64, too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(("optimizer", "make"), COUNTERPARTS.values(), ids=COUNTERPARTS.keys())
def test_fifty_steps_equal_torchs(optimizer: AnyTransform, make: Make) -> None:
    grads = sample_grads(50)
    with in_float64():
        expected = torch_run(make, sample_params(), grads)
    params, _ = run(optimizer, sample_params(), grads)
    assert distance(tree.trainable_leaves(params), expected) < 1e-10
