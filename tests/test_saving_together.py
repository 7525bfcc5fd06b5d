"""Trees of which many processes have parts, in one file: written by all of them, and read by any number."""

import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor

from fundl import (
    AnyTransform,
    Checkpoints,
    Dropout,
    Interrupted,
    ReLU,
    Saver,
    TrainState,
    accumulate,
    adam,
    adamw,
    batch_norm,
    chain,
    checkpoint,
    clip_by_global_norm,
    compose,
    cross_entropy,
    ema,
    embedding,
    fit,
    frozen,
    initialize,
    key,
    linear,
    load,
    load_model,
    minibatches,
    momentum,
    partition,
    repeat,
    residual,
    save,
    train_state,
    train_step,
    transformer_block,
    tree,
)
from fundl.distributed import (
    Group,
    grid,
    shard,
    shard_moments,
    split_cross_entropy,
    split_embedding,
    split_output,
    tensor_parallel,
    unshard,
)
from fundl.layer import Model
from fundl.random import Key
from fundl.saving import _writing
from fundl.training.checkpoints import Writer
from tests.processes import together

ALONE: Final = Group("alone", 1, 0)


def plain() -> Model:
    block = residual(linear(7, 7), ReLU())
    first = linear(5, 7), batch_norm(7)
    return compose(first, repeat(3, checkpoint(block)), frozen(linear(7, 7)), Dropout(0.2), linear(7, 3))


def sharded(group: Group) -> Model:
    block = residual(linear(7, 7), ReLU())
    first = shard(group, linear(5, 7), batch_norm(7))
    last = shard(group, linear(7, 3))
    held = frozen(shard(group, linear(7, 7)))
    return compose(first, repeat(3, shard(group, checkpoint(block))), held, Dropout(0.2), last)


def optimizer() -> AnyTransform:
    parts: dict[str, AnyTransform] = {"first": momentum(0.1), "rest": chain(adamw(0.01), ema(0.9))}
    return accumulate(chain(clip_by_global_norm(1.0), partition(parts, where={"first": "[0]"})), 2)


def trained(group: Group, model: Model, some: AnyTransform, steps: int = 3) -> TrainState[Model, object]:
    data = torch.arange(60.0).view(12, 5).sin(), torch.arange(12) % 3
    state = train_state(key(1), initialize(key(0), model), some)
    step = train_step(cross_entropy, some, over=group)
    batches = minibatches(key(2), data, 4, part=group)
    for batch in [*batches][:steps]:
        state, _ = step(state, batch)
    return state


def saved(group: Group, path: str) -> tuple[list[str], list[Tensor]]:
    state = trained(group, sharded(group), optimizer())
    save(path, state, metadata={"rank": str(group.rank)})
    again = load(path, state)
    assert tree.equal(again, state)
    return tree.paths(tree.as_whole(state)), tree.leaves(unshard(state.model))


def taken(group: Group, path: str) -> list[Tensor]:
    model = initialize(key(5), sharded(group))
    state = load(path, train_state(key(1), model, optimizer()))
    return tree.leaves(unshard(state.model))


@pytest.mark.parametrize("size", [2, 4])
def test_a_state_in_one_file(tmp_path: Path, size: int) -> None:
    path = str(tmp_path / "state.safetensors")
    (names, model), *_ = together(size, saved, path)
    like = train_state(key(1), initialize(key(0), plain()), optimizer())
    assert names == tree.paths(like)  # nothing tells of the processes
    state = load(path, like)  # by one process, which knows of no others
    assert tree.equal(tree.leaves(state.model), model)
    assert tree.equal(tree.leaves(load_model(path, part=".model")), model)
    for other in (1, 2, 4):
        for found in together(other, taken, path):
            assert tree.equal(found, model)
    assert tree.equal(taken(ALONE, path), model)
    assert os.listdir(tmp_path) == ["state.safetensors"]


