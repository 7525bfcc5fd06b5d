"""Feed-forward networks and gates: beside torch.nn's, in all their options, and what they refuse."""

import re
from collections.abc import Callable
from typing import assert_type

import attrs
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from typing_extensions import override

from fundl import (
    ELU,
    GELU,
    GLU,
    Dropout,
    Identity,
    Layer,
    Linear,
    ReLU,
    Shape,
    Sigmoid,
    SiLU,
    apply,
    check_vjp,
    compose,
    feed_forward,
    gated_feed_forward,
    initialize,
    key,
    output_shape,
    random,
    tree,
    vjp,
)

GATES: dict[str, tuple[Layer[Tensor], Callable[[Tensor], Tensor]]] = {
    "Sigmoid": (Sigmoid(), torch.sigmoid),
    "SiLU": (SiLU(), F.silu),
    "GELU": (GELU(approximate="tanh"), lambda g: F.gelu(g, approximate="tanh")),
    "ReLU": (ReLU(), torch.relu),
    "ELU": (ELU(), F.elu),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return random.normal(key(seed), shape, dtype=torch.float64)


# --- GLU ---------------------------------------------------------------------------------------------------------------


def test_equals_torch_nn() -> None:
    for axis in (-1, 1, -2):
        x = normal(3, 4, 6).requires_grad_()
        expected = torch.nn.GLU(axis)(x)
        grad = normal(*expected.shape, seed=1)
        (expected_grad,) = torch.autograd.grad(expected, x, grad)
        assert torch.equal(apply(GLU(axis=axis), x), expected)
        assert torch.equal(vjp(GLU(axis=axis), x, grad)[1], expected_grad)


def test_any_gate_in_any_shape() -> None:
    def check(name: str, shape: list[int], half: int, place: int) -> None:
        activation, function = GATES[name]
        axis = place % (2 * (len(shape) + 1)) - len(shape) - 1  # of either sign
        shape.insert(axis if axis >= 0 else len(shape) + 1 + axis, 2 * half)
        x = normal(*shape).requires_grad_()
        value, gate = x.chunk(2, axis)
        expected = value * function(gate)
        grad = normal(*expected.shape, seed=1)
        (expected_grad,) = torch.autograd.grad(expected, x, grad)
        layer = GLU(activation, axis=axis)
        torch.testing.assert_close(apply(layer, x), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(vjp(layer, x, grad)[1], expected_grad, rtol=1e-12, atol=1e-12)

    shapes = st.lists(st.integers(0, 3), max_size=3)
    strategy = given(st.sampled_from(sorted(GATES)), shapes, st.integers(1, 3), st.integers(0, 7))
    settings(max_examples=100, deadline=None, derandomize=True)(strategy(check))()


def test_a_gate_may_be_any_layer() -> None:
    x = normal(3, 4)
    _, grad_x = vjp(GLU(Identity()), x, torch.ones(3, 2, dtype=torch.float64))
    assert torch.equal(grad_x, torch.cat((x[:, 2:], x[:, :2]), 1))
    assert torch.equal(apply(GLU(Dropout(0.5)), x), x[:, :2] * x[:, 2:])


@attrs.frozen(eq=False)
class Slope(Layer[Tensor]):
    """An activation with a parameter."""

    weight: Tensor

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight * x, x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple["Slope", Tensor]:
        return Slope((residuals * grad).sum()), self.weight * grad


def test_a_gate_may_have_parameters() -> None:
    layer = GLU(Slope(torch.tensor(2.0)), axis=0)
    check_vjp(layer, normal(4, 3))
    grads, _ = vjp(layer, torch.tensor([3.0, 5.0]), torch.tensor([1.0]))
    assert grads.axis == 0
    assert torch.equal(tree.leaves(grads)[0], torch.tensor(15.0))


def test_its_output_has_half_the_size() -> None:
    for axis, expected in ((-1, (2, 4, 3)), (1, (2, 2, 6)), (-2, (2, 2, 6)), (0, (1, 4, 6)), (2, (2, 4, 3))):
        assert output_shape(GLU(axis=axis), Shape(2, 4, 6)).sizes == expected
        assert apply(GLU(axis=axis), torch.zeros(2, 4, 6)).shape == expected
    assert repr(output_shape(GLU())) == "Shape(..., ?)"


@pytest.mark.parametrize("activation", [Sigmoid(), SiLU()])
@pytest.mark.parametrize(("shape", "axis"), [((2, 5), -1), ((2, 3), 1), ((2, 1), -1), ((), -1), ((2,), 1), ((2,), -2)])
def test_what_has_no_halves(activation: Layer[Tensor], shape: tuple[int, ...], axis: int) -> None:
    message = f"GLU halves axis {axis}, whose size must be even, but the input's shape is {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=message):
        apply(GLU(activation, axis=axis), torch.zeros(shape))


def test_an_activation_that_is_none() -> None:
    message = r"activation must be a layer, (such as SiLU\(\), )?not"
    with pytest.raises(TypeError, match=message):
        GLU(SiLU)  # type: ignore[arg-type]  # that is the mistake
    with pytest.raises(TypeError, match=message):
        gated_feed_forward(3, 4, activation=torch.relu)  # type: ignore[arg-type]  # that is the mistake


# --- Networks ----------------------------------------------------------------------------------------------------------


def torch_linear(layer: Linear) -> torch.nn.Linear:
    out_features, in_features = layer.weight.shape
    theirs = torch.nn.Linear(in_features, out_features, bias=layer.bias is not None, dtype=layer.weight.dtype)
    theirs.load_state_dict({"weight": layer.weight} | ({} if layer.bias is None else {"bias": layer.bias}))
    return theirs


@pytest.mark.parametrize("bias", [True, False])
def test_feed_forward_equals_torch_nn(bias: bool) -> None:
    model = initialize(key(0), feed_forward(3, 5, bias=bias, dtype=torch.float64))
    theirs = torch.nn.Sequential(torch_linear(model[0]), torch.nn.GELU(), torch_linear(model[2]))
    x = normal(2, 4, 3)
    expected = theirs(x)
    expected.sum().backward()
    grads, _ = vjp(model, x, torch.ones_like(expected))
    torch.testing.assert_close(apply(model, x), expected)
    for ours, parameter in zip(tree.leaves(grads), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad)


@pytest.mark.parametrize("bias", [True, False])
def test_a_gated_network_has_three_matrices(bias: bool) -> None:
    model = initialize(key(0), gated_feed_forward(3, 5, bias=bias, activation=GELU(), dtype=torch.float64))
    both, narrow = torch_linear(model[0]), torch_linear(model[2])
    x = normal(2, 4, 3)
    torch.testing.assert_close(apply(model, x), narrow(both(x)[..., :5] * F.gelu(both(x)[..., 5:])))
    assert tree.count(model) == 3 * 3 * 5 + bias * (2 * 5 + 3)


def test_their_dtype() -> None:
    for model in (feed_forward(3, 4, dtype=torch.bfloat16), gated_feed_forward(3, 4, dtype=torch.bfloat16)):
        assert {leaf.dtype for leaf in tree.leaves(model)} == {torch.bfloat16}


def test_the_activation_of_their_type() -> None:
    assert_type(feed_forward(3, 4)[1], GELU)
    assert_type(feed_forward(3, 4, activation=SiLU())[1], SiLU)
    assert isinstance(feed_forward(3, 4, activation=SiLU())[1], SiLU)
    assert apply(compose(*feed_forward(3, 4, activation=ReLU())), torch.zeros(1, 3, device="meta")).shape == (1, 3)


def test_sizes_below_one() -> None:
    with pytest.raises(ValueError, match="in_features must be at least 1, not 0"):
        feed_forward(0, 4)
    with pytest.raises(ValueError, match="out_features must be at least 1, not 0"):
        feed_forward(3, 0)
    with pytest.raises(ValueError, match="hidden must be at least 1, not 0"):
        gated_feed_forward(3, 0)
