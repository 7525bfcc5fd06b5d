"""An ensemble of R runs gives what R separate runs with the same keys give: models, steps, batches, histories."""

import functools
import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, assert_type

import attrs
import pytest
import torch
from rich.console import Console
from torch import Tensor
from typing_extensions import override

from fundl import (
    AnyTransform,
    Dropout,
    Epoch,
    Evaluation,
    Interrupted,
    Layer,
    Linear,
    Loss,
    Model,
    ReLU,
    Report,
    SGDState,
    Shape,
    Sigmoid,
    Softmax,
    Tanh,
    Tensors,
    TrainState,
    Transform,
    accuracy,
    adam,
    adamw,
    apply,
    assert_trees_close,
    binary_cross_entropy,
    chain,
    check_vjp,
    clip_by_global_norm,
    compose,
    cross_entropy,
    disk,
    ensemble,
    evaluate,
    fit,
    fold_in,
    gain_of,
    huber,
    initialize,
    is_matrix,
    key,
    kl_divergence,
    linear,
    load,
    minibatches,
    mse,
    nll,
    normal,
    one_hot,
    orthogonal,
    output_shape,
    random,
    rekey,
    save,
    sgd,
    split,
    train_state,
    train_step,
    tree,
    truncated_normal,
    vjp,
    xavier_normal,
    zeros,
)
from fundl._common.running import run_forward
from fundl.ensemble._layers import batched
from fundl.ensemble._optimizers import of_runs
from tests.optimizer_samples import OPTIMIZERS
from tests.samples import SAMPLES, Sample

Network = tuple[Linear, Tanh, Dropout, Linear, ReLU, Linear]
Batch = tuple[Tensor, Tensor]
P = TypeVar("P", bound=Model)
S = TypeVar("S")
T = TypeVar("T")

RUNS = 3


def network(rate: float = 0.2) -> Network:
    return compose(linear(2, 6), Tanh(), Dropout(rate), linear(6, 5), ReLU(), linear(5, 2, bias=False))


def models_of(model: P, dtype: torch.dtype = torch.float64) -> ensemble.Ensemble[P]:
    return ensemble.initialize(split(key(1), RUNS), model, dtype=dtype)


def data(count: int = 20, dtype: torch.dtype = torch.float64) -> Batch:
    points, labels = disk(key(2), count, dtype=dtype)
    return points, one_hot(labels, 2, dtype=dtype)


def states_of(
    model: P, optimizer: Transform[S], dtype: torch.dtype = torch.float64
) -> tuple[TrainState[ensemble.Ensemble[P], S], list[TrainState[P, S]]]:
    """The state of an ensemble, and those of separate runs with the same keys."""
    keys = split(key(3), RUNS)
    separate = [
        train_state(run_key, initialize(model_key, model, dtype=dtype), optimizer)
        for run_key, model_key in zip(keys, split(key(1), RUNS), strict=True)
    ]
    return ensemble.train_state(keys, models_of(model, dtype), optimizer), separate


def of_run(values: T, run: int) -> T:
    return tree.map(lambda leaf: leaf[run], values)


def assert_near(actual: object, expected: object, relative: float) -> None:
    """Each tensor is near the expected one, relative to the greatest number of it."""
    for one, other in zip(tree.leaves(actual), tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max()) <= relative * float(other.abs().max())


# --- Functions of each run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [mse, huber, kl_divergence, binary_cross_entropy, functools.partial(mse, reduction="sum")])
def test_a_loss_of_each_run_has_the_bits_of_the_separate_losses(loss: Loss[Tensor, Tensor]) -> None:
    prediction, target = random.uniform(key(0), (RUNS, 8, 3)), random.uniform(key(1), (RUNS, 8, 3))
    values, grads = ensemble.each(loss)(prediction, target)
    for run in range(RUNS):
        value, grad = loss(prediction[run], target[run])
        assert torch.equal(values[run], value)
        assert torch.equal(grads[run], grad)


@pytest.mark.parametrize("loss", [cross_entropy, nll])
def test_so_has_a_loss_of_classes(loss: Loss[Tensor, Tensor]) -> None:
    prediction = random.normal(key(0), (RUNS, 8, 4)).log_softmax(2)
    target = random.randint(key(1), (RUNS, 8), low=0, high=4)
    values, grads = ensemble.each(loss)(prediction, target)
    for run in range(RUNS):
        value, grad = loss(prediction[run], target[run])
        assert torch.equal(values[run], value)
        assert torch.equal(grads[run], grad)


