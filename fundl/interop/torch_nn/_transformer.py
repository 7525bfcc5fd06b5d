"""The blocks of transformers.

Blocks are compositions of layers. Those that torch.nn's modules are, and no others, go back to them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fundl.interop.torch_nn._attention import filled
from fundl.interop.torch_nn._counterparts import META, Refused, require
from fundl.interop.torch_nn._rules import ConvertInside, ConvertPart, model_of, module_of, require_no_key, stands_alone
from fundl.layer import AnyLayer, Model
from fundl.layers.activation import ReLU
from fundl.layers.attention import SelfAttention
from fundl.layers.cross_attention import CrossAttention, cross_attention
from fundl.layers.dropout import Dropout
from fundl.layers.linear import Linear
from fundl.layers.normalization import LayerNorm
from fundl.layers.self_gated import GELU
from fundl.layers.structure import Residual
from fundl.layers.transformer import Decoder, DecoderBlock
from fundl.shapes import AnyShape, Shape

L = TypeVar("L", bound=AnyLayer)
B = TypeVar("B", nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)

MADE_OF_MODULES: Final = (nn.TransformerEncoderLayer, nn.TransformerEncoder, nn.TransformerDecoderLayer, nn.TransformerDecoder)
"""Whose parts are converted one by one; of all other modules, all parameters are those of one layer."""

stands_alone(
    "it takes a sequence and a memory, which nn.Sequential does not hand on: convert it by itself",
    *(nn.TransformerDecoderLayer, nn.TransformerDecoder, DecoderBlock, Decoder),
)


# --- Blocks, from modules ----------------------------------------------------------------------------------------------


@model_of.register
def _(module: nn.TransformerEncoderLayer, part: ConvertPart) -> Model:
    network = _network(module, part)
    if module.norm_first:
        return (
            Residual((part("norm1"), part("self_attn"), part("dropout1"))),
            Residual((part("norm2"), network, part("dropout2"))),
        )
    return (
        Residual((part("self_attn"), part("dropout1"))),
        part("norm1"),
        Residual((*network, part("dropout2"))),
        part("norm2"),
    )


def _network(module: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer, part: ConvertPart) -> tuple[Model, ...]:
    """What runs at each position: two linear maps with an activation between, and dropout if there is any."""
    dropout = (part("dropout"),) if module.dropout.p else ()
    return (part("linear1"), _activation(module, part), *dropout, part("linear2"))


def _activation(module: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer, part: ConvertPart) -> Model:
    function: object = module.activation
    if isinstance(function, nn.Module):
        return part("activation")
    if function in {functional.relu, torch.relu}:
        return ReLU()
    if function is functional.gelu:
        return GELU()
    raise Refused(f"its activation is the function {function!r}, which has no counterpart: give the module one of torch.nn")


@model_of.register
def _(module: nn.TransformerEncoder, part: ConvertPart) -> Model:
    blocks = tuple(part(f"layers.{index}") for index in range(len(module.layers)))
    return blocks if module.norm is None else (blocks, part("norm"))


@model_of.register
def _(module: nn.TransformerDecoderLayer, part: ConvertPart) -> DecoderBlock:
    require(
        module.norm_first,
        "norm_first=False normalises behind each part, which DecoderBlock does before: there is no such layer",
    )
    layers = (
        Residual((_only(LayerNorm, part("norm1")), _only(SelfAttention, part("self_attn")), _only(Dropout, part("dropout1")))),
        _only(LayerNorm, part("norm2")),
        _to_a_memory(_only(SelfAttention, part("multihead_attn"))),
        _only(Dropout, part("dropout2")),
        Residual((_only(LayerNorm, part("norm3")), _network(module, part), _only(Dropout, part("dropout3")))),
    )
    return DecoderBlock(layers)


def _to_a_memory(layer: SelfAttention) -> CrossAttention:
    """The same attention, with the keys and values of a memory of as many features."""
    features = layer.weight.shape[1]
    meta = cross_attention(features, layer.heads, dropout=layer.dropout)
    output = layer.output_weight, layer.output_bias
    return filled(meta, layer.weight[:features], layer.weight[features:], layer.bias, output)


@model_of.register
def _(module: nn.TransformerDecoder, part: ConvertPart) -> Decoder:
    blocks = tuple(_only(DecoderBlock, part(f"layers.{index}")) for index in range(len(module.layers)))
    require(module.norm is not None, "it has no norm, but Decoder normalises at its end: give it an nn.LayerNorm")
    return Decoder((blocks, _only(LayerNorm, part("norm"))))


def _only(layer: type[L], part: Model) -> L:
    """A part, which must be converted to that layer."""
    if isinstance(part, layer):
        return part
    name = part[0] if isinstance(part, tuple) else part
    raise Refused(
        f"a part of it is converted to {type(name).__name__}, where {layer.__name__} is due: whole blocks can be frozen, and"
        " their parts not replaced"
    )


# --- Blocks, to modules ------------------------------------------------------------------------------------------------


class _Network(NamedTuple):
    """What runs at each position of a block, if it is what the module's runs."""

    first: Linear
    activation: Model
    dropout: float
    last: Linear


