"""Giving a model its parameters: `initialize` goes through a model and draws them all from one key."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fundl import random, tree
from fundl._common.alike import Findings, likeness
from fundl._common.keys import require_key
from fundl._common.modes import no_grad
from fundl._common.suggestions import with_suggestions
from fundl.fan import Fans, fans_of
from fundl.initializers import Dependent, Initializer
from fundl.layer import Model, P
from fundl.model import require_fitting
from fundl.random import Key
from fundl.tree import Divided, Record, describe


@with_suggestions
def initialize(key: Key, model: P, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> P:
    """The model with new parameters, drawn by the initialisers that its layers keep.

    Every layer has a key of its own, by its place: what stands after a layer does not change what it is given. Initialising
    again is the reset: the same key gives the same bits, whatever values the model had. Parameters and buffers that have
    values and no initialiser keep them, moved and cast as asked, and so do all of `frozen` layers; None stays None.

    Args:
        key: what all is drawn from, such as ``key(0)``.
        model: a layer or a nested tuple of layers.
        device: where the parameters go: by default to where they are, and from the meta device to the CPU. On "meta", the
            result has shapes and dtypes only.
        dtype: of the floating-point parameters; by default the one they have.

    Raises:
        TypeError: `model` is not a model or `key` not a key, the dtype is not a floating-point one, or a parameter has
            neither values nor an initialiser.
        ValueError: the model has no layers, or they do not fit together, or there is more than one key.

    >>> from fundl import ReLU, compose, initialize, key, linear
    >>> model = initialize(key(0), compose(linear(2, 3), ReLU(), linear(3, 1)))
    >>> model[0].weight.shape, model[0].weight.device
    (torch.Size([3, 2]), device(type='cpu'))
    """
    require_key(key)
    plan = _plan(model, None if device is None else torch.device(device), dtype)
    with no_grad():
        parts, keys = iter(plan.parts), _keys(key, plan)

        def drawn(record: Record) -> Record:
            part = next(parts)
            return _drawn(part, record, next(keys)) if part.own else record

        new = tree.map_records(drawn, model)
        return _settled(new, plan) if plan.has_dependent else new


# --- What is to be drawn ----------------------------------------------------------------------------------------------


class _Leaf(NamedTuple):
    """A tensor of a record, and what becomes of it.

    Args:
        name: of its field.
        fans: what its initialiser is given; None if it keeps its values.
        shape: that it has.
        dtype: that it is to have.
        device: where it is to go.
    """

    name: str
    fans: Fans | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class _Part(NamedTuple):
    """A record of the model.

    Args:
        place: which record it is, from the first on; what divides its layers among processes is not counted.
        size: how many leaves it has, those of inner records included.
        own: its tensors that are not those of an inner record, by their places among its leaves.
        is_flat: whether its children are its leaves.
        is_dependent: whether some of its new values depend on others.
    """

    place: int
    size: int
    own: Mapping[int, _Leaf]
    is_flat: bool
    is_dependent: bool


class _Plan(NamedTuple):
    """A model, of which all is found to be as it must be.

    Args:
        parts: its records, in the order of `tree.records`.
        places: of those of them that have own leaves.
        most: how many leaves they have, those with more than some left out.
        has_dependent: whether new values of one depend on others.
    """

    parts: Sequence[_Part]
    places: "array[int]"
    most: int
    has_dependent: bool


_PLANS: Final[Findings[_Plan]] = Findings()


def _plan(model: Model, device: torch.device | None, dtype: torch.dtype | None) -> _Plan:
    """What is to be drawn for a model, which is as it must be."""
    like = likeness(model, device, dtype)
    if (known := _PLANS.get(like)) is not None:
        return known
    parts = _parts(model, device, dtype)
    places = array("q", [part.place for part in parts if part.own])
    most = max((part.size for part in parts if part.own and part.size <= _FEW), default=0)
    plan = _Plan(parts, places, most, any(part.is_dependent for part in parts))
    if all(part.is_flat or not part.own for part in parts):  # else it counts which tensors are the same
        _PLANS.keep(like, plan)
    return plan


def _parts(model: Model, device: torch.device | None, dtype: torch.dtype | None) -> list[_Part]:
    require_fitting(model)
    records = tree.records_and_buffers(model)
    named = [_named_leaves(record) for record, _ in records]
    for (record, _), (_, own) in zip(records, named, strict=True):
        _require_initializers(model, record, own)
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"parameters are of a floating-point dtype, such as torch.float32, not {dtype}")
    parts: list[_Part] = []
    counted = 0
    for (record, is_frozen), (size, own) in zip(records, named, strict=True):
        is_kept = is_frozen and not any(leaf.is_meta for _, leaf in own.values())
        leaves = {place: _leaf(record, place, own, device, dtype, is_frozen=is_frozen) for place in own}
        parts.append(_Part(counted, size, leaves, _is_flat(record), isinstance(record, Dependent) and not is_kept))
        counted += record.places if isinstance(record, Divided) else 1
    return parts


_Own: TypeAlias = Mapping[int, tuple[str, Tensor]]
"""The tensors of a record that are not those of an inner record: their places among its leaves, their fields' names."""


