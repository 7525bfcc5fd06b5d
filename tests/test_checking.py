"""Where a NaN or an infinity arises: in which layer, forward or backward, and in which field."""

import functools
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, Self

import attrs
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fundl import (
    AnyTransform,
    Dropout,
    Layer,
    Linear,
    Model,
    ReLU,
    accumulate,
    adam,
    batch_norm,
    check_finite,
    compose,
    dynamic_loss_scale,
    ensemble,
    fit,
    fold_in,
    initialize,
    key,
    last_good,
    linear,
    minibatches,
    mixed_precision,
    mse,
    parallel,
    random,
    repeat,
    residual,
    sgd,
    split,
    train_state,
    train_step,
    tree,
)

X, TARGET = torch.ones(3, 2), torch.zeros(3, 2)


def model() -> tuple[Linear[int, int], ReLU, Linear[int, int]]:
    return initialize(key(0), compose(linear(2, 4), ReLU(), linear(4, 2)))


@attrs.frozen(eq=False)
class Root(Layer[Tensor]):
    """The square root of the distance from 0, whose gradient is infinite there."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.abs().sqrt(), x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad * residuals.sign() / (2 * residuals.abs().sqrt())


@attrs.frozen(eq=False)
class Held(Layer[Tensor]):
    """A user's layer of a layer, which it calls by itself."""

    inner: Linear[int, int]

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner.forward(x)

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        grads, grad_x = self.inner.backward(residuals, grad)
        return attrs.evolve(self, inner=grads), grad_x


def test_what_is_finite_is_fine() -> None:
    before = sys.getprofile()
    check_finite(model(), X, TARGET, mse)
    check_finite(model(), torch.zeros(0, 2), torch.zeros(0, 2), functools.partial(mse, reduction="sum"))
    check_finite(initialize(key(0), compose(linear(2, 2), batch_norm(2))), torch.randn(5, 2), torch.zeros(5, 2), mse)
    assert sys.getprofile() is before


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_given_is_looked_at_first(bad: float) -> None:
    x, target = X.clone(), TARGET.clone()
    x[1, 0] = target[0, 1] = bad
    with pytest.raises(FloatingPointError, match=rf"^x is {bad} \(1 of 6 numbers\) before anything is computed"):
        check_finite(model(), x, TARGET, mse)
    with pytest.raises(FloatingPointError, match=rf"^the target is {bad} \(1 of 6 numbers\)"):
        check_finite(model(), X, target, mse)
    broken = tree.at(model(), lambda one: one[2].weight).set(torch.full((2, 4), bad))
    with pytest.raises(FloatingPointError, match=rf"^model\[2\]\.weight is {bad} \(8 of 8 numbers\)"):
        check_finite(broken, X, TARGET, mse)


LINEAR = r"Linear\(weight=\w+\[4, 4\], bias=\w+\[4\]\)"
NESTED: dict[str, tuple[Model, float, str]] = {
    "residual": (residual(linear(4, 4), ReLU()), 1e20, rf"^forward of model\[1\]\.layers\[0\], {LINEAR}: its output is"),
    "parallel": (
        parallel(ReLU(), linear(4, 4)),
        1e20,
        rf"^forward of model\[1\]\.branches\[1\], {LINEAR}: its output is",
    ),
    "repeat": (repeat(3, (linear(4, 4), ReLU())), 1e20, rf"^forward of model\[1\]\.stacked\[0\]\[0\], {LINEAR}: its output is"),
    "a user's": (Held(linear(4, 4)), 1e20, rf"^forward of model\[1\](\.inner)?, {LINEAR}: its output is"),
    "half": (
        mixed_precision(linear(4, 4), compute=torch.float16),
        1e6,
        rf"^forward of model\[1\]\.layers\[0\], {LINEAR}: its weight is inf \(\d+ of 16 numbers; float16 ends",
    ),
}


@pytest.mark.parametrize("name", NESTED)
def test_layers_inside_of_others_are_named(name: str) -> None:
    middle, factor, text = NESTED[name]
    layers: Model = initialize(key(0), (linear(2, 4), middle, linear(4, 2)))
    check_finite(layers, X, TARGET, mse)
    with pytest.raises(FloatingPointError, match=text):
        check_finite(tree.map(lambda leaf: leaf * factor, layers), X, TARGET, mse)