def _as_network(layers: Model) -> _Network | None:
    match layers:
        case (Linear() as first, activation, Linear() as last):
            return _Network(first, activation, 0.0, last)
        case (Linear() as first, activation, Dropout() as dropout, Linear() as last):
            require_no_key(dropout.key)
            return _Network(first, activation, dropout.rate, last)
        case _:
            return None


def to_encoder_layer(layers: tuple[Model, ...], inside: ConvertInside) -> nn.Module | None:
    """The module of the two parts of a `transformer_block`, if they are what the module is made of; None for other layers."""
    match layers:
        case (
            Residual(layers=(LayerNorm() as norm1, SelfAttention() as self_attn, Dropout() as dropout1)),
            Residual(layers=(LayerNorm() as norm2, network, Dropout() as dropout2)),
        ) if (of_network := _as_network(network)) is not None:
            parts = (norm1, self_attn, dropout1, norm2, dropout2)
            module = _block(nn.TransformerEncoderLayer, of_network, parts, inside)
            if isinstance(of_network.activation, GELU) and of_network.activation.approximate == "tanh":
                module.activation_relu_or_gelu = 0  # of which torch's kernel for inference does not know
            return module
        case _:
            return None


@module_of.register
def _(layer: DecoderBlock, _: AnyShape, inside: ConvertInside) -> nn.Module:
    first, norm2, cross, dropout2, last = layer.layers
    match first.layers, norm2, last.layers:
        case (
            (LayerNorm() as norm1, attention, dropout1),
            LayerNorm(),
            (LayerNorm() as norm3, network, dropout3),
        ) if (of_network := _as_network(network)) is not None:
            memory, features = cross.weight.shape[1], cross.query_weight.shape[1]
            require(
                memory == features,
                f"its memory has {memory} features, and x {features}, but in the module they are the same",
            )
            parts = (norm1, attention, dropout1, norm2, cross, dropout2, norm3, dropout3)
            return _block(nn.TransformerDecoderLayer, of_network, parts, inside)
        case _:
            raise Refused(
                "it is made of other layers than nn.TransformerDecoderLayer: LayerNorm, and a network of two Linear with an"
                " activation between"
            )


_PARTS: Final[Mapping[type[nn.Module], Sequence[str]]] = {
    nn.TransformerEncoderLayer: ("norm1", "self_attn", "dropout1", "norm2", "dropout2"),
    nn.TransformerDecoderLayer: ("norm1", "self_attn", "dropout1", "norm2", "multihead_attn", "dropout2", "norm3", "dropout3"),
}
"""What the modules call the parts of a block, but for its network."""


def _block(kind: type[B], network: _Network, parts: Sequence[AnyLayer], inside: ConvertInside) -> B:
    """The module of a block of these parts."""
    norms: list[LayerNorm] = [part for part in parts if isinstance(part, LayerNorm)]
    attentions: list[SelfAttention | CrossAttention] = [
        part for part in parts if isinstance(part, SelfAttention | CrossAttention)
    ]
    biases = {part.bias is None for part in (*norms, *attentions, network.first, network.last)}
    require(
        len(biases) == 1,
        "some of its parts have a bias and some have none, but in the module all do or none: give all one, of zeros",
    )
    require(
        all(norm.weight is not None for norm in norms),
        "a LayerNorm in it has no weight, but the module's have: give it one of ones",
    )
    features, hidden = network.last.weight.shape
    module = kind(
        features,
        attentions[0].heads,
        hidden,
        network.dropout,
        activation=_function(network.activation, inside),
        batch_first=True,
        norm_first=True,
        bias=biases == {False},
        device=META,
    )
    for name, part in zip((*_PARTS[kind], "linear1", "linear2"), (*parts, network.first, network.last), strict=True):
        module.add_module(name, module_of(part, Shape(...), inside))
    return module


def _function(activation: Model, inside: ConvertInside) -> Callable[[Tensor], Tensor]:
    """An activation as the modules have it."""
    match activation:
        case ReLU():
            return functional.relu
        case GELU(approximate="none"):
            return functional.gelu
        case _:
            return inside(activation, ".layers[1][1]")


@module_of.register
def _(layer: Decoder, shape: AnyShape, inside: ConvertInside) -> nn.Module:
    blocks, norm = layer.layers
    modules = [inside(block, f".layers[0][{index}]") for index, block in enumerate(blocks)]
    if not isinstance(modules[0], nn.TransformerDecoderLayer) or not isinstance(norm, LayerNorm):
        raise Refused("it is made of other layers than nn.TransformerDecoder: DecoderBlock and LayerNorm")
    module = nn.TransformerDecoder(modules[0], 1, module_of(norm, shape, inside))
    module.layers, module.num_layers = nn.ModuleList(modules), len(modules)
    return module