def _named_leaves(record: Record) -> tuple[int, _Own]:
    """How many leaves a record has, and its own."""
    fields = [(name, getattr(record, name)) for name in record.children]
    if _is_flat(record):
        return len(fields), {place: (name, leaf) for place, (name, leaf) in enumerate(fields) if leaf is not None}
    inner = {id(leaf) for _, field in fields for part in tree.outer_records(field) for leaf in tree.leaves(part)}
    named = [(name, leaf) for name, field in fields for leaf in tree.flatten(field)[0]]
    own = {place: (name, leaf) for place, (name, leaf) in enumerate(named) if leaf is not None and id(leaf) not in inner}
    return len(named), own


def _is_flat(record: Record) -> bool:
    """Whether the children of a record are its leaves, as those of most."""
    return all(child is None or isinstance(child, Tensor) for child in tree.children(record))


def _leaf(
    record: Record, place: int, own: _Own, device: torch.device | None, dtype: torch.dtype | None, *, is_frozen: bool
) -> _Leaf:
    """What becomes of a record's own leaf."""
    name, leaf = own[place]
    to_device = device or (torch.device("cpu") if leaf.is_meta else leaf.device)
    to_dtype = dtype if dtype is not None and leaf.is_floating_point() else leaf.dtype
    is_drawn = _initializer(record, name) is not None and to_device.type != "meta" and (leaf.is_meta or not is_frozen)
    fans = fans_of(record, name, leaf, [other for _, other in own.values()]) if is_drawn else None
    return _Leaf(name, fans, tuple(leaf.shape), to_dtype, to_device)


def _initializer(record: Record, name: str) -> Initializer | None:
    initializer: object = getattr(record, f"{name}_init", None)
    if initializer is None or isinstance(initializer, Initializer):
        return initializer
    raise TypeError(
        f"{type(record).__name__}.{name}_init must be an initialiser, such as kaiming_uniform() with its parentheses,"
        f" not {initializer!r}"
    )


def _require_initializers(model: Model, record: Record, own: _Own) -> None:
    """Raise unless every parameter of a record has values or a way to get some."""
    for name, leaf in own.values():
        if _initializer(record, name) is None and leaf.is_meta:
            places = zip(tree.paths(model), tree.flatten(model)[0], strict=True)
            path = next((f"model{path}" for path, other in places if other is leaf), name)  # none of what is stacked
            raise TypeError(f"{path} has no values, and {_how_to_draw(record, name)}")


def _how_to_draw(record: Record, name: str) -> str:
    """What to say of a field that has neither values nor an initialiser."""
    layer = type(record).__name__
    if name in record.trainable:
        return (
            f"{layer} does not say how to draw them: give {layer} the field `{name}_init: Initializer = zeros()`, or another"
            " initialiser"
        )
    return f"as a buffer it gets none here: make {layer} of what has values, as those that were trained or loaded"


# --- Drawing it -------------------------------------------------------------------------------------------------------

_FEW: Final = 8  # leaves, as almost all records have


def _keys(key: Key, plan: _Plan) -> Iterator[Sequence[Key]]:
    """The keys of each record that has own leaves: split from its own key, which is split from that of the model."""
    keys = random.split_twice(key, plan.places, plan.most)  # a few too many, in one call
    for turn, part in enumerate([part for part in plan.parts if part.own]):
        if part.size > plan.most:
            yield random.split(random.split(key, part.place + 1)[part.place], part.size).unbind()
        else:
            yield keys[turn * plan.most : (turn + 1) * plan.most]


def _drawn(part: _Part, record: Record, keys: Sequence[Key]) -> Record:
    """The record with new values in its own leaves; inner records wait until it is their turn."""
    if part.is_flat:
        children = tree.children(record)
        for place, leaf in part.own.items():
            children[place] = _new(leaf, record, children[place], keys[place])
        return tree.with_children(record, children)
    leaves, structure = tree.flatten(record)
    for place, leaf in part.own.items():
        leaves[place] = _new(leaf, record, leaves[place], keys[place])
    return tree.unflatten(structure, leaves)


def _new(leaf: _Leaf, record: Record, old: object, key: Key) -> Tensor:
    """What the initialiser draws, after a check that it is what it was asked for: it may be the user's own."""
    name, fans, shape, dtype, device = leaf
    initializer = None if fans is None else _initializer(record, name)
    if fans is None or initializer is None:
        assert isinstance(old, Tensor)  # it is the leaf
        return old.to(device, dtype)
    try:
        new = initializer(key if key.device == device else key.to(device), shape, fans, dtype=dtype, device=device)
        if new.shape != shape or new.dtype != dtype or (new.device != device and new.device.type != device.type):
            asked = describe(torch.empty(shape, dtype=dtype, device="meta"))
            raise TypeError(f"{initializer!r} was asked for {asked} on {device}, but made {describe(new)} on {new.device}")
    except Exception as error:
        error.add_note(f"in initialize: {name} of {describe(record)}")
        raise
    return new


def _settled(model: P, plan: _Plan) -> P:
    """The model, in which what depends on a layer's new values is computed from them."""
    parts = iter(plan.parts)

    def settled(record: Record) -> Record:
        is_dependent = next(parts).is_dependent
        return record.with_dependent() if is_dependent and isinstance(record, Dependent) else record

    return tree.map_records(settled, model)
