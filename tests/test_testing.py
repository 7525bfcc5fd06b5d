"""The checks pass what is right, catch what is wrong, and say what and where."""

import math
import re
from collections.abc import Callable
from typing import Final, Self, TypeAlias

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import Layer, Model, ReLU, Softmax, Tanh, assert_trees_close, check_vjp, compose, key, linear, tree, vjp
from fundl.tree import BUFFER
from tests.samples import normal, with_values

# --- A layer that is right or wrong as told ------------------------------------------------------------------------------

Formula: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From weight, bias and x to y."""

Rule: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""From weight, x and grad to the gradients of weight, bias and x."""


def scaled(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return weight * x + bias


def right(weight: Tensor, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (grad * x).sum(0), grad.sum(0), weight * grad


@attrs.frozen(eq=False)
class Scale(Layer[Tensor]):
    """y = weight x + bias, element by element."""

    weight: Tensor
    bias: Tensor
    rule: Rule
    formula: Formula

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.formula(self.weight, self.bias, x), x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        grad_weight, grad_bias, grad_x = self.rule(self.weight, residuals, grad)
        return attrs.evolve(self, weight=grad_weight, bias=grad_bias), grad_x


WEIGHT, BIAS = normal(2, 3)
X: Final = normal(5, 3)


def scale(rule: Rule = right, formula: Formula = scaled) -> Scale:
    return Scale(WEIGHT, BIAS, rule, formula)


def faults(model: Model, x: object) -> list[str]:
    """What the check says, without its first line."""
    with pytest.raises(AssertionError) as caught:
        check_vjp(model, x)
    return str(caught.value).split("\n  ")[1:]


def assert_faults(model: Model, x: object, expected: list[str]) -> None:
    """The check finds these faults, and no others."""
    found = faults(model, x)
    assert len(found) == len(expected), found
    for fault, pattern in zip(found, expected, strict=True):
        assert re.search(pattern, fault), fault


# --- What is wrong is caught -------------------------------------------------------------------------------------------

WRONG_RULES: Final[dict[str, tuple[Rule, list[str]]]] = {
    "a factor of 2": (
        lambda w, x, g: (2 * (g * x).sum(0), g.sum(0), w * g),
        [r"^model\.weight: backward gives a derivative of .*, central differences give .*: relative error 1$"],
    ),
    "one part in a hundred thousand": (
        lambda w, x, g: ((g * x).sum(0), g.sum(0), w * g * (1 + 1e-5)),
        [r"^x: .* relative error 1e-05$"],
    ),
    "no sum over the batch": (
        lambda w, x, g: ((g * x).sum(0), g, w * g),
        [r"^the gradient of model\.bias is float64\[5, 3\], but model\.bias is float64\[3\]$"],
    ),
    "one example for the batch": (lambda w, x, g: ((g * x).sum(0), g[0], w * g), [r"^model\.bias: "]),
    "a sum over the wrong axis": (
        lambda w, x, g: ((g * x).sum(0), g.sum(1), w * g),
        [r"^the gradient of model\.bias is float64\[5\]"],
    ),
    "a mean for a sum": (lambda w, x, g: ((g * x).mean(0), g.mean(0), w * g), [r"^model\.weight: ", r"^model\.bias: "]),
    "weight and bias swapped": (
        lambda w, x, g: (g.sum(0), (g * x).sum(0), w * g),
        [r"^model\.weight: ", r"^model\.bias: "],
    ),
    "the wrong sign": (lambda w, x, g: ((g * x).sum(0), g.sum(0), -w * g), [r"^x: .* relative error 2$"]),
    "right for a uniform cotangent alone": (
        lambda w, x, g: ((g * x).sum(0), g.sum(0), w * g.mean().expand_as(g)),
        [r"^x: backward gives"],
    ),
    "zeros": (lambda w, x, g: ((g * x).sum(0), g.sum(0), 0 * w * g), [r"^x: .* of -?0, .* relative error 1$"]),
    "not a number": (lambda w, x, g: ((g * x).sum(0), g.sum(0), w * g * math.nan), [r"^x: .* nan"]),
    "all": (
        lambda w, x, g: (3 * (g * x).sum(0), 3 * g.sum(0), 3 * w * g),
        [r"^model\.weight: .* 2$", r"^model\.bias: .* 2$", r"^x: .* 2$"],
    ),
    "the dtype": (
        lambda w, x, g: ((g * x).sum(0).float(), g.sum(0), (w * g).bfloat16()),
        [
            r"^the gradient of model\.weight is float32\[3\], but model\.weight is float64\[3\]$",
            r"^the gradient of x is bfloat16\[5, 3\], but x is float64\[5, 3\]$",
        ],
    ),
    "grad mutated": (lambda w, x, g: ((g * x).sum(0), g.sum(0), g.mul_(w)), [r"^backward changes grad$"]),
    "the residuals mutated": (
        lambda w, x, g: (x.mul_(g).sum(0), g.sum(0), w * g),
        [r"^backward changes x$", r"^backward changes residuals$"],
    ),
    "the parameters mutated": (
        lambda w, x, g: ((g * x).sum(0), g.sum(0), w.mul_(2) * g / 2),
        [r"^backward changes model\.weight$"],
    ),
    "random numbers": (
        lambda w, x, g: ((g * x).sum(0), g.sum(0) + 1e-12 * torch.rand(3), w * g),
        [r"^a second backward gives another gradient of model\.bias$"],
    ),
    "a look at grad mode": (
        lambda w, x, g: ((g * x).sum(0), g.sum(0) + float(torch.is_grad_enabled()), w * g),
        [r"^gradient\.model\.bias comes out different with grad mode on$"],
    ),
}


@pytest.mark.parametrize("fault", WRONG_RULES)
def test_wrong_backward_is_caught(fault: str) -> None:
    rule, expected = WRONG_RULES[fault]
    assert_faults(scale(rule), X, expected)


def packed(x: Tensor) -> Tensor:
    """What a kernel reads that takes a tensor to be contiguous."""
    return torch.as_strided(x, x.shape, torch.empty_like(x, memory_format=torch.contiguous_format).stride(), 0)


LAYOUT_FAULTS: Final[dict[str, tuple[Rule, Formula, list[str]]]] = {
    "a cotangent taken to be contiguous": (
        lambda w, x, g: ((packed(g) * x).sum(0), g.sum(0), w * g),
        scaled,
        [
            r"^with grad transposed, gradient\.model\.weight\[\d\] is \S+ instead of \S+ \(3 of 3 elements differ\)$",
            r"^with grad strided, gradient\.model\.weight\[\d\] is nan instead of",
            r"^with grad expanded, gradient\.model\.weight\[\d\] is",
        ],
    ),
    "an input taken to be contiguous": (
        right,
        lambda w, b, x: w * packed(x) + b,
        [
            r"^with x transposed, output\[\d, \d\] is",
            r"^with x strided, output\[\d, \d\] is nan",
            r"^with x expanded, output\[\d, \d\] is",
        ],
    ),
    "a weight taken to be contiguous": (
        lambda w, x, g: ((g * x).sum(0), g.sum(0), packed(w) * g),
        scaled,
        [
            r"^with the parameters strided, gradient\.x\[\d, \d\] is nan",
            r"^with the parameters expanded, gradient\.x\[\d, \d\] is",
        ],
    ),
    "a view of what may not be seen so": (
        lambda w, x, g: ((g.view(-1) * x.reshape(-1)).view(x.shape).sum(0), g.sum(0), w * g),
        scaled,
        [
            r"^with grad transposed, RuntimeError: view size is not compatible",
            r"^with grad expanded, RuntimeError: view size",
        ],
    ),
}


@pytest.mark.parametrize("fault", LAYOUT_FAULTS)
def test_layouts_taken_for_granted_are_caught(fault: str) -> None:
    rule, formula, expected = LAYOUT_FAULTS[fault]
    assert_faults(scale(rule, formula), X, expected)


def test_the_order_of_channels_is_tried() -> None:
    def weighed(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
        return w * x + b * float(x.movedim(1, -1).is_contiguous() and not x.is_contiguous())

    def rule(w: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (g * x).sum((0, 1)), 0 * w, w * g

    assert_faults(scale(rule, weighed), normal(2, 4, 3), [r"^with x with the channels last, output"])


WRONG_FORMULAS: Final[dict[str, tuple[Formula, list[str]]]] = {
    "x mutated": (lambda w, b, x: x.mul_(w).add_(b), [r"^forward changes x$"]),
    "the parameters mutated": (lambda w, b, x: w.mul_(2) * x / 2 + b.add_(0), [r"^forward changes model\.weight$"]),
    "random numbers": (lambda w, b, x: w * x + b + 1e-12 * torch.rand(3), [r"^output comes out different a second time$"]),
    "a look at inference mode": (
        lambda w, b, x: w * x + b + float(torch.is_inference_mode_enabled()),
        [r"^output comes out different in inference mode$"],
    ),
    "a tape": (lambda w, b, x: (w * x + b).requires_grad_(), [r"^output requires grad a second time$"]),
    "the dtype": (
        lambda w, b, x: (w * x + b).float(),
        [r"^the output is float32\[5, 3\], though the parameters and the input are float64$"],
    ),
    "another function than backward's": (
        lambda w, b, x: w**2 * x + b.exp(),
        [r"^model\.weight: ", r"^model\.bias: ", r"^x: "],
    ),
}


@pytest.mark.parametrize("fault", WRONG_FORMULAS)
def test_wrong_forward_is_caught(fault: str) -> None:
    formula, expected = WRONG_FORMULAS[fault]
    assert_faults(scale(formula=formula), X, expected)


@attrs.frozen(eq=False)
class HalfSoftmax(Layer[Tensor]):
    """Softmax, whose backward forgets the second term of y (grad - sum of grad y)."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.softmax(x, -1)
        return y, y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, residuals * grad


@attrs.frozen(eq=False)
class ConstantSoftmax(Layer[Tensor]):
    """Softmax with a gradient of 0: right for a uniform cotangent, since the probabilities always sum to 1."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.softmax(x, -1)
        return y, y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, torch.zeros_like(residuals)


def test_cotangents_are_not_uniform() -> None:
    _, expected = vjp(Softmax(), X, torch.ones_like(X))
    assert_trees_close(vjp(ConstantSoftmax(), X, torch.ones_like(X))[1], expected, rtol=0.0, atol=1e-15)
    assert_faults(ConstantSoftmax(), X, [r"^x: "])
    assert_faults(HalfSoftmax(), X, [r"^x: "])


def test_the_place_in_a_model_is_named() -> None:
    wrong = scale(lambda w, x, g: (-(g * x).sum(0), g.sum(0), w * g))
    model = with_values(compose(linear(3, 3), (Tanh(), wrong), ReLU()))
    assert_faults(model, X, [r"^model\[1\]\[1\]\.weight: "])
    with pytest.raises(
        AssertionError, match=r"^\(Linear\(weight=float64\[3, 3\], .*ReLU\(\)\) breaks the contract of a layer:"
    ):
        check_vjp(model, X)


# --- Structure ---------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Centred(Layer[None]):
    """y = factor (x - mean) + shift, with the mean a buffer: its gradients are told by `grads`."""

    shift: Tensor | None
    mean: Tensor = attrs.field(metadata=BUFFER)
    factor: float
    grads: Callable[["Centred", Tensor], "Centred"]

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        y = self.factor * (x - self.mean)
        return y if self.shift is None else y + self.shift, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple["Centred", Tensor]:
        return self.grads(self, grad), self.factor * grad


def summed(layer: Centred, grad: Tensor) -> Centred:
    return attrs.evolve(layer, shift=None if layer.shift is None else grad.sum(0))


def centred(grads: Callable[[Centred, Tensor], Centred], shift: Tensor | None = BIAS) -> Centred:
    return Centred(shift, WEIGHT, 2.0, grads)


def test_buffers_and_none_are_let_pass() -> None:
    check_vjp(centred(summed), X)
    check_vjp(centred(summed, shift=None), X)


def test_none_where_the_model_holds_a_tensor() -> None:
    layer = centred(lambda layer, _: attrs.evolve(layer, shift=None))
    assert_faults(layer, X, [r"^the gradient of model\.shift is None, but model\.shift is float64\[3\]$"])


def test_a_tensor_where_the_model_holds_none() -> None:
    layer = centred(lambda layer, grad: attrs.evolve(layer, shift=grad.sum(0)), shift=None)
    assert_faults(layer, X, [r"^the gradient of model\.shift is float64\[3\], but model\.shift is None$"])


def test_a_buffer_that_is_not_handed_back() -> None:
    layer = centred(lambda layer, grad: attrs.evolve(summed(layer, grad), mean=torch.zeros(3).double()))
    assert_faults(layer, X, [r"^backward does not hand back the buffer model\.mean as it is$"])


def test_another_structure() -> None:
    other = centred(lambda layer, grad: attrs.evolve(summed(layer, grad), factor=1.0))
    assert_faults(other, X, ["model and its gradient are not of the same structure: .* static fields differ"])


@attrs.frozen(eq=False)
class Shortcut(Layer[Tensor]):
    """y = weight x, with a backward_params of its own, which is wrong."""

    weight: Tensor

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight * x, x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple["Shortcut", Tensor]:
        return Shortcut((grad * residuals).sum(0)), self.weight * grad

    @override
    def backward_params(self, residuals: Tensor, grad: Tensor) -> "Shortcut":
        return Shortcut(grad.sum(0))


def test_backward_params_must_agree_with_backward() -> None:
    assert_faults(Shortcut(WEIGHT), X, [r"^backward_params does not give what backward gives: model\.weight\[\d\] is "])


# --- Inputs and outputs of any kind ------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Mix(Layer[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]):
    """Of a table, an index and a vector: the product of the chosen row and the vector, and their sum."""

    factor: float = 1.0

    @override
    def forward(self, x: tuple[Tensor, Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        table, index, vector = x
        return (table[index] * vector, table[index] + vector), x

    @override
    def backward(
        self, residuals: tuple[Tensor, Tensor, Tensor], grad: tuple[Tensor, Tensor]
    ) -> tuple["Mix", tuple[Tensor, Tensor, Tensor]]:
        table, index, vector = residuals
        row = grad[0] * vector + grad[1]
        grad_table = torch.zeros_like(table).index_add(0, index.reshape(1), row.unsqueeze(0))
        return self, (grad_table, index, self.factor * (grad[0] * table[index] + grad[1]))


def test_tuples_and_integers() -> None:
    x = normal(4, 3), torch.tensor(2), normal(3)
    check_vjp(Mix(), x)
    assert_faults(Mix(factor=2.0), x, [r"^x\[2\]: .* relative error 1$"])


def test_a_batch_of_none_has_nothing_wrong() -> None:
    check_vjp(scale(), X[:0])


def test_at_a_kink_there_is_no_derivative() -> None:
    check_vjp(ReLU(), torch.tensor([-1e-3, 1e-3]))
    assert_faults(ReLU(), torch.tensor([0.0]), [r"^x: backward gives a derivative of 0,"])


# --- The check itself is pure ------------------------------------------------------------------------------------------


def test_arguments_stay_as_they_are() -> None:
    layer = tree.cast_to(scale(formula=lambda w, b, x: x.mul_(w).add_(b)), torch.float32)
    x = X.clone()
    faults(layer, x)
    faults(tree.cast_to(layer, torch.float64), x)
    assert tree.equal(x, X)


def test_any_floating_point_dtype_will_do() -> None:
    check_vjp(tree.cast_to(scale(), torch.bfloat16), X.half())
    wrong = tree.cast_to(scale(lambda w, x, g: ((g * x).sum(0), 1.001 * g.sum(0), w * g)), torch.bfloat16)
    assert_faults(wrong, X.half(), [r"^model\.bias: .* relative error 0.001$"])


def test_the_key_decides() -> None:
    wrong = scale(lambda w, x, g: (2 * (g * x).sum(0), g.sum(0), w * g))
    assert faults(wrong, X) == faults(wrong, X)
    with pytest.raises(AssertionError) as caught:
        check_vjp(wrong, X, key=key(1))
    assert str(caught.value).split("\n  ")[1:] != faults(wrong, X)


def test_the_tolerance_decides() -> None:
    wrong = scale(lambda w, x, g: ((g * x).sum(0), g.sum(0), 1.01 * w * g))
    check_vjp(wrong, X, tolerance=0.02)
    with pytest.raises(AssertionError, match=r"relative error 0\.01"):
        check_vjp(wrong, X, tolerance=0.005, directions=1, step=1e-3)


def test_errors_of_the_caller() -> None:
    with pytest.raises(TypeError, match=r"is the class ReLU, not a layer: write ReLU\(...\)"):
        check_vjp((Tanh(), ReLU), X)  # type: ignore[arg-type]  # the class, not a layer
    with pytest.raises(ValueError, match=r"call initialize\(key\(0\), model\)"):
        check_vjp(linear(3, 2), X)
    with pytest.raises(ValueError, match="directions=0"):
        check_vjp(scale(), X, directions=0)
    with pytest.raises(ValueError, match=r"step=-1\.0"):
        check_vjp(scale(), X, step=-1.0)
    with pytest.raises(ValueError, match="tolerance=0"):
        check_vjp(scale(), X, tolerance=0)


# --- assert_trees_close ------------------------------------------------------------------------------------------------


def differences(actual: object, expected: object, *, rtol: float = 1e-3, atol: float = 1e-3) -> list[str]:
    """What the assertion says, without its first line."""
    with pytest.raises(AssertionError, match=r"^the trees are not close:\n") as caught:
        assert_trees_close(actual, expected, rtol=rtol, atol=atol)
    return str(caught.value).split("\n  ")[1:]


def test_close_trees_are_close() -> None:
    first = {"a": torch.tensor([1.0, math.nan, math.inf]), "b": (None, torch.tensor([1, 2])), "c": torch.zeros(0)}
    second = {"a": torch.tensor([1.002, math.nan, math.inf]), "b": (None, torch.tensor([1, 2])), "c": torch.zeros(0)}
    assert_trees_close(first, second, rtol=0.0, atol=0.003)
    assert_trees_close(first, second, rtol=0.003, atol=0.0)
    assert differences(first, second, rtol=0.0, atol=0.001)
    assert_trees_close(scale(), scale(), rtol=0.0, atol=0.0)


def test_all_that_differ_are_listed_the_worst_first() -> None:
    first = (torch.tensor([1.0, 2.0]), {"x": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, torch.tensor(1.0))
    second = (torch.tensor([1.5, 2.0]), {"x": torch.tensor([[1.0, 2.5], [3.0, 5.0]])}, torch.tensor(1.0))
    assert differences(first, second) == [
        "[1]['x'][1, 1] is 4.0 instead of 5.0 (2 of 4 elements differ)",
        "[0][0] is 1.0 instead of 1.5 (1 of 2 elements differ)",
    ]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.tensor(1.0), torch.tensor(2.0), "it is 1.0 instead of 2.0 (1 of 1 elements differ)"),
        (torch.tensor([1.0]), torch.tensor([math.nan]), "[0] is 1.0 instead of nan (1 of 1 elements differ)"),
        (torch.tensor([math.inf]), torch.tensor([-math.inf]), "[0] is inf instead of -inf (1 of 1 elements differ)"),
        (torch.tensor([True]), torch.tensor([False]), "[0] is 1.0 instead of 0.0 (1 of 1 elements differ)"),
        (torch.ones(2), torch.ones(1), "it is float32[2] instead of float32[1]"),
        ((torch.ones(1),), (torch.ones(1).double(),), "[0] is float32[1] instead of float64[1]"),
        ((torch.ones(1), None), (None, None), "[0] is float32[1] instead of None"),
    ],
)
def test_differences_in_words(first: object, second: object, message: str) -> None:
    assert differences(first, second) == [message]


def test_other_structures_are_not_close() -> None:
    (message,) = differences((torch.ones(1),), {"a": torch.ones(1)})
    assert message.startswith("the actual tree and the expected tree are not of the same structure: ")
