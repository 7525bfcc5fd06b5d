"""Resampling: every option against torch.nn.functional and autograd, layouts, and what users get wrong."""

import itertools
import math
import re
from collections.abc import Callable
from typing import Final, Literal, TypeVar, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fundl import Layer, Pad, PixelShuffle, PixelUnshuffle, Shape, Upsample, apply, check_vjp, jit, vjp
from fundl.shapes import Misfit
from tests.samples import normal

R = TypeVar("R")
quietly: Final = settings(deadline=None, derandomize=True, max_examples=40)
SIZE: Final = st.integers(1, 5)
SIDES: Final = st.lists(SIZE, min_size=1, max_size=3)
NAMES: Final = {1: "linear", 2: "bilinear", 3: "trilinear"}


def agrees(layer: Layer[R], function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """A layer's output, and its vjp, are those of a function that autograd differentiates; its rule tells the shape."""
    variable = x.clone().requires_grad_()
    expected = function(variable)
    grad = normal(*expected.shape)
    output, residuals = layer.forward(x)
    assert torch.equal(output, expected.detach())
    torch.testing.assert_close(layer.backward(residuals, grad)[1], torch.autograd.grad(expected, variable, grad)[0])
    assert layer.output_shape(Shape(*x.shape)).sizes == tuple(output.shape)


# --- Upsample ----------------------------------------------------------------------------------------------------------


def moves_no_axis_of_kept_size(sides: list[int], factor: float) -> bool:
    """Whether torch does as its documentation has it: axes whose size is kept it copies."""
    return factor == 1 or all(math.floor(side * factor) != side for side in sides)


def test_nearest_by_any_factor_and_to_any_size() -> None:
    def check(sides: list[int], factor: float, size: int) -> None:
        x = normal(2, 3, *sides)
        assume(min(sides) * factor >= 1 and moves_no_axis_of_kept_size(sides, factor))
        agrees(Upsample(factor), lambda x: F.interpolate(x, scale_factor=factor), x)
        agrees(Upsample((factor,) * len(sides)), lambda x: F.interpolate(x, scale_factor=factor), x)
        agrees(Upsample(size=size), lambda x: F.interpolate(x, size), x)
        agrees(Upsample(size=tuple(sides)), lambda x: F.interpolate(x, sides), x)

    quietly(given(SIDES, st.floats(0.3, 4.0) | SIZE, SIZE)(check))()


def test_linear_by_any_factor_and_to_any_size() -> None:
    def check(sides: list[int], factor: float, size: int, aligned: bool) -> None:
        x, name = normal(2, 3, *sides), NAMES[len(sides)]
        assume(min(sides) * factor >= 1 and moves_no_axis_of_kept_size(sides, factor))
        agrees(
            Upsample(factor, mode="linear", align_corners=aligned),
            lambda x: F.interpolate(x, scale_factor=factor, mode=name, align_corners=aligned),
            x,
        )
        agrees(
            Upsample(size=size, mode="linear", align_corners=aligned),
            lambda x: F.interpolate(x, size, mode=name, align_corners=aligned),
            x,
        )

    quietly(given(SIDES, st.floats(0.3, 4.0) | SIZE, SIZE, st.booleans())(check))()


def matrix(size: int, factor: float, mode: str) -> Tensor:
    """What an axis is multiplied by, by the formula of the docstring."""
    made = math.floor(size * factor)
    found = torch.zeros(made, size, dtype=torch.float64)
    for i in range(made):
        position = max(0.0, (i + 0.5) / factor - 0.5) if mode == "linear" else math.floor(i / factor)
        below = min(math.floor(position), size - 1)
        share = position - below
        found[i, below] += 1 - share
        found[i, min(below + 1, size - 1)] += share
    return found


@pytest.mark.parametrize("mode", get_args(Literal["nearest", "linear"]))
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_factors_that_keep_a_size_move_pixels_all_the_same(mode: Literal["nearest", "linear"], axes: int) -> None:
    """The kernels copy an axis whose size is kept, and not in both directions."""
    for factors in itertools.product([1.1, 1.3, 1.9, 2.0, 0.7], *[[1.3, 2.5]] * (axes - 1)):
        for sizes in itertools.product([2, 3, 5], *[[3]] * (axes - 1)):
            layer, x = Upsample(factors, mode=mode), normal(2, 4, *sizes)
            along = [matrix(size, factor, mode) for size, factor in zip(sizes, factors, strict=True)]
            expected, (output, residuals) = x, layer.forward(x)
            grad = grad_x = normal(*output.shape).sin()
            for weights in along:
                expected = torch.tensordot(expected, weights, dims=([2], [1]))
                grad_x = torch.tensordot(grad_x, weights, dims=([2], [0]))
            torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)  # the kernels' shares are in float32
            torch.testing.assert_close(layer.backward(residuals, grad)[1], grad_x, rtol=1e-6, atol=1e-6)


