"""Logits that are never there all at once: equal to the cross-entropy of all of them, in less memory."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Final, NamedTuple, TypedDict

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from fundl import (
    Deferred,
    DeferredLogits,
    Embedding,
    Linear,
    Reduction,
    ReLU,
    Tanh,
    adam,
    apply,
    assert_trees_close,
    chunked_cross_entropy,
    compose,
    cross_entropy,
    deferred,
    embedding,
    ensemble,
    evaluate,
    initialize,
    jit,
    key,
    language,
    layer_norm,
    linear,
    perplexity,
    residual,
    sgd,
    split,
    tied,
    train_state,
    train_step,
    tree,
    value_and_grad,
    weight_of,
)
from tests.donating import addresses, fresh
from tests.samples import normal


class Options(TypedDict, total=False):
    """Options that both losses have."""

    reduction: Reduction
    weight: Tensor
    label_smoothing: float
    ignore_index: int


FEATURES, WEIGHT, BIAS = normal(4, 3, 5), normal(7, 5), normal(7)
TARGET: Final = torch.tensor([[3, 0, 6], [2, 2, 1], [5, 4, 0], [1, 6, 6]])
OPTIONS: Final[Mapping[str, Options]] = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "batch_mean": {"reduction": "batch_mean"},
    "weights": {"weight": torch.rand(7, dtype=torch.float64)},
    "smooth": {"label_smoothing": 0.2, "weight": torch.rand(7, dtype=torch.float64)},
    "ignored": {"ignore_index": 6, "label_smoothing": 0.1},
    "all ignored": {"ignore_index": 9},
}


def by_all_logits(prediction: DeferredLogits, target: Tensor, options: Options) -> tuple[Tensor, DeferredLogits]:
    """The value and the gradients from all logits, by autograd."""
    leaves = [leaf.detach().requires_grad_() for leaf in tree.leaves(prediction)]
    bias = leaves[2] if prediction.bias is not None else None
    x = torch.nn.functional.linear(leaves[0], leaves[1], bias)
    value, grad = cross_entropy(x.detach(), target, axis=-1, **options)
    return value, tree.unflatten(tree.flatten(prediction)[1], _with_none(prediction, torch.autograd.grad(x, leaves, grad)))


def _with_none(prediction: DeferredLogits, grads: tuple[Tensor, ...]) -> list[Tensor | None]:
    return [*grads] if prediction.bias is not None else [*grads, None]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("chunk", [None, 1, 5, 12, 100])
@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "none"])
def test_equals_the_cross_entropy_of_all_logits(options: Options, chunk: int | None, bias: Tensor | None) -> None:
    target = torch.full_like(TARGET, 9) if options.get("ignore_index") == 9 else TARGET
    prediction = DeferredLogits(FEATURES, WEIGHT, bias)
    value, grad = chunked_cross_entropy(prediction, target, chunk=chunk, **options)
    expected, grads = by_all_logits(prediction, target, options)
    torch.testing.assert_close(value, expected, equal_nan=True)
    assert_trees_close(grad, grads, rtol=1e-9, atol=1e-12)
    weight = weight_of(partial(chunked_cross_entropy, **options), prediction, target)
    assert weight == weight_of(partial(cross_entropy, axis=-1, **options), prediction.values(), target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_of_every_dtype(dtype: torch.dtype) -> None:
    """Many rows in small chunks: what they add up, 16 bits would not hold."""
    h, w, target = normal(4000, 8), normal(5, 8) * 0.1, torch.arange(4000) % 5
    exact = chunked_cross_entropy(DeferredLogits(h, w, None), target)
    value, grad = chunked_cross_entropy(tree.cast_to(DeferredLogits(h, w, None), dtype), target, chunk=7)
    assert value.dtype == torch.float32
    assert {leaf.dtype for leaf in tree.leaves(grad)} == {dtype}
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert_trees_close(value.double(), exact[0], rtol=tolerance, atol=0)
    assert_trees_close(tree.cast_to(grad.weight, torch.float64), exact[1].weight, rtol=tolerance, atol=tolerance * 1e-2)


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it without types
    """Watches how many numbers the largest tensor has that is computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.count = 0

    @override
    def __torch_dispatch__(
        self, func: object, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))  # type: ignore[operator]  # it is one
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.count = max([self.count, *sizes])
        return result