def test_each_takes_and_gives_trees_and_leaves_none_alone() -> None:
    def swapped(first: tuple[Tensor, None], second: dict[str, Tensor]) -> tuple[dict[str, Tensor], None, Tensor]:
        return {"a": first[0] + second["b"]}, None, torch.zeros(())

    ones = torch.ones(2, 3)
    result = ensemble.each(swapped)((ones, None), {"b": ones})
    assert tree.equal(result, ({"a": 2 * ones}, None, torch.zeros(2)))


def test_data_can_be_drawn_for_each_run() -> None:
    keys = split(key(0), RUNS)
    drawn = ensemble.each(lambda run_key: disk(run_key, 10))(keys)
    for run, run_key in enumerate(keys):
        assert tree.equal((drawn[0][run], drawn[1][run]), disk(run_key, 10))


def test_the_shape_of_an_ensemble_is_found_by_the_rules_of_its_layers() -> None:
    models = ensemble.initialize(split(key(0), 3), compose(linear(2, 4), ReLU(), linear(4, 1)))
    assert output_shape(models, Shape(3, 10, 2)).sizes == (3, 10, 1)
    with pytest.raises(ValueError, match=r"^layer 1 \(Linear\) expects 2 features but the input has 5 features$"):
        output_shape(models, Shape(3, 10, 5))
    with pytest.raises(ValueError, match=r"^Ensemble expects 3 runs but the input has 4 runs$"):
        output_shape(models, Shape(4, 10, 2))
    with pytest.raises(ValueError, match=r"^layer 2 \(Linear\) expects 3 features but layer 1 \(Ensemble\) gives 1 feature$"):
        compose(models, linear(3, 1))


@pytest.mark.parametrize("given", [(torch.ones(2), torch.ones(3)), (torch.ones(()),), ()])
def test_each_needs_the_axis_of_the_runs(given: tuple[Tensor, ...]) -> None:
    text = re.escape(tree.describe((given,)))
    with pytest.raises(ValueError, match=rf"a first axis of one size, that of the runs, but what is given is {text}: ensemble"):
        ensemble.each(lambda tensors: tensors)(given)


def test_shared_data_is_not_copied() -> None:
    x, labels = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    shared = ensemble.share((x, labels, None), 3)
    assert shared[0].shape == (3, 4, 2)
    assert shared[1].shape == (3, 4)
    assert shared[0].data_ptr() == x.data_ptr()
    assert shared[0].stride(0) == 0
    with pytest.raises(ValueError, match="an ensemble has 1 run or more, not 0"):
        ensemble.share(x, 0)


# --- Models -----------------------------------------------------------------------------------------------------------


def test_each_run_has_the_parameters_that_its_key_gives() -> None:
    model = compose(
        linear(3, 4, weight_init=orthogonal(), bias_init=normal()),
        linear(4, 2, weight_init=truncated_normal(), bias_init=zeros()),
        linear(2, 5, weight_init=xavier_normal(gain=5 / 3), bias=False),
    )
    models = ensemble.initialize(split(key(1), RUNS), model)
    separate = [initialize(run_key, model) for run_key in split(key(1), RUNS)]
    assert tree.equal(models, ensemble.stack(separate))
    assert tree.equal(ensemble.unstack(models), separate)
    assert models.runs == RUNS
    assert all(leaf.is_contiguous() for leaf in tree.leaves(models))


def test_dtype_and_device_are_as_asked() -> None:
    models = ensemble.initialize(split(key(1), 2), linear(2, 1), dtype=torch.float64)
    assert tree.describe(models.models) == "Linear(weight=float64[2, 1, 2], bias=float64[2, 1])"
    shapes = ensemble.initialize(split(key(1), 2), linear(2, 1), device="meta")
    assert apply(shapes, torch.empty(2, 7, 2, device="meta")).shape == (2, 7, 1)


def test_stacking_and_unstacking_keep_the_type() -> None:
    models = ensemble.stack([initialize(key(seed), network()) for seed in range(RUNS)])
    assert_type(models, ensemble.Ensemble[Network])
    assert_type(ensemble.unstack(models), list[Network])
    assert tree.equal(ensemble.stack(ensemble.unstack(models)), models)


def different(model: Model, run: int) -> Model:
    """The model with other numbers and other keys for each run, and the same masks."""

    def other(leaf: Tensor) -> Tensor:
        if leaf.is_floating_point():
            return leaf * (1 + 0.1 * run)
        return leaf if leaf.dtype == torch.bool else leaf + run

    return tree.map(other, model)


