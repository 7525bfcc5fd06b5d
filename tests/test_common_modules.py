"""PyTorch's own samples of its modules and losses, as oracles: what has a counterpart agrees, or is listed with the reason.

The samples are those that PyTorch tests its modules with, of `torch.testing._internal.common_modules`. Each module that has a
counterpart is converted, in evaluation and where it matters in training, and output and gradients are compared. What is not run
is in the tables below, with how often in the PyTorch that constraints.txt names: a sample that is listed and would agree
fails a test, as does one that is not listed.

Layers take the axis of the batch first. A sample of sequences without that axis, or with it in second place, is given to the
layer with its axes moved.
"""

import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol, cast

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from fundl import (
    GRU,
    LSTM,
    RNN,
    GRUCell,
    LSTMCell,
    LSTMState,
    Model,
    RNNCell,
    Shape,
    assert_trees_close,
    key,
    random,
    stateful,
    tree,
    with_mask,
    without_statistics,
)
from fundl.interop import torch_nn
from fundl.interop.torch_nn.conversion import has_counterpart
from tests.oracles.listing import Listed, NotRunError, compare_with_list, outcome
from tests.oracles.losses import Found, evaluate, evaluate_linear, given_to, integers, leaf
from tests.test_layers import backward_any, forward_any

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of much that its samples do


# --- The samples -------------------------------------------------------------------------------------------------------


class Call(Protocol):
    """What a constructor, or a module, is called with."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]


class ModuleSample(Protocol):
    """One sample of a module."""

    constructor_input: Call
    forward_input: Call
    desc: str


class MakeSamples(Protocol):
    def __call__(
        self, info: "Info", *, device: str, dtype: torch.dtype, requires_grad: bool, training: bool
    ) -> Iterable[ModuleSample]: ...


class Info(Protocol):
    """A module and its samples."""

    name: str
    module_cls: type[nn.Module]
    module_inputs_func: MakeSamples
    train_and_eval_differ: bool


@functools.cache
def database() -> Sequence[Info]:
    from torch.testing._internal.common_modules import module_db  # it takes seconds to import

    return cast("Sequence[Info]", module_db)  # torch's tests have no types


def samples_of(info: Info, *, training: bool = False) -> Iterator[tuple[nn.Module, Call]]:
    """The modules of the samples, in float64, and what they are called with."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        samples = info.module_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=False, training=training)
        for sample in samples:
            made = sample.constructor_input
            yield info.module_cls(*made.args, **made.kwargs).double().train(training), sample.forward_input


# --- Modules -----------------------------------------------------------------------------------------------------------


@attrs.frozen
class Axes:
    """How the axes of a sample's tensors are moved: to those that layers take, and back."""

    there: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


SAME: Final = Axes(lambda x: x, lambda x: x)
BATCH_OF_ONE: Final = Axes(lambda x: x.unsqueeze(0), lambda x: x.squeeze(0))
BATCH_SECOND: Final = Axes(lambda x: x.transpose(0, 1), lambda x: x.transpose(0, 1))

SEQUENTIAL: Final = (
    nn.RNNBase | nn.MultiheadAttention | nn.TransformerEncoder | (nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)
)
INSTANCE_NORMS: Final[Mapping[type[nn.Module], int]] = {nn.InstanceNorm1d: 2, nn.InstanceNorm2d: 3, nn.InstanceNorm3d: 4}


def axes_of(module: nn.Module, x: Tensor) -> Axes:
    if isinstance(module, SEQUENTIAL):
        if x.ndim == 2:
            return BATCH_OF_ONE
        return SAME if next(filter(None, map(_batch_first, module.modules())), False) else BATCH_SECOND
    if isinstance(module, nn.RNNCellBase):
        return BATCH_OF_ONE if x.ndim == 1 else SAME
    return BATCH_OF_ONE if INSTANCE_NORMS.get(type(module)) == x.ndim else SAME


def _batch_first(module: nn.Module) -> bool:
    return bool(vars(module).get("batch_first", False))


