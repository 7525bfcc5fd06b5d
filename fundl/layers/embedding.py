"""Embedding: a vector for each token of a vocabulary."""

from typing import Generic, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common import half
from fundl._common.suggestions import with_suggestions
from fundl.fan import Fans, OwnFans
from fundl.initializers import Initializer, normal
from fundl.layer import Layer, zero_gradient
from fundl.layers._layout import require_sizes
from fundl.layers._refusals import require_at_least_one
from fundl.random import Key
from fundl.shapes import Features, Lead, Shape

Out = TypeVar("Out", bound=int)


@final
@attrs.frozen(eq=False)
class Embedding(Layer[Tensor], OwnFans, Generic[Features]):
    """A row of the weight for each token: y[..., :] = weight[x[...]], with x of integers.

    Its vjp, with the tokens in a row, x of shape (N,) and grad of shape (N, features):

        grad_weight[v] = sum of grad[n] over the n with x[n] = v,    grad_x = 0

    but grad_weight[padding] = 0, so that no optimizer moves the row which stands for no token at all.

    Args:
        weight: a row for each token, of shape (vocabulary, features).
        padding: the token whose row gets no gradient; None, the default, for none such.
        weight_init: how `initialize` draws the weight; from N(0, 1) by default.

    Shape:
        (...) to (..., features)

    Residuals:
        The tokens, shared, not copied.

    Raises:
        ValueError: a token is not in [0, vocabulary). (A GPU finds this out after the fact, and says it in its own words.)
        TypeError: the tokens are neither int64 nor int32.

    Source:
        Bengio, Ducharme, Vincent and Jauvin, A neural probabilistic language model, 2003.

    >>> from fundl import Embedding, apply
    >>> apply(Embedding(torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]])), torch.tensor([2, 1, 2]))
    tensor([[3., 4.],
            [1., 2.],
            [3., 4.]])
    """

    counterpart = "Embedding(padding_idx=padding)"
    takes_integers = True
    by_position = True

    weight: Tensor
    padding: int | None = attrs.field(default=None, kw_only=True)
    weight_init: Initializer = attrs.field(default=normal(), kw_only=True)

    def __attrs_post_init__(self) -> None:
        vocabulary = self.weight.shape[0]
        if self.padding is not None and not 0 <= self.padding < vocabulary:
            raise ValueError(
                f"Embedding's padding must be a token of the vocabulary, 0 to {vocabulary - 1}, not {self.padding}"
            )

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return torch.embedding(self.weight, x), x
        except (IndexError, RuntimeError) as error:
            self._explain(x, error)
            raise

    @override
    def backward_params(self, residuals: Tensor, grad: Tensor) -> Self:
        require_sizes(grad, (*residuals.shape, self.weight.shape[-1]))
        padding = -1 if self.padding is None else self.padding
        return self.gradient(half.embedding_backward(grad, residuals, self.weight.shape[0], padding))

    @override
    def backward_input(self, residuals: Tensor, grad: Tensor) -> Tensor:
        return zero_gradient(residuals)

    @override
    def output_shape(self, shape: Shape[*Lead]) -> Shape[*Lead, Features]:
        return Shape(*shape.sizes, self.weight.shape[-1])

    @override
    def own_fans(self) -> Fans:
        """A number of the output is one of the weight; a token has as many as there are features."""
        return Fans(1, self.weight.shape[-1])

    def _explain(self, x: Tensor, error: Exception) -> None:
        """Say in the layer's words what the kernel refused: asked only once it has, so that a good input costs nothing."""
        if x.dtype not in {torch.int64, torch.int32}:
            raise TypeError(
                f"Embedding looks up tokens, integers of dtype int64 or int32, but the input is {x.dtype}: convert it with"
                " x.to(torch.int64)"
            ) from error
        vocabulary = self.weight.shape[0]
        outside = x[(x < 0) | (x >= vocabulary)]
        if isinstance(error, IndexError) and outside.numel():
            raise ValueError(
                f"Embedding has a vocabulary of {vocabulary} tokens, 0 to {vocabulary - 1}, but the input holds token"
                f" {int(outside[0])}"
            ) from error


@with_suggestions
def embedding(
    vocabulary: int,
    features: Out,
    *,
    padding: int | None = None,
    weight_init: Initializer = normal(),
    dtype: torch.dtype = torch.float32,
) -> Embedding[Out]:
    """An `Embedding` of the given sizes, without values: give it some with `initialize`.

    Args:
        vocabulary: how many tokens there are, at least 1; they are counted from 0.
        features: size of the output's last axis, at least 1.
        padding: the token that stands for none, such as what fills short sequences up: its row is initialised to 0 and gets
            no gradient. None, the default, for none such.
        dtype: the weight's dtype.

    The other option, weight_init, is as in `Embedding`.

    Raises:
        ValueError: a size is less than 1, or the padding is not a token.

    >>> from fundl import embedding, initialize, key
    >>> embedding(1000, 16)
    Embedding(weight=float32[1000, 16])
    >>> initialize(key(0), embedding(2, 3, padding=0)).weight[0]
    tensor([0., 0., 0.])
    """
    require_at_least_one(vocabulary=vocabulary, features=features)
    if padding is not None:
        weight_init = ZeroRow(weight_init, padding)
    weight = torch.empty(vocabulary, features, dtype=dtype, device="meta")
    return Embedding(weight, padding=padding, weight_init=weight_init)


@attrs.frozen
class ZeroRow(Initializer):
    """As another initialiser, but for one row, which is 0: that of the padding of an embedding."""

    others: Initializer
    row: int

    @override
    def __call__(self, key: Key, shape: tuple[int, ...], fans: Fans, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        drawn = self.others(key, shape, fans, dtype=dtype, device=device)
        rows = torch.arange(shape[0], device=device).unsqueeze(1)
        return torch.where(rows == self.row, torch.zeros((), dtype=dtype, device=device), drawn)
