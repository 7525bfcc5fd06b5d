"""Models and modules of torch.nn: what is converted computes the same, both ways, and what is not says why."""

import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import attrs
import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

import fundl
from fundl import (
    BatchNorm,
    Dropout,
    Frozen,
    Layer,
    Linear,
    LSTMCell,
    LSTMState,
    Model,
    Shape,
    assert_trees_close,
    backward,
    calibrate,
    compose,
    decoder,
    decoder_block,
    encoder,
    forward,
    frozen,
    initialize,
    key,
    layer_norm,
    linear,
    random,
    rekey,
    repeat,
    residual,
    transformer_block,
    tree,
    without_statistics,
)
from fundl.interop import torch_nn
from fundl.interop.torch_nn._counterparts import layers_by_module
from fundl.interop.torch_nn._rules import model_of, module_of
from tests.samples import SAMPLES, Sample, normal
from tests.test_layers import backward_any, forward_any

# torch warns of what its own modules do in a roundabout way: a convolution with padding "same" and windows of an even size, and
# an encoder whose layers are not all alike.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
]

Inputs = tuple[Tensor, ...]


OURS: Final = {name: layer for name, layer in layers_by_module().items() if layer.__module__.startswith("fundl.")}
FROM: Final = {*model_of.registry, *(getattr(nn, name) for name in OURS)} - {object}
TO: Final = {*module_of.registry, *OURS.values()} - {object}
"""The modules, and the layers, that are converted: by a function of their own, or as a layer says."""


# --- Running both sides ------------------------------------------------------------------------------------------------


def cotangent(output: Tensor) -> Tensor:
    return random.normal(key(4), tuple(output.shape), dtype=output.dtype)


def run_module(module: nn.Module, inputs: Inputs) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The first output of a module, and the gradients of its product with a cotangent: of parameters, and of inputs."""
    variables = [x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    given = variables
    if isinstance(module, nn.MultiheadAttention):
        given = [variables[0], variables[-1], variables[-1]]
    output: object = module(variables[0], variables[1:]) if isinstance(module, nn.LSTMCell) else module(*given)
    if isinstance(output, tuple):
        output = output[0]
    assert isinstance(output, Tensor)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    leaves = [*parameters, *(x for x in variables if x.requires_grad)]
    if not leaves:
        return output.detach(), [], []
    grads = torch.autograd.grad(output, leaves, cotangent(output), materialize_grads=True)
    return output.detach(), list(grads[: len(parameters)]), list(grads[len(parameters) :])


def input_of(model: Model, inputs: Inputs) -> object:
    """What a model takes, of the inputs of a module."""
    if isinstance(model, LSTMCell):
        return inputs[0], LSTMState(*inputs[1:])
    return inputs[0] if len(inputs) == 1 else inputs


def first_of(result: object) -> Tensor:
    """The first output of a model."""
    output = result.hidden if isinstance(result, LSTMState) else result
    assert isinstance(output, Tensor)
    return output


def run_model(model: Model, inputs: Inputs, shape: Shape | None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The same of a model; the gradients of its parameters are compared as the parameters of a module."""
    result, residuals = forward_any(model, input_of(model, inputs))
    output = first_of(result)
    grad = cotangent(output)
    of_result = LSTMState(grad, torch.zeros_like(grad)) if isinstance(result, LSTMState) else grad
    grads, grad_x = backward_any(model, residuals, of_result)
    parameters = [p.detach() for p in torch_nn.to_torch(grads, shape).parameters() if p.requires_grad]
    return output, parameters, [grad for grad in tree.leaves(grad_x) if grad.is_floating_point()]


def assert_agree(model: Model, module: nn.Module, inputs: Inputs, shape: Shape | None = None) -> None:
    ours, theirs = run_model(model, inputs, shape), run_module(module, inputs)
    assert len(ours[1]) == len(theirs[1]), "parameters"
    assert_trees_close(ours, theirs, rtol=1e-8, atol=1e-8)


def shape_of(inputs: Inputs) -> Shape:
    return Shape(*inputs[0].shape)


def assert_same_tree(actual: Model, expected: Model) -> None:
    assert tree.flatten(actual)[1] == tree.flatten(expected)[1]
    assert tree.equal(actual, expected)


# --- The table ---------------------------------------------------------------------------------------------------------