def with_batch_first(module: nn.Module) -> nn.Module:
    """A copy of the module that says it takes the axes that layers take."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if "batch_first" in vars(part):
            vars(part)["batch_first"] = True
    return module


def compare(module: nn.Module, call: Call) -> None:
    """Raise unless output and gradients of a module are those of its model."""
    model = torch_nn.from_torch(with_batch_first(module))
    model = without_statistics(model) if module.training else model
    given, options = _inputs(module, call)
    axes = axes_of(module, given[0])
    variables = [x.clone().requires_grad_() if x.is_floating_point() else x for x in given]
    output = _call(module, variables, options)
    cotangent = random.normal(key(4), tuple(output.shape), dtype=output.dtype)
    leaves = [*module.parameters(), *(x for x in variables if x.requires_grad)]
    theirs = torch.autograd.grad(output, leaves, cotangent, materialize_grads=True) if leaves else ()
    mask = options.get("key_padding_mask", options.get("src_key_padding_mask"))
    if mask is not None:
        model = with_mask(model, ~(mask.unsqueeze(0) if mask.ndim == 1 else mask))
    inputs = tuple(axes.there(x) for x in given)
    y, grads, grads_x = _run_model(model, inputs, axes.there(cotangent))
    parameters = _parameters(with_mask(grads, None), Shape(*inputs[0].shape)) if leaves else []
    ours = [*parameters, *(axes.back(grad) for grad in grads_x if grad.is_floating_point())]
    assert_trees_close((axes.back(y), ours), (output.detach(), list(theirs)), rtol=1e-8, atol=1e-8)


def _inputs(module: nn.Module, call: Call) -> tuple[list[Tensor], Mapping[str, Tensor]]:
    """The tensors that a model is given: those of states one by one; and what else the module is told."""
    options = {name: value for name, value in call.kwargs.items() if isinstance(value, Tensor)}
    args = [*call.args, *([options.pop("input")] if "input" in options else [])]
    if any(name not in {"key_padding_mask", "src_key_padding_mask"} for name in options):
        raise NotRunError(f"a mask of pairs of positions, or of a memory: {', '.join(options)}")
    if isinstance(module, nn.MultiheadAttention):
        args = args[:1]  # of a sequence to itself
    return tree.leaves(args), options


def _call(module: nn.Module, inputs: Sequence[Tensor], options: Mapping[str, Tensor]) -> Tensor:
    """The first output of a module."""
    args: Sequence[object] = inputs
    if isinstance(module, nn.MultiheadAttention):
        args = [inputs[0]] * 3
    elif isinstance(module, nn.LSTM | nn.LSTMCell) and len(inputs) > 1:
        args = [inputs[0], tuple(inputs[1:])]
    output: object = module(*args, **options)
    first = output[0] if isinstance(output, tuple) else output
    assert isinstance(first, Tensor)
    return first


def _run_model(model: Model, inputs: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, Model, list[Tensor]]:
    """The output of a model, and the gradients of its product with another tensor."""
    if isinstance(model, RNN | GRU | LSTM) and len(inputs) > 1:
        return _run_stateful(model, inputs, grad)
    if isinstance(model, RNNCell | GRUCell | LSTMCell):
        return _run_cell(model, inputs, grad)
    y, residuals = forward_any(model, inputs[0] if len(inputs) == 1 else inputs)
    assert isinstance(y, Tensor)
    grads, grad_x = backward_any(model, residuals, grad)
    return y, grads, tree.leaves(grad_x)


def _run_stateful(layer: RNN | GRU | LSTM, inputs: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, Model, list[Tensor]]:
    """The same from a state, whose last one has no gradient."""
    x, *states = inputs
    if isinstance(layer, LSTM):
        begin = LSTMState(states[0], states[1])
        (y, last), kept = stateful(layer).forward((x, begin))
        grads, grad_x = stateful(layer).backward(kept, (grad, tree.map(torch.zeros_like, last)))
        return y, grads.layer, tree.leaves(grad_x)
    (y, state), kept = stateful(layer).forward((x, states[0]))
    of_layer, of_x = stateful(layer).backward(kept, (grad, torch.zeros_like(state)))
    return y, of_layer.layer, tree.leaves(of_x)


def _run_cell(
    cell: RNNCell | GRUCell | LSTMCell, inputs: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor, Model, list[Tensor]]:
    """The same of one step, from zeros where no state is given."""
    x, *states = inputs
    if isinstance(cell, LSTMCell):
        begin = LSTMState(*states) if states else cell.zeros(len(x))
        after, kept = cell.forward((x, begin))
        grads, grad_x = cell.backward(kept, LSTMState(grad, torch.zeros_like(grad)))
        return after.hidden, grads, tree.leaves(grad_x)[: len(inputs)]
    y, residuals = cell.forward((x, states[0] if states else cell.zeros(len(x))))
    of_cell, of_x = cell.backward(residuals, grad)
    return y, of_cell, tree.leaves(of_x)[: len(inputs)]


def _parameters(grads: Model, shape: Shape) -> list[Tensor]:
    """Gradients in the order of the module's parameters; of what no module is made of, in that of the layers."""
    try:
        return [parameter.detach() for parameter in torch_nn.to_torch(grads, shape).parameters()]
    except torch_nn.ConversionError:
        return _of_block_with_norms_behind(grads)


