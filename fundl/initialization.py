"""Giving a model its parameters: `initialize` goes through a model and draws them all from one key."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fundl import random, tree
from fundl._common.checks import require_model
from fundl._common.modes import no_grad
from fundl._common.suggestions import with_suggestions
from fundl.fan import Fans, fans_of
from fundl.initializers import Dependent, Initializer
from fundl.layer import Model, P
from fundl.model import output_shape
from fundl.random import Key
from fundl.tree import Record, describe

_CPU: Final = torch.device("cpu")
_FEW: Final = 8  # leaves, of almost all records


class _Leaf(NamedTuple):
    """A tensor of a record: the name of its field, and how to draw it, if the record says so."""

    name: str
    tensor: Tensor
    initializer: Initializer | None


class _Part(NamedTuple):
    """A record of the model, and what is to be drawn for it.

    Args:
        record: as it is in the model.
        is_frozen: whether it keeps the values that it has.
        size: how many leaves it has, those of inner records included.
        own: its tensors that are not those of an inner record, by their places among its leaves.
        is_flat: whether its children are its leaves.
    """

    record: Record
    is_frozen: bool
    size: int
    own: Mapping[int, _Leaf]
    is_flat: bool

    @property
    def is_kept(self) -> bool:
        """Whether it keeps all of its values."""
        return self.is_frozen and not any(leaf.tensor.is_meta for leaf in self.own.values())


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
    random.require_key(key)
    require_model(model)
    output_shape(model)  # raises, if layers do not fit together
    parts = [_part(record, is_frozen=in_buffer) for record, in_buffer in tree.records_and_buffers(model)]
    _require_initializers(model, parts)
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"parameters are of a floating-point dtype, such as torch.float32, not {dtype}")
    target = None if device is None else torch.device(device)
    with no_grad():
        turns = zip(parts, _keys(key, parts), strict=True)

        def drawn(record: Record) -> Record:
            part, keys = next(turns)
            return _with_values(part, record, _new_leaves(part, keys, target, dtype)) if part.own else record

        return _settled(tree.map_records(drawn, model), parts)


def _settled(model: P, parts: Sequence[_Part]) -> P:
    """The model, in which what depends on a layer's new values is computed from them."""
    if not any(isinstance(part.record, Dependent) for part in parts):
        return model
    turns = iter(parts)

    def settled(record: Record) -> Record:
        is_new = not next(turns).is_kept
        return record.with_dependent() if is_new and isinstance(record, Dependent) else record

    return tree.map_records(settled, model)


def _keys(key: Key, parts: Sequence[_Part]) -> list[Sequence[Key]]:
    """The keys of each record's leaves: split from its own key, which is split from that of the model."""
    own = random.split(key, len(parts))
    most = max((part.size for part in parts if part.own and part.size <= _FEW), default=0)
    rows = random.split_each(own, most).reshape(-1, 2).unbind()  # few of one call are quicker than just enough of many
    return [
        random.split(own[place], part.size).unbind() if part.own and part.size > most else rows[place * most :]
        for place, part in enumerate(parts)
    ]


def _new_leaves(part: _Part, keys: Sequence[Key], device: torch.device | None, dtype: torch.dtype | None) -> dict[int, Tensor]:
    """New values for a record's own leaves, by their places; but for those to keep, which go where they are to go."""
    record, new = part.record, dict[int, Tensor]()
    tensors = [leaf.tensor for leaf in part.own.values()]
    for place, (name, old, initializer) in part.own.items():
        is_meta = old.is_meta
        to_device = device or (_CPU if is_meta else old.device)
        to_dtype = old.dtype if dtype is None or not old.is_floating_point() else dtype
        if initializer is None or to_device.type == "meta" or (part.is_frozen and not is_meta):
            new[place] = old.to(to_device, to_dtype)
            continue
        try:
            fans = fans_of(record, name, old, tensors)
            new[place] = _new_leaf(initializer, keys[place], old.shape, fans, dtype=to_dtype, device=to_device)
        except Exception as error:
            error.add_note(f"in initialize: {name} of {describe(record)}")
            raise
    return new


def _with_values(part: _Part, record: Record, new: Mapping[int, Tensor]) -> Record:
    """The record with other leaves; inner records wait until it is their turn."""
    if part.is_flat:
        return tree.renewed(record, {part.own[place].name: leaf for place, leaf in new.items()})
    leaves, structure = tree.flatten(record)
    for place, leaf in new.items():
        leaves[place] = leaf
    return tree.unflatten(structure, leaves)


def _new_leaf(
    initializer: Initializer, key: Key, shape: torch.Size, fans: Fans, *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What the initialiser draws, after a check that it is what it was asked for: it may be the user's own."""
    new = initializer(key.to(device), tuple(shape), fans, dtype=dtype, device=device)
    if new.shape != shape or new.dtype != dtype or new.device.type != device.type:
        asked = describe(torch.empty(shape, dtype=dtype, device="meta"))
        raise TypeError(f"{initializer!r} was asked for {asked} on {device}, but made {describe(new)} on {new.device}")
    return new


def _part(record: Record, *, is_frozen: bool) -> _Part:
    fields = [(name, getattr(record, name)) for name in record.children]
    is_flat = all(field is None or isinstance(field, Tensor) for _, field in fields)  # as most are
    if is_flat:
        leaves, inner = fields, set[int]()
    else:
        leaves = [(name, leaf) for name, field in fields for leaf in tree.flatten(field)[0]]
        inner = {id(leaf) for _, field in fields for part in tree.outer_records(field) for leaf in tree.leaves(part)}
    own = {
        place: _Leaf(name, leaf, _initializer(record, name))
        for place, (name, leaf) in enumerate(leaves)
        if leaf is not None and id(leaf) not in inner
    }
    return _Part(record, is_frozen, len(leaves), own, is_flat)


def _initializer(record: Record, name: str) -> Initializer | None:
    initializer: object = getattr(record, f"{name}_init", None)
    if initializer is None or isinstance(initializer, Initializer):
        return initializer
    raise TypeError(
        f"{type(record).__name__}.{name}_init must be an initialiser, such as kaiming_uniform() with its parentheses,"
        f" not {initializer!r}"
    )


def _require_initializers(model: Model, parts: Sequence[_Part]) -> None:
    """Raise unless every parameter has values or a way to get some."""
    for part in parts:
        for name, leaf, initializer in part.own.values():
            if initializer is None and leaf.is_meta:
                places = zip(tree.paths(model), tree.flatten(model)[0], strict=True)
                path = next((f"model{path}" for path, other in places if other is leaf), name)  # none of what is stacked
                raise TypeError(f"{path} has no values, and {_how_to_draw(part.record, name)}")


def _how_to_draw(record: Record, name: str) -> str:
    """What to say of a field that has neither values nor an initialiser."""
    layer = type(record).__name__
    if name in record.trainable:
        return (
            f"{layer} does not say how to draw them: give {layer} the field `{name}_init: Initializer = zeros()`, or another"
            " initialiser"
        )
    return f"as a buffer it gets none here: make {layer} of what has values, as those that were trained or loaded"
