"""Compiled steps of many processes: one compiles, all run the same exchanges, and the numbers are those of one process."""

import math
import threading
from typing import Final
from unittest import mock

import pytest
import torch
from torch import Tensor

from fundl import (
    Compiled,
    Dropout,
    ReLU,
    adam,
    chain,
    clip_by_global_norm,
    compose,
    cross_entropy,
    fit,
    initialize,
    jit,
    key,
    linear,
    minibatches,
    random,
    train_state,
    train_step,
    tree,
)
from fundl._common import exchanges
from fundl._compiling import graphs, overlap, processes
from fundl._compiling.lock import COMPILER_LOCK
from fundl.distributed import Group, all_gather, all_sum, group_of, scatter_sum
from fundl.groups import _registered
from tests.processes import together

ALONE: Final = Group("alone", 1, 0)
OPTIMIZER: Final = chain(clip_by_global_norm(0.5), adam(1e-2))
DATA: Final = (
    random.normal(key(1), (44, 6), dtype=torch.float64),
    torch.where(random.bernoulli(key(3), (44,), probability=0.5), -100, random.randint(key(2), (44,), low=0, high=5)),
)


MODEL: Final = compose(linear(6, 8, dtype=torch.float64), ReLU(), Dropout(0.5), linear(8, 5, dtype=torch.float64))


def stepped(group: Group, steps: int, *, compiled: bool) -> tuple[list[Tensor], list[bool]]:
    """A state after some steps, and whether what was compiled was on disk."""
    step = train_step(cross_entropy, OPTIMIZER, over=group)
    run = jit(step, donate="state") if compiled else step
    state = tree.map(torch.clone, train_state(key(6), initialize(key(5), MODEL), OPTIMIZER))
    batches = [*minibatches(key(7), DATA, 8, drop_last=True, part=group)]
    for number in range(steps):
        state, report = run(state, batches[number % len(batches)])
        assert math.isfinite(report.loss.item())
    return tree.leaves(state), [trace.cached for trace in run.traces] if isinstance(run, Compiled) else []


def fitted(group: Group, compiled: bool) -> tuple[list[Tensor], list[float]]:
    """Steps with batches of 8, which all processes run compiled, and a last one of 4."""
    state, history = fit(
        train_step(cross_entropy, OPTIMIZER, over=group),
        train_state(key(6), initialize(key(5), MODEL), OPTIMIZER),
        lambda key: minibatches(key, DATA, 8, part=group),
        epochs=2,
        compile=compiled,
        over=group,
        progress=False,
    )
    return tree.leaves(state), [epoch.train.loss for epoch in history]


def test_a_step() -> None:
    expected, _ = stepped(ALONE, 7, compiled=False)
    results = together(2, stepped_compiled, 7)
    for leaves, _ in results:
        torch.testing.assert_close(leaves, expected, rtol=0, atol=1e-12)
        assert tree.equal(leaves, results[0][0])
    assert sum(all(cached) for _, cached in results) >= 1  # who had not to compile


def stepped_compiled(group: Group, steps: int) -> tuple[list[Tensor], list[bool]]:
    return stepped(group, steps, compiled=True)


