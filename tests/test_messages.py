"""What is written in a first hour by those who come from torch, equinox, flax or optax, and what fundl answers.

A table of wrong programs, each with the whole sentence: it says what was given, what is meant, and what to write. Read it as a
user would.
"""

import functools
import inspect
import pickle
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor
from typing_extensions import override

import fundl
from fundl import (
    Layer,
    Linear,
    ReLU,
    compose,
    frozen,
    initialize,
    key,
    layer_norm,
    linear,
    mse,
    residual,
    sgd,
    train_state,
    tree,
    value_and_grad,
)
from fundl._common.suggestions import maker_of
from fundl.tree import Record
from tests.face import PUBLIC

MODEL: Final = initialize(key(0), compose(linear(2, 8), ReLU(), linear(8, 1)))
NAMES: Final[Mapping[str, object]] = MappingProxyType(
    {name: getattr(fundl, name) for name in PUBLIC}
    | {
        "fundl": fundl,
        "torch": torch,
        "nn": torch.nn,
        "F": torch.nn.functional,
        "np": np,
        "model": MODEL,
        "x": torch.ones(4, 2),
        "target": torch.zeros(4, 1),
        "array": np.ones((4, 2), dtype=np.float32),
        "optimizer": sgd(0.1),
        "state": train_state(key(1), MODEL, sgd(0.1)),
    }
)


@attrs.frozen
class Case:
    """A wrong program, and what it is answered."""

    program: str
    error: type[Exception]
    sentence: str


# --- Layers are made --------------------------------------------------------------------------------------------------

