"""Directional, second and per-example derivatives of every sample layer and loss, against finite differences in float64."""

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, Self, TypeVar

import attrs
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from typing_extensions import override

from fundl import (
    Dropout,
    Embedding,
    Layer,
    Linear,
    Model,
    ReLU,
    SelfAttention,
    Tanh,
    apply,
    batch_norm,
    compose,
    conv2d,
    cross_entropy,
    embedding,
    ensemble,
    hvp,
    initialize,
    jacobian,
    jacobian_input,
    jacobian_params,
    jit,
    jvp,
    key,
    layer_norm,
    linear,
    linearize,
    mse,
    per_example_grads,
    per_example_norms,
    random,
    rekey,
    residual,
    self_attention,
    transformer_block,
    tree,
    value_and_grad,
    vjp,
)
from fundl._common.running import run_backward, run_forward
from fundl.derivatives._pushing import prepare
from tests.loss_samples import SAMPLES as LOSSES
from tests.samples import SAMPLES, Sample, normal
from tests.test_layers import vjp_any

T = TypeVar("T")

every_sample: Final = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)

prepare()  # torch warns as it loads what forward mode needs


def normal_like(values: T, seed: int) -> T:
    keys = iter(random.split(key(seed), max(1, len(tree.leaves(values)))))
    return tree.map(lambda leaf: random.normal(next(keys), tuple(leaf.shape), dtype=torch.float64).to(leaf.dtype), values)


def numbers(values: object) -> list[Tensor]:
    """The leaves that derivatives are taken of and with respect to."""
    return [leaf for leaf in tree.trainable_leaves(values) if leaf.is_floating_point()]


def moved(values: T, way: object, step: float) -> T:
    steps = iter(tree.trainable_leaves(way))
    leaves = [(leaf, next(steps)) for leaf in tree.trainable_leaves(values)]
    return tree.with_trainable_leaves(values, [leaf + step * way if leaf.is_floating_point() else leaf for leaf, way in leaves])


def assert_differences(found: object, function: Callable[[T], object], point: T, way: object) -> None:
    """A derivative along a way is what central differences give."""
    ahead, behind = (numbers(function(moved(point, way, step))) for step in (1e-5, -1e-5))
    for derivative, one, other in zip(numbers(found), ahead, behind, strict=True):
        difference = (one - other) / 2e-5
        scale = 1 + float(difference.abs().max()) if difference.numel() else 1.0
        torch.testing.assert_close(derivative, difference, rtol=0, atol=1e-5 * scale)


# --- Along a direction -------------------------------------------------------------------------------------------------


def output_of(point: tuple[Model, object]) -> object:
    return run_forward(*point)[0]


@every_sample
def test_jvp(sample: Sample) -> None:
    point = sample.model, sample.x
    way, way_x = normal_like(point, 5)
    y, tangent = jvp(sample.model, sample.x, way, way_x)  # type: ignore[arg-type]  # the table does not know the types
    torch.testing.assert_close(numbers(y), numbers(output_of(point)))
    assert tree.flatten(tangent)[1] == tree.flatten(y)[1]
    assert_differences(tangent, output_of, point, (way, way_x))


@every_sample
def test_jvp_is_the_transpose_of_vjp(sample: Sample) -> None:
    output = output_of((sample.model, sample.x))
    grad, way, way_x = normal_like((output, sample.model, sample.x), 6)
    grads = numbers(vjp_any(sample.model, sample.x, grad))
    tangent = numbers(linearize(sample.model, sample.x)[1](way, way_x))  # type: ignore[arg-type]  # likewise
    left = sum(float((one * other).sum()) for one, other in zip(numbers(grad), tangent, strict=True))
    right = sum(float((one * other).sum()) for one, other in zip(grads, numbers((way, way_x)), strict=True))
    assert left == pytest.approx(right, rel=1e-9, abs=1e-9)


def gradients_of(given: tuple[Model, object, object]) -> object:
    model, x, grad = given
    _, residuals = run_forward(model, x)
    return run_backward(model, residuals, grad)


Leaves = tuple[Tensor, ...]


