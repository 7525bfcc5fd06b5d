"""A NamedTuple of layers is a model with named parts: whatever is done with it, the names stay."""

from pathlib import Path
from typing import NamedTuple, assert_type

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from fundl import (
    Frozen,
    Linear,
    ReLU,
    Tanh,
    adam,
    apply,
    backward,
    backward_params,
    calibrate,
    checkpoint,
    compose,
    ensemble,
    forward,
    frozen,
    initialize,
    jit,
    key,
    linear,
    load,
    mse,
    random,
    rekey,
    save,
    summary,
    train_state,
    train_step,
    tree,
    value_and_grad,
    vjp,
)
from fundl.interop import torch_nn
from fundl.shapes import Misfit


class Encoder(NamedTuple):
    widen: Linear
    bend: Tanh
    narrow: Linear


class Autoencoder(NamedTuple):
    encoder: Encoder
    decoder: tuple[Linear, Tanh]


def shape_only() -> Autoencoder:
    return Autoencoder(Encoder(linear(4, 8), Tanh(), linear(8, 2)), compose(linear(2, 4), Tanh()))


MODEL = initialize(key(0), shape_only())
X = random.normal(key(1), (5, 4))
PLAIN = ((MODEL.encoder.widen, MODEL.encoder.bend, MODEL.encoder.narrow), MODEL.decoder)
"""The same without names."""

PATHS = [f".{place}.{part}" for place in ("encoder.widen", "encoder.narrow", "decoder[0]") for part in ("weight", "bias")]


def test_it_computes_what_the_tuple_computes() -> None:
    assert isinstance(MODEL, Autoencoder)
    assert isinstance(MODEL.encoder, Encoder)
    assert torch.equal(apply(MODEL, X), apply(PLAIN, X))


def test_its_gradient_has_its_names() -> None:
    value, grads = value_and_grad(mse, MODEL, X, X)
    assert_type(grads, Autoencoder)
    assert_type(grads.encoder.narrow.weight, Tensor)
    plain_value, plain = value_and_grad(mse, PLAIN, X, X)
    assert torch.equal(value, plain_value)
    assert tree.equal(grads.encoder.narrow, plain[0][2])
    assert tree.equal(grads.decoder, plain[1])


def test_each_way_back_keeps_the_names() -> None:
    output, residuals = forward(MODEL, X)
    both, grad_x = vjp(MODEL, X, X)
    assert_type(both.encoder, Encoder)
    again, _ = backward(MODEL, residuals, X)
    params = backward_params(MODEL, forward(MODEL, X)[1], X)
    assert output.shape == grad_x.shape == X.shape
    assert tree.equal(both, again)
    assert tree.equal(both, params)


def test_composed_into_a_larger_model() -> None:
    larger = compose(linear(3, 4), MODEL, ReLU())
    model = initialize(key(2), larger)
    grads, _ = vjp(model, torch.ones(5, 3), torch.ones(5, 4))
    assert isinstance(grads[1], Autoencoder)
    assert grads[1].encoder.widen.weight.shape == (8, 4)


def test_a_model_whose_first_parts_are_frozen() -> None:
    class Tuned(NamedTuple):
        body: Frozen
        head: Linear

    model = Tuned(frozen(*MODEL.encoder), initialize(key(3), linear(2, 1)))
    _, grads = value_and_grad(mse, model, X, torch.zeros(5, 1))
    assert_type(grads, Tuned)
    assert isinstance(grads, Tuned)
    assert tree.equal(grads.body, model.body)
    assert grads.head.weight.abs().sum() > 0


def test_places_have_names() -> None:
    doubled = tree.at(MODEL, lambda model: model.encoder.narrow.weight).apply(lambda weight: 2 * weight)
    assert_type(doubled, Autoencoder)
    assert torch.equal(doubled.encoder.narrow.weight, 2 * MODEL.encoder.narrow.weight)
    assert doubled.decoder is MODEL.decoder
    replaced = tree.at(MODEL, lambda model: model.encoder).set(doubled.encoder)
    assert isinstance(replaced, Autoencoder)
    assert replaced.encoder is doubled.encoder
    by_index = tree.at(MODEL, lambda model: model[1][0].weight).apply(torch.neg)
    assert isinstance(by_index, Autoencoder)
    assert torch.equal(by_index.decoder[0].weight, -MODEL.decoder[0].weight)
    with pytest.raises(AttributeError, match="head"):
        tree.at(MODEL, lambda model: model.head).set(ReLU())  # type: ignore[attr-defined]  # there is none


def test_leaves_are_at_named_paths() -> None:
    assert tree.paths(MODEL) == tree.trainable_paths(MODEL) == PATHS


def test_trees_made_of_it_are_named() -> None:
    for made in (
        tree.map(torch.neg, MODEL),
        tree.map_records(lambda record: record, MODEL),
        tree.with_trainable_leaves(MODEL, tree.trainable_leaves(MODEL)),
        tree.cast_to(MODEL, torch.float64),
        tree.unstack(tree.stack([MODEL, MODEL]), 2)[1],
        rekey(MODEL, key(0)),
        calibrate(MODEL, [X]),
    ):
        assert_type(made, Autoencoder)
        assert isinstance(made, Autoencoder)
        assert isinstance(made.encoder, Encoder)