def of_tensors(sample: Sample) -> bool:
    """Whether the sample's input and output are tensors: an ensemble is a layer of such."""
    return isinstance(sample.x, Tensor) and isinstance(run_forward(sample.model, sample.x)[0], Tensor)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of a kernel that vmap runs in a loop
@pytest.mark.parametrize("sample", [sample for sample in SAMPLES if of_tensors(sample)], ids=lambda sample: sample.name)
def test_every_layer_does_for_each_run_what_it_does_alone(sample: Sample) -> None:
    assert isinstance(sample.x, Tensor)
    separate = [different(sample.model, run) for run in range(RUNS)]
    models = ensemble.stack(separate) if tree.leaves(sample.model) else ensemble.Ensemble(sample.model)
    x = torch.stack([sample.x * (1 - 0.1 * run) if sample.x.is_floating_point() else sample.x for run in range(RUNS)])
    grad = random.normal(key(4), tuple(apply(models, x).shape), dtype=torch.float64)

    y, (grads, grad_x) = apply(models, x), vjp(models, x, grad)
    for run, model in enumerate(separate):
        one_grads, one_grad_x = vjp(model, x[run], grad[run])
        one = of_run(grads.models, run)
        tree.require_same_structure(one, one_grads, names=("the ensemble's gradient", "a model's"))
        for actual, expected in ((y[run], apply(model, x[run])), (grad_x[run], one_grad_x), (one, one_grads)):
            assert_trees_close(actual, expected, rtol=1e-11, atol=1e-13)


@attrs.frozen(eq=False)
class Doubled(Layer[None]):
    """A user's activation."""

    elementwise = True
    usual_gain = 0.5

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return 2 * x, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple["Doubled", Tensor]:
        return self, 2 * grad


@attrs.frozen(eq=False)
class Scaled(Layer[Tensor]):
    """Another, with a parameter, of which each run has its own."""

    elementwise = True

    factor: Tensor

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.factor * x, x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple["Scaled", Tensor]:
        return Scaled((residuals * grad).sum()), self.factor * grad


def test_a_users_layer_says_that_it_is_elementwise() -> None:
    assert gain_of(Doubled()) == 0.5
    doubled = Doubled()
    assert batched(doubled) is doubled
    models = [compose(Doubled(), Scaled(torch.tensor(factor))) for factor in (2.0, 3.0)]
    y, (grads, grad_x) = (
        apply(ensemble.stack(models), torch.ones(2, 4)),
        vjp(ensemble.stack(models), torch.ones(2, 4), torch.ones(2, 4)),
    )
    assert torch.equal(y, torch.tensor([[4.0], [6.0]]).expand(2, 4))
    assert torch.equal(grads.models[1].factor, torch.tensor([8.0, 8.0]))
    assert torch.equal(grad_x, y)


def test_an_ensemble_keeps_the_contract_of_a_layer() -> None:
    model = compose(Dropout(0.3), linear(3, 4), Tanh(), linear(4, 2, bias=False), Softmax())
    models = ensemble.initialize(split(key(1), RUNS), model)
    keyed = ensemble.Ensemble(ensemble.each(rekey)(models.models, split(key(2), RUNS)))
    check_vjp(keyed, random.normal(key(3), (RUNS, 5, 3)))


def test_layers_before_and_after_an_ensemble_see_all_runs() -> None:
    models = models_of(linear(3, 2))
    x = random.normal(key(3), (RUNS, 5, 3), dtype=torch.float64)
    assert torch.equal(apply((Tanh(), models, Sigmoid()), x), torch.sigmoid(apply(models, torch.tanh(x))))


def test_many_tangents_are_precise_in_every_range() -> None:
    layer = ensemble.stack([compose(linear_of(1.0), Tanh())])
    small = torch.logspace(-30, 1.7, 10_000)
    x = torch.cat((small, -small, torch.tensor([0.0, math.inf, -math.inf, 1e30, -1e30])))
    y = apply(layer, x.reshape(1, -1, 1)).flatten()
    assert torch.allclose(y.to(torch.float64), torch.tanh(x.to(torch.float64)), rtol=3e-7, atol=0)
    assert apply(layer, torch.tensor([[[math.nan]]])).isnan().all()


def linear_of(factor: float) -> Linear:
    return Linear(weight=torch.tensor([[factor]]), bias=None)