LAYERS: Final[tuple[Case, ...]] = (
    Case(
        "Linear(2, 3)",
        TypeError,
        "Linear is made of its tensors, not of sizes: write linear(2, 3), and give it values with initialize(key(0), ...)",
    ),
    Case(
        "Linear(in_features=2, out_features=3)",
        TypeError,
        "Linear is made of its tensors, not of sizes: write linear(in_features=2, out_features=3), and give"
        " it values with initialize(key(0), ...)",
    ),
    Case(
        "Linear(8)",
        TypeError,
        "Linear is made of its tensors, not of sizes: these are for linear(in_features, out_features, bias,"
        " weight_init, bias_init, dtype)",
    ),
    Case(
        "BatchNorm(8)",
        TypeError,
        "BatchNorm is made of its tensors, not of sizes: write batch_norm(8), and give it values with initialize(key(0), ...)",
    ),
    Case(
        "BatchNorm(8, momentum=0.1)",
        TypeError,
        "BatchNorm is made of its tensors, not of sizes: write batch_norm(8), and give it values with"
        " initialize(key(0), ...); momentum is left out: that of statistics is for track(model, residuals,"
        " momentum=...), that of steps for sgd",
    ),
    Case(
        "Conv2d(3, 8, 3)",
        TypeError,
        "Conv2d is made of its tensors, not of sizes: write conv2d(3, 8, 3), and give it values with initialize(key(0), ...)",
    ),
    Case(
        "Conv2d(3, 8, kernel_size=3, padding=1)",
        TypeError,
        "Conv2d is made of its tensors, not of sizes: write conv2d(3, 8, padding=1, kernel_size=3), and give"
        " it values with initialize(key(0), ...)",
    ),
    Case(
        "ConvTranspose2d(3, 8, 3, stride=2)",
        TypeError,
        "ConvTranspose2d is made of its tensors, not of sizes: write conv_transpose2d(3, 8, 3, stride=2), and"
        " give it values with initialize(key(0), ...)",
    ),
    Case(
        "GroupNorm(2, 8)",
        TypeError,
        "GroupNorm is made of its tensors, not of sizes: write group_norm(2, 8), and give it values with"
        " initialize(key(0), ...)",
    ),
    Case(
        "InstanceNorm(8)",
        TypeError,
        "InstanceNorm is made of its tensors, not of sizes: write instance_norm(8), and give it values with"
        " initialize(key(0), ...)",
    ),
    Case(
        "Embedding(10, 4)",
        TypeError,
        "Embedding is made of its tensors, not of sizes: write embedding(10, 4), and give it values with"
        " initialize(key(0), ...)",
    ),
    Case(
        "Embedding(10, embedding_dim=4, padding_idx=0)",
        TypeError,
        "Embedding is made of its tensors, not of sizes: write embedding(10, features=4, padding=0), and give"
        " it values with initialize(key(0), ...)",
    ),
    Case(
        "LearnedPositions(10, 4)",
        TypeError,
        "LearnedPositions is made of its tensors, not of sizes: write learned_positions(10, 4), and give it"
        " values with initialize(key(0), ...)",
    ),
    Case(
        "Bilinear(2, 3, 4)",
        TypeError,
        "Bilinear is made of its tensors, not of sizes: write bilinear(2, 3, 4), and give it values with"
        " initialize(key(0), ...)",
    ),
    Case(
        "LSTM(2, 3)",
        TypeError,
        "LSTM is made of its tensors, not of sizes: write lstm(2, 3), and give it values with initialize(key(0), ...)",
    ),
    Case(
        "LSTM(input_size=2, hidden_size=3, num_layers=2, batch_first=True)",
        TypeError,
        "LSTM is made of its tensors, not of sizes: write lstm(in_features=2, hidden_features=3, depth=2),"
        " and give it values with initialize(key(0), ...); batch_first is left out: the batch is always the"
        " first axis",
    ),
    Case(
        "SelfAttention(embed_dim=8, num_heads=2, batch_first=True)",
        TypeError,
        "SelfAttention is made of its tensors, not of sizes: write self_attention(features=8, heads=2), and"
        " give it values with initialize(key(0), ...); batch_first is left out: the batch is always the first"
        " axis",
    ),
    Case(
        "Linear(2, 3, key=key(0))",
        TypeError,
        "Linear is made of its tensors, not of sizes: write linear(2, 3), and give it values with"
        " initialize(key(0), ...); key is left out: initialize(key, model) draws the parameters of a whole"
        " model",
    ),
    Case(
        "Residual(linear(2, 2), ReLU())",
        TypeError,
        "Residual is made of its parts as they are kept: write residual(..., ReLU())",
    ),
    Case(
        "Dropout(p=0.1)",
        TypeError,
        "Dropout has no p: write Dropout(rate=0.1)",
    ),
    Case(
        "Dropout()",
        TypeError,
        "Dropout lacks rate: it takes rate, key",
    ),
    Case(
        "ReLU(inplace=True)",
        TypeError,
        "ReLU has no inplace: write ReLU(); inplace is left out: no layer writes over its input",
    ),
    Case(
        "LeakyReLU(0.1, inplace=True)",
        TypeError,
        "LeakyReLU has no inplace: write LeakyReLU(0.1); inplace is left out: no layer writes over its input",
    ),
    Case(
        "Softmax(dim=1)",
        TypeError,
        "Softmax has no dim: write Softmax(axis=1)",
    ),
    Case(
        "Flatten(start_dim=1)",
        TypeError,
        "Flatten has no start_dim: write Flatten(start=1)",
    ),
    Case(
        "Flatten(1, -1)",
        TypeError,
        "Flatten takes 1 by place (start), not 2",
    ),
    Case(
        "MaxPool2d(2, 2)",
        TypeError,
        "MaxPool2d takes 1 by place (kernel_size), not 2; by name, stride, padding, dilation, ceil_mode",
    ),
    Case(
        "MaxPool2d(2, return_indices=True)",
        TypeError,
        "MaxPool2d has no return_indices: write MaxPool2d(2); return_indices is left out: a layer has one output",
    ),
    Case(
        "Upsample(scale_factor=2)",
        TypeError,
        "Upsample has no scale_factor: write Upsample(factor=2)",
    ),
    Case(
        "linear(2.0, 3)",
        TypeError,
        "in_features must be an int, not 2.0",
    ),
    Case(
        'linear("2", 3)',
        TypeError,
        "in_features must be an int, not '2'",
    ),
    Case(
        'linear(2, 3, device="cpu")',
        TypeError,
        "linear has no device: write linear(2, 3); device is left out: initialize(key, model, device=...) says where",
    ),
    Case(
        "linear(2, 3, use_bias=False, key=key(0))",
        TypeError,
        "linear has no use_bias and key: write linear(2, 3, bias=False); key is left out: initialize(key,"
        " model) draws the parameters of a whole model",
    ),
    Case(
        "conv2d(3, 8)",
        TypeError,
        "conv2d lacks kernel_size: it takes in_channels, out_channels, kernel_size, stride, padding,"
        " dilation, groups, bias, weight_init, bias_init, dtype",
    ),
    Case(
        "conv2d(3, 8, 3, 1, 1)",
        TypeError,
        "conv2d takes 3 by place (in_channels, out_channels, kernel_size), not 5; by name, stride, padding,"
        " dilation, groups, bias, weight_init, bias_init, dtype",
    ),
    Case(
        "conv2d(3, 8, 3, size=3)",
        TypeError,
        "conv2d has no size: it takes in_channels, out_channels, kernel_size, stride, padding, dilation,"
        " groups, bias, weight_init, bias_init, dtype",
    ),
    Case(
        "embedding(num_embeddings=10, embedding_dim=4)",
        TypeError,
        "embedding has no num_embeddings and embedding_dim: write embedding(vocabulary=10, features=4)",
    ),
    Case(
        "layer_norm(8, elementwise_affine=False)",
        TypeError,
        "layer_norm has no elementwise_affine: write layer_norm(8); elementwise_affine is left out: a norm"
        " made by its function has a weight, one made by its class has none",
    ),
    Case(
        "lstm(4, 8, num_layers=2, batch_first=True)",
        TypeError,
        "lstm has no num_layers and batch_first: write lstm(4, 8, depth=2); batch_first is left out: the"
        " batch is always the first axis",
    ),
    Case(
        "lstm(4, 8, num_layers=2, dropout=0.1)",
        TypeError,
        "lstm has no dropout: it takes in_features, hidden_features, depth, bidirectional, bias, forget_bias,"
        " weight_ih_init, weight_hh_init, bias_init, learned_state, dtype; for num_layers, write depth",
    ),
    Case(
        "self_attention(embed_dim=8, num_heads=2)",
        TypeError,
        "self_attention has no embed_dim and num_heads: write self_attention(features=8, heads=2)",
    ),
    Case(
        "kaiming_uniform(a=0.1)",
        TypeError,
        "kaiming_uniform has no a: write kaiming_uniform(negative_slope=0.1)",
    ),
    Case(
        "repeat(linear(2, 2), 3)",
        TypeError,
        "repeat(count, *layers) takes the number of blocks first, an int, not Linear(weight=float32[2, 2], bias=float32[2])",
    ),
)

