"""The small layers of which tensor parallelism is made: how an input goes to parts of a layer, and what they give is joined."""

from typing import Final, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common import half
from fundl._common.modes import is_untraced
from fundl.collectives import reduced
from fundl.groups import Group, device_of, is_up
from fundl.layer import Layer, zero_gradient
from fundl.layers._layout import as_matrix
from fundl.layers._same_shape import SameShape


@final
@attrs.frozen(eq=False)
class Spread(SameShape, Layer[None]):
    """Where an input that all processes have alike goes to a part of a layer in each of them: y = x.

    Its vjp: grad_x = grad_1 + ... + grad_n, where grad_r is that of process r.

    Args:
        group: the processes.

    Shape:
        any, kept

    Residuals:
        None.

    Source:
        Shoeybi, Patwary, Puri, LeGresley, Casper and Catanzaro, Megatron-LM: training multi-billion parameter language models
        using model parallelism, 2019.

    >>> import torch
    >>> from fundl import apply
    >>> from fundl.distributed import Spread, start
    >>> group, device = start()
    >>> apply(Spread(group), torch.ones(2))
    tensor([1., 1.])
    """

    group: Group

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, reduced([grad], self.group)[0]


@final
@attrs.frozen(eq=False)
class Joined(SameShape, Layer[None]):
    """Where what parts of a layer give in several processes is added up: y = x_1 + ... + x_n, with x_r that of process r.

    Its vjp: grad_x = grad, which all processes have alike.

    Args:
        group: the processes.

    Shape:
        any, kept

    Residuals:
        None.

    Source:
        As `Spread`, whose transpose it is.

    >>> import torch
    >>> from fundl import apply
    >>> from fundl.distributed import Joined, start
    >>> group, device = start()
    >>> apply(Joined(group), torch.ones(2))
    tensor([1., 1.])
    """

    group: Group

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return reduced([x], self.group)[0], None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad


@final
@attrs.frozen(eq=False)
class SpreadBoth(Layer[None, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]):
    """`Spread` for two inputs, whose gradients travel together."""

    group: Group

    @override
    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], None]:
        return x, None

    @override
    def backward(self, residuals: None, grad: tuple[Tensor, Tensor]) -> tuple[Self, tuple[Tensor, Tensor]]:
        first, second = reduced(grad, self.group)
        return self, (first, second)


@final
@attrs.frozen(eq=False)
class Bias(SameShape, Layer[None]):
    """What is added once, after the sum: y = x + b.

    Its vjp: grad_b = sum over the rows of grad,  grad_x = grad.
    """

    bias: Tensor

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x + self.bias, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self.gradient(as_matrix(grad).sum(0)), grad


@final
@attrs.frozen(eq=False)
class EmbeddingPart(Layer[tuple[Tensor, Tensor]]):
    """The rows of an embedding that one process has: y is theirs, and 0 for the tokens whose rows others have.

    A token that nobody has is looked up as it is, so that all processes raise the error of an embedding.
    """

    takes_integers = True

    weight: Tensor
    vocabulary: int
    padding: int | None
    group: Group

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        rows = self.weight.shape[0]
        own = x - place_in(self.group, x) * rows
        is_token = (x >= 0) & (x < self.vocabulary)
        is_own = (own >= 0) & (own < rows) & is_token
        row = torch.where(is_own, own, torch.where(is_token, 0, x))
        y = torch.embedding(self.weight, row)
        is_trained = is_own if self.padding is None else is_own & (x != self.padding)
        return y.masked_fill(~is_own.unsqueeze(-1), 0), (row, is_trained)

    @override
    def backward_params(self, residuals: tuple[Tensor, Tensor], grad: Tensor) -> Self:
        row, is_trained = residuals
        grad = grad.masked_fill(~is_trained.unsqueeze(-1), 0)
        return self.gradient(half.embedding_backward(grad, row, self.weight.shape[0], -1))

    @override
    def backward_input(self, residuals: tuple[Tensor, Tensor], grad: Tensor) -> Tensor:
        return zero_gradient(residuals[0])


_PLACES: Final[dict[Group, Tensor]] = {}


def place_in(group: Group, like: Tensor) -> Tensor:
    """Which process this is, as a tensor without axes: what is compiled is given it, and so is the same for all processes."""
    if group.size == 1 or is_untraced(like):
        return torch.full((), group.rank, dtype=torch.int64, device=like.device)
    place = _PLACES.get(group)
    return (torch.tensor([group.rank]) if place is None else place).to(like.device)[0]


def remember_place(group: Group) -> None:
    """Make the tensor of `place_in` before anything is traced: split layers do so as they are made."""
    if group.size > 1 and is_up(group) and group not in _PLACES:
        _PLACES[group] = torch.tensor([group.rank], device=device_of(group))
