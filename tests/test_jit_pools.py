"""Pooling compiled is pooling: every layer, option and layout, windows that see nothing but -inf, ties and NaN."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import pytest
import torch
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
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    Model,
    jit,
    tree,
)
from fundl._common.layouts import LAYOUTS
from fundl._common.running import run_backward, run_forward
from tests.samples import normal


class Case(NamedTuple):
    """A layer, an input, and a gradient with respect to the output."""

    layer: Model
    x: Tensor
    grad: Tensor


def case(layer: Model, x: Tensor) -> Case:
    output, _ = run_forward(layer, x)
    assert isinstance(output, Tensor)
    return Case(layer, x, normal(*output.shape).sin().to(x.dtype))


def run(some: Case) -> tuple[object, object]:
    output, residuals = run_forward(some.layer, some.x)
    return output, run_backward(some.layer, residuals, some.grad)[1]


def run_all(cases: Mapping[str, Case]) -> dict[str, tuple[object, object]]:
    return {name: run(some) for name, some in cases.items()}


def assert_compiled_is_eager(cases: Mapping[str, Case]) -> None:
    compiled = jit(run_all)
    actual, expected = compiled(cases), run_all(cases)
    assert all(trace.compiled for trace in compiled.traces)
    for name in cases:
        for one, other in zip(tree.leaves(actual[name]), tree.leaves(expected[name]), strict=True):

            def said(text: str, name: str = name) -> str:
                return f"{name}: {text}"

            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6, equal_nan=True, msg=said)


def test_what_inductor_got_wrong() -> None:
    """The last window of a mean; maxima of a transposed image; a padded window of -inf, whose first place is meant."""
    nothing = torch.full((1, 1, 7, 7), -math.inf)
    nothing[..., 5:, 5:] = 1.0
    cases = {
        "mean": case(AveragePool1d(3, stride=2, ceil_mode=True), torch.arange(6.0).reshape(1, 1, 6))._replace(
            grad=torch.ones(1, 1, 3)
        ),
        "transposed": case(AdaptiveMaxPool2d(2), normal(2, 4, 12, 12).float().transpose(2, 3)),
        "nothing": case(MaxPool2d(3, stride=2, padding=1), nothing),
    }
    assert_compiled_is_eager(cases)
    (_, grad_x) = jit(run_all)(cases)["mean"]
    assert isinstance(grad_x, Tensor)
    assert grad_x[0, 0, -1] == 0.5


# --- All of them --------------------------------------------------------------------------------------------------------

OPTIONS: Final = [(2, 2, 0, False), (3, 2, 1, False), (3, 2, 0, True), (3, 2, 1, True), (2, 3, 1, True)]
"""Sizes of kernels, strides, padding, and whether there is a last place for what is left over."""
SIZES: Final[Mapping[int, Sequence[tuple[int, ...]]]] = {1: [(12,), (7,)], 2: [(6, 8), (7, 5)], 3: [(4, 6, 4), (5, 4, 3)]}


def layers() -> Iterator[tuple[int, Model]]:
    """Every layer, with every option, and the number of axes that it takes."""
    for axes, greatest, mean, adaptive_greatest, adaptive_mean in (
        (1, MaxPool1d, AveragePool1d, AdaptiveMaxPool1d, AdaptiveAveragePool1d),
        (2, MaxPool2d, AveragePool2d, AdaptiveMaxPool2d, AdaptiveAveragePool2d),
        (3, MaxPool3d, AveragePool3d, AdaptiveMaxPool3d, AdaptiveAveragePool3d),
    ):
        for size, stride, padding, ceil_mode in OPTIONS:
            yield axes, greatest(size, stride=stride, padding=padding, ceil_mode=ceil_mode)
            for counted in (True, False):
                yield (
                    axes,
                    mean(size, stride=stride, padding=padding, ceil_mode=ceil_mode, count_include_padding=counted),
                )
        yield axes, mean(3, stride=2, padding=1, ceil_mode=True, divisor=2)
        yield axes, greatest(2, stride=1, padding=1, dilation=2)
        for parts in (1, 2, 3):
            yield axes, adaptive_greatest(parts)
            yield axes, adaptive_mean(parts)
        yield axes, GlobalMaxPool()
        yield axes, GlobalAveragePool()


def beginning_with(number: float) -> Callable[[Tensor], Tensor]:
    def put(x: Tensor) -> Tensor:
        return torch.cat((torch.full_like(x[..., :4], number), x[..., 4:]), -1)

    return put


INPUTS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "contiguous": lambda x: x,
    **LAYOUTS,
    "transposed within": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "minus infinity": beginning_with(-math.inf),
    "NaN": beginning_with(math.nan),
    "ties": torch.round,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("axes", SIZES)
def test_every_pool(axes: int, kind: str) -> None:
    assert_compiled_is_eager(
        {
            f"{layer} of {sizes} {kind}": case(layer, INPUTS[kind](normal(2, 4, *sizes).float()))
            for its_axes, layer in layers()
            if its_axes == axes
            for sizes in SIZES[axes]
        }
    )
