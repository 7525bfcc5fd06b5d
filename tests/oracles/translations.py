"""For each operator of torch's that a layer is a counterpart of: what its parameters are called, and how to make the layer."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Final

import attrs
import torch
from torch import Tensor, nn

from fundl import Attend, Flatten, LayerNorm, Model, Pad, Reshape, without_statistics
from fundl.interop import torch_nn
from fundl.layers.resampling import PadMode
from tests.oracles.database import Arguments
from tests.oracles.listing import NotRunError
from tests.oracles.losses import integers
from tests.test_torch_nn import OURS


@attrs.frozen
class Translation:
    """How a call of an operator becomes a layer."""

    names: Sequence[str]
    """Of the operator's first parameters."""
    make: "Callable[[Arguments], nn.Module | Model]"
    """The layer, or a module whose parameters are still to be put in by name."""
    inputs: Sequence[str] = ("input",)
    """The names of what the layer is applied to."""


# --- Typed looks at arguments ------------------------------------------------------------------------------------------


def tensor(a: Arguments, name: str) -> Tensor:
    value = a[name]
    assert isinstance(value, Tensor)
    return value


def chosen(a: Arguments, *names: str) -> dict[str, object]:
    """Those of the arguments that are given."""
    return {name: a[name] for name in names if name in a}


def module_of(kind: type[nn.Module], *args: object, **options: object) -> nn.Module:
    return kind(*args, **options)


def has(a: Arguments, name: str) -> bool:
    return a.get(name) is not None


# --- Modules with options, and nothing else ----------------------------------------------------------------------------


def of_options(kind: type[nn.Module], *names: str, **renamed: str) -> Translation:
    """A module whose options are called as the operator's, or renamed: the module's name, and the operator's."""

    def make(a: Arguments) -> nn.Module:
        options = {**chosen(a, *names), **{own: a[theirs] for own, theirs in renamed.items() if theirs in a}}
        return kind(**options)

    return Translation(("input", *names, *renamed.values()), make)


def softmax(kind: type[nn.Module]) -> Translation:
    def make(a: Arguments) -> nn.Module:
        if a.get("dtype", tensor(a, "input").dtype) != tensor(a, "input").dtype:
            raise NotRunError("another dtype")
        return kind(a["dim"])

    return Translation(("input", "dim"), make)


def dropout(kind: type[nn.Module]) -> Translation:
    def make(a: Arguments) -> nn.Module:
        if a.get("training", True) and a.get("p", 0.5) != 0:
            raise NotRunError("draws from the global generator")
        return kind(float(str(a.get("p", 0.5))))

    return Translation(("input", "p", "training"), make)


