"""Losses: a table of samples drives the tests that hold for all; then come what each does at its limits and what it refuses."""

import math
from collections.abc import Callable
from functools import partial
from typing import Final, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import fundl
from fundl import (
    Linear,
    Reduction,
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber,
    kl_divergence,
    mae,
    mse,
    nll,
    value_and_grad,
)
from tests.loss_base import REDUCTIONS, Loss, Sample, normal, uniform
from tests.loss_samples import FORMULAS, INDICES, POS_WEIGHT, SAMPLES, WEIGHT, distributions, function_of

every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def test_every_public_loss_is_in_the_table() -> None:
    public = {name for name, value in vars(fundl).items() if str(getattr(value, "__module__", "")).startswith("fundl.losses.")}
    functions = {function_of(sample.loss) for sample in SAMPLES.values()}
    assert functions == set(FORMULAS)
    of_others = {"chunked_cross_entropy", "unreduced", "weighted"}  # in test_deferred.py, and test_losses_one_by_one.py
    assert {getattr(function, "__name__", "") for function in functions} == public - of_others
    assert "mse" in public


# --- What holds for all ----------------------------------------------------------------------------------------------


@every_reduction
@every_sample
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-6)], ids=str)
def test_agrees_with_torch_and_autograd(sample: Sample, reduction: Reduction, dtype: torch.dtype, tolerance: float) -> None:
    value, grad = sample.loss(*sample.inputs(dtype), reduction=reduction)
    expected_value, expected_grad = sample.expected(sample.prediction, sample.target, reduction)
    assert value.shape == ()
    assert value.dtype == grad.dtype == dtype
    assert torch.allclose(value.double(), expected_value, rtol=tolerance, atol=tolerance)
    assert grad.shape == expected_grad.shape
    assert torch.allclose(grad.double(), expected_grad, rtol=tolerance, atol=tolerance)


@every_reduction
@every_sample
def test_the_gradient_is_the_slope_of_the_value(sample: Sample, reduction: Reduction) -> None:
    _, grad = sample.loss(sample.prediction, sample.target, reduction=reduction)
    slopes = torch.empty(grad.numel(), dtype=torch.float64)
    step = 1e-6
    for place in range(grad.numel()):
        move = torch.zeros(grad.numel(), dtype=torch.float64)
        move[place] = step
        move = move.reshape(grad.shape)
        above, _ = sample.loss(sample.prediction + move, sample.target, reduction=reduction)
        below, _ = sample.loss(sample.prediction - move, sample.target, reduction=reduction)
        slopes[place] = (above - below) / (2 * step)
    assert torch.allclose(grad, slopes.reshape(grad.shape), rtol=1e-6, atol=1e-8)


@every_sample
def test_the_mean_is_the_default(sample: Sample) -> None:
    torch.testing.assert_close(
        sample.loss(sample.prediction, sample.target),
        sample.loss(sample.prediction, sample.target, reduction="mean"),
        rtol=0,
        atol=0,
    )


@every_sample
def test_is_pure_and_changes_nothing(sample: Sample) -> None:
    prediction, target = sample.prediction.clone(), sample.target.clone()
    first, second = sample.loss(prediction, target), sample.loss(prediction, target)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(prediction, sample.prediction)
    assert torch.equal(target, sample.target)


@every_sample
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_records_no_tape_in_any_mode(sample: Sample, mode: Callable[[], torch.no_grad], dtype: torch.dtype) -> None:
    prediction, target = sample.inputs(dtype)
    plain = sample.loss(prediction, target)
    with mode():
        prediction = prediction.clone().requires_grad_()
        target = target.clone().requires_grad_(target.is_floating_point())
        value, grad = sample.loss(prediction, target)
    assert not value.requires_grad
    assert not grad.requires_grad
    assert torch.equal(value, plain[0])
    assert torch.equal(grad, plain[1])