def test_the_least_upsampling_that_keeps_a_size() -> None:
    x, grad = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[10.0, 20.0, 40.0]]])
    assert torch.equal(apply(Upsample(1.3), x), torch.tensor([[[1.0, 1.0, 2.0]]]))
    assert torch.equal(vjp(Upsample(1.3), x, grad)[1], torch.tensor([[[30.0, 40.0, 0.0]]]))
    check_vjp(Upsample(1.3), normal(1, 1, 3))
    check_vjp(Upsample(1.3, mode="linear"), normal(1, 1, 3, 3))


# --- Pad ---------------------------------------------------------------------------------------------------------------

PAIRS: Final = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=3)


def of_torch(pairs: list[tuple[int, int]]) -> list[int]:
    return [pad for pair in reversed(pairs) for pad in pair]


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_frames_made_of_the_input(mode: Literal["reflect", "replicate", "circular"]) -> None:
    def check(pairs: list[tuple[int, int]], more: list[int]) -> None:
        least = [max(1, *pair) + (mode == "reflect") for pair in pairs]
        sides = [size + extra for size, extra in zip(least, more, strict=False)]
        layer = Pad(tuple(pairs), mode=mode)
        x = normal(2, 3, *sides)
        agrees(layer, lambda x: F.pad(x, of_torch(pairs), mode), x)
        agrees(layer, lambda x: F.pad(x[None], of_torch(pairs), mode)[0], x[0])
        agrees(layer, lambda x: F.pad(x[None, None], of_torch(pairs), mode)[0, 0], x[0, 0])
        agrees(layer, lambda x: F.pad(x.flatten(0, 1), of_torch(pairs), mode)[:, None], x[:, None])

    quietly(given(PAIRS, st.lists(st.integers(0, 2), min_size=3, max_size=3))(check))()


def test_frames_of_a_constant() -> None:
    def check(pairs: list[tuple[int, int]], value: float, lead: list[int]) -> None:
        x = normal(*lead, *(2,) * len(pairs))
        agrees(Pad(tuple(pairs), value=value), lambda x: F.pad(x, of_torch(pairs), value=value), x)

    quietly(given(PAIRS, st.floats(-2, 2), st.lists(st.integers(0, 2), max_size=3))(check))()


def test_a_circle_in_four_axes() -> None:
    x = normal(1, 2, 2, 3, 2, 3)
    expected = x
    for axis, (before, behind) in enumerate(((1, 0), (2, 3), (0, 0), (1, 2)), start=2):
        size = x.shape[axis]
        ends = expected.narrow(axis, size - before, before), expected, expected.narrow(axis, 0, behind)
        expected = torch.cat(ends, axis)
    assert torch.equal(apply(Pad(((1, 0), (2, 3), 0, (1, 2)), mode="circular"), x), expected)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_integers_are_framed_as_well(mode: Literal["constant", "reflect", "replicate", "circular"]) -> None:
    x = torch.arange(6).reshape(1, 2, 3)
    expected = apply(Pad((1,), mode=mode), x.double())
    assert torch.equal(apply(Pad((1,), mode=mode), x), expected.long())


# --- Pixels ------------------------------------------------------------------------------------------------------------


