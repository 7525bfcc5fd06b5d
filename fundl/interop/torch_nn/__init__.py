"""Between models and modules of torch.nn: `from_torch` and `to_torch`, with parameters and buffers; and between losses.

    from fundl.interop import torch_nn

    model = torch_nn.from_torch(module)
    module = torch_nn.to_torch(model)
    loss = torch_nn.loss_from_torch(nn.CrossEntropyLoss())

| torch.nn | fundl |
| --- | --- |
| Sequential, nested | a tuple, nested |
| Identity, Flatten, Unflatten | Identity, Flatten, Reshape |
| Linear, Bilinear, Embedding | Linear, Bilinear, Embedding |
| Dropout, AlphaDropout; Dropout1d/2d/3d | Dropout, AlphaDropout; ChannelDropout |
| activations that both have, PReLU and GLU | the same |
| ReLU6 | Hardtanh(0, 6) |
| Softmax, Softmax2d, Softmin, LogSoftmax | Softmax, Softmin, LogSoftmax |
| Conv1d/2d/3d, ConvTranspose1d/2d/3d | Conv1d/2d/3d, ConvTranspose1d/2d/3d |
| MaxPool, AvgPool, AdaptiveMaxPool, AdaptiveAvgPool, 1d/2d/3d | MaxPool, AveragePool, AdaptiveMaxPool, AdaptiveAveragePool |
| LPPool1d/2d/3d, of powers that are not odd | LPPool1d/2d/3d |
| AdaptiveAvgPool(1) and Flatten, AdaptiveMaxPool(1) and Flatten | from GlobalAveragePool, GlobalMaxPool |
| LayerNorm, RMSNorm, GroupNorm | LayerNorm, RMSNorm, GroupNorm |
| BatchNorm1d/2d/3d, InstanceNorm1d/2d/3d | BatchNorm, InstanceNorm |
| Upsample, UpsamplingNearest2d, UpsamplingBilinear2d | Upsample |
| ConstantPad, ZeroPad, ReflectionPad, ReplicationPad, CircularPad, 1d/2d/3d | Pad |
| PixelShuffle, PixelUnshuffle, Unfold, Fold | PixelShuffle, PixelUnshuffle, Unfold, Fold |
| RNN, GRU, LSTM | RNN, GRU, LSTM |
| RNNCell, GRUCell, LSTMCell | RNNCell, GRUCell, LSTMCell |
| MultiheadAttention; with kdim and vdim | SelfAttention; CrossAttention |
| TransformerEncoderLayer, and TransformerEncoder | a transformer_block (or, with norm_first=False, a tuple), and a tuple |
| TransformerDecoderLayer, and TransformerDecoder, with norm_first=True | DecoderBlock, and Decoder |
| modules whose parameters have requires_grad=False | Frozen |
| modules of options alone that a layer of one's own names as its `counterpart` | that layer |

Tensors are copied, never shared: a module changes its own in place. A stack of blocks, a Repeat and an encoder become nested
nn.Sequential. All else raises a `ConversionError`, which names the part by its path, and says what to do.

`loss_from_torch` says which loss becomes which.
"""

from fundl.interop.torch_nn.conversion import ConversionError, from_torch, to_torch
from fundl.interop.torch_nn.losses import loss_from_torch, loss_to_torch
from fundl.interop.torch_nn.wrapping import ModuleTensors, as_layer

__all__ = ["ConversionError", "ModuleTensors", "as_layer", "from_torch", "loss_from_torch", "loss_to_torch", "to_torch"]
