"""Attention."""

from collections.abc import Mapping
from typing import Protocol, cast

import attrs
import torch
from torch import Tensor, nn

from fundl.interop.torch_nn._counterparts import META, copied, copied_if_any, require, with_parameters
from fundl.interop.torch_nn._rules import model_of, module_of, require_no_key, stands_alone
from fundl.layers.attention import CrossAttention, SelfAttention, cross_attention, self_attention

stands_alone(
    "it takes queries, keys and values, which nn.Sequential does not hand on: convert it by itself",
    *(nn.MultiheadAttention, SelfAttention, CrossAttention),
)


@model_of.register
def _(module: nn.MultiheadAttention, *_: object) -> SelfAttention | CrossAttention:
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


@module_of.register
def _(layer: SelfAttention, *_: object) -> nn.Module:
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


@module_of.register
def _(layer: CrossAttention, *_: object) -> nn.Module:
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
