"""Other optimizers for other parts of a model: which leaf is in which part, and that each part is moved as by itself."""

from typing import Any, NamedTuple, TypeAlias

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import (
    Linear,
    ReLU,
    Tensors,
    Transform,
    accumulate,
    adam,
    adamw,
    adjustable,
    chain,
    clip_by_global_norm,
    cosine_schedule,
    dynamic_loss_scale,
    hyperparameters,
    initialize,
    is_matrix,
    key,
    linear,
    momentum,
    mse,
    partition,
    random,
    scale,
    sgd,
    train_state,
    train_step,
    tree,
    value_and_grad,
    with_hyperparameters,
)
from fundl.optim.chain import AnyTransform
from fundl.training.step import Step


class Network(NamedTuple):
    body: Linear[int, int]
    between: ReLU
    head: Linear[int, int]
    header: Linear[int, int]


TypedStep: TypeAlias = Step[Network, Any, Tensor, Tensor, Tensor]  # type: ignore[explicit-any]  # of any optimizer

BATCH = random.normal(key(0), (6, 3)), random.normal(key(1), (6, 2))


def network() -> Network:
    return initialize(key(2), Network(linear(3, 4), ReLU(), linear(4, 5), linear(5, 2)))


@pytest.mark.parametrize("donate", [False, True])
def test_each_part_is_moved_as_by_itself(*, donate: bool) -> None:
    of_head = chain(clip_by_global_norm(0.05), adamw(cosine_schedule(0.1, 10)))
    optimizer = partition({"head": of_head, "rest": momentum(0.1)}, where={"head": ".head"})
    step: TypedStep = train_step(mse, optimizer, donate=donate)
    state = train_state(key(3), network(), optimizer)

    model = network()
    head, rest = of_head.init(model.head), momentum(0.1).init((model.body, model.header))
    for _ in range(4):
        state, _ = step(state, BATCH)
        _, grads = value_and_grad(mse, model, *BATCH)
        moved, head = of_head.step(grads.head, head, model.head)
        (body, header), rest = momentum(0.1).step((grads.body, grads.header), rest, (model.body, model.header))
        model = Network(body, ReLU(), moved, header)
    assert tree.equal(state.model, model)


def test_a_state_that_nobody_else_holds_is_written_over() -> None:
    optimizer = partition({"head": adam(0.1), "rest": momentum(0.1)}, where={"head": ".head"})
    step: TypedStep = train_step(mse, optimizer, donate=True)
    state = tree.map(torch.clone, train_state(key(3), network(), optimizer))
    before = [leaf.data_ptr() for leaf in tree.leaves((state.model, state.optimizer))]
    for _ in range(2):
        state, _ = step(state, BATCH)
    assert [leaf.data_ptr() for leaf in tree.leaves((state.model, state.optimizer))] == before
    assert not partition({"one": Halved(), "rest": sgd(0.1)}, where={"one": ".head"}).writes_over


@attrs.frozen
class Halved(Transform[tuple[()]]):
    """A user's transform that writes over nothing."""

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> tuple[()]:
        return ()

    @override
    def change(self, grads: Tensors, state: tuple[()], params: Tensors) -> tuple[Tensors, tuple[()]]:
        return tuple(-grad / 2 for grad in grads), state


def test_a_part_may_stay_as_it_is() -> None:
    optimizer = partition({"frozen": scale(0.0), "rest": sgd(0.1)}, where={"frozen": ".body"})
    step: TypedStep = train_step(mse, optimizer)
    state = train_state(key(3), network(), optimizer)
    after, _ = step(state, BATCH)
    assert tree.equal(after.model.body, state.model.body)
    assert not tree.equal(after.model.head, state.model.head)


