"""State made under other hyper-parameters, and of other optimizers: one rule, and one function however it is called.

Each hyper-parameter of each sample optimizer is changed in turn. They are found by the fields of the records: a new one that no
rule here knows how to change fails the test.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import attrs
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fundl import (
    State,
    Transform,
    accumulate,
    adagrad,
    adam,
    adamw,
    apply_updates,
    dynamic_loss_scale,
    is_matrix,
    linear_schedule,
    rmsprop,
    sgd,
    tree,
)
from fundl.optim.adjustable import Adjustable
from fundl.optim.chain import AnyTransform
from fundl.optim.flat import StateError
from fundl.tree import Record
from tests.optimizer_memory import Memory, formula
from tests.optimizer_samples import OPTIMIZERS, begin

Params = dict[str, Tensor]
AnyState = State[Params, object]


def params_of(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (2, 3), "bias": (3,)}
    return {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}


# --- Changing a hyper-parameter -------------------------------------------------------------------------------------------


@attrs.frozen
class Change:
    """A hyper-parameter of a part of an optimizer, and the optimizer in which it is another."""

    record: str
    field: str
    changed: AnyTransform


def changes(transform: AnyTransform) -> Iterator[Change]:
    """The optimizers that differ in one hyper-parameter, but for what `adjustable` has in the state from `init` on."""
    if isinstance(transform, Adjustable):
        return
    for name, value in values_of(transform).items():
        parts: tuple[object, ...] = value if isinstance(value, tuple) else (value,)
        if all(isinstance(part, Transform) for part in parts):
            for place, part in enumerate(parts):
                assert isinstance(part, Transform)
                for inner in changes(part):
                    new = (*parts[:place], inner.changed, *parts[place + 1 :])
                    try:
                        outer = changed(transform, name, new if isinstance(value, tuple) else new[0])
                    except ValueError:
                        continue  # what follows a schedule is there
                    yield attrs.evolve(inner, changed=outer)
            continue
        for other in others(name, value):
            try:
                yield Change(type(transform).__name__, name, changed(transform, name, other))
            except ValueError:
                continue  # no such optimizer: nesterov without momentum


def values_of(transform: AnyTransform) -> dict[str, object]:
    """The hyper-parameters by name."""
    cls = type(transform)
    assert attrs.has(cls)
    return {field.name: getattr(transform, field.name) for field in attrs.fields(cls) if field.init}


def changed(transform: AnyTransform, name: str, value: object) -> AnyTransform:
    """The transform with another value of a hyper-parameter."""
    make: Callable[..., AnyTransform] = type(transform)  # type: ignore[explicit-any]  # of any of their classes
    return make(**{**values_of(transform), name: value})


OTHERS: Final[Mapping[str, Sequence[object]]] = {
    "labels": (),  # only names
    "chosen": (),  # settled in `init`
    "decoupled": (),  # tells Adam from AdamW, whose states are alike
    "rate": (0.05, linear_schedule(0.2, 0.0, steps=5)),
    "where": (None, is_matrix),
    "initial": (1.0, 4.0),
    "dtype": (),  # of products on the way
    "growth": (1.0, 4.0),
    "schedules": ((("weight_decay", linear_schedule(0.0, 0.5, steps=3)),), ()),
    "words": (),  # of a key, which is settled in `init`
    "weight": (),  # of one gradient, given for one step by `weighed`
    "decay": (0.25, 0.75),  # at 0, what centered RMSprop divides by is rounding alone
}
"""Other values of hyper-parameters, where numbers as of others would not do."""


def others(name: str, value: object) -> Sequence[object]:
    """Other values of a hyper-parameter: smaller ones and greater ones, and those that turn something on or off."""
    if name in OTHERS:
        return OTHERS[name]
    match value:
        case None:  # no limit
            return (1, 3)
        case bool():
            return (not value,)
        case int():
            return (1, value + 1)
        case float():
            return (0.0, 0.25, 0.75 * value)
        case _:
            raise NotImplementedError(f"write in OTHERS what values {name}={value!r} can have")


@attrs.frozen
class Pair:
    """Who makes a state, and who goes on with it."""

    id: str
    made_by: AnyTransform
    continued_by: AnyTransform
    change: Change
    is_quick: bool


def pairs() -> Iterator[Pair]:
    """Each change of each sample, forth and back; quick are those of which nothing alike came before."""
    seen: set[tuple[str, str, bool, str]] = set()
    for name, optimizer in OPTIMIZERS.items():
        for number, change in enumerate(changes(optimizer)):
            for forth in (True, False):
                pair = (optimizer, change.changed) if forth else (change.changed, optimizer)
                kind = (change.record, change.field, forth, name.partition(":")[0] if "adam" in name else "")
                identity = f"{name}-{change.record}.{change.field}-{number}-{'forth' if forth else 'back'}"
                yield Pair(identity, *pair, change, is_quick=kind not in seen)
                seen.add(kind)


PAIRS: Final = [
    pytest.param(pair.made_by, pair.continued_by, pair.change, id=pair.id, marks=[] if pair.is_quick else [pytest.mark.slow])
    for pair in pairs()
]

REFUSED: Final = {
    ("_ScaleByAdam", "amsgrad"),
    ("_ScaleByRMS", "centered"),
    ("_ScaleByRMS", "debias"),
    ("_Trace", "momentum"),
    ("_Trace", "dampening"),
    ("ScaleByLearningRate", "rate"),
    ("SkipNonfinite", "limit"),
}
"""What a state may lack because it was made under another value of a hyper-parameter."""


def after_two_steps(optimizer: AnyTransform) -> tuple[Params, AnyState, Memory]:
    params, grads = params_of(0), [params_of(1), params_of(2)]
    state, memory = optimizer.init(params), begin(optimizer, tree.trainable_leaves(params), tree.trainable_paths(params))
    for grad in grads:
        formula(optimizer, tree.trainable_leaves(grad), memory, tree.trainable_leaves(params))
        params, state = optimizer.step(grad, state, params)
    return params, state, memory


def refuses(optimizer: AnyTransform, state: AnyState) -> bool:
    """Whether a state lacks what an optimizer needs."""
    try:
        optimizer.step(params_of(1), state, params_of(0))
    except StateError:
        return True
    return False


def assert_close(actual: object, expected: object, tolerance: float) -> None:
    for one, other in zip(tree.leaves(actual), tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def traced_step(optimizer: AnyTransform, grads: Params, state: AnyState, params: Params) -> tuple[Params, AnyState]:
    """A step as a compiler sees it."""
    leaves, structure = tree.flatten((grads, state, params))
    results: list[object] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        filling = iter(tensors)
        given = tree.unflatten(structure, [None if leaf is None else next(filling) for leaf in leaves])
        stepped = optimizer.step(*given)
        results.append(tree.flatten(stepped)[1])
        return tree.leaves(stepped)

    tensors = [leaf for leaf in leaves if leaf is not None]
    run: Callable[..., list[Tensor]] = make_fx(flat, tracing_mode="fake")(*tensors)  # type: ignore[explicit-any]
    filling = iter(run(*tensors))
    stepped, structure_after = optimizer.step(grads, state, params), results[0]
    leaves_after, expected_structure = tree.flatten(stepped)
    assert structure_after == expected_structure
    return tree.unflatten(expected_structure, [None if leaf is None else next(filling) for leaf in leaves_after])


@pytest.mark.parametrize(("made_by", "continued_by", "change"), PAIRS)
def test_what_is_in_the_record_is_the_records(made_by: AnyTransform, continued_by: AnyTransform, change: Change) -> None:
    params, state, memory = after_two_steps(made_by)
    for seed in (3, 4, 5):
        grads = params_of(seed)
        updates = formula(continued_by, tree.trainable_leaves(grads), memory, tree.trainable_leaves(params))
        if refuses(continued_by, state):
            assert (change.record, change.field) in REFUSED
            for call in (continued_by.step, continued_by.update, functools.partial(traced_step, continued_by)):
                with pytest.raises(ValueError, match=f"{change.field}.* made under other hyper-parameters"):
                    call(grads, state, params)
            return
        stepped, after = continued_by.step(grads, state, params)
        by_update, after_update = continued_by.update(grads, state, params)
        assert_close(tree.trainable_leaves(by_update), updates, 1e-12)
        assert_close(apply_updates(params, by_update), stepped, 1e-14)
        assert_close(after_update, after, 1e-14)
        if seed == 3:
            assert_close(traced_step(continued_by, grads, state, params), (stepped, after), 1e-14)
        assert tree.flatten(after)[1] == tree.flatten(state)[1]
        params, state = stepped, after


def test_each_kind_of_refusal_is_seen() -> None:
    refused = {
        (pair.change.record, pair.change.field)
        for pair in pairs()
        if refuses(pair.continued_by, pair.made_by.init(params_of(0)))
    }
    assert refused == REFUSED


@pytest.mark.parametrize(
    ("made_by", "continued_by", "message"),
    [
        (sgd(0.1), sgd(0.1, momentum=0.9), r"^momentum=0\.9 needs a trace of the gradients, which the state has not"),
        (sgd(0.1, momentum=0.9), sgd(0.1, momentum=0.9, dampening=0.5), r"^dampening=0\.5 needs a count of steps"),
        (adam(0.1), adam(0.1, amsgrad=True), "^amsgrad=True needs a greatest second moment"),
        (rmsprop(0.1), rmsprop(0.1, centered=True), "^centered=True needs a mean of the gradients"),
        (adam(0.1), adam(linear_schedule(0.1, 0.0, 3)), "^a learning rate that is a schedule .* needs a count of steps"),
        (adagrad(0.1), adagrad(0.1, rate_decay=0.5), r"^a learning rate that .*\(or has a rate_decay\) needs a count of steps"),
    ],
)
def test_a_state_that_lacks_something_is_refused(made_by: AnyTransform, continued_by: AnyTransform, message: str) -> None:
    outer: Sequence[Callable[[AnyTransform], AnyTransform]] = [
        lambda transform: transform,
        lambda transform: accumulate(transform, 1),
        dynamic_loss_scale,
    ]
    for wrapped in outer:
        state = wrapped(made_by).init(params_of(0))
        for call in (wrapped(continued_by).step, wrapped(continued_by).update):
            with pytest.raises(ValueError, match=message):
                call(params_of(1), state, params_of(0))


def test_weights_decay_as_the_record_has_it_also_if_they_did_not_before() -> None:
    params, grads = {"w": torch.tensor([2.0])}, {"w": torch.tensor([0.0])}
    made_by: AnyTransform = adamw(0.1, weight_decay=0.0)
    decaying: AnyTransform = adamw(0.1, weight_decay=0.5)
    state = made_by.init(params)
    updates, _ = decaying.update(grads, state, params)
    for moved in (
        decaying.step(grads, state, params)[0],
        apply_updates(params, updates),
        traced_step(decaying, grads, state, params)[0],
    ):
        assert moved["w"].item() == pytest.approx(1.9)


def test_fewer_micro_batches_are_enough_at_once() -> None:
    many, few = accumulate(sgd(1.0), 4), accumulate(sgd(1.0), 2)
    params = torch.zeros(1)
    state = many.init(params)
    for grad in (3.0, 1.0, 5.0):
        params, state = many.step(torch.tensor([grad]), state, params)
    assert few.step(torch.tensor([3.0]), state, params)[0].tolist() == [-3.0]


# --- The states of others -------------------------------------------------------------------------------------------------


def kinds(state: object) -> object:
    """Of what records a state is made."""
    if isinstance(state, Record):
        inner = [kinds(getattr(state, name)) for name in state.children if name == "inner"]
        return type(state).__name__, *inner
    if isinstance(state, tuple):
        return [kinds(part) for part in state]
    return None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_another_optimizer_is_refused(name: str) -> None:
    optimizer, params, grads = OPTIMIZERS[name], params_of(0), params_of(1)
    own = kinds(optimizer.init(params))
    for other in OPTIMIZERS.values():
        state = other.init(params)
        if kinds(state) == own:
            continue
        for call in (optimizer.step, optimizer.update):
            # What begins as the own state does may lack something first.
            with pytest.raises((ValueError, TypeError), match=r"state is of another transform|under other hyper-param"):
                call(grads, state, params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_params_of_another_dtype_is_refused(name: str) -> None:
    optimizer, params, grads = OPTIMIZERS[name], params_of(0), params_of(1)
    narrow = optimizer.init(tree.cast_to(params, torch.float32))
    if [leaf.dtype for leaf in tree.leaves(narrow)] == [leaf.dtype for leaf in tree.leaves(optimizer.init(params))]:
        optimizer.step(grads, narrow, params)
        return
    for call in (optimizer.step, optimizer.update):
        with pytest.raises(ValueError, match=r"the state is of other params: its leaf at .* is float32"):
            call(grads, narrow, params)


def test_every_pair_of_optimizers_is_tried() -> None:
    states = [kinds(optimizer.init(params_of(0))) for optimizer in OPTIMIZERS.values()]
    assert sum(one != other for one, other in itertools.permutations(states, 2)) > 800
