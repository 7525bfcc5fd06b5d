"""Weight decay: a part of the params, added to their updates."""

from collections.abc import Callable
from itertools import compress
from typing import Self, TypeAlias, final

import attrs
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import Listed
from fundl._common.numbers import non_negative
from fundl._common.suggestions import with_suggestions
from fundl.optim._blocks import stacked_axes
from fundl.optim.flat import Number, Tensors, plus
from fundl.optim.transform import Transform
from fundl.tree import Record, Splits, describe

Predicate: TypeAlias = Callable[[str, Tensor], bool]
"""Chooses leaves, by path (``"[0].weight"``, say) and tensor, as `is_matrix` does.

>>> from fundl import Predicate
>>> not_the_head: Predicate = lambda path, leaf: not path.startswith("[2]")
"""


def is_matrix(path: str, leaf: Tensor) -> bool:
    """Whether a leaf has two axes or more: weights have, biases and the scales of norms have not.

    The axis along which `repeat` stacks its blocks does not count: that of the leaf at ``[0].stacked[1].bias``, say.

    >>> import torch
    >>> is_matrix("[0].weight", torch.zeros(2, 3)), is_matrix("[0].bias", torch.zeros(2))
    (True, False)
    """
    return leaf.ndim - stacked_axes(path) >= 2


@final
@attrs.frozen(eq=False)
class DecayState(Record, metaclass=Listed):
    """The state of `add_decayed_weights`.

    Args:
        mask: for each leaf, whether it decays. It is static.
    """

    mask: tuple[bool, ...]


def predicate(_record: object, _field: "attrs.Attribute[Predicate | None]", value: Predicate | None) -> None:
    """Refuse all but functions."""
    if value is not None and not callable(value):
        raise TypeError(f"where is a function of a leaf's path and tensor, such as is_matrix, not {describe(value)}")


@final
@attrs.frozen
class AddDecayedWeights(Transform[DecayState]):
    """See `add_decayed_weights`."""

    writes_over = True  # its state is static

    weight_decay: Number = attrs.field(validator=non_negative)
    where: Predicate | None = attrs.field(default=None, validator=predicate)

    @property
    @override
    def elementwise(self) -> bool:
        return self.where is None  # which looks at paths and shapes

    @override
    def divided(self, splits: Splits) -> Self:
        return self  # rows of a matrix are one

    @property
    @override
    def numbers(self) -> tuple[str, ...]:
        return ("weight_decay",)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> DecayState:
        if self.where is None:
            return DecayState((True,) * len(leaves))
        return DecayState(tuple(bool(self.where(path, leaf)) for path, leaf in zip(paths, leaves, strict=True)))

    @override
    def change(self, grads: Tensors, state: DecayState, params: Tensors) -> tuple[Tensors, DecayState]:
        mask = self.mask(state, grads)
        if True not in mask:
            return grads, state
        if False not in mask:
            return plus(grads, params, self.weight_decay), state
        chosen = tuple(compress(grads, mask)), tuple(compress(params, mask))
        decayed = iter(plus(*chosen, self.weight_decay))
        return tuple(next(decayed) if on else grad for grad, on in zip(grads, mask, strict=True)), state

    def mask(self, state: DecayState, grads: Tensors) -> tuple[bool, ...]:
        """For each leaf whether it decays; nothing if the weight decay is 0."""
        if type(state) is not DecayState:  # others have masks, too
            raise TypeError("the state is of another transform")
        if len(state.mask) != len(grads):
            raise ValueError("the state's mask is of other leaves")
        return state.mask if isinstance(self.weight_decay, Tensor) or self.weight_decay else ()


@with_suggestions
def add_decayed_weights(weight_decay: float, *, where: Predicate | None = None) -> Transform[DecayState]:
    """Add a part of the params: u = g + weight_decay p.

    Before a transform that looks at the gradient's size, this is the gradient of the L2 penalty, weight_decay/2 |p|^2; after
    it, decoupled weight decay.

    Args:
        weight_decay: how much of the params, of 0 or more.
        where: chooses, once, in `init`, which leaves decay; all by default. `is_matrix` spares biases and norms.

    Source:
        Hanson and Pratt, Comparing biases for minimal network construction with back-propagation, 1988.

    >>> import torch
    >>> from fundl import add_decayed_weights, is_matrix
    >>> decay, params = add_decayed_weights(0.1, where=is_matrix), {"weight": torch.ones(1, 2), "bias": torch.ones(2)}
    >>> decay.update({"weight": torch.ones(1, 2), "bias": torch.ones(2)}, decay.init(params), params)[0]
    {'weight': tensor([[1.1000, 1.1000]]), 'bias': tensor([1., 1.])}
    """
    return AddDecayedWeights(weight_decay, where)