def test_pixels_move_between_space_and_channels() -> None:
    def check(lead: list[int], channels: int, height: int, width: int, factor: int) -> None:
        small = normal(*lead, channels * factor**2, height, width)
        large = normal(*lead, channels, height * factor, width * factor)
        agrees(PixelShuffle(factor), lambda x: F.pixel_shuffle(x, factor), small)
        agrees(PixelUnshuffle(factor), lambda x: F.pixel_unshuffle(x, factor), large)
        assert torch.equal(apply(PixelUnshuffle(factor), apply(PixelShuffle(factor), small)), small)

    quietly(given(st.lists(st.integers(1, 2), max_size=2), SIZE, SIZE, SIZE, st.integers(1, 3))(check))()


def test_no_pixels() -> None:
    assert apply(PixelShuffle(2), torch.zeros(0, 8, 3, 5)).shape == (0, 2, 6, 10)
    assert apply(PixelUnshuffle(2), torch.zeros(0, 2, 6, 10)).shape == (0, 8, 3, 5)


# --- Memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        Upsample(2),
        Upsample(2, mode="linear"),
        Pad((1, 1)),
        Pad((1, 1), mode="reflect"),
        Pad((1, 1), mode="replicate"),
        Pad((1, 1), mode="circular"),
        PixelUnshuffle(2),
    ],
    ids=repr,
)
def test_the_order_in_memory_does_not_matter(layer: Layer[object]) -> None:
    x = normal(2, 3, 4, 4)
    expected, residuals = layer.forward(x)
    grad = normal(*expected.shape)
    expected_grad = layer.backward(residuals, grad)[1]
    output, residuals = layer.forward(x.contiguous(memory_format=torch.channels_last))
    grad_x = layer.backward(residuals, grad.contiguous(memory_format=torch.channels_last))[1]
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(grad_x, expected_grad)


