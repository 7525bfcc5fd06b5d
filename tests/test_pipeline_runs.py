"""Runs through pipelines: `fit`, evaluation, donated states, and stages of layers that are divided themselves."""

from collections.abc import Iterator
from functools import partial
from typing import Final, cast

import pytest
import torch
from torch import Tensor

from fundl import (
    AnyTransform,
    Dropout,
    Epoch,
    Evaluation,
    ReLU,
    accuracy,
    adam,
    adamw,
    chain,
    checkpoint,
    clip_by_global_norm,
    compose,
    cross_entropy,
    dynamic_loss_scale,
    embedding,
    evaluate,
    fit,
    initialize,
    key,
    layer_norm,
    linear,
    minibatches,
    mse,
    repeat,
    residual,
    sgd,
    train_state,
    train_step,
    transformer_block,
    tree,
)
from fundl.distributed import (
    Group,
    Schedule,
    grid,
    one_forward_one_backward,
    pipeline_evaluate,
    pipeline_step,
    shard,
    split_cross_entropy,
    split_output,
    split_tied,
    stages,
    tensor_parallel,
    unshard,
    unstage,
    zero_bubble,
)
from fundl.layer import Model
from tests.processes import together

ALONE: Final = Group("alone", 1, 0)
DOUBLE: Final = torch.float64
TOKENS: Final = 11
OPTIMIZERS: Final[dict[str, AnyTransform]] = {
    "clipped": chain(clip_by_global_norm(0.5), adamw(1e-2, epsilon=1e-3)),
    "scaled": dynamic_loss_scale(chain(clip_by_global_norm(1e-2), adam(1e-2, epsilon=1e-3))),
}


def difference(first: object, second: object) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(tree.leaves(first), tree.leaves(second), strict=True))


# --- Stages of layers that are divided ----------------------------------------------------------------------------------


def sharded(data: Group, _tensor: Group) -> tuple[Model, ...]:
    return compose(
        shard(data, linear(3, 7), Dropout(0.3)),
        residual(shard(data, linear(7, 7), ReLU())),
        checkpoint(shard(data, linear(7, 5), layer_norm(5))),
        linear(5, TOKENS),
    )


def split(_data: Group, tensor: Group) -> tuple[Model, ...]:
    blocks = [tensor_parallel(tensor, transformer_block(8, 4, causal=True, key_value_heads=2, dropout=0.2)) for _ in range(3)]
    return compose(
        tensor_parallel(tensor, embedding(TOKENS, 8)), *blocks, layer_norm(8), split_output(tensor, linear(8, TOKENS))
    )


def both(data: Group, tensor: Group) -> tuple[Model, ...]:
    """Layers that are split over one axis beside layers that are sharded over the other."""
    first, *middle, last = split(data, tensor)
    return compose(first, *middle, shard(data, layer_norm(8), linear(8, 8)), last)


def one_matrix(_data: Group, tensor: Group) -> tuple[Model, ...]:
    block = tensor_parallel(tensor, transformer_block(8, 4, causal=True, dropout=0.2))
    return (split_tied(tensor, embedding(TOKENS, 8, padding=3), repeat(2, checkpoint(block)), layer_norm(8)),)


MODELS: Final = {"one matrix": one_matrix, "sharded": sharded, "split": split, "both": both}


def rows(name: str) -> tuple[Tensor, Tensor]:
    """Rows that no number of processes or micro-batches divides, with targets that are ignored."""
    if name == "sharded":
        x = torch.linspace(-1.0, 1.0, 39, dtype=DOUBLE).reshape(13, 3).sin()
        return x, torch.where(torch.arange(13) % 3 == 0, -100, torch.arange(13) % TOKENS)
    tokens = torch.arange(13 * 4).reshape(13, 4) % TOKENS
    return tokens, torch.where(tokens % 5 == 0, -100, (3 * tokens + 1) % TOKENS)