@pytest.mark.slow  # it compiles a loop
def test_a_run() -> None:
    expected, losses = fitted(ALONE, compiled=False)
    for leaves, own_losses in together(2, fitted, True):
        torch.testing.assert_close(leaves, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(own_losses, losses, rtol=1e-12, atol=0)


def as_given(group: Group) -> list[Tensor]:
    """Of compiled exchanges of what the function is given, not of what it computes, what came of the last of many."""

    @jit
    def every(x: Tensor) -> list[Tensor]:
        begun = exchanges.all_gather(x, group.size, group.name), exchanges.broadcast(x, 1, group.name)
        return [exchanges.wait(one) for one in begun]

    x, found = torch.full((2, 3), float(group.rank)), list[Tensor]()
    for _ in range(50):  # what came before is freed by gloo's threads
        found = every(x)
    return found


def test_exchanges_of_what_is_given() -> None:
    zeros, ones = torch.zeros(2, 3), torch.ones(2, 3)
    for found in together(2, as_given):
        assert tree.equal(found, [torch.cat((zeros, ones)), ones])


def unlike(group: Group) -> str:
    @jit
    def of_rank(x: Tensor) -> Tensor:
        x = all_sum(x, group)
        return all_sum(x[:1], group) if group.rank else x

    with pytest.raises(RuntimeError) as caught:
        of_rank(torch.ones(3))
    return str(caught.value)


def test_processes_that_would_wait_for_ever() -> None:
    first, second = together(2, unlike)
    assert (
        "exchange 1 of the function is nothing in process 0, and all_reduce of float32[1, 1] (sum, fundl) in process 1" in first
    )
    assert "exchange 1 of the function is all_reduce of float32[1, 1] (sum, fundl) in process 1, and nothing" in second


def in_other_orders(group: Group) -> list[str]:
    """Two threads compile, each for a group of its own: in one process one begins, in the other one the other."""
    whole = group.process_group
    assert whole is not None
    others = group_of(_registered("other") or torch.distributed.new_group([0, 1]), "other")
    begun, made = [threading.Event(), threading.Event()], list[str]()

    def of_thread(number: int, own: Group) -> None:
        graph = mock.Mock(groups=[own.name], collectives=[f"all_reduce in {own.name}"])
        if number != group.rank:
            begun[1 - number].wait()
        with COMPILER_LOCK:
            begun[number].set()
            made.append(processes.compiled_once(graph, f"key of {own.name}", lambda: own.name))

    threads = [threading.Thread(target=of_thread, args=one, daemon=True) for one in enumerate((group, others))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return sorted(made)


def test_threads_of_other_groups_compile_in_other_orders() -> None:
    assert together(2, in_other_orders) == [["fundl", "other"]] * 2


def no_batches(group: Group) -> str:
    with pytest.raises(ValueError, match="no more batches") as caught:
        fit(
            train_step(cross_entropy, OPTIMIZER, over=group),
            train_state(key(6), initialize(key(5), MODEL), OPTIMIZER),
            lambda _: (tree.map(lambda leaf: leaf[:4], DATA) for _ in range(2 + group.rank)),
            epochs=1,
            compile=True,
            over=group,
            progress=False,
        )
    return str(caught.value)


@pytest.mark.slow  # it compiles once more
def test_a_process_that_has_fewer_batches() -> None:
    for told in together(2, no_batches):
        assert told.startswith("process 0 has no more batches, while others have")


def test_exchanges_begin_early_and_are_awaited_late() -> None:
    def step(*tensors: Tensor) -> list[Tensor]:
        x, y = tensors
        products = [x @ y, y @ x, x @ x]
        begun = [exchanges.all_reduce(product, "sum", "g") for product in products]
        return [exchanges.wait(one) * 2 for one in begun]

    graph, _ = graphs.trace(step, [torch.ones(4, 4), torch.ones(4, 4)])
    overlap.spread(graph.module)
    names = [node.target._opname for node in graph.module.graph.nodes if node.op == "call_function"]
    assert names == ["mm", "all_reduce", "mm", "all_reduce", "mm", "all_reduce", *["wait_tensor", "mul"] * 3]
    assert graph.groups == ["g"]
    assert graph.collectives == ["all_reduce of float32[4, 4] (sum, g)"] * 3


@pytest.mark.slow  # many steps
def test_no_deadlock_in_a_thousand_steps() -> None:
    for leaves, _ in together(2, stepped_compiled, 1000):
        assert all(leaf.isfinite().all() for leaf in leaves)


def gathering(group: Group) -> tuple[Tensor, int]:
    """Steps in which rows are gathered and sums scattered, as sharded parameters are."""

    @jit
    def step(rows: Tensor, x: Tensor) -> Tensor:
        whole = all_gather(rows, group)
        return rows - scatter_sum(whole * 0.1 + x, group) * 0.01

    rows = torch.arange(40_000.0).reshape(200, 200) / 4e4
    for number in range(500):
        rows = step(rows + group.rank * (number == 0), torch.full((200 * group.size, 200), 0.5))
    return rows, len(step.traces)


@pytest.mark.slow  # what torch has no stable interface for takes long to compile
def test_no_deadlock_where_rows_travel() -> None:
    for rank, (rows, traces) in enumerate(together(2, gathering)):
        expected = torch.arange(40_000.0).reshape(200, 200) / 4e4 + rank
        for _ in range(500):
            expected = expected - (expected * 0.1 + 0.5) * 2 * 0.01
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-4)
        assert traces == 1
