"""The one typed door to ATen's fused kernels.

``torch.ops`` is untyped; each kernel that fundl uses stands here with its true signature, as an overload (a little faster
to call than the packet of all overloads), and nothing else in fundl touches ``torch.ops``, but its neighbours: `exchanges`,
for what processes say to each other, `recurrent_kernels`, and `graph_operations`, for what is found in graphs. What `torch`
itself exports, typed and documented (``torch.addmm``, ``torch.relu``), is called there.

The annotations are strings, since torch 2.11's OpOverload cannot be subscripted at run time.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch._ops import OpOverload

Kernel = TypeVar("Kernel")

_aten: Final = torch.ops.aten


def onednn_runs(dtype: torch.dtype) -> bool:
    """Whether oneDNN runs on the CPU in half precision of a dtype: not all processors have the instructions."""
    if not (torch._C._has_mkldnn and torch._C._get_mkldnn_enabled()):
        return False
    return bool(_onednn_runs[dtype]())


_onednn_runs: "Final[Mapping[torch.dtype, Callable[[], bool]]]" = {
    torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
    torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
}


# --- Linear ------------------------------------------------------------------------------------------------------------

# x, weight, bias: x W^T + b over any leading axes.
linear: Callable[[Tensor, Tensor, Tensor | None], Tensor] = torch._C._nn.linear  # 0.7 us quicker than the overload

# The same by oneDNN, for float32 and bfloat16 on the CPU: x, weight (of any strides), bias, and what else it could do.
linear_onednn: "Callable[[Tensor, Tensor, Tensor | None, str, Sequence[float], str], Tensor] | None" = (
    torch.ops.mkldnn._linear_pointwise.default._op if torch._C._has_mkldnn else None
)

# --- Embedding ---------------------------------------------------------------------------------------------------------

# weight, tokens, and three settings that are of the gradient: the weight's rows.
embedding: "OpOverload[[Tensor, Tensor], Tensor]" = _aten.embedding.default

# grad, tokens, size of the vocabulary, the token without a gradient or -1, whether to divide by how often a token occurs.
embedding_backward: "OpOverload[[Tensor, Tensor, int, int, bool], Tensor]" = _aten.embedding_dense_backward.default

# --- Activations -------------------------------------------------------------------------------------------------------

# grad, output or input, threshold: grad where the second is above the threshold, else 0.
threshold_backward: "Callable[[Tensor, Tensor, float], Tensor]" = _aten.threshold_backward.default._op
# grad, output: grad (1 - output^2).
tanh_backward: "OpOverload[[Tensor, Tensor], Tensor]" = _aten.tanh_backward.default
# grad, output: grad output (1 - output).
sigmoid_backward: "OpOverload[[Tensor, Tensor], Tensor]" = _aten.sigmoid_backward.default

# x, slope: x where it is positive, else slope x.
leaky_relu: "OpOverload[[Tensor, float], Tensor]" = _aten.leaky_relu.default
# grad, output or input, slope, whether the second is the output (only a check: both have the same sign).
leaky_relu_backward: "OpOverload[[Tensor, Tensor, float, bool], Tensor]" = _aten.leaky_relu_backward.default

# x, alpha, scale of the output, scale of a negative input. (torch.celu has a derivative that rounds the last to float32.)
elu: "OpOverload[[Tensor, float, float, float], Tensor]" = _aten.elu.default
# grad, alpha, scale of the output, scale of a negative input, whether the last is the output, output or input.
elu_backward: "OpOverload[[Tensor, float, float, float, bool, Tensor], Tensor]" = _aten.elu_backward.default

silu: "OpOverload[[Tensor], Tensor]" = _aten.silu.default
# grad, input.
silu_backward: "OpOverload[[Tensor, Tensor], Tensor]" = _aten.silu_backward.default

mish: "OpOverload[[Tensor], Tensor]" = _aten.mish.default
# grad, input.
mish_backward: "OpOverload[[Tensor, Tensor], Tensor]" = _aten.mish_backward.default

hardswish: "OpOverload[[Tensor], Tensor]" = _aten.hardswish.default
# grad, input.
hardswish_backward: "OpOverload[[Tensor, Tensor], Tensor]" = _aten.hardswish_backward.default

hardsigmoid: "OpOverload[[Tensor], Tensor]" = _aten.hardsigmoid.default

# x, how much is taken off.
softshrink: "OpOverload[[Tensor, float], Tensor]" = _aten.softshrink.default

# x, beta, threshold of beta x.
softplus: "OpOverload[[Tensor, float, float], Tensor]" = _aten.softplus.default
# grad, input, beta, threshold.
softplus_backward: "OpOverload[[Tensor, Tensor, float, float], Tensor]" = _aten.softplus_backward.default

# x, slopes, of one axis or as many axes as x: x where it is positive, else slope x.
prelu: "OpOverload[[Tensor, Tensor], Tensor]" = _aten._prelu_kernel.default
# grad, input, slopes: the gradients of both, and of the slopes for each element of x.
prelu_backward: "OpOverload[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]" = _aten._prelu_kernel_backward.default

# grad, input, low, high: grad where the input is between the bounds, else 0.
hardtanh_backward: "OpOverload[[Tensor, Tensor, float, float], Tensor]" = _aten.hardtanh_backward.default


# x, axis: its first half times the sigmoid of its second.
glu: "OpOverload[[Tensor, int], Tensor]" = _aten.glu.default
# grad, input, axis.
glu_backward: "OpOverload[[Tensor, Tensor, int], Tensor]" = _aten.glu_backward.default


class _GELU(Protocol):
    def __call__(self, x: Tensor, /, *, approximate: Literal["none", "tanh"]) -> Tensor: ...


class _GELUBackward(Protocol):
    def __call__(self, grad: Tensor, x: Tensor, /, *, approximate: Literal["none", "tanh"]) -> Tensor: ...


gelu: _GELU = _aten.gelu.default
gelu_backward: _GELUBackward = _aten.gelu_backward.default

# grad, output, axis, the input's dtype.
softmax_backward: "OpOverload[[Tensor, Tensor, int, torch.dtype], Tensor]" = _aten._softmax_backward_data.default
log_softmax_backward: "OpOverload[[Tensor, Tensor, int, torch.dtype], Tensor]" = _aten._log_softmax_backward_data.default

# --- Normalisation -----------------------------------------------------------------------------------------------------

# In all backward kernels, the mask tells which of the gradients are wanted, of x, weight and bias; others are None. That of x
# has no None in its type here: whoever does not want it does not look at it.
Mask: TypeAlias = tuple[bool, bool, bool]
Gradients: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]

# x, sizes of the last axes, weight, bias, eps: y, mean and rstd over these axes.
layer_norm: Callable[[Tensor, Sequence[int], Tensor | None, Tensor | None, float], tuple[Tensor, Tensor, Tensor]] = (
    torch.native_layer_norm
)
# grad, x, sizes of the last axes, mean, rstd, weight, bias, mask.
LayerNormGiven: TypeAlias = tuple[Tensor, Tensor, Sequence[int], Tensor, Tensor, Tensor | None, Tensor | None]
layer_norm_backward: Callable[[*LayerNormGiven, Mask], Gradients] = _aten.native_layer_norm_backward.default

# x, weight, bias, its sizes (batch, channels, product of the others), groups, eps: y, mean and rstd of each group.
group_norm: Callable[[Tensor, Tensor | None, Tensor | None, int, int, int, int, float], tuple[Tensor, Tensor, Tensor]] = (
    torch.native_group_norm
)
# grad, x, mean, rstd, weight, the sizes, groups, mask.
group_norm_backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, int, int, int, int, Mask], Gradients] = (
    _aten.native_group_norm_backward.default
)

# x, weight, bias, mean, var, whether to take those of x, momentum, eps: y, and mean and rstd of x. Sizes are not checked.
batch_norm: Callable[
    [Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, bool, float, float], tuple[Tensor, Tensor, Tensor]
] = torch.native_batch_norm
# grad, x, weight, mean, var, mean and rstd of x, whether it was those, eps, mask.
_Maybe: TypeAlias = Tensor | None
BatchNormGiven: TypeAlias = tuple[Tensor, Tensor, _Maybe, _Maybe, _Maybe, _Maybe, _Maybe, bool, float]
batch_norm_backward: Callable[[*BatchNormGiven, Mask], Gradients] = _aten.native_batch_norm_backward.default

# v, gain, axis, which is the first or the last: gain v / norm, and norm. Both must be dense, which is not checked.
weight_norm: "OpOverload[[Tensor, Tensor, int], tuple[Tensor, Tensor]]" = _aten._weight_norm_interface.default
# grad, v, gain, norm, axis: the gradients of v and gain.
weight_norm_backward: "OpOverload[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]" = (
    _aten._weight_norm_interface_backward.default
)

# --- Pooling -----------------------------------------------------------------------------------------------------------

# By the number of spatial axes, of which one is to be run as the second of two. Here and below, a setting is one number for all
# axes, or one for each. Of the input, the backward kernels read the sizes, the dtype, the device and the order in memory, never
# the numbers.

PerAxis: TypeAlias = int | tuple[int, ...]


def _by_axes(of_two: Kernel, of_three: Kernel) -> Mapping[int, Kernel]:
    return {1: of_two, 2: of_two, 3: of_three}


# x, kernel size, stride, padding, dilation, ceil mode: the output, and where in its plane of x each element is from.
max_pool: Mapping[int, Callable[[Tensor, PerAxis, PerAxis, PerAxis, PerAxis, bool], tuple[Tensor, Tensor]]] = _by_axes(
    torch._C._nn.max_pool2d_with_indices, torch._C._nn.max_pool3d_with_indices
)
# grad, like the input, kernel size, stride, padding, dilation, ceil mode, where each element is from.
max_pool_backward: Mapping[int, Callable[[Tensor, Tensor, PerAxis, PerAxis, PerAxis, PerAxis, bool, Tensor], Tensor]] = (
    _by_axes(_aten.max_pool2d_with_indices_backward.default._op, _aten.max_pool3d_with_indices_backward.default._op)
)

# x, kernel size, stride, padding, ceil mode, whether the padding counts, what to divide by instead.
average_pool: Mapping[int, Callable[[Tensor, PerAxis, PerAxis, PerAxis, bool, bool, int | None], Tensor]] = _by_axes(
    torch._C._nn.avg_pool2d, torch._C._nn.avg_pool3d
)
# grad, like the input, and the same.
average_pool_backward: Mapping[int, Callable[[Tensor, Tensor, PerAxis, PerAxis, PerAxis, bool, bool, int | None], Tensor]] = (
    _by_axes(_aten.avg_pool2d_backward.default._op, _aten.avg_pool3d_backward.default._op)
)

# x, size of the output.
adaptive_average_pool: Mapping[int, Callable[[Tensor, PerAxis], Tensor]] = _by_axes(
    torch._C._nn.adaptive_avg_pool2d, torch._C._nn.adaptive_avg_pool3d
)
# grad, like the input.
adaptive_average_pool_backward: Mapping[int, Callable[[Tensor, Tensor], Tensor]] = _by_axes(
    _aten._adaptive_avg_pool2d_backward.default._op, _aten._adaptive_avg_pool3d_backward.default._op
)

# x, size of the output: the output, and where in its plane of x each element is from.
adaptive_max_pool: Mapping[int, Callable[[Tensor, PerAxis], tuple[Tensor, Tensor]]] = _by_axes(
    torch._C._nn.adaptive_max_pool2d, torch._C._nn.adaptive_max_pool3d
)
# grad, like the input, where each element is from.
adaptive_max_pool_backward: Mapping[int, Callable[[Tensor, Tensor, Tensor], Tensor]] = _by_axes(
    _aten.adaptive_max_pool2d_backward.default._op, _aten.adaptive_max_pool3d_backward.default._op
)

# --- Patches -----------------------------------------------------------------------------------------------------------

# Of windows over two axes, one number for each: kernel size, dilation, padding, stride.
Folding: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]

# x (B, C, H, W), or without B: what a window sees at each place, (B, C k k, L).
unfold: Callable[[Tensor, *Folding], Tensor] = _aten.im2col.default
# x (B, C k k, L), or without B, height and width: what lies on each other, added up, (B, C, H, W).
fold: Callable[[Tensor, Sequence[int], *Folding], Tensor] = _aten.col2im.default

# --- Attention ---------------------------------------------------------------------------------------------------------


class _Attention(Protocol):
    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, dropout: Literal[0], causal: bool, /, *, attn_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]: ...


class _AttentionBackward(Protocol):
    def __call__(  # noqa: PLR0917  # as the kernel has them
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        logsumexp: Tensor,
        dropout: Literal[0],
        causal: bool,
        /,
        *,
        attn_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]: ...


# On the CPU, queries (B, H, T, d), keys and values (B, K, S, d), H a multiple of K; with a mask of the queries' dtype that is
# added to the products, one of (B, 1, 1, S), say: the output (B, H, T, d), in memory (B, T, H, d), and each query's log-sum-exp
# (B, H, T). A query that sees nothing gets 0. T or S of 0 crashes the process.
attention: _Attention = _aten._scaled_dot_product_flash_attention_for_cpu.default
# The gradients with respect to the three, in memory (B, T, H, d).
attention_backward: _AttentionBackward = _aten._scaled_dot_product_flash_attention_for_cpu_backward.default

# On CUDA, of 16 bits, H a multiple of K: queries, keys, values, dropout, causal, whether to return the weights. The output, the
# log-sum-exp (B, H, T), and what has no meaning here: sizes of ragged sequences, and random numbers' state.
_Ragged: TypeAlias = tuple[Tensor | None, Tensor | None, int, int]
flash_attention: Callable[
    [Tensor, Tensor, Tensor, float, bool, bool], tuple[Tensor, Tensor, *_Ragged, Tensor, Tensor, Tensor]
] = _aten._scaled_dot_product_flash_attention.default
# grad, queries, keys, values, output, log-sum-exp, sizes of ragged sequences, dropout, causal, random numbers' state.
_Attended: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, int, int]
flash_attention_backward: Callable[[*_Attended, float, bool, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] = (
    _aten._scaled_dot_product_flash_attention_backward.default
)

# By cuDNN, of 16 bits, K = H: queries, keys, values, what is added to the scores, whether to give the log-sum-exp, dropout,
# causal, whether to return the weights. The output, in memory as the queries are, the log-sum-exp, of a shape of cuDNN's own,
# and others.
cudnn_attention: Callable[
    [Tensor, Tensor, Tensor, Tensor | None, bool, float, bool, bool],
    tuple[Tensor, Tensor, *_Ragged, Tensor, Tensor, Tensor | None],
] = _aten._scaled_dot_product_cudnn_attention.default
# grad, queries, keys, values, output, log-sum-exp, random numbers' state, what was added, sizes of ragged sequences, dropout,
# causal. grad is in memory as the output is.
_CudnnAttended: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, *_Ragged]
cudnn_attention_backward: Callable[[*_CudnnAttended, float, bool], tuple[Tensor, Tensor, Tensor]] = (
    _aten._scaled_dot_product_cudnn_attention_backward.default
)

# On CUDA, K = H: queries, keys, values, what is added to the scores, of the queries' dtype, whether to give the log-sum-exp
# (B, H, T up to the next multiple of 32), dropout, causal. The output, the log-sum-exp, and random numbers' state.
efficient_attention: Callable[
    [Tensor, Tensor, Tensor, Tensor | None, bool, float, bool], tuple[Tensor, Tensor, Tensor, Tensor]
] = _aten._scaled_dot_product_efficient_attention.default
# grad, queries, keys, values, what was added, output (in memory (B, T, H, d), as the kernel made it), log-sum-exp, random
# numbers' state, dropout, which gradients are wanted: of queries, keys, values, and of what was added; causal.
_Wanted: TypeAlias = tuple[bool, bool, bool, bool]
efficient_attention_backward: Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor, float, _Wanted, bool],
    tuple[Tensor, Tensor, Tensor, Tensor | None],
] = _aten._scaled_dot_product_efficient_attention_backward.default

# --- Convolution -------------------------------------------------------------------------------------------------------

# stride, padding and dilation of each axis, whether it is transposed, output padding of each axis, groups.
ConvolutionSettings: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool, tuple[int, ...], int]

# grad, x, weight, the sizes of the bias, the settings one by one, mask (see normalisation).
convolution_backward: Callable[
    [Tensor, Tensor, Tensor, Sequence[int] | None, *ConvolutionSettings, Mask], tuple[Tensor, Tensor, Tensor | None]
] = _aten.convolution_backward.default._op

# --- Resampling --------------------------------------------------------------------------------------------------------


class _Upsample(Protocol):
    def __call__(self, x: Tensor, sizes: Sequence[int], /, *options: float | None) -> Tensor: ...


class _UpsampleBackward(Protocol):
    def __call__(self, grad: Tensor, sizes: Sequence[int], input_sizes: Sequence[int], /, *options: float | None) -> Tensor: ...


# By the mode, and the number of spatial axes. x, the sizes of these in the output; if linear, whether the corners are aligned;
# for each axis the factor, or None where the size is what was asked for.
upsample: Mapping[tuple[str, int], _Upsample] = {
    ("nearest", 1): _aten.upsample_nearest1d.default._op,
    ("nearest", 2): _aten.upsample_nearest2d.default._op,
    ("nearest", 3): _aten.upsample_nearest3d.default._op,
    ("linear", 1): _aten.upsample_linear1d.default._op,
    ("linear", 2): _aten.upsample_bilinear2d.default._op,
    ("linear", 3): _aten.upsample_trilinear3d.default._op,
}
# grad, and the same with all sizes of the input behind those of the output.
upsample_backward: Mapping[tuple[str, int], _UpsampleBackward] = {
    ("nearest", 1): _aten.upsample_nearest1d_backward.default._op,
    ("nearest", 2): _aten.upsample_nearest2d_backward.default._op,
    ("nearest", 3): _aten.upsample_nearest3d_backward.default._op,
    ("linear", 1): _aten.upsample_linear1d_backward.default._op,
    ("linear", 2): _aten.upsample_bilinear2d_backward.default._op,
    ("linear", 3): _aten.upsample_trilinear3d_backward.default._op,
}

# By the mode, and the number of axes. x, elements before and behind each axis, the last axis first, behind one axis or two.
pad: Mapping[tuple[str, int], Callable[[Tensor, Sequence[int]], Tensor]] = {
    ("reflect", 1): _aten.reflection_pad1d.default._op,
    ("reflect", 2): _aten.reflection_pad2d.default._op,
    ("reflect", 3): _aten.reflection_pad3d.default._op,
    ("replicate", 1): _aten.replication_pad1d.default._op,
    ("replicate", 2): _aten.replication_pad2d.default._op,
    ("replicate", 3): _aten.replication_pad3d.default._op,
}
# grad, like the input, elements.
pad_backward: Mapping[tuple[str, int], Callable[[Tensor, Tensor, Sequence[int]], Tensor]] = {
    ("reflect", 1): _aten.reflection_pad1d_backward.default._op,
    ("reflect", 2): _aten.reflection_pad2d_backward.default._op,
    ("reflect", 3): _aten.reflection_pad3d_backward.default._op,
    ("replicate", 1): _aten.replication_pad1d_backward.default._op,
    ("replicate", 2): _aten.replication_pad2d_backward.default._op,
    ("replicate", 3): _aten.replication_pad3d_backward.default._op,
}
# x, elements; over any number of axes, behind two.
pad_circular: Callable[[Tensor, Sequence[int]], Tensor] = _aten._pad_circular.default._op

# --- Losses ------------------------------------------------------------------------------------------------------------

# In all of these, a reduction is 1 for the mean and 2 for the sum, and `one` the gradient with respect to the value.

# log-probabilities (B, C), classes (B,), the classes' weights, reduction, class to leave out: the value, the sum of weights.
nll_loss_forward: "OpOverload[[Tensor, Tensor, Tensor | None, Literal[1, 2], int], tuple[Tensor, Tensor]]" = (
    _aten.nll_loss_forward.default
)
# one, the same, and the sum of weights.
nll_loss_backward: "OpOverload[[Tensor, Tensor, Tensor, Tensor | None, Literal[1, 2], int, Tensor], Tensor]" = (
    _aten.nll_loss_backward.default
)
# The same of log-probabilities (B, C, H, W) and classes (B, H, W).
nll_loss2d_forward: "OpOverload[[Tensor, Tensor, Tensor | None, Literal[1, 2], int], tuple[Tensor, Tensor]]" = (
    _aten.nll_loss2d_forward.default
)
nll_loss2d_backward: "OpOverload[[Tensor, Tensor, Tensor, Tensor | None, Literal[1, 2], int, Tensor], Tensor]" = (
    _aten.nll_loss2d_backward.default
)

# probabilities, target, weight, reduction.
binary_cross_entropy: "OpOverload[[Tensor, Tensor, Tensor | None, Literal[0, 1, 2]], Tensor]" = (
    _aten.binary_cross_entropy.default
)
# one, and the same.
binary_cross_entropy_backward: "OpOverload[[Tensor, Tensor, Tensor, Tensor | None, Literal[1, 2]], Tensor]" = (
    _aten.binary_cross_entropy_backward.default
)

log_sigmoid: Callable[[Tensor], Tensor] = torch._C._nn.log_sigmoid