@attrs.frozen
class Case:
    """A module, and inputs for it."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Inputs
    back: bool = attrs.field(default=True, kw_only=True)
    """Whether what comes back of the module is the same again; some modules are two others put together."""


SIGNAL, IMAGE, VOLUME = normal(2, 4, 9), normal(2, 4, 7, 6), normal(2, 4, 5, 6, 4)
BY_AXES: Final = {1: SIGNAL, 2: IMAGE, 3: VOLUME}


def case(module: Callable[[], nn.Module], *inputs: Tensor, back: bool = True, name: str = "") -> Case:
    made = module()
    return Case(name or " ".join(repr(made).split())[:100], module, inputs, back=back)


def for_axes(
    one: Callable[[], nn.Module], two: Callable[[], nn.Module], three: Callable[[], nn.Module], *, back: bool = True
) -> list[Case]:
    return [case(make, x, back=back) for make, x in zip((one, two, three), (SIGNAL, IMAGE, VOLUME), strict=True)]


def without_bias(module: nn.Module) -> nn.Module:
    """What bias=False makes; normalisations of channels have had that option since torch 2.12."""
    module.register_parameter("bias", None)
    return module


def frozen_linear() -> nn.Module:
    return nn.Linear(4, 3).requires_grad_(False)


def mixed_model() -> nn.Module:
    body = nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU()).requires_grad_(False)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.25), nn.Linear(5, 3))
    return nn.Sequential(body, nn.Sequential(nn.Conv2d(5, 5, 1, bias=False), nn.Identity()), head)


def torch_decoder() -> nn.Module:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 12, batch_first=True, norm_first=True), 2, nn.LayerNorm(8))


TOKENS: Final = torch.tensor([[0, 3, 2], [1, 0, 4]])
SEQUENCE, MEMORY = normal(2, 5, 8), normal(2, 7, 8) + 1


def is_converted(sample: Sample) -> bool:
    try:
        torch_nn.to_torch(sample.model, inputs_shape(sample))
    except torch_nn.ConversionError:
        return False
    return True


def inputs_of(sample: Sample) -> Inputs:
    return tuple(tree.leaves(sample.x))


def inputs_shape(sample: Sample) -> Shape | None:
    return shape_of(inputs_of(sample)) if isinstance(sample.x, Tensor) else None


def is_of_options(row: Sample) -> bool:
    """Whether it is a layer of options alone, which names its counterpart."""
    return isinstance(row.model, Layer) and bool(row.model.counterpart) and "weight" not in row.model.children


OF_OPTIONS: Final = [row for row in SAMPLES if is_of_options(row) and is_converted(row)]

CASES: Final = [
    *(case(partial(torch_nn.to_torch, row.model), *inputs_of(row), name=row.name) for row in OF_OPTIONS),
    *(case(make, normal(3, 4)) for make in (lambda: nn.Linear(4, 3), lambda: nn.Linear(4, 3, bias=False), frozen_linear)),
    case(lambda: nn.Bilinear(3, 4, 2), normal(5, 3), normal(5, 4)),
    case(lambda: nn.Bilinear(3, 4, 2, bias=False), normal(5, 3), normal(5, 4)),
    case(nn.PReLU, normal(3, 4)),
    case(lambda: nn.PReLU(4), IMAGE),
    case(nn.AlphaDropout, normal(3, 4)),
    *for_axes(lambda: nn.Dropout1d(0.3), lambda: nn.Dropout2d(0.3), lambda: nn.Dropout3d(0.3)),
    case(nn.ReLU6, 4 * normal(3, 4), back=False),
    case(nn.Softmax2d, IMAGE, back=False),
    case(lambda: nn.Embedding(5, 3), TOKENS),
    case(lambda: nn.Embedding(5, 3, 0), TOKENS),
    case(lambda: nn.Unflatten(1, (2, 3)), normal(4, 6), back=False),  # its sizes are written otherwise
    *for_axes(lambda: nn.Conv1d(4, 6, 3), lambda: nn.Conv2d(4, 6, 3), lambda: nn.Conv3d(4, 6, 3)),
    *for_axes(
        lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2, bias=False),
        lambda: nn.Conv3d(4, 6, (3, 2, 1), stride=(2, 1, 1), padding=(1, 0, 2), dilation=(1, 2, 1), groups=2, bias=False),
    ),
    *for_axes(
        lambda: nn.Conv1d(4, 6, 4, padding="same"),
        lambda: nn.Conv2d(4, 6, (4, 3), padding="same", dilation=(1, 2)),
        lambda: nn.Conv3d(4, 6, 2, padding="same"),
    ),
    *for_axes(
        lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2, bias=False),
        lambda: nn.ConvTranspose3d(4, 6, 2, stride=2, output_padding=(1, 0, 1)),
    ),
    case(lambda: nn.Conv2d(4, 6, 3, padding="valid"), IMAGE, back=False),
    *for_axes(lambda: nn.MaxPool1d((2,)), lambda: nn.MaxPool2d(2), lambda: nn.MaxPool3d((2, 2, 2)), back=False),
    case(lambda: nn.LayerNorm(4), normal(3, 4)),
    case(lambda: nn.LayerNorm((3, 4), eps=0.1, bias=False), normal(2, 3, 4)),
    case(lambda: nn.LayerNorm(4, elementwise_affine=False), normal(3, 4)),
    case(lambda: nn.RMSNorm(4, eps=1e-3), normal(3, 4)),
    case(lambda: nn.RMSNorm((3, 4), eps=1e-3, elementwise_affine=False), normal(2, 3, 4)),
    case(lambda: nn.RMSNorm(4), normal(3, 4), back=False),
    case(lambda: nn.GroupNorm(2, 4, eps=0.1), IMAGE),
    case(lambda: without_bias(nn.GroupNorm(2, 4)), IMAGE),
    case(lambda: nn.GroupNorm(2, 4, affine=False), IMAGE),
    *for_axes(lambda: nn.BatchNorm1d(4), lambda: nn.BatchNorm2d(4, eps=0.1), lambda: nn.BatchNorm3d(4, affine=False)),
    *for_axes(
        lambda: nn.BatchNorm1d(4, track_running_stats=False),
        lambda: without_bias(nn.BatchNorm2d(4, track_running_stats=False)),
        lambda: nn.BatchNorm3d(4, affine=False, track_running_stats=False),
    ),
    case(lambda: nn.BatchNorm1d(4), normal(5, 4)),
    *for_axes(lambda: nn.InstanceNorm1d(4), lambda: nn.InstanceNorm2d(4, affine=True), lambda: nn.InstanceNorm3d(4, eps=0.1)),
    case(lambda: nn.Upsample(scale_factor=2), IMAGE),
    case(lambda: nn.Upsample((3, 9)), IMAGE),
    case(lambda: nn.Upsample(scale_factor=1.5, mode="linear"), SIGNAL, back=False),  # None for False
    case(lambda: nn.Upsample((9, 8), mode="bilinear", align_corners=True), IMAGE),
    case(lambda: nn.Upsample(scale_factor=(2.0, 1.0, 3.0), mode="trilinear", align_corners=False), VOLUME),
    case(lambda: nn.UpsamplingNearest2d(scale_factor=2), IMAGE, back=False),
    case(lambda: nn.UpsamplingBilinear2d(9), IMAGE, back=False),
    *for_axes(
        lambda: nn.ConstantPad1d((1, 2), 0.5),
        lambda: nn.ConstantPad2d((1, 0, 2, 1), -1.0),
        lambda: nn.ConstantPad3d((1, 0, 2, 1, 3, 4), 2.0),
    ),
    *for_axes(lambda: nn.ZeroPad1d(2), lambda: nn.ZeroPad2d((1, 0, 2, 1)), lambda: nn.ZeroPad3d(1), back=False),
    *for_axes(lambda: nn.ReflectionPad1d((1, 2)), lambda: nn.ReflectionPad2d((1, 0, 2, 1)), lambda: nn.ReflectionPad3d(1)),
    *for_axes(lambda: nn.ReplicationPad1d((1, 2)), lambda: nn.ReplicationPad2d((1, 0, 2, 1)), lambda: nn.ReplicationPad3d(1)),
    *for_axes(lambda: nn.CircularPad1d((1, 2)), lambda: nn.CircularPad2d((1, 0, 2, 1)), lambda: nn.CircularPad3d(1)),
    case(lambda: nn.RNN(8, 3, batch_first=True), SEQUENCE),
    case(lambda: nn.RNN(8, 3, 2, "relu", batch_first=True, bidirectional=True, bias=False), SEQUENCE),
    case(lambda: nn.GRU(8, 3, 2, batch_first=True, bidirectional=True), SEQUENCE),
    case(lambda: nn.LSTM(8, 3, 2, batch_first=True, bidirectional=True), SEQUENCE),
    case(lambda: nn.LSTM(8, 3, batch_first=True, bias=False), SEQUENCE),
    case(lambda: nn.RNNCell(8, 3), normal(5, 8), normal(5, 3) + 1),
    case(lambda: nn.RNNCell(8, 3, bias=False, nonlinearity="relu"), normal(5, 8), normal(5, 3) + 1),
    case(lambda: nn.GRUCell(8, 3), normal(5, 8), normal(5, 3) + 1),
    case(lambda: nn.LSTMCell(8, 3), normal(5, 8), normal(5, 3) + 1, normal(5, 3) - 1),
    case(lambda: nn.LSTMCell(8, 3, bias=False), normal(5, 8), normal(5, 3) + 1, normal(5, 3) - 1),
    case(lambda: nn.MultiheadAttention(8, 2, batch_first=True), SEQUENCE),
    case(lambda: nn.MultiheadAttention(8, 4, 0.1, bias=False, batch_first=True), SEQUENCE),
    case(lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True), SEQUENCE, normal(2, 7, 6), name="cross"),
    case(lambda: nn.MultiheadAttention(8, 2, 0.1, False, kdim=6, vdim=6, batch_first=True), SEQUENCE, normal(2, 7, 6)),
    case(lambda: nn.TransformerEncoderLayer(8, 2, 12, 0.1, batch_first=True, norm_first=True), SEQUENCE),
    case(lambda: nn.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", 0.1, True, True, bias=False), SEQUENCE, name="no bias"),
    case(lambda: nn.TransformerEncoderLayer(8, 2, 12, 0.0, nn.GELU("tanh"), 0.1, True, True), SEQUENCE, name="tanh"),
    case(lambda: nn.TransformerEncoderLayer(8, 2, 12, 0.0, nn.SiLU(), 0.1, True, True), SEQUENCE, name="SiLU"),
    case(lambda: nn.TransformerDecoderLayer(8, 2, 12, 0.1, batch_first=True, norm_first=True), SEQUENCE, MEMORY),
    case(lambda: nn.TransformerDecoderLayer(8, 2, 12, 0.0, nn.SiLU(), 0.1, True, True, bias=False), SEQUENCE, MEMORY),
    case(torch_decoder, SEQUENCE, MEMORY),
    case(nn.Sequential, normal(2, 3), back=False),
    case(mixed_model, IMAGE, name="mixed"),
]


def with_values(module: nn.Module) -> nn.Module:
    """The module in evaluation and in float64, with random parameters and statistics."""
    module.double().eval()
    tensors = [*module.parameters(), *module.buffers()]
    for tensor, own in zip(tensors, random.split(key(3), len(tensors)), strict=True):
        if tensor.is_floating_point():
            tensor.data = random.uniform(own, tuple(tensor.shape), dtype=torch.float64) + 0.5 * (tensor.ndim < 2) - 0.2
    return module


every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_case
def test_a_module_and_its_model_agree(case: Case) -> None:
    module = with_values(case.make())
    model = torch_nn.from_torch(module)
    assert_agree(model, module, case.inputs, shape_of(case.inputs))
    assert_agree(model, torch_nn.to_torch(model, shape_of(case.inputs)), case.inputs, shape_of(case.inputs))


@every_case
def test_there_and_back_is_the_same(case: Case) -> None:
    module = with_values(case.make())
    model = torch_nn.from_torch(module)
    again = torch_nn.to_torch(model, shape_of(case.inputs))
    if case.back:
        assert repr(again) == repr(module)
        assert_same_state(again, module)
        assert {n: p.requires_grad for n, p in again.named_parameters()} == {
            n: p.requires_grad for n, p in module.named_parameters()
        }
    if not isinstance(module, nn.Unflatten | nn.UpsamplingNearest2d):
        assert_same_tree(torch_nn.from_torch(again), model)


def assert_same_state(module: nn.Module, expected: nn.Module) -> None:
    actual = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    wanted = {name: tensor for name, tensor in expected.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert list(actual) == list(wanted)
    for name, tensor in actual.items():
        assert torch.equal(tensor, wanted[name]), name


@every_case
def test_nothing_is_shared(case: Case) -> None:
    module = with_values(case.make())
    model = torch_nn.from_torch(module)
    again = torch_nn.to_torch(model, shape_of(case.inputs))
    pointers = [
        {leaf.data_ptr() for leaf in leaves}
        for leaves in (
            [*module.parameters(), *module.buffers()],
            tree.leaves(model),
            [*again.parameters(), *again.buffers()],
        )
    ]
    assert len(set.union(*pointers)) == sum(map(len, pointers))
    assert not any(leaf.requires_grad or type(leaf) is not Tensor for leaf in tree.leaves(model))


def test_every_row_has_a_case() -> None:
    modules = [part for case in CASES for part in case.make().modules()]
    assert set(FROM) - {nn.TransformerEncoder} <= {type(module) for module in modules}  # see test_torch_encoders
    converted = {type(record) for case in CASES for record in tree.records(torch_nn.from_torch(case.make()))}
    others = {type(record) for sample in CONVERTED for record in tree.records(sample.model)}
    assert set(TO) <= converted | others


# --- The samples -------------------------------------------------------------------------------------------------------


CONVERTED: Final = [sample for sample in SAMPLES if is_converted(sample)]


@pytest.mark.parametrize("sample", CONVERTED, ids=lambda sample: sample.name)
def test_a_sample_and_its_module_agree(sample: Sample) -> None:
    module = torch_nn.to_torch(sample.model, inputs_shape(sample))
    assert_agree(sample.model, module, inputs_of(sample), inputs_shape(sample))


def test_layers_of_the_same_name_are_counterparts() -> None:
    """A layer that is named like a module of torch.nn is its counterpart, both ways."""
    layers = [value for name, value in vars(fundl).items() if isinstance(value, type) and issubclass(value, Layer)]
    namesakes = {layer for layer in layers if hasattr(nn, layer.__name__)}
    assert len(namesakes) > 30
    assert namesakes <= set(TO)
    assert {getattr(nn, layer.__name__) for layer in namesakes} <= set(FROM)


@attrs.frozen(eq=False)
class Leaky(Layer[Tensor]):
    """A user's layer that names its counterpart, of which fundl has no layer."""

    counterpart = "RReLU(upper=highest)"

    highest: float = 1 / 3

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(x >= 0, x, (1 / 8 + self.highest) / 2 * x), x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple["Leaky", Tensor]:
        return self, torch.where(residuals >= 0, grad, (1 / 8 + self.highest) / 2 * grad)


