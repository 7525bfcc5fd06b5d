"""Pipelines: models in stages, whose step is that of one process that has the whole batch."""

from functools import partial
from typing import Final

import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import (
    AnyTransform,
    DonatedError,
    Dropout,
    ReLU,
    adam,
    apply,
    batch_norm,
    chain,
    checkpoint,
    clip_by_global_norm,
    compose,
    cross_entropy,
    dynamic_loss_scale,
    embedding,
    fit,
    initialize,
    key,
    layer_norm,
    linear,
    minibatches,
    momentum,
    mse,
    partition,
    residual,
    sgd,
    skip_nonfinite,
    skipped_steps,
    train_state,
    train_step,
    transformer_block,
    tree,
)
from fundl.distributed import (
    Group,
    Schedule,
    Task,
    grid,
    one_forward_one_backward,
    pipeline_step,
    simulate,
    stages,
    unstage,
    zero_bubble,
)
from fundl.distributed import pipeline as pipelines
from fundl.layer import Model
from tests.processes import together

ALONE: Final = Group("alone", 1, 0)
DOUBLE: Final = torch.float64
SCHEDULES: Final = {"1F1B": one_forward_one_backward, "zero bubble": zero_bubble}


def layers() -> tuple[Model, ...]:
    return compose(
        linear(3, 7),
        Dropout(0.3),
        residual(linear(7, 7), Dropout(0.2), ReLU()),
        checkpoint(linear(7, 5), Dropout(0.1), layer_norm(5)),
        (residual(linear(5, 5), ReLU()), ReLU()),
        linear(5, 6),
        linear(6, 4),
    )


def language() -> tuple[Model, ...]:
    return compose(
        embedding(11, 8), *[transformer_block(8, 2, causal=True, dropout=0.1) for _ in range(3)], layer_norm(8), linear(8, 11)
    )


MODELS: Final = {"layers": layers, "language": language}
OPTIMIZERS: Final[dict[str, AnyTransform]] = {
    "clipped": chain(clip_by_global_norm(0.05), momentum(0.1)),
    "scaled": dynamic_loss_scale(chain(clip_by_global_norm(1e-4), adam(1e-2, epsilon=1e-3))),
}


def data(model: str) -> tuple[Tensor, Tensor]:
    """Rows that no number of micro-batches divides, with targets that are ignored: all those of some micro-batches."""
    if model == "layers":
        x = torch.linspace(-1.0, 1.0, 39, dtype=DOUBLE).reshape(13, 3).sin()
        return x, torch.where(torch.arange(13) % 3 == 0, -100, torch.arange(13) % 4)
    x = torch.arange(13 * 4).reshape(13, 4) % 11
    return x, torch.where(x % 5 == 0, -100, (3 * x + 1) % 11)


def whole(name: str, optimizer: AnyTransform) -> tuple[Model, list[Tensor]]:
    """The model after some steps of one process, and its losses."""
    state = train_state(key(1), initialize(key(0), MODELS[name](), dtype=DOUBLE), optimizer)
    step = train_step(partial(cross_entropy, axis=-1), optimizer)
    losses = []
    for epoch in range(2):
        for batch in minibatches(key(epoch), data(name), 8):
            state, report = step(state, batch)
            losses.append(report.loss)
    return state.model, losses


def staged(  # noqa: PLR0917  # as they travel to processes
    group: Group, name: str, optimizer: AnyTransform, schedule: Schedule, count: int, size: int
) -> tuple[Model, list[Tensor], int]:
    """The same in stages; and how many parameters are told."""
    over, through = grid(data=group.size // size, pipeline=size) if group.size > 1 else (ALONE, ALONE)
    model = initialize(key(0), stages(through, MODELS[name]()), dtype=DOUBLE)
    counted = tree.count(model)
    state = train_state(key(1), model, optimizer)
    step = pipeline_step(
        partial(cross_entropy, axis=-1),
        optimizer,
        through=through,
        micro_batches=count,
        over=over,
        schedule=schedule,
    )
    losses = []
    for epoch in range(2):
        for batch in minibatches(key(epoch), data(name), 8, part=over):
            state, report = step(state, batch)
            losses.append(report.loss)
    return unstage(state.model), losses, counted


def difference(first: object, second: object) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(tree.leaves(first), tree.leaves(second), strict=True))


