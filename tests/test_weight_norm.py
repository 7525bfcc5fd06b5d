"""Layers whose weight is normalised."""

import copy
import re
from collections.abc import Callable

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from typing_extensions import override

from fundl import (
    Dependent,
    Flatten,
    Layer,
    Linear,
    ReLU,
    Shape,
    WeightNorm,
    WeightStandardization,
    apply,
    batch_norm,
    compose,
    constant,
    forward,
    frozen,
    initialize,
    key,
    linear,
    output_shape,
    sgd,
    tree,
    vjp,
    weight_norm,
    weight_standardization,
)
from tests.samples import normal, with_values


@attrs.frozen(eq=False)
class Kernels(Layer[Tensor]):
    """A convolution without its gradient: a layer whose weight has four axes."""

    weight: Tensor

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.conv2d(x, self.weight), x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple["Kernels", Tensor]:
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward.default(
            grad, residuals, self.weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]
        )
        return Kernels(grad_weight), grad_x


# --- Weight normalisation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
def test_weight_norm_equals_torchs(axis: int) -> None:
    layer = weight_norm(with_values(linear(3, 4)), axis=axis)
    layer = attrs.evolve(layer, gain=layer.gain * 1.5 - 0.2)
    module = nn.Linear(3, 4, dtype=torch.float64)
    parametrizations.weight_norm(module, dim=axis)
    bias, gain, v = module.parameters()
    for theirs, mine in ((bias, layer.layer.bias), (gain, layer.gain), (v, layer.layer.weight)):
        assert mine is not None
        theirs.data.copy_(mine)
    x, grad = normal(5, 3).requires_grad_(), normal(5, 4)
    y = module(x)
    torch.testing.assert_close(apply(layer, x), y.detach())
    grad_bias, grad_gain, grad_v, grad_x = torch.autograd.grad(y, [bias, gain, v, x], grad)
    grads, mine_x = vjp(layer, x, grad)
    torch.testing.assert_close(
        (grads.layer.bias, grads.gain, grads.layer.weight, mine_x), (grad_bias, grad_gain, grad_v, grad_x)
    )


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_weight_norm_of_kernels_equals_autograd(axis: int) -> None:
    layer = weight_norm(Kernels(normal(4, 2, 3, 3)), axis=axis)
    layer = attrs.evolve(layer, gain=layer.gain + 0.5)
    x, grad = normal(2, 2, 5, 5), normal(2, 4, 3, 3)
    v, gain = layer.layer.weight.clone().requires_grad_(), layer.gain.clone().requires_grad_()
    weight = gain * v / v.square().sum([other for other in range(4) if other != axis], keepdim=True).sqrt()
    grad_v, grad_gain = torch.autograd.grad(torch.conv2d(x, weight), [v, gain], grad)
    grads, _ = vjp(layer, x, grad)
    torch.testing.assert_close((grads.layer.weight, grads.gain), (grad_v, grad_gain))


def test_weight_norm_begins_as_the_layer_itself() -> None:
    layer, x = with_values(linear(3, 4)), normal(5, 3)
    torch.testing.assert_close(apply(weight_norm(layer), x), apply(layer, x))
    model = compose(weight_norm(linear(3, 4)), ReLU(), weight_norm(linear(4, 2), axis=1))
    first, _, last = initialize(key(0), model)
    for part in (first, last):
        torch.testing.assert_close(
            apply(part, normal(5, part.layer.weight.shape[1]).float()),
            apply(part.layer, normal(5, part.layer.weight.shape[1]).float()),
        )


def test_initialising_again_is_the_reset() -> None:
    model = compose(linear(2, 3), weight_norm(linear(3, 4)))
    once = initialize(key(0), model)
    trained = tree.map(lambda leaf: leaf + 1, once)
    assert tree.equal(initialize(key(0), trained), once)
    assert not tree.equal(initialize(key(1), trained), once)
    meta = initialize(key(0), model, device="meta")
    assert all(leaf.is_meta for leaf in tree.leaves(meta))
    halved = initialize(key(0), weight_norm(linear(3, 4), gain_init=constant(0.5)))
    torch.testing.assert_close(halved.gain, halved.layer.weight.norm(dim=1, keepdim=True) / 2)
    assert initialize(key(0), model, dtype=torch.float64)[1].gain.dtype == torch.float64


def test_initialising_leaves_a_frozen_gain_alone() -> None:
    model = frozen(weight_norm(linear(3, 4)))
    first = initialize(key(0), model)
    (layer,) = first.layers
    torch.testing.assert_close(layer.gain, layer.layer.weight.norm(dim=1, keepdim=True))
    assert tree.equal(initialize(key(1), first), first)


def test_the_scale_of_the_direction_does_not_matter() -> None:
    layer, x = weight_norm(with_values(linear(3, 4))), normal(5, 3)
    longer = attrs.evolve(layer, layer=attrs.evolve(layer.layer, weight=layer.layer.weight * 7))
    torch.testing.assert_close(apply(longer, x), apply(layer, x))
    grads, _ = vjp(layer, x, normal(5, 4))
    torch.testing.assert_close((grads.layer.weight * layer.layer.weight).sum(1), torch.zeros(4, dtype=torch.float64))


