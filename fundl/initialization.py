"""Giving a model its parameters: `initialize` goes through a model and draws them all from one key."""

from collections.abc import Sequence
from typing import TypeAlias

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

_Own: TypeAlias = dict[int, tuple[str, Tensor]]
"""The tensors of a record that are not those of an inner record: their places in `tree.flatten`, their fields' names."""


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
    own = [_own_leaves(record) for record in tree.records(model)]
    _require_initializers(model, own)
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"parameters are of a floating-point dtype, such as torch.float32, not {dtype}")
    target = None if device is None else torch.device(device)
    with no_grad():
        frozen = tree.records_in_buffers(model)
        turns = zip(random.split(key, len(frozen)), frozen, own, strict=True)

        def drawn(record: Record) -> Record:
            own_key, is_frozen, leaves = next(turns)
            return _drawn(own_key, record, leaves, target, dtype, keep=is_frozen)

        new = tree.map_records(drawn, model)
        return _settled(new, [not _is_kept(*turn) for turn in zip(frozen, own, strict=True)])


def _settled(model: P, is_new: list[bool]) -> P:
    """The model, in which what depends on a layer's new values is computed from them."""
    if not any(isinstance(record, Dependent) for record in tree.records(model)):
        return model
    turns = iter(is_new)

    def settled(record: Record) -> Record:
        return record.with_dependent() if next(turns) and isinstance(record, Dependent) else record

    return tree.map_records(settled, model)


def _drawn(
    key: Key, record: Record, own: _Own, device: torch.device | None, dtype: torch.dtype | None, *, keep: bool
) -> Record:
    """The record with new values in its own leaves, but for those to keep; inner records wait until it is their turn."""
    if not own:
        return record
    leaves, structure = tree.flatten(record)
    keys = random.split(key, len(leaves))
    for place, (name, leaf) in own.items():
        to_device = device or (torch.device("cpu") if leaf.is_meta else leaf.device)
        to_dtype = dtype if dtype is not None and leaf.is_floating_point() else leaf.dtype
        initializer = _initializer(record, name)
        if initializer is None or to_device.type == "meta" or (keep and not leaf.is_meta):
            leaves[place] = leaf.to(to_device, to_dtype)
        else:
            own_fans = fans_of(record, name, leaf, [other for _, other in own.values()])
            try:
                leaves[place] = _new_leaf(initializer, keys[place], leaf.shape, own_fans, dtype=to_dtype, device=to_device)
            except Exception as error:
                error.add_note(f"in initialize: {name} of {describe(record)}")
                raise
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


def _own_leaves(record: Record) -> _Own:
    fields = [(name, getattr(record, name)) for name in record.children]
    inner = {id(leaf) for _, field in fields for part in tree.outer_records(field) for leaf in tree.leaves(part)}
    named = [(name, leaf) for name, field in fields for leaf in _leaves_of(field)]
    return {place: (name, leaf) for place, (name, leaf) in enumerate(named) if leaf is not None and id(leaf) not in inner}


def _leaves_of(field: object) -> Sequence[Tensor | None]:
    return [field] if isinstance(field, Tensor) else tree.flatten(field)[0]  # most are one


def _is_kept(is_frozen: bool, own: _Own) -> bool:
    """Whether a record keeps all of its values."""
    return is_frozen and not any(leaf.is_meta for _, leaf in own.values())


def _initializer(record: Record, name: str) -> Initializer | None:
    initializer: object = getattr(record, f"{name}_init", None)
    if initializer is None or isinstance(initializer, Initializer):
        return initializer
    raise TypeError(
        f"{type(record).__name__}.{name}_init must be an initialiser, such as kaiming_uniform() with its parentheses,"
        f" not {initializer!r}"
    )


def _require_initializers(model: Model, own: list[_Own]) -> None:
    """Raise unless every parameter has values or a way to get some."""
    for record, leaves in zip(tree.records(model), own, strict=True):
        for name, leaf in leaves.values():
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
