"""Transformers: equality with torch.nn, options, and what is refused."""

import pytest
import torch
from torch import Tensor

from fundl import (
    CrossAttention,
    LayerNorm,
    Linear,
    Model,
    SelfAttention,
    apply,
    assert_trees_close,
    compose,
    decoder,
    decoder_block,
    encoder,
    feed_forward,
    initialize,
    key,
    layer_norm,
    linear,
    rekey,
    transformer_block,
    tree,
    vjp,
)
from fundl._common.running import run_forward
from tests.samples import normal, with_values

# --- Equality with torch.nn --------------------------------------------------------------------------------------------

# From torch's modules in their order, and from ours in the order of `tree.trainable_leaves`.


def of_attention(module: torch.nn.MultiheadAttention, layer: SelfAttention) -> None:
    assert layer.bias is not None
    assert layer.output_bias is not None
    copy(module.in_proj_weight, layer.weight)
    copy(module.in_proj_bias, layer.bias)
    of_linear(module.out_proj, Linear(layer.output_weight, layer.output_bias))


def of_cross_attention(module: torch.nn.MultiheadAttention, layer: CrossAttention) -> None:
    assert layer.query_bias is not None
    assert layer.bias is not None
    assert layer.output_bias is not None
    copy(module.in_proj_weight, torch.cat((layer.query_weight, layer.weight)))
    copy(module.in_proj_bias, torch.cat((layer.query_bias, layer.bias)))
    of_linear(module.out_proj, Linear(layer.output_weight, layer.output_bias))


def of_linear(module: torch.nn.Module, layer: Linear | LayerNorm) -> None:
    for name in ("weight", "bias"):
        parameter, value = getattr(module, name), getattr(layer, name)
        assert isinstance(parameter, Tensor)
        assert isinstance(value, Tensor)
        copy(parameter, value)


def copy(parameter: Tensor, value: Tensor) -> None:
    """Put a value into a parameter; or, once it has a gradient, compare that with the value."""
    if parameter.grad is None:
        with torch.no_grad():
            parameter.copy_(value)
    else:
        assert_trees_close(value, parameter.grad, rtol=1e-8, atol=1e-8)


def test_a_block_equals_torchs_encoder_layer() -> None:
    theirs = torch.nn.TransformerEncoderLayer(
        12, 3, 20, dropout=0.0, activation="gelu", norm_first=True, batch_first=True, dtype=torch.float64
    )
    ours = with_values(transformer_block(12, 3, hidden=20, causal=True))

    def match(model: object) -> None:
        assert isinstance(model, type(ours))
        first, second = model
        of_linear(theirs.norm1, first.layers[0])
        of_attention(theirs.self_attn, first.layers[1])
        of_linear(theirs.norm2, second.layers[0])
        of_linear(theirs.linear1, second.layers[1][0])
        of_linear(theirs.linear2, second.layers[1][2])

    match(ours)
    x, grad = normal(4, 5, 12).requires_grad_(), normal(4, 5, 12).flip(1)
    y = theirs(x, src_mask=torch.nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64), is_causal=True)
    assert_trees_close(apply(ours, x), y.detach(), rtol=1e-10, atol=1e-10)
    y.backward(grad)
    grads, grad_x = vjp(ours, x, grad)
    match(grads)
    assert_trees_close(grad_x, x.grad, rtol=1e-8, atol=1e-8)