def test_layers_of_normalised_weight_are_trained() -> None:
    model = with_values(compose(weight_norm(linear(3, 4)), weight_standardization(linear(4, 2))))
    optimizer = sgd(0.001)
    x = normal(5, 3)
    y, _ = forward(model, x)
    grads, _ = vjp(model, x, y)
    after, _ = optimizer.step(grads, optimizer.init(model), model)
    assert float(apply(after, x).square().sum()) < float(y.square().sum())
    assert [type(part) for part in after] == [WeightNorm, WeightStandardization]


def test_users_layers_may_depend_on_what_is_drawn() -> None:
    @attrs.frozen(eq=False)
    class Centred(Layer[Tensor], Dependent):
        weight: Tensor
        weight_init = constant(3.0)

        @override
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * self.weight, x

        @override
        def backward(self, residuals: Tensor, grad: Tensor) -> tuple["Centred", Tensor]:
            return Centred((grad * residuals).sum(0)), grad * self.weight

        @override
        def with_dependent(self) -> "Centred":
            return Centred(self.weight - self.weight.mean())

    assert initialize(key(0), Centred(torch.empty(2, device="meta"))).weight.tolist() == [0, 0]


# --- Weight standardisation --------------------------------------------------------------------------------------------


def test_standardised_weights_have_mean_0_and_variance_1() -> None:
    layer = weight_standardization(with_values(linear(50, 4, bias=False)))
    weight = apply(layer, torch.eye(50, dtype=torch.float64)).t()
    torch.testing.assert_close(weight.mean(1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(weight.var(1, correction=0), torch.ones(4, dtype=torch.float64), rtol=1e-4, atol=0)


def test_standardised_kernels_equal_autograd() -> None:
    layer = weight_standardization(Kernels(normal(4, 2, 3, 3)), eps=1e-3)
    x, grad = normal(2, 2, 5, 5), normal(2, 4, 3, 3)
    v = layer.layer.weight.clone().requires_grad_()
    centred = v - v.mean((1, 2, 3), keepdim=True)
    weight = centred / (centred.square().mean((1, 2, 3), keepdim=True) + 1e-3).sqrt()
    y = torch.conv2d(x, weight)
    torch.testing.assert_close(apply(layer, x), y.detach())
    torch.testing.assert_close(vjp(layer, x, grad)[0].layer.weight, torch.autograd.grad(y, v, grad)[0])


# --- What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [weight_norm, weight_standardization])
def test_what_has_no_weight_is_refused(make: Callable[[Layer[Tensor]], object]) -> None:
    for layer, described in ((ReLU(), "ReLU()"), (batch_norm(3), repr(batch_norm(3))), (Flatten(), "Flatten()")):
        text = f"the layer inside must have a weight of two or more axes, but here is {described}"
        with pytest.raises(TypeError, match=re.escape(text)):
            make(copy.copy(layer))  # type: ignore[arg-type]  # layers of any residuals


def test_tuples_and_axes_that_are_not_there_are_refused() -> None:
    with pytest.raises(
        ValueError, match=re.escape("weight_norm(axis=2) needs a weight that has this axis, but the weight is float32[4, 3]")
    ):
        weight_norm(linear(3, 4), axis=2)
    with pytest.raises(ValueError, match="eps is added to the variance"):
        weight_standardization(linear(3, 4), eps=-1.0)
    layers = (linear(3, 4), ReLU())
    with pytest.raises(TypeError, match="weight_norm is around one layer, not a tuple of layers"):
        weight_norm(layers)  # type: ignore[type-var]  # as a beginner might write


def test_shapes_are_those_of_the_layer() -> None:
    for layer in (weight_norm(linear(3, 4)), weight_standardization(linear(3, 4))):
        assert output_shape(layer, Shape(5, 3)).sizes == (5, 4)
        with pytest.raises(ValueError, match=re.escape("expects 3 features but the input has 2 features")):
            output_shape(layer, Shape(5, 2))
    model = compose(weight_norm(Linear(normal(4, 3), None)), ReLU())
    with pytest.raises(ValueError, match="Linear expects 3 features") as caught:
        apply(model, normal(5, 2))
    assert "in model[0].layer: Linear(" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("shape", [(5,), (1, 1), (4, 1), (6, 1), (5, 3), (1, 5), ()])
def test_a_gain_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    """The kernel would read what is behind its memory."""
    layer = weight_norm(with_values(linear(3, 5)))
    wrong = attrs.evolve(layer, gain=normal(*shape))
    _, residuals = forward(layer, normal(2, 3))
    message = re.escape(f"of shape (5, 1) for a weight of shape (5, 3) and axis=0, but its shape is {shape}")
    with pytest.raises(ValueError, match=message):
        apply(wrong, normal(2, 3))
    with pytest.raises(ValueError, match=message):
        wrong.backward(residuals, normal(2, 5))
    with pytest.raises(ValueError, match=r"of shape \(1, 3\) for a weight of shape \(5, 3\) and axis=1, but its shape is"):
        apply(attrs.evolve(weight_norm(with_values(linear(3, 5)), axis=1), gain=normal(5, 1)), normal(2, 3))
