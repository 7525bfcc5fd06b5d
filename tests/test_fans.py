"""Fans against what they promise: measured variances of outputs and gradients, for every layer that has a weight."""

from typing import Final, TypeVar

import attrs
import pytest
import torch
from torch import Tensor

from fundl import (
    BatchNorm,
    Bilinear,
    Fans,
    Initializer,
    LearnedPositions,
    Linear,
    Recurrence,
    apply,
    bilinear,
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    cross_attention,
    embedding,
    gru,
    initialize,
    kaiming_normal,
    kaiming_uniform,
    key,
    layer_norm,
    learned_positions,
    lecun_normal,
    lecun_uniform,
    linear,
    low_rank,
    lstm,
    normal,
    random,
    rnn,
    self_attention,
    tree,
    uniform_fan_in,
    vjp,
    weight_norm,
    xavier_normal,
    xavier_uniform,
    zeros,
)
from fundl.fan import fans_of
from fundl.layers._convolution import Convolution

L = TypeVar("L", Convolution, Linear, Bilinear)


def by(initializer: Initializer, layer: L) -> L:
    """The layer with a weight drawn by the initialiser, and a bias of 0."""
    evolved = attrs.evolve(layer, weight_init=initializer, bias_init=zeros())
    return initialize(key(1), evolved)


def drawn(seed: int, *shape: int) -> Tensor:
    return random.normal(key(seed), shape)


def middle(x: Tensor, axes: int) -> Tensor:
    """What is far from the borders, along the last axes: of a size that every stride below divides, where all fit in."""
    for axis in range(1, axes + 1):
        margin = 12 if x.shape[-axis] >= 36 else x.shape[-axis] // 4
        x = x.narrow(-axis, margin, x.shape[-axis] - 2 * margin)
    return x


def mean_square(x: Tensor) -> float:
    return float(x.square().mean())


# --- By what a layer does ----------------------------------------------------------------------------------------------

# Of a batch and its axes, by how many axes there are, and whether the layer makes them larger
SIZES: Final = {
    (1, False): (8, 240),
    (2, False): (4, 48, 48),
    (3, False): (2, 36, 36, 36),
    (1, True): (8, 240),
    (2, True): (4, 24, 24),
    (3, True): (4, 12, 12, 12),
}

CONVOLUTIONS: Final[dict[str, Convolution]] = {
    "conv1d": conv1d(64, 32, 5),
    "conv1d, dilated": conv1d(32, 64, 3, dilation=2),
    "conv1d, strided": conv1d(64, 96, 4, stride=3),
    "conv1d, strided past its window": conv1d(64, 64, 1, stride=2),
    "conv2d": conv2d(24, 48, 3, padding=1),
    "conv2d, depthwise": conv2d(64, 64, 3, groups=64),
    "conv2d, grouped": conv2d(32, 64, 3, groups=4),
    "conv2d, grouped and strided": conv2d(32, 64, 4, groups=4, stride=(1, 2), padding=2),
    "conv3d, strided": conv3d(24, 32, 3, stride=3),
    "conv_transpose1d": conv_transpose1d(32, 64, 3),
    "conv_transpose1d, strided past its window": conv_transpose1d(64, 64, 1, stride=2),
    "conv_transpose2d": conv_transpose2d(64, 256, 3),
    "conv_transpose2d, grouped and strided": conv_transpose2d(64, 32, 4, groups=4, stride=2, padding=1),
    "conv_transpose2d, strided and dilated": conv_transpose2d(32, 32, 3, stride=(2, 3), dilation=2, output_padding=(1, 2)),
    "conv_transpose3d, strided": conv_transpose3d(32, 16, 3, stride=2, output_padding=1),
}


def measured(model: Convolution | Linear, x: Tensor, axes: int = 0) -> Fans:
    """The mean squares of output and gradient for an input, or a gradient of the output, of mean square 1."""
    y = apply(model, x)
    grad_x = vjp(model, x, drawn(3, *y.shape))[1]
    return Fans(mean_square(middle(y, axes)), mean_square(middle(grad_x, axes)))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_fans_of_a_convolution_are_what_it_adds_up(name: str) -> None:
    layer = by(normal(), CONVOLUTIONS[name])
    size = SIZES[layer.axes, layer.transposed]
    x = drawn(2, size[0], layer._in_and_out()[0], *size[1:])
    assert measured(layer, x, layer.axes) == pytest.approx(layer.own_fans(), rel=0.06)


def test_the_fans_of_a_linear_layer_are_what_it_adds_up() -> None:
    layer = by(normal(), linear(100, 60))
    assert measured(layer, drawn(2, 500, 100)) == pytest.approx(Fans(100, 60), rel=0.06)


def test_the_fans_of_a_bilinear_layer_are_what_it_adds_up() -> None:
    layer = by(normal(), bilinear(20, 60, 30))
    x = (drawn(2, 500, 20), drawn(3, 500, 60))
    y = apply(layer, x)
    grads_x = vjp(layer, x, drawn(4, *y.shape))[1]
    fan_out = mean_square(torch.cat(grads_x, 1))
    assert layer.own_fans() == pytest.approx(Fans(mean_square(y), fan_out), rel=0.06)


def test_a_row_that_is_looked_up_depends_on_itself_alone() -> None:
    tokens = torch.arange(100)
    for initializer in (lecun_normal(), lecun_uniform(), kaiming_normal(gain=1.0)):
        y = apply(initialize(key(1), embedding(100, 400, weight_init=initializer)), tokens)
        assert mean_square(y) == pytest.approx(1, rel=0.02)
        assert mean_square(apply(learned(initializer), torch.zeros(1, 100, 400))) == pytest.approx(1, rel=0.02)
    padded = initialize(key(1), embedding(100, 400, padding=0, weight_init=lecun_normal()))
    assert mean_square(apply(padded, tokens[1:])) == pytest.approx(1, rel=0.02)