class OfLeaves(Protocol):
    def __call__(self, *leaves: Tensor) -> Leaves: ...


def by_func(point: Leaves, way: Leaves, function: OfLeaves) -> object:
    return torch.func.jvp(function, point, way)[1]


def dual(primal: Tensor, tangent: Tensor) -> Tensor:
    made: Tensor = forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]  # torch does not say
    return made


def tangent_of(value: Tensor) -> Tensor | None:
    tangent: Tensor | None = forward_ad.unpack_dual(value).tangent  # type: ignore[no-untyped-call]  # likewise
    return tangent


def by_duals(point: Leaves, way: Leaves, function: OfLeaves) -> object:
    """Plain dual numbers, of tensors that require grad."""
    with forward_ad.dual_level():
        parameters = [leaf.clone().requires_grad_() for leaf in point]
        duals = [dual(leaf, one) for leaf, one in zip(parameters, way, strict=True)]
        found = function(*duals)
        tangents = [tangent_of(leaf) for leaf in found]
        return [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(found, tangents, strict=True)]


@every_sample
@pytest.mark.parametrize("differentiate", [by_func, by_duals])
def test_forward_mode_over_vjp(sample: Sample, differentiate: Callable[[Leaves, Leaves, OfLeaves], object]) -> None:
    """Torch differentiates a kernel as it knows it, and not as what a layer uses it for."""
    given = sample.model, sample.x, normal_like(output_of((sample.model, sample.x)), 4)
    way = normal_like(given, 5)
    leaves = tree.trainable_leaves(given)

    def gradients(*replaced: Tensor) -> tuple[Tensor, ...]:
        new = iter(replaced)
        all_leaves = [next(new) if leaf.is_floating_point() else leaf for leaf in leaves]
        return tuple(numbers(gradients_of(tree.with_trainable_leaves(given, all_leaves))))

    with torch.no_grad():
        found = differentiate(tuple(numbers(given)), tuple(numbers(way)), gradients)
        assert_differences(found, gradients_of, given, way)


def halved_squares(prediction: object, _: None) -> tuple[Tensor, object]:
    """A loss of any tree, with curvature of its own."""
    leaves = numbers(prediction)
    grads = iter([leaf * (1 + leaf * leaf) for leaf in leaves])
    value = torch.stack([(leaf.square() / 2 + leaf.pow(4) / 4).sum() for leaf in leaves]).sum()
    return value, tree.map(lambda leaf: next(grads) if leaf.is_floating_point() else torch.zeros_like(leaf), prediction)


@every_sample
def test_hvp(sample: Sample) -> None:
    way = normal_like(sample.model, 7)

    def gradient(model: Model) -> Model:
        return value_and_grad(halved_squares, model, sample.x, None)[1]  # type: ignore[arg-type]  # as above

    grads, product = hvp(halved_squares, sample.model, sample.x, None, way)  # type: ignore[arg-type]  # as above
    assert tree.flatten(product)[1] == tree.flatten(sample.model)[1]
    torch.testing.assert_close(numbers(grads), numbers(gradient(sample.model)))
    assert_differences(product, gradient, sample.model, way)


@attrs.frozen(eq=False)
class Row(Layer[None]):
    """y = the parameter, whatever the input."""

    row: Tensor

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.row, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self.gradient(grad), torch.zeros(1)


@pytest.mark.parametrize("name", LOSSES)
def test_hvp_of_losses(name: str) -> None:
    """Through a layer that gives the prediction itself."""
    row = LOSSES[name]
    loss = partial(row.loss, reduction="sum")
    point, way = Row(row.prediction), Row(normal_like(row.prediction, 3))

    def gradient(model: Row) -> Row:
        return value_and_grad(loss, model, torch.zeros(1), row.target)[1]

    _, product = hvp(loss, point, torch.zeros(1), row.target, way)
    assert_differences(product, gradient, point, way)


