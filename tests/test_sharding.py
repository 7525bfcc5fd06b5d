"""Sharded parameters: the numbers of a model that one process has as a whole, of which each process has its rows."""

from functools import partial
from pathlib import Path
from typing import Final

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import (
    AnyTransform,
    Dropout,
    Layer,
    Linear,
    ReLU,
    Tensors,
    Transform,
    accumulate,
    adam,
    averaged,
    batch_norm,
    chain,
    check_finite,
    checkpoint,
    clip_by_global_norm,
    compose,
    cross_entropy,
    dynamic_loss_scale,
    ema,
    embedding,
    ensemble,
    finish,
    fit,
    initialize,
    is_matrix,
    jit,
    key,
    lamb,
    layer_norm,
    linear,
    load,
    minibatches,
    mixed_precision,
    momentum,
    mse,
    muon,
    output_shape,
    partition,
    repeat,
    residual,
    sam,
    save,
    sgd,
    skip_nonfinite,
    skipped_steps,
    summary,
    tied,
    train_state,
    train_step,
    transformer_block,
    tree,
    value_and_grad,
    with_statistics,
    without_statistics,
)
from fundl.distributed import Group, Sharded, grid, shard, shard_moments, unshard
from fundl.layer import Model
from tests.processes import together

ALONE: Final = Group("alone", 1, 0)
DOUBLE: Final = torch.float64


@attrs.frozen(eq=False)
class Scaled(Layer[Tensor]):
    """A user's layer whose parameter has no rows: y = factor x."""

    factor: Tensor

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.factor * x, x

    @override
    def backward(self, x: Tensor, grad: Tensor) -> tuple["Scaled", Tensor]:
        return Scaled((grad * x).sum()), grad * self.factor


def layers(group: Group) -> Model:
    """Layers of all kinds, with rows that no number of processes divides; some of them are sharded."""
    return compose(
        shard(group, linear(3, 7), Scaled(torch.full((), 0.25)), batch_norm(7)),
        repeat(3, residual(shard(group, linear(7, 7), Dropout(0.3), ReLU()))),
        checkpoint(shard(group, linear(7, 5), layer_norm(5))),
        linear(5, 5),
        shard(group, checkpoint(linear(5, 1), linear(1, 4))),
    )


def language(group: Group) -> Model:
    return compose(
        shard(group, embedding(11, 8)),
        repeat(2, checkpoint(shard(group, *transformer_block(8, 2, causal=True)))),
        linear(8, 11),
    )


def of_one(group: Group) -> Model:
    return compose(shard(group, tied(embedding(11, 8), *transformer_block(8, 2, causal=True))))


MODELS: Final = {"layers": layers, "language": language, "tied": of_one}
BOUNDED: Final[dict[str, AnyTransform]] = {
    "sgd": sgd(0.1),
    "clipped": chain(clip_by_global_norm(0.05), momentum(0.1)),
    "adam": chain(clip_by_global_norm(1e-4), adam(1e-2, epsilon=1e-3)),
    "scaled": dynamic_loss_scale(chain(clip_by_global_norm(0.05), momentum(0.1))),
    "skipping": skip_nonfinite(accumulate(chain(clip_by_global_norm(0.05), momentum(0.1)), 2)),
    "parts": partition(
        {"first": chain(clip_by_global_norm(0.01), sgd(0.1)), "rest": chain(clip_by_global_norm(0.02), sgd(0.2))},
        where={"first": "[0]"},
    ),
}


def data(model: str) -> tuple[Tensor, Tensor]:
    if model == "layers":
        x = torch.linspace(-1.0, 1.0, 39, dtype=DOUBLE).reshape(13, 3).sin()
        return x, torch.arange(13) % 4
    x = torch.arange(13 * 4).reshape(13, 4) % 11
    return x, (3 * x + 1) % 11


def trained(group: Group, name: str, optimizer: AnyTransform) -> Model:
    """The model after some steps, whole."""
    model = initialize(key(0), MODELS[name](group), dtype=DOUBLE)
    state = train_state(key(1), model, optimizer)
    loss = partial(cross_entropy, axis=1 if name == "layers" else -1)
    step = train_step(loss, optimizer, over=group, donate=True)
    for epoch in range(2):
        for batch in minibatches(key(epoch), data(name), 7, part=group):
            state, _ = step(state, batch)
    return unshard(state.model)