def test_all_logits_are_never_there() -> None:
    rows, classes, features = 200, 1000, 8
    model = initialize(key(0), compose(embedding(classes, features), linear(features, classes)))
    tokens = torch.arange(rows).reshape(10, 20)
    with Largest() as whole:
        value_and_grad(partial(cross_entropy, axis=-1), model, tokens, tokens)
    with Largest() as parts:
        value_and_grad(partial(chunked_cross_entropy, chunk=16), deferred(*model), tokens, tokens)
    assert whole.count == rows * classes
    assert parts.count == 16 * classes


class Named(NamedTuple):
    """A model with named parts."""

    reads: Embedding
    tells: tuple[Tanh, Linear]


def test_a_deferred_model_has_the_gradients_of_the_model() -> None:
    tokens = torch.tensor([[3, 0, 6], [2, 2, 1]])
    network = residual(layer_norm(5), linear(5, 5), ReLU())
    for shapes in (
        compose(embedding(7, 5), network, linear(5, 7)),
        compose(tied(embedding(7, 5), network)),
        compose(embedding(7, 5), (network, (Tanh(), linear(5, 7, bias=False)))),
    ):
        model = tree.cast_to(initialize(key(0), shapes), torch.float64)
        value, grads = value_and_grad(partial(cross_entropy, axis=-1), model, tokens, tokens)
        own_value, own = value_and_grad(partial(chunked_cross_entropy, chunk=4), deferred(*model), tokens, tokens)
        assert_trees_close((own_value, own.layers), (value, grads), rtol=1e-9, atol=1e-12)
        assert_trees_close(apply(deferred(*model), tokens).values(), apply(model, tokens), rtol=1e-12, atol=1e-12)
    named = initialize(key(0), Named(embedding(7, 5), (Tanh(), linear(5, 7))))
    _, of_named = value_and_grad(chunked_cross_entropy, deferred(named), tokens, tokens)
    assert type(of_named.layers[0]) is Named


def test_training_is_the_same_compiled_and_in_an_ensemble() -> None:
    tokens = torch.arange(12).reshape(3, 4) % 7
    model = compose(tied(embedding(7, 5), linear(5, 5), Tanh()))
    optimizer = adam(0.01)
    whole = train_step(partial(cross_entropy, axis=-1), optimizer)
    parts = train_step(partial(chunked_cross_entropy, chunk=5), optimizer)
    state = train_state(key(1), initialize(key(0), model), optimizer)
    own = train_state(key(1), deferred(*state.model), optimizer)
    compiled, other = jit(parts), own
    for _ in range(3):
        state, _ = whole(state, (tokens, tokens))
        own, _ = parts(own, (tokens, tokens))
        other, _ = compiled(other, (tokens, tokens))
    losses = [step(before, (tokens, tokens))[1].loss for step, before in ((parts, own), (compiled, other))]
    _, report = whole(state, (tokens, tokens))
    assert_trees_close(own.model.layers, state.model, rtol=1e-5, atol=1e-6)
    assert_trees_close(other.model, own.model, rtol=1e-5, atol=1e-6)
    assert_trees_close(losses, [report.loss, report.loss], rtol=1e-5, atol=1e-6)
    models, (data,) = ensemble.initialize(split(key(0), 2), deferred(*model)), ensemble.share((tokens,), 2)
    runs = ensemble.train_state(split(key(1), 2), models, sgd(0.1))
    _, report_runs = ensemble.train_step(partial(chunked_cross_entropy, chunk=5), sgd(0.1))(runs, (data, data))
    assert report_runs.loss.shape == (2,)


