"""The optimizers of the catalogue against others' of the same name: 50 steps in float64."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import numpy
import pytest
import torch
from torch import Tensor

from fundl import (
    adadelta,
    adafactor,
    adamax,
    add_decayed_weights,
    averaged,
    chain,
    constant_schedule,
    join_schedules,
    lamb,
    lars,
    linear_schedule,
    muon,
    nadam,
    radam,
    schedule_free_adamw,
    tree,
)
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
    "adafactor": (adafactor(0.01), lambda p: torch.optim.Adafactor(p, lr=0.01)),
    "adafactor: options": (
        adafactor(0.1, decay_power=0.5, threshold=1.5, least_size=0.9, weight_decay=0.3),
        lambda p: torch.optim.Adafactor(p, lr=0.1, beta2_decay=-0.5, d=1.5, eps=(None, 0.9), weight_decay=0.3),
    ),
    "adafactor: paper's rate": (
        adafactor(lambda count: (count.double() + 1).rsqrt().clamp(max=0.5)),
        lambda p: torch.optim.Adafactor(p, lr=0.5),
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


@pytest.mark.parametrize(
    ("ours", "make"),
    [
        (muon(0.1), lambda p: torch.optim.Muon(p, lr=0.1)),
        (
            muon(0.1, momentum=0.8, nesterov=False, iterations=3, match_adam=True, weight_decay=0.3),
            lambda p: torch.optim.Muon(
                p, lr=0.1, weight_decay=0.3, momentum=0.8, nesterov=False, ns_steps=3, adjust_lr_fn="match_rms_adamw"
            ),
        ),
    ],
    ids=["defaults", "options"],
)
def test_fifty_steps_of_muon_equal_torchs(monkeypatch: pytest.MonkeyPatch, ours: AnyTransform, make: Make) -> None:
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)  # torch makes matrices orthogonal in 16 bits
    generator = torch.Generator().manual_seed(0)

    def draw() -> list[Tensor]:
        return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((3, 5), (7, 2), (4, 4), (1, 6))]

    params, grads = draw(), [draw() for _ in range(50)]
    leaves = [leaf.clone().requires_grad_() for leaf in params]
    theirs = make(leaves)
    for grad in grads:
        for leaf, part in zip(leaves, grad, strict=True):
            leaf.grad = part.clone()
        theirs.step()
    assert distance(run(ours, params, grads)[0], [leaf.detach() for leaf in leaves]) < 1e-10


def test_fifty_steps_without_a_schedule_equal_their_formula() -> None:
    """By the published loop, which keeps the average itself."""
    rates, beta1, beta2, epsilon, decay = [min(1.0, (t + 1) / 10) * 0.1 for t in range(50)], 0.8, 0.95, 1e-6, 0.3
    warmup = join_schedules([linear_schedule(0.01, 0.1, 9), constant_schedule(0.1)], [9])
    optimizer = schedule_free_adamw(warmup, interpolation=beta1, beta2=beta2, epsilon=epsilon, weight_decay=decay)
    params, grads = sample_params(), sample_grads(50)
    actual, state = run(optimizer, params, grads)
    expected, averages = [], []
    for leaf, *gradients in zip(*(tree.trainable_leaves(each) for each in (params, *grads)), strict=True):
        x = y = z = leaf
        v, weights = torch.zeros_like(leaf), 0.0
        for t, (g, rate) in enumerate(zip(gradients, rates, strict=True)):
            v = beta2 * v + (1 - beta2) * g**2
            z = z - rate * (g / ((v / (1 - beta2 ** (t + 1))).sqrt() + epsilon) + decay * y)
            weights += rate**2
            x = (1 - rate**2 / weights) * x + rate**2 / weights * z
            y = beta1 * x + (1 - beta1) * z
        expected.append(y)
        averages.append(x)
    assert distance(tree.trainable_leaves(actual), expected) < 1e-10
    assert distance(tree.trainable_leaves(averaged(state, actual)), averages) < 1e-10


OF_OPTAX: Final[Mapping[str, AnyTransform]] = {
    "lamb": lamb(0.1, weight_decay=0.1),
    "lars": lars(0.1, momentum=0.8, coefficient=0.1, weight_decay=0.1),
    "schedule_free": schedule_free_adamw(0.1, interpolation=0.8, beta2=0.95, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OF_OPTAX)
def test_fifty_steps_equal_optaxs(name: str) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    with jax.enable_x64(True):
        theirs = {
            "lamb": lambda: optax.lamb(0.1, eps=1e-6, weight_decay=0.1),
            "lars": lambda: optax.lars(0.1, weight_decay=0.1, momentum=0.8, trust_coefficient=0.1),
            "schedule_free": lambda: optax.contrib.schedule_free_adamw(0.1, b1=0.8, b2=0.95, weight_decay=0.1),
        }[name]()
        params = [jax.numpy.asarray(leaf.numpy()) for leaf in tree.trainable_leaves(sample_params())]
        memory = theirs.init(params)
        for grads in sample_grads(50):
            given = [jax.numpy.asarray(leaf.numpy()) for leaf in tree.trainable_leaves(grads)]
            updates, memory = theirs.update(given, memory, params)
            params = optax.apply_updates(params, updates)
        expected = [torch.from_numpy(numpy.array(leaf)) for leaf in params]
    actual, _ = run(OF_OPTAX[name], sample_params(), sample_grads(50))
    assert distance(tree.trainable_leaves(actual), expected) < 1e-10