def difference(first: object, second: object) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(tree.leaves(first), tree.leaves(second), strict=True))


@pytest.mark.parametrize("optimizer", BOUNDED)
def test_a_run_of_sharded_parameters_gives_the_numbers_of_one_process(optimizer: str) -> None:
    alone = trained(ALONE, "layers", BOUNDED[optimizer])
    for model in together(2, trained, "layers", BOUNDED[optimizer]):
        assert difference(model, alone) < 1e-12


@pytest.mark.parametrize("name", ["language", "tied"])
def test_models_of_language_give_the_numbers_of_one_process(name: str) -> None:
    alone = trained(ALONE, name, BOUNDED["clipped"])
    for model in together(2, trained, name, BOUNDED["clipped"]):
        assert difference(model, alone) < 1e-12


def test_dividing_changes_no_number_of_a_model() -> None:
    plain = compose((linear(3, 7), Scaled(torch.ones(()))), repeat(2, residual(linear(7, 7), ReLU())), linear(7, 2))
    sharded = compose(
        shard(ALONE, linear(3, 7), Scaled(torch.ones(()))),
        repeat(2, residual(shard(ALONE, linear(7, 7), ReLU()))),
        linear(7, 2),
    )
    for one, other in zip(*map(tree.leaves, (initialize(key(0), plain), initialize(key(0), sharded))), strict=True):
        assert torch.equal(one, other)
    assert tree.paths(unshard(sharded))[0] == "[0][0].weight"


def looked_at(group: Group) -> tuple[list[Tensor], Model, int, int, Tensor, int, str]:
    """The rows of a process, the whole of them, and what is told of it."""
    model = initialize(key(0), layers(group), dtype=DOUBLE)
    assert (tree.norm(model) - tree.norm(unshard(model))).abs() < 1e-14
    return (
        tree.trainable_leaves(model),
        unshard(model),
        tree.count(model),
        tree.nbytes(model),
        tree.norm(model),
        summary(layers(group), (2, 3)).parameters,
        repr(output_shape(model)),
    )


def test_norms_counts_and_summaries_are_of_the_whole() -> None:
    (_, whole, count, nbytes, norm, parameters, shape), two = looked_at(ALONE), together(2, looked_at)
    for _, its_whole, its_count, its_nbytes, its_norm, its_parameters, its_shape in two:
        assert tree.equal(its_whole, whole)
        assert (its_count, its_parameters, its_shape) == (count, parameters, shape)
        assert 0.5 * nbytes < its_nbytes < 0.65 * nbytes
        assert (its_norm - norm).abs() < 1e-14
    assert torch.equal(two[0][4], two[1][4])
    assert two[0][0][0].shape == (4, 3)
    assert torch.equal(torch.cat((two[0][0][0], two[1][0][0]))[:7], tree.leaves(whole)[0])
    assert not two[1][0][0][3:].any()  # what there is too much


def overflowing(group: Group) -> tuple[Model, Tensor]:
    """A step in which the gradient of one row, which one process has, is infinite."""
    model = initialize(key(0), compose(shard(group, linear(2, 4)), linear(4, 1)), dtype=DOUBLE)
    optimizer = skip_nonfinite(sgd(0.1))
    state = optimizer.init(model)
    grads = tree.map(torch.ones_like, model)
    if group.rank == group.size - 1:
        leaves = tree.trainable_leaves(grads)
        leaves[0][-1] = torch.inf
        grads = tree.with_trainable_leaves(grads, leaves)
    after, state = optimizer.step(grads, state, model)
    return unshard(after), skipped_steps(state)


def test_a_step_that_is_not_finite_in_one_process_is_left_out_by_all() -> None:
    for model, skipped in [overflowing(ALONE), *together(2, overflowing)]:
        assert skipped == 1
        assert tree.equal(model, unshard(initialize(key(0), compose(shard(ALONE, linear(2, 4)), linear(4, 1)), dtype=DOUBLE)))


def in_half(group: Group) -> list[Model]:
    """The gradients of layers that are gathered in half precision, and of some that are gathered and cast then."""
    models: list[Model] = [mixed_precision(shard(group, linear(3, 5))), shard(group, mixed_precision(linear(3, 5)))]
    inputs = torch.ones(2, 3), torch.zeros(2, 5)
    return [unshard(value_and_grad(mse, initialize(key(0), model), *inputs)[1]) for model in models]


