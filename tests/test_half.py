"""Half precision: what is summed is summed in float32 at least, and rounded once.

The oracle is the same layer in float64, on the same numbers: those of 16 bits are numbers of float64 as well. It is compared
in units of the last place of the largest number of a tensor, after 5,000 rows, with means far from 0, and along axes of 5,000
places, where sums in 16 bits have stood still long ago.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import attrs
import pytest
import torch
from torch import Tensor

from fundl import (
    ELU,
    AdaptiveAveragePool1d,
    AdaptiveAveragePool2d,
    AdaptiveAveragePool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AveragePool1d,
    AveragePool2d,
    AveragePool3d,
    CrossAttention,
    Embedding,
    GlobalAveragePool,
    GlobalMaxPool,
    Identity,
    LogSoftmax,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    MeanOfPositions,
    Model,
    Pad,
    SelfAttention,
    Softmax,
    Upsample,
    accuracy,
    apply,
    batch_norm,
    bilinear,
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    cross_attention,
    embedding,
    group_norm,
    gru,
    instance_norm,
    jit,
    key,
    layer_norm,
    learned_positions,
    linear,
    lstm,
    mean_and_std,
    mixed_precision,
    over_time,
    random,
    rms_norm,
    rnn,
    self_attention,
    spectral_norm,
    standardize,
    stateful,
    tied,
    tree,
    vjp,
    weight_norm,
    weight_standardization,
)
from fundl._common.half import together
from fundl._common.layouts import LAYOUTS, channels_last
from tests.loss_base import REDUCTIONS
from tests.loss_samples import SAMPLES as LOSSES
from tests.samples import ELEMENTWISE, SAMPLES, Sample, attention, normal, transformer, with_values
from tests.test_jit_samples import GROUPS
from tests.test_layers import backward_any, forward_any, vjp_any, without_integers

T = TypeVar("T")

ROWS: Final = 5_000
HALF: Final = (torch.bfloat16, torch.float16)

SHORT: Final = {"LearnedPositions, one sequence", "module"}  # a module's sums are torch's own
"""Of 7 steps at most."""

every_dtype = pytest.mark.parametrize("dtype", HALF, ids=str)
every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
batched_sample = pytest.mark.parametrize(
    "sample",
    [sample for sample in SAMPLES if sample.batched and sample.name not in SHORT],
    ids=lambda sample: sample.name,
)
# Scores of attention are products of two numbers that are rounded: far from 0 they are off by more than 1. So is, where its
# mean is taken from it, the gradient of a weight.
OFF: Final = {sample.name for sample in (*attention.SAMPLES, *transformer.SAMPLES)} | {
    "adapted attention",
    "WeightStandardization",
    "WeightStandardization, eps",
}
kept_far_from_0 = pytest.mark.parametrize(
    "sample", [sample for sample in SAMPLES if sample.name not in OFF], ids=lambda sample: sample.name
)


# --- In units of the last place ----------------------------------------------------------------------------------------


def roundings(model: Model) -> int:
    """How often numbers are rounded on the way through a model and back, at most: twice in a layer, and more in attention."""
    return 2 + sum(8 if isinstance(record, SelfAttention | CrossAttention) else 2 for record in tree.records(model))


def deviation(actual: Tensor, expected: Tensor, lost: float = 1e-7) -> float:
    """The greatest, in units of the last place of the largest number expected.

    No error are what float16 takes for 0 or for infinity, and what float32 does not see beside 1.
    """
    info, wanted = torch.finfo(actual.dtype), expected.to(actual.dtype)
    if not expected.numel():
        return 0.0
    errors = torch.where(actual == wanted, 0, (actual.double() - wanted.double()).abs().nan_to_num(math.inf))
    error = (errors.max() - max(2 * info.tiny * info.eps, lost)).clamp(min=0)
    return float(error / (expected.abs().max() * info.eps).clamp(min=info.tiny))


def cotangents(output: T) -> T:
    """Numbers of one sign, so that sums grow, and small, so that they stay in the range of float16."""
    keys = iter(random.split(key(4), len(tree.leaves(output))))
    return tree.map(lambda leaf: ((random.uniform(next(keys), tuple(leaf.shape)) + 0.5) / 64).to(leaf), output)


def assert_as_float64(
    model: Model,
    x: object,
    dtype: torch.dtype,
    *,
    view: Callable[[Tensor], Tensor] = lambda leaf: leaf,
    lost: float = 1e-7,
    times: float = 1.0,
) -> None:
    """Output and gradients in half precision are those in float64, but for roundings, or so many times these."""
    model, x = tree.map(view, tree.cast_to((model, x), dtype))
    output, residuals = forward_any(model, x)
    grad = tree.map(view, cotangents(output))
    grads, grad_x = backward_any(model, residuals, grad)
    assert_near_float64((output, (grads, grad_x)), (model, x, grad), lost, times)


def assert_near_float64(
    found: tuple[object, tuple[object, object]], given: tuple[Model, object, object], lost: float, times: float = 1.0
) -> None:
    """What an output and gradients are, found for a model, an input and a cotangent of 16 bits."""
    model, x, grad = given
    wide, wide_x, wide_grad = tree.cast_to(given, torch.float64)
    output, residuals = forward_any(wide, wide_x)
    grads, grad_x = backward_any(wide, residuals, wide_grad)
    parts = {
        "output": (found[0], output),
        "gradient of the parameters": (found[1][0], grads),
        "gradient of the input": (without_integers(x, found[1][1]), without_integers(wide_x, grad_x)),
    }
    dtype = next(leaf.dtype for leaf in tree.leaves(grad) if leaf.is_floating_point())
    for name, (of_half, expected) in parts.items():
        for actual, leaf in zip(tree.leaves(of_half), tree.leaves(expected), strict=True):
            if leaf.is_floating_point():
                assert actual.dtype == dtype
                assert deviation(actual, leaf, lost) <= times * roundings(model), name


def repeated(x: object, rows: int) -> object:
    """The examples of a batch again and again."""
    return tree.map(lambda leaf: leaf.repeat(rows // leaf.shape[0], *[1] * (leaf.ndim - 1)), x)


def far(x: object) -> object:
    """The input with a mean far from 0."""
    return tree.map(lambda leaf: leaf + 30 if leaf.is_floating_point() else leaf, x)


# --- Every layer -------------------------------------------------------------------------------------------------------


@batched_sample
@every_dtype
def test_sums_over_many_rows(sample: Sample, dtype: torch.dtype) -> None:
    assert_as_float64(sample.model, repeated(sample.x, ROWS), dtype)


@kept_far_from_0
@every_dtype
def test_means_far_from_0(sample: Sample, dtype: torch.dtype) -> None:
    assert_as_float64(sample.model, far(sample.x), dtype)


@pytest.mark.slow
@batched_sample
@every_dtype
def test_sums_over_many_rows_with_means_far_from_0(sample: Sample, dtype: torch.dtype) -> None:
    if sample.name not in OFF:
        assert_as_float64(sample.model, far(repeated(sample.x, ROWS)), dtype, lost=1e-7 * ROWS)


@pytest.mark.slow
@every_sample
@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(sample: Sample, dtype: torch.dtype, layout: str) -> None:
    # Of rows that are all the same, differences are 0 but for roundings; attention takes them from its values.
    lost = 1e-7 if layout != "expanded" else 3e-2 if sample.name in OFF else 5e-4
    assert_as_float64(sample.model, sample.x, dtype, view=LAYOUTS[layout], lost=lost)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@batched_sample
@every_dtype
def test_sums_on_processors_without_instructions_for_half_precision(sample: Sample, dtype: torch.dtype) -> None:
    with torch.backends.mkldnn.flags(enabled=False):
        assert_as_float64(sample.model, repeated(sample.x, 1_000), dtype)


@pytest.mark.slow
@every_dtype
@pytest.mark.parametrize("samples", GROUPS.values(), ids=GROUPS.keys())
def test_compiled_sums_over_many_rows(samples: Sequence[Sample], dtype: torch.dtype) -> None:
    given: dict[str, tuple[Model, object, object]] = {}
    for sample in samples:
        model, x = tree.cast_to((sample.model, sample.x), dtype)
        if sample.batched and sample.name not in SHORT:
            x = repeated(x, ROWS)
        given[sample.name] = model, x, cotangents(forward_any(model, x)[0])

    def all_of_them(given: dict[str, tuple[Model, object, object]]) -> dict[str, tuple[object, tuple[object, object]]]:
        return {name: (forward_any(model, x)[0], vjp_any(model, x, grad)) for name, (model, x, grad) in given.items()}

    compiled = jit(all_of_them)
    for name, found in compiled(given).items():
        assert_near_float64(found, given[name], 1e-7)
    assert all(trace.compiled for trace in compiled.traces)


# --- Long axes ---------------------------------------------------------------------------------------------------------


def peak(*shape: int) -> Tensor:
    """0, but for one element of each channel: all windows that see it have their maximum there."""
    x = torch.zeros(shape, dtype=torch.float64)
    middle = sum(size // 2 * math.prod(shape[axis + 1 :]) for axis, size in enumerate(shape) if axis > 1)
    x.view(*shape[:2], -1)[..., middle] = 5
    return x


# Whatever adds up along something else than rows: positions, windows that overlap, padding, features, channels, keys.
LONG: Final[Sequence[tuple[str, Model, object]]] = [
    ("Pad, replicate", Pad(((ROWS, ROWS),), mode="replicate"), normal(1, 1, 2)),
    ("Pad, replicate images", Pad((40, 40), mode="replicate"), normal(1, 1, 2, 2)),
    ("Pad, replicate volumes", Pad((10, 10, 10), mode="replicate"), normal(1, 1, 2, 2, 2)),
    ("Pad, reflect volumes", Pad((10, 10, 10), mode="reflect"), normal(1, 1, 11, 11, 11)),
    ("Pad, circular volumes", Pad((10, 10, 10), mode="circular"), normal(1, 1, 10, 10, 10)),
    *(
        (f"Upsample, {mode}, {count} axes", Upsample(factor, mode=mode), normal(1, 1, *(2,) * count))
        for mode in ("nearest", "linear")
        for count, factor in ((1, ROWS), (2, 71), (3, 17))
    ),
    ("Upsample, channels last", Upsample(71, mode="linear"), channels_last(normal(1, 3, 2, 2))),
    ("Upsample, less", Upsample(size=2, mode="linear"), normal(1, 1, 99, 99)),
    ("AveragePool1d", AveragePool1d(999, stride=1), normal(1, 1, 2_500)),
    ("AveragePool2d", AveragePool2d(40, stride=1), normal(1, 1, 99, 99)),
    ("AveragePool2d, channels last", AveragePool2d(40, stride=1), channels_last(normal(1, 3, 99, 99))),
    ("AveragePool2d, divisor", AveragePool2d(40, stride=1, divisor=40), normal(1, 1, 99, 99)),
    ("AveragePool3d", AveragePool3d(10, stride=1), normal(1, 1, 25, 25, 25)),
    ("MaxPool1d", MaxPool1d(999, stride=1), peak(1, 1, 2_000)),
    ("MaxPool2d", MaxPool2d(40, stride=1), peak(1, 1, 80, 80)),
    ("MaxPool2d, channels last", MaxPool2d(40, stride=1), channels_last(peak(1, 3, 80, 80))),
    ("MaxPool3d", MaxPool3d(15, stride=1), peak(1, 1, 30, 30, 30)),
    ("AdaptiveAveragePool1d, more", AdaptiveAveragePool1d(ROWS), normal(1, 1, 2)),
    ("AdaptiveAveragePool2d, more", AdaptiveAveragePool2d(71), normal(1, 1, 2, 2)),
    ("AdaptiveAveragePool2d, more, channels last", AdaptiveAveragePool2d(71), channels_last(normal(1, 3, 2, 2))),
    ("AdaptiveAveragePool3d, more", AdaptiveAveragePool3d(17), normal(1, 1, 2, 2, 2)),
    ("AdaptiveAveragePool1d", AdaptiveAveragePool1d(2), normal(1, 1, ROWS) + 70),
    ("AdaptiveAveragePool2d", AdaptiveAveragePool2d(2), normal(1, 1, 99, 99) + 70),
    ("AdaptiveAveragePool3d", AdaptiveAveragePool3d(2), normal(1, 1, 19, 19, 19) + 70),
    ("AdaptiveMaxPool1d, more", AdaptiveMaxPool1d(ROWS), normal(1, 1, 2)),
    ("AdaptiveMaxPool2d, more", AdaptiveMaxPool2d(71), normal(1, 1, 2, 2)),
    ("AdaptiveMaxPool2d, more, channels last", AdaptiveMaxPool2d(71), channels_last(normal(1, 3, 2, 2))),
    ("AdaptiveMaxPool3d, more", AdaptiveMaxPool3d(17), normal(1, 1, 2, 2, 2)),
    ("GlobalAveragePool", GlobalAveragePool(), normal(1, 2, 99, 99) + 70),
    ("GlobalMaxPool", GlobalMaxPool(), normal(1, 2, 99, 99)),
    ("MeanOfPositions", MeanOfPositions(), normal(1, ROWS, 2) + 70),
    ("MeanOfPositions, mask", MeanOfPositions(torch.arange(ROWS)[None] % 5 > 0), normal(1, ROWS, 2) + 70),
    ("LayerNorm", layer_norm(ROWS), normal(2, ROWS) + 70),
    ("RMSNorm", rms_norm(ROWS), normal(2, ROWS) + 70),
    ("GroupNorm", group_norm(2, 4), normal(2, 4, ROWS) + 7),
    ("GroupNorm, channels last", group_norm(2, 4), channels_last(normal(2, 4, 70, 70)) + 70),
    ("InstanceNorm", instance_norm(4), normal(2, 4, ROWS) + 7),
    ("BatchNorm", batch_norm(4), normal(2, 4, ROWS) + 70),
    ("BatchNorm, channels last", batch_norm(4), channels_last(normal(2, 4, 70, 70)) + 70),
    ("Softmax", Softmax(), normal(2, ROWS)),
    ("Softmax, axis", Softmax(axis=1), normal(2, ROWS, 3)),
    ("LogSoftmax", LogSoftmax(), normal(2, ROWS)),
    ("LogSoftmax, axis", LogSoftmax(axis=1), normal(2, ROWS, 3)),
    ("Conv1d", conv1d(2, 2, 3), normal(1, 2, ROWS)),
    ("Conv1d, many channels", conv1d(ROWS, 2, 1), normal(1, ROWS, 3) + 1),
    ("Conv2d", conv2d(2, 2, 3), normal(1, 2, 71, 71)),
    ("Conv3d", conv3d(2, 2, 3), normal(1, 2, 17, 17, 17)),
    ("ConvTranspose1d", conv_transpose1d(2, 2, 3), normal(1, 2, ROWS)),
    ("ConvTranspose2d", conv_transpose2d(2, 2, 3), normal(1, 2, 71, 71)),
    ("ConvTranspose3d", conv_transpose3d(2, 2, 3), normal(1, 2, 17, 17, 17)),
    ("cross-attention, many keys", cross_attention(4, 2), (normal(1, 2, 4), normal(1, 500, 4))),
    ("cross-attention, many queries", cross_attention(4, 2), (normal(1, ROWS, 4), normal(1, 2, 4))),
    ("self-attention", self_attention(4, 2, causal=True), normal(1, 700, 4)),
    ("self-attention, dropout", attrs.evolve(self_attention(4, 2, dropout=0.1), key=key(1)), normal(1, 500, 4)),
    ("LearnedPositions", learned_positions(3, 4), normal(50, 100, 3, 4)),
    ("RNN", rnn(3, 2), normal(2, 500, 3)),
    ("GRU", gru(3, 2), normal(2, 500, 3)),
    ("LSTM", lstm(3, 2), normal(2, 500, 3)),
    ("Embedding", embedding(3, 2), torch.zeros(1, ROWS, dtype=torch.int64)),
    ("tied", tied(embedding(3, 2), Identity()), torch.zeros(1, ROWS, dtype=torch.int64)),
    ("Linear", linear(ROWS, 2), normal(3, ROWS) + 1),
    ("bilinear", bilinear(70, 70, 2), (normal(3, 70) + 1, normal(3, 70) + 1)),
    ("over_time", over_time(linear(2, 2)), normal(1, ROWS, 2)),
    ("WeightNorm", weight_norm(linear(ROWS, 2)), normal(3, ROWS) + 1),
    ("SpectralNorm", spectral_norm(linear(ROWS, 2)), normal(3, ROWS) + 1),
    ("WeightNorm, axis", weight_norm(linear(3, ROWS), axis=1), normal(3, 3) + 1),
    ("WeightStandardization", weight_standardization(linear(ROWS, 2)), normal(3, ROWS) + 1),
]


@pytest.mark.parametrize(("model", "x"), [row[1:] for row in LONG], ids=[row[0] for row in LONG])
@every_dtype
def test_sums_along_axes_other_than_rows(model: Model, x: object, dtype: torch.dtype) -> None:
    assert_as_float64(tree.cast_to(with_values(model), torch.float64), x, dtype)


@every_dtype
def test_a_state_adds_up_in_float32(dtype: torch.dtype) -> None:
    layer = tree.map(
        lambda leaf: torch.ones_like(leaf, device="cpu"), stateful(rnn(1, 1, activation="relu", bias=False, dtype=dtype))
    )
    x, state = torch.ones(1, 400, 1, dtype=dtype), torch.zeros(1, 1, 1, dtype=dtype)
    _, after = apply(layer, (x, state))
    assert after.item() == 400
    _, grad_x = vjp(layer, (x, state), (torch.ones_like(x), torch.zeros_like(state)))
    assert grad_x[1].item() == 400


# --- As it was found ---------------------------------------------------------------------------------------------------


def rounded(number: float, dtype: torch.dtype) -> float:
    return torch.tensor(number).to(dtype).item()


@every_dtype
def test_the_gradient_of_one_token_of_5000(dtype: torch.dtype) -> None:
    layer = Embedding(torch.zeros(1, 2, dtype=dtype))
    grads, _ = vjp(layer, torch.zeros(ROWS, dtype=torch.int64), torch.ones(ROWS, 2, dtype=dtype))
    assert grads.weight.tolist() == [[rounded(5_000, dtype)] * 2]


@every_dtype
@pytest.mark.parametrize("rows", [5_000, 8_192])
def test_the_gradient_of_the_bias_of_normalisation_in_mixed_precision(dtype: torch.dtype, rows: int) -> None:
    x = random.normal(key(0), (rows, 4))
    for layer in (layer_norm(4), group_norm(2, 4), batch_norm(4)):
        model = mixed_precision(tree.map(lambda leaf: torch.ones_like(leaf, device="cpu"), layer), compute=dtype)
        bias = vjp(model, x, torch.ones_like(x))[0].layers[0].bias
        assert bias is not None
        assert bias.dtype == torch.float32
        assert bias.tolist() == [rounded(rows, dtype)] * 4


@every_dtype
def test_a_mean_of_positions_whose_sum_is_beyond_float16(dtype: torch.dtype) -> None:
    x = torch.full((1, 1_000, 1), 70.0, dtype=dtype)
    assert apply(MeanOfPositions(), x).item() == 70
    assert apply(MeanOfPositions(torch.ones(1, 1_000, dtype=torch.bool)), x).item() == 70


def test_the_slope_of_elu_far_from_0() -> None:
    x = torch.tensor([-7.0], dtype=torch.bfloat16)
    _, grad_x = vjp(ELU(), x, torch.ones_like(x))
    assert grad_x.item() == pytest.approx(9.1e-4, rel=4e-3)


# --- Activations -------------------------------------------------------------------------------------------------------


def every_number(dtype: torch.dtype) -> Tensor:
    """All numbers of 16 bits whose squares are finite in float32, which GELU's kernel takes."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    return numbers[numbers.float().square().isfinite()]


