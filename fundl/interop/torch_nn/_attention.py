"""Attention."""

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor, nn

from fundl.interop.torch_nn._counterparts import META, copied, require, with_parameters
from fundl.interop.torch_nn._rules import model_of, module_of, require_no_key, stands_alone
from fundl.layers.attention import SelfAttention, self_attention
from fundl.layers.cross_attention import CrossAttention, cross_attention

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
        bias=copied(own.get("in_proj_bias")),
        output_weight=copied(module.out_proj.weight),
        output_bias=copied(module.out_proj.bias),
    )


def _from_cross_attention(module: nn.MultiheadAttention, own: Mapping[str, Tensor]) -> CrossAttention:
    require(
        module.kdim == module.vdim,
        f"kdim={module.kdim} and vdim={module.vdim}, but CrossAttention takes keys and values from one memory, of one size",
    )
    keys_and_values = torch.cat((own["k_proj_weight"], own["v_proj_weight"]))
    meta = cross_attention(module.embed_dim, module.num_heads, memory_features=module.kdim, dropout=module.dropout)
    output = module.out_proj.weight, module.out_proj.bias
    return filled(meta, own["q_proj_weight"], keys_and_values, own.get("in_proj_bias"), output)


def filled(
    meta: CrossAttention, query_weight: Tensor, weight: Tensor, biases: Tensor | None, output: tuple[Tensor, Tensor | None]
) -> CrossAttention:
    """The layer with copies of these tensors: the biases in one, those of the queries first, and the output's two."""
    features = query_weight.shape[0]
    return attrs.evolve(
        meta,
        query_weight=copied(query_weight),
        query_bias=None if biases is None else copied(biases[:features]),
        weight=copied(weight),
        bias=None if biases is None else copied(biases[features:]),
        output_weight=copied(output[0]),
        output_bias=copied(output[1]),
    )


@module_of.register
def _(layer: SelfAttention, *_: object) -> nn.Module:
    require(
        not layer.causal,
        "causal=True, but the module is given a mask when it is called: convert one that is made with causal=False, and call"
        " the module with is_causal=True and a mask",
    )
    require(layer.rotary is None, f"rotary={layer.rotary}, but the module does not turn queries and keys")
    for name in ("window", "soft_cap", "alibi", "scale", "relative"):
        given: object = getattr(layer, name)
        require(given is None or given is False, f"it has {name}, but the module's scores are q k^T / sqrt(d), and no more")
    require(layer.mask is None, "it has a mask, but the module is given one when it is called: convert it without")
    features = layer.weight.shape[1]
    return with_parameters(_module(layer, features, features), in_proj_weight=layer.weight, in_proj_bias=layer.bias)


@module_of.register
def _(layer: CrossAttention, *_: object) -> nn.Module:
    require(
        layer.memory_mask is None, "it has a memory_mask, but the module is given one when it is called: convert it without"
    )
    features, memory = layer.query_weight.shape[1], layer.weight.shape[1]
    module = _module(layer, features, memory)
    require(
        (layer.query_bias is None) == (layer.bias is None),
        "its queries have a bias and its keys and values have none, or the other way round: give both one, of zeros",
    )
    bias = None if layer.query_bias is None or layer.bias is None else torch.cat((layer.query_bias, layer.bias))
    with_parameters(module, in_proj_bias=bias)
    if memory == features:
        return with_parameters(module, in_proj_weight=torch.cat((layer.query_weight, layer.weight)))
    keys, values = layer.weight.chunk(2)
    return with_parameters(module, q_proj_weight=layer.query_weight, k_proj_weight=keys, v_proj_weight=values)


def _module(layer: SelfAttention | CrossAttention, features: int, memory: int) -> nn.Module:
    """The module, with the parameters of its output; the others are still without values."""
    require(layer.visible is None, "it has visible, but the module is given attn_mask when it is called: convert it without")
    require_no_key(layer.key)
    require(
        layer.key_value_heads in {None, layer.heads},
        f"key_value_heads={layer.key_value_heads}, but the module has as many heads for keys and values as for queries",
    )
    biased = layer.bias is not None
    require(
        biased == (layer.output_bias is not None),
        "either its projections or its output has a bias, but the module has both or neither: give both one, of zeros",
    )
    kind: type[nn.Module] = nn.MultiheadAttention  # whose own constructor torch leaves without types
    sizes = {"kdim": memory, "vdim": memory}
    module = kind(features, layer.heads, layer.dropout, biased, **sizes, batch_first=True, device=META)
    with_parameters(module.get_submodule("out_proj"), weight=layer.output_weight, bias=layer.output_bias)
    return module