@attrs.frozen(eq=False)
class Leakier(Leaky):
    """A layer derived from it, which says nothing of a counterpart."""


def test_a_users_layer_names_its_counterpart() -> None:
    module = nn.Sequential(nn.RReLU(upper=0.5), nn.Linear(4, 2)).double().eval()
    model = torch_nn.from_torch(module)
    assert isinstance(model, tuple)
    assert repr(model[0]) == "Leaky(highest=0.5)"
    assert_agree(model, module, (normal(3, 4),))
    assert repr(torch_nn.to_torch(model)) == repr(module)
    with pytest.raises(torch_nn.ConversionError, match=r"lower=0\.1, but Leaky has no such option"):
        torch_nn.from_torch(nn.RReLU(0.1))
    with pytest.raises(torch_nn.ConversionError, match="has no counterpart"):
        torch_nn.to_torch(Leakier())


# --- Transformers ------------------------------------------------------------------------------------------------------


def test_a_transformer_block_is_an_encoder_layer() -> None:
    block = initialize(key(0), transformer_block(8, 2, hidden=12, dropout=0.1, dtype=torch.float64))
    module = torch_nn.to_torch(block)
    assert type(module) is nn.TransformerEncoderLayer
    assert_agree(block, module, (SEQUENCE,))
    assert_same_tree(torch_nn.from_torch(module), block)