def test_layers_of_half_precision_are_divided_either_way() -> None:
    for one, *two in zip(in_half(ALONE), *together(2, in_half), strict=True):
        for its in two:
            assert difference(its, tree.map(lambda leaf: 2 * leaf, one)) < 1e-6  # both have the same batch
            assert [leaf.dtype for leaf in tree.leaves(its)] == [torch.float32] * 2


def fitted(group: Group) -> Model:
    model = initialize(key(0), layers(group), dtype=DOUBLE)
    optimizer = chain(clip_by_global_norm(0.05), adam(1e-2, epsilon=1e-3))
    step = train_step(cross_entropy, optimizer, over=group)
    batches = partial(minibatches, data=data("layers"), batch_size=7, part=group)
    state, _ = fit(step, train_state(key(1), model, optimizer), batches, epochs=2, over=group, progress=False, compile=False)
    return unshard(state.model)


def test_fit_trains_sharded_parameters() -> None:
    alone = fitted(ALONE)
    for model in together(2, fitted):
        assert difference(model, alone) < 1e-12


def tracked(group: Group) -> tuple[Model, Model, list[str]]:
    """A model whose statistics follow; with those to begin with; and where both are."""
    begun = initialize(key(0), compose(shard(group, linear(3, 7), batch_norm(7)), linear(7, 4)), dtype=DOUBLE)
    step = train_step(cross_entropy, momentum(0.1), over=group, track=0.1)
    state = train_state(key(1), begun, momentum(0.1))
    for batch in minibatches(key(2), data("layers"), 7, part=group):
        state, _ = step(state, batch)
    first, after = with_statistics(begun), without_statistics(with_statistics(state.model))
    assert tree.equal(tree.leaves(after), tree.trainable_leaves(state.model))
    return unshard(state.model), unshard(first), [leaf.device.type for leaf in tree.leaves((state.model, first))]


def test_statistics_of_sharded_layers_follow() -> None:
    alone, first, _ = tracked(ALONE)
    for model, its_first, places in together(2, tracked):
        assert difference(model, alone) < 1e-12
        assert tree.equal(its_first, first)
        assert set(places) == {"cpu"}


def compiled(group: Group) -> Model:
    """The model after some compiled steps, whole."""
    model = initialize(key(0), compose(shard(group, linear(3, 7), ReLU()), linear(7, 4)), dtype=DOUBLE)
    state = train_state(key(1), model, BOUNDED["clipped"])
    step = jit(train_step(cross_entropy, BOUNDED["clipped"], over=group), donate="state")
    x, target = data("layers")
    for batch in minibatches(key(2), (x[:12], target[:12]), 6, part=group):
        state, _ = step(state, batch)
    assert len(step.traces) == 1
    return unshard(state.model)


@pytest.mark.slow
def test_compiled_steps_gather_and_scatter() -> None:
    alone = compiled(ALONE)
    for model in together(2, compiled):
        assert difference(model, alone) < 1e-12


# --- Along two axes ----------------------------------------------------------------------------------------------------


def trained_along_two(group: Group, name: str, sharded_norm: bool) -> tuple[Model, int]:
    """The model after steps of 2 machines of 2 processes, and how many rows of its first tensor one process has."""
    machines, ranks = grid(machines=2, ranks=2)
    model = initialize(key(0), MODELS[name](ranks), dtype=DOUBLE)

    def along_two(record: tree.Record) -> tree.Record:
        return attrs.evolve(record, copies=machines) if isinstance(record, Sharded) else record

    model = tree.map_records(along_two, model)
    optimizer = BOUNDED["adam" if sharded_norm else "sgd"]
    state = train_state(key(1), model, optimizer)
    step = train_step(partial(cross_entropy, axis=1 if name == "layers" else -1), optimizer, over=group, donate=True)
    for epoch in range(2):
        for batch in minibatches(key(epoch), data(name), 7, part=group):
            state, _ = step(state, batch)
    return unshard(state.model), tree.trainable_leaves(state.model)[0].shape[0]