CASES: Final = [
    ("layers", "clipped", "1F1B", 4, 1, 1),
    ("layers", "clipped", "1F1B", 4, 2, 2),
    ("layers", "clipped", "zero bubble", 3, 4, 4),
    ("layers", "scaled", "zero bubble", 1, 4, 4),
    ("layers", "scaled", "1F1B", 5, 4, 4),
    ("layers", "clipped", "zero bubble", 3, 4, 2),
    ("language", "clipped", "1F1B", 2, 4, 4),
    ("language", "scaled", "zero bubble", 4, 2, 2),
    ("language", "clipped", "1F1B", 3, 4, 2),
]


@pytest.mark.parametrize(("name", "optimizer", "schedule", "count", "processes", "size"), CASES)
def test_a_run_in_stages_gives_the_numbers_of_one_process(  # noqa: PLR0917  # what is varied
    name: str, optimizer: str, schedule: str, count: int, processes: int, size: int
) -> None:
    alone, losses = whole(name, OPTIMIZERS[optimizer])
    arguments = (name, OPTIMIZERS[optimizer], SCHEDULES[schedule], count, size)
    found = [staged(ALONE, *arguments)] if processes == 1 else together(processes, staged, *arguments)
    for model, its_losses, counted in found:
        assert difference(model, alone) < 1e-12
        assert difference(its_losses, losses) < 1e-12
        assert counted == tree.count(alone)


def compiled(group: Group) -> Model:
    model = initialize(key(0), stages(group, compose(linear(3, 7), Dropout(0.3), linear(7, 4))), dtype=DOUBLE)
    step = pipeline_step(mse, sgd(0.1), through=group, micro_batches=2, compile=group.size > 1)
    x = torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(4, 3)
    state, _ = step(train_state(key(1), model, sgd(0.1)), (x, x.new_zeros(4, 4)))
    return unstage(state.model)


@pytest.mark.slow
def test_stages_can_be_compiled() -> None:
    alone = compiled(ALONE)
    for model in together(2, compiled):
        assert difference(model, alone) < 1e-12


# --- Schedules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages_", [1, 2, 4, 7])
@pytest.mark.parametrize("count", [7, 8, 20])
def test_bubbles_are_those_of_the_papers(stages_: int, count: int) -> None:
    bubble = simulate(one_forward_one_backward, stages_, count).bubble
    assert bubble == pytest.approx((stages_ - 1) / (count + stages_ - 1))
    assert simulate(zero_bubble, stages_, count).bubble == pytest.approx((stages_ - 1) / (3 * count + stages_ - 1))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 9])
def test_no_stage_waits_for_ever_or_keeps_more_than_there_are_stages(schedule: Schedule, count: int) -> None:
    for size in (1, 2, 4, 6):
        for tasks in simulate(schedule, size, count).tasks:
            kept = most = 0
            for task in tasks:
                kept += {"forward": 1, "backward": -1, "input": 0, "params": -1}[task.what]
                most = max(most, kept)
            assert kept == 0
            assert most <= size


def test_schedules_that_do_not_fit_say_so() -> None:
    def late(stage: int, stages_: int, count: int) -> list[Task]:
        tasks = one_forward_one_backward(stage, stages_, count)
        return [task for task in tasks if task.what == "backward"] + [task for task in tasks if task.what == "forward"]

    with pytest.raises(ValueError, match="wait for each other for ever: stage 0 for backward 0"):
        simulate(late, 2, 2)
    with pytest.raises(ValueError, match="in order"):
        simulate(lambda stage, stages_, count: one_forward_one_backward(stage, stages_, count)[:-1], 2, 2)
    with pytest.raises(ValueError, match="from 0 to 1"):
        one_forward_one_backward(2, 2, 4)


