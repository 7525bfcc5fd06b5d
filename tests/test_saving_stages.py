"""Models in stages, and the states of their runs, in one file that any number of processes takes up."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

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
    adjustable,
    batch_norm,
    chain,
    clip_by_global_norm,
    compose,
    cross_entropy,
    dynamic_loss_scale,
    ema,
    embedding,
    fit,
    initialize,
    is_matrix,
    key,
    layer_norm,
    linear,
    load,
    load_model,
    minibatches,
    momentum,
    partition,
    residual,
    save,
    sgd,
    skip_nonfinite,
    train_state,
    transformer_block,
    tree,
    with_statistics,
)
from fundl.distributed import (
    Group,
    grid,
    pipeline_step,
    shard,
    shard_moments,
    split_output,
    stages,
    tensor_parallel,
    unshard,
    unstage,
)
from fundl.layer import Model
from fundl.random import Key
from tests.processes import together

ALONE: Final = Group("alone", 1, 0)
TOKENS: Final = 11

OPTIMIZERS: Final[dict[str, AnyTransform]] = {
    "gathered": accumulate(chain(clip_by_global_norm(1.0), adam(0.01, amsgrad=True), ema(0.9)), 2),
    "in parts": partition({"first": momentum(0.1), "rest": adam(0.01)}, where={"first": "[0]"}),
    "by shape": partition({"first": momentum(0.1), "rest": adam(0.01)}, where={"first": is_matrix}),
    "adjustable": adjustable(adamw(0.01)),
    "skipping": skip_nonfinite(chain(clip_by_global_norm(1.0), adamw(0.01, where=is_matrix))),
    "scaled": dynamic_loss_scale(sgd(0.1, momentum=0.9)),
    "nothing": sgd(0.1),
}


def plain() -> tuple[Model, ...]:
    return compose(
        linear(5, 7), (ReLU(), batch_norm(7)), Dropout(0.2), residual(linear(7, 7), ReLU()), linear(7, 6), linear(6, 3)
    )


def values(model: Model) -> Model:
    """A model with values, and its BatchNorm with statistics."""
    return with_statistics(initialize(key(0), model))


def data() -> tuple[Tensor, Tensor]:
    return torch.arange(60.0).view(12, 5).sin(), torch.arange(12) % 3


def trained(group: Group, name: str, steps: int = 3) -> TrainState[Model, object]:
    some = OPTIMIZERS[name]
    state = train_state(key(1), values(stages(group, plain())), some)
    step = pipeline_step(cross_entropy, some, through=group, micro_batches=2)
    for batch in [*minibatches(key(2), data(), 4)][:steps]:
        state, _ = step(state, batch)
    return state


def saved(group: Group, name: str, path: str) -> tuple[list[str], list[Tensor]]:
    state = trained(group, name)
    save(path, state, metadata={"rank": str(group.rank)})
    assert tree.equal(load(path, tree.map(torch.zeros_like, state)), state)
    return tree.paths(tree.as_whole(state)), tree.leaves(unstage(state.model))


def taken(group: Group, name: str, path: str) -> list[Tensor]:
    like = train_state(key(1), values(stages(group, plain())), OPTIMIZERS[name])
    return tree.leaves(unstage(load(path, tree.map(torch.zeros_like, like)).model))


QUICK: Final = ("gathered", "in parts")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS])
def test_a_state_in_one_file(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / "state.safetensors")
    (names, model), *_ = together(2, saved, name, path)
    like = train_state(key(1), values(plain()), OPTIMIZERS[name])
    assert names == tree.paths(like)  # nothing tells of the processes
    state = load(path, tree.map(torch.zeros_like, like))  # by one process, which knows of no others
    assert tree.equal(tree.leaves(state.model), model)
    assert tree.equal(tree.leaves(load_model(path, part=".model")), model)
    alone = trained(ALONE, name)
    for where, found, expected in zip(names, tree.leaves(state), tree.leaves(alone), strict=False):
        torch.testing.assert_close(found, expected, msg=where, rtol=1e-4, atol=1e-5)
    save(tmp_path / "alone.safetensors", alone)
    for again in together(2, taken, name, str(tmp_path / "alone.safetensors")):
        assert tree.equal(again, tree.leaves(alone.model))
    assert sorted(os.listdir(tmp_path)) == ["alone.safetensors", "state.safetensors"]


# --- Grids, and layers that are divided themselves ------------------------------------------------------------------------


def sharded(data: Group, _tensor: Group) -> tuple[Model, ...]:
    return compose(shard(data, linear(5, 7), ReLU()), Dropout(0.2), residual(shard(data, linear(7, 7))), linear(7, 3))


def split(_data: Group, tensor: Group) -> tuple[Model, ...]:
    blocks = [tensor_parallel(tensor, transformer_block(8, 4, causal=True, dropout=0.2)) for _ in range(2)]
    return compose(
        tensor_parallel(tensor, embedding(TOKENS, 8)), *blocks, layer_norm(8), split_output(tensor, linear(8, TOKENS))
    )


def last(_data: Group, _tensor: Group) -> tuple[Model, ...]:
    return plain()[3:]


MODELS: Final = {"sharded": sharded, "split": split, "moments": last}


def on_a_grid(group: Group, name: str, sizes: tuple[int, int, int], path: str, is_first: bool) -> list[Tensor]:
    """The model that is saved, by the first, and then that of the file, by processes in another grid."""
    data, tensor, through = (ALONE,) * 3
    if group.size > 1:
        data, tensor, through = grid(data=sizes[0], tensor=sizes[1], pipeline=sizes[2])
    some = chain(clip_by_global_norm(1.0), adam(0.1))
    transform: AnyTransform = shard_moments(data, some) if name == "moments" and data.size > 1 else some
    model = tree.cast_to(
        initialize(key(0), stages(through, MODELS[name](data, tensor))), torch.bfloat16
    )  # later than the stages
    state = train_state(key(1), model, transform)
    if is_first:
        save(path, state)
    again = load(path, tree.map(torch.zeros_like, state))
    assert tree.equal(again, state)
    with Saver() as saver:
        saver.save(f"{path}.beside", state)
    assert tree.equal(load(f"{path}.beside", tree.map(torch.zeros_like, state)), state)
    return tree.leaves(unshard(unstage(again.model)))


@pytest.mark.parametrize(
    ("name", "sizes", "others"),
    [
        ("sharded", (2, 1, 1), (1, 1, 2)),
        pytest.param("sharded", (2, 1, 2), (1, 1, 3), marks=pytest.mark.slow),
        pytest.param("split", (1, 2, 2), (1, 1, 2), marks=pytest.mark.slow),
        pytest.param("split", (1, 1, 4), (2, 2, 1), marks=pytest.mark.slow),
        pytest.param("moments", (2, 1, 2), (1, 1, 2), marks=pytest.mark.slow),
        ("moments", (1, 1, 2), (2, 1, 1)),
    ],
)
def test_grids(tmp_path: Path, name: str, sizes: tuple[int, int, int], others: tuple[int, int, int]) -> None:
    path = str(tmp_path / "state.safetensors")
    first = together(sizes[0] * sizes[1] * sizes[2], on_a_grid, name, sizes, path, True)
    names = cast("Model", tree.as_whole(MODELS[name](ALONE, ALONE)))
    like = train_state(
        key(1), tree.cast_to(initialize(key(0), names), torch.bfloat16), chain(clip_by_global_norm(1.0), adam(0.1))
    )
    assert tree.equal(load(path, tree.map(torch.zeros_like, like)), like)
    assert tree.equal(first, [tree.leaves(like.model)] * len(first))
    for found in together(others[0] * others[1] * others[2], on_a_grid, name, others, path, False):
        assert tree.equal(found, tree.leaves(like.model))


# --- Runs ---------------------------------------------------------------------------------------------------------------


def run(group: Group, size: int, folder: str, count: int, ended: bool = False) -> tuple[list[Tensor], list[float]]:
    """A run, which may be told to end in the middle of its second epoch: the model after it, and its losses."""
    data, through = grid(data=group.size // size, pipeline=size) if group.size > 1 else (ALONE, ALONE)
    some, passes = OPTIMIZERS["gathered"], 0

    def batches(some_key: Key) -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal passes
        passes += 1
        for number, batch in enumerate(minibatches(some_key, all_rows(), 5, part=data)):
            if ended and (passes, number) == (2, 2) and group.rank == group.size - 1:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    state, history = fit(
        pipeline_step(cross_entropy, some, through=through, micro_batches=2, over=data),
        train_state(key(1), values(stages(through, plain())), some),
        batches,
        epochs=count,
        over=data,
        checkpoints=Checkpoints(folder, seconds=1e-9, best=lambda epoch: epoch.train.loss),
        progress=False,
    )
    return tree.leaves(unstage(state.model)), [epoch.train.loss for epoch in history]


def all_rows() -> tuple[Tensor, Tensor]:
    return torch.arange(90.0).view(18, 5).sin(), torch.arange(18) % 3


def stopped(group: Group, size: int, folder: str) -> list[str]:
    try:
        run(group, size, folder, 3, ended=True)
    except Interrupted:
        return sorted(os.listdir(folder))
    raise AssertionError("not ended")


@pytest.mark.parametrize(("processes", "size"), [(2, 2), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_a_run_through_a_pipeline_is_taken_up(tmp_path: Path, processes: int, size: int) -> None:
    whole = together(processes, run, size, str(tmp_path / "whole"), 3)[0]
    for files in together(processes, stopped, size, str(tmp_path / "parts")):
        assert "-step-" in files[-1]  # written in the middle of an epoch
    for again in together(processes, run, size, str(tmp_path / "parts"), 3):
        assert tree.equal(again[0], whole[0])
        assert again[1] == whole[1]
    _, longer = run(ALONE, 1, str(tmp_path / "parts"), 4)  # one process goes on alone
    assert longer[:3] == whole[1]
    if processes == 2:
        assert together(1, run, 1, str(tmp_path / "parts"), 5)[0][1][:4] == longer
        assert together(2, run, 2, str(tmp_path / "parts"), 6)[0][1][:4] == longer


# --- What goes wrong ------------------------------------------------------------------------------------------------------


def message(group: Group, path: str, how: str) -> str:
    model = initialize(key(0), stages(group, compose(linear(5, 7), ReLU(), linear(7, 3))))
    try:
        if how == "others" and group.rank:
            model = (*model[:2], initialize(key(0), linear(7, 4)))
        elif how == "no tensor" and group.rank:
            save(path, model, metadata={"fundl.x": ""})
        elif how == "another" and group.rank:
            model = initialize(key(0), stages(group, compose(linear(5, 7), ReLU(), linear(7, 4))))
        if how in {"unstage", "others"}:
            unstage(model)
        elif how == "another":
            load(path, model)
        else:
            save(path, model)
    except (OSError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


@pytest.mark.parametrize(("how", "text"), [("others", "process 1 has other layers now"), ("no tensor", "fundl.")])
def test_one_that_fails_has_all_raise(tmp_path: Path, how: str, text: str) -> None:
    found = together(2, message, str(tmp_path / "model.safetensors"), how)
    assert "none" not in found
    assert any(text in one for one in found), found
    assert not os.listdir(tmp_path)


def test_what_does_not_fit_is_an_error_in_all(tmp_path: Path) -> None:
    path = str(tmp_path / "model.safetensors")
    assert together(2, message, path, "save") == ["none", "none"]
    assert all("float32[4, 7]" in one for one in together(2, message, path, "another"))
    assert all("there is no file" in one for one in together(2, message, f"{path}2", "another"))