@pytest.mark.parametrize("is_tied", [False, True])
def test_donated_steps_write_over_the_map_and_report_what_it_was(is_tied: bool) -> None:
    tokens, optimizer = torch.arange(12).reshape(3, 4) % 7, adam(0.01)
    shape = deferred(tied(embedding(7, 5), Tanh())) if is_tied else deferred(embedding(7, 5), Tanh(), linear(5, 7))
    pure, donating = (train_step(chunked_cross_entropy, optimizer, donate=donate) for donate in (False, True))
    expected, state = (fresh(optimizer, initialize(key(0), shape)) for _ in range(2))
    places = addresses(state)
    for _ in range(3):
        expected, report_expected = pure(expected, (tokens, tokens))
        state, report = donating(state, (tokens, tokens))
        assert addresses(state) == places
        assert tree.equal(report, report_expected)
        assert tree.equal(state.model, expected.model)


def test_evaluation_and_perplexity() -> None:
    tokens = torch.arange(12).reshape(3, 4) % 7
    model = initialize(key(0), compose(embedding(7, 5), linear(5, 7)))
    whole = evaluate(partial(cross_entropy, axis=-1), model, [(tokens, tokens)])
    parts = evaluate(chunked_cross_entropy, deferred(*model), [(tokens, tokens)], metrics={"perplexity": perplexity})
    assert math.isclose(whole.loss, parts.loss, rel_tol=1e-5)
    assert math.isclose(parts.metrics["perplexity"], math.exp(whole.loss), rel_tol=1e-5)
    logits = apply(model, tokens)
    torch.testing.assert_close(perplexity(logits, tokens, axis=-1), torch.tensor(math.exp(whole.loss)))
    left_out = tokens.masked_fill(tokens > 3, -100)
    expected = cross_entropy(logits[tokens <= 3], tokens[tokens <= 3])[0].exp()
    torch.testing.assert_close(perplexity(logits, left_out, axis=-1), expected)
    assert weight_of(partial(perplexity, axis=-1), logits, left_out) == int((tokens <= 3).sum())


def test_what_is_refused() -> None:
    prediction = DeferredLogits(FEATURES, WEIGHT, BIAS)
    with pytest.raises(
        TypeError, match=r"a model gives that is deferred\(...\), .* not float64\[2, 3\]: .* take cross_entropy"
    ):
        chunked_cross_entropy(torch.ones(2, 3, dtype=torch.float64), TARGET)  # type: ignore[arg-type]  # the error under test
    with pytest.raises(
        TypeError, match=r"the target of chunked_cross_entropy is of class indices, integers, not torch.float32"
    ):
        chunked_cross_entropy(prediction, TARGET.float())
    with pytest.raises(ValueError, match=r"class indices must have the shape \(4, 3\), not \(12,\)"):
        chunked_cross_entropy(prediction, TARGET.flatten())
    with pytest.raises(ValueError, match=r"chunk, how many rows of logits .* at least 1, not 0"):
        chunked_cross_entropy(prediction, TARGET, chunk=0)
    with pytest.raises(IndexError, match="a class index is 7, but there are 7 classes"):
        chunked_cross_entropy(prediction, TARGET + 1)
    with pytest.raises(ValueError, match="there is nothing to average: the batch is empty"):
        chunked_cross_entropy(DeferredLogits(FEATURES[:0], WEIGHT, BIAS), TARGET[:0])
    value, grad = chunked_cross_entropy(DeferredLogits(FEATURES[:0], WEIGHT, BIAS), TARGET[:0], reduction="sum")
    assert value == 0
    assert not grad.weight.any()
    with pytest.raises(TypeError, match=r"whose last layer is a Linear or a Tied, not Tanh\(\)"):
        deferred(linear(2, 3), Tanh())
    model = initialize(key(0), deferred(embedding(7, 5), linear(5, 7)))
    with pytest.raises(TypeError, match=r"a deferred model gives no logits: step its layers"):
        language.prefill(model, TARGET, 5)
    assert isinstance(model, Deferred)