def test_other_structures_are_told_by_name() -> None:
    other = Autoencoder(MODEL.encoder._replace(narrow=Linear(torch.ones(2, 8), None)), MODEL.decoder)
    with pytest.raises(TypeError, match="some of the trees have a tensor and others None"):
        tree.map(torch.add, MODEL, other)
    with pytest.raises(TypeError, match=r"a has a leaf at \.encoder\.widen\.weight that b lacks"):
        tree.require_same_structure(MODEL, PLAIN, names=("a", "b"))


def test_saved_and_loaded_by_name(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", MODEL)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == sorted(PATHS)
    loaded = load(tmp_path / "model.safetensors", shape_only())
    assert_type(loaded, Autoencoder)
    assert isinstance(loaded.encoder, Encoder)
    assert tree.equal(loaded, MODEL)
    with pytest.raises(ValueError, match=r"at \.encoder\.widen\.weight, the file has float32\[8, 4\], and like has nothing"):
        load(tmp_path / "model.safetensors", PLAIN)


def test_what_does_not_fit_is_told_by_name() -> None:
    narrow = MODEL.encoder._replace(narrow=linear(8, 3))
    with pytest.raises(
        Misfit, match=r"^layer decoder\.1 \(Linear\) expects 2 features but layer encoder\.narrow \(Linear\) gives 3"
    ):
        initialize(key(0), MODEL._replace(encoder=narrow))
    with pytest.raises(Misfit, match=r"^layer 2\.decoder\.1 \(Linear\) expects 2 features but layer 2\.encoder\.narrow"):
        compose(ReLU(), MODEL._replace(encoder=narrow))
    with pytest.raises(TypeError, match=r"^layer encoder\.bend is the class Tanh, not a layer: write Tanh\(\.\.\.\)"):
        initialize(key(0), MODEL._replace(encoder=MODEL.encoder._replace(bend=Tanh)))  # type: ignore[arg-type]  # the mistake
    with pytest.raises(ValueError, match="expects 4 features") as raised:
        apply(MODEL, torch.zeros(5, 3))
    assert raised.value.__notes__[-1].startswith("in model.encoder.widen: Linear(")


def test_a_summary_has_the_names() -> None:
    rows = summary(MODEL, (5, 4)).rows
    assert [row.place for row in rows] == [".encoder.widen", ".encoder.bend", ".encoder.narrow", ".decoder[0]", ".decoder[1]"]
    inside = summary(checkpoint(MODEL), (5, 4)).rows
    assert inside[1].place.endswith(".encoder.widen")
    assert sum(row.parameters for row in inside) == sum(row.parameters for row in rows) == tree.count(MODEL)


def test_it_prints_with_its_names() -> None:
    assert tree.describe(MODEL.encoder) == (
        "Encoder(widen=Linear(weight=float32[8, 4], bias=float32[8]), bend=Tanh(),"
        " narrow=Linear(weight=float32[2, 8], bias=float32[2]))"
    )


def test_its_module_has_the_names() -> None:
    module = torch_nn.to_torch(MODEL)
    assert isinstance(module, nn.Sequential)
    assert [*module.state_dict()] == [
        f"{place}.{part}" for place in ("encoder.widen", "encoder.narrow", "decoder.0") for part in ("weight", "bias")
    ]
    torch.testing.assert_close(module(X), apply(MODEL, X))
    assert tree.equal(torch_nn.from_torch(module), PLAIN)


@pytest.mark.usefixtures("interpreted")
def test_trained_donated_and_compiled() -> None:
    optimizer = adam(0.01)
    step = train_step(mse, optimizer)
    compiled = jit(step, donate="state")
    expected = train_state(key(0), MODEL, optimizer)
    state = train_state(key(0), tree.map(torch.clone, MODEL), optimizer)
    for _ in range(3):
        expected, _ = step(expected, (X, X))
        state, _ = compiled(state, (X, X))
    assert_type(state.model, Autoencoder)
    assert isinstance(state.model, Autoencoder)
    assert isinstance(state.model.encoder, Encoder)
    torch.testing.assert_close(tree.leaves(state.model), tree.leaves(expected.model))


def test_a_run_goes_on_from_a_file(tmp_path: Path) -> None:
    optimizer = adam(0.01)
    step = train_step(mse, optimizer)
    state, _ = step(train_state(key(0), MODEL, optimizer), (X, X))
    save(tmp_path / "run.safetensors", state)
    again = load(tmp_path / "run.safetensors", train_state(key(0), MODEL, optimizer))
    assert_type(again.model, Autoencoder)
    assert tree.equal(step(again, (X, X))[0], step(state, (X, X))[0])


def test_an_ensemble_of_them() -> None:
    keys = random.split(key(5), 3)
    models = ensemble.initialize(keys, shape_only())
    singles = ensemble.unstack(models)
    assert all(isinstance(single, Autoencoder) for single in singles)
    assert tree.equal(singles[1], initialize(keys[1], shape_only()))
