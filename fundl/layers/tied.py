"""An embedding that is also the last layer: one matrix that reads tokens, and tells them."""

from typing import Generic, Self, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common import products
from fundl._common.checks import models
from fundl._common.place import Place
from fundl._common.running import run_backward
from fundl._common.stepping import first_cache, step_inside
from fundl.layer import Layer, Model, zero_gradient
from fundl.layers._inside import Ts, fitting, forward_inside
from fundl.layers._layout import as_matrix
from fundl.layers.embedding import Embedding
from fundl.shapes import AnySize, Ending, Features, Kept, Lead, Shape

Size = TypeVar("Size", bound=int)


@final
@attrs.frozen(eq=False)
class Tied(Layer[tuple[Tensor, object, Tensor]], Generic[Features, *Ts]):
    """A model of tokens whose embedding is its last layer, too: y = f(W[x]) W^T, with W the weight of the embedding.

    y[..., v] is the logit of token v. There is one matrix where there would be two: fewer parameters, by as much as half in a
    small model of language, and a vector for each token that learns from all predictions.

    Its vjp, with e = W[x], h = f(e), both uses of W counted, and all axes but the last seen as one:

        grad_h = grad W,    grad_f, grad_e = vjp(f, e, grad_h)
        grad_W = grad^T h + grad_W of the embedding for grad_e,    grad_x = 0

    The row of the embedding's padding has a gradient, that of the logit: only what is looked up there has none.

    Args:
        embedding: of the tokens.
        layers: f, the layers one after the other; best given to `tied`, which checks them.

    Shape:
        (...) to (..., vocabulary), where f keeps the shape (..., features) that it is given

    Residuals:
        The tokens, shared; those of the layers; h.

    Raises:
        ValueError: the layers do not keep the number of features.

    Source:
        Press and Wolf, Using the output embedding to improve language models, 2017.
    """

    takes_integers = True

    embedding: Embedding[Features]
    layers: tuple[*Ts]

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, object, Tensor]]:
        embedded, tokens = self.embedding.forward(x)
        h, residuals = forward_inside(self.layers, embedded)
        features = self.embedding.weight.shape[1]
        if h.shape[-1:] != (features,):
            raise ValueError(
                f"the layers of tied must give as many features as the embedding, {features}, but their output's shape is"
                f" {tuple(h.shape)}"
            )
        return products.linear(h, self.embedding.weight, None), (tokens, residuals, h)

    @override
    def first_cache(self, batch: int, length: int) -> object:
        return first_cache(self.layers, batch, length)

    @override
    def step(self, x: Tensor, cache: object, place: Place) -> tuple[Tensor, object]:
        h, after = step_inside(self.layers, self.embedding.forward(x)[0], cache, place)
        return products.linear(place.wanted(h), self.embedding.weight, None), after

    @override
    def backward(self, residuals: tuple[Tensor, object, Tensor], grad: Tensor) -> tuple[Self, Tensor]:
        tokens, *kept = residuals
        del residuals  # so that those of each layer are freed once its backward has run: see `Pass`
        weight = self.embedding.weight
        grad_weight = torch.mm(as_matrix(grad).t(), as_matrix(cast("Tensor", kept.pop())))  # (vocabulary, N) (N, features)
        grads, grad_embedded = run_backward(cast("Model", self.layers), kept.pop(), products.matmul(grad, weight))
        grads_embedding = self.embedding.backward_params(tokens, cast("Tensor", grad_embedded))  # the layers were given one
        return self.gradient(self.embedding.gradient(grads_embedding.weight + grad_weight), grads), zero_gradient(tokens)

    @override
    def backward_input(self, residuals: tuple[Tensor, object, Tensor], grad: Tensor) -> Tensor:
        return zero_gradient(residuals[0])

    @override
    def output_shape(self, shape: Shape[*Lead]) -> Ending[Kept[Shape[*Lead, Features], *Ts], AnySize]:
        vocabulary, features = self.embedding.weight.shape[-2:]
        return Ending(Kept(Shape(*shape.sizes, features), self.layers), vocabulary)


def tied(embedding: Embedding[Size], *layers: *Ts) -> Tied[Size, *Ts]:
    """A `Tied` of an embedding, as `embedding` makes it, and layers, or models, which are checked as by `compose`.

    With features f of the embedding, initial weights of a standard deviation of f^-0.5 make logits of the order of 1.

    >>> import torch
    >>> from fundl import apply, embedding, initialize, key, layer_norm, tied, tree
    >>> model = initialize(key(0), tied(embedding(100, 16), layer_norm(16)))
    >>> apply(model, torch.zeros(2, 5, dtype=torch.int64)).shape, tree.count(model)
    (torch.Size([2, 5, 100]), 1632)
    """
    if not isinstance(embedding, Embedding):
        raise TypeError(f"tied begins with an Embedding, such as embedding(1000, 16), not {embedding!r}")
    return fitting(Tied(embedding, models(*layers)))