@pytest.mark.parametrize("target", [INDICES, distributions(5, 3)], ids=["indices", "probabilities"])
def test_weights_that_require_grad_record_no_tape(target: Tensor) -> None:
    value, grad = cross_entropy(normal(5, 3), target, weight=WEIGHT.clone().requires_grad_(), label_smoothing=0.1)
    assert not value.requires_grad
    assert not grad.requires_grad
    value, grad = binary_cross_entropy_with_logits(normal(5, 3), uniform(5, 3), pos_weight=POS_WEIGHT.clone().requires_grad_())
    assert not value.requires_grad
    assert not grad.requires_grad


@every_sample
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_meta_tensors_have_shapes_only(sample: Sample, dtype: torch.dtype) -> None:
    prediction, target = sample.inputs(dtype)
    if isinstance(sample.loss, partial):
        options = {name: to_meta(option) for name, option in sample.loss.keywords.items()}
        value, grad = sample.loss.func(prediction.to("meta"), target.to("meta"), **options)
    else:
        value, grad = sample.loss(prediction.to("meta"), target.to("meta"))
    assert value.is_meta
    assert value.shape == ()
    assert grad.is_meta
    assert grad.shape == prediction.shape
    assert grad.dtype == dtype


def to_meta(option: object) -> object:
    return option.to("meta") if isinstance(option, Tensor) else option


@every_sample
def test_strides_do_not_matter(sample: Sample) -> None:
    plain = sample.loss(sample.prediction, sample.target)
    strided = sample.loss(reversed_strides(sample.prediction), reversed_strides(sample.target))
    spaced = sample.loss(spaced_out(sample.prediction), spaced_out(sample.target))
    torch.testing.assert_close(strided, plain, rtol=1e-13, atol=0)
    torch.testing.assert_close(spaced, plain, rtol=1e-13, atol=0)


def reversed_strides(x: Tensor) -> Tensor:
    axes = tuple(reversed(range(x.ndim)))
    return x.permute(axes).contiguous().permute(axes)


def spaced_out(x: Tensor) -> Tensor:
    return torch.stack((x, x), -1)[..., 1]


@every_reduction
@every_sample
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(sample: Sample, reduction: Reduction, dtype: torch.dtype) -> None:
    prediction, target = sample.inputs(dtype)
    value, grad = sample.loss(prediction, target, reduction=reduction)
    wide = target.float() if target.is_floating_point() else target
    expected_value, expected_grad = sample.loss(prediction.float(), wide, reduction=reduction)
    assert value.dtype == torch.float32
    assert grad.dtype == dtype
    assert torch.equal(value, expected_value)
    assert torch.equal(grad, expected_grad.to(dtype))


def test_the_mean_of_many_halves_neither_overflows_nor_underflows() -> None:
    value, _ = mse(torch.full((100_000,), 2.0, dtype=torch.float16), torch.zeros(100_000, dtype=torch.float16))
    assert float(value) == pytest.approx(4.0, rel=1e-5)


