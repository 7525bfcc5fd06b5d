"""Changes of low rank to the weights of any layer: nothing at first, trained alone, kept alone, merged, stepped."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fundl import (
    Adapted,
    Conv2d,
    Embedding,
    Model,
    SelfAttention,
    Tanh,
    adamw,
    adapted,
    apply,
    assert_trees_close,
    compose,
    conv2d,
    cross_entropy,
    embedding,
    ensemble,
    frozen,
    initialize,
    key,
    language,
    linear,
    load,
    low_rank,
    lstm,
    save,
    self_attention,
    split,
    thaw,
    transformer_block,
    tree,
    value_and_grad,
    vjp,
)

TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 1]])


def changes(path: str, _leaf: Tensor) -> bool:
    """What of a model is saved alone."""
    return ".changes" in path or path.endswith((".down", ".up"))


def trained() -> Model:
    block = transformer_block(16, 4, causal=True, rotary=100.0)
    return initialize(key(0), compose(embedding(10, 16), *block, linear(16, 10)))


def with_adapters(model: Model, *, drawn: bool = True) -> Model:
    """Adapters for embeddings, attention and linear layers; all else stays as it is, and is not trained."""

    def adapters(record: tree.Record) -> tree.Record:
        if isinstance(record, SelfAttention | Embedding):
            return adapted(record, 2)
        return low_rank(record, 2, scale=3.0) if type(record).__name__ == "Linear" else record  # type: ignore[arg-type]  # it is one

    made = initialize(key(1), tree.map_records(adapters, model))
    if not drawn:
        return made
    return tree.with_trainable_leaves(made, [leaf + 0.1 for leaf in tree.trainable_leaves(made)])


def test_nothing_changes_at_first() -> None:
    for layer, x in (
        (self_attention(8, 2), torch.randn(2, 3, 8)),
        (embedding(10, 8), TOKENS),
        (conv2d(2, 4, 3), torch.randn(2, 2, 5, 5)),
    ):
        values = initialize(key(0), layer)
        adapter = initialize(key(1), adapted(values, 2))
        assert torch.equal(apply(adapter, x), apply(values, x))
        assert tree.equal(adapter.layer, values)
        assert tree.equal(adapter.merged(), values)


def test_merged_it_is_a_plain_layer() -> None:
    layer = initialize(key(0), conv2d(2, 4, 3))
    adapter = with_values(initialize(key(1), adapted(layer, 3, scale=2.0)))
    merged, x = adapter.merged(), torch.randn(2, 2, 5, 5)
    assert type(merged) is Conv2d
    assert_trees_close(apply(merged, x), apply(adapter, x), rtol=1e-6, atol=1e-6)
    expected = adapter.layer.weight + (adapter.changes[0].up @ adapter.changes[0].down).reshape(layer.weight.shape) * 2 / 3
    torch.testing.assert_close(merged.weight, expected)


def with_values(adapter: Adapted[Conv2d]) -> Adapted[Conv2d]:
    return tree.map(lambda leaf: leaf + 0.1, adapter)


def test_only_changes_are_trained_and_kept_alone(tmp_path: Path) -> None:
    base = trained()
    model = with_adapters(base, drawn=False)
    optimizer = adamw(0.05, weight_decay=0.1)
    state = optimizer.init(model)

    def loss(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy(prediction, target, axis=-1)

    first, grads = value_and_grad(loss, model, TOKENS, TOKENS)
    for _ in range(10):
        model, state = optimizer.step(grads, state, model)
        _, grads = value_and_grad(loss, model, TOKENS, TOKENS)
    assert value_and_grad(loss, model, TOKENS, TOKENS)[0] < first / 2
    adapters = [record for record in tree.records(model) if isinstance(record, Adapted)]
    assert [type(record.layer) for record in adapters] == [Embedding, SelfAttention]
    save(tmp_path / "adapters", model, where=changes)
    assert (tmp_path / "adapters").stat().st_size < 40_000
    again = load(tmp_path / "adapters", with_adapters(base, drawn=False), where=changes)
    kept, found = (
        [
            leaf
            for path, leaf in zip(tree.paths(one), tree.flatten(one)[0], strict=True)
            if leaf is not None and changes(path, leaf)
        ]
        for one in (model, again)
    )
    assert len(kept) == 2 * (1 + 2 + 3)  # of an embedding, of attention, of three linear layers
    assert tree.equal(kept, found)


def test_a_model_with_adapters_is_stepped() -> None:
    model = with_adapters(trained())
    y, cache = language.prefill(model, TOKENS[:, :2], 4)
    rest, _ = language.step(model, TOKENS[:, 2:], cache)
    assert_trees_close(torch.cat((y, rest), 1), apply(model, TOKENS), rtol=1e-5, atol=1e-5)


def test_all_of_a_model_merged() -> None:
    model = with_adapters(trained())

    def plain(record: tree.Record) -> tree.Record:
        merged: object = getattr(record, "merged", lambda: record)()
        assert isinstance(merged, tree.Record)
        return merged

    merged = tree.map_records(plain, model)
    assert tree.flatten(merged)[1] == tree.flatten(trained())[1]
    assert_trees_close(apply(merged, TOKENS), apply(model, TOKENS), rtol=1e-5, atol=1e-5)


def test_many_adapters_at_once() -> None:
    layer = initialize(key(0), self_attention(8, 2))
    runs = [initialize(own, adapted(layer, 2)) for own in split(key(1), 2)]
    runs = [tree.with_trainable_leaves(run, [leaf + 0.1 for leaf in tree.trainable_leaves(run)]) for run in runs]
    x, grad = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 8)
    grads, grad_x = vjp(ensemble.stack(runs), x, grad)
    for place, (run, own) in enumerate(zip(runs, ensemble.unstack(grads), strict=True)):
        expected, expected_x = vjp(run, x[place], grad[place])
        assert_trees_close(own.changes, expected.changes, rtol=1e-4, atol=1e-5)
        assert_trees_close(grad_x[place], expected_x, rtol=1e-4, atol=1e-5)


def test_what_is_refused() -> None:
    layer = initialize(key(0), linear(2, 3))
    with pytest.raises(TypeError, match=r"adapted changes weights of two or more axes, which Tanh\(\) has not"):
        adapted(Tanh(), 2)
    with pytest.raises(TypeError, match="adapted changes weights of two or more axes, which LSTM"):
        adapted(initialize(key(0), lstm(2, 3)), 2)
    with pytest.raises(TypeError, match=r"bias is to be a weight of two or more axes, which Linear\(.* has not"):
        adapted(layer, 2, names=["bias"])
    with pytest.raises(ValueError, match="rank must be at least 1, not 0"):
        adapted(layer, 0)
    with pytest.raises(ValueError, match="Adapted's scale must be a finite number, not inf"):
        adapted(layer, 2, scale=float("inf"))
    with pytest.raises(TypeError, match="adapted is around one layer, not a tuple of layers"):
        adapted(compose(layer, Tanh()), 2)  # type: ignore[type-var]  # the error under test
    assert thaw(frozen(layer)) == (layer,)