def test_the_numbers_of_the_optimizer_are_those_of_one_process(tmp_path: Path) -> None:
    path = str(tmp_path / "state.safetensors")
    together(2, saved, path)
    alone = trained(ALONE, plain(), optimizer())
    for name, found, expected in zip(tree.paths(alone), tree.leaves(load(path, alone)), tree.leaves(alone), strict=False):
        torch.testing.assert_close(found, expected, msg=name, rtol=1e-4, atol=1e-5)
    save(tmp_path / "alone.safetensors", alone)
    for model in together(2, taken, str(tmp_path / "alone.safetensors")):
        assert tree.equal(model, tree.leaves(alone.model))


def small(group: Group, *, is_sharded: bool) -> Model:
    block = checkpoint(residual(linear(7, 7), ReLU()))
    return compose(linear(5, 7), repeat(3, shard(group, block) if is_sharded else block), linear(7, 3))


def moments(group: Group, path: str, is_sharded: bool) -> None:
    some = shard_moments(group, adam(0.1))
    state = trained(group, small(group, is_sharded=is_sharded), some)
    save(path, state)
    assert tree.equal(load(path, state), state)


@pytest.mark.parametrize("is_sharded", [False, True])
def test_the_memory_of_an_optimizer_is_divided(tmp_path: Path, is_sharded: bool) -> None:
    """Alone, and beside stacked layers that have rows of their own already."""
    path = str(tmp_path / "state.safetensors")
    together(2, moments, path, is_sharded)
    like = trained(ALONE, small(ALONE, is_sharded=False), adam(0.1))
    for loaded, expected in zip(tree.leaves(load(path, like)), tree.leaves(like), strict=True):
        torch.testing.assert_close(loaded, expected, rtol=1e-4, atol=1e-5)


def on_a_grid(group: Group, path: str) -> tuple[list[Tensor], list[Tensor]]:
    machines, ranks = grid(machines=2, ranks=2)
    model = compose(shard(ranks, linear(5, 7), copies=machines), linear(7, 3))
    state = trained(group, model, adam(0.1))
    save(path, state)
    assert tree.equal(load(path, state), state)
    return tree.leaves(unshard(state.model)), continued(group, model, f"{path}.runs")


def continued(group: Group, model: Model, folder: str) -> list[Tensor]:
    data, some = (torch.ones(8, 5), torch.zeros(8, dtype=torch.int64)), adam(0.1)
    leaves: list[Tensor] = []
    for count in (1, 2):
        state = train_state(key(1), initialize(key(0), model), some)
        state, history = fit(
            train_step(cross_entropy, some, over=group),
            state,
            lambda some_key: minibatches(some_key, data, 4, part=group),
            epochs=count,
            over=group,
            checkpoints=Checkpoints(folder),
            progress=False,
        )
        leaves = tree.leaves(unshard(state.model))
        assert len(history) == count
    return leaves


@pytest.mark.slow  # four processes
def test_rows_within_a_machine_and_copies_across(tmp_path: Path) -> None:
    path = str(tmp_path / "state.safetensors")
    found = together(4, on_a_grid, path)
    state = trained(ALONE, compose(linear(5, 7), linear(7, 3)), adam(0.1))
    newest = load(f"{path}.runs/epoch-000002.safetensors", state)
    files = load(path, state), newest
    assert tree.equal(found, [tuple(tree.leaves(one.model) for one in files)] * 4)


# --- What goes wrong ---------------------------------------------------------------------------------------------------