# --- Models are composed and applied ----------------------------------------------------------------------------------

MODELS: Final[tuple[Case, ...]] = (
    Case(
        "model[0](x)",
        TypeError,
        "a Linear is a value, not a function: write apply(layer, x) for layer(x)",
    ),
    Case(
        "compose(nn.Linear(2, 3))",
        TypeError,
        "layer 1 is the module Linear of torch.nn, not a layer: write linear(...), or"
        " fundl.interop.torch_nn.from_torch(module), which makes a layer of it, with its parameters",
    ),
    Case(
        "compose(linear(2, 3), nn.ReLU)",
        TypeError,
        "layer 2 is the module ReLU of torch.nn, not a layer: write ReLU(...), or"
        " fundl.interop.torch_nn.from_torch(module), which makes a layer of it, with its parameters",
    ),
    Case(
        "compose(nn.BatchNorm2d(3))",
        TypeError,
        "layer 1 is the module BatchNorm2d of torch.nn, not a layer: write batch_norm(...), or"
        " fundl.interop.torch_nn.from_torch(module), which makes a layer of it, with its parameters",
    ),
    Case(
        "compose(nn.Sequential(nn.Linear(2, 3)))",
        TypeError,
        "layer 1 is the module Sequential of torch.nn, not a layer: write compose(*layers), or"
        " fundl.interop.torch_nn.from_torch(module), which makes a layer of it, with its parameters",
    ),
    Case(
        "compose(nn.Module())",
        TypeError,
        "layer 1 is the module Module of torch.nn, not a layer: write"
        " fundl.interop.torch_nn.from_torch(module), which makes a layer of it, with its parameters",
    ),
    Case(
        "compose([linear(2, 3), ReLU()])",
        TypeError,
        "layer 1 is of type list, not a layer or a tuple of layers: write compose(*layers)",
    ),
    Case(
        'compose({"a": linear(2, 3)})',
        TypeError,
        "layer 1 is of type dict, not a layer or a tuple of layers: a model with named parts is a NamedTuple of layers",
    ),
    Case(
        "compose(linear(2, 3), F.relu)",
        TypeError,
        "layer 2 is the function relu, not a layer: write ReLU(...)",
    ),
    Case(
        "compose(linear(2, 3), torch.tanh)",
        TypeError,
        "layer 2 is the function tanh, not a layer: write Tanh(...)",
    ),
    Case(
        "compose(linear(2, 3), lambda x: x)",
        TypeError,
        "layer 2 is the function <lambda>, not a layer: a layer is a record with a forward and a backward, see Layer",
    ),
    Case(
        "compose(linear, ReLU())",
        TypeError,
        "layer 1 is the function linear, not a layer: write linear(...)",
    ),
    Case(
        "compose(linear(2, 3), ReLU)",
        TypeError,
        "layer 2 is the class ReLU, not a layer: write ReLU(...)",
    ),
    Case(
        "compose(linear(2, 3), None)",
        TypeError,
        "layer 2 is of type NoneType, not a layer or a tuple of layers: None",
    ),
    Case(
        "residual(nn.Linear(2, 2))",
        TypeError,
        "layer 1 is the module Linear of torch.nn, not a layer: write linear(...), or"
        " fundl.interop.torch_nn.from_torch(module), which makes a layer of it, with its parameters",
    ),
    Case(
        "both(model, model)",
        ValueError,
        "the models of both(f, g) have a parameter in common, g[0].weight, of which each would train a copy"
        " of its own: shared(f) is one model for both inputs, pipe(shared(f), both(g, h)) begins with one;"
        " for two models that begin alike, make the second of copies, tree.map(torch.clone, f)",
    ),
    Case(
        "apply(x, model)",
        TypeError,
        "the model is of type Tensor, not a layer or a tuple of layers: float32[4, 2]; the model is the first"
        " argument, apply(model, x)",
    ),
    Case(
        "apply(nn.Linear(2, 3), x)",
        TypeError,
        "the model is the module Linear of torch.nn, not a layer: write linear(...), or"
        " fundl.interop.torch_nn.from_torch(module), which makes a layer of it, with its parameters",
    ),
    Case(
        "apply((linear(2, 3), nn.ReLU()), x)",
        TypeError,
        "layer 2 is the module ReLU of torch.nn, not a layer: write ReLU(...), or"
        " fundl.interop.torch_nn.from_torch(module), which makes a layer of it, with its parameters",
    ),
    Case(
        "apply(model, array)",
        TypeError,
        "the input must be a tensor, not ndarray: write torch.from_numpy(array)",
    ),
    Case(
        "apply(model, [[1.0, 2.0]])",
        TypeError,
        "the input must be a tensor, not float: write torch.tensor(...)",
    ),
    Case(
        "apply(linear(2, 3), x)",
        ValueError,
        "the model has no values yet, only shapes: call initialize(key(0), model) and apply what it returns",
    ),
    Case(
        "vjp(model, x, array[:, :1])",
        TypeError,
        "grad is the gradient with respect to the output, and must be a tensor, not ndarray: write torch.from_numpy(array)",
    ),
    Case(
        "model[0].parameters()",
        AttributeError,
        "'Linear' object has no attribute 'parameters': write tree.trainable_leaves(model)",
    ),
    Case(
        'model[0].to("cuda")',
        AttributeError,
        "'Linear' object has no attribute 'to': write tree.move_to(model, \"cuda\") or tree.cast_to(model, torch.bfloat16)",
    ),
    Case(
        "model[0].eval()",
        AttributeError,
        "'Linear' object has no attribute 'eval': there are no modes: rekey(model, key) is the model that"
        " drops, the model itself is for use",
    ),
    Case(
        "model[0].state_dict()",
        AttributeError,
        "'Linear' object has no attribute 'state_dict': write save(path, model)",
    ),
    Case(
        "model[0].zero_grad()",
        AttributeError,
        "'Linear' object has no attribute 'zero_grad': gradients are values that value_and_grad returns, and"
        " nothing adds to them",
    ),
    Case(
        "initialize(0, model)",
        TypeError,
        "a key is made by key(seed), split or fold_in, and is not 0",
    ),
    Case(
        "initialize(model, key(0))",
        TypeError,
        "a key is made by key(seed), split or fold_in, and is not (Linear(weight=float32[8, 2], bias=float32[8]),"
        " ReLU(), Linear(weight=float32[1, 8], bias=float32[1]))",
    ),
    Case(
        "initialize(key(0), Linear)",
        TypeError,
        "the model is the class Linear, not a layer: write Linear(...)",
    ),
    Case(
        "rekey(key(0), model)",
        TypeError,
        "rekey(model, key) takes a model first, a layer or a tuple of layers, not int64[2]",
    ),
    Case(
        "summary(model, x)",
        TypeError,
        "input_shape is a tuple of sizes, the batch axis included, such as (10, 2), not float32[4, 2]; of a"
        " pair of inputs, it is the pair of theirs, such as ((10, 2), (10, 3))",
    ),
    Case(
        "fundl.Sequential",
        AttributeError,
        "module 'fundl' has no attribute 'Sequential': write compose(*layers)",
    ),
    Case(
        "fundl.CrossEntropyLoss",
        AttributeError,
        "module 'fundl' has no attribute 'CrossEntropyLoss': write cross_entropy",
    ),
    Case(
        "fundl.MultiheadAttention",
        AttributeError,
        "module 'fundl' has no attribute 'MultiheadAttention': write self_attention(...)",
    ),
    Case(
        "fundl.BatchNorm2d",
        AttributeError,
        "module 'fundl' has no attribute 'BatchNorm2d': write batch_norm(...)",
    ),
)