@every_sample
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_can_be_traced(sample: Sample, mode: Literal["real", "fake", "symbolic"]) -> None:
    def step(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return sample.loss(prediction, target)

    # Tensors held as options are constants of the graph, which torch makes of real ones only in the mode "real".
    options = sample.loss.keywords.values() if isinstance(sample.loss, partial) else ()
    constants = any(isinstance(option, Tensor) for option in options)
    traced = make_fx(step, tracing_mode=mode, _allow_non_fake_inputs=constants)(sample.prediction, sample.target)
    result: tuple[Tensor, Tensor] = traced(sample.prediction, sample.target)
    torch.testing.assert_close(result, sample.loss(sample.prediction, sample.target), rtol=1e-13, atol=0)


@pytest.mark.slow
@every_sample
def test_compiles_into_one_graph(sample: Sample) -> None:
    def step(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return sample.loss(prediction, target)

    torch.compiler.reset()
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(sample.prediction, sample.target), step(sample.prediction, sample.target), rtol=1e-13, atol=0
    )


@every_sample
def test_maps_over_a_batch_of_batches(sample: Sample) -> None:
    predictions = torch.stack((sample.prediction, sample.prediction * 0.5))
    targets = torch.stack((sample.target, sample.target))
    values, grads = torch.func.vmap(sample.loss)(predictions, targets)
    for place in range(2):
        torch.testing.assert_close((values[place], grads[place]), sample.loss(predictions[place], targets[place]))


def test_value_and_grad_takes_configured_losses() -> None:
    layer = Linear(weight=normal(3, 2), bias=normal(3))
    x, target = normal(5, 2), INDICES
    loss = partial(cross_entropy, label_smoothing=0.1, reduction="sum")
    value, grads = value_and_grad(loss, layer, x, target)
    weight = layer.weight.clone().requires_grad_()
    expected = F.cross_entropy(F.linear(x, weight, layer.bias), target, label_smoothing=0.1, reduction="sum")
    (expected_grad,) = torch.autograd.grad(expected, weight)
    assert torch.allclose(value, expected.detach())
    assert torch.allclose(grads.weight, expected_grad)


# --- Any shape -------------------------------------------------------------------------------------------------------

sizes = st.integers(1, 4)
quietly = settings(deadline=None, max_examples=80)


def test_differences_of_any_shape() -> None:
    def check(shape: list[int], name: str, reduction: Reduction) -> None:
        assert_agrees(SAMPLES[name], 2 * normal(*shape), uniform(*shape), reduction)

    shapes = st.lists(sizes, min_size=1, max_size=4)
    names = st.sampled_from(["mse", "mae", "huber", "binary_cross_entropy_with_logits"])
    quietly(given(shapes, names, st.sampled_from(REDUCTIONS))(check))()


def test_classes_of_any_shape() -> None:
    def check(shape: list[int], label_smoothing: float, soft: bool, weighted: bool, reduction: Reduction) -> None:
        indices = torch.randint(shape[1], (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(sum(shape)))
        weight = 0.1 + uniform(shape[1]) if weighted else None
        sample = Sample(
            partial(cross_entropy, weight=weight, label_smoothing=label_smoothing),
            partial(F.cross_entropy, weight=weight, label_smoothing=label_smoothing),
            normal(*shape),
            distributions(*shape) if soft else indices,
        )
        assert_agrees(sample, sample.prediction, sample.target, reduction)

    shapes = st.lists(sizes, min_size=2, max_size=5)
    smoothings = st.sampled_from([0.0, 0.1])
    quietly(given(shapes, smoothings, st.booleans(), st.booleans(), st.sampled_from(REDUCTIONS))(check))()


def assert_agrees(sample: Sample, prediction: Tensor, target: Tensor, reduction: Reduction) -> None:
    value, grad = sample.loss(prediction, target, reduction=reduction)
    expected_value, expected_grad = sample.expected(prediction, target, reduction)
    assert torch.allclose(value, expected_value, rtol=1e-11, atol=1e-13)
    assert torch.allclose(grad, expected_grad, rtol=1e-11, atol=1e-13)


def test_a_number_is_a_prediction_too() -> None:
    value, grad = mse(torch.tensor(3.0), torch.tensor(1.0))
    assert value.item() == 4
    assert grad.item() == 4


@pytest.mark.parametrize("loss", [mse, mae, huber, kl_divergence, binary_cross_entropy, binary_cross_entropy_with_logits])
def test_the_sum_of_nothing_is_zero(loss: Loss) -> None:
    value, grad = loss(torch.zeros(0, 3), torch.zeros(0, 3), reduction="sum")
    assert value.item() == 0
    assert grad.shape == (0, 3)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2), (2, 3, 0), (2, 3, 0, 4)])
@pytest.mark.parametrize("loss", [cross_entropy, nll, partial(cross_entropy, label_smoothing=0.1)])
def test_the_sum_over_no_samples_is_zero(loss: Loss, shape: tuple[int, ...]) -> None:
    target = torch.zeros(shape, dtype=torch.int64)[:, 0]
    value, grad = loss(torch.zeros(shape), target, reduction="sum")
    assert value.item() == 0
    assert grad.shape == shape


# --- Limits ----------------------------------------------------------------------------------------------------------

HUGE: Final = torch.tensor([[1e4, -1e4], [1e4, -1e4], [-1e4, -1e4]])