def message(group: Group, path: str, how: str) -> str:
    model = initialize(key(0), compose(shard(group, linear(5, 7)), linear(7, 3)))
    try:
        if how == "another tree" and group.rank:
            save(path, (model[0],))
        elif how == "another path" and group.rank:
            save(f"{path}2", model)
        elif how == "not the same" and group.rank:
            save(path, (model[0], tree.map(torch.neg, model[1])))
        elif how == "no tensor" and group.rank:
            save(path, model, metadata={"fundl.x": ""})
        elif how == "another folder" and group.rank:
            save(f"{path}.folder/{Path(path).name}", model)
        elif how == "load" and group.rank:
            load(path, (model[0], linear(7, 4)))
        elif how.startswith("load"):
            load(path, model)
        else:
            save(path, model)
    except (OSError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("another tree", "the processes do not save or load the same tree"),
        ("another path", "the processes do not save or load the same tree"),
        ("not the same", "[1].weight is whole in each of 2 processes, and not the same in all of them"),
        ("no tensor", "fundl."),
        ("another folder", "that all of them share"),
    ],
)
def test_one_that_fails_has_all_raise_and_nothing_written(tmp_path: Path, how: str, text: str) -> None:
    path = tmp_path / "model.safetensors"
    (tmp_path / "model.safetensors.folder").mkdir()
    path.write_text("what was there")
    found = together(2, message, str(path), how)
    assert "none" not in found
    assert any(text in one for one in found), found
    assert path.read_text() == "what was there"
    assert len(os.listdir(tmp_path)) == 2


