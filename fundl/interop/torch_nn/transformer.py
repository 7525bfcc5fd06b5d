"""Attention, and the blocks of transformers.

Blocks are compositions of layers. Those that torch.nn's modules are, and no others, go back to them.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol, TypeVar, cast

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from fundl.interop.torch_nn.activation import require_no_key
from fundl.interop.torch_nn.linear import to_linear
from fundl.interop.torch_nn.normalization import to_layer_norm
from fundl.interop.torch_nn.pairs import (
    META,
    ConvertInside,
    ConvertPart,
    Refused,
    Row,
    copied,
    copied_if_any,
    from_module,
    from_module_of_parts,
    require,
    to_module,
    to_module_of_parts,
    with_parameters,
)
from fundl.layer import AnyLayer, Model
from fundl.layers.activation import GELU, ReLU
from fundl.layers.attention import CrossAttention, SelfAttention, cross_attention, self_attention
from fundl.layers.dropout import Dropout
from fundl.layers.linear import Linear
from fundl.layers.normalization import LayerNorm
from fundl.layers.structure import Residual
from fundl.layers.transformer import Decoder, DecoderBlock
from fundl.shapes import AnyShape

L = TypeVar("L", bound=AnyLayer)

_ALONE_ATTENTION: Final = "it takes queries, keys and values, which nn.Sequential does not hand on: convert it by itself"
_ALONE_DECODER: Final = "it takes a sequence and a memory, which nn.Sequential does not hand on: convert it by itself"


# --- Attention ---------------------------------------------------------------------------------------------------------


def _from_attention(module: nn.MultiheadAttention) -> SelfAttention | CrossAttention:
    require(
        module.batch_first,
        "batch_first=False, but a layer's input is (B, T, features): set the module's batch_first to True, and give it such",
    )
    require(
        module.bias_k is None and not module.add_zero_attn,
        "add_bias_kv or add_zero_attn adds keys that are in no sequence, which no layer does: leave them False",
    )
    own = dict(module.named_parameters(recurse=False))
    if "in_proj_weight" not in own:
        return _from_cross_attention(module, own)
    meta = self_attention(module.embed_dim, module.num_heads, dropout=module.dropout)
    return attrs.evolve(
        meta,
        weight=copied(own["in_proj_weight"]),
        bias=copied_if_any(own.get("in_proj_bias")),
        output_weight=copied(module.out_proj.weight),
        output_bias=copied_if_any(module.out_proj.bias),
    )


def _from_cross_attention(module: nn.MultiheadAttention, own: Mapping[str, Tensor]) -> CrossAttention:
    require(
        module.kdim == module.vdim,
        f"kdim={module.kdim} and vdim={module.vdim}, but CrossAttention takes keys and values from one memory, of one size",
    )
    bias = own.get("in_proj_bias")
    meta = cross_attention(module.embed_dim, module.num_heads, memory_features=module.kdim, dropout=module.dropout)
    return attrs.evolve(
        meta,
        query_weight=copied(own["q_proj_weight"]),
        query_bias=None if bias is None else copied(bias[: module.embed_dim]),
        weight=torch.cat((copied(own["k_proj_weight"]), copied(own["v_proj_weight"]))),
        bias=None if bias is None else copied(bias[module.embed_dim :]),
        output_weight=copied(module.out_proj.weight),
        output_bias=copied_if_any(module.out_proj.bias),
    )


class _MakeAttention(Protocol):
    def __call__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float,
        bias: bool,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool,
        device: torch.device,
    ) -> nn.MultiheadAttention: ...


_attention = cast("_MakeAttention", nn.MultiheadAttention)  # whose constructor torch leaves without types


def _to_self_attention(layer: SelfAttention) -> nn.MultiheadAttention:
    require(
        not layer.causal,
        "causal=True, but the module is given a mask when it is called: convert one that is made with causal=False, and call"
        " the module with is_causal=True and a mask",
    )
    require(layer.rotary is None, f"rotary={layer.rotary}, but the module does not turn queries and keys")
    require(layer.mask is None, "it has a mask, but the module is given one when it is called: convert it without")
    _require_plain(layer)
    module = _attention(
        layer.weight.shape[1], layer.heads, layer.dropout, layer.bias is not None, batch_first=True, device=META
    )
    with_parameters(module.out_proj, weight=layer.output_weight, bias=layer.output_bias)
    return with_parameters(module, in_proj_weight=layer.weight, in_proj_bias=layer.bias)


def _to_cross_attention(layer: CrossAttention) -> nn.MultiheadAttention:
    require(
        layer.memory_mask is None, "it has a memory_mask, but the module is given one when it is called: convert it without"
    )
    _require_plain(layer)
    features, memory = layer.query_weight.shape[1], layer.weight.shape[1]
    require(
        (layer.query_bias is None) == (layer.bias is None),
        "its queries have a bias and its keys and values have none, or the other way round: give both one, of zeros",
    )
    biased = layer.bias is not None
    module = _attention(features, layer.heads, layer.dropout, biased, kdim=memory, vdim=memory, batch_first=True, device=META)
    with_parameters(module.out_proj, weight=layer.output_weight, bias=layer.output_bias)
    bias = None if layer.query_bias is None or layer.bias is None else torch.cat((layer.query_bias, layer.bias))
    with_parameters(module, in_proj_bias=bias)
    if memory == features:
        return with_parameters(module, in_proj_weight=torch.cat((layer.query_weight, layer.weight)))
    keys, values = layer.weight.chunk(2)
    return with_parameters(module, q_proj_weight=layer.query_weight, k_proj_weight=keys, v_proj_weight=values)


def _require_plain(layer: SelfAttention | CrossAttention) -> None:
    require_no_key(layer.key)
    require(
        layer.key_value_heads in {None, layer.heads},
        f"key_value_heads={layer.key_value_heads}, but the module has as many heads for keys and values as for queries",
    )
    require(
        (layer.bias is None) == (layer.output_bias is None),
        "either its projections or its output has a bias, but the module has both or neither: give both one, of zeros",
    )


# --- Blocks, from modules ----------------------------------------------------------------------------------------------


def _from_encoder_layer(module: nn.TransformerEncoderLayer, part: ConvertPart) -> Model:
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


def _from_encoder(module: nn.TransformerEncoder, part: ConvertPart) -> Model:
    blocks = tuple(part(f"layers.{index}") for index in range(len(module.layers)))
    return blocks if module.norm is None else (blocks, part("norm"))


def _from_decoder_layer(module: nn.TransformerDecoderLayer, part: ConvertPart) -> DecoderBlock:
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
    return attrs.evolve(
        meta,
        query_weight=layer.weight[:features],
        query_bias=None if layer.bias is None else layer.bias[:features],
        weight=layer.weight[features:],
        bias=None if layer.bias is None else layer.bias[features:],
        output_weight=layer.output_weight,
        output_bias=layer.output_bias,
    )


def _from_decoder(module: nn.TransformerDecoder, part: ConvertPart) -> Decoder:
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
            Residual(layers=(LayerNorm() as norm1, SelfAttention() as attention, Dropout() as dropout1)),
            Residual(layers=(LayerNorm() as norm2, network, Dropout() as dropout2)),
        ) if (parts := _as_network(network)) is not None:
            biases = [norm1.bias, norm2.bias, attention.bias, parts.first.bias, parts.last.bias]
            _require_alike(biases, [norm1, norm2], [dropout1, dropout2])
            features, hidden = parts.last.weight.shape
            module = nn.TransformerEncoderLayer(
                features,
                attention.heads,
                hidden,
                parts.dropout,
                activation=_function(parts.activation, inside),
                batch_first=True,
                norm_first=True,
                bias=norm1.bias is not None,
                device=META,
            )
            if isinstance(parts.activation, GELU) and parts.activation.approximate == "tanh":
                module.activation_relu_or_gelu = 0  # of which torch's kernel for inference does not know
            module.norm1, module.norm2 = to_layer_norm(norm1), to_layer_norm(norm2)
            module.self_attn = _to_self_attention(attention)
            module.dropout1, module.dropout2 = nn.Dropout(dropout1.rate), nn.Dropout(dropout2.rate)
            module.linear1, module.linear2 = to_linear(parts.first), to_linear(parts.last)
            return module
        case _:
            return None


def _function(activation: Model, inside: ConvertInside) -> Callable[[Tensor], Tensor]:
    """An activation as the modules have it."""
    match activation:
        case ReLU():
            return functional.relu
        case GELU(approximate="none"):
            return functional.gelu
        case _:
            return inside(activation, ".layers[1][1]")


def _require_alike(biases: list[Tensor | None], norms: list[LayerNorm], dropouts: list[Dropout]) -> None:
    require(
        len({bias is None for bias in biases}) == 1,
        "some of its parts have a bias and some have none, but in the module all do or none: give all one, of zeros",
    )
    require(
        all(norm.weight is not None for norm in norms),
        "a LayerNorm in it has no weight, but the module's have: give it one of ones",
    )
    for dropout in dropouts:
        require_no_key(dropout.key)


def _to_decoder_layer(layer: DecoderBlock, _: AnyShape, inside: ConvertInside) -> nn.Module:
    first, norm2, attention2, dropout2, last = layer.layers
    match first.layers, norm2, last.layers:
        case (
            (LayerNorm() as norm1, attention, dropout1),
            LayerNorm(),
            (LayerNorm() as norm3, network, dropout3),
        ) if (parts := _as_network(network)) is not None:
            biases = [norm1.bias, norm2.bias, norm3.bias, attention.bias, attention2.bias, parts.first.bias, parts.last.bias]
            _require_alike(biases, [norm1, norm2, norm3], [dropout1, dropout2, dropout3])
            features, hidden = parts.last.weight.shape
            require(
                attention2.weight.shape[1] == features,
                f"its memory has {attention2.weight.shape[1]} features, and x {features}, but in the module they are the same",
            )
            module = nn.TransformerDecoderLayer(
                features,
                attention.heads,
                hidden,
                parts.dropout,
                activation=_function(parts.activation, inside),
                batch_first=True,
                norm_first=True,
                bias=norm1.bias is not None,
                device=META,
            )
            module.norm1, module.norm2, module.norm3 = to_layer_norm(norm1), to_layer_norm(norm2), to_layer_norm(norm3)
            module.self_attn, module.multihead_attn = _to_self_attention(attention), _to_cross_attention(attention2)
            module.dropout1, module.dropout2, module.dropout3 = (nn.Dropout(d.rate) for d in (dropout1, dropout2, dropout3))
            module.linear1, module.linear2 = to_linear(parts.first), to_linear(parts.last)
            return module
        case _:
            raise Refused(
                "it is made of other layers than nn.TransformerDecoderLayer: LayerNorm, and a network of two Linear with an"
                " activation between"
            )


def _to_decoder(layer: Decoder, _: AnyShape, inside: ConvertInside) -> nn.Module:
    blocks, norm = layer.layers
    modules = [inside(block, f".layers[0][{index}]") for index, block in enumerate(blocks)]
    if not isinstance(modules[0], nn.TransformerDecoderLayer) or not isinstance(norm, LayerNorm):
        raise Refused("it is made of other layers than nn.TransformerDecoder: DecoderBlock and LayerNorm")
    module = nn.TransformerDecoder(modules[0], 1, to_layer_norm(norm))
    module.layers, module.num_layers = nn.ModuleList(modules), len(modules)
    return module


ROWS: Final[tuple[Row, ...]] = (
    from_module(nn.MultiheadAttention, _from_attention, alone=_ALONE_ATTENTION),
    to_module(SelfAttention, _to_self_attention, alone=_ALONE_ATTENTION),
    to_module(CrossAttention, _to_cross_attention, alone=_ALONE_ATTENTION),
    from_module_of_parts(nn.TransformerEncoderLayer, _from_encoder_layer),
    from_module_of_parts(nn.TransformerEncoder, _from_encoder),
    from_module_of_parts(nn.TransformerDecoderLayer, _from_decoder_layer, alone=_ALONE_DECODER),
    from_module_of_parts(nn.TransformerDecoder, _from_decoder, alone=_ALONE_DECODER),
    to_module_of_parts(DecoderBlock, _to_decoder_layer, alone=_ALONE_DECODER),
    to_module_of_parts(Decoder, _to_decoder, alone=_ALONE_DECODER),
)