def max_pool(kind: type[nn.Module]) -> Translation:
    return of_options(kind, "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


def adaptive_pool(kind: type[nn.Module], axes: int) -> Translation:
    """A pool whose sizes are given: where they are to be those of the input, these."""

    def make(a: Arguments) -> nn.Module:
        size = a["output_size"]
        if isinstance(size, tuple | list):
            kept = tensor(a, "input").shape[-axes:]
            size = tuple(own if given is None else given for own, given in zip(kept, size, strict=True))
        return kind(size, **chosen(a, "return_indices"))

    return Translation(("input", "output_size", "return_indices"), make)


def average_pool(kind: type[nn.Module]) -> Translation:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")

    def make(a: Arguments) -> nn.Module:
        return kind(**{name: value for name, value in chosen(a, *names).items() if not (name == "stride" and value == ())})

    return Translation(("input", *names), make)


def interpolate(a: Arguments) -> nn.Module:
    if has(a, "antialias") and a["antialias"]:
        raise NotRunError("antialias=True")
    axes = tensor(a, "input").ndim - 2
    if a.get("mode") == "area":
        return module_of(getattr(nn, f"AdaptiveAvgPool{axes}d"), size_of(a))
    if a.get("recompute_scale_factor"):
        return module_of(nn.Upsample, size_of(a), **chosen(a, "mode", "align_corners"))
    return module_of(nn.Upsample, **chosen(a, "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor"))


def size_of(a: Arguments) -> tuple[int, ...]:
    """The size that an interpolation makes: what is given, or the input's times a factor, rounded down."""
    spatial = tensor(a, "input").shape[2:]
    if has(a, "size"):
        size = a["size"]
        return integers(size if isinstance(size, tuple | list) else (size,) * len(spatial))
    factor = a["scale_factor"]
    factors = factor if isinstance(factor, tuple | list) else (factor,) * len(spatial)
    return tuple(math.floor(n * float(str(own))) for n, own in zip(spatial, factors, strict=True))


def leaky(a: Arguments) -> nn.Module:
    """Slopes that are drawn, which are their mean where nothing is trained."""
    if a.get("training"):
        raise NotRunError("draws from the global generator")
    low, high = (float(str(a.get(name, default))) for name, default in (("lower", 1 / 8), ("upper", 1 / 3)))
    return nn.LeakyReLU((low + high) / 2)


def flatten(a: Arguments) -> Model:
    shape = tensor(a, "input").shape
    if not a.get("start_dim"):
        raise NotRunError("the axis of the batch is joined with others, or parted")
    end = int(str(a.get("end_dim", -1))) % len(shape)
    start = int(str(a["start_dim"])) % len(shape)
    return Flatten(start) if end == len(shape) - 1 else Reshape((*shape[1:start], -1, *shape[end + 1 :]))


def unflatten(a: Arguments) -> Model:
    shape = tensor(a, "input").shape
    axis, sizes = int(str(a["dim"])) % len(shape), integers(a["sizes"])
    if axis == 0:
        raise NotRunError("the axis of the batch is joined with others, or parted")
    return Reshape((*shape[1:axis], *sizes, *shape[axis + 1 :]))


def upsample(kind: type[nn.Module]) -> Translation:
    return of_options(kind, "size", "scale_factor")


def pad(mode: PadMode) -> Callable[[Arguments], Model]:
    def make(a: Arguments) -> Model:
        counts = integers(a["pad"])
        if len(counts) % 2:
            raise NotRunError("an odd number of paddings")
        pairs = tuple((counts[place], counts[place + 1]) for place in range(len(counts) - 2, -1, -2))
        return Pad(pairs, mode=mode, value=float(str(a.get("value") or 0.0)))

    return make


# --- Modules with parameters -------------------------------------------------------------------------------------------


def linear(a: Arguments) -> nn.Module:
    weight = tensor(a, "weight")
    return nn.Linear(weight.shape[1], weight.shape[0], bias=has(a, "bias"))


def prelu(a: Arguments) -> nn.Module:
    weight = tensor(a, "weight")
    if weight.ndim > 1:
        raise ValueError("the slopes are no vector")
    return nn.PReLU(weight.numel())


def bilinear(a: Arguments) -> nn.Module:
    outputs, first, second = tensor(a, "weight").shape
    return nn.Bilinear(first, second, outputs, bias=has(a, "bias"))


def embedding(a: Arguments) -> nn.Module:
    if tensor(a, "weight").ndim != 2:
        raise ValueError("the weight is no matrix")
    options = chosen(a, "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    return module_of(nn.Embedding, *tensor(a, "weight").shape, **options)


CONVOLUTION: Final = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def convolution(kind: type[nn.Module], axes: int) -> Translation:
    def make(a: Arguments) -> nn.Module:
        weight, groups = tensor(a, "weight"), int(str(a.get("groups", 1)))
        if weight.ndim != axes + 2:
            raise ValueError("the weight has another number of axes")
        channels = weight.shape[1] * groups, weight.shape[0]
        options = chosen(a, "stride", "padding", "dilation", "groups")
        return kind(*channels, tuple(weight.shape[2:]), bias=has(a, "bias"), **options)

    return Translation(CONVOLUTION, make)


def transposed_convolution(kind: type[nn.Module]) -> Translation:
    def make(a: Arguments) -> nn.Module:
        weight, groups = tensor(a, "weight"), int(str(a.get("groups", 1)))
        options = chosen(a, "stride", "padding", "output_padding", "dilation", "groups")
        return kind(weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]), bias=has(a, "bias"), **options)

    return Translation(("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"), make)


def layer_norm(a: Arguments) -> "nn.Module | Model":
    shape = integers(a["normalized_shape"])
    if has(a, "bias") and not has(a, "weight"):
        bias = tensor(a, "bias").detach()
        return LayerNorm(shape, torch.ones_like(bias), bias, eps=float(str(a.get("eps", 1e-5))))
    return module_of(nn.LayerNorm, shape, elementwise_affine=has(a, "weight"), bias=has(a, "bias"), **chosen(a, "eps"))


def rms_norm(a: Arguments) -> nn.Module:
    eps = a["eps"] if has(a, "eps") else torch.finfo(tensor(a, "input").dtype).eps
    return module_of(nn.RMSNorm, integers(a["normalized_shape"]), elementwise_affine=has(a, "weight"), eps=eps)


def of_channels(a: Arguments, module: nn.Module) -> nn.Module:
    """A normalisation of channels, whose module has a weight and a bias."""
    if has(a, "bias") and not has(a, "weight"):
        raise NotRunError("a bias without a weight")
    if not has(a, "bias"):
        module.register_parameter("bias", None)
    if not has(a, "weight"):
        module.register_parameter("weight", None)
    return module


