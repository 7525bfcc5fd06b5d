"""Batch normalisation, and the statistics that a model takes from training into use."""

import re
from collections.abc import Callable
from typing import Final

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typing_extensions import override

from fundl import (
    BatchNorm,
    Checkpoint,
    Dropout,
    Flatten,
    GroupNorm,
    InstanceNorm,
    Layer,
    LayerNorm,
    Linear,
    Model,
    Parallel,
    ReLU,
    Residual,
    RMSNorm,
    Shape,
    adam,
    apply,
    apply_updates,
    assert_trees_close,
    batch_norm,
    calibrate,
    checkpoint,
    compose,
    fit,
    forward,
    frozen,
    group_norm,
    initialize,
    instance_norm,
    key,
    layer_norm,
    linear,
    minibatches,
    mixed_precision,
    mse,
    output_shape,
    parallel,
    rekey,
    residual,
    rms_norm,
    sgd,
    track,
    train_state,
    train_step,
    tree,
    value_and_grad,
    vjp,
    without_statistics,
)
from fundl.layers.batch_norm import Statistics
from tests.samples import normal, with_values
from tests.test_normalization import assert_equals_torch

quietly: Final = settings(deadline=None, derandomize=True, max_examples=40)


def norms(model: Model) -> list[BatchNorm]:
    return [record for record in tree.records(model) if isinstance(record, BatchNorm)]


def statistics(model: Model) -> list[tuple[Tensor, Tensor]]:
    """Mean and var of each BatchNorm."""
    found: list[tuple[Tensor, Tensor]] = []
    for layer in norms(model):
        assert layer.mean is not None
        assert layer.var is not None
        found.append((layer.mean, layer.var))
    return found


def known(mean: Tensor, var: Tensor, *, eps: float = 1e-5) -> BatchNorm:
    return attrs.evolve(with_values(batch_norm(len(mean), eps=eps)), mean=mean, var=var)


# --- The layer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known_statistics", [False, True])
def test_it_equals_torchs(known_statistics: bool) -> None:
    def check(batch: int, channels: int, space: list[int], eps: float) -> None:
        layer = with_values(batch_norm(channels, eps=eps))
        modules = [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d]
        module = modules[len(space)](channels, eps=eps, dtype=torch.float64)
        if known_statistics:
            mean, var = normal(channels), normal(channels).square()
            layer = attrs.evolve(layer, mean=mean, var=var)
            module.eval()
            module.get_buffer("running_mean").copy_(mean)
            module.get_buffer("running_var").copy_(var)
        x = normal(batch, channels, *space)
        if x.numel() != channels or known_statistics:
            assert_equals_torch(layer, module, x, rtol=1e-8)

    sizes = st.integers(1, 4)
    quietly(given(st.integers(0, 4), sizes, st.lists(sizes, max_size=3), st.sampled_from([1e-5, 1e-3, 1.0]))(check))()


def test_images_with_their_channels_last_equal_torchs() -> None:
    x = normal(3, 4, 5, 6).to(memory_format=torch.channels_last)
    assert_equals_torch(with_values(batch_norm(4)), nn.BatchNorm2d(4, dtype=torch.float64), x)


def test_an_empty_batch_gives_an_empty_batch_and_no_gradient() -> None:
    for layer in (with_values(batch_norm(3)), known(torch.zeros(3), torch.ones(3))):
        x = normal(0, 3, 2)
        y, residuals = forward(layer, x)
        assert y.shape == (0, 3, 2)
        grads, grad_x = vjp(layer, x, y)
        assert grad_x.shape == (0, 3, 2)
        assert all(not leaf.any() for leaf in tree.trainable_leaves(grads))
        assert track(layer, residuals).mean is None if layer.mean is None else residuals[1] is None


