"""On a GPU: steps of two processes, which share it by gloo, and of one by NCCL, against one on the CPU. `pytest -m cuda`."""

from functools import partial
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor

from fundl import (
    AnyTransform,
    Dropout,
    ReLU,
    adam,
    chain,
    clip_by_global_norm,
    compose,
    cross_entropy,
    dynamic_loss_scale,
    embedding,
    evaluate,
    initialize,
    jit,
    key,
    layer_norm,
    linear,
    load,
    minibatches,
    momentum,
    save,
    train_state,
    train_step,
    transformer_block,
    tree,
)
from fundl._common import exchanges
from fundl.distributed import Group, shard, shard_moments, split_cross_entropy, split_output, tensor_parallel, unshard
from fundl.layer import Model
from tests.on_gpu import CPU, DEVICE, IS_GPU, MARKS, moved
from tests.processes import together

pytestmark = MARKS

ALONE: Final = Group("alone", 1, 0)
F64: Final = torch.float64
_NCCL: Final = pytest.mark.skipif(not IS_GPU, reason="NCCL wants a GPU")
_COMPILED: Final = pytest.mark.skipif(IS_GPU, reason="graphs on a GPU hold Python, which gloo's threads may wait for")
_ROWS: Final = pytest.mark.skipif(IS_GPU, reason="gloo brings no rows of GPUs together")
sides = pytest.mark.parametrize(
    "side", [pytest.param((1, "nccl"), marks=_NCCL), pytest.param((2, "gloo"), marks=_ROWS)], ids=["nccl", "gloo"]
)
sides_compiled = pytest.mark.parametrize(
    ("side", "compiled"),
    [
        pytest.param((1, "nccl"), False, marks=_NCCL),
        pytest.param((1, "nccl"), True, marks=_NCCL),
        ((2, "gloo"), False),
        pytest.param((2, "gloo"), True, marks=_COMPILED),
    ],
    ids=["nccl", "nccl, compiled", "gloo", "gloo, compiled"],
)


def plain(_group: Group) -> Model:
    return compose(linear(3, 7), layer_norm(7), ReLU(), Dropout(0.3), linear(7, 4))


def sharded(group: Group) -> Model:
    return compose(shard(group, linear(3, 7), layer_norm(7), ReLU(), Dropout(0.3)), shard(group, linear(7, 4)))


MODELS: Final = {"plain": plain, "sharded": sharded, "moments": plain}


def optimizer_of(name: str, group: Group) -> AnyTransform:
    own = chain(clip_by_global_norm(0.05), adam(1e-2, epsilon=1e-3))
    return shard_moments(group, own) if name == "moments" else dynamic_loss_scale(own, initial=2.0**4, every=3)


def data() -> tuple[Tensor, Tensor]:
    return torch.linspace(-1.0, 1.0, 72, dtype=F64).reshape(24, 3).sin(), torch.arange(24) % 4


def trained(group: Group, name: str, device: torch.device, compiled: bool, folder: str) -> tuple[Model, float, Model]:
    """The model after steps, whole; the loss of an evaluation; and the model, whole, of the file of the state."""
    optimizer = optimizer_of(name, group)
    step = train_step(cross_entropy, optimizer, over=group)
    run = jit(step, donate="state") if compiled else step
    state = train_state(key(1), initialize(key(0), MODELS[name](group), device=device, dtype=F64), optimizer)
    state = tree.map(torch.clone, state)
    for batch in [*minibatches(key(2), data(), 6, part=group, device=device)] * 2:
        state, _ = run(state, batch)
    found = evaluate(cross_entropy, state.model, minibatches(None, data(), 6, part=group, device=device), over=group)
    path = Path(folder) / "state.safetensors"
    save(path, state)
    again = load(path, state)
    return moved(unshard(state.model), device=CPU), found.loss, moved(unshard(again.model), device=CPU)


def difference(first: object, second: object) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(tree.leaves(first), tree.leaves(second), strict=True))


@sides_compiled
@pytest.mark.parametrize("name", MODELS)
def test_steps_give_the_numbers_of_one_process(side: tuple[int, str], name: str, compiled: bool, tmp_path: Path) -> None:
    count, backend = side
    if IS_GPU and backend == "gloo" and name != "plain":
        pytest.skip("gloo brings no rows of GPUs together")
    alone, loss, _ = trained(ALONE, name, CPU, False, str(tmp_path))
    found = together(count, trained, name, DEVICE, compiled, str(tmp_path), backend=backend, device=str(DEVICE))
    for model, own_loss, loaded in found:
        assert difference(model, alone) < 1e-10
        assert abs(own_loss - loss) < 1e-10
        assert tree.equal(loaded, model)


def exchanged(group: Group, device: torch.device, compiled: bool) -> list[Tensor]:
    """What each of torch's exchanges gives, of all processes, for a tensor of this one."""

    def every(x: Tensor) -> list[Tensor]:
        begun = [
            exchanges.all_reduce(x, "sum", group.name),
            exchanges.all_gather(x, group.size, group.name),
            exchanges.reduce_scatter(x, "sum", group.size, group.name),
            exchanges.broadcast(x, 0, group.name),
            exchanges.all_reduce(x * x, "max", group.name),
        ]
        return [exchanges.wait(one) for one in begun]

    x = (group.rank + 1) * torch.arange(1.0, 13.0, device=device).view(4, 3)
    run = jit(every) if compiled else every
    first, *others = (run(x) for _ in range(3))
    assert all(tree.equal(first, other) for other in others)
    return [one.cpu() for one in first]


@sides_compiled
def test_exchanges(side: tuple[int, str], compiled: bool) -> None:
    count, backend = side
    if IS_GPU and backend == "gloo":
        pytest.skip("gloo brings no rows of GPUs together")
    x, total = torch.arange(1.0, 13.0).view(4, 3), sum(range(1, count + 1))
    for rank, found in enumerate(together(count, exchanged, DEVICE, compiled, backend=backend, device=str(DEVICE))):
        rows = 4 // count
        expected = [
            total * x,
            torch.cat([(other + 1) * x for other in range(count)]),
            total * x[rank * rows : (rank + 1) * rows],
            x,
            (count * x) ** 2,
        ]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def split(group: Group, device: torch.device) -> Model:
    """A language model after some steps, of which each process has some heads, features and tokens; whole."""
    block = tensor_parallel(group, transformer_block(8, 2, causal=True, dropout=0.1))
    shapes = compose(tensor_parallel(group, embedding(12, 8)), block, split_output(group, linear(8, 12)))
    loss = partial(split_cross_entropy, group=group, classes=12, axis=-1)
    state = train_state(key(6), initialize(key(5), shapes, device=device, dtype=F64), momentum(0.1))
    step = train_step(loss, momentum(0.1))
    x = torch.arange(5 * 6, device=device).reshape(5, 6) % 12
    for _ in range(3):
        state, _ = step(state, (x, (3 * x + 1) % 12))
    return moved(unshard(state.model), device=CPU)


@sides
def test_split_layers_give_the_numbers_of_one_process(side: tuple[int, str]) -> None:
    count, backend = side
    alone = split(ALONE, CPU)
    for model in together(count, split, DEVICE, backend=backend, device=str(DEVICE)):
        assert difference(model, alone) < 1e-10