def _of_block_with_norms_behind(grads: Model) -> list[Tensor]:
    """The gradients of an encoder layer with norm_first=False, or of several, as the module orders its parameters."""
    assert isinstance(grads, tuple)
    if len(grads) != 4:
        return [leaf for block in grads for leaf in _of_block_with_norms_behind(block)]
    attention, norm1, network, norm2 = map(tree.trainable_leaves, grads)
    return [*attention, *network, *norm1, *norm2]


WITHOUT_LAYER: Final = {
    "nn.CELU": 3,
    "nn.FractionalMaxPool2d": 5,
    "nn.FractionalMaxPool3d": 6,
    "nn.LPPool1d": 3,
    "nn.LPPool2d": 3,
    "nn.LPPool3d": 3,
    "nn.Hardshrink": 3,
    "nn.Hardswish": 2,
    "nn.LocalResponseNorm": 3,
    "nn.Transformer": 64,
    "nn.PReLU": 8,
    "nn.RNNCell": 3,
    "nn.GRUCell": 2,
    "nn.LSTMCell": 2,
    "nn.LogSigmoid": 3,
    "nn.Softmin": 4,
    "nn.Softshrink": 4,
    "nn.Softsign": 3,
    "nn.Tanhshrink": 3,
    "nn.Threshold": 4,
}
"""Modules that no layer is a counterpart of, or was when this was written."""

LISTED: Final = [
    Listed(
        r"has no counterpart: write a layer",
        {name: count for name, count in WITHOUT_LAYER.items() if not has_counterpart(getattr(nn, name.removeprefix("nn.")))},
        "torch.nn has modules for which fundl has no layer",
    ),
    Listed(
        r"keeps the size of an axis",
        {"nn.AdaptiveAvgPool2d": 1, "nn.AdaptiveAvgPool3d": 1, "nn.AdaptiveMaxPool2d": 1, "nn.AdaptiveMaxPool3d": 1},
        "output_size=None: an adaptive pool makes a number of parts of each axis that is part of the layer",
    ),
    Listed(
        r"the trees are not close:\n.* instead of nan",
        {"nn.LPPool1d": 1, "nn.LPPool2d": 1, "nn.LPPool3d": 1},
        "a power of a negative number that is no integer is NaN to torch, and of its absolute value to LPPool",
    ),
    Listed(
        r"return_indices=True",
        {"nn.MaxPool1d": 1, "nn.MaxPool2d": 1, "nn.MaxPool3d": 1},
        "a layer gives one tensor, and not where the maxima are from as well",
    ),
    Listed(
        r"track_running_stats=True, but InstanceNorm",
        {
            "nn.InstanceNorm1d": 2,
            "nn.InstanceNorm1d in training": 2,
            "nn.InstanceNorm2d": 2,
            "nn.InstanceNorm2d in training": 2,
            "nn.InstanceNorm3d": 2,
            "nn.InstanceNorm3d in training": 2,
        },
        "InstanceNorm has no running statistics",
    ),
    Listed(
        r"a mask of pairs of positions",
        {
            "nn.TransformerEncoder": 16,
            "nn.TransformerEncoder in training": 16,
            "nn.TransformerEncoderLayer": 16,
            "nn.TransformerEncoderLayer in training": 16,
            "nn.TransformerDecoderLayer": 24,
            "nn.MultiheadAttention": 8,
            "nn.MultiheadAttention in training": 8,
        },
        "layers heed masks of padding, and causal ones; a decoder is given its masks by on_masked_pair",
    ),
    Listed(
        r"norm_first=False normalises behind",
        {"nn.TransformerDecoderLayer": 35},
        "a DecoderBlock normalises at the entries of its parts",
    ),
    Listed(
        r"add_bias_kv or add_zero_attn",
        {"nn.MultiheadAttention": 48, "nn.MultiheadAttention in training": 48},
        "no layer adds keys that are in no sequence",
    ),
    Listed(
        r"Softplus' threshold must be above 0",
        {"nn.Softplus": 2},
        "a threshold below 0 would put a jump into the middle of the curve",
    ),
    Listed(r"proj_size=2", {"nn.LSTM": 16, "nn.LSTM in training": 16}, "LSTM has no projection"),
]


