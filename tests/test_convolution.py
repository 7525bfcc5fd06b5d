"""Convolutions: torch.nn's numbers for all options, channels-last memory, and what is told of wrong arguments and inputs."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fundl import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Shape,
    apply,
    assert_trees_close,
    backward_input,
    backward_params,
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    forward,
    initialize,
    key,
    output_shape,
    random,
    tree,
    vjp,
)
from fundl.shapes import Spread

Layer: TypeAlias = Conv1d | Conv2d | Conv3d | ConvTranspose1d | ConvTranspose2d | ConvTranspose3d

CLASSES: Final[Mapping[int, type[Conv1d] | type[Conv2d] | type[Conv3d]]] = {1: Conv1d, 2: Conv2d, 3: Conv3d}
TRANSPOSES: Final[Mapping[int, type[ConvTranspose1d] | type[ConvTranspose2d] | type[ConvTranspose3d]]] = {
    1: ConvTranspose1d,
    2: ConvTranspose2d,
    3: ConvTranspose3d,
}
THEIRS: Final = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}
THEIR_TRANSPOSES: Final = {1: torch.nn.ConvTranspose1d, 2: torch.nn.ConvTranspose2d, 3: torch.nn.ConvTranspose3d}


def numbers(*shape: int) -> Tensor:
    return random.normal(key(0), shape, dtype=torch.float64)


# --- The same as torch.nn ----------------------------------------------------------------------------------------------


def assert_equals_torch(ours: Layer, theirs: torch.nn.Module, x: Tensor) -> None:
    """Output and gradients are those of torch.nn's layer, which gets the same parameters, and of the declared shape."""
    variable = x.clone().requires_grad_()
    expected: Tensor = theirs(variable)
    grad = random.normal(key(1), tuple(expected.shape), dtype=torch.float64)
    gradients = torch.autograd.grad(expected, [variable, *theirs.parameters()], grad)  # of x, weight and bias
    output, residuals = forward(ours, x)
    grads, grad_x = vjp(ours, x, grad)
    assert_trees_close([output, grad_x, *tree.leaves(grads)], [expected.detach(), *gradients], rtol=1e-9, atol=1e-9)
    assert_trees_close(backward_params(ours, residuals, grad), grads, rtol=1e-12, atol=1e-12)
    assert_trees_close(backward_input(ours, residuals, grad), grad_x, rtol=1e-12, atol=1e-12)
    assert residuals is x
    if x.ndim == ours.axes + 2:
        assert output_shape(ours, Shape(*x.shape)).sizes == output.shape