def test_cross_entropy_of_huge_logits() -> None:
    value, grad = cross_entropy(HUGE, torch.tensor([0, 1, 1]), reduction="sum")
    assert value.item() == pytest.approx(2e4 + math.log(2))
    assert torch.equal(grad, torch.tensor([[0.0, 0.0], [1.0, -1.0], [0.5, -0.5]]))


def test_cross_entropy_of_huge_logits_and_probabilities() -> None:
    target = torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.5, 0.5]])
    value, grad = cross_entropy(HUGE, target, reduction="sum")
    assert value.item() == pytest.approx(0.75 * 2e4 + math.log(2))
    assert torch.equal(grad, torch.tensor([[0.0, 0.0], [0.75, -0.75], [0.0, 0.0]]))


def test_smoothed_cross_entropy_of_huge_logits() -> None:
    value, grad = cross_entropy(HUGE, torch.tensor([0, 1, 1]), label_smoothing=0.5, reduction="sum")
    assert value.item() == pytest.approx(0.25 * 2e4 + 0.75 * 2e4 + math.log(2))
    assert torch.allclose(grad, torch.tensor([[0.25, -0.25], [0.75, -0.75], [0.25, -0.25]]))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("pos_weight", [None, 3.0])
def test_binary_cross_entropy_of_huge_logits(sign: float, pos_weight: float | None) -> None:
    yes = 1.0 if pos_weight is None else pos_weight
    x, t = torch.tensor([1e4, 1e4, -1e4, -1e4]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    value, grad = binary_cross_entropy_with_logits(x, t, pos_weight=pos_weight, reduction="sum")
    assert value.item() == pytest.approx(1e4 + 1e4 * yes)
    assert torch.equal(grad, torch.tensor([0.0, 1.0, -yes, 0.0]))
    value, _ = binary_cross_entropy_with_logits(sign * x, t, pos_weight=pos_weight)
    assert value.isfinite()


def test_nll_and_kl_divergence_of_huge_logits() -> None:
    log_probabilities = HUGE.log_softmax(1)
    value, grad = nll(log_probabilities, torch.tensor([0, 1, 1]), reduction="sum")
    assert value.item() == pytest.approx(2e4 + math.log(2))
    assert torch.equal(grad, torch.tensor([[-1.0, 0.0], [0.0, -1.0], [0.0, -1.0]]))
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    value, grad = kl_divergence(log_probabilities, target, reduction="sum")
    assert value.item() == pytest.approx(2e4)
    assert torch.equal(grad, -target)


@pytest.mark.parametrize(("loss", "cost", "slope"), [(mse, 1e8, 1e4), (mae, 1e4, 0.5), (huber, 1e4 - 0.5, 0.5)])
def test_differences_of_huge_predictions(loss: Loss, cost: float, slope: float) -> None:
    value, grad = loss(torch.tensor([1e4, -1e4]), torch.zeros(2))
    assert value.item() == pytest.approx(cost)
    assert grad.tolist() == pytest.approx([slope, -slope])


def test_mae_is_flat_where_it_is_right() -> None:
    value, grad = mae(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
    assert value.item() == 0
    assert grad.tolist() == [0, 0]


def test_a_masked_class_of_probability_zero_adds_nothing() -> None:
    x, t = torch.tensor([[1.0, 1.0, -math.inf]]), torch.tensor([[0.5, 0.5, 0.0]])
    value, grad = cross_entropy(x, t)
    assert value.item() == pytest.approx(math.log(2))
    assert torch.allclose(grad, torch.zeros(1, 3))
    value, grad = cross_entropy(x, torch.tensor([1]))
    assert value.item() == pytest.approx(math.log(2))
    assert torch.allclose(grad, torch.tensor([[0.5, -0.5, 0.0]]))


@pytest.mark.parametrize("log_target", [False, True])
def test_the_divergence_of_equal_distributions_is_zero_even_where_they_are(log_target: bool) -> None:
    t = torch.tensor([[0.5, 0.5, 0.0]])
    value, grad = kl_divergence(t.log(), t.log() if log_target else t, log_target=log_target)
    assert value.item() == 0
    assert torch.allclose(grad, -t / 3)


def test_certain_probabilities_cost_at_most_a_hundred() -> None:
    value, grad = binary_cross_entropy(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), reduction="sum")
    assert value.item() == 100
    assert grad.isfinite().all()
    assert grad[0] < 0
    assert grad[1] == 0


def test_not_a_number_is_not_hidden() -> None:
    broken = torch.tensor([[math.nan, 1.0]])
    assert mse(broken, torch.zeros(1, 2))[0].isnan()
    assert huber(broken, torch.zeros(1, 2))[0].isnan()
    assert cross_entropy(broken, torch.tensor([0]))[0].isnan()
    assert cross_entropy(broken, torch.tensor([[0.5, 0.5]]))[0].isnan()
    assert kl_divergence(torch.zeros(1, 2), broken)[0].isnan()


def test_the_mean_over_ignored_samples_only_is_nan_as_in_torch() -> None:
    value, _ = cross_entropy(normal(2, 3), torch.tensor([-100, -100]))
    assert value.isnan()
    value, grad = cross_entropy(normal(2, 3), torch.tensor([-100, -100]), label_smoothing=0.1, reduction="sum")
    assert value.item() == 0
    assert torch.equal(grad, torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32], ids=str)