def test_what_does_not_move() -> None:
    layer, x = Linear(normal(2, 3), None), normal(5, 3)
    way = normal_like(layer, 1)
    _, of_params = jvp(layer, x, way, None)
    _, of_x = jvp(layer, x, None, x)
    torch.testing.assert_close(of_params, x @ way.weight.mT)
    torch.testing.assert_close(of_x, x @ layer.weight.mT)
    with pytest.raises(ValueError, match="one of the two tangents must be given, else nothing moves"):
        jvp(layer, x, None, None)


def test_tangents_that_do_not_fit() -> None:
    model, x = compose(Linear(normal(2, 3), normal(2)), Tanh()), normal(5, 3)
    with pytest.raises(
        ValueError, match=r"its tangent must be like the input, float64\[5, 3\] on cpu, not float64\[3\] on cpu"
    ):
        jvp(model, x, None, normal(3))
    wrong = compose(Linear(normal(2, 4), normal(2)), Tanh())
    with pytest.raises(ValueError, match=r"its tangent\[0\].weight must be like the model\[0\].weight, float64\[2, 3\] on cpu"):
        hvp(mse, model, x, normal(5, 2), wrong)
    with pytest.raises(TypeError, match="the model and its tangent are not of the same structure"):
        jvp(model, x, compose(model, Tanh()), None)


def test_forward_mode_compiled_and_for_many_runs() -> None:
    model, x = compose(Linear(normal(2, 3), normal(2)), Tanh()), normal(5, 3)
    way = normal_like(model, 1)
    expected = jvp(model, x, way, x)
    torch.testing.assert_close(jit(lambda m, x, w: jvp(m, x, w, x))(model, x, way), expected)
    twice = ensemble.each(lambda m, w: jvp(m, x, w, x))(tree.stack([model, model]), tree.stack([way, way]))
    torch.testing.assert_close(twice[1][1], expected[1])


# --- All directions ----------------------------------------------------------------------------------------------------


a_loop = pytest.mark.filterwarnings("ignore:There is a performance drop")  # of a kernel that vmap runs in a loop


@a_loop
@every_sample
def test_jacobians(sample: Sample) -> None:
    output = output_of((sample.model, sample.x))
    if not isinstance(output, Tensor):
        with pytest.raises(TypeError, match="jacobian: the model must give a tensor"):
            jacobian(sample.model, sample.x)  # type: ignore[arg-type]  # as above
        return
    of_params, of_x = jacobian(sample.model, sample.x)  # type: ignore[arg-type]  # as above
    cotangent = normal_like(output, 8)
    expected = vjp_any(sample.model, sample.x, cotangent)
    for rows, grad in zip(numbers((of_params, of_x)), numbers(expected), strict=True):
        assert rows.shape == (*output.shape, *grad.shape)
        torch.testing.assert_close(torch.tensordot(cotangent, rows, output.ndim), grad)
    halves = (
        jacobian_params(sample.model, sample.x),
        jacobian_input(sample.model, sample.x),  # type: ignore[arg-type]  # as above
    )
    torch.testing.assert_close(numbers(halves), numbers((of_params, of_x)))


# --- Each example ------------------------------------------------------------------------------------------------------


def row_of(row: int, leaf: Tensor) -> Tensor:
    return leaf[row : row + 1]


APART: Final = [
    sample for sample in SAMPLES if sample.batched and sample.name != "LearnedPositions, one sequence" and numbers(sample.model)
]


def squares_of_first(prediction: object, _: Tensor) -> tuple[Tensor, object]:
    return halved_squares(prediction, None)