@pytest.mark.parametrize("layer", [Upsample(2), Upsample(2, mode="linear"), Pad((1, 1), mode="reflect")], ids=repr)
def test_channels_that_are_last_in_memory_stay_last(layer: Layer[object]) -> None:
    output, residuals = layer.forward(normal(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    grad_x = layer.backward(residuals, torch.ones_like(output))[1]
    assert grad_x.is_contiguous(memory_format=torch.channels_last)


# --- What users get wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Upsample, "Upsample takes a factor or a size, one of the two, not None and None"),
        (lambda: Upsample(2, size=3), "Upsample takes a factor or a size, one of the two, not 2 and 3"),
        (lambda: Upsample(0), "Upsample's factor must be a finite number above 0, not 0"),
        (lambda: Upsample(size=(2, -1)), "Upsample's size must be above 0, not (2, -1)"),
        (
            lambda: Upsample(2, mode="bilinear"),  # type: ignore[arg-type]  # what is refused
            "Upsample's mode must be 'nearest' or 'linear', not 'bilinear'",
        ),
        (
            lambda: Upsample(2, align_corners=True),
            "Upsample aligns corners in mode='linear' alone: of a nearest pixel there is nothing to align",
        ),
        (lambda: Pad((1, (0, -1))), "Pad's padding must be 0 or more, not (1, (0, -1)): to leave elements out is not to pad"),
        (
            lambda: Pad((1,), mode="wrap"),  # type: ignore[arg-type]  # what is refused
            "Pad's mode must be one of 'constant', 'reflect', 'replicate', 'circular', not 'wrap'",
        ),
        (lambda: Pad((1,), mode="reflect", value=1.0), "Pad has a value in mode='constant' alone, not in 'reflect'"),
        (lambda: Pad((1, 1, 1, 1), mode="reflect"), "Pad takes at most three axes in mode='reflect', not 4"),
        (lambda: PixelShuffle(0), "PixelShuffle's factor must be at least 1, not 0"),
        (lambda: PixelUnshuffle(-1), "PixelUnshuffle's factor must be at least 1, not -1"),
    ],
)
def test_settings_that_are_wrong(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("padding", [1, (), ((1, 2, 3),), ("1",), (1.5,)], ids=repr)
def test_a_padding_that_is_none(padding: tuple[int, ...]) -> None:
    message = (
        "Pad's padding is a tuple of a pair of integers, or one integer, for each of the last axes, such as ((1, 2), 3), not"
        f" {padding!r}"
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        Pad(padding)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (
            Upsample(2),
            (3, 4),
            "Upsample(factor=2) takes an input of shape (B, C, *spatial) with one to three spatial axes, not (3, 4)",
        ),
        (
            Upsample((2, 2)),
            (3, 4, 5),
            (
                "Upsample(factor=(2, 2)) takes an input of shape (B, C, *spatial) with 2 spatial axes, as many as it has"
                " numbers, not (3, 4, 5)"
            ),
        ),
        (Upsample(0.5), (1, 1, 1), "Upsample(factor=0.5) leaves no pixel of an input of shape (1, 1, 1)"),
        (Upsample(size=3), (1, 1, 0), "Upsample(size=3) leaves no pixel of an input of shape (1, 1, 0)"),
        (
            Pad((1, 1)),
            (3,),
            "Pad(padding=(1, 1)) needs an input with at least as many axes as it pads, but the input's shape is (3,)",
        ),
        (
            Pad((1, 3), mode="reflect"),
            (1, 4, 3),
            (
                "Pad(padding=(1, 3), mode='reflect') takes its elements from the input, of which an axis is too short: it is of"
                " size 3, and must be of at least 4; the input's shape is (1, 4, 3)"
            ),
        ),
        (
            Pad((1,), mode="replicate"),
            (2, 0),
            (
                "Pad(padding=(1,), mode='replicate') takes its elements from the input, of which an axis is too short: it is of"
                " size 0, and must be of at least 1; the input's shape is (2, 0)"
            ),
        ),
        (
            Pad(((0, 3),), mode="circular"),
            (2, 2),
            (
                "Pad(padding=((0, 3),), mode='circular') takes its elements from the input, of which an axis is too short: it"
                " is of size 2, and must be of at least 3; the input's shape is (2, 2)"
            ),
        ),
        (
            PixelShuffle(2),
            (1, 6, 2, 2),
            (
                "PixelShuffle(factor=2) needs a number of channels that is a multiple of 4, but the input's shape is"
                " (1, 6, 2, 2), of 6 channels"
            ),
        ),
        (PixelShuffle(2), (4, 2), "PixelShuffle(factor=2) takes an input of shape (..., C, H, W), not (4, 2)"),
        (
            PixelUnshuffle(2),
            (1, 6, 2, 3),
            (
                "PixelUnshuffle(factor=2) needs a height and a width that are multiples of 2, but the input's shape is"
                " (1, 6, 2, 3)"
            ),
        ),
        (PixelUnshuffle(2), (4,), "PixelUnshuffle(factor=2) takes an input of shape (..., C, H, W), not (4,)"),
    ],
    ids=repr,
)
def test_inputs_of_the_wrong_shape(layer: Layer[object], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        apply(layer, torch.ones(shape))


def test_rules_refuse_what_the_layers_do() -> None:
    with pytest.raises(Misfit, match=re.escape("expects a size that is a multiple of 4 but the input has one of 6")):
        PixelShuffle(2).output_shape(Shape(1, 6, 2, 2))
    with pytest.raises(Misfit, match=re.escape("expects 4 axes but the input has 3 axes")):
        Upsample((2, 2)).output_shape(Shape(3, 4, 5))
    with pytest.raises(Misfit, match=re.escape("expects at least 2 axes but the input has 1 axis")):
        Pad((1, 1)).output_shape(Shape(3))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_an_empty_batch_can_be_traced(mode: Literal["nearest", "linear"]) -> None:
    x = torch.ones(0, 2, 3, 3)
    y = jit(apply)(Upsample(2, mode=mode), x)
    assert y.shape == (0, 2, 6, 6)
    assert jit(vjp)(Upsample(2, mode=mode), x, y)[1].shape == x.shape