def test_class_indices_may_be_any_integers(dtype: torch.dtype) -> None:
    torch.testing.assert_close(cross_entropy(normal(5, 3), INDICES.to(dtype)), cross_entropy(normal(5, 3), INDICES))


# --- What is refused -------------------------------------------------------------------------------------------------

CLASSWISE: Final[tuple[Loss, ...]] = (cross_entropy, nll)
EVERY: Final = [sample.loss for name, sample in SAMPLES.items() if name == getattr(sample.loss, "__name__", "")]
ELEMENTWISE: Final = [loss for loss in EVERY if loss not in CLASSWISE]
every_elementwise = pytest.mark.parametrize("loss", ELEMENTWISE)
every_classwise = pytest.mark.parametrize("loss", CLASSWISE)


@every_elementwise
def test_nothing_broadcasts(loss: Loss) -> None:
    column, row = torch.rand(10, 1), torch.rand(10)
    with pytest.raises(ValueError, match=r"prediction's shape is \(10, 1\), the target's \(10,\).*target\.unsqueeze\(-1\)"):
        loss(column, row)
    with pytest.raises(ValueError, match=r"prediction's shape is \(10,\).*\(10, 1\).*target\.reshape\(\(10,\)\)"):
        loss(row, column)
    with pytest.raises(ValueError, match=r"\(10, 1\).*\(10, 2\).*must be equal; the loss does not broadcast"):
        loss(column, torch.rand(10, 2))
    with pytest.raises(ValueError, match=r"\(1,\).*\(\).*must be equal"):
        loss(torch.rand(1), torch.rand(()))