def learned(initializer: Initializer) -> LearnedPositions:
    return initialize(key(1), learned_positions(100, 400, weight_init=initializer))


# --- By initialiser ----------------------------------------------------------------------------------------------------

INITIALIZERS: Final = {
    "uniform_fan_in": uniform_fan_in(),
    "kaiming_uniform": kaiming_uniform(),
    "kaiming_normal": kaiming_normal(gain=1.0),
    "kaiming_normal, out": kaiming_normal(gain=1.0, mode="fan_out"),
    "kaiming_uniform, mean": kaiming_uniform(gain=1.0, mode="fan_mean"),
    "xavier_uniform": xavier_uniform(),
    "xavier_normal": xavier_normal(gain=2.0),
    "lecun_uniform": lecun_uniform(),
    "lecun_normal": lecun_normal(),
}


@pytest.mark.parametrize("name", INITIALIZERS)
def test_initialisers_give_the_variance_that_they_promise(name: str) -> None:
    """Of depthwise, of widening and of strided convolutions: that of the inputs, that of the gradients, or between."""
    initializer = INITIALIZERS[name]
    layers: dict[Convolution, Fans] = {
        conv2d(64, 64, 3, groups=64): Fans(9, 9),
        conv_transpose2d(64, 256, 3): Fans(576, 2304),
        conv_transpose2d(32, 64, 4, stride=2): Fans(128, 1024),
        conv2d(64, 64, 4, stride=2, groups=2): Fans(512, 128),
    }
    for layer, (fan_in, fan_out) in layers.items():
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_mean": (fan_in + fan_out) / 2}[initializer.mode]
        found = measured(by(initializer, layer), drawn(2, 2, layer._in_and_out()[0], 36, 36), 2)
        variances = Fans(initializer.scale * fan_in / fan, initializer.scale * fan_out / fan)
        assert found == pytest.approx(variances, rel=0.06)


# --- By parameter ------------------------------------------------------------------------------------------------------


def mean_squares(record: object, name: str, parts: int) -> list[float]:
    """The mean squares of the parts of a parameter."""
    leaf: object = getattr(record, name)
    assert isinstance(leaf, Tensor)
    return [mean_square(part) for part in leaf.chunk(parts)]


def test_the_weights_of_attention_have_fans_of_their_own() -> None:
    layer = initialize(key(1), self_attention(96, 4, weight_init=lecun_normal(), output_weight_init=lecun_normal()))
    y = apply(layer, drawn(2, 500, 1, 96))  # one position attends to itself alone, so that y = U W_v x
    assert mean_square(y) == pytest.approx(1, rel=0.06)
    assert mean_squares(layer, "weight", 3) == pytest.approx([1 / 96] * 3, rel=0.06)
    few = initialize(key(1), self_attention(96, 4, key_value_heads=2, weight_init=xavier_normal()))
    rows = (few.weight[:96], few.weight[96:144], few.weight[144:])
    assert [mean_square(part) for part in rows] == pytest.approx([1 / 96, 2 / 144, 2 / 144], rel=0.06)


def test_biases_have_the_fans_of_their_own_weights() -> None:
    layer = initialize(
        key(1), cross_attention(64, 4, memory_features=4096, bias_init=uniform_fan_in(), output_bias_init=uniform_fan_in())
    )
    assert layer.bias is not None
    assert layer.query_bias is not None
    assert layer.output_bias is not None
    assert 0.9 / 64 < float(layer.bias.abs().max()) <= 1 / 64
    assert 0.9 / 8 < float(layer.query_bias.abs().max()) <= 1 / 8
    assert 0.9 / 8 < float(layer.output_bias.abs().max()) <= 1 / 8


LECUN: Final = lecun_normal()
RECURRENT: Final = {
    1: rnn(50, 100, weight_ih_init=LECUN, weight_hh_init=LECUN),
    3: gru(50, 100, weight_ih_init=LECUN, weight_hh_init=LECUN),
    4: lstm(50, 100, weight_ih_init=LECUN, weight_hh_init=LECUN),
}


@pytest.mark.parametrize("gates", RECURRENT)
def test_the_weights_of_recurrent_layers_have_the_inputs_of_one_gate(gates: int) -> None:
    (recurrence,) = [part for part in tree.records(initialize(key(1), RECURRENT[gates])) if isinstance(part, Recurrence)]
    assert mean_squares(recurrence, "weight_ih", gates) == pytest.approx([1 / 50] * gates, rel=0.08)
    assert mean_squares(recurrence, "weight_hh", gates) == pytest.approx([1 / 100] * gates, rel=0.08)


def test_layers_around_others_leave_them_their_fans() -> None:
    inner = conv_transpose2d(64, 64, 3, stride=3, weight_init=lecun_normal(), bias_init=zeros())
    x = drawn(2, 1, 64, 24, 24)
    assert mean_square(apply(initialize(key(1), weight_norm(inner)), x)) == pytest.approx(1, rel=0.06)
    adapted = initialize(key(1), low_rank(initialize(key(0), linear(100, 50)), 20, down_init=lecun_normal()))
    assert mean_squares(adapted, "down", 1) == pytest.approx([1 / 100], rel=0.08)


def test_what_has_no_matrix_has_fans_of_one() -> None:
    norm = layer_norm(8)
    assert isinstance(norm.weight, Tensor)
    assert fans_of(norm, "weight", norm.weight, [norm.weight]) == Fans(1, 1)
    assert fans_of(BatchNorm(torch.ones(3)), "weight", torch.ones(3), []) == Fans(1, 1)
