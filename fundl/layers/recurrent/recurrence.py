"""A recurrence, what it runs over, and what comes of it."""

from collections.abc import Callable
from typing import Literal, TypeAlias, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import Listed
from fundl.initializers import Initializer
from fundl.tree import Record, describe

Activation: TypeAlias = Literal["tanh", "relu"]
"""Of an RNN."""
States: TypeAlias = tuple[Tensor, ...]
"""The state of a recurrence, each (B, H): (h,), or (h, c) of an LSTM."""
Kept: TypeAlias = tuple[Tensor, ...]
"""What a sweep keeps for backward: the hidden state after each step, (T, B, H), and what else its kind needs."""


@final
@attrs.frozen(eq=False)
class Recurrence(Record, metaclass=Listed):
    """The parameters of one recurrence: of one layer in one direction.

    G is the number of gates, which lie one below the other: 1 of an `RNN`; 3 of a `GRU`: reset, update, new; 4 of an `LSTM`:
    input, forget, cell, output.

    Args:
        weight_ih: from the input to the gates, of shape (G hidden, in).
        weight_hh: from the hidden state to the gates, of shape (G hidden, hidden).
        bias_ih: added to the first, of shape (G hidden,), or None.
        bias_hh: added to the second, likewise; None if and only if bias_ih is.
        first_hidden: the hidden state before the first step, of shape (hidden,), that of all sequences; None for zeros.
        first_cell: the cell before the first step, of an `LSTM`, likewise; None if and only if first_hidden is.
        weight_ih_init: how `initialize` draws weight_ih; None if it keeps its values. The others likewise.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    first_hidden: Tensor | None = attrs.field(default=None, kw_only=True)
    first_cell: Tensor | None = attrs.field(default=None, kw_only=True)
    weight_ih_init: Initializer | None = attrs.field(default=None, kw_only=True)
    weight_hh_init: Initializer | None = attrs.field(default=None, kw_only=True)
    bias_ih_init: Initializer | None = attrs.field(default=None, kw_only=True)
    bias_hh_init: Initializer | None = attrs.field(default=None, kw_only=True)
    first_hidden_init: Initializer | None = attrs.field(default=None, kw_only=True)
    first_cell_init: Initializer | None = attrs.field(default=None, kw_only=True)

    @override
    def __repr__(self) -> str:  # without the initialisers: a layer has many recurrences, with the same
        fields = {name: getattr(self, name) for name in self.children}
        shown = [name for name, value in fields.items() if value is not None or not name.startswith("first")]
        return f"Recurrence({', '.join(f'{name}={describe(fields[name])}' for name in shown)})"

    def first(self, batch: int, parts: int) -> States:
        """The state before the first step, of so many tensors."""
        weight = self.weight_hh
        zeros = weight.new_zeros(batch, weight.shape[1])
        learned = (self.first_hidden, self.first_cell)[:parts]
        return tuple(zeros if part is None else part.expand_as(zeros).contiguous() for part in learned)

    def with_first(self, state: States | None) -> "Recurrence":
        """Gradients with those with respect to the first state, given of each sequence; None if it had no part in what ran."""
        if self.first_hidden is None:
            return self
        zeros = torch.zeros_like(self.first_hidden)
        hidden, *cell = (zeros, zeros) if state is None else [part.sum(0) for part in state]
        return attrs.evolve(self, first_hidden=hidden, first_cell=None if self.first_cell is None else cell[0])


def require_activation(name: str, activation: str) -> None:
    """Refuse what is no activation of a recurrence."""
    if activation not in {"tanh", "relu"}:
        raise ValueError(f"{name}'s activation must be 'tanh' or 'relu', not {activation!r}")


@final
@attrs.frozen
class Sweep:
    """A recurrence, and what it runs over.

    Args:
        weights: its parameters.
        x: the input, (T, B, in).
        state: before the first step; None for zeros.
        mask: (T, B, 1), True where a step is real; None if all are.
        reverse: whether it runs from the last step to the first.
    """

    weights: Recurrence
    x: Tensor
    state: States | None
    mask: Tensor | None
    reverse: bool

    def order(self) -> range:
        """The steps, as forward goes."""
        steps = len(self.x)
        return range(steps - 1, -1, -1) if self.reverse else range(steps)

    def order_back(self) -> list[tuple[int, int]]:
        """The steps, as backward goes, each with the one that forward took before it: T before the first of all."""
        order = [len(self.x), *self.order()]
        return list(zip(order[:0:-1], order[-2::-1], strict=True))

    def start(self, index: int) -> Tensor:
        """One of the tensors of the state before the first step."""
        return self.x.new_zeros(self.x.shape[1], self.weights.weight_hh.shape[1]) if self.state is None else self.state[index]


@final
@attrs.frozen
class SweptBack:
    """What a sweep's backward gives.

    Args:
        grads: computes the gradients with respect to the parameters.
        grad_x: computes that with respect to the input, (T, B, in).
        state: that with respect to the state before the first step.
    """

    grads: Callable[[], Recurrence]
    grad_x: Callable[[], Tensor]
    state: States