@pytest.mark.parametrize("sample", [row for row in ELEMENTWISE if "Dropout" not in row.name], ids=lambda sample: sample.name)
@every_dtype
def test_the_slope_of_activations_at_every_number(sample: Sample, dtype: torch.dtype) -> None:
    x = every_number(dtype)
    output, residuals = forward_any(sample.model, x)
    _, grad_x = backward_any(sample.model, residuals, torch.ones_like(x))
    wide = x.double().requires_grad_()
    expected = sample.formula(sample.model, wide)
    assert isinstance(expected, Tensor)
    (slope,) = torch.autograd.grad(expected.sum(), wide)
    for actual, wanted in ((output, expected.detach()), (grad_x, slope)):
        assert isinstance(actual, Tensor)
        torch.testing.assert_close(actual, wanted.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=2e-6)


@every_dtype
def test_the_slope_of_softmax_where_one_probability_is_nearly_1(dtype: torch.dtype) -> None:
    for layer in (Softmax(), LogSoftmax()):
        x = torch.tensor([[8.0, 0.0], [-3.0, 6.0]], dtype=dtype)
        for grad in (torch.eye(2), 1 - torch.eye(2)):
            _, actual = vjp(layer, x, grad.to(dtype))
            _, expected = vjp(layer, x.double(), grad.double())
            torch.testing.assert_close(actual, expected.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=0)