def test_a_model_saved_out_of_an_ensemble_comes_back(tmp_path: Path) -> None:
    models = models_of(network())
    save(tmp_path / "one.safetensors", ensemble.unstack(models)[1])
    one = load(tmp_path / "one.safetensors", like=initialize(key(0), network(), dtype=torch.float64))
    x = data()[0]
    assert_trees_close(apply(one, x), apply(models, ensemble.share(x, RUNS))[1], rtol=1e-12, atol=1e-14)


def test_an_ensemble_needs_models() -> None:
    with pytest.raises(ValueError, match="at least 1 model, but here is none"):
        ensemble.stack([])
    with pytest.raises(ValueError, match=r"the model has no parameters: all runs would be the same, \(Tanh\(\),\)"):
        ensemble.stack([compose(Tanh()), compose(Tanh())])
    with pytest.raises(ValueError, match="the model has no parameters"):
        ensemble.initialize(split(key(0), 2), Tanh())


def test_the_models_of_an_ensemble_are_alike() -> None:
    one, narrow = initialize(key(0), compose(linear(2, 3), Tanh())), initialize(key(0), compose(linear(2, 1), Tanh()))
    models: Sequence[Model] = [one, one, compose(one[0], ReLU())]
    with pytest.raises(TypeError, match="model 0 and model 2 are not of the same structure"):
        ensemble.stack(models)
    text = r"at \[0\].weight model 0 has float32\[3, 2\], and model 1 has float32\[1, 2\]"
    with pytest.raises(ValueError, match=text):
        ensemble.stack([one, narrow])
    with pytest.raises(ValueError, match=r"model 1 has float64\[3, 2\]"):
        ensemble.stack([one, tree.cast_to(one, torch.float64)])
    bare = compose(Linear(one[0].weight, None), Tanh())
    with pytest.raises(ValueError, match=r"at \[0\].bias model 0 has float32\[3\], and model 1 has None"):
        ensemble.stack([one, bare])


def test_an_ensemble_needs_keys() -> None:
    with pytest.raises(ValueError, match=r"a key for each of 1 run or more, .* not one of shape \(0, 2\)"):
        ensemble.initialize(split(key(0), 0), linear(2, 1))
    with pytest.raises(ValueError, match=r"not one of shape \(2,\)"):
        ensemble.initialize(key(0), linear(2, 1))
    with pytest.raises(ValueError, match=r"a key has shape \(2,\).*not \(3,\)"):
        ensemble.initialize(torch.zeros(2, 3, dtype=torch.int64), linear(2, 1))
    with pytest.raises(TypeError, match=r"the keys of an ensemble are a tensor, as .* not 7"):
        ensemble.initialize(7, linear(2, 1))  # type: ignore[arg-type]  # the mistake that is tested


@pytest.mark.parametrize("shape", [(2, 5, 4), (6, 4), (4,), ()])
def test_the_input_needs_the_axis_of_the_runs(shape: tuple[int, ...]) -> None:
    models = models_of(compose(Tanh(), linear(4, 2)))
    text = f"first axis is that of the runs, of size 3, but its shape is {shape}"
    with pytest.raises(ValueError, match=re.escape(text)):
        apply(models, torch.zeros(shape, dtype=torch.float64))


def test_a_wrong_input_is_explained_by_the_layer_and_its_place() -> None:
    models = models_of(compose(Tanh(), linear(4, 2)))
    with pytest.raises(ValueError, match=r"Linear expects 4 features, but the input's shape is \(5, 3\)") as caught:
        apply(models, torch.zeros(RUNS, 5, 3, dtype=torch.float64))
    assert caught.value.__notes__[0].startswith("in model.models[1]: _Linears(weight=float64[3, 2, 4], bias=float64[3, 2])")
    with pytest.raises(TypeError, match=r"Linear's weight is torch.float64, but the input is torch.float32"):
        apply(models, torch.zeros(RUNS, 5, 4))
    with pytest.raises(TypeError, match=r"Linear's weight is torch.float64, but the input is torch.int64"):
        apply(models_of(linear(4, 2)), torch.zeros(RUNS, 5, 4, dtype=torch.int64))