def test_loading_fails_in_all(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    assert all("there is no file" in one for one in together(2, message, str(path), "load all"))
    assert together(2, message, str(path), "save") == ["none", "none"]
    assert all("does not fit like" in one for one in together(2, message, str(path), "load"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of the rows of the last process
    path.write_bytes(content)
    assert all("is damaged: the numbers of" in one for one in together(2, message, str(path), "load all"))


def dying(group: Group, path: str, how: str) -> None:
    model = initialize(key(0), compose(shard(group, linear(5, 7)), linear(7, 3)))
    if group.rank == 1:
        _writing.write_part = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[attr-defined,assignment]  # imported there
    if how == "beside":
        with Saver() as saver:
            saver.save(path, model)
    else:
        save(path, model)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is in /proc")
@pytest.mark.parametrize("how", ["by itself", "beside"])
def test_nobody_waits_for_one_that_has_died(tmp_path: Path, how: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("what was there")
    with pytest.raises(RuntimeError, match="process 1 has died, of 2 that were to do this together") as caught:
        together(2, dying, str(path), how)
    assert "in process 1: it died" in str(caught.value)
    assert path.read_text() == "what was there"


# --- Runs --------------------------------------------------------------------------------------------------------------


def run(group: Group, folder: str, count: int) -> tuple[list[Tensor], list[float]]:
    data = torch.arange(100.0).view(20, 5).sin(), torch.arange(20) % 3
    some = chain(clip_by_global_norm(1.0), adam(0.01))
    state, history = fit(
        train_step(cross_entropy, some, over=group),
        train_state(key(1), initialize(key(0), sharded(group)), some),
        lambda some_key: minibatches(some_key, data, 4, part=group),
        epochs=count,
        over=group,
        checkpoints=Checkpoints(folder, keep=1, seconds=1000, best=lambda epoch: epoch.train.loss),
        progress=False,
    )
    return tree.leaves(unshard(state.model)), [epoch.train.loss for epoch in history]


def killed_before_it_removes(group: Group, folder: str, count: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "_remove_surplus", lambda _writer, _newest: None)
        run(group, folder, count)


def test_what_a_killed_run_did_not_remove_is_removed(tmp_path: Path) -> None:
    together(2, killed_before_it_removes, str(tmp_path), 3)
    assert len(os.listdir(tmp_path)) == 1 + 3
    together(2, run, str(tmp_path), 3)
    assert sorted(os.listdir(tmp_path)) == ["best.safetensors", "epoch-000003.safetensors"]


def test_a_run_is_taken_up_by_another_number_of_processes(tmp_path: Path) -> None:
    whole = together(2, run, str(tmp_path / "whole"), 4)[0]
    first = together(2, run, str(tmp_path / "parts"), 2)[0]
    assert first[1] == whole[1][:2]
    again = together(2, run, str(tmp_path / "parts"), 4)
    assert tree.equal([one for one, _ in again], [whole[0]] * 2)
    assert again[0][1] == whole[1]
    assert sorted(os.listdir(tmp_path / "parts")) == ["best.safetensors", "epoch-000004.safetensors"]
    for other in together(4, run, str(tmp_path / "parts"), 5):
        assert other[1][:4] == whole[1]
    assert run(ALONE, str(tmp_path / "parts"), 6)[1][:4] == whole[1]


def beside(group: Group, path: str) -> bool:
    model = initialize(key(0), compose(shard(group, linear(5, 7)), linear(7, 3)))
    models = [model, tree.map(torch.abs, model), tree.map(torch.square, model)]
    with Saver() as saver:
        for number, one in enumerate(models):
            saver.save(f"{path}{number}", one)
            if number:  # while the next is written
                assert tree.equal(load(f"{path}{number - 1}", model), models[number - 1])
    return tree.equal(load(f"{path}2", model), models[2])


def test_saving_beside_the_program(tmp_path: Path) -> None:
    assert together(2, beside, str(tmp_path / "model")) == [True, True]


def language(tensor: Group) -> Model:
    return compose(
        split_embedding(tensor, embedding(11, 8)),
        repeat(2, tensor_parallel(tensor, transformer_block(8, 4, causal=True, dropout=0.2))),
        split_output(tensor, linear(8, 11)),
    )


def split_saved(group: Group, rows: int, path: str) -> list[Tensor]:
    _, tensor = grid(data=rows, tensor=group.size // rows)
    state = train_state(key(1), initialize(key(0), language(tensor)), adamw(1e-2))
    if not os.path.exists(path):
        save(path, state)
    again = load(path, tree.map(torch.zeros_like, state))
    assert tree.equal(again, state)
    return tree.leaves(unshard(again.model))


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (2, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_split_layers_in_one_file(tmp_path: Path, rows: int, columns: int) -> None:
    path = str(tmp_path / "split.safetensors")
    found = together(rows * columns, split_saved, rows, path)
    like = train_state(key(1), initialize(key(0), language(ALONE)), adamw(1e-2))
    state = load(path, tree.map(torch.zeros_like, like))
    assert tree.equal(state, like)  # one process has the same numbers, by the same names
    assert tree.equal(found, [tree.leaves(state.model)] * (rows * columns))
    assert tree.equal(together(2, split_saved, columns % 2 + 1, path), [tree.leaves(state.model)] * 2)  # the other way


def split_run(group: Group, rows: int, folder: str, count: int, ended: bool = False) -> list[Tensor]:
    data, tensor = grid(data=rows, tensor=group.size // rows)
    x = torch.arange(13 * 4).reshape(13, 4) % 11
    shapes = language(tensor)

    def batches(some_key: Key) -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(minibatches(some_key, (x, (3 * x + 1) % 11), 6, part=data, drop_last=True)):
            if ended and number == 0 and group.rank == group.size - 1:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    some = chain(clip_by_global_norm(0.5), adamw(1e-2))
    state, _ = fit(
        train_step(partial(split_cross_entropy, group=tensor, classes=11, axis=-1), some, over=data),
        train_state(key(1), initialize(key(0), shapes), some),
        batches,
        epochs=count,
        over=data,
        checkpoints=Checkpoints(folder, seconds=1e-9),
        progress=False,
    )
    return tree.leaves(unshard(state.model))


def split_stopped(group: Group, rows: int, folder: str) -> int:
    try:
        split_run(group, rows, folder, 1, True)
    except Interrupted:
        return len(os.listdir(folder))
    raise AssertionError("not ended")


@pytest.mark.parametrize(("size", "rows"), [(2, 1), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_a_run_of_split_layers_is_taken_up(tmp_path: Path, size: int, rows: int) -> None:
    whole = together(size, split_run, rows, str(tmp_path / "whole"), 2)
    assert together(size, split_stopped, rows, str(tmp_path / "parts")) == [1] * size  # also those that have the same rows
    together(size, split_run, rows, str(tmp_path / "parts"), 1)
    assert tree.equal(together(size, split_run, rows, str(tmp_path / "parts"), 2), [whole[0]] * size)
    together(1, split_run, 1, str(tmp_path / "parts"), 3)  # one process goes on alone