# --- Losses, metrics and data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@every_dtype
def test_losses_of_many_rows(name: str, dtype: torch.dtype) -> None:
    sample = LOSSES[name]
    prediction, target = sample.inputs(dtype)
    prediction, target = (leaf.repeat(ROWS // len(leaf) or 1, *[1] * (leaf.ndim - 1)) for leaf in (prediction, target))
    for reduction in REDUCTIONS:
        value, grad = sample.loss(prediction, target, reduction=reduction)
        wide = target.double() if target.is_floating_point() else target
        expected, expected_grad = sample.loss(prediction.double(), wide, reduction=reduction)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
        assert grad.dtype == dtype
        assert deviation(grad, expected_grad) <= 1


@every_dtype
def test_metrics_and_norms_of_many_rows(dtype: torch.dtype) -> None:
    prediction = torch.eye(2, dtype=dtype).repeat(ROWS, 1)
    assert accuracy(prediction, (torch.arange(2 * ROWS) % 4 == 0).long()).item() == 0.25
    assert tree.norm(torch.ones(4 * ROWS, dtype=dtype)).item() == pytest.approx(math.sqrt(4 * ROWS), rel=1e-6)


@every_dtype
def test_data_far_from_0_are_standardized(dtype: torch.dtype) -> None:
    x = (normal(ROWS, 3) * 4 + 200).to(dtype)
    mean, std = mean_and_std(x)
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, x.double().mean(0, keepdim=True).float())
    scaled = standardize(x, mean, std)
    assert scaled.dtype == dtype
    torch.testing.assert_close(scaled.double().mean(0), torch.zeros(3).double(), rtol=0, atol=1e-3)


# --- Casts ---


def test_tensors_are_cast_together_as_each_alone() -> None:
    """As on a GPU, where it is by one kernel for many."""
    given = [
        torch.tensor([1 + 2**-9, 1 + 3 * 2**-9, -math.inf, math.nan, 3e38, 1e-45]),  # halves go to the even neighbour
        normal(3, 4).t(),
        normal(1, 4).expand(3, 4),
        normal(0, 4),
        normal().to(torch.bfloat16),
        normal(5).to(torch.float64),
        normal(5, 2)[:, 1],
    ]
    wanted = [torch.bfloat16, torch.bfloat16, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float16]
    found = together(given, wanted)
    for tensor, each, dtype in zip(found, given, wanted, strict=True):
        alone = each.to(dtype)
        assert tensor.dtype == dtype
        assert tensor.stride() == alone.stride()
        torch.testing.assert_close(tensor, alone, rtol=0, atol=0, equal_nan=True)
    assert found[5] is given[5]
    assert not together([], [])


# --- Random numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64], ids=str)
def test_random_numbers_stay_within_their_bounds(dtype: torch.dtype) -> None:
    for std, low, high in ((0.02, -2.0, 2.0), (0.3, 0.5, 1.1), (0.3, -1.3, -0.2), (1.0, -math.inf, 0.1), (7.0, -0.3, math.inf)):
        drawn = random.truncated_normal(key(0), (200_000,), std=std, low=low, high=high, dtype=dtype).double()
        assert float(drawn.min()) >= low * std
        assert float(drawn.max()) <= high * std
    assert random.truncated_normal(key(0), (3,), mean=1.003, std=1e-9, dtype=torch.bfloat16).tolist() == [1.0] * 3
    assert random.truncated_normal(key(0), (3,), std=0.0, low=-math.inf, dtype=dtype).tolist() == [0.0] * 3
    for low, high in ((0.0, 1.0), (-1.0, 0.1), (0.1, 0.3), (100.0, 101.0)):
        drawn = random.uniform(key(0), (200_000,), low=low, high=high, dtype=dtype)
        ends = torch.tensor([low, high], dtype=torch.float64).to(dtype)
        assert bool((drawn >= ends[0]).all())
        assert bool((drawn < ends[1]).all())