# --- Batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 10, 50])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_each_run_has_the_batches_that_its_key_gives(batch_size: int, drop_last: bool, own: bool) -> None:
    one = (torch.arange(20.0).reshape(10, 2), {"label": torch.arange(10)}, None)
    everyone = ensemble.share(one, RUNS)
    if own:
        everyone = tree.map(torch.clone, everyone)
        everyone[0].add_(100 * torch.arange(RUNS).reshape(-1, 1, 1))
    keys = split(key(5), RUNS)
    if drop_last and batch_size > 10:
        with pytest.raises(ValueError, match="drop_last leaves no batch: the batch size is 50"):
            ensemble.minibatches(keys, everyone, batch_size, drop_last=True)
        return
    batches = ensemble.minibatches(keys, everyone, batch_size, drop_last=drop_last)
    together = list(batches)
    assert len(batches) == len(together)
    for run, run_key in enumerate(keys):
        separate = list(minibatches(run_key, of_run(everyone, run), batch_size, drop_last=drop_last))
        assert tree.equal([of_run(batch, run) for batch in together], separate)
    assert tree.equal(list(batches), together)


def test_without_keys_batches_are_in_order() -> None:
    batches = list(ensemble.minibatches(None, ensemble.share(torch.arange(5), 2), 3))
    assert [batch.tolist() for batch in batches] == [[[0, 1, 2]] * 2, [[3, 4]] * 2]


def test_minibatches_refuse_data_without_the_axis_of_the_runs() -> None:
    keys = split(key(0), 2)
    with pytest.raises(ValueError, match="the data is of 5 runs, but there are keys of 2"):
        ensemble.minibatches(keys, torch.zeros(5, 3), 2)
    with pytest.raises(ValueError, match=r"the data is \(float32\[2, 5\], float32\[5\]\): ensemble.share\(data, runs\)"):
        ensemble.minibatches(keys, (torch.zeros(2, 5), torch.zeros(5)), 2)
    with pytest.raises(ValueError, match="each tensor of the data needs a first axis"):
        ensemble.minibatches(keys, torch.zeros(2), 2)
    with pytest.raises(ValueError, match="the batch size must be at least 1, not 0"):
        ensemble.minibatches(keys, torch.zeros(2, 5), 0)


# --- Steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_moves_each_run_as_it_does_alone(name: str) -> None:
    optimizer: AnyTransform = OPTIMIZERS[name]
    state, separate = states_of(compose(linear(2, 4), Tanh(), linear(4, 2)), optimizer)
    step, step_of_one = ensemble.train_step(mse, optimizer), train_step(mse, optimizer)
    for number in range(4):
        batch = next(iter(ensemble.minibatches(split(key(number), RUNS), ensemble.share(data(), RUNS), 5)))
        state, _ = step(state, batch)
        separate = [step_of_one(one, (batch[0][run], batch[1][run]))[0] for run, one in enumerate(separate)]
    assert_trees_close(ensemble.unstack(state.model), [one.model for one in separate], rtol=1e-9, atol=1e-12)


@attrs.frozen
class Normalized(Transform[tuple[()]]):
    """A user's transform that knows of no runs: it divides by the norm of all gradients."""

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> tuple[()]:
        assert paths == ("[0].weight", "[0].bias")
        return ()

    @override
    def change(self, grads: Tensors, state: tuple[()], params: Tensors) -> tuple[Tensors, tuple[()]]:
        return torch._foreach_div(grads, -10 * tree.norm_of(grads)), state


def test_a_users_optimizer_sees_one_run_at_a_time() -> None:
    state, separate = states_of(compose(linear(2, 2), Tanh()), Normalized())
    batch = data()
    after, _ = ensemble.train_step(mse, Normalized())(state, ensemble.share(batch, RUNS))
    expected = [train_step(mse, Normalized())(one, batch)[0].model for one in separate]
    assert_trees_close(ensemble.unstack(after.model), expected, rtol=1e-9, atol=1e-12)


def test_a_transform_that_is_elementwise_sees_all_runs_at_once() -> None:
    assert of_runs(adamw(0.1)) == adamw(0.1)
    others: list[AnyTransform] = [adamw(0.1, where=is_matrix), chain(clip_by_global_norm(1.0), adam(0.1)), Normalized()]
    for optimizer in others:
        assert of_runs(optimizer) != optimizer


def test_a_predicate_must_choose_the_same_leaves_in_each_run() -> None:
    models = ensemble.stack([linear_of(1.0), linear_of(-1.0)])
    optimizer = adamw(0.1, where=lambda _, leaf: bool(leaf.sum() > 0))
    with pytest.raises(TypeError, match="the optimizer's state of run 0 and that of run 1 are not of the same structure"):
        ensemble.train_state(split(key(0), 2), models, optimizer)


