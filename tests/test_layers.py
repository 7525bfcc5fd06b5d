"""What holds for every layer, over the table of samples."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fundl
from fundl import (
    Layer,
    Model,
    assert_trees_close,
    backward,
    backward_params,
    check_vjp,
    forward,
    key,
    linear,
    random,
    tree,
    vjp,
)
from fundl._common.running import run_backward_input
from tests.samples import ELEMENTWISE, SAMPLES, Sample, affine, normal, sample

SMALL: Final = st.integers(0, 4)

quietly: Final = settings(deadline=None, derandomize=True, max_examples=50)

every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
every_batched_sample = pytest.mark.parametrize(
    "sample", [sample for sample in SAMPLES if sample.batched], ids=lambda sample: sample.name
)


# --- Running a sample --------------------------------------------------------------------------------------------------

# The public functions know the type of the input and the output of a layer, and that those of a tuple are tensors. Over the
# table the types are not known: these functions are for any.


def forward_any(model: Model, x: object) -> tuple[object, object]:
    if isinstance(model, tuple):
        assert isinstance(x, Tensor)
        return forward(model, x)
    return forward(model, x)


def backward_any(model: Model, residuals: object, grad: object) -> tuple[Model, object]:
    if isinstance(model, tuple):
        assert isinstance(grad, Tensor)
        return backward(model, residuals, grad)
    return backward(model, residuals, grad)


def vjp_any(model: Model, x: object, grad: object) -> tuple[Model, object]:
    if isinstance(model, tuple):
        assert isinstance(x, Tensor)
        assert isinstance(grad, Tensor)
        return vjp(model, x, grad)
    return vjp(model, x, grad)


def cotangent(output: object) -> object:
    """Random numbers in the shape of an output."""
    keys = iter(random.split(key(4), len(tree.leaves(output))))
    return tree.map(lambda leaf: random.normal(next(keys), tuple(leaf.shape), dtype=torch.float64).to(leaf.dtype), output)


def run(model: Model, x: object) -> tuple[object, Model, object]:
    """The output, and the gradients of its product with a cotangent."""
    output, residuals = forward_any(model, x)
    return output, *backward_any(model, residuals, cotangent(output))


def autograd(sample: Sample, model: Model, x: object) -> tuple[object, Model, object]:
    """What `run` should give: the formula, differentiated by autograd."""
    leaves = tree.trainable_leaves((model, x))
    variables = [leaf.detach().requires_grad_() if leaf.is_floating_point() else leaf for leaf in leaves]
    output = sample.formula(*tree.with_trainable_leaves((model, x), variables))
    gradients = iter(
        torch.autograd.grad(
            [leaf for leaf in tree.leaves(output) if leaf.is_floating_point()],
            [leaf for leaf in variables if leaf.requires_grad],
            [leaf for leaf in tree.leaves(cotangent(output)) if leaf.is_floating_point()],
            materialize_grads=True,
        )
    )
    every = [next(gradients) if leaf.requires_grad else leaf for leaf in variables]
    grads, grad_x = tree.with_trainable_leaves((model, x), every)
    return tree.map(torch.detach, output), grads, grad_x


def without_integers(x: object, grad_x: object) -> object:
    """The gradient of an input; integers, which have none, stand for themselves."""
    return tree.map(lambda leaf, grad: grad if leaf.is_floating_point() else leaf, x, grad_x)


def assert_equals_autograd(sample: Sample, model: Model, x: object, tolerance: float) -> None:
    """A run equals that of the formula in float64, up to a fraction of the largest number."""
    output, grads, grad_x = run(model, x)
    actual = tree.cast_to((output, grads, without_integers(x, grad_x)), torch.float64)
    expected = autograd(sample, *tree.cast_to((model, x), torch.float64))
    largest = max((float(leaf.double().abs().max()) for leaf in tree.leaves(expected) if leaf.numel()), default=0.0)
    assert_trees_close(actual, expected, rtol=tolerance, atol=tolerance * largest)


# --- The calculus ------------------------------------------------------------------------------------------------------


@every_sample
def test_backward_is_the_derivative_of_forward(sample: Sample) -> None:
    check_vjp(sample.model, sample.x)


@pytest.mark.parametrize(
    ("sample", "dtype"),
    [(sample, dtype) for sample in SAMPLES for dtype in sample.tolerances],
    ids=lambda value: value.name if isinstance(value, Sample) else str(value),
)
def test_equals_autograd_on_the_formula(sample: Sample, dtype: torch.dtype) -> None:
    model, x = tree.cast_to((sample.model, sample.x), dtype)
    output, grads, grad_x = run(model, x)
    dtypes = {leaf.dtype for leaf in tree.leaves((output, grads, grad_x)) if leaf.is_floating_point()}
    assert dtypes == {dtype}
    assert_equals_autograd(sample, model, x, sample.tolerances[dtype])


def test_elementwise_layers_take_any_shape() -> None:
    def check(row: Sample, shape: list[int]) -> None:
        assert_equals_autograd(row, row.model, normal(*shape), 1e-9)

    quietly(given(st.sampled_from(ELEMENTWISE), st.lists(SMALL, max_size=4))(check))()


def test_linear_takes_any_leading_shape() -> None:
    def check(leading: list[int], in_features: int, out_features: int, bias: bool) -> None:
        x = normal(*leading, in_features)
        row = sample("Linear", linear(in_features, out_features, bias=bias), x, affine)
        assert_equals_autograd(row, row.model, x, 1e-9)

    quietly(given(st.lists(SMALL, max_size=3), st.integers(1, 4), st.integers(1, 4), st.booleans())(check))()


@every_sample
def test_vjp_is_forward_then_backward(sample: Sample) -> None:
    output, residuals = forward_any(sample.model, sample.x)
    grad = cotangent(output)
    both = backward_any(sample.model, residuals, grad)
    assert tree.equal(vjp_any(sample.model, sample.x, grad), both)
    assert tree.equal(backward_params(sample.model, residuals, grad), both[0])
    assert tree.equal(run_backward_input(sample.model, residuals, grad), both[1])
    assert tree.equal(backward_any(sample.model, residuals, grad), both)


# --- Inputs of any kind ------------------------------------------------------------------------------------------------


@every_batched_sample
@pytest.mark.parametrize("size", [0, 1])
def test_batch_of_none_and_of_one(sample: Sample, size: int) -> None:
    x = tree.map(lambda leaf: leaf[:size], sample.x)
    assert all(leaf.shape[0] == size for leaf in tree.leaves(run(sample.model, x)[0]))
    assert_equals_autograd(sample, sample.model, x, 1e-9)


@every_sample
def test_meta_tensors_give_shapes_and_dtypes(sample: Sample) -> None:
    expected = tree.move_to(run(sample.model, sample.x), "meta")
    model, x = tree.move_to((sample.model, sample.x), "meta")
    output, residuals = forward_any(model, x)
    actual = output, *backward_any(model, residuals, tree.map(torch.empty_like, output))
    assert tree.equal(actual, expected)


# --- Grad modes and trees ----------------------------------------------------------------------------------------------


@every_sample
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_no_grad_mode_matters_and_no_tape_is_recorded(sample: Sample, mode: Callable[[], AbstractContextManager[None]]) -> None:
    expected = run(sample.model, sample.x)
    model, x = tree.map(
        lambda leaf: leaf.clone().requires_grad_() if leaf.is_floating_point() else leaf, (sample.model, sample.x)
    )
    with mode():
        output, residuals = forward_any(model, x)
        actual = output, *backward_any(model, residuals, cotangent(output))
    assert all(leaf.grad_fn is None for leaf in tree.leaves((actual, residuals)))
    assert tree.equal(actual, expected)


@every_sample
def test_models_are_trees(sample: Sample) -> None:
    leaves, structure = tree.flatten(sample.model)
    assert tree.equal(tree.unflatten(structure, leaves), sample.model)
    trainable = tree.trainable_leaves(sample.model)
    assert tree.equal(tree.with_trainable_leaves(sample.model, trainable), sample.model)
    assert tree.equal(tree.map(torch.clone, sample.model), sample.model)
    assert tree.equal(tree.map_records(lambda record: record, sample.model), sample.model)


# --- Residuals ---------------------------------------------------------------------------------------------------------


def storages(trees: object) -> dict[int, int]:
    """The memory behind tensors, and its bytes."""
    memory = [leaf.untyped_storage() for leaf in tree.leaves(trees)]
    return {storage.data_ptr(): storage.nbytes() for storage in memory}


@every_sample
def test_residuals_take_the_bytes_that_are_declared(sample: Sample) -> None:
    output, residuals = forward_any(sample.model, sample.x)
    anyway = storages((sample.model, sample.x, output))
    kept = {address: nbytes for address, nbytes in storages(residuals).items() if address not in anyway}
    assert sum(kept.values()) == sample.kept


# --- The table ---------------------------------------------------------------------------------------------------------


def test_every_public_layer_has_a_sample() -> None:
    public = {
        value
        for value in vars(fundl).values()
        if inspect.isclass(value) and issubclass(value, Layer) and not inspect.isabstract(value)
    }
    sampled = {type(record) for sample in SAMPLES for record in tree.records(sample.model)}
    missing = sorted(layer.__name__ for layer in public - sampled)
    assert not missing, f"add rows to tests/samples/ for {', '.join(missing)}"


def test_the_names_of_the_samples_are_unique() -> None:
    assert len({sample.name for sample in SAMPLES}) == len(SAMPLES)
