"""Models whose last linear map is left to the loss, which has no need of all logits at once."""

from typing import Generic, Self, cast, final

import attrs
from torch import Tensor
from typing_extensions import override

from fundl._common import products
from fundl._common.checks import models
from fundl._common.listed import Listed
from fundl._common.running import named_as, run_backward, run_forward
from fundl.layer import Layer, Model, zero_gradient
from fundl.layers._inside import Ts, forward_inside
from fundl.layers.linear import Linear
from fundl.layers.tied import Tied
from fundl.model import output_shape
from fundl.tree import Record, describe


@final
@attrs.frozen(eq=False)
class DeferredLogits(Record, metaclass=Listed):
    """Logits that are yet to be computed: x = h W^T + b.

    Args:
        features: h, of shape (..., F).
        weight: W, of shape (V, F).
        bias: b, of shape (V,), or None.

    >>> import torch
    >>> DeferredLogits(torch.ones(3, 2), torch.ones(5, 2), None).values().shape
    torch.Size([3, 5])
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None

    def values(self) -> Tensor:
        """The logits x, (..., V), all of them."""
        return products.linear(self.features, self.weight, self.bias)


@final
@attrs.frozen(eq=False)
class Deferred(Layer[object, Tensor, DeferredLogits], Generic[*Ts]):
    """A model without its last linear map, which is left to the loss: from x to h, W and b, for logits h W^T + b.

    The loss, such as `chunked_cross_entropy`, gives the gradients with respect to all three. Where there are many classes, as
    tokens in a model of language, logits and their gradient are the largest tensors of a step by far; the loss can compute them
    a piece at a time. `layers` are the model itself, with the same parameters, to be applied, stepped and saved.

    Its vjp, with grad_h, grad_W and grad_b from the loss, and f the layers before the map:

        grad_f, grad_x = vjp(f, x, grad_h); of a `tied` model, grad_W is added to the gradient of its embedding

    Args:
        layers: the model; its last layer is a `Linear` or a `Tied`. Best given to `deferred`, which checks it.

    Shape:
        that of the model, with h in the place of logits

    Residuals:
        Those of the layers before the map.

    Raises:
        TypeError: the last layer is another.
    """

    takes_integers = True  # if the first layer does

    layers: tuple[*Ts]

    def __attrs_post_init__(self) -> None:
        last = _last(self.layers)
        if not isinstance(last, Linear | Tied):
            raise TypeError(
                f"deferred is for a model whose last layer is a Linear or a Tied, not {describe(last)}: what is around them,"
                " such as mixed_precision, goes around the layers before"
            )

    @override
    def forward(self, x: Tensor) -> tuple[DeferredLogits, object]:
        return _forward(cast("Model", self.layers), x)

    @override
    def backward(self, residuals: object, grad: DeferredLogits) -> tuple[Self, Tensor]:
        kept = [residuals]
        del residuals  # see `Pass`
        grads, grad_x = _backward(cast("Model", self.layers), kept, grad)
        return self.gradient(grads), grad_x

    @override
    def first_cache(self, batch: int, length: int) -> object:
        raise TypeError("a deferred model gives no logits: step its layers, deferred(...).layers")


def deferred(*layers: *Ts) -> Deferred[*Ts]:
    """A `Deferred` of a model, or of its layers, which are checked as by `compose`.

    >>> import torch
    >>> from fundl import chunked_cross_entropy, deferred, embedding, initialize, key, linear, value_and_grad
    >>> model = initialize(key(0), deferred(embedding(10, 8), linear(8, 10)))
    >>> value, grads = value_and_grad(chunked_cross_entropy, model, torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]]))
    >>> grads.layers[1].weight.shape
    torch.Size([10, 8])
    """
    parts = models(*layers)
    output_shape(cast("Model", parts))  # raises, unless they fit; `models` found each of them to be one
    return Deferred(parts)


def _last(model: object) -> object:
    while isinstance(model, tuple) and model:
        model = model[-1]
    return model


def _forward(model: Model, x: object) -> tuple[DeferredLogits, object]:
    """The features and the map, and what backward needs: of a tuple, that of each part."""
    match model:
        case tuple():
            *before, last = model
            h, kept = run_forward(tuple(before), x)
            logits, own = _forward(last, h)
            return logits, (kept, own)
        case Linear():
            return DeferredLogits(cast("Tensor", x), model.weight, model.bias), None
        case _:
            assert isinstance(model, Tied)  # the constructor saw to it
            embedded, tokens = model.embedding.forward(cast("Tensor", x))
            h, own = forward_inside(model.layers, embedded)
            return DeferredLogits(h, model.embedding.weight, None), (tokens, own)


def _backward(model: Model, kept: list[object], grad: DeferredLogits) -> tuple[object, Tensor]:
    """The gradients of a model and of its input; what it kept is the one thing in the list, and taken out."""
    match model:
        case tuple():
            *before, last = model
            inside, own = cast("tuple[object, object]", kept.pop())
            grads_last, grad_h = _backward(last, [own], grad)
            rest = [inside]
            del inside, own
            grads, grad_x = run_backward(tuple(before), rest.pop(), grad_h)
            parts = [*cast("tuple[Model, ...]", grads), cast("Model", grads_last)]
            return named_as(model, parts), cast("Tensor", grad_x)
        case Linear():
            return model.gradient(grad.weight, grad.bias), grad.features
        case _:
            assert isinstance(model, Tied)
            tokens, own = cast("tuple[Tensor, object]", kept.pop())
            inside = [own]
            del own
            grads, grad_embedded = run_backward(cast("Model", model.layers), inside.pop(), grad.features)
            of_embedding = model.embedding.backward_params(tokens, cast("Tensor", grad_embedded))
            embedding = model.embedding.gradient(of_embedding.weight + grad.weight)
            return model.gradient(embedding, grads), zero_gradient(tokens)