def test_each_run_drops_what_its_key_says() -> None:
    state, separate = states_of(network(rate=0.5), sgd(0.1))
    batch = data()
    for _ in range(3):
        after, report = ensemble.train_step(mse, sgd(0.1))(state, ensemble.share(batch, RUNS))
        results = [train_step(mse, sgd(0.1))(one, batch) for one in separate]
        zeros_together = [(prediction == 0).tolist() for prediction in report.prediction]
        assert zeros_together == [(one.prediction == 0).tolist() for _, one in results]
        assert_trees_close([*report.prediction], [one.prediction for _, one in results], rtol=1e-9, atol=1e-12)
        assert_trees_close([*report.loss], [one.loss for _, one in results], rtol=1e-9, atol=0)
        assert not torch.equal(report.prediction[0], report.prediction[1])
        state, separate = after, [one for one, _ in results]
    assert state.model.models[2].key is None
    assert int(state.step) == 3


def test_a_step_in_float32_is_as_near_as_float32_is() -> None:
    state, separate = states_of(network(), sgd(0.16, momentum=0.5), torch.float32)
    batch = data(dtype=torch.float32)
    after, report = ensemble.train_step(mse, sgd(0.16, momentum=0.5))(state, ensemble.share(batch, RUNS))
    for run, one in enumerate(separate):
        expected, report_of_one = train_step(mse, sgd(0.16, momentum=0.5))(one, batch)
        assert_near(ensemble.unstack(after.model)[run], expected.model, 1e-6)
        assert_near(report.loss[run], report_of_one.loss, 1e-6)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_step_records_nothing_in_any_grad_mode(mode: Callable[[], torch.no_grad]) -> None:
    state, _ = states_of(network(), adam(0.1))
    step = ensemble.train_step(mse, adam(0.1))
    expected = step(state, ensemble.share(data(), RUNS))
    with mode():
        after, report = step(state, ensemble.share(data(), RUNS))
    assert tree.equal((after, report), expected)
    assert not any(leaf.requires_grad for leaf in tree.leaves((after, report)))


def test_a_step_is_pure() -> None:
    state, _ = states_of(network(), adam(0.1))
    before = tree.map(torch.clone, state)
    step, batch = ensemble.train_step(mse, adam(0.1)), ensemble.share(data(), RUNS)
    assert tree.equal(step(state, batch), step(state, batch))
    assert tree.equal(state, before)


def test_a_state_needs_an_ensemble_with_values_and_a_key_for_each_run() -> None:
    models = models_of(network())
    with pytest.raises(ValueError, match=r"each run needs a key of its own, but the ensemble has 3 runs, and keys are 2"):
        ensemble.train_state(split(key(0), 2), models, sgd(0.1))
    with pytest.raises(ValueError, match="a key for each of 1 run or more"):
        ensemble.train_state(key(0), models, sgd(0.1))
    with pytest.raises(ValueError, match="the model has no values yet"):
        ensemble.train_state(split(key(0), 2), ensemble.stack([network(), network()]), sgd(0.1))
    with pytest.raises(TypeError, match=r"what ensemble.initialize or ensemble.stack makes, not \(Linear\("):
        ensemble.train_state(split(key(0), RUNS), models.models, sgd(0.1))  # type: ignore[arg-type]  # the mistake


def test_a_batch_needs_the_axis_of_the_runs() -> None:
    state, _ = states_of(network(), sgd(0.1))
    step = ensemble.train_step(mse, sgd(0.1))
    x, target = data()
    with pytest.raises(ValueError, match=r"first axis is that of the runs, of size 3, but its shape is \(20, 2\)"):
        step(state, (x, target))
    with pytest.raises(ValueError, match=r"all tensors have a first axis of one size, that of the runs, but what is given is"):
        step(state, (ensemble.share(x, RUNS), target))
    with pytest.raises(TypeError, match=r"a batch is a pair \(x, target\)"):
        step(state, (x,))  # type: ignore[arg-type]  # the mistake that is tested


# --- Runs -------------------------------------------------------------------------------------------------------------