# --- Losses and metrics -----------------------------------------------------------------------------------------------

LOSSES: Final[tuple[Case, ...]] = (
    Case(
        "value_and_grad(F.mse_loss, model, x, target)",
        TypeError,
        "mse_loss of torch gives the value of the loss alone, but a loss gives its gradient with respect to"
        " the prediction as well: write mse of fundl",
    ),
    Case(
        "value_and_grad(nn.MSELoss(), model, x, target)",
        TypeError,
        "MSELoss of torch gives the value of the loss alone, but a loss gives its gradient with respect to"
        " the prediction as well: write mse of fundl",
    ),
    Case(
        "value_and_grad(lambda prediction, target: (prediction - target).square().mean(), model, x, target)",
        TypeError,
        "a loss returns two things, its value and its gradient with respect to the prediction, but <lambda>"
        " returned float32[]: return both, as mse does",
    ),
    Case(
        "value_and_grad(model, mse, x, target)",
        TypeError,
        "a loss is a function of a prediction and a target that returns its value and its gradient, such as"
        " mse, not (Linear(weight=float32[8, 2], bias=float32[8]), ReLU(), Linear(weight=float32[1, 8],"
        " bias=float32[1]))",
    ),
    Case(
        "value_and_grad(mse, model, x, array[:, :1])",
        TypeError,
        "the target must be a tensor, not ndarray: write torch.from_numpy(array)",
    ),
    Case(
        "mse(x, [1.0, 2.0])",
        TypeError,
        "the target must be a tensor, not list: write torch.tensor(...)",
    ),
    Case(
        "fundl.minibatches(None, (x, array), 2)",
        TypeError,
        "data[1] must be a tensor, not ndarray: write torch.from_numpy(array)",
    ),
    Case(
        "fundl.minibatches(None, (x, [1, 2, 3, 4]), 2)",
        TypeError,
        "data[1][0] must be a tensor, not int: write torch.tensor(...)",
    ),
    Case(
        "mse(array, array)",
        TypeError,
        "predictions and targets must each be a tensor, not ndarray: write torch.from_numpy(array)",
    ),
    Case(
        "cross_entropy(torch.zeros(2, 5, 7), torch.zeros(2, 5, dtype=torch.int64))",
        ValueError,
        "for a prediction of shape (2, 5, 7), class indices must have the shape (2, 7), not (2, 5): the"
        " classes are looked for along axis 1; if they are along the last one, say axis=-1",
    ),
    Case(
        "nll(torch.zeros(2, 5, 7), torch.zeros(2, 5, dtype=torch.int64))",
        ValueError,
        "for a prediction of shape (2, 5, 7), class indices must have the shape (2, 7), not (2, 5): the"
        " classes are looked for along axis 1; if they are along the last one, say axis=-1",
    ),
    Case(
        "accuracy(torch.zeros(2, 5, 7), torch.zeros(2, 5, dtype=torch.int64))",
        ValueError,
        "the target must hold class indices of shape (2, 7), or scores of shape (2, 5, 7), as the"
        " prediction's shape says, but its shape is (2, 5): the classes are looked for along axis 1; if they"
        " are along the last one, say axis=-1",
    ),
    Case(
        "cross_entropy(x, array)",
        TypeError,
        "the target must be a tensor, not ndarray: write torch.from_numpy(array)",
    ),
    Case(
        "accuracy(array, target)",
        TypeError,
        "the prediction must be a tensor, not ndarray: write torch.from_numpy(array)",
    ),
)