def test_an_encoder_is_a_sequential() -> None:
    block = transformer_block(8, 2, hidden=12, dtype=torch.float64)
    model = initialize(key(0), encoder(3, block, layer_norm(8, dtype=torch.float64)))
    module = torch_nn.to_torch(model)
    assert_agree(model, module, (SEQUENCE,))
    assert_same_tree(torch_nn.from_torch(module), model)


@pytest.mark.parametrize("norm", [None, nn.LayerNorm(8)], ids=["no norm", "norm"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])
def test_torch_encoders(norm_first: bool, norm: nn.LayerNorm | None) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.1, batch_first=True, norm_first=norm_first)
    module = with_values(nn.TransformerEncoder(layer, 2, norm))
    assert_agree_in_order_of_layers(torch_nn.from_torch(module), module)


def assert_agree_in_order_of_layers(model: Model, module: nn.Module) -> None:
    """Where there is no way back, the parameters' gradients are compared in an order that needs none: by their norms."""
    output, residuals = forward(model, SEQUENCE)
    grads, grad_x = backward(model, residuals, cotangent(output))
    theirs = run_module(module, (SEQUENCE,))
    assert_trees_close([output, grad_x], [theirs[0], *theirs[2]], rtol=1e-8, atol=1e-8)
    norms = sorted(float(leaf.norm()) for leaf in tree.trainable_leaves(grads))
    assert norms == pytest.approx(sorted(float(grad.norm()) for grad in theirs[1]))


