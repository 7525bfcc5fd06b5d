"""Normalisation of features and of groups of channels."""

import math
import re
from collections.abc import Callable
from typing import Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fundl import (
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    Model,
    RMSNorm,
    Shape,
    apply,
    assert_trees_close,
    backward_params,
    compose,
    forward,
    group_norm,
    initialize,
    instance_norm,
    key,
    layer_norm,
    linear,
    output_shape,
    rms_norm,
    tree,
    vjp,
)
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


# --- Groups of channels ------------------------------------------------------------------------------------------------

spaces: Final = st.lists(st.integers(1, 4), max_size=3)


def test_group_norm_equals_torchs() -> None:
    def check(batch: int, groups: tuple[int, int], space: list[int], bias: bool, eps: float) -> None:
        count, per_group = groups
        channels = count * per_group
        if batch * per_group * math.prod(space) == 1:
            return  # F.group_norm takes no such batch, though it takes two of them
        layer = with_values(group_norm(count, channels, bias=bias, eps=eps))
        module = nn.GroupNorm(count, channels, eps=eps, dtype=torch.float64)
        if not bias:  # as an option of the module has had it since torch 2.12
            module.register_parameter("bias", None)
        assert_equals_torch(layer, module, normal(batch, channels, *space), rtol=1e-6)

    sizes = st.integers(1, 3)
    eps = st.sampled_from([1e-5, 1e-3, 1.0])
    quietly(given(st.integers(0, 3), st.tuples(sizes, sizes), spaces, st.booleans(), eps)(check))()


def test_instance_norm_equals_torchs() -> None:
    def check(batch: int, channels: int, space: list[int], affine: bool, eps: float) -> None:
        if not space or math.prod(space) == 1:
            return
        module = [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d][len(space) - 1]
        layer = with_values(instance_norm(channels, eps=eps)) if affine else InstanceNorm(eps=eps)
        x = normal(batch, channels, *space)
        assert_equals_torch(layer, module(channels, eps=eps, affine=affine, dtype=torch.float64), x, rtol=1e-6)

    sizes = st.integers(1, 3)
    quietly(given(sizes, sizes, spaces, st.booleans(), st.sampled_from([1e-5, 1e-3, 1.0]))(check))()


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 4, 2, 3, 5)])
def test_images_with_their_channels_last_stay_so(shape: tuple[int, ...]) -> None:
    x = normal(*shape).movedim(1, -1).contiguous().movedim(-1, 1)
    layer = with_values(group_norm(2, 4))
    assert_equals_torch(layer, nn.GroupNorm(2, 4, dtype=torch.float64), x)
    assert apply(layer, x).stride() == x.stride()
    grad = normal(*shape)
    for grads, others in [(vjp(layer, x, grad), vjp(layer, x.contiguous(), grad))]:
        assert_trees_close(grads, others, rtol=1e-9, atol=1e-9)


def test_one_group_is_a_layer_norm_and_a_group_a_channel_an_instance_norm() -> None:
    x = normal(3, 4, 5)
    torch.testing.assert_close(apply(GroupNorm(1), x), apply(LayerNorm((4, 5)), x))
    assert torch.equal(apply(GroupNorm(4), x), apply(InstanceNorm(), x))