def in_stages(group: Group, name: str, optimizer: str, sizes: tuple[int, int, int]) -> tuple[Model, list[Tensor], int]:
    """The model after some steps, whole, the losses, and how many parameters are told."""
    data, tensor, through = (ALONE,) * 3
    if group.size > 1:
        data, tensor, through = grid(data=sizes[0], tensor=sizes[1], pipeline=sizes[2])
    loss = partial(split_cross_entropy, group=tensor, classes=TOKENS, axis=-1)
    model = initialize(key(0), stages(through, MODELS[name](data, tensor)), dtype=DOUBLE)
    counted, transform = tree.count(model), OPTIMIZERS[optimizer]
    state = train_state(key(1), model, transform)
    step = pipeline_step(loss, transform, through=through, micro_batches=3, over=data, schedule=zero_bubble, donate=True)
    losses: list[Tensor] = []
    for epoch in range(2):
        for batch in minibatches(key(epoch), rows(name), 8, part=data):
            state, report = step(state, batch)
            losses.append(report.loss)
    return unshard(unstage(state.model)), losses, counted


CASES: Final = [
    ("sharded", "clipped", (2, 1, 2)),
    pytest.param("sharded", "scaled", (2, 1, 1), marks=pytest.mark.slow),
    ("split", "clipped", (1, 2, 2)),
    pytest.param("split", "scaled", (2, 1, 2), marks=pytest.mark.slow),
    pytest.param("both", "clipped", (2, 2, 1), marks=pytest.mark.slow),
    pytest.param("one matrix", "clipped", (1, 2, 1), marks=pytest.mark.slow),
    ("one matrix", "scaled", (2, 2, 1)),
    ("both", "scaled", (1, 2, 2)),
    ("both", "clipped", (2, 1, 2)),
]


@pytest.mark.parametrize(("name", "optimizer", "sizes"), CASES)
def test_stages_of_divided_layers_give_the_numbers_of_one_process(
    name: str, optimizer: str, sizes: tuple[int, int, int]
) -> None:
    alone, losses, count = in_stages(ALONE, name, optimizer, (1, 1, 1))
    transform = OPTIMIZERS[optimizer]
    plain = cast("Model", tree.as_whole(MODELS[name](ALONE, ALONE)))  # of layers that nobody has divided
    state = train_state(key(1), initialize(key(0), plain, dtype=DOUBLE), transform)
    step = train_step(partial(cross_entropy, axis=-1), transform)
    for epoch in range(2):
        for batch in minibatches(key(epoch), rows(name), 8):
            state, _ = step(state, batch)
    assert tree.paths(state.model) == tree.paths(alone)
    assert difference(state.model, alone) < 1e-12
    for model, its_losses, counted in together(sizes[0] * sizes[1] * sizes[2], in_stages, name, optimizer, sizes):
        assert tree.paths(model) == tree.paths(alone)
        assert difference(model, alone) < 1e-12
        assert difference(its_losses, losses) < 1e-12
        assert counted == count


def few(name: str, data: Group, tensor: Group) -> tuple[Model, ...]:
    """Few of the layers, as each stage compiles."""
    if name == "sharded":
        first, last = shard(data, linear(3, 7), ReLU(), Dropout(0.3)), shard(data, residual(linear(6, 6), ReLU()))
        return compose(first, linear(7, 6), last, linear(6, TOKENS))
    block = tensor_parallel(tensor, transformer_block(8, 4, causal=True, dropout=0.2))
    return compose(tensor_parallel(tensor, embedding(TOKENS, 8)), block, layer_norm(8), split_output(tensor, linear(8, TOKENS)))


