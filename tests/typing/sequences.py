"""Layers over sequences: what goes in, what comes out, and what their gradients are."""

from typing import reveal_type

import torch

from fundl import (
    LastPosition,
    Masked,
    MeanOfPositions,
    Tanh,
    apply,
    compose,
    cross_attention,
    decoder,
    decoder_block,
    encoder,
    from_masked,
    gated_feed_forward,
    gru,
    layer_norm,
    linear,
    lstm,
    on_masked,
    on_masked_pair,
    residual,
    rms_norm,
    rnn,
    self_attention,
    stateful,
    transformer_block,
    vjp,
    with_mask,
)

x = torch.ones(5, 4, 3)
masked = Masked(x, torch.ones(5, 4, dtype=torch.bool))

# --- Masked batches ----------------------------------------------------------------------------------------------------

tagger = on_masked(linear(3, 4), Tanh())
reveal_type(apply(tagger, masked))  # R: fundl.layers.masked.Masked
grads, grad_x = vjp(tagger, masked, masked)
reveal_type(grads.layers[0])  # R: fundl.layers.linear.Linear[Literal[3], Literal[4]]
reveal_type(grad_x)  # R: fundl.layers.masked.Masked

classifier = from_masked(linear(3, 4), MeanOfPositions(), linear(4, 2))
reveal_type(apply(classifier, masked))  # R: torch._tensor.Tensor
reveal_type(with_mask(classifier, masked.mask).layers[1])  # R: fundl.layers.masked.MeanOfPositions
from_masked(linear(3, 4), MeanOfPositions(), linear(5, 2))  # E: layer 3 (Linear) expects 5 features but layer 2 (MeanOfPositions) gives 4 features
compose(MeanOfPositions(), linear(3, 4), linear(5, 2))  # E: layer 3 (Linear) expects 5 features but layer 2 (Linear) gives 4 features

# --- Attention ---------------------------------------------------------------------------------------------------------

attention = self_attention(16, 4, key_value_heads=2, causal=True)
reveal_type(attention)  # R: fundl.layers.attention.SelfAttention[Literal[16]]
reveal_type(vjp(attention, x, x)[0])  # R: fundl.layers.attention.SelfAttention[Literal[16]]
reveal_type(on_masked(attention))  # R: fundl.layers.masked.OnMasked[fundl.layers.attention.SelfAttention[Literal[16]]]
compose(linear(3, 16), attention, residual(attention, linear(16, 16)), linear(16, 1))
compose(linear(3, 15), attention)  # E: layer 2 (SelfAttention) expects 16 features but layer 1 (Linear) gives 15 features
compose(MeanOfPositions(), attention)  # E: layer 2 (SelfAttention) expects 3 axes but layer 1 (MeanOfPositions) gives 2 axes

across = cross_attention(16, 4, memory_features=12)
reveal_type(across)  # R: fundl.layers.cross_attention.CrossAttention[Literal[16]]
reveal_type(apply(across, (x, x)))  # R: torch._tensor.Tensor
reveal_type(vjp(across, (x, x), x))  # R: tuple[fundl.layers.cross_attention.CrossAttention[Literal[16]], tuple[torch._tensor.Tensor, torch._tensor.Tensor]]

# --- Transformers ------------------------------------------------------------------------------------------------------

model = compose(linear(3, 16), encoder(6, transformer_block(16, 4, causal=True), layer_norm(16)), linear(16, 10))
gradients, _ = vjp(model, x, x)
reveal_type(gradients[1][0][5][0].layers[1])  # R: fundl.layers.attention.SelfAttention[Literal[16]]
reveal_type(gradients[1][0][5][1].layers[1][0].weight)  # R: torch._tensor.Tensor
reveal_type(gradients[1][1])  # R: fundl.layers.normalization.LayerNorm[Literal[16]]
other = transformer_block(16, 4, norm=rms_norm(16), feed_forward=gated_feed_forward(16, 40))
reveal_type(other[1].layers[0])  # R: fundl.layers.normalization.RMSNorm[Literal[16]]
reveal_type(other[1].layers[1][1])  # R: fundl.layers.feed_forward.GLU[Literal[-1]]
compose(linear(3, 15), transformer_block(16, 4))  # E: layer 2.1.1 (LayerNorm) expects 16 features but layer 1 (Linear) gives 15 features

pair = decoder(6, decoder_block(16, 4), layer_norm(16))
reveal_type(apply(pair, (x, x)))  # R: torch._tensor.Tensor
gradients_of_pair, (grad_of_x, grad_of_memory) = vjp(pair, (x, x), x)
reveal_type(gradients_of_pair.layers[0][5].layers[2])  # R: fundl.layers.cross_attention.CrossAttention[Literal[16]]
reveal_type(grad_of_memory)  # R: torch._tensor.Tensor
reveal_type(apply(on_masked_pair(pair), (masked, masked)))  # R: fundl.layers.masked.Masked

# --- Recurrent layers --------------------------------------------------------------------------------------------------

reveal_type(lstm(3, 4))  # R: fundl.layers.recurrent.layers.LSTM[Literal[3], Literal[4], Literal[1]]
reveal_type(gru(3, 4, bidirectional=True))  # R: fundl.layers.recurrent.layers.GRU[Literal[3], Literal[4], Literal[2]]
reveal_type(vjp(rnn(3, 4), x, x)[0].layers[0][0].weight_ih)  # R: torch._tensor.Tensor
from_masked(lstm(3, 4, depth=2), LastPosition(), linear(5, 2))  # E: layer 3 (Linear) expects 5 features but layer 2 (LastPosition) gives 4 features

unit = stateful(gru(3, 4))
reveal_type(unit)  # R: fundl.layers.recurrent.stateful.Stateful[fundl.layers.recurrent.layers.GRU[Literal[3], Literal[4], Literal[1]], torch._tensor.Tensor]
reveal_type(apply(unit, (x, x)))  # R: tuple[torch._tensor.Tensor, torch._tensor.Tensor]
memory = stateful(lstm(3, 4))
reveal_type(apply(memory, (x, memory.zeros(5))))  # R: tuple[torch._tensor.Tensor, fundl.layers.recurrent.stateful.LSTMState]
apply(memory, (x, x))  # E: Cannot infer value of type parameter "X" of "apply"
gradients_of_memory, (_, grad_state) = vjp(memory, (x, memory.zeros(5)), (x, memory.zeros(5)))
reveal_type(gradients_of_memory.layer)  # R: fundl.layers.recurrent.layers.LSTM[Literal[3], Literal[4], Literal[1]]
reveal_type(grad_state)  # R: fundl.layers.recurrent.stateful.LSTMState
