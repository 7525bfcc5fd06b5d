"""A NaN or an infinity that only one of many processes sees: all do the same, and all say it."""

import math
from typing import Final

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import (
    AnyTransform,
    Dropout,
    ReLU,
    adam,
    apply,
    chain,
    check_finite,
    clip_by_global_norm,
    compose,
    cross_entropy,
    dynamic_loss_scale,
    ensemble,
    fit,
    fold_in,
    initialize,
    jit,
    key,
    linear,
    minibatches,
    mse,
    rekey,
    sgd,
    skip_nonfinite,
    skipped_steps,
    split,
    train_state,
    train_step,
    tree,
)
from fundl.distributed import Group, shard, stages, unshard
from fundl.layer import Layer, Model
from fundl.random import normal, randint
from tests.processes import together

ALONE: Final = Group("alone", 1, 0)
DOUBLE: Final = torch.float64
OPTIMIZERS: Final[dict[str, AnyTransform]] = {
    "skipped": skip_nonfinite(chain(clip_by_global_norm(0.5), adam(1e-2))),
    "scaled": dynamic_loss_scale(chain(clip_by_global_norm(0.5), adam(1e-2)), initial=2.0**10),
}
X: Final = normal(key(1), (8, 6), dtype=DOUBLE)
LABELS: Final = randint(key(2), (8,), low=0, high=5)


def network(group: Group, how: str) -> Model:
    layers = linear(6, 8), ReLU(), Dropout(0.3)
    return compose(shard(group, *layers), linear(8, 5)) if how == "sharded" else compose(*layers, linear(8, 5))


