"""What layers made of layers have in common: they free what was kept, know parts by their names, and say where an error is."""

from collections.abc import Callable
from typing import Final, NamedTuple

import pytest
import torch
from torch import Tensor

from fundl import (
    Add,
    Duplicate,
    Linear,
    Masked,
    Model,
    Multiply,
    Tanh,
    backward_input,
    backward_params,
    both,
    checkpoint,
    compose,
    decoder,
    decoder_block,
    embedding,
    ensemble,
    forward,
    from_masked,
    frozen,
    key,
    linear,
    mixed_precision,
    on_masked,
    over_time,
    parallel,
    pipe,
    repeat,
    residual,
    shared,
    split,
    tied,
    tree,
    vjp,
)
from fundl._common.running import Pass
from fundl.layer import AnyLayer
from tests.samples import normal, with_values
from tests.test_model import COPIES, HELD, Watched

# --- Memory ------------------------------------------------------------------------------------------------------------

W: Final = Watched()
FIRST, SECOND = with_values((linear(2, 2), linear(2, 2)))
X: Final = normal(3, 2)
SEQUENCES: Final = normal(3, 4, 2)
MASKED: Final = Masked(SEQUENCES, torch.ones(3, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (residual(FIRST, W, W, W), X),
        (residual(FIRST, residual(W, residual(W), W)), X),
        (checkpoint(FIRST, W, W, W), X),
        (parallel((FIRST, W), (FIRST, W, W)), X),
        (over_time(FIRST, W, W, W), SEQUENCES),
        (mixed_precision(FIRST, W, W, W, compute=torch.float32), X),
        (with_values(repeat(3, linear(2, 2), W)), X),
        (pipe(pipe(FIRST, W), pipe(W, W)), X),
        (compose(FIRST, Duplicate(), shared(W), Add(), W), X),
        (compose(Duplicate(), both((FIRST, W), (SECOND, W, W)), Add()), X),
        (compose(FIRST, frozen(W, W, W)), X),
        (with_values(tied(embedding(5, 2), W, W, W)), torch.tensor([0, 3])),
        (from_masked(FIRST, W, W, W), MASKED),
        (on_masked(FIRST, W, W, W), MASKED),
        (with_values(decoder_block(2, 1, norm=W)), (SEQUENCES, SEQUENCES)),
        (with_values(decoder(3, decoder_block(2, 1, feed_forward=W), Tanh())), (SEQUENCES, SEQUENCES)),
    ],
    ids=lambda part: type(part).__name__,
)
@pytest.mark.parametrize("run", [Pass[Model].backward, Pass[Model].backward_params], ids=["both halves", "parameters"])
def test_what_a_layer_inside_kept_is_freed_once_its_backward_has_run(
    run: Callable[[Pass[Model]], object], model: Model, x: object
) -> None:
    COPIES.clear()
    HELD.clear()
    ran = Pass(model, x)
    ran.grad = ran.output
    COPIES.reverse()  # of a checkpoint, those of the second forward are what counts
    run(ran)
    assert HELD == [3, 2, 1]
    assert all(copy() is None for copy in COPIES)


# --- Parts with names --------------------------------------------------------------------------------------------------


class Net(NamedTuple):
    """Two layers with names."""

    first: Linear
    second: Tanh


NET: Final = Net(FIRST, Tanh())


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (residual, X),
        (checkpoint, X),
        (parallel, X),
        (over_time, SEQUENCES),
        (mixed_precision, X),
        (frozen, X),
        (from_masked, MASKED),
        (on_masked, MASKED),
    ],
)
def test_parts_inside_keep_their_names(make: Callable[[Net], AnyLayer], x: Tensor | Masked) -> None:
    layer, plain = make(NET), make(tuple(NET))  # type: ignore[arg-type]  # a plain tuple is as good where it runs
    y, residuals = forward(layer, x)
    grads, grad_x = vjp(layer, x, y)
    found, expected = (getattr(of, of.children[0])[0] for of in (grads, vjp(plain, x, y)[0]))
    assert type(found) is Net
    assert tree.equal(found.first, expected[0])
    assert tree.equal(backward_params(layer, residuals, y), grads)
    assert tree.equal(backward_input(layer, residuals, y), grad_x)


def test_blocks_keep_the_names_of_their_parts() -> None:
    layer = with_values(repeat(3, Net(linear(2, 2), Tanh())))
    grads, _ = vjp(layer, X, X)
    (net,) = grads.stacked
    assert type(net) is Net
    assert net.first.weight.shape == (3, 2, 2)
    (block,) = layer.blocks[1]
    assert type(block) is Net
    assert torch.equal(block.first.weight, layer.stacked[0].first.weight[1])


def test_two_models_keep_the_names_of_their_parts() -> None:
    one, _ = vjp(pipe(Duplicate(), both(NET, NET._replace(first=SECOND)), Multiply()), X, X)
    assert type(one.layers[1].first) is type(one.layers[1].second) is Net
    grads, _ = vjp(pipe(Duplicate(), shared(NET), Multiply()), X, X)
    (net,) = grads.layers[1].layers
    assert type(net) is Net


def test_an_ensemble_keeps_the_names_of_the_parts() -> None:
    models = ensemble.initialize(split(key(0), 3), Net(linear(2, 2), Tanh()), dtype=torch.float64)
    grads, _ = vjp(models, normal(3, 5, 2), normal(3, 5, 2))
    assert type(grads.models) is Net
    assert grads.models.first.weight.shape == (3, 2, 2)
    assert type(ensemble.unstack(models)[0]) is Net


# --- Where an error is -------------------------------------------------------------------------------------------------

WRONG: Final = with_values(linear(3, 3))


@pytest.mark.parametrize(
    ("layer", "place"),
    [
        (residual(Tanh(), WRONG), ".layers[1]"),
        (residual(Tanh(), residual(Tanh(), WRONG)), ".layers[1].layers[1]"),
        (parallel(Tanh(), (Tanh(), WRONG)), ".branches[1][1]"),
        (pipe(Duplicate(), both(Tanh(), (Tanh(), WRONG)), Add()), ".layers[1].second[1]"),
        (pipe(Duplicate(), both(residual(WRONG), Tanh()), Add()), ".layers[1].first.layers[0]"),
        (pipe(Duplicate(), shared(Tanh(), WRONG), Add()), ".layers[1].layers[1]"),
        (repeat(2, residual(WRONG)), ".stacked[0].layers[0]"),
    ],
    ids=repr,
)
def test_an_error_inside_says_where_it_is(layer: AnyLayer, place: str) -> None:
    with pytest.raises(ValueError, match="Linear expects 3 features") as info:
        vjp(compose(Tanh(), layer), X, X)
    assert info.value.__notes__[-1].startswith(f"in model[1]{place}: Linear(")


def test_an_error_on_the_way_back_says_where_it_is() -> None:
    model = compose(Tanh(), pipe(Duplicate(), both(NET, (SECOND, Tanh())), Add()))
    _, residuals = forward(model, X)
    with pytest.raises(ValueError, match=r"Tanh cannot be run backward .* grad must be .* not float64\[3, 7\]") as info:
        backward_input(model, residuals, normal(3, 7))
    assert info.value.__notes__[-1].startswith("in model[1].layers[1].first.second: Tanh()")