# --- Steps and optimizers ---------------------------------------------------------------------------------------------

TRAINING: Final[tuple[Case, ...]] = (
    Case(
        "train_step(F.cross_entropy, optimizer)",
        TypeError,
        "cross_entropy of torch gives the value of the loss alone, but a loss gives its gradient with respect"
        " to the prediction as well: write cross_entropy of fundl",
    ),
    Case(
        "train_step(nn.CrossEntropyLoss(), optimizer)",
        TypeError,
        "CrossEntropyLoss of torch gives the value of the loss alone, but a loss gives its gradient with"
        " respect to the prediction as well: write cross_entropy of fundl",
    ),
    Case(
        "train_step(torch.nn.functional.kl_div, optimizer)",
        TypeError,
        "kl_div of torch gives the value of the loss alone, but a loss gives its gradient with respect to the"
        " prediction as well: write kl_divergence of fundl",
    ),
    Case(
        "train_step(optimizer, mse)",
        TypeError,
        "a loss is a function of a prediction and a target that returns its value and its gradient, such as"
        " mse, not _SGD(decay=AddDecayedWeights(weight_decay=0.0, where=None), trace=_Trace(momentum=0.0,"
        " dampening=0.0, nesterov=False), rate=ScaleByLearningRate(rate=0.1))",
    ),
    Case(
        "train_step(mse, adam)",
        TypeError,
        "an optimizer is what adam(0.001) makes, for example, not the function adam: write adam(...)",
    ),
    Case(
        "train_step(mse, torch.optim.Adam([torch.ones(1, requires_grad=True)]))",
        TypeError,
        "an optimizer is what adam(0.001) makes, for example, not Adam: it is torch.optim's; write adam(...)",
    ),
    Case(
        "train_step(mse, torch.optim.LBFGS)",
        TypeError,
        "an optimizer is what adam(0.001) makes, for example, not LBFGS: it is torch.optim's; write lbfgs(...)",
    ),
    Case(
        "train_step(mse, 0.001)",
        TypeError,
        "an optimizer is what adam(0.001) makes, for example, not 0.001",
    ),
    Case(
        "train_state(key(0), model, adam)",
        TypeError,
        "an optimizer is what adam(0.001) makes, for example, not the function adam: write adam(...)",
    ),
    Case(
        "train_state(0, model, optimizer)",
        TypeError,
        "a key is made by key(seed), split or fold_in, and is not 0",
    ),
    Case(
        "train_state(key(0), linear(2, 1), optimizer)",
        ValueError,
        "the model has no values yet, only shapes: train what initialize(key(0), model) returns",
    ),
    Case(
        "accumulate(adam, 4)",
        TypeError,
        "an optimizer is what adam(0.001) makes, for example, not the function adam: write adam(...)",
    ),
    Case(
        "dynamic_loss_scale(adam)",
        TypeError,
        "an optimizer is what adam(0.001) makes, for example, not the function adam: write adam(...)",
    ),
    Case(
        "chain(clip_by_global_norm(1.0), adam)",
        TypeError,
        "part 1 of the chain is adam, not a transform: call it to make one",
    ),
    Case(
        "chain([clip_by_global_norm(1.0), optimizer])",
        TypeError,
        "part 0 of the chain is a list, not a transform: write chain(*transforms)",
    ),
    Case(
        "adam(lr=1e-3)",
        TypeError,
        "adam has no lr: write adam(rate=0.001)",
    ),
    Case(
        "adam(1e-3, betas=(0.9, 0.99), eps=1e-8)",
        TypeError,
        "adam has no betas and eps: write adam(0.001, beta1=0.9, beta2=0.99, epsilon=1e-08)",
    ),
    Case(
        "adam(learning_rate=1e-3, b1=0.9)",
        TypeError,
        "adam has no learning_rate and b1: write adam(rate=0.001, beta1=0.9)",
    ),
    Case(
        "adam(model, lr=1e-3)",
        TypeError,
        "adam is made without the model: write adam(0.001), say, whose init(model) makes its first state",
    ),
    Case(
        "adam(model[0], 1e-3)",
        TypeError,
        "adam is made without the model: write adam(0.001), say, whose init(model) makes its first state",
    ),
    Case(
        "adam()",
        TypeError,
        "adam lacks rate: it takes rate, beta1, beta2, epsilon, weight_decay, amsgrad",
    ),
    Case(
        "adamw(1e-3, mask=None)",
        TypeError,
        "adamw has no mask: write adamw(0.001, where=None)",
    ),
    Case(
        "sgd(lr=0.1, momentum=0.9, foreach=True)",
        TypeError,
        "sgd has no lr and foreach: write sgd(rate=0.1, momentum=0.9); foreach is left out: kernels for all"
        " parameters at once are used where there are any",
    ),
    Case(
        "sgd(0.1, 0.9)",
        TypeError,
        "sgd takes 1 by place (rate), not 2; by name, momentum, dampening, nesterov, weight_decay",
    ),
    Case(
        "sgd(0.1, maximize=True)",
        TypeError,
        "sgd has no maximize: write sgd(0.1); maximize is left out: to climb, let the loss be the negative",
    ),
    Case(
        "rmsprop(lr=1e-2, alpha=0.99)",
        TypeError,
        "rmsprop has no lr and alpha: write rmsprop(rate=0.01, decay=0.99)",
    ),
    Case(
        "clip_by_global_norm(max_grad_norm=1.0)",
        TypeError,
        "clip_by_global_norm has no max_grad_norm: write clip_by_global_norm(max_norm=1.0)",
    ),
    Case(
        "cosine_schedule(0.1, T_max=10)",
        TypeError,
        "cosine_schedule has no T_max: write cosine_schedule(0.1, steps=10)",
    ),
    Case(
        "optimizer.zero_grad()",
        AttributeError,
        "'_SGD' object has no attribute 'zero_grad': gradients are values that value_and_grad returns, and"
        " nothing adds to them",
    ),
    Case(
        "optimizer.param_groups",
        AttributeError,
        "'_SGD' object has no attribute 'param_groups': an optimizer holds no parameters: its init(model) makes its state",
    ),
)