def test_its_gradient_leaves_the_statistics_as_they_are() -> None:
    layer = known(torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    x = normal(4, 3)
    grads, _ = vjp(layer, x, x)
    assert grads.mean is layer.mean
    assert grads.var is layer.var
    assert tree.count(layer) == 6


def test_one_number_in_a_channel_is_refused_in_training_alone() -> None:
    for shape in [(1, 3), (1, 3, 1), (1, 3, 1, 1)]:
        with pytest.raises(ValueError, match=re.escape(f"but the input's shape is {shape}: give it larger batches, or")):
            apply(BatchNorm(), torch.ones(shape))
    assert apply(known(torch.zeros(3).double(), torch.ones(3).double()), normal(1, 3)).shape == (1, 3)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: batch_norm(0), "channels must be at least 1, not 0"),
        (lambda: batch_norm(3, eps=-1.0), "eps is added to the variance, and must be a finite number of 0 or more, not -1.0"),
        (lambda: BatchNorm(mean=torch.zeros(3)), "BatchNorm has a mean and a var, or neither: give both, or let calibrate"),
        (
            lambda: apply(BatchNorm(), torch.ones(3)),
            "BatchNorm expects an input of shape (B, channels, ...), but the input's shape is (3,)",
        ),
        (
            lambda: apply(with_values(batch_norm(3)), normal(5, 4)),
            "BatchNorm expects 3 channels, but the input's shape is (5, 4): its axis 1 must be of size 3",
        ),
        (
            lambda: apply(BatchNorm(mean=torch.zeros(1), var=torch.ones(1)), torch.ones(5, 4)),
            "BatchNorm expects 1 channel, but the input's shape is (5, 4): its axis 1 must be of size 1",
        ),
        (
            lambda: output_shape(BatchNorm(mean=torch.zeros(3), var=torch.ones(3)), Shape(5, 4)),
            "BatchNorm expects 3 channels but the input has 4 channels",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        make()


def test_dtypes_must_agree() -> None:
    with pytest.raises(TypeError, match=re.escape("BatchNorm's parameters are torch.float64, but the input is torch.float32")):
        apply(with_values(batch_norm(3)), torch.ones(5, 3))
    with pytest.raises(TypeError, match=re.escape("BatchNorm's parameters are torch.float32, but the input is torch.float64")):
        apply(known(torch.zeros(3), torch.ones(3)), normal(5, 3))


@pytest.mark.parametrize(
    "layer",
    [
        layer_norm(4),
        rms_norm(4),
        group_norm(1, 3),
        instance_norm(3),
        batch_norm(3),
        BatchNorm(mean=normal(3), var=normal(3).square()),
    ],
    ids=repr,
)
def test_many_runs_can_be_one(layer: LayerNorm | RMSNorm | GroupNorm | InstanceNorm | BatchNorm) -> None:
    """Under vmap, without a warning of a kernel that is not made for it."""
    leaves, structure = tree.flatten(with_values(layer))
    batched = [None if leaf is None else torch.stack([leaf, leaf + 1]) for leaf in leaves]
    x = normal(2, 5, 3, 4)

    def run(one: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        model = tree.unflatten(structure, parameters)
        y = apply(model, one)
        grads, grad_x = vjp(model, one, y.cos())
        return y, grad_x, *tree.trainable_leaves(grads)

    axes = (0, *(None if leaf is None else 0 for leaf in leaves))
    together = torch.vmap(run, in_dims=axes)(x, *batched)
    apart = [run(x[index], *(None if leaf is None else leaf[index] for leaf in batched)) for index in range(2)]
    torch.testing.assert_close(together, tuple(torch.stack(parts) for parts in zip(*apart, strict=True)))


# --- Tracking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 0.3, 1.0])
def test_track_equals_torchs_running_averages(momentum: float) -> None:
    layer = with_values(batch_norm(4))
    module = nn.BatchNorm2d(4, momentum=momentum, dtype=torch.float64)
    for step in range(5):
        x = normal(3 + step, 4, 2, 3) * (step + 1) + step
        _, residuals = forward(without_statistics(layer), x)
        layer = track(layer, residuals, momentum=momentum)
        module(x)
    ((mean, var),) = statistics(layer)
    torch.testing.assert_close(mean, module.running_mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(var, module.running_var, rtol=1e-9, atol=1e-9)


def deep() -> tuple[Model, nn.Sequential]:
    """A model with a BatchNorm in every kind of layer that is made of layers, and the same in a row in torch.nn."""
    torch.manual_seed(0)
    model = with_values(
        compose(
            linear(3, 4),
            batch_norm(4),
            residual(linear(4, 4), batch_norm(4), ReLU()),
            parallel((linear(4, 4), batch_norm(4)), BatchNorm()),
            checkpoint(linear(4, 4), batch_norm(4), checkpoint(batch_norm(4), ReLU())),
            (Flatten(), (batch_norm(4),)),
        )
    )
    return model, nn.Sequential(*(nn.BatchNorm1d(4, affine=layer.weight is not None).double() for layer in norms(model)))


def inputs_of_norms(model: Model, x: Tensor) -> list[Tensor]:
    """What each BatchNorm of `deep` is given."""
    seen: list[Tensor] = []

    def through(parts: tuple[object, ...], value: Tensor) -> Tensor:
        for part in parts:
            value = run(part, value)
        return value

    def run(part: object, value: Tensor) -> Tensor:
        match part:
            case tuple():
                return through(part, value)
            case Residual(layers=layers):
                return value + through(layers, value)
            case Checkpoint(layers=layers):
                return through(layers, value)
            case Parallel(branches=branches):
                return sum((run(branch, value) for branch in branches), torch.zeros_like(value[:, :1]))
            case Layer():
                if isinstance(part, BatchNorm):
                    seen.append(value)
                y = apply(part, value)
                assert isinstance(y, Tensor)
                return y
            case _:
                raise AssertionError(part)

    run(model, x)
    return seen


def test_track_finds_every_batch_norm_of_nested_layers() -> None:
    model, modules = deep()
    for step in range(3):
        x = normal(8, 3) * (step + 1)
        for module, seen in zip(modules, inputs_of_norms(without_statistics(model), x), strict=True):
            module(seen)
        _, residuals = forward(without_statistics(model), x)
        model = track(model, residuals)
    assert len(statistics(model)) == 7
    for (mean, var), module in zip(statistics(model), modules, strict=True):
        torch.testing.assert_close(mean, module.get_buffer("running_mean"), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(var, module.get_buffer("running_var"), rtol=1e-9, atol=1e-9)


def test_statistics_are_tracked_in_the_dtype_they_have_and_new_ones_in_float32_at_least() -> None:
    for dtype, kept in ((torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)):
        layer, x = tree.cast_to(with_values(batch_norm(3)), dtype), normal(5, 3).to(dtype)
        for _ in range(2):
            layer = track(layer, forward(without_statistics(layer), x)[1])
        assert dtypes_of_statistics(layer) == {kept}
        assert apply(layer, x).dtype == dtype
        cast = tree.cast_to(layer, dtype)
        assert dtypes_of_statistics(track(cast, forward(without_statistics(cast), x)[1])) == {dtype}
    assert dtypes_of_statistics(track(BatchNorm(), forward(BatchNorm(), normal(5, 3).float())[1])) == {torch.float32}


def dtypes_of_statistics(layer: BatchNorm) -> set[torch.dtype]:
    assert layer.mean is not None
    assert layer.var is not None
    return {layer.mean.dtype, layer.var.dtype}


def test_running_averages_of_half_precision_do_not_stand_still() -> None:
    layer, x = tree.cast_to(with_values(batch_norm(1)), torch.bfloat16), torch.full((1000, 1), 4.0).bfloat16()
    x[:872] = 5.0
    for _ in range(200):
        layer = track(layer, forward(without_statistics(layer), x)[1])
    torch.testing.assert_close(layer.mean, torch.tensor([4.872]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_variance_of_float16_may_be_beyond_float16(mixed: bool) -> None:
    x = (300 * normal(1000, 3)).half()
    var = x.double().var(0, correction=0)
    assert float(var.min()) > 65_504
    plain = tree.cast_to(with_values(batch_norm(3)), torch.float16)
    model = mixed_precision(tree.cast_to(plain, torch.float32), compute=torch.float16) if mixed else compose(plain)
    expected = apply(model, x)
    for ready in (calibrate(model, [x[:500], x[500:]]), track(model, forward(model, x)[1], momentum=1.0)):
        (layer,) = norms(ready)
        assert layer.var is not None
        torch.testing.assert_close(layer.var.double(), var, rtol=2e-3, atol=0)
        torch.testing.assert_close(apply(ready, x).double(), expected.double(), rtol=0, atol=2e-2)


def test_track_of_a_model_without_batch_norm_is_the_model() -> None:
    model = compose(ReLU(), Flatten())
    assert track(model, forward(model, torch.ones(2, 3))[1]) is model
    assert calibrate(model, []) is model
    assert without_statistics(model) is model


def test_track_refuses_residuals_of_another_model() -> None:
    used = known(torch.zeros(3).double(), torch.ones(3).double())
    with pytest.raises(ValueError, match=re.escape("has 1 BatchNorm layers, but the residuals hold the statistics of 0")):
        track(used, forward(used, normal(4, 3))[1])
    with pytest.raises(ValueError, match="has 3 channels, but the residuals hold, in its place, the statistics of 2"):
        track(used, forward(BatchNorm(), normal(4, 2))[1])
    with pytest.raises(ValueError, match=re.escape("momentum is the weight of the batch, between 0 and 1, not 1.5")):
        track(used, forward(without_statistics(used), normal(4, 3))[1], momentum=1.5)


def test_frozen_layers_keep_their_statistics() -> None:
    body = calibrate(with_values(compose(linear(3, 4), batch_norm(4))), [normal(8, 3)])
    model = compose(frozen(*body), batch_norm(4), frozen(BatchNorm()))
    model = with_values(model)
    training = without_statistics(model)
    assert tree.equal(training[0], frozen(*body))
    _, residuals = forward(training, normal(6, 3) + 2)
    tracked = track(model, residuals)
    calibrated = calibrate(tracked, [normal(6, 3) + 2])
    for found in (tracked, calibrated):
        assert tree.equal(found[0], frozen(*body))
        assert [layer.mean is not None for layer in norms(found)] == [True, True, True]


@attrs.frozen(eq=False)
class Twice(Layer[tuple[object, object]]):
    """A user's layer made of two."""

    first: Linear
    second: BatchNorm

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[object, object]]:
        y, first = self.first.forward(x)
        z, second = self.second.forward(y)
        return z, (first, second)

    @override
    def backward(self, residuals: tuple[object, object], grad: Tensor) -> tuple["Twice", Tensor]:
        raise NotImplementedError


def test_track_and_calibrate_know_users_layers() -> None:
    layer, x = with_values(Twice(linear(3, 4), batch_norm(4))), normal(6, 3)
    hidden = apply(layer.first, x)
    ((mean, var),) = statistics(track(layer, forward(layer, x)[1], momentum=1.0))
    torch.testing.assert_close((mean, var), (hidden.mean(0), hidden.var(0)))
    ((mean, var),) = statistics(calibrate(layer, [x]))
    torch.testing.assert_close((mean, var), (hidden.mean(0), hidden.var(0, correction=0)))


def test_a_tiny_variance_is_found_as_exactly_as_it_is_used() -> None:
    x = 1e-4 * normal(100, 2).float()
    _, (_, batch) = forward(BatchNorm(), x)
    assert isinstance(batch, Statistics)
    ((_, var),) = statistics(calibrate(BatchNorm(), [x]))
    torch.testing.assert_close(var + 1e-5, x.double().var(0, correction=0).float() + 1e-5, rtol=1e-6, atol=0)
    assert (statistics(calibrate(BatchNorm(), [torch.ones(4, 2)]))[0][1] < 1e-11).all()


# --- Calibrating -------------------------------------------------------------------------------------------------------


def test_calibrate_gives_the_statistics_of_all_data() -> None:
    def check(sizes: list[int], shift: float) -> None:
        x = normal(sum(sizes), 3, 4) + shift
        ((mean, var),) = statistics(calibrate(BatchNorm(), torch.split(x, sizes)))
        torch.testing.assert_close(mean, x.mean((0, 2)), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(var, x.var((0, 2), correction=0), rtol=1e-8, atol=1e-8)

    quietly(given(st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any), st.sampled_from([0.0, 100.0]))(check))()


def test_calibrate_finds_what_each_layer_sees_while_all_use_their_batches() -> None:
    model, _ = deep()
    batches = [normal(8, 3), normal(4, 3) * 3 + 1]
    seen = [torch.cat(parts) for parts in zip(*(inputs_of_norms(model, batch) for batch in batches), strict=True)]
    for (mean, var), inputs in zip(statistics(calibrate(model, iter(batches))), seen, strict=True):
        torch.testing.assert_close(mean, inputs.mean(0), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(var, inputs.var(0, correction=0), rtol=1e-9, atol=1e-9)


def test_a_model_that_is_calibrated_on_one_batch_treats_it_as_in_training() -> None:
    model, _ = deep()
    x = normal(8, 3)
    calibrated = calibrate(model, [x])
    torch.testing.assert_close(apply(calibrated, x), apply(model, x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(apply(calibrated, x[:1]), apply(model, x)[:1], rtol=1e-9, atol=1e-9)
    assert tree.equal(calibrate(calibrated, [x]), calibrated)
    assert tree.equal(without_statistics(calibrated), model)


def test_calibrate_keeps_the_dtype_of_the_layer_but_for_half_precision() -> None:
    for dtype, kept in ((torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)):
        layer = calibrate(tree.cast_to(with_values(batch_norm(3)), dtype), [normal(5, 3).to(dtype)])
        assert dtypes_of_statistics(layer) == {kept}


@pytest.mark.parametrize("batches", [[], [torch.ones(0, 3)]])
def test_calibrate_needs_data(batches: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="there is nothing to calibrate on: no batches came, or only empty ones"):
        calibrate(BatchNorm(), batches)


# --- Training ----------------------------------------------------------------------------------------------------------


def test_a_training_step_that_tracks() -> None:
    model = initialize(key(0), compose(linear(2, 16), batch_norm(16), ReLU(), Dropout(0.1), linear(16, 1)))
    x = normal(64, 2).float()
    target = x[:, :1] * x[:, 1:]
    optimizer = adam(0.02)
    state = optimizer.init(model)
    losses: list[float] = []
    for step in range(60):
        training = rekey(without_statistics(model), key(step))
        prediction, _ = forward(training, x)
        value, grads = value_and_grad(mse, training, x, target)
        _, residuals = forward(training, x)
        updates, state = optimizer.update(grads, state, model)
        model = track(apply_updates(model, updates), residuals)
        assert prediction.shape == target.shape
        losses.append(float(value))
    assert losses[-1] < losses[0] / 3
    assert float(mse(apply(model, x), target)[0]) < losses[0] / 3


def test_fit_then_calibrate() -> None:
    x = normal(64, 2).float()
    data = (x, x[:, :1] * x[:, 1:])
    optimizer = sgd(0.1)
    model = initialize(key(0), compose(linear(2, 16), batch_norm(16), ReLU(), linear(16, 1)))
    state = train_state(key(1), model, optimizer)
    state, _ = fit(train_step(mse, optimizer), state, minibatches(key(2), data, 32), epochs=2, progress=False)
    assert norms(state.model)[0].mean is None
    ready = calibrate(state.model, minibatches(None, x, 32))
    assert len(statistics(ready)) == 1
    assert apply(ready, x[:1]).shape == (1, 1)


# --- Memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 3), (5, 8, 3, 2)])
@pytest.mark.parametrize("statistics", [False, True])
def test_parameters_and_statistics_of_any_strides(shape: tuple[int, ...], statistics: bool) -> None:
    """The kernel for inputs without space read them as if they were contiguous."""
    x, grad, (weight, bias, mean, var) = normal(*shape), normal(*shape).sin(), normal(4, 8).exp()
    layer = BatchNorm(weight, bias, mean=mean, var=var) if statistics else BatchNorm(weight, bias)
    strided = tree.map(lambda leaf: torch.stack((leaf, torch.full_like(leaf, 77.0)), 1)[:, 0], layer)
    assert_trees_close(vjp(strided, x, grad), vjp(layer, x, grad), rtol=1e-12, atol=1e-12)


def test_a_weight_of_other_channels_in_backward() -> None:
    _, residuals = forward(BatchNorm(), normal(5, 8))
    with pytest.raises(ValueError, match=r"^BatchNorm expects 3 channels"):
        BatchNorm(normal(3)).backward(residuals, normal(5, 8))