def test_half_precision_overflows() -> None:
    half = initialize(key(0), mixed_precision(linear(2, 4), linear(4, 2), compute=torch.float16))
    with pytest.raises(
        FloatingPointError, match=r"layers\[0\], .* its input is inf \(6 of 6 numbers; float16 ends at 65504\), as"
    ):
        check_finite(half, X * 1e5, TARGET, mse)
    ones = tree.map(torch.ones_like, half)
    with pytest.raises(FloatingPointError, match=r"layers\[1\], .* its output is inf \(6 of 6 numbers; float16 ends at 65504"):
        check_finite(ones, X * 1e4, TARGET, mse)


def steep(prediction: Tensor, _target: Tensor) -> tuple[Tensor, Tensor]:
    """A loss that is the largest number, with gradients that are large."""
    return prediction.amax(), torch.full_like(prediction, 1e20)


def test_what_arises_backward() -> None:
    at_zero = compose(Linear(torch.eye(2), bias=None), Root(), Linear(torch.eye(2), bias=None))
    with pytest.raises(
        FloatingPointError, match=r"^backward of model\[1\], Root\(\): the gradient with respect to its input is"
    ):
        check_finite(at_zero, torch.zeros(3, 2), TARGET - 1, mse)
    first = compose(Root(), Linear(torch.eye(2), bias=None))
    check_finite(first, torch.zeros(3, 2), TARGET, mse)  # nobody needs the gradient of x
    large = compose(Linear(torch.eye(2) * 1e-30, bias=None), ReLU())
    check_finite(large, X, TARGET, steep)
    with pytest.raises(FloatingPointError, match=r"^backward_params of model\[0\], .*: the gradient of weight is inf"):
        check_finite(large, X * 1e30, TARGET, steep)