def per_axis(axes: int, least: int, most: int) -> st.SearchStrategy[int | tuple[int, ...]]:
    size = st.integers(least, most)
    return size | st.tuples(*(size,) * axes)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Layer, torch.nn.Module, Tensor]:
    """A layer, torch.nn's, and an input that has room for the window."""
    axes = draw(st.sampled_from((1, 2, 2, 3)))
    groups = draw(st.integers(1, 3))
    in_channels, out_channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel_size = draw(st.tuples(*(st.integers(1, 3),) * axes))
    same = draw(st.booleans())
    stride = 1 if same else draw(per_axis(axes, 1, 3))
    padding: int | tuple[int, ...] | Literal["same"] = "same" if same else draw(per_axis(axes, 0, 2))
    dilation = draw(per_axis(axes, 1, 2))
    biased = draw(st.booleans())
    spreads = (dilation,) * axes if isinstance(dilation, int) else dilation
    sides = [spread * (size - 1) + draw(st.integers(1, 3)) for size, spread in zip(kernel_size, spreads, strict=True)]
    batch = draw(st.sampled_from(((), (0,), (1,), (3,))))

    theirs = THEIRS[axes](
        in_channels,
        out_channels,
        kernel_size,  # type: ignore[arg-type]  # of as many numbers as the layer has axes
        stride,  # type: ignore[arg-type]  # likewise
        padding,  # type: ignore[arg-type]  # likewise
        dilation,  # type: ignore[arg-type]  # likewise
        groups,
        biased,
        dtype=torch.float64,
    )
    weight = numbers(out_channels, in_channels // groups, *kernel_size)
    bias = numbers(out_channels) if biased else None
    theirs.load_state_dict({"weight": weight} | ({"bias": bias} if bias is not None else {}))
    ours = CLASSES[axes](weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return ours, theirs, numbers(*batch, in_channels, *sides)


@st.composite
def transposes(draw: st.DrawFn) -> tuple[Layer, torch.nn.Module, Tensor]:
    """A layer, torch.nn's, and an input of which something is left."""
    axes = draw(st.sampled_from((1, 2, 2, 3)))
    groups = draw(st.integers(1, 3))
    in_channels, out_channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel_size = draw(st.tuples(*(st.integers(1, 3),) * axes))
    stride, dilation = (draw(st.tuples(*(st.integers(1, 3),) * axes)) for _ in range(2))
    output_padding = tuple(draw(st.integers(0, max(step, gap) - 1)) for step, gap in zip(stride, dilation, strict=True))
    biased = draw(st.booleans())
    sides = draw(st.tuples(*(st.integers(1, 4),) * axes))
    lengths = map(Spread.of, sides, kernel_size, stride, (0,) * axes, dilation, output_padding)
    padding = tuple(draw(st.integers(0, (length - 1) // 2)) for length in lengths if isinstance(length, int))
    batch = draw(st.sampled_from(((), (0,), (1,), (3,))))

    theirs = THEIR_TRANSPOSES[axes](
        in_channels,
        out_channels,
        kernel_size,  # type: ignore[arg-type]  # of as many numbers as the layer has axes
        stride,  # type: ignore[arg-type]  # likewise
        padding,  # type: ignore[arg-type]  # likewise
        output_padding,  # type: ignore[arg-type]  # likewise
        groups,
        biased,
        dilation,  # type: ignore[arg-type]  # likewise
        dtype=torch.float64,
    )
    weight = numbers(in_channels, out_channels // groups, *kernel_size)
    bias = numbers(out_channels) if biased else None
    theirs.load_state_dict({"weight": weight} | ({"bias": bias} if bias is not None else {}))
    ours = TRANSPOSES[axes](
        weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, output_padding=output_padding
    )
    return ours, theirs, numbers(*batch, in_channels, *sides)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_all_options_give_what_torch_gives() -> None:
    def check(case: tuple[Layer, torch.nn.Module, Tensor]) -> None:
        assert_equals_torch(*case)

    settings(max_examples=100, deadline=None, derandomize=True)(given(convolutions())(check))()
    settings(max_examples=100, deadline=None, derandomize=True)(given(transposes())(check))()


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2])
def test_padding_for_each_stride(stride: int, kernel_size: int, dilation: int) -> None:
    """The output has a place for each stride of the input, and the way back, which is the vjp, a stride for each place."""
    weight = numbers(4, 3, kernel_size)
    convolution = Conv1d(weight, None, stride=stride, padding="same", dilation=dilation)
    transpose = ConvTranspose1d(weight, None, stride=stride, padding="same", dilation=dilation)
    for length in range(1, 12):
        x = numbers(2, 3, length)
        y = apply(convolution, x)
        assert y.shape == (2, 4, -(-length // stride))
        assert output_shape(convolution, Shape(2, 3, length)).sizes == y.shape
        if length % stride == 0:
            grad = numbers(*y.shape)
            _, grad_x = vjp(convolution, x, grad)
            assert_trees_close(apply(transpose, grad), grad_x, rtol=1e-12, atol=1e-12)
            assert output_shape(transpose, Shape(*grad.shape)).sizes == x.shape


def test_a_transpose_is_the_vjp_of_a_convolution() -> None:
    convolution = Conv2d(numbers(4, 2, 3, 2), None, stride=(2, 3), padding=(1, 0), groups=2)
    x, grad = numbers(5, 4, 8, 6), numbers(5, 4, 4, 2)
    transpose = ConvTranspose2d(convolution.weight, None, stride=(2, 3), padding=(1, 0), groups=2, output_padding=(1, 1))
    assert_trees_close(apply(transpose, grad), vjp(convolution, x, grad)[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "bound"),
    [
        (conv1d(3, 200, 5), 1 / math.sqrt(3 * 5)),
        (conv2d(4, 64, (3, 5), groups=2), 1 / math.sqrt(2 * 3 * 5)),
        (conv3d(2, 64, 3), 1 / math.sqrt(2 * 27)),
        (conv_transpose1d(50, 20, 5), 1 / math.sqrt(20 * 5)),
        (conv_transpose2d(64, 40, (3, 5), groups=2), 1 / math.sqrt(20 * 3 * 5)),
        (conv_transpose3d(64, 20, 3), 1 / math.sqrt(20 * 27)),
    ],
)
def test_parameters_are_drawn_as_in_torch(layer: Layer, bound: float) -> None:
    """Uniform, up to 1 / sqrt(n), where n is the product of all axes of the weight but the first, in transposes too."""
    drawn = initialize(key(0), layer)
    assert drawn.bias is not None
    for values in (drawn.weight, drawn.bias):
        assert 0.9 * bound < float(values.abs().max()) <= bound


# --- Memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, "same"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_channels_last_is_kept(padding: Literal[0, "same"], dtype: torch.dtype) -> None:
    layer = initialize(key(0), conv2d(4, 6, 2, padding=padding), dtype=dtype)
    x = torch.ones(2, 4, 5, 7, dtype=dtype).contiguous(memory_format=torch.channels_last)
    output = apply(layer, x)
    _, grad_x = vjp(layer, x, torch.ones_like(output))
    for tensor in (output, grad_x):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


# --- Transformed and traced --------------------------------------------------------------------------------------------


def test_runs_under_vmap() -> None:
    layer = Conv2d(numbers(3, 2, 2, 2), numbers(3), padding="same")
    x, grad = numbers(5, 2, 4, 4), numbers(5, 3, 4, 4)

    def run(example: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        return apply(layer, example), vjp(layer, example, cotangent)[1]

    assert_trees_close(torch.vmap(run)(x, grad), run(x, grad), rtol=1e-9, atol=1e-9)


def test_can_be_traced() -> None:
    layer = Conv2d(numbers(3, 2, 2, 2), numbers(3), padding="same")
    x, grad = numbers(5, 2, 4, 4), numbers(5, 3, 4, 4)
    traced = make_fx(lambda x, grad: tree.leaves(vjp(layer, x, grad)))(x, grad)
    assert_trees_close(traced(x, grad), tree.leaves(vjp(layer, x, grad)), rtol=0, atol=0)


# --- What is told of wrong arguments and inputs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: conv2d(0, 8, 3), "Conv2d's in_channels must be at least 1, not 0"),
        (lambda: conv2d(3, 0, 3), "Conv2d's out_channels must be at least 1, not 0"),
        (lambda: conv2d(3, 8, 0), "Conv2d's kernel_size must be at least 1, not 0"),
        (lambda: conv2d(3, 8, (3, 0)), "Conv2d's kernel_size must be at least 1, not (3, 0)"),
        (lambda: conv2d(3, 8, 3, stride=0), "Conv2d's stride must be at least 1, not 0"),
        (lambda: conv3d(3, 8, 3, stride=(1, 0, 1)), "Conv3d's stride must be at least 1, not (1, 0, 1)"),
        (lambda: conv1d(3, 8, 3, dilation=0), "Conv1d's dilation must be at least 1, not 0"),
        (lambda: conv2d(3, 8, 3, padding=-1), "Conv2d's padding must be at least 0, not -1"),
        (lambda: conv2d(3, 8, 3, groups=0), "Conv2d's groups must be at least 1, not 0"),
        (
            lambda: conv2d(3, 8, 3, groups=2),
            "Conv2d's groups divide the channels evenly, but in_channels is 3 and groups 2",
        ),
        (
            lambda: conv2d(4, 9, 3, groups=2),
            "Conv2d's groups divide the channels evenly, but out_channels is 9 and groups 2",
        ),
        (
            lambda: conv_transpose2d(4, 9, 3, groups=2),
            "ConvTranspose2d's groups divide the channels evenly, but out_channels is 9 and groups 2",
        ),
        (lambda: conv_transpose1d(4, 9, 3, output_padding=-1), "ConvTranspose1d's output_padding must be at least 0, not -1"),
        (
            lambda: conv_transpose2d(4, 9, 3, stride=2, output_padding=(1, 2)),
            (
                "ConvTranspose2d's output_padding must be less than the stride or the dilation, not (1, 2) with a stride of 2"
                " and a dilation of 1"
            ),
        ),
        (
            lambda: ConvTranspose1d(torch.ones(4, 3), None),
            "ConvTranspose1d's weight is of shape (in, out / groups, L), not (4, 3)",
        ),
        (
            lambda: Conv2d(torch.ones(4, 3, 3), None),
            "Conv2d's weight is of shape (out, in / groups, H, W), not (4, 3, 3)",
        ),
    ],
)
def test_wrong_arguments_are_told(make: Callable[[], Layer], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        make()


def test_settings_are_integers() -> None:
    sentence = "Conv2d's stride is an integer, or a tuple of 2, one for each axis, not (1, 2, 3)"
    with pytest.raises(TypeError, match=re.escape(sentence)):
        Conv2d(torch.ones(4, 3, 3, 3), None, stride=(1, 2, 3))
    with pytest.raises(TypeError, match=re.escape("Conv1d's dilation is an integer, or a tuple of one, not 1.5")):
        Conv1d(torch.ones(4, 3, 3), None, dilation=1.5)  # type: ignore[arg-type]  # what is told of it
    sentence = "Conv2d's padding is an integer, or a tuple of 2, one for each axis, or 'same', not 'full'"
    with pytest.raises(TypeError, match=sentence):
        conv2d(3, 4, 3, padding="full")  # type: ignore[arg-type]  # what is told of it


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((8, 8), "Conv2d takes an input of shape (B, C, H, W), or (C, H, W) without a batch, not (8, 8)"),
        ((1, 2, 3, 8, 8), "Conv2d takes an input of shape (B, C, H, W), or (C, H, W) without a batch, not (1, 2, 3, 8, 8)"),
        ((2, 4, 8, 8), "Conv2d expects 3 channels, but the input has 4 channels: its shape is (2, 4, 8, 8)"),
        ((4, 8, 8), "Conv2d expects 3 channels, but the input has 4 channels: its shape is (4, 8, 8)"),
        (
            (2, 3, 8, 2),
            "Conv2d expects a height and width of at least 3, but the input has one of 2: its shape is (2, 3, 8, 2)",
        ),
    ],
)
def test_wrong_inputs_are_told(shape: tuple[int, ...], sentence: str) -> None:
    layer = initialize(key(0), conv2d(3, 8, 5, padding=1))
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        apply(layer, torch.ones(shape))
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((2, 3, 8, 8), "ConvTranspose1d takes an input of shape (B, C, L), or (C, L) without a batch, not (2, 3, 8, 8)"),
        ((2, 4, 8), "ConvTranspose1d expects 3 channels, but the input has 4 channels: its shape is (2, 4, 8)"),
        ((2, 3, 3), "ConvTranspose1d expects a length of at least 4, but the input has one of 3: its shape is (2, 3, 3)"),
        ((2, 3, 0), "ConvTranspose1d expects a length of at least 4, but the input has one of 0: its shape is (2, 3, 0)"),
    ],
)
def test_wrong_inputs_of_transposes_are_told(shape: tuple[int, ...], sentence: str) -> None:
    layer = initialize(key(0), conv_transpose1d(3, 8, 2, padding=2))
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        apply(layer, torch.ones(shape))
    assert str(caught.value) == sentence


def test_empty_images_are_told() -> None:
    sentence = "Conv2d needs at least one element along each axis, but the input's shape is (2, 3, 0, 8)"
    for layer in (conv2d(3, 8, 3, padding=3), conv2d(3, 8, 2, padding="same")):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            apply(initialize(key(0), layer), torch.ones(2, 3, 0, 8))


def test_a_wrong_dtype_is_told() -> None:
    layer = initialize(key(0), conv2d(3, 8, 5))
    with pytest.raises(TypeError, match=r"Conv2d's weight is torch.float32, but the input is torch.float64: convert one"):
        apply(layer, torch.ones(2, 3, 8, 8, dtype=torch.float64))


def test_a_layer_without_values_is_told() -> None:
    layer = conv2d(3, 8, 5)
    with pytest.raises(ValueError, match="the model has no values yet, only shapes: call initialize"):
        apply(layer, torch.ones(2, 3, 8, 8))
    with pytest.raises(ValueError, match="Conv2d's weight has no values, only a shape: call initialize"):
        layer.forward(torch.ones(2, 3, 8, 8))