# --- The tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", LAYERS + MODELS + LOSSES + TRAINING, ids=lambda case: case.program)
def test_a_wrong_program_is_answered_with_a_sentence(case: Case) -> None:
    with pytest.raises(case.error) as caught:
        eval(case.program, dict(NAMES))
    assert str(caught.value) == case.sentence


MAKERS: Final = sorted(
    name for name, value in NAMES.items() if isinstance(value, type) and issubclass(value, Record) and maker_of(value)
)


@pytest.mark.parametrize("name", MAKERS)
def test_every_record_that_has_a_maker_says_so_when_it_is_made_of_sizes(name: str) -> None:
    cls: object = NAMES[name]
    assert isinstance(cls, type)
    maker = maker_of(cls)
    assert maker is not None
    with pytest.raises(TypeError, match=rf"{name} is made of its (tensors, not of sizes|parts as they are kept): .*\("):
        cls(2, 3, 4, 5, 6, 7, 8, 9)


def test_a_constructor_takes_what_that_of_attrs_takes() -> None:
    """By place, by name and by default, and tells in its signature what it takes."""

    @attrs.frozen(eq=False)
    class Part(Record):
        weight: Tensor
        bias: Tensor | None = None
        _hidden: int = attrs.field(default=3, kw_only=True)
        made: int = attrs.field(default=4, kw_only=True)

        def __attrs_post_init__(self) -> None:
            if self.made < 0:
                raise ValueError("made must be 0 or more")

    weight = torch.ones(2)
    assert Part(weight).bias is None
    assert Part(bias=weight, weight=weight).bias is weight
    assert Part(weight, weight, hidden=5, made=6)._hidden == 5
    assert attrs.evolve(Part(weight), made=7).made == 7
    with pytest.raises(ValueError, match="made must be 0 or more"):
        Part(weight, made=-1)
    assert list(inspect.signature(Part).parameters) == ["weight", "bias", "hidden", "made"]
    assert tree.equal(pickle.loads(pickle.dumps(linear(2, 3))), linear(2, 3))