def trained(
    optimizer: Transform[S], dtype: torch.dtype = torch.float64, *, epochs: int = 3, shuffled: bool = True
) -> tuple[
    tuple[TrainState[ensemble.Ensemble[Network], S], tuple[tuple[Epoch, ...], ...]],
    list[tuple[TrainState[Network, S], tuple[Epoch, ...]]],
]:
    """An ensemble, and its runs one by one."""
    train = data(22, dtype)
    test = disk(key(7), 30, dtype=dtype)
    state, separate = states_of(network(), optimizer, dtype)

    def evaluated(model: Network) -> Evaluation:
        return evaluate(cross_entropy, model, [test], metrics={"accuracy": accuracy})

    together = ensemble.fit(
        ensemble.train_step(mse, optimizer),
        state,
        lambda keys: ensemble.minibatches(keys if shuffled else None, ensemble.share(train, RUNS), 5),
        epochs=epochs,
        metrics={"accuracy": accuracy},
        evaluate=evaluated,
        evaluate_every=2,
        progress=False,
    )
    one_by_one = [
        fit(
            train_step(mse, optimizer),
            one,
            lambda key: minibatches(key if shuffled else None, train, 5),
            epochs=epochs,
            metrics={"accuracy": accuracy},
            evaluate=evaluated,
            evaluate_every=2,
            progress=False,
        )
        for one in separate
    ]
    return together, one_by_one


def assert_same_history(actual: Sequence[Epoch], expected: Sequence[Epoch], relative: float) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert (one.epoch, one.step) == (other.epoch, other.step)
        assert one.train.loss == pytest.approx(other.train.loss, rel=relative)
        assert one.train.metrics["accuracy"] == pytest.approx(other.train.metrics["accuracy"], rel=1e-6)
        assert (one.test is None) == (other.test is None)
        if one.test is not None and other.test is not None:
            assert one.test.loss == pytest.approx(other.test.loss, rel=relative)
            assert one.test.metrics == pytest.approx(dict(other.test.metrics), rel=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [sgd(0.16), sgd(0.1, momentum=0.9), adam(0.01), chain(clip_by_global_norm(0.1), sgd(0.5)), adamw(0.01, where=is_matrix)],
    ids=["sgd", "momentum", "adam", "clipped", "decayed"],
)
def test_a_run_in_an_ensemble_is_the_run_by_itself(optimizer: AnyTransform) -> None:
    (state, histories), separate = trained(optimizer)
    assert int(state.step) == 15
    assert torch.equal(state.key, torch.stack([one.key for one, _ in separate]))
    for run, (one, history) in enumerate(separate):
        assert_trees_close(ensemble.unstack(state.model)[run], one.model, rtol=1e-9, atol=1e-12)
        assert_same_history(histories[run], history, 1e-9)
    assert histories[0][-1].train.loss != histories[1][-1].train.loss


@pytest.mark.parametrize("shuffled", [True, False])
def test_in_float32_a_run_in_an_ensemble_is_near_the_run_by_itself(shuffled: bool) -> None:
    (state, histories), separate = trained(sgd(0.16), torch.float32, shuffled=shuffled)
    for run, (one, history) in enumerate(separate):
        assert_near(ensemble.unstack(state.model)[run], one.model, 2e-6)  # after 15 steps
        assert_same_history(histories[run], history, 1e-6)


def test_an_ensemble_of_one_is_a_run() -> None:
    state = ensemble.train_state(split(key(3), 1), ensemble.initialize(split(key(1), 1), network()), sgd(0.1))
    x, target = data(dtype=torch.float32)
    step = ensemble.train_step(mse, sgd(0.1))
    _, (history,) = ensemble.fit(step, state, [(x.unsqueeze(0), target.unsqueeze(0))], epochs=2, progress=False)
    assert [epoch.step for epoch in history] == [1, 2]


def fitted(
    state: TrainState[ensemble.Ensemble[Network], SGDState], *, epochs: int, progress: bool | Console = False
) -> tuple[TrainState[ensemble.Ensemble[Network], SGDState], tuple[tuple[Epoch, ...], ...]]:
    shared = ensemble.share(data(), RUNS)
    step = ensemble.train_step(mse, sgd(0.1))
    return ensemble.fit(
        step,
        state,
        lambda keys: ensemble.minibatches(keys, shared, 8),
        epochs=epochs,
        metrics={"accuracy": accuracy},
        evaluate=lambda model: evaluate(mse, model, [data()]),
        progress=progress,
    )


def test_a_run_in_parts_gives_the_bits_of_a_run_at_once() -> None:
    state, _ = states_of(network(), sgd(0.1))
    half, first = fitted(state, epochs=2)
    whole, history = fitted(state, epochs=5)
    rest, second = fitted(half, epochs=3)
    assert tree.equal(rest, whole)
    losses = [[epoch.train.loss for epoch in of_run] for of_run in history]
    assert losses == [[epoch.train.loss for epoch in (*one, *other)] for one, other in zip(first, second, strict=True)]


def test_no_epochs_change_nothing() -> None:
    state, _ = states_of(network(), sgd(0.1))
    after, histories = fitted(state, epochs=0)
    assert tree.equal(after, state)
    assert histories == ((), (), ())