def test_decoders_go_both_ways() -> None:
    block = decoder_block(8, 2, hidden=12, causal=False, dtype=torch.float64)
    model = initialize(key(0), decoder(2, block, layer_norm(8, dtype=torch.float64)))
    module = torch_nn.to_torch(model)
    assert type(module) is nn.TransformerDecoder
    assert_agree(model, module, (SEQUENCE, MEMORY))
    assert_same_tree(torch_nn.from_torch(module), model)


# --- Training and evaluation -------------------------------------------------------------------------------------------


def test_statistics_are_those_of_evaluation_and_without_them_it_is_training() -> None:
    module = with_values(nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)))
    model = torch_nn.from_torch(module.train())
    assert_agree(model, module.eval(), (IMAGE,))
    assert_agree(without_statistics(model), module.train(), (IMAGE,))


def test_a_module_of_a_batch_norm_without_statistics_normalises_with_those_of_the_batch() -> None:
    model = initialize(key(0), compose(linear(4, 3, dtype=torch.float64), fundl.batch_norm(3, dtype=torch.float64)))
    module = torch_nn.to_torch(model, Shape(None, 4))
    assert not module.training
    assert_agree(model, module, (normal(5, 4),), Shape(None, 4))
    with_statistics = calibrate(model, [normal(5, 4)])
    assert_agree(with_statistics, torch_nn.to_torch(with_statistics, Shape(None, 4)), (normal(5, 4),), Shape(None, 4))