@pytest.mark.parametrize("clipped", [False, True])
def test_parts_within_a_machine_and_copies_across_give_the_numbers_of_one_process(clipped: bool) -> None:
    alone = trained(ALONE, "layers", BOUNDED["adam" if clipped else "sgd"])
    four = together(4, trained_along_two, "layers", clipped)
    for model, rows in four:
        assert rows == 4  # of 7
        assert difference(model, alone) < 1e-12
        assert tree.equal(model, four[0][0])


def over_another_group(group: Group) -> str:
    _, ranks = grid(machines=2, ranks=2)
    model = initialize(key(0), shard(ranks, linear(2, 4)))
    state = train_state(key(1), model, sgd(0.1))
    with pytest.raises(ValueError, match="copies=machines") as error:
        train_step(mse, sgd(0.1), over=group)(state, (torch.ones(4, 2), torch.zeros(4, 4)))
    with pytest.raises(ValueError, match="are in other groups"):
        shard(ranks, linear(2, 2), copies=ranks)
    return str(error.value)


def test_a_step_over_all_wants_copies() -> None:
    assert together(4, over_another_group)[0].startswith("the step is over the 4 processes")


# --- The memory of an optimizer alone ----------------------------------------------------------------------------------


def whole() -> Model:
    """A model without `shard`, with rows that no number of processes divides."""
    return compose(linear(3, 7), Scaled(torch.full((), 0.25)), Dropout(0.3), batch_norm(7), ReLU(), linear(7, 1), linear(1, 4))


def around(group: Group) -> dict[str, AnyTransform]:
    clip, rate = clip_by_global_norm(0.05), momentum(0.1)
    return {
        "adam": shard_moments(group, chain(clip_by_global_norm(1e-4), adam(1e-2, epsilon=1e-3))),
        "clipped around": chain(clip, shard_moments(group, rate)),
        "scaled inside": shard_moments(group, dynamic_loss_scale(chain(clip, rate))),
        "scaled around": dynamic_loss_scale(shard_moments(group, chain(clip, rate))),
        "skipping": skip_nonfinite(shard_moments(group, accumulate(chain(clip, rate), 2))),
        "accumulated": shard_moments(group, skip_nonfinite(accumulate(chain(clip, rate), 2))),
        "lengths": shard_moments(group, lamb(0.1, epsilon=1e-3, weight_decay=0.1)),
        "matrices": shard_moments(
            group, partition({"matrices": muon(0.1), "rest": adam(0.1, epsilon=1e-3)}, where={"matrices": is_matrix})
        ),
        "searching": sam(shard_moments(group, adam(1e-2, epsilon=1e-3))),
    }


def with_moments_divided(group: Group, name: str, donate: bool, compile_it: bool) -> tuple[Model, int]:
    """The model after some steps, and the bytes of the optimizer's state."""
    model, optimizer = initialize(key(0), whole(), dtype=DOUBLE), around(group)[name]
    state = train_state(key(1), model, optimizer)
    step = train_step(cross_entropy, optimizer, over=group, donate=donate)
    x, target = data("layers")
    if compile_it:
        step, x, target = jit(step, donate="state"), x[:12], target[:12]
    for epoch in range(2):
        for batch in minibatches(key(epoch), (x, target), 6 if compile_it else 7, part=group):
            state, _ = step(state, batch)
    return finish(step, state).model, tree.nbytes(state.optimizer)


@pytest.mark.parametrize("name", around(ALONE))
def test_moments_divided_give_the_numbers_of_one_process(name: str) -> None:
    alone, nbytes = with_moments_divided(ALONE, name, False, False)
    for donate in False, True:
        two = together(2, with_moments_divided, name, donate, False)
        for model, its_nbytes in two:
            assert difference(model, alone) < 1e-12
            assert tree.equal(model, two[0][0])
            assert its_nbytes < 0.75 * nbytes


def where_steps_write(group: Group, name: str) -> list[list[int]]:
    """Where the parameters are after each of some steps, the first of which is given a model that somebody holds."""
    model, optimizer = initialize(key(0), whole()), around(group)[name]
    state = train_state(key(1), model, optimizer)
    step, batch = train_step(cross_entropy, optimizer, over=group, donate=True), (torch.ones(4, 3), torch.zeros(4).long())
    found: list[list[int]] = []
    for _ in range(3):
        state, _ = step(state, batch)
        found.append([leaf.data_ptr() for leaf in tree.trainable_leaves(state.model)])
    return found