def stepped(group: Group, how: str, optimizer: str, compiled: bool) -> tuple[list[Tensor], list[float]]:
    """What comes of steps of which one has a NaN in the last row, which one process sees, and one an infinity in the first."""
    transform = OPTIMIZERS[optimizer]
    step = train_step(cross_entropy, transform, over=group)
    run = jit(step, donate="state") if compiled else step
    state = tree.map(torch.clone, train_state(key(6), initialize(key(5), network(group, how), dtype=DOUBLE), transform))
    losses: list[float] = []
    for bad in (0.0, torch.nan, 0.0, torch.inf, 0.0):
        x = X.clone()
        x[-1 if math.isnan(bad) else 0, 2] += bad
        state, report = run(state, (x[group.rank :: group.size].clone(), LABELS[group.rank :: group.size].clone()))
        losses.append(report.loss.item())
    scale = transform.loss_scale(state.optimizer.inner)
    left_out = skipped_steps(state) if optimizer == "skipped" else scale
    assert left_out is not None
    return tree.leaves((unshard(state.model), state.step, left_out)), losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("how", "compiled"),
    [
        ("whole", False),
        ("sharded", False),
        pytest.param("whole", True, marks=pytest.mark.slow),
        pytest.param("sharded", True, marks=pytest.mark.slow),
    ],
)
def test_a_step_is_left_out_by_all(how: str, compiled: bool, optimizer: str) -> None:
    expected, losses = stepped(ALONE, how, optimizer, compiled=False)
    assert float(expected[-1]) == (2.0 if optimizer == "skipped" else 2.0**8)
    assert all(leaf.isfinite().all() for leaf in expected)
    first, second = together(2, stepped, how, optimizer, compiled)
    assert tree.equal(first[0], second[0])
    for leaves, its_losses in (first, second):
        torch.testing.assert_close(leaves, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(its_losses, losses, rtol=1e-12, atol=0, equal_nan=True)


# --- A run --------------------------------------------------------------------------------------------------------------


def diverging(group: Group, compiled: bool) -> tuple[str, str]:
    """What a run says whose data have a NaN that the second process sees alone, and what is looked for then."""
    x = X.clone()
    x[3, 1] = torch.nan
    optimizer = sgd(0.1)
    step = train_step(cross_entropy, optimizer, over=group)
    state = train_state(key(6), initialize(key(5), network(group, "whole"), dtype=DOUBLE), optimizer)

    with pytest.raises(FloatingPointError) as caught:
        fit(
            step,
            state,
            lambda _: minibatches(None, (x, LABELS), 2, part=group),
            epochs=1,
            over=group,
            compile=compiled,
            progress=False,
        )
    said = [str(caught.value)]
    for batch in minibatches(None, (x, LABELS), 2, part=group):
        try:
            check_finite(state, *batch, cross_entropy, over=group)
        except FloatingPointError as error:
            said.append(str(error))
            break
        state, _ = step(state, batch)
    return said[0] + "".join(caught.value.__notes__), said[1]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_ends_in_all(compiled: bool) -> None:
    first, second = together(2, diverging, compiled)
    assert first == second
    assert first[0].startswith("the loss is nan in epoch 1, at step 2: the training diverges.")
    assert "check_finite(state, x, target, loss, over=group)" in first[0]
    assert first[1] == "process 1: x is nan (1 of 6 numbers) before anything is computed"


# --- check_finite ---------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Inverse(Layer[None]):
    """y = 1 / x, an infinity where a Dropout before it has dropped."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return 1 / x, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple["Inverse", Tensor]:
        return self, grad


INVERSE: Final = compose(Dropout(0.1), Inverse(), linear(1, 1))
SEEDS: Final = range(16)
ONES: Final = torch.ones(6, 1)


def looked(group: Group, of_state: bool) -> list[str]:
    """What is said of passes that drop, or not, and of a batch of which the second process has no rows."""
    said: list[str] = []
    for seed in SEEDS:
        state = train_state(key(seed), initialize(key(0), INVERSE), sgd(0.1))
        for x in (ONES[group.rank :: 2], ONES[: 1 - group.rank] * torch.nan):
            try:
                if of_state:
                    check_finite(state, x, torch.zeros_like(x), mse, over=group)
                else:
                    check_finite(state.model, x, torch.zeros_like(x), mse, key=key(seed), over=group)
                said.append("")
            except FloatingPointError as error:
                said.append(str(error))
    return said


@pytest.mark.parametrize("of_state", [False, True])
def test_it_draws_as_the_step_does_and_all_raise(of_state: bool) -> None:
    first, second = together(2, looked, of_state)
    assert first == second
    found: set[int | None] = set()
    for seed in SEEDS:
        drawn = fold_in(key(seed), 0) if of_state else key(seed)
        (dropped, _) = (apply(rekey(INVERSE[0], drawn), ONES) == 0).nonzero(as_tuple=True)
        who = min((int(row) % 2 for row in dropped), default=None)
        expected = "" if who is None else f"process {who}: forward of model[1], Inverse(): its output is inf"
        assert first[2 * seed].startswith(expected)
        assert bool(first[2 * seed]) == bool(expected)
        assert first[2 * seed + 1] == "process 0: x is nan (1 of 1 numbers) before anything is computed"
        found.add(who)
    assert found == {None, 0, 1}


def of_another_kind(group: Group) -> str:
    """One process makes another mistake."""
    x, target = torch.ones(2, 2), torch.zeros(2, 2)
    model = initialize(key(0), (linear(2, 2), Dropout(0.5)))
    with pytest.raises((RuntimeError, ValueError)) as caught:
        check_finite(model, x[:, :1] if group.rank else x, target, mse, over=group)
    return str(caught.value)


def test_another_error_leaves_nobody_waiting() -> None:
    first, second = together(2, of_another_kind)
    assert first == "process 1 does not go on: its own error says why"
    assert "expects" in second


def test_what_cannot_be_looked_at_says_so() -> None:
    two = Group("two", 2, 0)
    x, target = torch.ones(2, 2), torch.zeros(2, 2)
    divided: list[Model] = [
        initialize(key(0), shard(two, linear(2, 2))),
        initialize(key(0), stages(two, (linear(2, 2), linear(2, 2)))),
    ]
    for model in divided:
        with pytest.raises(ValueError, match=r"check_finite\(unshard\(unstage\(model\)\), x, target, loss, over=group\)"):
            check_finite(model, x, target, mse)
    many = ensemble.initialize(split(key(0), 3), linear(2, 2))
    with pytest.raises(ValueError, match="an ensemble is trained by one process"):
        check_finite(many, x, target, mse, over=two)