def test_dropout_drops_nothing_until_rekeyed() -> None:
    model = torch_nn.from_torch(nn.Sequential(nn.Dropout(0.5)))
    assert isinstance(model, tuple)
    assert torch.equal(fundl.apply(model, torch.ones(9)), torch.ones(9))
    assert not torch.equal(fundl.apply(rekey(model, key(0)), torch.ones(9)), torch.ones(9))


def test_what_is_frozen_stays_so() -> None:
    module = nn.Sequential(nn.Linear(4, 3).requires_grad_(False), nn.Linear(3, 2))
    model = torch_nn.from_torch(module)
    assert isinstance(model, tuple)
    assert isinstance(model[0], Frozen)
    whole = torch_nn.from_torch(module.requires_grad_(False))
    assert isinstance(whole, Frozen)
    assert [type(layer) for layer in whole.layers] == [Linear, Linear]
    assert not any(parameter.requires_grad for parameter in torch_nn.to_torch(whole).parameters())


def test_a_repeated_block_is_a_sequential_of_blocks() -> None:
    model = initialize(key(0), repeat(3, transformer_block(8, 2, hidden=12, dtype=torch.float64)))
    module = torch_nn.to_torch(model)
    assert torch.allclose(module(SEQUENCE), fundl.apply(model, SEQUENCE))


def test_the_axes_of_a_batch_norm_are_found_from_what_is_before_it() -> None:
    assert "BatchNorm2d(4" in repr(torch_nn.to_torch(compose(fundl.conv2d(3, 4, 3), fundl.ReLU(), fundl.batch_norm(4))))
    told = torch_nn.to_torch(BatchNorm(), Shape(None, 7, 3, 3, 3))
    assert isinstance(told, nn.BatchNorm3d)
    assert told.num_features == 7


def test_nothing_is_drawn_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    for sample in CONVERTED:
        torch_nn.to_torch(sample.model, inputs_shape(sample))
    assert torch.equal(torch.get_rng_state(), before)


def test_models_without_values_are_converted_too() -> None:
    module = torch_nn.to_torch(compose(linear(2, 3), fundl.ReLU()))
    assert all(parameter.is_meta for parameter in module.parameters())


def test_import_fundl_does_not_load_the_converter() -> None:
    program = "import sys, fundl; print('fundl.interop.torch_nn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"


# --- What is refused ---------------------------------------------------------------------------------------------------


class OrderedModule(nn.Sequential):
    """A class that is not in the table."""


class ScaledLinear(nn.Linear):
    """Another that is not."""


def tied() -> nn.Module:
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = one.weight
    return nn.Sequential(one, nn.ReLU(), other)


def twice() -> nn.Module:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer)


def hooked() -> nn.Module:
    module = nn.Linear(3, 3)
    module.register_forward_hook(lambda _module, _given, output: 2 * output)
    return module


def patched() -> nn.Module:
    module = nn.Linear(3, 3)
    module.__dict__["forward"] = torch.tanh
    return module


def half_frozen() -> nn.Module:
    module = nn.Linear(3, 3)
    module.bias.requires_grad_(False)
    return module


def with_part(name: str, part: nn.Module) -> nn.Module:
    module = nn.TransformerDecoderLayer(8, 2, 12, batch_first=True, norm_first=True)
    setattr(module, name, part)
    return module


