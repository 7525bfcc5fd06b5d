"""On a GPU: thousands of rows in half precision, NaN and infinities, long sequences. `pytest -m cuda` runs them."""

import math
from collections.abc import Iterator
from typing import Final

import pytest
import torch
from torch import Tensor

from fundl import apply, assert_trees_close, backward, clip_by_global_norm, forward, initialize, jit, key, self_attention, tree
from fundl._common.running import run_backward, run_forward
from fundl.layer import Model
from fundl.layers._attending import Attention
from tests.on_gpu import CPU, DEVICE, IS_GPU, MARKS, moved
from tests.samples import SAMPLES, Sample, normal
from tests.test_half import assert_as_float64, batched_sample, every_dtype, far, kept_far_from_0, repeated

pytestmark = MARKS

ROWS: Final = 5_000
TIMES: Final = 4.0
"""How many times as many roundings as on the CPU: kernels round parts of sums. Sums in 16 bits would be off by hundreds."""


# --- Half precision ----------------------------------------------------------------------------------------------------


@pytest.fixture
def whole_sums() -> Iterator[None]:
    """Products of 16 bits that add up in float32 to the end, in place of parts that are rounded before they are added."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_bf16_reduced_precision_reduction, settings.allow_fp16_reduced_precision_reduction
    settings.allow_bf16_reduced_precision_reduction = settings.allow_fp16_reduced_precision_reduction = False
    yield
    settings.allow_bf16_reduced_precision_reduction, settings.allow_fp16_reduced_precision_reduction = before


@batched_sample
@every_dtype
@pytest.mark.usefixtures("whole_sums")
def test_sums_over_many_rows(sample: Sample, dtype: torch.dtype) -> None:
    assert_as_float64(moved(sample.model), moved(repeated(sample.x, ROWS)), dtype, times=TIMES)


@kept_far_from_0
@every_dtype
@pytest.mark.usefixtures("whole_sums")
def test_means_far_from_0(sample: Sample, dtype: torch.dtype) -> None:
    assert_as_float64(moved(sample.model), moved(far(sample.x)), dtype, times=TIMES)


# --- Numbers that are none ---------------------------------------------------------------------------------------------


SPREADING: Final = ("Conv", "WeightStandardization", "attention", "transformer")
"""Where a NaN goes depends on how a product is computed: by transforms of whole tiles, or in pieces."""


def _spoilt(x: object, value: float) -> object:
    """The input with one such number in each tensor, in its last row."""

    def spoil(leaf: Tensor) -> Tensor:
        leaf = leaf.clone(memory_format=torch.contiguous_format)
        if leaf.is_floating_point() and leaf.numel():
            leaf.view(-1)[-1] = value
        return leaf

    return tree.map(spoil, x)


def _kinds(values: object) -> list[Tensor]:
    """Of each number, whether it is NaN, an infinity and which, or a number."""
    return [
        torch.where(leaf.isnan(), 2, torch.where(leaf.isinf(), leaf.sign(), 0)).cpu()
        for leaf in tree.leaves(values)
        if leaf.is_floating_point()
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "row", [row for row in SAMPLES if not any(name in row.name for name in SPREADING)], ids=lambda row: row.name
)
def test_nan_and_infinities_go_where_they_go_on_the_cpu(row: Sample, value: float) -> None:
    x = _spoilt(row.x, value)
    found = []
    for device in (CPU, DEVICE):
        y, _ = run_forward(moved(row.model, device=device), moved(x, device=device))
        found.append(_kinds(y))
    assert_trees_close(found[1], found[0], rtol=0, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_keeps_nan_to_the_sequence_that_has_it(value: float, dtype: torch.dtype) -> None:
    model = initialize(key(0), self_attention(64, 4, causal=True, dtype=dtype), device=DEVICE)
    x = normal(1, 3, 20, 64)[0].to(DEVICE, dtype)
    x[1, 7, 5] = value
    y, kept = forward(model, x)
    assert torch.isfinite(y[[0, 2]]).all()
    assert not torch.isfinite(y[1, 7]).all()
    _, grad_x = backward(model, kept, torch.ones_like(y))
    assert torch.isfinite(grad_x[[0, 2]]).all()


def test_a_norm_that_is_not_finite_clips_to_what_the_cpu_gives() -> None:
    transform = clip_by_global_norm(1.0)
    for value in (math.nan, math.inf, 1e300, 0.0):
        grads = initialize(key(0), self_attention(8, 2), dtype=torch.float64)
        grads = tree.map(lambda leaf: leaf * 0 if value == 0 else leaf, grads)  # noqa: B023  # it is called at once
        leaves = tree.leaves(grads)
        leaves[0].view(-1)[3] = value
        found, _ = transform.update(moved(grads), transform.init(moved(grads)), moved(grads))
        expected, _ = transform.update(grads, transform.init(grads), grads)
        assert_trees_close(moved(found, device=CPU), expected, rtol=1e-12, atol=1e-12)


# --- Attention's kernels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["cudnn", "flash"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("steps", "keys"), [(2, 2), (37, 37), (128, 128), (200, 200), (300, 70), (1, 9), (9, 1)])
@pytest.mark.parametrize("size", [8, 64, 96, 128])
def test_attention_by_each_kernel(  # noqa: PLR0917  # an axis each
    by: str, dtype: torch.dtype, causal: bool, steps: int, keys: int, size: int
) -> None:
    if causal and steps != keys:
        pytest.skip("a causal query has a key at its own position")
    enabled = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]  # torch does not say
    torch.backends.cuda.enable_cudnn_sdp(by == "cudnn")
    try:
        packed = normal(1, 3, steps, 3, 4, size)[0].to(DEVICE, dtype)  # as one product gives them
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        if keys != steps:
            k, v = (x.to(DEVICE, dtype) for x in normal(2, 3, 4, keys, size))
        grad = normal(1, 3, 4, steps, size)[0].to(DEVICE, dtype)
        how = Attention(causal, 0.0)
        attended = how.forward(q, k, v, None, None)
        found = attended.output, *how.backward(attended, None, grad)
        q, k, v, grad = (x.to(torch.float64) for x in (q, k, v, grad))
        plain = how.forward(q, k, v, None, None)
        expected = plain.output, *how.backward(plain, None, grad)
        for one, other in zip(found, expected, strict=True):
            scale = max(1.0, float(other.abs().max()))
            bound = (2e-2 if dtype == torch.bfloat16 else 4e-3) * scale
            assert_trees_close(one.to(torch.float64), other, rtol=0, atol=bound)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled)


# --- Long sequences ----------------------------------------------------------------------------------------------------


def _peak(model: Model, x: Tensor, *, compiled: bool) -> int:
    """The most bytes there are at once beside the input, forward and backward."""

    def there_and_back(model: Model, x: Tensor) -> tuple[object, object]:
        y, kept = run_forward(model, x)
        return run_backward(model, kept, y)

    run = jit(there_and_back) if compiled else there_and_back
    for _ in range(2):
        run(model, x)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(model, x)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.skipif(not IS_GPU, reason="memory is counted on a GPU")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_over_long_sequences_needs_little_memory(dtype: torch.dtype, compiled: bool) -> None:
    """Scores of (8, 8, 4096, 4096) would be 2 GB in 16 bits; all of q, k, v, their gradients and so on are 20 tensors of x."""
    model = initialize(key(0), self_attention(512, 8, causal=True, dtype=dtype), device=DEVICE)
    x = torch.randn(8, 4096, 512, dtype=dtype, device=DEVICE)
    assert _peak(model, x, compiled=compiled) < 24 * x.nbytes


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_over_long_sequences_is_the_formula(dtype: torch.dtype, compiled: bool) -> None:
    steps = 4096 if IS_GPU else 256
    model = initialize(key(0), self_attention(32, 2, causal=True, dtype=dtype), device=DEVICE)
    x = torch.randn(1, steps, 32, dtype=dtype, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0))
    run = jit(apply) if compiled else apply
    own = run(model, x)
    expected = apply(moved(model, torch.float64), x.to(torch.float64))  # by the formula: no kernel takes float64
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-3  # the kernel of float32 multiplies as TF32
    assert_trees_close(own.to(torch.float64), expected, rtol=tolerance, atol=tolerance)