def group_norm(a: Arguments) -> nn.Module:
    return of_channels(a, module_of(nn.GroupNorm, int(str(a["num_groups"])), tensor(a, "input").shape[1], **chosen(a, "eps")))


def instance_norm(a: Arguments) -> nn.Module:
    if not a.get("use_input_stats", True):
        raise NotRunError("running statistics of an instance")
    x = tensor(a, "input")
    kinds: dict[int, type[nn.Module]] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
    if x.ndim not in kinds:
        raise NotRunError("without a batch")
    return of_channels(a, module_of(kinds[x.ndim], x.shape[1], affine=True, **chosen(a, "eps")))


def batch_norm(a: Arguments) -> Model:
    x = tensor(a, "input")
    kinds: dict[int, type[nn.Module]] = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    if x.ndim < 2:
        raise NotRunError("an input of one axis")
    kind = kinds.get(x.ndim, nn.BatchNorm1d)
    by_batch = bool(a.get("training"))
    module = of_channels(a, module_of(kind, x.shape[1], track_running_stats=not by_batch, **chosen(a, "eps")))
    model = torch_nn.from_torch(filled(module, a))
    return without_statistics(model) if by_batch else model


def attention(a: Arguments) -> Model:
    """Attention of heads, which three axes are one of; a mask of booleans says what is seen, and one of numbers is added."""
    query, key, value = (tensor(a, name) for name in ("query", "key", "value"))
    if a.get("dropout_p", 0.0) != 0:
        raise NotRunError("draws from the global generator")
    if not query.ndim == key.ndim == value.ndim or key.shape != value.shape or query.shape[:-3] != key.shape[:-3]:
        raise NotRunError("heads that broadcast, or are of other sizes")
    mask = a.get("attn_mask")
    visible = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril() if a.get("is_causal") else None
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        visible = mask
    bias = mask.detach() if isinstance(mask, Tensor) and mask.dtype != torch.bool else None
    scale = float(str(a["scale"])) if has(a, "scale") else None
    return Attend(bias=by_head(bias), visible=by_head(visible), scale=scale)


def by_head(mask: Tensor | None) -> Tensor | None:
    """What is said of pairs of positions, where there is but one head."""
    return mask.unsqueeze(1) if mask is not None and mask.ndim == 3 else mask


def filled(module: nn.Module, a: Arguments) -> nn.Module:
    """The module with the operator's tensors for its parameters and buffers of the same names."""
    for name, _ in list(module.named_parameters()):
        module.register_parameter(name, nn.Parameter(tensor(a, name).detach().clone()))
    for name, _ in list(module.named_buffers()):
        if name != "num_batches_tracked":
            module.register_buffer(name, tensor(a, name).detach().clone())
    return module


# --- The table ---------------------------------------------------------------------------------------------------------

BATCH_NORM: Final = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


def of_counterparts() -> Mapping[str, Translation]:
    """Functions of torch.nn that are called as a module is that a layer of options alone names, and take the same options."""
    found: dict[str, Translation] = {}
    for name in (name for name, layer in OURS.items() if "weight" not in layer.children):
        kind: type[nn.Module] = getattr(nn, name)
        options = [option for option in signature(kind).parameters if option not in {"inplace", "min_value", "max_value"}]
        function = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])|(?<=Leaky)|(?<=Adaptive)", "_", name).lower()
        if hasattr(nn.functional, function) and kind not in {
            nn.Tanh,
            nn.Sigmoid,
            nn.Softmax,
            nn.LogSoftmax,
        }:  # which are torch's own, below
            found[f"nn.functional.{function}"] = of_options(kind, *options)
    return found