@every_elementwise
def test_dtypes_are_not_mixed(loss: Loss) -> None:
    with pytest.raises(TypeError, match=r"prediction is torch\.float32, the target torch\.int64.*target\.to\(torch\.float32\)"):
        loss(torch.rand(3), torch.tensor([0, 1, 0]))
    with pytest.raises(
        TypeError, match=r"prediction is torch\.float32, the target torch\.float64.*target\.to\(torch\.float32\)"
    ):
        loss(torch.rand(3), torch.rand(3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"prediction must be floating-point, not torch\.int64"):
        loss(torch.tensor([0, 1]), torch.tensor([0, 1]))
    with pytest.raises(TypeError, match=r"prediction must be floating-point, not torch\.bool"):
        loss(torch.tensor([True]), torch.tensor([1.0]))


@every_classwise
def test_predictions_of_classes_are_floating_point(loss: Loss) -> None:
    with pytest.raises(TypeError, match=r"prediction must be floating-point, not torch\.int64"):
        loss(torch.ones(2, 3, dtype=torch.int64), torch.tensor([0, 1]))


@pytest.mark.parametrize("loss", EVERY)
def test_unknown_reductions(loss: Loss) -> None:
    target = torch.tensor([0, 1]) if loss in CLASSWISE else torch.rand(2, 3)
    with pytest.raises(ValueError, match=r"reduction must be \"mean\", \"sum\" or \"batch_mean\", not 'none'"):
        loss(torch.rand(2, 3), target, reduction="none")  # type: ignore[arg-type]  # what the test is about


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("reduction", ["mean", "batch_mean"])
def test_there_is_no_mean_of_an_empty_batch(loss: Loss, reduction: Reduction) -> None:
    target = torch.zeros(0, dtype=torch.int64) if loss in CLASSWISE else torch.zeros(0, 3)
    with pytest.raises(ValueError, match=r"nothing to average: the batch is empty \(its shape is \(0.*reduction=\"sum\""):
        loss(torch.zeros(0, 3), target, reduction=reduction)


def test_there_is_no_mean_over_an_empty_batch_of_probabilities() -> None:
    with pytest.raises(ValueError, match="nothing to average"):
        cross_entropy(torch.zeros(0, 3), torch.zeros(0, 3))


def test_a_number_has_no_batch() -> None:
    with pytest.raises(ValueError, match=r"batch_mean.*has no axis"):
        mse(torch.tensor(1.0), torch.tensor(2.0), reduction="batch_mean")


@every_classwise
@pytest.mark.parametrize("wrong", [3, -1, -7])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (2, 3, 1, 1)])
def test_class_indices_out_of_range(loss: Loss, wrong: int, shape: tuple[int, ...]) -> None:
    target = torch.tensor([1, wrong]).reshape(shape[:1] + shape[2:])
    with pytest.raises(IndexError, match=rf"class index is {wrong}, but there are 3 classes: indices go from 0 to 2.*-100"):
        loss(torch.rand(shape), target)


def test_the_ignored_index_is_not_out_of_range() -> None:
    value, grad = cross_entropy(torch.zeros(2, 3), torch.tensor([1, -1]), ignore_index=-1)
    assert value.item() == pytest.approx(math.log(3))
    assert torch.equal(grad[1], torch.zeros(3))
    with pytest.raises(IndexError, match=r"class index is -100.*-1 \(ignore_index\)"):
        cross_entropy(torch.zeros(2, 3), torch.tensor([-1, -100]), ignore_index=-1)


@every_classwise
def test_shapes_of_class_indices(loss: Loss) -> None:
    with pytest.raises(
        ValueError, match=r"shape \(5, 3\), class indices must have the shape \(5,\), not \(5, 1\).*reshape\(\(5,\)\)"
    ):
        loss(torch.rand(5, 3), INDICES.unsqueeze(1))
    with pytest.raises(ValueError, match=r"class indices must have the shape \(5,\), not \(4,\).*belong together"):
        loss(torch.rand(5, 3), INDICES[:4])
    with pytest.raises(ValueError, match=r"\(5,\), not \(5, 3\): if they are one-hot, take target\.argmax\(1\)"):
        loss(torch.rand(5, 3), F.one_hot(INDICES))
    with pytest.raises(ValueError, match=r"class indices must have the shape \(5, 2\), not \(5,\)"):
        loss(torch.rand(5, 3, 2), INDICES)
    with pytest.raises(ValueError, match=r"must be \(batch, classes, \.\.\.\), not \(3,\).*unsqueeze\(0\)"):
        loss(torch.rand(3), torch.tensor(1))
    with pytest.raises(ValueError, match=r"must be \(batch, classes, \.\.\.\), not \(2, 0\)"):
        loss(torch.rand(2, 0), torch.tensor([0, 0]))


