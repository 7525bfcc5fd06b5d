"""Dropout, and the keys of layers that draw random numbers.

A layer is stochastic if it has a buffer field named ``key``. Without a key it does not draw.
"""

from collections.abc import Callable, Iterable
from typing import final

import attrs
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common import dropping
from fundl._common.keys import require_key
from fundl.layer import Layer, P
from fundl.layers._drawing import Dropping
from fundl.random import Key, split
from fundl.tree import Record


@final
@attrs.frozen(eq=False)
class Dropout(Dropping):
    """Drops elements at random, and scales up the others so that the mean stays: y = x mask / (1 - rate).

    Each element of the mask is 1 with probability 1 - rate, else 0, independently of the others, as drawn from the key: the
    same key, the same mask. Without a key, as in a model that is not being trained, or with rate 0: y = x.

    Its vjp: grad_x = grad mask / (1 - rate), with the same mask.

    Args:
        rate: the probability to drop an element, from 0 up to, but not including, 1.
        key: what the mask is drawn from; None, the default, for no dropout. `rekey` gives each layer of a model its own.

    Shape:
        any, kept

    Residuals:
        The mask: 1 byte per input element. None without a key.

    Raises:
        ValueError: the rate is not in [0, 1).
        TypeError: the key is not a tensor.

    Source:
        Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, Dropout: a simple way to prevent neural networks from
        overfitting, 2014.

    >>> import torch
    >>> from fundl import Dropout, apply, key
    >>> apply(Dropout(0.5), torch.ones(4))
    tensor([1., 1., 1., 1.])
    >>> apply(Dropout(0.5, key(0)), torch.ones(4))
    tensor([2., 0., 0., 0.])
    """

    counterpart = "Dropout(p=rate)"
    dropped = "an element"

    @override
    def _drawn(self, key: Key, x: Tensor) -> tuple[Tensor, Tensor]:
        return dropping.dropped(key, x, self.rate)


def rekey(model: P, key: Key) -> P:
    """The model with a key of its own for each stochastic layer: all it takes to have it drop elements.

    A training step rekeys the model with the step's key; the stored model has no keys.

    Args:
        model: a layer or a nested tuple of layers.
        key: split into the keys, which go to the layers in the order of `tree.records`. One with a rate of 0 draws nothing, and
            is passed over: whether it is there or not, the others get the keys of their places.

    Returns:
        A new model; the model itself if none of its layers draws.

    >>> from fundl import Dropout, ReLU, compose, key, rekey
    >>> rekey(compose(Dropout(0.1), ReLU(), Dropout(0.5)), key(0))
    (Dropout(rate=0.1, key=int64[2]), ReLU(), Dropout(rate=0.5, key=int64[2]))
    """
    if not tree.holds(is_stochastic, model):
        unchecked: object = model
        if not isinstance(unchecked, Layer | tuple):
            raise TypeError(f"rekey(model, key) takes a model first, a layer or a tuple of layers, not {tree.describe(model)}")
        require_key(key)
        return model
    return rekeyed(model, lambda: key)


def rekeyed(model: P, key: Callable[[], Key]) -> P:
    """`rekey` with a key that is made if a layer draws from it, and not where all have a rate of 0."""
    stochastic = [record for record in tree.records(model) if is_stochastic(record)]
    if not any(map(_draws, stochastic)):
        return model
    return with_keys(model, split(key(), len(stochastic)).unbind())


def with_keys(model: P, drawn: Iterable[Key]) -> P:
    """The model whose stochastic layers have these keys, in the order of `tree.records`."""
    keys = iter(drawn)

    def with_key(record: Record) -> Record:
        if not is_stochastic(record):
            return record
        own = next(keys)
        return _with_key(record, own) if _draws(record) else record

    return tree.map_records(with_key, model)


def _with_key(record: Record, key: Key | None) -> Record:
    children = tree.children(record)
    children[record.children.index("key")] = key
    return tree.with_children(record, children)


def _draws(record: Record) -> bool:
    """Whether a stochastic layer would use a key: one that can tell says it by a property of the name."""
    return bool(getattr(record, "draws", True))


def has_keys(model: object) -> bool:
    """Whether a stochastic layer of a model has a key: whether it draws."""
    return any(is_stochastic(record) and getattr(record, "key", None) is not None for record in tree.records(model))


def is_stochastic(record: Record | type[Record]) -> bool:
    """Whether a record, or any of a class, draws random numbers."""
    return "key" in record.children and "key" not in record.trainable  # a key that is no parameter of that name