def test_a_decoder_equals_torchs() -> None:
    layer = torch.nn.TransformerDecoderLayer(
        12, 3, 20, dropout=0.0, activation="gelu", norm_first=True, batch_first=True, dtype=torch.float64
    )
    theirs = torch.nn.TransformerDecoder(layer, 2, torch.nn.LayerNorm(12, dtype=torch.float64))
    ours = with_values(decoder(2, decoder_block(12, 3, hidden=20), layer_norm(12)))

    def match(model: object) -> None:
        assert isinstance(model, type(ours))
        for block, module in zip(model.layers[0], theirs.layers, strict=True):
            assert isinstance(module, torch.nn.TransformerDecoderLayer)
            first, norm, attention, _, last = block.layers
            of_linear(module.norm1, first.layers[0])
            of_attention(module.self_attn, first.layers[1])
            of_linear(module.norm2, norm)
            of_cross_attention(module.multihead_attn, attention)
            of_linear(module.norm3, last.layers[0])
            of_linear(module.linear1, last.layers[1][0])
            of_linear(module.linear2, last.layers[1][2])
        assert isinstance(theirs.norm, torch.nn.LayerNorm)
        of_linear(theirs.norm, model.layers[1])

    match(ours)
    x, memory = normal(4, 5, 12).requires_grad_(), normal(4, 7, 12).requires_grad_()
    later = torch.nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    y = theirs(x, memory, tgt_mask=later, tgt_is_causal=True)
    assert_trees_close(apply(ours, (x, memory)), y.detach(), rtol=1e-9, atol=1e-9)
    grad = normal(4, 5, 12).flip(1)
    y.backward(grad)
    grads, (grad_x, grad_memory) = vjp(ours, (x, memory), grad)
    match(grads)
    assert_trees_close((grad_x, grad_memory), (x.grad, memory.grad), rtol=1e-8, atol=1e-8)


# --- Options -----------------------------------------------------------------------------------------------------------


def test_every_block_is_drawn_by_its_place() -> None:
    model = initialize(key(0), encoder(2, transformer_block(8, 2), layer_norm(8)))
    one, other = (block[0].layers[1].weight for block in model[0])
    assert not torch.equal(one, other)
    assert tree.count(model) == 2 * (2 * 16 + (24 + 8) * 9 + (32 * 9 + 8 * 33)) + 16


def test_dropout_is_everywhere_and_only_with_keys() -> None:
    x = normal(2, 5, 8)
    models: tuple[Model, ...] = (
        transformer_block(8, 2, dropout=0.5),
        encoder(1, transformer_block(8, 2, dropout=0.5), layer_norm(8)),
    )
    for model in models:
        values = with_values(model)
        assert not tree.equal(apply(rekey(values, key(0)), x), apply(values, x))
    block = rekey(decoder_block(8, 2, dropout=0.5), key(0))
    assert sum(getattr(record, "key", None) is not None for record in tree.records(block)) == 5


def test_without_bias_nothing_has_one() -> None:
    for model in (transformer_block(8, 2, bias=False), decoder_block(8, 2, bias=False)):
        assert not [path for path in tree.trainable_paths(model) if path.endswith("bias")]


# --- What is refused ---------------------------------------------------------------------------------------------------


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"SelfAttention\) expects 8 features but layer 1 \(LayerNorm\) gives 6 features"):
        transformer_block(8, 2, norm=layer_norm(6))
    with pytest.raises(ValueError, match=r"\(LayerNorm\) expects 6 features but"):
        encoder(2, transformer_block(8, 2), layer_norm(6))
    with pytest.raises(ValueError, match=r"blocks must be at least 1, not 0"):
        decoder(0, decoder_block(8, 2), layer_norm(8))
    with pytest.raises(ValueError, match=r"\(SelfAttention\) expects 8 features|\(LayerNorm\) expects 8 features"):
        compose(linear(3, 7), encoder(2, transformer_block(8, 2), layer_norm(8)))


def test_hidden_is_for_the_default_network() -> None:
    given = {"hidden": 3, "feed_forward": feed_forward(8, 16)}
    with pytest.raises(ValueError, match=r"hidden=3 is for the default network: leave it out where feed_forward is given"):
        transformer_block(8, 2, **given)  # type: ignore[call-overload]  # what the types say too


def test_an_error_names_the_place_in_the_decoder() -> None:
    model = with_values(decoder(2, decoder_block(8, 2, memory_features=6), layer_norm(8)))
    with pytest.raises(ValueError, match=r"CrossAttention expects 6 features, but the memory is of shape") as caught:
        run_forward(model, (normal(2, 5, 8), normal(2, 3, 8)))
    assert caught.value.__notes__[-1].startswith("in model.layers[0][0].layers[2]: CrossAttention(")