def kept_at_most(group: Group, schedule: Schedule) -> int:
    """How many micro-batches' residuals a stage of a real step has at a time."""
    most: list[int] = []

    class Watched(pipelines._Work):  # type: ignore[type-arg]  # of whatever
        @override
        def do(self, task: Task) -> None:
            super().do(task)
            most.append(len(self.kept))

    pipelines._Work, original = Watched, pipelines._Work  # type: ignore[misc]  # to look into a step
    try:
        staged(group, "layers", OPTIMIZERS["clipped"], schedule, 8, group.size)
    finally:
        pipelines._Work = original  # type: ignore[misc]  # likewise
    assert not most[-1]
    return max(most)


def test_a_stage_keeps_what_the_schedule_promises() -> None:
    assert together(4, kept_at_most, one_forward_one_backward) == [4, 3, 2, 1]
    assert together(4, kept_at_most, zero_bubble) == [4, 4, 4, 4]


def donated(group: Group, name: str, schedule: Schedule, compile_it: bool) -> list[list[int]]:
    """Where parameters and moments are after each step that donates, whose numbers are those of steps that do not."""
    optimizer = OPTIMIZERS["clipped"] if name == "layers" else adam(0.01)
    pure, donating = (
        pipeline_step(
            partial(cross_entropy, axis=-1),
            optimizer,
            through=group,
            micro_batches=3,
            schedule=schedule,
            donate=donate,
            compile=compile_it,
        )
        for donate in (False, True)
    )
    model = initialize(key(0), stages(group, MODELS[name]()), dtype=DOUBLE)
    expected, state = (
        train_state(key(1), model, optimizer) for _ in range(2)
    )  # of which the first step is not the only holder
    places = []
    for batch in [(x[:6], target[:6]) for x, target in [data(name)] * 4]:
        expected, _ = pure(expected, batch)
        before = state
        state, _ = donating(state, batch)
        assert tree.equal((state.model, state.optimizer, state.step), (expected.model, expected.optimizer, expected.step))
        with pytest.raises(DonatedError):
            donating(before, batch)
        places.append([leaf.data_ptr() for leaf in tree.trainable_leaves((state.model, state.optimizer))])
    return places


@pytest.mark.parametrize(
    ("size", "name", "schedule", "compile_it"),
    [
        (1, "layers", "1F1B", False),
        (2, "language", "1F1B", False),
        (2, "layers", "zero bubble", False),
        pytest.param(2, "layers", "1F1B", True, marks=pytest.mark.slow),
    ],
)
def test_a_donated_state_is_written_over(size: int, name: str, schedule: str, compile_it: bool) -> None:
    for first, *others in together(size, donated, name, SCHEDULES[schedule], compile_it):
        assert others == [first] * 3


def fitted(group: Group) -> tuple[list[float], list[Tensor]]:
    """The losses of a run, and the parameters at its end; the state that it begins with stays."""
    optimizer = OPTIMIZERS["clipped"]
    state = train_state(key(1), initialize(key(0), stages(group, layers()), dtype=DOUBLE), optimizer)
    kept = tree.map(torch.clone, state)
    last, history = fit(
        pipeline_step(cross_entropy, optimizer, through=group, micro_batches=3),
        state,
        lambda some_key: minibatches(some_key, data("layers"), 6, drop_last=True),
        epochs=3,
        compile=False,
        progress=False,
    )
    assert tree.equal(state, kept)
    return [epoch.train.loss for epoch in history], tree.leaves(unstage(last.model))


def test_a_run_through_a_pipeline_is_that_of_one_process() -> None:
    losses, parameters = fitted(ALONE)
    for own, found in together(2, fitted):
        assert own == pytest.approx(losses, rel=1e-12)
        assert difference(found, parameters) < 1e-12