def as_they_are_and_compiled(_group: Group, name: str, sizes: tuple[int, int, int], schedule: Schedule) -> float:
    """How far the models are from each other after some steps."""
    data, tensor, through = grid(data=sizes[0], tensor=sizes[1], pipeline=sizes[2])
    loss, transform = partial(split_cross_entropy, group=tensor, classes=TOKENS, axis=-1), OPTIMIZERS["clipped"]
    batch = tree.map(lambda leaf: leaf[data.rank : 8 : data.size].clone(), rows(name))
    models: list[Model] = []
    for compiled in (False, True):
        state = train_state(key(1), initialize(key(0), stages(through, few(name, data, tensor)), dtype=DOUBLE), transform)
        step = pipeline_step(
            loss, transform, through=through, micro_batches=2, over=data, schedule=schedule, donate=compiled, compile=compiled
        )
        for _ in range(3):
            state, _ = step(state, batch)
        models.append(unshard(unstage(state.model)))
    return difference(*models)


@pytest.mark.slow  # it compiles
@pytest.mark.parametrize(
    ("name", "sizes", "schedule"),
    [("sharded", (2, 1, 2), one_forward_one_backward), ("split", (1, 2, 2), zero_bubble)],
)
def test_stages_of_divided_layers_can_be_compiled(name: str, sizes: tuple[int, int, int], schedule: Schedule) -> None:
    assert all(far < 1e-12 for far in together(4, as_they_are_and_compiled, name, sizes, schedule))


# --- Runs ---------------------------------------------------------------------------------------------------------------


def layers() -> tuple[Model, ...]:
    return compose(linear(3, 7), Dropout(0.3), ReLU(), linear(7, 4))


