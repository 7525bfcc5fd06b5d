"""Pooling: every option against torch.nn.functional and autograd, ties, NaN, layouts, and what users get wrong."""

import re
from collections.abc import Callable
from typing import Final, TypeVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fundl import (
    AdaptiveAveragePool1d,
    AdaptiveAveragePool2d,
    AdaptiveAveragePool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AveragePool1d,
    AveragePool2d,
    AveragePool3d,
    GlobalAveragePool,
    GlobalMaxPool,
    Layer,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    Shape,
    apply,
    tree,
)
from fundl.shapes import Misfit
from tests.samples import normal

R = TypeVar("R")
quietly: Final = settings(deadline=None, derandomize=True, max_examples=25)
nan: Final = float("nan")


def run(layer: Layer[R], x: Tensor, grad: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The output, and the input's gradient for that of the output, or for ones."""
    output, residuals = layer.forward(x)
    return output, layer.backward(residuals, torch.ones_like(output) if grad is None else grad)[1]


def agrees(layer: Layer[R], function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """A layer's output, and its vjp, are those of a function that autograd differentiates."""
    variable = x.clone().requires_grad_()
    expected = function(variable)
    grad = normal(*expected.shape).to(x.dtype)
    output, grad_x = run(layer, x, grad)
    torch.testing.assert_close(output, expected.detach(), equal_nan=True)
    torch.testing.assert_close(grad_x, torch.autograd.grad(expected, variable, grad)[0])


# --- Every option ------------------------------------------------------------------------------------------------------

SIZE: Final = st.integers(1, 4)


@st.composite
def windows(draw: st.DrawFn, axes: int) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """The sides of an input, kernel sizes, strides, paddings and dilations."""
    kernel = [draw(SIZE) for _ in range(axes)]
    stride = [draw(SIZE) for _ in range(axes)]
    padding = [draw(st.integers(0, size // 2)) for size in kernel]
    dilation = [draw(st.integers(1, 2)) for _ in range(axes)]
    sides = [draw(st.integers(1, 7)) for _ in range(axes)]
    return sides, kernel, stride, padding, dilation


def fits(function: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    try:
        function(x)
    except RuntimeError:
        return False
    return True


def none_fits(layer: Layer[R], x: Tensor) -> None:
    """A layer finds no place for its window, and says so, as does its rule."""
    with pytest.raises(ValueError, match="finds no place for its window"):
        layer.forward(x)
    with pytest.raises(Misfit, match=r"expects a (length|height and width|depth, height and width) of at least"):
        layer.output_shape(Shape(*x.shape))


def check_all(layer: Layer[R], function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    if fits(function, x):
        agrees(layer, function, x)
        agrees(layer, function, x[0])
        agrees(layer, function, x[:0])
        assert layer.output_shape(Shape(*x.shape)).sizes == tuple(function(x).shape)
    else:
        none_fits(layer, x)


def sees(sides: list[int], padding: list[int], dilation: list[int]) -> bool:
    """Whether each window sees an element, so that torch, too, takes the maximum from within the input."""
    return all(not p or side >= d for side, p, d in zip(sides, padding, dilation, strict=True))


def test_the_maximum_over_one_axis_takes_any_window() -> None:
    def check(window: tuple[list[int], ...], ceil_mode: bool) -> None:
        assume(sees(window[0], *window[3:]))
        (side,), (k,), (s,), (p,), (d,) = window
        layer = MaxPool1d(k, stride=s, padding=p, dilation=d, ceil_mode=ceil_mode)
        check_all(layer, lambda x: F.max_pool1d(x, k, s, p, d, ceil_mode=ceil_mode), normal(2, 3, side))

    quietly(given(windows(1), st.booleans())(check))()


def test_the_maximum_over_two_axes_takes_any_window() -> None:
    def check(window: tuple[list[int], ...], ceil_mode: bool) -> None:
        sides, k, s, p, d = window
        assume(sees(sides, p, d))
        layer = MaxPool2d((k[0], k[1]), stride=(s[0], s[1]), padding=(p[0], p[1]), dilation=(d[0], d[1]), ceil_mode=ceil_mode)
        check_all(layer, lambda x: F.max_pool2d(x, k, s, p, d, ceil_mode=ceil_mode), normal(2, 3, *sides))

    quietly(given(windows(2), st.booleans())(check))()


def test_the_maximum_over_three_axes_takes_any_window() -> None:
    def check(window: tuple[list[int], ...], ceil_mode: bool) -> None:
        sides, k, s, p, d = window
        assume(sees(sides, p, d))
        layer = MaxPool3d(
            (k[0], k[1], k[2]),
            stride=(s[0], s[1], s[2]),
            padding=(p[0], p[1], p[2]),
            dilation=(d[0], d[1], d[2]),
            ceil_mode=ceil_mode,
        )
        check_all(layer, lambda x: F.max_pool3d(x, k, s, p, d, ceil_mode=ceil_mode), normal(2, 3, *sides))

    quietly(given(windows(3), st.booleans())(check))()


DIVISOR: Final = st.none() | st.integers(1, 5)


def test_the_mean_over_one_axis_takes_any_window() -> None:
    def check(window: tuple[list[int], ...], ceil_mode: bool, count: bool) -> None:
        (side,), (k,), (s,), (p,), _ = window
        layer = AveragePool1d(k, stride=s, padding=p, ceil_mode=ceil_mode, count_include_padding=count)
        check_all(layer, lambda x: F.avg_pool1d(x, k, s, p, ceil_mode, count), normal(2, 3, side))

    quietly(given(windows(1), st.booleans(), st.booleans())(check))()


def test_the_mean_over_two_axes_takes_any_window() -> None:
    def check(window: tuple[list[int], ...], ceil_mode: bool, count: bool, divisor: int | None) -> None:
        sides, k, s, p, _ = window
        layer = AveragePool2d(
            (k[0], k[1]),
            stride=(s[0], s[1]),
            padding=(p[0], p[1]),
            ceil_mode=ceil_mode,
            count_include_padding=count,
            divisor=divisor,
        )
        check_all(layer, lambda x: F.avg_pool2d(x, k, s, p, ceil_mode, count, divisor), normal(2, 3, *sides))

    quietly(given(windows(2), st.booleans(), st.booleans(), DIVISOR)(check))()


def test_the_mean_over_three_axes_takes_any_window() -> None:
    def check(window: tuple[list[int], ...], ceil_mode: bool, count: bool, divisor: int | None) -> None:
        sides, k, s, p, _ = window
        assume(all(side >= size for side, size in zip(sides, k, strict=True)))  # ATen takes no other
        layer = AveragePool3d(
            (k[0], k[1], k[2]),
            stride=(s[0], s[1], s[2]),
            padding=(p[0], p[1], p[2]),
            ceil_mode=ceil_mode,
            count_include_padding=count,
            divisor=divisor,
        )
        check_all(layer, lambda x: F.avg_pool3d(x, k, s, p, ceil_mode, count, divisor), normal(2, 3, *sides))

    quietly(given(windows(3), st.booleans(), st.booleans(), DIVISOR)(check))()


def test_one_divisor_holds_over_one_axis_too() -> None:
    assert apply(AveragePool1d(2, divisor=1), torch.tensor([[1.0, 4.0]])).tolist() == [[5.0]]


def test_the_stride_is_the_kernel_size_unless_given() -> None:
    layer = MaxPool2d((3, 2))
    assert layer.stride == (3, 2)
    assert repr(layer) == "MaxPool2d(kernel_size=(3, 2), stride=(3, 2))"
    assert AveragePool1d(4).stride == 4


def test_parts_of_any_number() -> None:
    def check(sides: list[int], m: list[int]) -> None:
        length, image, volume = normal(2, 3, sides[0]), normal(2, 3, *sides[:2]), normal(2, 3, *sides)
        check_all(AdaptiveAveragePool1d(m[0]), lambda x: F.adaptive_avg_pool1d(x, m[0]), length)
        check_all(AdaptiveAveragePool2d((m[0], m[1])), lambda x: F.adaptive_avg_pool2d(x, (m[0], m[1])), image)
        check_all(AdaptiveAveragePool3d((m[0], m[1], m[2])), lambda x: F.adaptive_avg_pool3d(x, (m[0], m[1], m[2])), volume)
        check_all(AdaptiveMaxPool1d(m[0]), lambda x: F.adaptive_max_pool1d(x, m[0]), length)
        check_all(AdaptiveMaxPool2d((m[0], m[1])), lambda x: F.adaptive_max_pool2d(x, m[:2]), image)
        check_all(AdaptiveMaxPool3d((m[0], m[1], m[2])), lambda x: F.adaptive_max_pool3d(x, m), volume)

    three = st.lists(st.integers(1, 6), min_size=3, max_size=3)
    quietly(given(three, three)(check))()


def test_the_whole_of_each_channel_over_any_axes() -> None:
    def check(channels: int, sides: list[int]) -> None:
        x, axes = normal(2, channels, *sides), tuple(range(2, len(sides) + 2))
        for rows in (x, x[:0]):
            agrees(GlobalAveragePool(), lambda x: x.mean(axes), rows)
            agrees(GlobalMaxPool(), lambda x: x.amax(axes), rows)
        assert GlobalMaxPool().output_shape(Shape(*x.shape)).sizes == (2, channels)

    quietly(given(SIZE, st.lists(SIZE, min_size=1, max_size=4))(check))()


# --- Ties and NaN ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [MaxPool2d(2), AdaptiveMaxPool2d(1), GlobalMaxPool()], ids=repr)
def test_of_equal_maxima_the_first_has_the_gradient(layer: Layer[object]) -> None:
    x = torch.tensor([[[[1.0, 2.0], [2.0, 2.0]]]])
    assert run(layer, x)[1].tolist() == [[[[0.0, 1.0], [0.0, 0.0]]]]


def test_an_element_that_is_the_maximum_of_several_windows_has_the_sum() -> None:
    assert run(MaxPool1d(3, stride=1), torch.tensor([[0.0, 1.0, 5.0, 1.0, 0.0]]))[1].tolist() == [[0.0, 0.0, 3.0, 0.0, 0.0]]


def test_nan_is_the_maximum_and_the_mean_of_what_it_is_in() -> None:
    x = torch.tensor([[[[nan, 1.0, 2.0, 3.0], [1.0, nan, 2.0, 3.0]]]])
    agrees(MaxPool2d(2), lambda x: F.max_pool2d(x, 2), x)
    agrees(AveragePool2d(2), lambda x: F.avg_pool2d(x, 2), x)
    agrees(AdaptiveMaxPool2d((1, 3)), lambda x: F.adaptive_max_pool2d(x, (1, 3)), x)
    agrees(GlobalMaxPool(), lambda x: F.adaptive_max_pool2d(x, 1).flatten(1), x)
    assert apply(GlobalAveragePool(), x).isnan().all()


def test_padding_is_never_the_maximum() -> None:
    x = torch.full((1, 1, 2, 2), -5.0)
    assert apply(MaxPool2d(2, padding=1), x).tolist() == [[[[-5.0, -5.0], [-5.0, -5.0]]]]


# --- Memory ------------------------------------------------------------------------------------------------------------

LAYERS: Final = (
    MaxPool2d(2),
    MaxPool2d(3, stride=2, padding=1),
    MaxPool3d(2),
    AveragePool2d(2),
    AveragePool2d(3, stride=1, padding=1),
    AveragePool3d(2),
    AdaptiveAveragePool2d(2),
    AdaptiveMaxPool2d(2),
    AdaptiveMaxPool3d(2),
    GlobalAveragePool(),
    GlobalMaxPool(),
)


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_channels_that_are_last_in_memory_stay_last(layer: Layer[object]) -> None:
    three = isinstance(layer, MaxPool3d | AveragePool3d | AdaptiveMaxPool3d)
    order = torch.channels_last_3d if three else torch.channels_last
    x = normal(2, 3, *(4, 4, 4)[: 2 + three])
    expected, expected_grad = run(layer, x)
    output, grad_x = run(layer, x.contiguous(memory_format=order))
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(grad_x, expected_grad)
    if output.ndim == x.ndim:
        last = not isinstance(
            layer, AveragePool3d | AdaptiveMaxPool3d
        )  # whose kernels give row-major order whatever the input's is
        assert output.is_contiguous(memory_format=order) == last
        assert grad_x.is_contiguous(memory_format=order) == last


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_the_input_is_not_kept(layer: Layer[object]) -> None:
    x = normal(2, 3, *(4, 4, 4)[: 2 + isinstance(layer, MaxPool3d | AveragePool3d | AdaptiveMaxPool3d)])
    _, residuals = layer.forward(x)
    addresses = {leaf.untyped_storage().data_ptr() for leaf in tree.leaves(residuals)}
    assert x.untyped_storage().data_ptr() not in addresses


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_mean_over_three_axes_in_half_precision_is_that_in_float32_rounded(dtype: torch.dtype) -> None:
    x, grad = normal(2, 3, 4, 4, 4).to(dtype), normal(2, 3, 2, 2, 2).to(dtype)
    expected, expected_grad = run(AveragePool3d(2), x.float(), grad.float())
    output, grad_x = run(AveragePool3d(2), x, grad)
    assert torch.equal(output, expected.to(dtype))
    assert torch.equal(grad_x, expected_grad.to(dtype))


# --- What users get wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaxPool2d(0), "MaxPool2d's kernel_size must be at least 1, not 0"),
        (lambda: MaxPool2d((2, 0)), "MaxPool2d's kernel_size must be at least 1, not (2, 0)"),
        (lambda: MaxPool2d(2, stride=0), "MaxPool2d's stride must be at least 1, not 0"),
        (lambda: MaxPool3d(2, dilation=0), "MaxPool3d's dilation must be at least 1, not 0"),
        (lambda: AdaptiveMaxPool2d((2, 0)), "AdaptiveMaxPool2d's output_size must be at least 1, not (2, 0)"),
        (lambda: AveragePool1d(2, padding=-1), "AveragePool1d's padding must be at least 0, not -1"),
        (
            lambda: AveragePool2d((4, 2), padding=(2, 2)),
            (
                "AveragePool2d's padding may be at most half of its kernel_size, so that a window always sees some of the"
                " input, but the padding is (2, 2) and the kernel_size (4, 2)"
            ),
        ),
        (
            lambda: AveragePool2d(2, divisor=0),
            "AveragePool2d's divisor must be at least 1, or None for the mean, not 0",
        ),
    ],
)
def test_settings_that_are_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: MaxPool2d((2, 2, 2)),  # type: ignore[arg-type]  # what is refused
            "MaxPool2d's kernel_size is an integer, or a tuple of 2 integers, not (2, 2, 2)",
        ),
        (
            lambda: MaxPool3d(2, stride=1.5),  # type: ignore[arg-type]  # what is refused
            "MaxPool3d's stride is an integer, or a tuple of 3 integers, not 1.5",
        ),
        (
            lambda: AdaptiveAveragePool3d((2, 2)),  # type: ignore[arg-type]  # what is refused
            "AdaptiveAveragePool3d's output_size is an integer, or a tuple of 3 integers, not (2, 2)",
        ),
        (
            lambda: AveragePool1d("2"),  # type: ignore[arg-type]  # what is refused
            "AveragePool1d's kernel_size is an integer, not '2'",
        ),
    ],
)
def test_settings_that_are_no_integers(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (
            MaxPool2d(2),
            (8,),
            "MaxPool2d takes an input of shape (B, C, H, W), or (C, H, W) without a batch, not (8,)",
        ),
        (MaxPool1d(2), (), "MaxPool1d takes an input of shape (B, C, L), or (C, L) without a batch, not ()"),
        (MaxPool1d(2), (5,), "MaxPool1d takes an input of shape (B, C, L), or (C, L) without a batch, not (5,)"),
        (
            AveragePool2d(2),
            (8, 8),
            "AveragePool2d takes an input of shape (B, C, H, W), or (C, H, W) without a batch, not (8, 8)",
        ),
        (
            AveragePool3d(2),
            (1, 1, 2),
            "AveragePool3d takes an input of shape (B, C, D, H, W), or (C, D, H, W) without a batch, not (1, 1, 2)",
        ),
        (
            MaxPool2d(2),
            (3, 0, 8, 8),
            "MaxPool2d needs at least one element along each axis but that of the batch, but the input's shape is (3, 0, 8, 8)",
        ),
        (
            MaxPool2d(5, stride=2),
            (3, 2, 8, 4),
            (
                "MaxPool2d(kernel_size=5, stride=2) finds no place for its window in an input of shape (3, 2, 8, 4): it expects"
                " a height and width of at least 5, but the input has one of 4"
            ),
        ),
        (
            AveragePool2d(5),
            (2, 4, 8),
            (
                "AveragePool2d(kernel_size=5, stride=5) finds no place for its window in an input of shape (2, 4, 8): it"
                " expects a height and width of at least 5, but the input has one of 4"
            ),
        ),
        (
            MaxPool1d(2, stride=1, padding=1, dilation=2),
            (3, 2, 1),
            (
                "MaxPool1d(kernel_size=2, stride=1, padding=1, dilation=2) may see nothing but padding in an input of shape"
                " (3, 2, 1): an axis of size 1 that is padded takes a dilation of at most 1, not 2"
            ),
        ),
        (
            AveragePool3d(2, padding=1),
            (3, 2, 4, 4, 1),
            (
                "AveragePool3d(kernel_size=2, stride=2, padding=1) takes no axis that is shorter than its window, not even with"
                " padding, but the input's shape is (3, 2, 4, 4, 1)"
            ),
        ),
        (
            AdaptiveAveragePool2d(2),
            (8, 8),
            "AdaptiveAveragePool2d takes an input of shape (B, C, H, W), or (C, H, W) without a batch, not (8, 8)",
        ),
        (
            AdaptiveAveragePool1d(1),
            (5,),
            "AdaptiveAveragePool1d takes an input of shape (B, C, L), or (C, L) without a batch, not (5,)",
        ),
        (
            AdaptiveMaxPool1d(2),
            (3, 2, 0),
            (
                "AdaptiveMaxPool1d needs at least one element along each axis but that of the batch, but the input's shape is"
                " (3, 2, 0)"
            ),
        ),
        (
            GlobalAveragePool(),
            (3, 2),
            "GlobalAveragePool takes an input of shape (B, C, ...) with at least one axis after the channels, not (3, 2)",
        ),
        (
            GlobalMaxPool(),
            (3, 2),
            "GlobalMaxPool takes an input of shape (B, C, ...) with at least one axis after the channels, not (3, 2)",
        ),
        (
            GlobalAveragePool(),
            (3, 2, 0),
            (
                "GlobalAveragePool needs at least one element along each axis but that of the batch, but the input's shape is"
                " (3, 2, 0)"
            ),
        ),
        (
            GlobalMaxPool(),
            (3, 0, 4),
            (
                "GlobalMaxPool needs at least one element along each axis but that of the batch, but the input's shape is"
                " (3, 0, 4)"
            ),
        ),
    ],
    ids=repr,
)
def test_inputs_of_the_wrong_shape(layer: Layer[object], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        apply(layer, torch.ones(shape))


# --- Volumes without a batch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5, 1, 1), (3, 5, 4, 4), (1, 5, 1, 1), (3, 1, 5, 1)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("layer", [MaxPool3d(1), AveragePool3d(1), AdaptiveMaxPool3d(1), AdaptiveAveragePool3d(2)], ids=str)
def test_one_volume_in_any_order_of_memory(layer: Layer[object], shape: tuple[int, ...], order: torch.memory_format) -> None:
    """Without a batch, the kernels refuse volumes whose channels are last in memory, or might be."""
    x = normal(*shape)
    output, grad_x = run(layer, x.contiguous(memory_format=order))
    expected, expected_grad_x = run(layer, x.unsqueeze(0))
    assert torch.equal(output, expected.squeeze(0))
    assert torch.equal(grad_x, expected_grad_x.squeeze(0))


def test_the_least_pool_of_one_volume() -> None:
    assert torch.equal(run(MaxPool3d(1), normal(3, 5, 1, 1))[1], torch.ones(3, 5, 1, 1, dtype=torch.float64))


# --- Docstrings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "formula", "shape"),
    [
        (MaxPool1d, "x[i s + u d]", "(B, C, L) to (B, C, L')"),
        (AveragePool2d, "x[i s + u, j s + v]", "(B, C, H, W) to (B, C, H', W')"),
        (MaxPool3d, "x[h s + t d, i s + u d, j s + v d]", "(B, C, D, H, W) to (B, C, D', H', W')"),
        (AdaptiveMaxPool2d, "part i of p", "(B, C, H, W) to (B, C, p, p)"),
    ],
)
def test_each_class_is_described_by_its_own_axes(layer: type[Layer[object]], formula: str, shape: str) -> None:
    text = layer.__doc__ or ""
    assert formula in text
    assert shape in text
    assert text.index("Its vjp:") < text.index("Args:") < text.index("Shape:") < text.index("Source:") < text.index(">>>")