@a_loop
@pytest.mark.parametrize("sample", APART, ids=lambda sample: sample.name)
def test_each_example_has_its_own_gradient(sample: Sample) -> None:
    rows = len(tree.leaves(sample.x)[0])
    target = torch.zeros(rows)
    try:
        values, grads = per_example_grads(squares_of_first, sample.model, sample.x, target)  # type: ignore[arg-type]  # as above
    except ValueError as error:
        assert "BatchNorm normalises by the statistics of the whole batch" in str(error)  # noqa: PT017  # else all is right
        return
    norms = []
    for row in range(rows):
        x = tree.map(partial(row_of, row), sample.x)
        value, expected = value_and_grad(squares_of_first, sample.model, x, target[:1])  # type: ignore[arg-type]  # as above
        torch.testing.assert_close(values[row], value)
        own = [leaf[row] for leaf in numbers(grads)]
        torch.testing.assert_close(own, numbers(expected))
        norms.append(torch.stack([leaf.square().sum() for leaf in own]).sum().sqrt())
    if any(getattr(record, "key", None) is not None for record in tree.records(sample.model)):
        with pytest.raises(ValueError, match="a layer has a key, and draws for the batch as a whole"):
            per_example_norms(squares_of_first, sample.model, sample.x, target)
        return
    torch.testing.assert_close(per_example_norms(squares_of_first, sample.model, sample.x, target), torch.stack(norms))


LANGUAGE: Final = compose(
    embedding(11, 8), residual(layer_norm(8), linear(8, 64), ReLU(), linear(64, 8)), transformer_block(8, 2), linear(8, 11)
)


@pytest.mark.parametrize("length", [2, 40])
def test_norms_of_a_model_of_language(length: int) -> None:
    """Products of positions for the short, gradients for the long."""
    model = initialize(key(0), LANGUAGE, dtype=torch.float64)
    tokens = random.randint(key(1), (4, length), low=0, high=11)

    def last(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = cross_entropy(prediction.movedim(-1, 1), target)
        return value, grad.movedim(1, -1)

    _, grads = per_example_grads(last, model, tokens, tokens)
    squares = [leaf.flatten(1).square().sum(1) for leaf in tree.trainable_leaves(grads)]
    torch.testing.assert_close(per_example_norms(last, model, tokens, tokens), torch.stack(squares).sum(0).sqrt())


def test_embeddings_with_padding() -> None:
    layer = Embedding(normal(5, 3), padding=2)
    tokens = torch.tensor([[1, 2, 1], [2, 2, 0]])
    loss = partial(mse, reduction="sum")
    _, grads = per_example_grads(loss, layer, tokens, torch.zeros(2, 3, 3, dtype=torch.float64))
    norms = per_example_norms(loss, layer, tokens, torch.zeros(2, 3, 3, dtype=torch.float64))
    torch.testing.assert_close(norms, grads.weight.flatten(1).norm(dim=1))


def test_examples_that_are_mixed() -> None:
    model = initialize(key(0), compose(conv2d(1, 2, 3), batch_norm(2)))
    x, target = torch.zeros(4, 1, 5, 5), torch.zeros(4, 2, 3, 3)
    for function in (per_example_grads, per_example_norms):
        with pytest.raises(ValueError, match=r"BatchNorm normalises by the statistics of the whole batch.*calibrate"):
            function(mse, model, x, target)
        with pytest.raises(ValueError, match="x is of 4 examples, but the target of 3"):
            function(mse, model, x, target[:3])
    dropping = rekey(compose(linear(2, 3), Dropout(0.5)), key(0))
    with pytest.raises(ValueError, match="a layer has a key"):
        per_example_norms(mse, initialize(key(0), dropping), torch.zeros(4, 2), torch.zeros(4, 3))


def test_a_model_without_parameters() -> None:
    assert torch.equal(per_example_norms(mse, Tanh(), torch.ones(3, 2), torch.ones(3, 2)), torch.zeros(3))


def test_types() -> None:
    """The derivatives of a model are of its type."""
    model = initialize(key(0), self_attention(8, 2))
    x = torch.zeros(2, 3, 8)
    made: SelfAttention = hvp(mse, model, x, x, model)[1]
    assert made.weight.shape == model.weight.shape
    of_each: SelfAttention = per_example_grads(mse, model, x, x)[1]
    assert of_each.weight.shape == (2, *model.weight.shape)
    rows: SelfAttention = jacobian_params(model, x[:1])
    assert rows.weight.shape == (1, 3, 8, *model.weight.shape)
    y, tangent = jvp(model, x, None, x)
    assert y.shape == tangent.shape == apply(model, x).shape
    grads, _ = vjp(model, x, tangent)
    assert type(grads) is type(made)