def test_modules() -> None:
    refused: list[tuple[str, str]] = []
    agreed = Counter[str]()
    for info in database():
        if info.name.endswith("Loss"):
            continue
        for training in (False, True) if info.train_and_eval_differ else (False,):
            name = info.name + (" in training" if training else "")
            for module, call in samples_of(info, training=training):
                if isinstance(module, LazyModuleMixin):
                    module(*call.args)
                message = outcome(functools.partial(compare, module, call))
                if message is None:
                    agreed[info.name] += 1
                else:
                    refused.append((name, message))
    print(f"\n{len(agreed)} modules: {sum(agreed.values())} samples agree, {len(refused)} are listed with their reasons")
    compare_with_list(refused, LISTED)
    names = {info.name for info in database() if not info.name.endswith("Loss")}
    assert names == {*agreed, *(name.removesuffix(" in training") for name, _ in refused)}


# --- Losses ------------------------------------------------------------------------------------------------------------


def compare_loss(module: nn.Module, call: Call) -> None:
    """Raise unless value and gradients of a loss are its counterpart's; of weights without sign: fundl refuses others."""
    if type(module).__name__ == "LinearCrossEntropyLoss":
        compare_linear_loss(module, call)
        return
    if isinstance(weight := getattr(module, "weight", None), Tensor):
        module.weight = weight.abs()
    called = list(call.args)
    variables = [leaf(called[place]) for place in given_to(module)]
    for place, variable in zip(given_to(module), variables, strict=True):
        called[place] = variable
    expected: object = module(*called, **call.kwargs)
    assert isinstance(expected, Tensor)
    assert_same_loss(module, evaluate(module, [*call.args, *call.kwargs.values()]), expected, variables)


def compare_linear_loss(module: nn.Module, call: Call) -> None:
    """The same of the loss that holds a linear map."""
    settings: dict[str, object] = vars(module)
    options = {name: settings.get(name, module._buffers.get(name)) for name in ("reduction", "ignore_index", "label_smoothing")}
    weight = module._buffers.get("weight")
    if weight is not None:
        module.register_buffer("weight", weight.abs())
        options["weight"] = weight.abs()
    x, target = call.args
    variables = [leaf(x), *module.parameters()]
    expected: object = module(variables[0], target)
    assert isinstance(expected, Tensor)
    classes, outputs = int(str(settings["num_classes"])), integers(settings["out_features"])
    inputs: dict[str, object] = {"input": x, "target": target}
    for name, parameter in zip(("linear_weight", "linear_bias"), module.parameters(), strict=False):
        inputs[name] = parameter.detach().reshape(classes, *outputs, *parameter.shape[1:])
    assert_same_loss(module, evaluate_linear(inputs, options), expected, variables)


def assert_same_loss(module: nn.Module, found: Found, expected: Tensor, variables: Sequence[Tensor]) -> None:
    expected_grads = torch.autograd.grad(expected.sum(), variables)
    value, grads = found
    tolerance = 1e-5 if isinstance(module, nn.TripletMarginLoss) else 1e-8  # torch adds 1e-6 to differences
    actual = value.reshape(expected.shape), [grad.reshape(x.shape) for grad, x in zip(grads, variables, strict=True)]
    assert_trees_close(actual, (expected.detach(), list(expected_grads)), rtol=tolerance, atol=tolerance)


LISTED_LOSSES: Final = [
    Listed(r"a label of 0", {"nn.MarginRankingLoss": 5}, "what is neither yes nor no is no label"),
    Listed(
        r"a label that is named twice",
        {"nn.MultiLabelMarginLoss": 8},
        "labels of yes and no count once, and indices as often as they are named",
    ),
    Listed(
        r"divides by the size of the first axis", {"nn.KLDivLoss": 1}, "a number is no batch, over which batch_mean would be"
    ),
]


def test_losses() -> None:
    refused: list[tuple[str, str]] = []
    agreed = Counter[str]()
    for info in database():
        if not info.name.endswith("Loss"):
            continue
        for module, call in samples_of(info):
            message = outcome(functools.partial(compare_loss, module, call))
            if message is None:
                agreed[info.name] += 1
            else:
                refused.append((info.name, message))
    print(f"\n{len(agreed)} losses: {sum(agreed.values())} samples agree, {len(refused)} are listed with their reasons")
    compare_with_list(refused, LISTED_LOSSES)
    assert {info.name for info in database() if info.name.endswith("Loss")} == {*agreed, *(name for name, _ in refused)}