def test_what_fit_returns_serves_writing_in_place() -> None:
    state, _ = fitted(states_of(network(), sgd(0.1))[0], epochs=1)
    assert not any(leaf.is_inference() for leaf in tree.leaves(state))


def test_how_many_predictions_wait_to_be_measured_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    state, _ = states_of(network(), sgd(0.1))
    _, expected = fitted(state, epochs=1)
    monkeypatch.setattr("fundl.training._means._BUFFER_NUMBERS", 50)
    _, histories = fitted(state, epochs=1)
    for history, other in zip(histories, expected, strict=True):
        assert_same_history(history, other, 1e-9)


def test_progress_tells_the_means_over_the_runs() -> None:
    state, _ = states_of(network(), sgd(0.1))
    lines = io.StringIO()
    _, histories = fitted(state, epochs=2, progress=Console(file=lines, width=200))
    last = [history[-1] for history in histories]
    loss, metric = (
        sum(epoch.train.loss for epoch in last) / RUNS,
        sum(epoch.train.metrics["accuracy"] for epoch in last) / RUNS,
    )
    assert f"epoch 2/2  loss {loss:.4f}  accuracy {metric:.4f}  test loss " in lines.getvalue()


def test_fit_refuses_impossible_numbers_and_epochs_without_batches() -> None:
    state, _ = states_of(network(), sgd(0.1))
    step = ensemble.train_step(mse, sgd(0.1))
    with pytest.raises(ValueError, match="the number of epochs must be 0 or more, not -1"):
        ensemble.fit(step, state, [], epochs=-1)
    with pytest.raises(ValueError, match="evaluate_every must be 1 epoch or more, not 0"):
        ensemble.fit(step, state, [], epochs=1, evaluate_every=0)
    with pytest.raises(ValueError, match="epoch 1 has no batches"):
        ensemble.fit(step, state, [], epochs=1, progress=False)


def test_a_run_that_diverges_is_named() -> None:
    state, _ = states_of(linear(2, 2), sgd(0.1))
    x, target = ensemble.share(data(), RUNS)
    broken = x.clone()
    broken[1, 0, 0] = math.nan
    step = ensemble.train_step(mse, sgd(0.1))
    with pytest.raises(FloatingPointError, match="the loss of run 1 is nan in epoch 1, at step 2: its training diverges"):
        ensemble.fit(step, state, [(x, target), (broken, target)], epochs=1, progress=False)


def test_a_loss_is_a_single_number_for_each_run() -> None:
    def of_samples(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return (prediction - target).square().mean(1), prediction - target

    state, _ = states_of(network(), sgd(0.1))
    step = ensemble.train_step(of_samples, sgd(0.1))
    with pytest.raises(ValueError, match=r"a single number for each run, .* but those of all runs are of shape \(3, 20\)"):
        ensemble.fit(step, state, [ensemble.share(data(), RUNS)], epochs=1, progress=False)


def test_ctrl_c_loses_nothing() -> None:
    state, _ = states_of(network(), sgd(0.1))
    step = ensemble.train_step(mse, sgd(0.1))
    batch = ensemble.share(data(), RUNS)

    def interrupted(
        before: TrainState[ensemble.Ensemble[Network], SGDState], given: Batch
    ) -> tuple[TrainState[ensemble.Ensemble[Network], SGDState], Report]:
        if int(before.step) == 3:
            raise KeyboardInterrupt
        return step(before, given)

    with pytest.raises(Interrupted) as caught:
        ensemble.fit(interrupted, state, [batch, batch], epochs=3, progress=False)
    assert isinstance(caught.value.state, TrainState)
    assert int(caught.value.state.step) == 3
    (epoch,) = caught.value.history
    _, histories = ensemble.fit(step, state, [batch, batch], epochs=1, progress=False)
    assert epoch.train.loss == pytest.approx(sum(history[0].train.loss for history in histories) / RUNS)


def test_the_key_of_an_epoch_is_that_of_each_run() -> None:
    state, separate = states_of(network(), sgd(0.1))
    keys: list[Tensor] = []

    def batches(epoch_keys: Tensor) -> list[Batch]:
        keys.append(epoch_keys)
        return [ensemble.share(data(), RUNS)] * 2

    ensemble.fit(ensemble.train_step(mse, sgd(0.1)), state, batches, epochs=2, progress=False)
    assert torch.equal(keys[1], torch.stack([fold_in(one.key, 2**63 + 2) for one in separate]))