# --- What is refused ---------------------------------------------------------------------------------------------------


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
        (lambda: group_norm(0, 4), "groups must be at least 1, not 0"),
        (lambda: group_norm(2, 0), "channels must be at least 1, not 0"),
        (lambda: group_norm(2, 5), "the groups divide the channels, but 5 is not a multiple of 2"),
        (lambda: instance_norm(0), "channels must be at least 1, not 0"),
        (lambda: InstanceNorm(eps=-1.0), "eps is added to the variance, and must be a finite number of 0 or more, not -1.0"),
        (
            lambda: apply(GroupNorm(2), torch.ones(5, 3)),
            "GroupNorm(2) expects a multiple of 2 channels, but the input's shape is (5, 3): its axis 1, of the channels,",
        ),
        (
            lambda: apply(with_values(group_norm(2, 4)), normal(5, 3, 2)),
            "GroupNorm expects 4 channels, but the input's shape is (5, 3, 2): its axis 1 must be of size 4",
        ),
        (
            lambda: apply(GroupNorm(2), torch.ones(4)),
            "GroupNorm expects an input of shape (B, channels, ...), but the input's shape is (4,)",
        ),
        (
            lambda: apply(with_values(instance_norm(4)), normal(5, 3, 2)),
            "InstanceNorm expects 4 channels, but the input's shape is (5, 3, 2): its axis 1 must be of size 4",
        ),
        (
            lambda: apply(InstanceNorm(), torch.ones(5, 3)),
            "InstanceNorm expects channels of more than one number, but the input's shape is (5, 3): a number is its own mean",
        ),
        (
            lambda: output_shape(GroupNorm(2), Shape(5, 3, 2)),
            "GroupNorm expects a multiple of 2 channels but the input has 3 channels",
        ),
        (
            lambda: output_shape(group_norm(2, 4), Shape(5, 3, 2)),
            "GroupNorm expects 4 channels but the input has 3 channels",
        ),
        (
            lambda: output_shape(instance_norm(4), Shape(5, 3, 2)),
            "InstanceNorm expects 4 channels but the input has 3 channels",
        ),
        (lambda: output_shape(InstanceNorm(), Shape(5, 3)), "InstanceNorm expects at least 3 axes but the input has 2 axes"),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        make()


@pytest.mark.parametrize(
    "layer", [layer_norm(3), rms_norm(3), group_norm(1, 3), instance_norm(3)], ids=lambda layer: type(layer).__name__
)
def test_dtypes_must_agree(layer: LayerNorm | RMSNorm | GroupNorm | InstanceNorm) -> None:
    text = (
        "'s parameters are torch.float64, but the input is torch.float32: convert one of them, the input with"
        " x.to(torch.float64) or the model with tree.cast_to(model, torch.float32)"
    )
    with pytest.raises(TypeError, match=re.escape(type(layer).__name__ + text)):
        apply(with_values(layer), torch.ones(5, 3, 3))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
def test_groups_whose_mean_is_far_from_zero(order: torch.memory_format) -> None:
    """With the channels last, the kernel takes a variance to be the difference of large squares."""
    layer, exact = GroupNorm(4, normal(8), normal(8).sin()), normal(2, 8, 16, 16) + 1000
    x, grad = exact.float().contiguous(memory_format=order), normal(2, 8, 16, 16).sin().float().contiguous(memory_format=order)
    model = tree.cast_to(layer, torch.float32)
    output, (grads, grad_x) = apply(model, x), vjp(model, x, grad)
    expected, (exact_grads, exact_grad_x) = apply(layer, x.double()), vjp(layer, x.double(), grad.double())
    assert float((output - expected).abs().max()) < 3e-4
    assert float((grad_x - exact_grad_x).abs().max()) < 3e-4
    assert grads.weight is not None
    assert exact_grads.weight is not None
    assert float((grads.weight - exact_grads.weight).abs().max()) < 1e-2
    assert output.is_contiguous(memory_format=order)


@pytest.mark.parametrize("has_weight", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_are_found_for_any_parameters_in_any_order(
    has_weight: bool, has_bias: bool, order: torch.memory_format
) -> None:
    x, grad = normal(3, 8, 4, 5), normal(3, 8, 4, 5)
    weight, bias = normal(8) if has_weight else None, normal(8) if has_bias else None
    both = vjp(GroupNorm(2, normal(8) if weight is None else weight, normal(8) if bias is None else bias), x, grad)[0]
    layer = GroupNorm(2, weight, bias)
    grads = backward_params(layer, forward(layer, x.contiguous(memory_format=order))[1], grad)
    expected = GroupNorm(2, both.weight if has_weight else None, both.bias if has_bias else None)
    assert_trees_close(grads, expected, rtol=1e-9, atol=1e-9)
