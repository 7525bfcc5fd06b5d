"""Normalisation of features and of groups of channels."""

import re
from collections.abc import Callable
from typing import Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fundl import LayerNorm, Model, RMSNorm, apply, compose, initialize, key, layer_norm, linear, rms_norm, tree, vjp
from tests.samples import normal, with_values

quietly: Final = settings(deadline=None, derandomize=True, max_examples=40)


def of_torch(module: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What torch.nn makes of an input; and the gradients of its parameters, then of the input."""
    variable = x.detach().requires_grad_()
    y = module(variable)
    assert isinstance(y, Tensor)
    return y.detach(), [*torch.autograd.grad(y, [*module.parameters(), variable], grad)]


def assert_equals_torch(layer: Model, module: nn.Module, x: Tensor, *, rtol: float = 1e-9) -> None:
    """A layer does what a module of torch.nn does, forward and backward, once it is given the same parameters."""
    for parameter, mine in zip(module.parameters(), tree.trainable_leaves(layer), strict=True):
        parameter.data.copy_(mine)
    y = apply(layer, x)
    grad = torch.sin(torch.arange(y.numel(), dtype=x.dtype)).reshape(y.shape)
    expected, gradients = of_torch(module, x, grad)
    grads, grad_x = vjp(layer, x, grad)
    torch.testing.assert_close(y, expected, rtol=rtol, atol=rtol)
    for mine, theirs in zip([*tree.trainable_leaves(grads), grad_x], gradients, strict=True):
        torch.testing.assert_close(
            mine, theirs, rtol=rtol, atol=rtol * (1 + float(theirs.abs().max()) if theirs.numel() else 1)
        )


# --- Features ----------------------------------------------------------------------------------------------------------

shapes: Final = st.lists(st.integers(1, 5), min_size=1, max_size=3)


def test_layer_norm_equals_torchs() -> None:
    def check(lead: list[int], sizes: list[int], bias: bool, eps: float) -> None:
        layer = with_values(layer_norm(tuple(sizes), bias=bias, eps=eps))
        module = nn.LayerNorm(sizes, eps=eps, bias=bias, dtype=torch.float64)
        assert_equals_torch(layer, module, normal(*lead, *sizes), rtol=1e-6)  # of one feature, rstd is as large as 1e3

    leads = st.lists(st.integers(0, 3), max_size=2)
    quietly(given(leads, shapes, st.booleans(), st.sampled_from([1e-5, 1e-3, 1.0]))(check))()


def test_rms_norm_equals_torchs() -> None:
    def check(lead: list[int], sizes: list[int], eps: float) -> None:
        layer = with_values(rms_norm(tuple(sizes), eps=eps))
        assert_equals_torch(layer, nn.RMSNorm(sizes, eps=eps, dtype=torch.float64), normal(*lead, *sizes), rtol=1e-6)

    leads = st.lists(st.integers(0, 3), max_size=2)
    quietly(given(leads, shapes, st.sampled_from([1e-6, 1e-3, 1.0]))(check))()


def test_without_parameters_they_equal_torchs() -> None:
    x = normal(5, 2, 3)
    assert_equals_torch(LayerNorm(3), nn.LayerNorm(3, elementwise_affine=False), x)
    assert_equals_torch(RMSNorm(3), nn.RMSNorm(3, eps=1e-6, elementwise_affine=False), x)


def test_a_number_of_features_is_a_tuple_of_one() -> None:
    x = normal(5, 3)
    assert torch.equal(apply(LayerNorm(3), x), apply(LayerNorm((3,)), x))
    assert torch.equal(apply(RMSNorm(3), x), apply(RMSNorm((3,)), x))


def test_they_begin_with_ones_and_zeros() -> None:
    layer = initialize(key(0), layer_norm(3))
    assert layer.weight is not None
    assert layer.bias is not None
    assert layer.weight.tolist() == [1, 1, 1]
    assert layer.bias.tolist() == [0, 0, 0]
    weight = initialize(key(0), rms_norm((2, 1))).weight
    assert weight is not None
    assert weight.tolist() == [[1], [1]]


def test_constant_features_are_no_division_by_zero() -> None:
    x = torch.full((2, 3), 7.0)
    assert apply(LayerNorm(3), x).abs().max() == 0
    assert apply(RMSNorm(3), torch.zeros(2, 3)).abs().max() == 0


def test_rms_norm_in_half_precision_is_as_exact_as_its_output() -> None:
    x = normal(4, 512).to(torch.bfloat16)
    y = apply(RMSNorm(512), x)
    torch.testing.assert_close(y, apply(RMSNorm(512), x.double()).to(torch.bfloat16), rtol=2**-8, atol=0)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: layer_norm(0), "features must be at least 1, not 0"),
        (lambda: layer_norm(()), "features must be at least 1, not ()"),
        (lambda: LayerNorm((3, 0)), "features must be at least 1, not (3, 0)"),
        (lambda: rms_norm(-1), "features must be at least 1, not -1"),
        (lambda: RMSNorm(0), "features must be at least 1, not 0"),
        (lambda: layer_norm(3, eps=-1.0), "eps is added to the variance, and must be a finite number of 0 or more, not -1.0"),
        (
            lambda: rms_norm(3, eps=float("inf")),
            "eps is added to the variance, and must be a finite number of 0 or more, not inf",
        ),
        (
            lambda: apply(LayerNorm(3), torch.ones(5, 4)),
            "LayerNorm expects 3 features, but the input's shape is (5, 4): its last axis must be of size 3",
        ),
        (
            lambda: apply(with_values(layer_norm((2, 3))), normal(3)),
            "LayerNorm expects features of shape (2, 3), but the input's shape is (3,): its last axes must be of sizes (2, 3)",
        ),
        (
            lambda: apply(with_values(rms_norm(1)), normal(5, 4)),
            "RMSNorm expects 1 feature, but the input's shape is (5, 4): its last axis must be of size 1",
        ),
        (
            lambda: apply(RMSNorm((2, 3)), torch.tensor(1.0)),
            "RMSNorm expects features of shape (2, 3), but the input's shape is (): its last axes must be of sizes (2, 3)",
        ),
        (
            lambda: compose(linear(2, 25), rms_norm((3, 24))),
            "layer 2 (RMSNorm) expects 24 features but layer 1 (Linear) gives 25 features",
        ),
        (
            lambda: compose(layer_norm((4, 25)), rms_norm((3, 25))),
            "layer 2 (RMSNorm) expects size 3 along axis -2 but layer 1 (LayerNorm) gives size 4 along axis -2",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        make()


@pytest.mark.parametrize("layer", [layer_norm(3), rms_norm(3)], ids=lambda layer: type(layer).__name__)
def test_dtypes_must_agree(layer: LayerNorm | RMSNorm) -> None:
    text = (
        "'s parameters are torch.float64, but the input is torch.float32: convert one of them, the input with"
        " x.to(torch.float64) or the model with tree.cast_to(model, torch.float32)"
    )
    with pytest.raises(TypeError, match=re.escape(type(layer).__name__ + text)):
        apply(with_values(layer), torch.ones(5, 3))