REFUSED_MODULES: Final[Sequence[tuple[Callable[[], nn.Module], str]]] = [
    (lambda: nn.LocalResponseNorm(2), r"the module \(nn.LocalResponseNorm\) has no counterpart: write a layer"),
    (lambda: nn.Sequential(nn.ReLU(), ScaledLinear(2, 2)), r"1 \(tests.*ScaledLinear\) .* derived from nn.Linear, and may"),
    (lambda: nn.ModuleList([nn.ReLU()]), "ModuleList.* has no counterpart"),
    (
        lambda: nn.Sequential(OrderedDict(body=OrderedModule(nn.ReLU()))),
        r"body \(.*OrderedModule\).* derived from nn.Sequential",
    ),
    (
        lambda: nn.Sequential(OrderedDict(a=nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 3, padding_mode="reflect")))),
        r"a.1 \(nn.Conv2d\): padding_mode='reflect', but .*put nn.ReflectionPad",
    ),
    (lambda: nn.Conv1d(1, 1, 3, padding_mode="circular"), "put nn.CircularPad"),
    (lambda: nn.Sequential(nn.LazyLinear(3)), "0 .nn.LazyLinear. has no parameters yet"),
    (twice, "0.weight and 2.weight are one and the same tensor"),
    (tied, "0.weight and 2.weight are one and the same tensor"),
    (hooked, "has hooks"),
    (lambda: nn.utils.spectral_norm(nn.Linear(3, 3)), "remove_spectral_norm"),
    (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)), "with a parametrization: .*remove_parametrizations"),
    (patched, "a forward of its own"),
    (half_frozen, "some of its parameters have requires_grad=False"),
    (lambda: nn.Dropout(1.0), r"p=1.0 drops all"),
    (lambda: nn.AlphaDropout(1.0), r"p=1.0 drops all, which AlphaDropout does not"),
    (lambda: nn.Dropout2d(1.0), r"p=1.0 drops all, which ChannelDropout does not"),
    (nn.Softmax, "dim=None has torch guess"),
    (nn.LogSoftmax, "dim=None has torch guess"),
    (lambda: nn.Flatten(1, 2), "end_dim=2"),
    (lambda: nn.Unflatten(2, (1, 2)), "dim=2"),
    (lambda: nn.Unflatten(1, (-1, 2)), "leaves a size open"),
    (lambda: nn.Embedding(2, 2, max_norm=1.0), "max_norm=1.0"),
    (lambda: nn.Embedding(2, 2, scale_grad_by_freq=True), "scale_grad_by_freq"),
    (lambda: nn.Embedding(2, 2, sparse=True), "sparse=True"),
    (lambda: nn.MaxPool1d(2, return_indices=True), "return_indices=True gives a pair"),
    (lambda: nn.AdaptiveMaxPool1d(2, return_indices=True), "return_indices=True gives a pair"),
    (lambda: nn.AdaptiveMaxPool2d(2, return_indices=True), "return_indices=True gives a pair"),
    (lambda: nn.AdaptiveMaxPool3d(2, return_indices=True), "return_indices=True gives a pair"),
    (lambda: nn.AdaptiveAvgPool2d((None, 2)), "keeps the size of an axis"),
    (lambda: nn.Upsample(2, mode="bicubic"), "mode='bicubic'"),
    (lambda: nn.Upsample(scale_factor=2, recompute_scale_factor=True), "recompute_scale_factor=True"),
    (lambda: nn.ConstantPad1d(-1, 0.0), "must be 0 or more"),
    (lambda: nn.Softplus(threshold=100), "at most 40"),
    (lambda: nn.RMSNorm(3, elementwise_affine=False), "eps=None stands for"),
    (lambda: nn.InstanceNorm1d(3, track_running_stats=True), "track_running_stats=True"),
    (lambda: nn.LSTM(2, 3), "batch_first=False"),
    (lambda: nn.GRU(2, 3, 2, dropout=0.5, batch_first=True), "dropout=0.5 between its layers"),
    (lambda: nn.LSTM(3, 4, proj_size=2, batch_first=True), "proj_size=2"),
    (lambda: nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 3, batch_first=True)), r"1 \(nn.LSTM\): it gives a pair"),
    (lambda: nn.Sequential(nn.MultiheadAttention(4, 2, batch_first=True)), r"0 \(nn.MultiheadAttention\): it takes queries"),
    (lambda: nn.MultiheadAttention(4, 2), "batch_first=False"),
    (lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True, batch_first=True), "add_bias_kv or add_zero_attn"),
    (lambda: nn.MultiheadAttention(4, 2, add_zero_attn=True, batch_first=True), "add_bias_kv or add_zero_attn"),
    (lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5, batch_first=True), "kdim=3 and vdim=5"),
    (lambda: nn.TransformerEncoderLayer(8, 2, 12), r"self_attn \(nn.MultiheadAttention\): batch_first=False"),
    (lambda: nn.TransformerEncoderLayer(8, 2, 12, activation=torch.sin, batch_first=True), "its activation is the function"),
    (lambda: nn.TransformerDecoderLayer(8, 2, 12, batch_first=True), "norm_first=False"),
    (lambda: with_part("norm1", nn.Identity()), "converted to Identity, where LayerNorm is due"),
    (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 12, batch_first=True, norm_first=True), 1),
        "it has no norm",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED_MODULES, ids=[message for _, message in REFUSED_MODULES])
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated")
def test_modules_that_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(torch_nn.ConversionError, match=message):
        torch_nn.from_torch(make())


MASK: Final = torch.ones(2, 5, dtype=torch.bool)