TRANSLATIONS: Final[Mapping[str, Translation]] = {
    **of_counterparts(),
    "tanh": of_options(nn.Tanh),
    "sigmoid": of_options(nn.Sigmoid),
    "softmax": softmax(nn.Softmax),
    "softmax with_dtype": softmax(nn.Softmax),
    "log_softmax": softmax(nn.LogSoftmax),
    "log_softmax with_dtype": softmax(nn.LogSoftmax),
    "flatten": Translation(("input", "start_dim", "end_dim"), flatten),
    "unflatten": Translation(("input", "dim", "sizes"), unflatten),
    "native_layer_norm": Translation(("input", "normalized_shape", "weight", "bias", "eps"), layer_norm),
    "nn.functional.relu6": of_options(nn.ReLU6),
    "nn.functional.dropout": dropout(nn.Dropout),
    "nn.functional.dropout2d": dropout(nn.Dropout2d),
    "nn.functional.dropout3d": dropout(nn.Dropout3d),
    "nn.functional.alpha_dropout": dropout(nn.AlphaDropout),
    "nn.functional.logsigmoid": of_options(nn.LogSigmoid),
    "nn.functional.softmin": softmax(nn.Softmin),
    "nn.functional.softmin with_dtype": softmax(nn.Softmin),
    "nn.functional.rrelu": Translation(("input", "lower", "upper", "training"), leaky),
    "nn.functional.prelu": Translation(("input", "weight"), prelu),
    "nn.functional.adaptive_avg_pool1d": adaptive_pool(nn.AdaptiveAvgPool1d, 1),
    "nn.functional.adaptive_max_pool1d": adaptive_pool(nn.AdaptiveMaxPool1d, 1),
    "nn.functional.avg_pool1d": average_pool(nn.AvgPool1d),
    "nn.functional.adaptive_avg_pool2d": adaptive_pool(nn.AdaptiveAvgPool2d, 2),
    "nn.functional.adaptive_max_pool2d": adaptive_pool(nn.AdaptiveMaxPool2d, 2),
    "nn.functional.avg_pool2d": average_pool(nn.AvgPool2d),
    "nn.functional.adaptive_avg_pool3d": adaptive_pool(nn.AdaptiveAvgPool3d, 3),
    "nn.functional.adaptive_max_pool3d": adaptive_pool(nn.AdaptiveMaxPool3d, 3),
    "nn.functional.avg_pool3d": average_pool(nn.AvgPool3d),
    "nn.functional.max_pool1d": max_pool(nn.MaxPool1d),
    "nn.functional.max_pool2d": max_pool(nn.MaxPool2d),
    "nn.functional.max_pool3d": max_pool(nn.MaxPool3d),
    "nn.functional.interpolate area": Translation(("input", "size", "scale_factor"), interpolate),
    "nn.functional.interpolate bicubic": Translation(("input", "size", "scale_factor"), interpolate),
    "nn.functional.interpolate bilinear": Translation(("input", "size", "scale_factor"), interpolate),
    "nn.functional.interpolate linear": Translation(("input", "size", "scale_factor"), interpolate),
    "nn.functional.interpolate nearest": Translation(("input", "size", "scale_factor"), interpolate),
    "nn.functional.interpolate nearest-exact": Translation(("input", "size", "scale_factor"), interpolate),
    "nn.functional.interpolate trilinear": Translation(("input", "size", "scale_factor"), interpolate),
    "nn.functional.upsample_bilinear": upsample(nn.UpsamplingBilinear2d),
    "nn.functional.upsample_nearest": upsample(nn.UpsamplingNearest2d),
    "nn.functional.pad constant": Translation(("input", "pad", "mode", "value"), pad("constant")),
    "nn.functional.pad reflect": Translation(("input", "pad", "mode", "value"), pad("reflect")),
    "nn.functional.pad replicate": Translation(("input", "pad", "mode", "value"), pad("replicate")),
    "nn.functional.pad replicate_negative": Translation(("input", "pad", "mode", "value"), pad("replicate")),
    "nn.functional.pad circular": Translation(("input", "pad", "mode", "value"), pad("circular")),
    "nn.functional.linear": Translation(("input", "weight", "bias"), linear),
    "nn.functional.bilinear": Translation(("input1", "input2", "weight", "bias"), bilinear, ("input1", "input2")),
    "nn.functional.embedding": Translation(("weight", "input"), embedding),
    "nn.functional.conv1d": convolution(nn.Conv1d, 1),
    "nn.functional.conv2d": convolution(nn.Conv2d, 2),
    "nn.functional.conv3d": convolution(nn.Conv3d, 3),
    "nn.functional.conv_transpose1d": transposed_convolution(nn.ConvTranspose1d),
    "nn.functional.conv_transpose2d": transposed_convolution(nn.ConvTranspose2d),
    "nn.functional.conv_transpose3d": transposed_convolution(nn.ConvTranspose3d),
    "nn.functional.layer_norm": Translation(("input", "normalized_shape", "weight", "bias", "eps"), layer_norm),
    "nn.functional.rms_norm": Translation(("input", "normalized_shape", "weight", "eps"), rms_norm),
    "nn.functional.group_norm": Translation(("input", "num_groups", "weight", "bias", "eps"), group_norm),
    "nn.functional.instance_norm": Translation(
        ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats"), instance_norm
    ),
    "nn.functional.batch_norm": Translation(BATCH_NORM, batch_norm),
    "nn.functional.batch_norm without_cudnn": Translation(BATCH_NORM, batch_norm),
    "native_batch_norm": Translation(("input", "weight", "bias", *BATCH_NORM[1:3], *BATCH_NORM[5:]), batch_norm),
    "nn.functional.scaled_dot_product_attention": Translation(
        ("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), attention, ("query", "key", "value")
    ),
}