def run(group: Group, size: int) -> tuple[Model, tuple[Epoch, ...]]:
    data, through = grid(data=group.size // size, pipeline=size) if group.size > 1 else (ALONE, ALONE)
    optimizer = OPTIMIZERS["clipped"]
    state = train_state(key(1), initialize(key(0), stages(through, layers()), dtype=DOUBLE), optimizer)

    def test(model: Model) -> Evaluation:
        batches = minibatches(None, judged(), 4, part=data)
        return pipeline_evaluate(cross_entropy, model, batches, through=through, metrics={"accuracy": accuracy}, over=data)

    step = pipeline_step(cross_entropy, optimizer, through=through, micro_batches=2, over=data)
    state, history = fit(
        step,
        state,
        lambda epoch: minibatches(epoch, small(), 5, part=data),
        epochs=3,
        evaluate=test,
        over=data,
        progress=False,
    )
    return unstage(state.model), history


def small() -> tuple[Tensor, Tensor]:
    x, target = rows("sharded")
    return x, torch.where(target < 0, target, target % 4)


def judged() -> tuple[Tensor, Tensor]:
    x, target = small()
    return x, target.clamp(min=0)


@pytest.mark.parametrize(("processes", "size"), [(1, 1), (2, 2), (4, 2)])
def test_fit_and_evaluation(processes: int, size: int) -> None:
    optimizer = OPTIMIZERS["clipped"]
    alone, history = fit(
        train_step(cross_entropy, optimizer),
        train_state(key(1), initialize(key(0), layers(), dtype=DOUBLE), optimizer),
        lambda epoch: minibatches(epoch, small(), 5),
        epochs=3,
        evaluate=lambda model: evaluate(cross_entropy, model, [judged()], metrics={"accuracy": accuracy}),
        progress=False,
    )
    found = [run(ALONE, 1)] if processes == 1 else together(processes, run, size)
    for model, its_history in found:
        assert difference(model, alone.model) < 1e-12
        for epoch, same in zip(its_history, history, strict=True):
            assert epoch.train.loss == pytest.approx(same.train.loss, abs=1e-12)
            assert epoch.test is not None
            assert same.test is not None
            assert epoch.test.loss == pytest.approx(same.test.loss, abs=1e-12)
            assert epoch.test.metrics == pytest.approx(same.test.metrics, abs=1e-6)  # counted in float32


def diverging(group: Group) -> str:
    """A model that is no longer finite in its first stage alone is an error in all."""
    model = initialize(key(0), stages(group, compose(linear(2, 3), linear(3, 2))))
    optimizer = sgd(3e38 if group.rank == 0 else 0.1)
    step = pipeline_step(mse, optimizer, through=group, micro_batches=2)
    data = torch.ones(4, 2), torch.full((4, 2), 1e3)
    with pytest.raises(FloatingPointError) as caught:
        fit(step, train_state(key(1), model, optimizer), [data], epochs=1, progress=False)
    return str(caught.value)


def test_a_stage_that_diverges_ends_the_run_of_all() -> None:
    first, second = together(2, diverging)
    assert "model[0].weight holds nan or inf" in first
    assert "the model of another process is no longer finite" in second


def unlike(group: Group) -> str:
    model = initialize(key(0), stages(group, compose(linear(2, 3), ReLU(), linear(3, 2))))
    step = pipeline_step(mse, sgd(0.1), through=group, micro_batches=2)
    data = torch.ones(4, 2), torch.zeros(4, 2)
    with pytest.raises(ValueError, match="the processes have batches") as caught:
        fit(step, train_state(key(1), model, sgd(0.1)), [data] * (1 + group.rank), epochs=1, progress=False)
    return str(caught.value)


def test_stages_with_other_numbers_of_batches_say_so() -> None:
    assert all("as many as 1 in process 0 and 2 in process 1" in said for said in together(2, unlike))


def of_nothing(_prediction: object, target: Tensor) -> Tensor:
    return target.sum()


def ending(group: Group, how: str) -> str:
    """An evaluation of which one process can not do its part."""
    model = initialize(key(0), stages(group, compose(linear(2, 3), ReLU(), linear(3, 2))))
    batches = [(torch.ones(4, 2), torch.zeros(4, 2))] * (40 if how == "many" and group.rank else 20)

    def coming() -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(batches):
            if how == "batches" and number == 17 and not group.rank:
                raise OSError("no such batch")
            yield batch

    def measured(_prediction: Tensor, _target: Tensor) -> Tensor:
        raise ArithmeticError("not to be measured")

    metrics = {"other": measured} if how == "metric" else None
    with pytest.raises((ArithmeticError, OSError, RuntimeError, ValueError)) as caught:
        pipeline_evaluate(mse, model, coming(), through=group, metrics=metrics)
    return str(caught.value)


def test_what_one_stage_cannot_do_ends_the_evaluation_of_all() -> None:
    assert all("some have 20, and others 32 or more" in said for said in together(2, ending, "many"))
    first, second = together(2, ending, "batches")
    assert first == "no such batch"
    assert "process 0 cannot go on" in second
    first, second = together(2, ending, "metric")
    assert "process 1 cannot go on" in first
    assert second == "not to be measured"


# --- What is refused ------------------------------------------------------------------------------------------------------


def test_what_a_run_through_a_pipeline_refuses() -> None:
    model = initialize(key(0), compose(linear(2, 3), linear(3, 2)))
    step = pipeline_step(mse, sgd(0.1), through=ALONE, micro_batches=1)
    data = [(torch.ones(2, 2), torch.ones(2, 2))]
    state = train_state(key(1), model, sgd(0.1))
    with pytest.raises(ValueError, match="runs in Python: give fit compile=False"):
        fit(step, state, data, epochs=1, compile=True, progress=False)
    with pytest.raises(ValueError, match="train without 'error', and measure the model by evaluate"):
        fit(step, state, data, epochs=1, metrics={"error": of_nothing}, progress=False)
    with pytest.raises(ValueError, match="the batch has no rows"):
        step(state, (torch.ones(0, 2), torch.ones(0, 2)))
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        pipeline_evaluate(mse, model, [], through=ALONE)
    with pytest.raises(ValueError, match="make it by stages"):
        pipeline_evaluate(mse, model, data, through=Group("two", 2, 0))
