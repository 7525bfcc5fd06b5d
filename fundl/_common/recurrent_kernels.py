"""The typed door to ATen's kernels for recurrent layers, as `kernels`: oneDNN's on CPUs; cuDNN's, and single steps, on CUDA."""

from collections.abc import Callable
from typing import Final, TypeAlias

import torch
from torch import Tensor

_aten: Final = torch.ops.aten

# x, weight_ih, weight_hh, bias_ih, bias_hh, h, c; where there are no biases, anything.
LSTMTensors: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
# The hidden state after each step (T, B, H), h and c after the last, and a workspace, 15 numbers for each of H or so.
LSTMGiven: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
# With respect to the first three of these.
LSTMGrads: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]

# The first are x (T, B, in), and h and c before the first step (B, H). Then whether it runs from the last step to the first, no
# sizes, 2 for an LSTM, H, 1 layer, whether there are biases, False, False, True. It gives a workspace with the grad mode on.
mkldnn_lstm: Callable[[*LSTMTensors, bool, tuple[()], int, int, int, bool, bool, bool, bool], LSTMGiven] = (
    _aten.mkldnn_rnn_layer.default
)
# The same up to c, what forward gave but for the workspace, the gradients with respect to these, the other settings in another
# order, the workspace: the gradients with respect to the first.
_BackwardSettings: TypeAlias = tuple[bool, int, int, int, bool, bool, bool, tuple[()], bool, Tensor]
_Backward: TypeAlias = tuple[*LSTMTensors, *tuple[Tensor, Tensor, Tensor], *LSTMGrads, *_BackwardSettings]
mkldnn_lstm_backward: Callable[[*_Backward], LSTMTensors] = _aten.mkldnn_rnn_layer_backward.default

# By cuDNN, all steps of one layer. x (T, B, in), contiguous; the weights, how many they are, and all in one piece; h and c
# before, (1, B, H), contiguous. Then the number of the kind, H, 0, 1 layer, False, no dropout, whether backward follows, one
# direction, no sizes, None. It gives h after each step (T, B, H), h and c after the last, (1, B, H), bytes for backward, and
# the piece.
_CudnnTensors: TypeAlias = tuple[Tensor, list[Tensor], int, Tensor, Tensor, Tensor | None]
_CudnnSettings: TypeAlias = tuple[int, int, int, int, bool, float, bool, bool, tuple[()], None]
_CudnnForward: TypeAlias = tuple[*_CudnnTensors, *_CudnnSettings]
cudnn_rnn: Callable[[*_CudnnForward], tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = _aten._cudnn_rnn.default
# The same up to c, h after each step, contiguous, the gradients with respect to what forward gave, the settings, the bytes,
# which it writes over, and which gradients are wanted: of x, h, c, and the weights; these come in a list.
_CudnnGrads: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
_CudnnBackward: TypeAlias = tuple[*_CudnnTensors, *_CudnnGrads, *_CudnnSettings, Tensor, tuple[bool, bool, bool, bool]]
cudnn_rnn_backward: Callable[[*_CudnnBackward], tuple[Tensor, Tensor, Tensor | None, list[Tensor]]] = (
    _aten._cudnn_rnn_backward.default
)
# Weights, how many they are, in, the number of the kind, H, 0, 1 layer, False, one direction: the piece in which they are now.
cudnn_pack: Callable[[list[Tensor], int, int, int, int, int, int, bool, bool], Tensor] = _aten._cudnn_rnn_flatten_weight.default

# On CUDA, one step. What the input and what the hidden state give to the gates, (B, 4 H) each, and c before, (B, H): h, c, and
# the gates behind their activations, (B, 4 H).
lstm_cell: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] = _aten._thnn_fused_lstm_cell.default
# The gradients with respect to h and c, c before and after, the gates, False: those with respect to the gates before their
# activations, (B, 4 H), and to c before; and nothing.
lstm_cell_backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor | None]] = (
    _aten._thnn_fused_lstm_cell_backward_impl.default
)
# On CUDA, one step. The same, (B, 3 H) each, h before, (B, H), and both biases, or None: h, and a workspace, (B, 5 H): r, z, n,
# h before, and q = U_n h + v_n.
gru_cell: Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor]] = (
    _aten._thnn_fused_gru_cell.default
)