def test_it_goes_inside_what_gathers_and_scales() -> None:
    parts: dict[str, AnyTransform] = {"head": adam(0.1), "rest": sgd(0.1)}
    optimizers: list[AnyTransform] = [
        dynamic_loss_scale(accumulate(partition(parts, where={"head": ".head"}), 2), initial=8.0),
        dynamic_loss_scale(
            partition({name: accumulate(part, 2) for name, part in parts.items()}, where={"head": ".head"}), initial=8.0
        ),
    ]
    found: list[Network] = []
    for optimizer in optimizers:
        step: TypedStep = train_step(mse, optimizer)
        state = train_state(key(3), network(), optimizer)
        for rows in (2, 4, 3, 3):
            state, _ = step(state, (BATCH[0][:rows], BATCH[1][:rows]))
        found.append(state.model)
    assert tree.equal(*found)


def test_its_numbers_have_the_names_of_the_parts() -> None:
    optimizer = adjustable(partition({"head": momentum(0.1), "rest": sgd(0.2)}, where={"head": ".head"}))
    state = optimizer.init(network())
    assert list(hyperparameters(state)) == [
        "head.weight_decay",
        "head.momentum",
        "head.rate",
        "rest.weight_decay",
        "rest.rate",
    ]
    state = with_hyperparameters(state, {"rest.rate": 0.0})
    model = network()
    moved, _ = optimizer.step(model, state, model)
    assert tree.equal(moved.body, model.body)
    assert not tree.equal(moved.head, model.head)


def test_each_leaf_is_in_exactly_one_part() -> None:
    parts = {"a": sgd(0.1), "b": sgd(0.2)}
    model = network()
    with pytest.raises(ValueError, match=r"^each leaf is in one part, but \.head\.weight is in 'a' and 'b'$"):
        partition(parts, where={"a": is_matrix, "b": lambda path, _: path in {".head.weight", ".body.bias"}}).init(model)
    with pytest.raises(ValueError, match=r"in none of a, b is \.body\.bias, \.head\.bias, \.header\.weight, \.header\.bias: a"):
        partition(parts, where={"a": ".body.weight", "b": ".head.weight"}).init(model)
    with pytest.raises(ValueError, match=r"there is no leaf at \.tail, where the part 'b' has its leaves: .*\.body\.weight"):
        partition(parts, where={"b": ".tail"}).init(model)
    state = partition(parts, where={"a": ".head"}).init(model)
    assert state.inner.part == (1, 1, 0, 0, 1, 1)  # .header is not .head
    nobody = partition(parts, where={"a": lambda _path, _leaf: False}).init(model)
    assert nobody.inner.part == (1,) * 6


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="a partition has two parts or more, not a"):
        partition({"a": sgd(0.1)}, where={})
    with pytest.raises(ValueError, match="where names the part 'c', but the transforms are of a, b"):
        partition({"a": sgd(0.1), "b": sgd(0.1)}, where={"c": ".head"})
    with pytest.raises(ValueError, match="where leaves out a, b, but only one part can have the rest"):
        partition({"a": sgd(0.1), "b": sgd(0.1)}, where={})
    with pytest.raises(ValueError, match=r"the part 'a', is the outermost .* write dynamic_loss_scale\(partition"):
        partition({"a": dynamic_loss_scale(sgd(0.1)), "b": sgd(0.1)}, where={"a": ".head"})
    with pytest.raises(TypeError, match="an optimizer is what adam"):
        partition({"a": sgd, "b": sgd(0.1)}, where={"a": ".head"})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"where\['a'\] is a path, such as '.head', or a function .* not 3"):
        partition({"a": sgd(0.1), "b": sgd(0.1)}, where={"a": 3})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="partition takes transforms and where by the names of the parts"):
        partition([sgd(0.1), sgd(0.1)], where={})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="partition takes transforms and where by the names of the parts"):
        partition({"a": sgd(0.1), "b": sgd(0.1)}, where=is_matrix)  # type: ignore[arg-type]


def test_a_state_of_other_parts_is_refused() -> None:
    one = partition({"a": adam(0.1), "b": sgd(0.2)}, where={"a": ".head"})
    other = partition({"a": sgd(0.1), "b": adam(0.2)}, where={"a": ".head"})
    model = network()
    with pytest.raises(ValueError, match="the state is of another transform or of other params"):
        one.step(model, other.init(model), model)