def test_a_loss_that_divides_by_zero() -> None:
    def by_zero(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = mse(prediction, target)
        return value / target.sum(), grad

    def infinite(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = mse(prediction, target)
        return value, grad / target.sum()

    with pytest.raises(FloatingPointError, match=r"^by_zero: the loss is inf .*, of a prediction that is finite, from -?\d"):
        check_finite(model(), X, TARGET, by_zero)
    with pytest.raises(FloatingPointError, match=r"^infinite: the gradient with respect to the prediction is (inf|-inf|nan)"):
        check_finite(model(), X, TARGET, infinite)


def test_stochastic_layers_draw_as_in_a_step() -> None:
    layers = compose(Linear(torch.eye(2) * 3e38, bias=None), Dropout(0.5))
    with pytest.raises(FloatingPointError, match=r"^forward of model\[1\], Dropout\(rate=0.5.*: its output is inf"):
        check_finite(layers, X, TARGET, steep, key=key(3))
    check_finite(layers, X, TARGET, steep)


def test_of_a_state_it_looks_at_the_next_step() -> None:
    layers = compose(Linear(torch.eye(2) * 3e38, bias=None), Dropout(0.5))
    state = train_state(key(3), layers, sgd(0.0))
    at_three = attrs.evolve(state, step=torch.tensor(3))
    for one in (state, at_three):
        drawn = fold_in(one.key, one.step)
        with pytest.raises(
            FloatingPointError, match=r"^forward of model\[1\], Dropout\(rate=0.5.*: its output is inf"
        ) as by_key:
            check_finite(layers, X, TARGET, steep, key=drawn)
        with pytest.raises(FloatingPointError) as by_state:
            check_finite(one, X, TARGET, steep)
        assert str(by_state.value) == str(by_key.value)


@pytest.mark.parametrize("around", [lambda one: one, lambda one: accumulate(one, 2)], ids=["alone", "inside"])
def test_a_gradient_that_overflows_by_its_scale_alone_is_told(around: Callable[[AnyTransform], AnyTransform]) -> None:
    optimizer = around(dynamic_loss_scale(sgd(0.1)))
    half = tree.cast_to(model(), torch.float16)
    x, target = tree.cast_to((X, TARGET - 8), torch.float16)
    check_finite(half, x, target, mse)
    check_finite(train_state(key(1), half, around(dynamic_loss_scale(sgd(0.1), initial=2.0))), x, target, mse)
    with pytest.raises(
        FloatingPointError, match=r"^mse: the gradient .* ends at 65504\).* Only the scale .*, 65536, makes it so"
    ):
        check_finite(train_state(key(1), half, optimizer), x, target, mse)
    layers = initialize(key(0), mixed_precision(linear(2, 4), linear(4, 2), compute=torch.float16))
    with pytest.raises(
        FloatingPointError, match=r"^backward.* of model.*layers\[1\], .* Only the scale .*, 65536, makes it so"
    ):
        check_finite(train_state(key(1), layers, optimizer), X, TARGET - 8, mse)
    with pytest.raises(FloatingPointError, match=r"^x is nan") as caught:
        check_finite(train_state(key(1), layers, optimizer), X * math.nan, TARGET, mse)
    assert "Only the scale" not in str(caught.value)


def test_the_runs_of_an_ensemble_are_looked_at_one_by_one() -> None:
    models = ensemble.stack([model(), tree.map(lambda leaf: leaf * 1e30, model())])
    x, target = ensemble.share((X, TARGET), 2)
    check_finite(ensemble.stack([model(), model()]), x, target, mse)
    with pytest.raises(
        FloatingPointError, match=r"^run 1: forward of model\[2\], Linear\(weight=float32\[2, 4\], .*: its output"
    ):
        check_finite(models, x, target, mse)
    bad = torch.stack([X, X * math.inf])
    with pytest.raises(FloatingPointError, match=r"^run 1: x is inf"):
        check_finite(ensemble.stack([model(), model()]), bad, target, mse)
    scaling = dynamic_loss_scale(sgd(0.1))
    half = ensemble.stack([tree.cast_to(model(), torch.float16)] * 2)
    state = ensemble.train_state(split(key(1), 2), half, scaling)
    with pytest.raises(FloatingPointError, match=r"^run 0: mse: the gradient .* Only the scale of dynamic_loss_scale, 65536"):
        check_finite(state, *tree.cast_to((x, target - 8), torch.float16), mse)
    dropping = ensemble.stack([(Linear(torch.eye(2) * 3e38, bias=None), Dropout(0.5))] * 2)
    drawing = ensemble.train_state(split(key(1), 2), dropping, sgd(0.1))
    with pytest.raises(FloatingPointError, match=r"^run 0: forward of model\[1\], Dropout"):
        check_finite(drawing, x, target, steep)
    with pytest.raises(ValueError, match="the ensemble has 2 runs, but x is of 3"):
        check_finite(models, X, TARGET, mse)


def test_other_errors_are_what_they_are() -> None:
    before = sys.getprofile()
    with pytest.raises(ValueError, match="Linear expects 2 features"):
        check_finite(model(), torch.ones(3, 5), TARGET, mse)
    with pytest.raises(TypeError):
        check_finite(model(), X, TARGET, None)  # type: ignore[arg-type]  # on purpose
    assert sys.getprofile() is before


# --- What `fit` says --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [None, 2, 7])
def test_the_batch_of_a_loss_that_is_not_finite_can_be_had_again(every: int | None) -> None:
    """By what the note says, as it stands there."""
    rows = torch.arange(40, dtype=torch.float32).reshape(20, 2) / 100
    data = rows, torch.zeros(20, 2)
    optimizer = sgd(0.0)
    seen: list[Tensor] = []

    def picky(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = mse(prediction, target)
        seen.append(prediction)
        return (value * math.nan if len(seen) == 12 else value), grad

    def batches(key: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        return minibatches(key, data, 4)

    state = train_state(key(1), compose(Linear(torch.eye(2), bias=None)), optimizer)
    step = train_step(picky, optimizer)
    with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch .*, at step 12: the training diverges") as caught:
        fit(step, state, batches, epochs=10, every=every, compile=False, progress=False)
    note = next(note for note in caught.value.__notes__ if "check_finite(state, x, target, loss)" in note)
    words = note.removeprefix("the batch of step 12 is ").partition(";")[0]
    good, _ = last_good(caught.value, state)
    names = {"itertools": itertools, "batches": batches, "fold_in": fold_in, "state": good}
    x, _target = eval(words, names)
    assert torch.equal(x, seen[11])  # the model hands its input on


ONE_BAD: Final = torch.cat([random.normal(key(0), (19, 2)), torch.full((1, 2), 1e38)]), torch.zeros(20, 2)


@pytest.mark.parametrize("every", [None, 7])
@pytest.mark.parametrize("way", ["eager", pytest.param("compiled", marks=pytest.mark.slow), "ensemble"])
def test_the_way_that_the_note_shows_leads_to_the_layer(way: str, every: int | None) -> None:
    optimizer, words = adam(0.1), compose(Linear(torch.eye(2) * 10, bias=None), Dropout(0.1))
    given: list[Tensor] = []

    def batches(key: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        given.append(key)
        if way == "ensemble":
            return ensemble.minibatches(key, ensemble.share(ONE_BAD, 2), 4)
        return minibatches(key, ONE_BAD, 4)

    step: Any = train_step(mse, optimizer)  # type: ignore[explicit-any]  # of one run, or of two
    state: Any = train_state(key(1), words, optimizer)  # type: ignore[explicit-any]
    run: Any = functools.partial(fit, compile=way == "compiled")  # type: ignore[explicit-any]
    if way == "ensemble":
        step, run = ensemble.train_step(mse, optimizer), ensemble.fit
        state = ensemble.train_state(split(key(1), 2), ensemble.stack([words] * 2), optimizer)
    with pytest.raises(FloatingPointError) as caught:
        run(step, state, batches, epochs=3, every=every, progress=False)
    told = re.search(r"at step (\d+): ", str(caught.value))
    assert told is not None
    number, start = int(told[1]), f"the batch of step {told[1]} is "
    note = next(note for note in caught.value.__notes__ if note.startswith(start))
    assert "last_good(error, state) has the state of step 0: make the steps from there again; check_finite(state, x," in note
    state, _ = last_good(caught.value, state)
    names = {"itertools": itertools, "batches": batches, "fold_in": fold_in, "ensemble": ensemble, "state": state}
    x, target = eval(note.removeprefix(start).partition(";")[0], names)
    for before in itertools.islice(batches(given[-1]), number - 1):
        check_finite(state, before[0], before[1], mse)
        state, _ = step(state, before)
    with pytest.raises(FloatingPointError, match=r"^(run \d: )?forward of model\[0\]"):
        check_finite(state, x, target, mse)


def test_a_model_that_the_last_step_broke_is_told_likewise() -> None:
    optimizer = sgd(1e30)
    large = [(X, TARGET), (X * 1e10, TARGET)]
    with pytest.raises(FloatingPointError, match=r"after step 1, in epoch 1: model") as caught:
        fit(train_step(mse, optimizer), train_state(key(1), model(), optimizer), large[1:], epochs=1, progress=False)
    assert any("the batch of step 1 is next(itertools.islice(batches, 0, None))" in note for note in caught.value.__notes__)


def test_of_an_ensemble_and_of_a_list() -> None:
    bad = [(X, TARGET), (X * math.nan, TARGET)]
    optimizer = sgd(0.1)
    with pytest.raises(FloatingPointError) as caught:
        fit(train_step(mse, optimizer), train_state(key(1), model(), optimizer), bad, epochs=1, progress=False)
    assert any("is next(itertools.islice(batches, 1, None))" in note for note in caught.value.__notes__)
    models = ensemble.initialize(split(key(0), 2), linear(2, 2))
    state = ensemble.train_state(split(key(1), 2), models, optimizer)
    shared = [ensemble.share(pair, 2) for pair in bad]
    with pytest.raises(FloatingPointError) as caught:
        ensemble.fit(ensemble.train_step(mse, optimizer), state, lambda _keys: shared, epochs=1, progress=False)
    told = "batches(ensemble.each(lambda key: fold_in(key, 2**63 + 0))(state.key)), 1, None)"
    assert any(told in note for note in caught.value.__notes__)
