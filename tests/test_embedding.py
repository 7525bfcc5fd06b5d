"""Embedding: beside torch.nn's, its padding, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fundl import (
    Embedding,
    Flatten,
    Identity,
    Masked,
    MeanOfPositions,
    Reshape,
    Tanh,
    adam,
    apply,
    backward_params,
    compose,
    constant,
    embedding,
    ensemble,
    forward,
    from_masked,
    initialize,
    key,
    linear,
    mse,
    normal,
    output_shape,
    parallel,
    random,
    value_and_grad,
    vjp,
)
from fundl.layer import zero_gradient
from fundl.shapes import Shape


def made(vocabulary: int, features: int, padding: int | None = None) -> Embedding:
    return initialize(key(0), embedding(vocabulary, features, padding=padding, dtype=torch.float64))


def torch_nn(layer: Embedding) -> torch.nn.Embedding:
    vocabulary, features = layer.weight.shape
    theirs = torch.nn.Embedding(vocabulary, features, layer.padding, dtype=layer.weight.dtype)
    theirs.load_state_dict({"weight": layer.weight})
    return theirs


# --- Beside torch.nn ---------------------------------------------------------------------------------------------------


def test_equals_torch_nn() -> None:
    def check(shape: list[int], vocabulary: int, features: int, padding: int | None, dtype: torch.dtype) -> None:
        layer = made(vocabulary, features, None if padding is None else padding % vocabulary)
        tokens = random.randint(key(1), tuple(shape), low=0, high=vocabulary).to(dtype)
        theirs = torch_nn(layer)
        expected = theirs(tokens)
        grad = random.normal(key(2), tuple(expected.shape), dtype=torch.float64)
        expected.backward(grad)
        grads, grad_x = vjp(layer, tokens, grad)
        assert torch.equal(apply(layer, tokens), expected)
        torch.testing.assert_close(grads.weight, theirs.weight.grad, rtol=1e-12, atol=1e-12)
        assert torch.equal(grad_x, torch.zeros_like(tokens))

    shapes, sizes = st.lists(st.integers(0, 4), max_size=3), st.integers(1, 5)
    dtypes = st.sampled_from([torch.int64, torch.int32])
    paddings = st.none() | st.integers(0, 4)
    settings(max_examples=100, deadline=None, derandomize=True)(given(shapes, sizes, sizes, paddings, dtypes)(check))()


def test_a_token_may_occur_often() -> None:
    layer, tokens = made(3, 2), torch.tensor([1, 1, 0, 1])
    grads, _ = vjp(layer, tokens, torch.ones(4, 2, dtype=torch.float64))
    assert torch.equal(grads.weight[:, 0], torch.tensor([1.0, 3.0, 0.0], dtype=torch.float64))


# --- Integers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_the_gradient_of_integers_takes_no_memory(dtype: torch.dtype) -> None:
    x = torch.ones(1000, 1000, dtype=dtype)
    grad = zero_gradient(x)
    assert grad.shape == x.shape
    assert grad.dtype == dtype
    assert not grad.any()
    assert grad.untyped_storage().nbytes() == x.element_size()


def test_the_gradient_of_the_tokens_is_not_made_unless_it_is_asked_for() -> None:
    layer, tokens = made(3, 2), torch.tensor([2, 1])
    y, residuals = forward(layer, tokens)
    assert residuals is tokens
    assert torch.equal(backward_params(layer, residuals, y).weight, vjp(layer, tokens, y)[0].weight)


def test_the_tokens_may_be_rearranged_before() -> None:
    model = compose(Flatten(), Identity(), Reshape((2, 2)), parallel(made(5, 3), made(5, 3)))
    tokens, grad = torch.tensor([[[0, 1, 4, 4]]]), torch.ones(1, 2, 2, 3, dtype=torch.float64)
    grads, grad_x = vjp(model, tokens, grad)
    assert torch.equal(grads[3].branches[0].weight[:, 0], torch.tensor([1, 1, 0, 0, 2], dtype=torch.float64))
    assert torch.equal(grad_x, torch.zeros_like(tokens))


def test_the_tokens_may_be_masked() -> None:
    tokens = torch.tensor([[1, 2, 1], [4, 0, 0]])
    batch = Masked(tokens, torch.tensor([[True, True, True], [True, False, False]]))
    model = from_masked(made(5, 3), MeanOfPositions())
    grads, grad_x = vjp(model, batch, torch.ones(2, 3, dtype=torch.float64))
    expected = torch.tensor([0, 2 / 3, 1 / 3, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(grads.layers[0].weight[:, 0], expected)
    assert torch.equal(grad_x.values, torch.zeros_like(tokens))


# --- Padding -----------------------------------------------------------------------------------------------------------


def test_the_row_of_the_padding_is_zero_whatever_draws_the_others() -> None:
    for initializer in (normal(), constant(3.0)):
        plain = initialize(key(0), embedding(4, 3, weight_init=initializer)).weight
        padded = initialize(key(0), embedding(4, 3, padding=2, weight_init=initializer)).weight
        assert not padded[2].any()
        assert torch.equal(padded[[0, 1, 3]], plain[[0, 1, 3]])
        assert plain[2].all()


def test_the_row_of_the_padding_stays_zero_in_training() -> None:
    model = initialize(key(0), compose(embedding(5, 3, padding=4), linear(3, 1)))
    tokens, target = torch.tensor([[0, 1, 4], [2, 4, 4]]), torch.ones(2, 3, 1)
    optimizer = adam(0.1)
    state = optimizer.init(model)
    before = model[0].weight
    for _ in range(3):
        _, grads = value_and_grad(mse, model, tokens, target)
        model, state = optimizer.step(grads, state, model)
    assert not model[0].weight[4].any()
    assert torch.equal(model[0].weight[3], before[3])  # a token that does not occur
    assert not torch.equal(model[0].weight[:3], before[:3])


# --- What fits ---------------------------------------------------------------------------------------------------------


def test_is_initialised_from_the_standard_normal_distribution() -> None:
    weight = initialize(key(0), embedding(200, 100)).weight
    assert weight.dtype == torch.float32
    assert abs(float(weight.mean())) < 0.02
    assert abs(float(weight.std()) - 1) < 0.02


def test_its_shape_is_that_of_the_tokens_with_features() -> None:
    assert output_shape(embedding(10, 4), Shape(2, 3)).sizes == (2, 3, 4)
    assert repr(output_shape(embedding(10, 4))) == "Shape(..., 4)"
    assert repr(output_shape(embedding(10, 4), Shape())) == "Shape(4)"


def test_many_at_once() -> None:
    models = [made(5, 3), initialize(key(9), embedding(5, 3, dtype=torch.float64))]
    tokens = torch.tensor([[[0, 4], [1, 1]], [[2, 2], [3, 0]]])
    grad = random.normal(key(1), (2, 2, 2, 3), dtype=torch.float64)
    grads, _ = vjp(ensemble.stack(models), tokens, grad)
    for model, got, x, grad_y in zip(models, ensemble.unstack(grads), tokens, grad, strict=True):
        assert torch.equal(got.weight, vjp(model, x, grad_y)[0].weight)


# --- What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [5, -1, 1000])
def test_a_token_that_is_not_in_the_vocabulary(token: int) -> None:
    message = f"Embedding has a vocabulary of 5 tokens, 0 to 4, but the input holds token {token}"
    with pytest.raises(ValueError, match=message) as caught:
        apply(compose(made(5, 3), Tanh()), torch.tensor([[0, 1], [token, 4]]))
    assert "model[0]" in caught.value.__notes__[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int16, torch.bool])
def test_tokens_of_another_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"the input is {dtype}: convert it with x.to\(torch.int64\)"):
        apply(made(5, 3), torch.ones(2, dtype=dtype))


def test_without_values() -> None:
    with pytest.raises(ValueError, match="the model has no values yet"):
        apply(embedding(5, 3), torch.tensor([1]))


@pytest.mark.parametrize(("vocabulary", "features", "name"), [(0, 3, "vocabulary"), (3, 0, "features")])
def test_sizes_below_one(vocabulary: int, features: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        embedding(vocabulary, features)


@pytest.mark.parametrize("padding", [-1, 5])
def test_a_padding_that_is_no_token(padding: int) -> None:
    message = f"Embedding's padding must be a token of the vocabulary, 0 to 4, not {padding}"
    with pytest.raises(ValueError, match=message):
        embedding(5, 3, padding=padding)
    with pytest.raises(ValueError, match=message):
        Embedding(torch.zeros(5, 3), padding=padding)
