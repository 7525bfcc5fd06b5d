"""Linear and bilinear maps, slopes, embeddings, and convolutions."""

from torch import nn

from fundl.initializers import normal
from fundl.interop.torch_nn._counterparts import from_counterpart, require, to_counterpart
from fundl.interop.torch_nn._rules import model_of, module_of, stands_alone
from fundl.layer import AnyLayer
from fundl.layers.bilinear import Bilinear
from fundl.layers.convolution import Conv1d, Conv2d, Conv3d
from fundl.layers.embedding import Embedding, ZeroRow
from fundl.layers.linear import Linear
from fundl.layers.prelu import PReLU
from fundl.layers.transposed_convolution import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d

# --- Maps --------------------------------------------------------------------------------------------------------------


@module_of.register
def _(layer: Linear, *_: object) -> nn.Module:
    outputs, inputs = layer.weight.shape
    return to_counterpart(layer, in_features=inputs, out_features=outputs, bias=layer.bias is not None)


@module_of.register
def _(layer: PReLU, *_: object) -> nn.Module:
    return to_counterpart(layer, num_parameters=layer.weight.numel())


stands_alone("it takes two inputs, which nn.Sequential does not hand on: convert it by itself", nn.Bilinear, Bilinear)


@module_of.register
def _(layer: Bilinear, *_: object) -> nn.Module:
    outputs, first, second = layer.weight.shape
    bias = layer.bias is not None
    return to_counterpart(layer, in1_features=first, in2_features=second, out_features=outputs, bias=bias)


# --- Embeddings --------------------------------------------------------------------------------------------------------


@model_of.register
def _(module: nn.Embedding, *_: object) -> AnyLayer:
    require(
        module.max_norm is None,
        f"max_norm={module.max_norm} changes the weight whenever it is used, which no layer does: set it to None",
    )
    require(
        not module.scale_grad_by_freq,
        "scale_grad_by_freq=True makes another gradient of the weight than the derivative: set it to False",
    )
    require(not module.sparse, "sparse=True makes sparse gradients, which no layer has: set it to False")
    if module.padding_idx is None:
        return from_counterpart(module)
    return from_counterpart(module, weight_init=ZeroRow(normal(), module.padding_idx))


@module_of.register
def _(layer: Embedding, *_: object) -> nn.Module:
    vocabulary, features = layer.weight.shape
    return to_counterpart(layer, num_embeddings=vocabulary, embedding_dim=features)


# --- Convolutions ------------------------------------------------------------------------------------------------------


@model_of.register
def _(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, *_: object) -> AnyLayer:
    mode = module.padding_mode
    padding = {"reflect": "ReflectionPad", "replicate": "ReplicationPad", "circular": "CircularPad"}.get(mode, "")
    require(
        mode == "zeros",
        f"padding_mode={mode!r}, but a convolution pads with zeros: put nn.{padding}1d, 2d or 3d before one with padding=0",
    )
    return from_counterpart(module, padding=0) if module.padding == "valid" else from_counterpart(module)


@model_of.register
def _(module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d, *_: object) -> AnyLayer:
    require(not isinstance(module.padding, str), f"padding={module.padding!r}: give the padding in numbers")
    return from_counterpart(module)


@module_of.register
def _(layer: Conv1d | Conv2d | Conv3d | ConvTranspose1d | ConvTranspose2d | ConvTranspose3d, *_: object) -> nn.Module:
    require(
        layer.padding != "same" or (not layer.transposed and layer.stride in {1, (1,) * layer.axes}),
        "padding='same' with a stride, or of a transposed convolution, which torch does not have: give the padding in numbers",
    )
    first, second, *kernel = layer.weight.shape
    inputs, outputs = (first, second * layer.groups) if layer.transposed else (second * layer.groups, first)
    sizes = {"in_channels": inputs, "out_channels": outputs, "kernel_size": tuple(kernel)}
    return to_counterpart(layer, **sizes, bias=layer.bias is not None)