REFUSED_MODELS: Final[Sequence[tuple[Callable[[], Model], str]]] = [
    (lambda: residual(linear(2, 2)), r"model \(Residual\) has no counterpart in torch.nn: write a module"),
    (lambda: (fundl.ReLU(), (Dropout(0.1, key(0)),)), r"model\[1\]\[0\] \(Dropout\): it has a key"),
    (lambda: frozen(linear(2, 2), residual(linear(2, 2))), r"model.layers\[1\] \(Residual\) has no counterpart"),
    (lambda: repeat(2, residual(linear(2, 2))), r"model.blocks\[0\].*Residual"),
    (BatchNorm, "it takes any number of channels"),
    (lambda: fundl.batch_norm(3), "tell the shape of the model's input"),
    (lambda: fundl.Upsample(2, mode="linear"), "tell the shape of the model's input"),
    (fundl.GlobalAveragePool, "tell the shape of the model's input"),
    (lambda: fundl.GroupNorm(2), "it takes any number of channels"),
    (lambda: fundl.LayerNorm(2, None, torch.ones(2)), "it has a bias and no weight"),
    (lambda: fundl.GLU(fundl.ReLU()), "its activation is ReLU"),
    (lambda: fundl.AveragePool1d(2, divisor=3), "divisor=3"),
    (lambda: fundl.Pad((1, 1, 1, 1)), "it pads 4 axes"),
    (lambda: compose(linear(2, 2), fundl.lstm(2, 3)), r"model\[1\] \(LSTM\): it gives a pair"),
    (lambda: (fundl.self_attention(4, 2),), r"model\[0\] \(SelfAttention\): it takes queries"),
    (lambda: fundl.with_mask(fundl.gru(2, 3), MASK), "it has a mask"),
    (lambda: fundl.with_mask(fundl.self_attention(4, 2), MASK), "it has a mask"),
    (lambda: fundl.self_attention(4, 2, causal=True), "causal=True"),
    (lambda: fundl.self_attention(4, 2, rotary=10.0), "rotary=10.0"),
    (lambda: fundl.self_attention(4, 2, window=3), "it has window"),
    (lambda: fundl.self_attention(4, 2, alibi=True), "it has alibi"),
    (lambda: attrs.evolve(fundl.self_attention(4, 2), visible=MASK), "it has visible"),
    (lambda: fundl.self_attention(4, 2, key_value_heads=1), "key_value_heads=1"),
    (lambda: rekey(fundl.self_attention(4, 2, dropout=0.1), key(0)), "it has a key"),
    (lambda: attrs.evolve(fundl.self_attention(4, 2), output_bias=None), "either its projections or its output"),
    (lambda: attrs.evolve(fundl.cross_attention(4, 2), query_bias=None), "its queries have a bias"),
    (lambda: attrs.evolve(fundl.cross_attention(4, 2), memory_mask=MASK), "it has a memory_mask"),
    (lambda: transformer_block(8, 2, causal=True), "model, a transformer block: causal=True"),
    (lambda: transformer_block(8, 2, norm=layer_norm(8, bias=False)), "a transformer block: some of its parts have a bias"),
    (lambda: transformer_block(8, 2, norm=fundl.LayerNorm(8)), "a transformer block: some of its parts have a bias"),
    (lambda: transformer_block(8, 2, norm=fundl.LayerNorm(8), bias=False), "a LayerNorm in it has no weight"),
    (lambda: rekey(transformer_block(8, 2, dropout=0.1), key(0)), "a transformer block: it has a key"),
    (lambda: transformer_block(8, 2, norm=fundl.rms_norm(8)), r"model\[0\] \(Residual\) has no counterpart"),
    (lambda: decoder_block(8, 2), "causal=True"),
    (lambda: decoder_block(8, 2, memory_features=3, causal=False), "its memory has 3 features"),
    (lambda: decoder_block(8, 2, norm=fundl.rms_norm(8)), "it is made of other layers"),
    (lambda: decoder(1, decoder_block(8, 2, causal=False), fundl.rms_norm(8)), "it is made of other layers"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED_MODELS, ids=[message for _, message in REFUSED_MODELS])
def test_models_that_are_refused(make: Callable[[], Model], message: str) -> None:
    with pytest.raises(torch_nn.ConversionError, match=message):
        torch_nn.to_torch(make())


def test_no_counterpart_for_that_many_axes() -> None:
    for model in (BatchNorm(), fundl.InstanceNorm(), fundl.GlobalMaxPool()):
        with pytest.raises(torch_nn.ConversionError, match="6 axes"):
            torch_nn.to_torch(model, Shape(1, 2, 3, 4, 5, 6))


def test_a_model_is_asked_for() -> None:
    with pytest.raises(TypeError, match="is the class ReLU"):
        torch_nn.to_torch(fundl.ReLU)  # type: ignore[arg-type]  # what is refused