# --- What goes wrong ----------------------------------------------------------------------------------------------------


def overflowing(group: Group) -> tuple[Model, int]:
    model = initialize(key(0), stages(group, compose(linear(2, 3), ReLU(), linear(3, 2))), dtype=DOUBLE)
    optimizer = skip_nonfinite(sgd(0.1))
    step = pipeline_step(mse, optimizer, through=group, micro_batches=2)
    x = torch.ones(4, 2, dtype=DOUBLE)
    x[3] = torch.inf
    state, _ = step(train_state(key(1), model, optimizer), (x, torch.zeros(4, 2, dtype=DOUBLE)))
    return unstage(state.model), int(skipped_steps(state))


def test_a_step_that_is_not_finite_is_left_out_by_all_stages() -> None:
    first = initialize(key(0), compose(linear(2, 3), ReLU(), linear(3, 2)), dtype=DOUBLE)
    for model, skipped in together(2, overflowing):
        assert skipped == 1
        assert tree.equal(model, first)


def notes(group: Group) -> str:
    """What is said where a layer of the last stage fails, alone: the other one is not asked."""
    if group.rank == 0:
        return ""
    model = initialize(key(0), stages(group, compose(linear(2, 3), ReLU(), linear(3, 2), layer_norm(2))))
    with pytest.raises(ValueError, match="expects") as error:
        apply(pipelines.running(model), torch.ones(4, 5))
    return "\n".join(error.value.__notes__)


def test_errors_name_the_place_in_the_whole_model() -> None:
    assert "in model[2]" in together(2, notes)[1]


def test_parts_of_an_optimizer_that_a_stage_may_lack_are_refused() -> None:
    model = initialize(key(0), stages(Group("two", 2, 0), compose(linear(2, 3), linear(3, 2))))
    inside = chain(clip_by_global_norm(1.0), sgd(0.1))
    with pytest.raises(TypeError, match="go around partition"):
        partition({"first": inside, "rest": sgd(0.1)}, where={"first": "[0]"}).init(model)


def test_what_cannot_be_staged_says_so() -> None:
    two = Group("two", 2, 0)
    with pytest.raises(ValueError, match="2 stages need as many layers with parameters"):
        stages(two, compose(linear(2, 3), ReLU()))
    with pytest.raises(ValueError, match="says where each of 2 stages begins"):
        stages(two, compose(linear(2, 3), linear(3, 2)), starts=[1, 0])
    with pytest.raises(ValueError, match="stage 1, of layers 1 to 1, has no parameters"):
        stages(two, compose(linear(2, 3), ReLU()), starts=[0, 1])
    with pytest.raises(TypeError, match="cuts a tuple of layers"):
        stages(two, linear(2, 3))  # type: ignore[arg-type]  # what is wrong
    with pytest.raises(ValueError, match="in stages already"):
        stages(two, stages(two, compose(linear(2, 3), linear(3, 2))))
    with pytest.raises(ValueError, match="an int of 1 or more"):
        pipeline_step(mse, sgd(0.1), through=two, micro_batches=0)
    model = initialize(key(0), stages(two, compose(linear(2, 3), linear(3, 2))))
    step = pipeline_step(mse, sgd(0.1), through=ALONE, micro_batches=1)
    with pytest.raises(ValueError, match="make it by stages"):
        step(train_state(key(1), model, sgd(0.1)), (torch.ones(2, 2), torch.ones(2, 2)))
    with pytest.raises(ValueError, match="this layer is in process 1"):
        train_step(mse, sgd(0.1))(train_state(key(1), model, sgd(0.1)), (torch.ones(2, 2), torch.ones(2, 3)))
    normal = train_state(key(1), initialize(key(0), compose(linear(2, 3), batch_norm(3))), sgd(0.1))
    with pytest.raises(ValueError, match="of each micro-batch by itself"):
        step(normal, (torch.ones(2, 2), torch.ones(2, 3)))