def test_dtypes_of_class_indices() -> None:
    with pytest.raises(TypeError, match=r"class indices must be integers, not torch\.float32.*target\.to\(torch\.int64\)"):
        nll(torch.rand(5, 3), INDICES.to(torch.float32))
    with pytest.raises(TypeError, match=r"class indices must be integers, not torch\.bool"):
        cross_entropy(torch.rand(2, 3), torch.tensor([True, False]))
    with pytest.raises(
        ValueError, match=r"float32 target holds the classes' probabilities.*\(5, 3\), not \(5,\).*target\.to\(torch\.int64\)"
    ):
        cross_entropy(torch.rand(5, 3), INDICES.to(torch.float32))
    with pytest.raises(TypeError, match=r"prediction is torch\.float32, the target torch\.float64"):
        cross_entropy(torch.rand(5, 3), distributions(5, 3))


def test_weights_of_the_wrong_length() -> None:
    for loss in (partial(cross_entropy, weight=torch.ones(2)), partial(nll, weight=torch.ones(2))):
        with pytest.raises(ValueError, match=r"weight must be of shape \(3,\), one for each class, not \(2,\)"):
            loss(torch.rand(5, 3), INDICES)


def test_weights_that_do_not_broadcast_to_a_sample() -> None:
    for shape in ((2,), (5, 3), (5, 1)):
        with pytest.raises(ValueError, match=r"pos_weight is of shape .* must broadcast to one sample's shape \(3,\)"):
            binary_cross_entropy_with_logits(torch.rand(5, 3), torch.rand(5, 3), pos_weight=torch.ones(shape))


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.5, math.nan])
def test_smoothing_out_of_range(label_smoothing: float) -> None:
    with pytest.raises(ValueError, match=rf"label_smoothing.*must be from 0 to 1, not {label_smoothing}"):
        cross_entropy(torch.rand(5, 3), INDICES, label_smoothing=label_smoothing)


def test_ignoring_an_index_of_probabilities() -> None:
    with pytest.raises(ValueError, match=r"ignore_index=0 is for targets of class indices"):
        cross_entropy(normal(5, 3), distributions(5, 3), ignore_index=0)


@pytest.mark.parametrize("delta", [0.0, -1.0, math.nan])
def test_delta_out_of_range(delta: float) -> None:
    with pytest.raises(ValueError, match=rf"delta.*must be above 0, not {delta}"):
        huber(torch.rand(3), torch.rand(3), delta=delta)


def test_values_that_are_no_probabilities() -> None:
    good = torch.tensor([0.0, 0.5, 1.0])
    with pytest.raises(
        ValueError, match=r"prediction must hold probabilities.*from 0 to 1\.5; from logits, take binary.*logits"
    ):
        binary_cross_entropy(torch.tensor([0.0, 1.5, 1.0]), good)
    with pytest.raises(ValueError, match=r"prediction must hold probabilities.*goes from nan to nan"):
        binary_cross_entropy(torch.tensor([0.0, math.nan, 1.0]), good)
    with pytest.raises(ValueError, match=r"target must hold probabilities.*goes from -1 to 1"):
        binary_cross_entropy(good, torch.tensor([-1.0, 1.0, 1.0]))
    with pytest.raises(
        ValueError, match=r"target must hold probabilities.*goes from -1 to 1; of labels -1 and 1.*\(target \+ 1\) / 2"
    ):
        binary_cross_entropy_with_logits(good, torch.tensor([-1.0, 1.0, 1.0]))


@pytest.mark.parametrize("axis", [0, -3, 3, -4])
def test_classes_are_along_an_axis_that_is_not_the_batchs(axis: int) -> None:
    scores, target = normal(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)
    message = rf"axis={axis} is to be that of the classes, any but the first, which is the batch's"
    with pytest.raises(ValueError, match=message):
        cross_entropy(scores, target, axis=axis)
    with pytest.raises(ValueError, match=message):
        nll(scores, target, axis=axis)


def test_classes_last_in_half_precision_round_once() -> None:
    x, target = normal(64, 3, 5).to(torch.bfloat16), torch.arange(192).reshape(64, 3) % 5
    value, grad = cross_entropy(x, target, axis=-1, reduction="batch_mean")
    expected_value, expected = cross_entropy(x.transpose(1, 2), target, reduction="batch_mean")
    torch.testing.assert_close(value, expected_value)
    assert torch.equal(grad, expected.transpose(1, 2))
