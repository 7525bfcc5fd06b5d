"""Linear and bilinear maps, and embeddings."""

from typing import Final

from torch import nn

from fundl.initializers import normal
from fundl.interop.torch_nn.pairs import META, Row, copied, copied_if_any, pair, require, with_parameters
from fundl.layers.bilinear import Bilinear
from fundl.layers.embedding import Embedding, ZeroRow
from fundl.layers.linear import Linear


def _from_linear(module: nn.Linear) -> Linear:
    return Linear(copied(module.weight), copied_if_any(module.bias))


def to_linear(layer: Linear) -> nn.Linear:
    """The module of a linear map."""
    outputs, inputs = layer.weight.shape
    module = nn.Linear(inputs, outputs, bias=layer.bias is not None, device=META)
    return with_parameters(module, weight=layer.weight, bias=layer.bias)


def _to_bilinear(layer: Bilinear) -> nn.Module:
    outputs, first, second = layer.weight.shape
    module = nn.Bilinear(first, second, outputs, bias=layer.bias is not None, device=META)
    return with_parameters(module, weight=layer.weight, bias=layer.bias)


def _from_embedding(module: nn.Embedding) -> Embedding:
    require(
        module.max_norm is None,
        f"max_norm={module.max_norm} changes the weight whenever it is used, which no layer does: set it to None",
    )
    require(
        not module.scale_grad_by_freq,
        "scale_grad_by_freq=True makes another gradient of the weight than the derivative: set it to False",
    )
    require(not module.sparse, "sparse=True makes sparse gradients, which no layer has: set it to False")
    if module.padding_idx is None:
        return Embedding(copied(module.weight))
    weight_init = ZeroRow(normal(), module.padding_idx)
    return Embedding(copied(module.weight), padding=module.padding_idx, weight_init=weight_init)


def _to_embedding(layer: Embedding) -> nn.Module:
    vocabulary, features = layer.weight.shape
    return with_parameters(nn.Embedding(vocabulary, features, layer.padding, device=META), weight=layer.weight)


ROWS: Final[tuple[Row, ...]] = (
    *pair(nn.Linear, Linear, _from_linear, to_linear),
    *pair(
        nn.Bilinear,
        Bilinear,
        lambda module: Bilinear(copied(module.weight), copied_if_any(module.bias)),
        _to_bilinear,
        alone="it takes two inputs, which nn.Sequential does not hand on: convert it by itself",
    ),
    *pair(nn.Embedding, Embedding, _from_embedding, _to_embedding),
)
