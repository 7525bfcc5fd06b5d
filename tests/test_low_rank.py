"""Adapters of low rank: what is trained and what is not, and back to a plain layer."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fundl import (
    Linear,
    LowRank,
    Tanh,
    adamw,
    apply,
    assert_trees_close,
    compose,
    ensemble,
    initialize,
    key,
    linear,
    load,
    low_rank,
    mse,
    normal,
    random,
    save,
    tree,
    value_and_grad,
    vjp,
)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return random.normal(key(seed), shape, dtype=torch.float64)


def trained(in_features: int = 6, out_features: int = 5, *, bias: bool = True) -> Linear:
    return initialize(key(0), linear(in_features, out_features, bias=bias, dtype=torch.float64))


def adapted(rank: int = 2, *, bias: bool = True, scale: float | None = None) -> LowRank:
    """An adapter whose change is not 0."""
    layer = initialize(key(1), low_rank(trained(bias=bias), rank, scale=scale))
    return tree.at(layer, lambda layer: layer.up).set(numbers(5, rank))


# --- At first, and in the end ------------------------------------------------------------------------------------------


def test_nothing_changes_at_first() -> None:
    layer, x = trained(), numbers(4, 6)
    adapter = initialize(key(1), low_rank(layer, 2))
    assert torch.equal(apply(adapter, x), apply(layer, x))
    assert adapter.weight is layer.weight
    assert adapter.bias is layer.bias
    assert adapter.down.all()
    assert not adapter.up.any()
    assert float(adapter.down.abs().max()) <= 6**-0.5


def test_the_initialiser_of_what_leads_down() -> None:
    adapter = initialize(key(1), low_rank(trained(400, 5), 100, down_init=normal(0.5)))
    assert abs(float(adapter.down.std()) - 0.5) < 0.01


def test_initialising_again_leaves_what_was_trained() -> None:
    model = compose(adapted(), Tanh())
    again = initialize(key(7), model)
    assert torch.equal(again[0].weight, model[0].weight)
    assert not torch.equal(again[0].down, model[0].down)
    assert not again[0].up.any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [None, 3.0])
def test_merged_it_is_a_plain_layer(bias: bool, scale: float | None) -> None:
    adapter, x = adapted(bias=bias, scale=scale), numbers(3, 4, 6, seed=2)
    merged = adapter.merged()
    assert isinstance(merged, Linear)
    assert merged.bias is adapter.bias
    torch.testing.assert_close(apply(merged, x), apply(adapter, x), rtol=1e-12, atol=1e-12)


def test_the_scale_is_divided_by_the_rank() -> None:
    layer = trained()
    change = adapted(rank=2, scale=3.0).merged().weight - layer.weight
    torch.testing.assert_close(change, 1.5 * (adapted().up @ adapted().down))
    assert low_rank(layer, 4).scale == 4  # a factor of 1


# --- Training ----------------------------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_plain_layer_seen_through_the_change() -> None:
    adapter, x, grad = adapted(scale=3.0), numbers(4, 6), numbers(4, 5, seed=1)
    grads, grad_x = vjp(adapter, x, grad)
    plain, expected = vjp(adapter.merged(), x, grad)
    torch.testing.assert_close(grad_x, expected)
    torch.testing.assert_close(grads.down, 1.5 * adapter.up.t() @ plain.weight)
    torch.testing.assert_close(grads.up, 1.5 * plain.weight @ adapter.down.t())
    assert grads.weight is adapter.weight  # a buffer
    assert grads.bias is adapter.bias


def test_only_the_change_is_trained() -> None:
    model = compose(adapted(), Tanh(), trained(5, 1))
    assert tree.count(model[0]) == 2 * (6 + 5)
    optimizer = adamw(0.01, weight_decay=0.1)
    state = optimizer.init(model)
    x, target = numbers(8, 6), numbers(8, 1, seed=1)
    before = model
    first, _ = value_and_grad(mse, model, x, target)
    for _ in range(5):
        _, grads = value_and_grad(mse, model, x, target)
        model, state = optimizer.step(grads, state, model)
    assert value_and_grad(mse, model, x, target)[0] < first
    assert torch.equal(model[0].weight, before[0].weight)
    assert model[0].bias is before[0].bias
    assert not torch.equal(model[0].down, before[0].down)
    assert not torch.equal(model[0].up, before[0].up)


def test_a_file_has_all_of_it(tmp_path: Path) -> None:
    model = compose(adapted(), Tanh())
    save(tmp_path / "model.safetensors", model)
    assert tree.equal(load(tmp_path / "model.safetensors", compose(low_rank(trained(), 2), Tanh())), model)


def test_many_adapters_at_once() -> None:
    layers = [adapted(), tree.map(lambda leaf: 2 * leaf, adapted())]
    x, grad = numbers(2, 4, 6), numbers(2, 4, 5, seed=1)
    grads, grad_x = vjp(ensemble.stack(layers), x, grad)
    for place, (layer, got) in enumerate(zip(layers, ensemble.unstack(grads), strict=True)):
        expected, expected_x = vjp(layer, x[place], grad[place])
        assert_trees_close((got.down, got.up), (expected.down, expected.up), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(grad_x[place], expected_x)


# --- What is refused ---------------------------------------------------------------------------------------------------


def test_other_layers() -> None:
    with pytest.raises(TypeError, match=r"low_rank adapts a Linear, not Tanh\(\)"):
        low_rank(Tanh(), 2)  # type: ignore[arg-type]  # that is the mistake


def test_a_rank_below_one() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1, not 0"):
        low_rank(trained(), 0)


@pytest.mark.parametrize("scale", [float("inf"), float("nan")])
def test_a_scale_that_is_not_finite(scale: float) -> None:
    with pytest.raises(ValueError, match=f"LowRank's scale must be a finite number, not {scale}"):
        low_rank(trained(), 2, scale=scale)


def test_a_layer_without_values() -> None:
    with pytest.raises(TypeError, match=r"model\[0\]\.weight has no values, and as a buffer it gets none here: make LowRank"):
        initialize(key(0), compose(low_rank(linear(6, 5), 2), Tanh()))


def test_input_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"LowRank expects 6 features, but the input's shape is \(4, 3\)"):
        adapted().forward(numbers(4, 3))
    with pytest.raises(TypeError, match=r"LowRank's weight is torch.float64, but the input is torch.float32"):
        apply(adapted(), torch.zeros(4, 6))
