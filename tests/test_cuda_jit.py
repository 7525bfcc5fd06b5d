"""Compiled functions on a GPU: against the CPU, and with what only a GPU has. `pytest -m cuda` runs them.

With FUNDL_TEST_DEVICE=cpu those that can run against the CPU itself, which tests the tests.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor

from fundl import (
    Dropout,
    Model,
    ReLU,
    adam,
    adamw,
    chain,
    clip_by_global_norm,
    compose,
    cross_entropy,
    embedding,
    fold_in,
    initialize,
    jit,
    key,
    layer_norm,
    linear,
    load,
    momentum,
    random,
    save,
    scan,
    sgd,
    train_state,
    train_step,
    tree,
)
from fundl._compiling import replays

DEVICE: Final = os.environ.get("FUNDL_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU"),
]


def network(*more: Model) -> Model:
    return initialize(key(0), compose(linear(16, 64), ReLU(), *more, layer_norm(64), linear(64, 10)))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(random.normal(fold_in(key(5), n), (32, 16)), torch.arange(32) % 10) for n in range(count)]


def assert_alike(found: object, wanted: object) -> None:
    mine, other = ([leaf.cpu() for leaf in tree.leaves(one)] for one in (found, wanted))
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", [sgd(0.1), momentum(0.1), adam(1e-3), chain(clip_by_global_norm(1.0), adamw(1e-3))])
@pytest.mark.parametrize("donate", [(), ("state",)])
def test_compiled_steps_give_the_numbers_of_the_cpu(optimizer: object, donate: Sequence[str]) -> None:
    step = train_step(cross_entropy, optimizer)  # type: ignore[arg-type, var-annotated]  # of any state
    compiled = jit(step, donate=donate)
    state = train_state(key(1), network(Dropout(0.1)), optimizer)  # type: ignore[arg-type, var-annotated]  # likewise
    own = tree.map(lambda leaf: leaf.to(DEVICE), state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it must be compiled, and captured
        for x, target in batches(8):
            state, report = step(state, (x, target))
            own, mine = compiled(own, (x.to(DEVICE), target.to(DEVICE)))
            torch.testing.assert_close(mine.loss.cpu(), report.loss, rtol=1e-4, atol=1e-5)
    assert all(trace.compiled for trace in compiled.traces)
    assert_alike(own, state)


@pytest.mark.skipif(DEVICE != "cuda", reason="only a GPU has graphs")
def test_a_donated_step_is_replayed() -> None:
    step, optimizer = jit(train_step(cross_entropy, adam(1e-3)), donate="state"), adam(1e-3)
    state = train_state(key(1), tree.map(lambda leaf: leaf.to(DEVICE), network()), optimizer)
    state = tree.map(lambda leaf: leaf.to(DEVICE), state)
    for x, target in batches(8):
        state, _ = step(state, (x.to(DEVICE), target.to(DEVICE)))
    runs = [program.run for program in step._programs.all()]
    assert [type(run) for run in runs] == [replays.Replayed]
    (run,) = runs
    assert isinstance(run, replays.Replayed)
    assert run.reason == ""
    assert run.replays >= 4


def test_a_scan_gives_the_numbers_of_steps() -> None:
    optimizer = adam(1e-3)
    step = train_step(cross_entropy, optimizer)
    state = train_state(key(1), network(Dropout(0.1)), optimizer)
    xs, targets = (torch.stack(column) for column in zip(*batches(6), strict=True))
    epoch = scan(step)
    own = tree.map(lambda leaf: leaf.to(DEVICE), state)
    data = xs.to(DEVICE), targets.to(DEVICE)
    own, _ = epoch(own, data)
    own, reports = epoch(own, data)
    losses: list[Tensor] = []
    for _ in range(2):
        for batch in zip(xs, targets, strict=True):
            state, report = step(state, batch)
            losses.append(report.loss)
    torch.testing.assert_close(reports.loss.cpu(), torch.stack(losses[6:]), rtol=1e-4, atol=1e-5)
    assert_alike(own, state)


def test_random_bits_are_those_of_the_cpu() -> None:
    def draw(of: Tensor) -> tuple[Tensor, Tensor]:
        return random.bits(of, (1000, 7)), random.uniform(of, (33,))

    for found in (draw(key(3, device=DEVICE)), jit(draw)(key(3, device=DEVICE))):
        assert all(torch.equal(one.cpu(), other) for one, other in zip(found, draw(key(3)), strict=True))


@pytest.mark.skipif(DEVICE != "cuda", reason="only a GPU has TF32")
def test_precision_is_a_kind_of_call() -> None:
    def product(a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    compiled, before = jit(product), torch.get_float32_matmul_precision()
    a = random.normal(key(0), (64, 64)).to(DEVICE)
    try:
        for precision in ("highest", "high", "highest"):
            torch.set_float32_matmul_precision(precision)
            compiled(a, a)
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(compiled.traces) == 2


def test_files_go_from_device_to_device(tmp_path: Path) -> None:
    model = network()
    on_gpu = tree.map(lambda leaf: leaf.to(DEVICE), model)
    save(tmp_path / "model.safetensors", on_gpu)
    assert tree.equal(load(tmp_path / "model.safetensors", model), model)


def test_compiled_code_is_found_again_on_disk() -> None:
    def double(x: Tensor) -> Tensor:
        return x * 2 + 1

    x = torch.ones(5, device=DEVICE)
    first, second = jit(double), jit(double)
    first(x)
    assert second(x).tolist() == [3] * 5
    assert second.traces[0].cached


def test_embeddings_compile_though_kernels_are_tuned_on_made_up_numbers() -> None:
    model = initialize(key(0), compose(embedding(3, 8), linear(8, 3)))
    optimizer = sgd(0.1)
    state = tree.map(lambda leaf: leaf.to(DEVICE), train_state(key(1), model, optimizer))
    tokens = torch.arange(12, device=DEVICE) % 3
    step = jit(train_step(cross_entropy, optimizer), donate="state")
    losses: list[float] = []
    for _ in range(5):
        state, report = step(state, (tokens, tokens))
        losses.append(float(report.loss))
    assert losses[-1] < losses[0]