@pytest.mark.parametrize("name", ["adam", "clipped around"])
def test_steps_with_moments_divided_write_over_what_the_first_made(name: str) -> None:
    for size in (1, 2):
        for first, second, third in together(size, where_steps_write, name):
            assert first == second == third


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "scaled around"])
def test_compiled_steps_divide_moments(name: str) -> None:
    alone, _ = with_moments_divided(ALONE, name, False, True)
    for model, _ in together(2, with_moments_divided, name, False, True):
        assert difference(model, alone) < 1e-12


def kept(group: Group) -> list[str]:
    """What the tensors of a state are parts of."""
    state = shard_moments(group, adam(1e-2)).init(initialize(key(0), linear(3, 7))).inner
    average = chain(sgd(0.1), ema(0.9))
    params = torch.zeros(7)
    with pytest.raises(ValueError, match="write what averages around"):
        averaged(shard_moments(group, average).init(params), params)
    return [
        f"{leaf.shape[0]} of {split.whole}" for leaf, split in zip(tree.leaves(state), state.splits(), strict=True) if split
    ]


def test_a_state_says_what_its_tensors_are_parts_of() -> None:
    assert together(2, kept) == [["4 of 7"] * 4] * 2


# --- What cannot be ----------------------------------------------------------------------------------------------------

FOUR: Final = Group("four", 4, 1)


@attrs.frozen
class Whitened(Transform[tuple[()]]):
    """A user's optimizer that looks at whole matrices."""

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> tuple[()]:
        return ()

    @override
    def change(self, grads: Tensors, state: tuple[()], params: Tensors) -> tuple[Tensors, tuple[()]]:
        return tuple(grad / (1 + grad.norm()) for grad in grads), state


def test_what_cannot_be_divided_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="write repeat\\(n, shard\\(group, block\\)\\)"):
        shard(FOUR, repeat(3, linear(2, 2)))
    with pytest.raises(ValueError, match="divided already, by the Sharded"):
        shard(FOUR, shard(FOUR, linear(2, 2)))
    with pytest.raises(ValueError, match="there is nothing to shard"):
        shard(FOUR, ReLU())
    with pytest.raises(TypeError, match="a group is what start"):
        shard(linear(2, 2), linear(2, 2))  # type: ignore[arg-type]  # what is wrong
    model = initialize(key(0), shard(FOUR, linear(2, 9)))
    with pytest.raises(TypeError, match="Whitened would look at the rows that one process has"):
        Whitened().init(model)
    with pytest.raises(RuntimeError, match="no group 'four' of 4 processes is up"):
        save(tmp_path / "model.safetensors", model)
    with pytest.raises(RuntimeError, match="no group 'four' of 4 processes is up"):
        load(tmp_path / "model.safetensors", model)
    with pytest.raises(ValueError, match="look at the whole in each"):
        check_finite(model, torch.ones(1, 2), torch.zeros(1, 9), mse)
    with pytest.raises(ValueError, match="are part of no ensemble"):
        ensemble.stack([model, model])
    with pytest.raises(ValueError, match="put the layers together by unshard"):
        tree.map_records(lambda record: tree.map(torch.zeros_like, record) if isinstance(record, Linear) else record, model)


def stepped_alone(group: Group) -> str:
    model = initialize(key(0), shard(group, linear(2, 3)))
    state = train_state(key(1), model, sgd(0.1))
    with pytest.raises(ValueError, match="over=group") as error:
        train_step(mse, sgd(0.1))(state, (torch.ones(4, 2), torch.zeros(4, 3)))
    return str(error.value)


def test_a_step_of_one_process_refuses_what_is_divided() -> None:
    assert together(2, stepped_alone)[0].startswith("the model's parameters are divided among 2 processes")


def moments_of_wide_rows(group: Group) -> list[tuple[int, ...]]:
    wide = torch.empty(3, 2**16, 2**16, device="meta")
    state = shard_moments(group, momentum(0.1)).init((wide, torch.zeros((), device="meta")))
    return [tuple(leaf.shape) for leaf, split in zip(tree.leaves(state), tree.cuts_of(state), strict=True) if split]


def test_rows_of_any_width_have_divided_moments() -> None:
    """What is made of which rows is found on tensors without values, whose sizes must not overflow."""
    assert together(2, moments_of_wide_rows) == [[(2, 2**16, 2**16)]] * 2