# --- Layers with modules of torch inside --------------------------------------------------------------------------------


def test_a_field_for_a_module_is_refused_as_the_class_is_made() -> None:
    with pytest.raises(TypeError) as caught:

        @attrs.frozen(eq=False)
        class Block(Layer[Tensor]):
            inner: torch.nn.Linear | None

            @override
            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return x, x

            @override
            def backward(self, _residuals: Tensor, grad: Tensor) -> tuple["Block", Tensor]:
                return self, grad

    assert str(caught.value) == (
        "Block.inner is annotated as a module of torch.nn, whose parameters nothing here would see or train: make it a layer"
        " with fundl.interop.torch_nn.from_torch(module), and annotate the field with its type"
    )


@attrs.frozen(eq=False)
class Anything(Layer[Tensor]):
    inner: object

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x

    @override
    def backward(self, _residuals: Tensor, grad: Tensor) -> tuple["Anything", Tensor]:
        return self, grad


def test_a_module_in_a_static_field_is_refused_as_the_model_is_composed() -> None:
    with pytest.raises(TypeError) as caught:
        compose(ReLU(), Anything((1, torch.nn.Linear(2, 3))))
    assert str(caught.value) == (
        "layer 2: Anything.inner holds a module of torch.nn, whose parameters nothing here would see or train: make it a layer"
        " with fundl.interop.torch_nn.from_torch(module), and annotate the field with its type"
    )


# --- Layers put around others -------------------------------------------------------------------------------------------


def test_map_records_may_put_a_layer_around_a_record() -> None:
    model = initialize(key(0), compose(linear(2, 3), residual(layer_norm(3), linear(3, 3)), layer_norm(3)))
    mapped = tree.map_records(lambda record: frozen(record) if isinstance(record, fundl.LayerNorm) else record, model)
    assert repr([*map(type, tree.records(mapped))]).count("Frozen") == 2
    assert tree.count(mapped) == tree.count(model) - 12
    again = tree.map_records(lambda record: frozen(fundl.checkpoint(record)) if isinstance(record, Linear) else record, model)
    assert tree.count(again) == tree.count(model) - 9 - 12
    with pytest.raises(RecursionError, match="it may put a layer around a record that it was given, but not around a new one"):
        tree.map_records(lambda record: residual(linear(2, 2)) if isinstance(record, Linear) else record, model)


def test_a_partial_is_told_by_its_function() -> None:
    partial = functools.partial(torch.nn.functional.cross_entropy, label_smoothing=0.1)
    with pytest.raises(TypeError, match="cross_entropy of torch gives the value of the loss alone"):
        value_and_grad(partial, MODEL, torch.ones(4, 2), torch.zeros(4, 1))  # type: ignore[arg-type]  # the error under test
    assert value_and_grad(functools.partial(mse, reduction="sum"), MODEL, torch.ones(4, 2), torch.zeros(4, 1))[0].shape == ()
