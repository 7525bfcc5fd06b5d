"""On a GPU: layers, attention's kernels, dropout, keys, recurrences and batches, against the CPU.

`pytest -m cuda` runs them. With FUNDL_TEST_DEVICE=cpu they run against the CPU itself, which tests the tests.
"""

import os
from typing import Final

import pytest
import torch
from torch import Tensor

from fundl import (
    Dropout,
    adamw,
    apply,
    assert_trees_close,
    compose,
    cross_entropy,
    forward,
    initialize,
    key,
    linear,
    lstm,
    minibatches,
    random,
    rekey,
    self_attention,
    train_state,
    train_step,
    tree,
    vjp,
)
from fundl._common import draws_on_gpu, gpu_kernels
from fundl._common.running import run_backward, run_forward
from fundl.layers._attending import Attended, Attention
from tests.samples import SAMPLES, Sample, normal
from tests.samples.attention import attention as reference

DEVICE: Final = torch.device(os.environ.get("FUNDL_TEST_DEVICE", "cuda"))

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="there is no GPU"),
]

TOLERANCES: Final = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 1e-1}


def _moved(values: object, dtype: torch.dtype, device: torch.device) -> object:
    return tree.map(lambda leaf: leaf.to(device, dtype if leaf.is_floating_point() else leaf.dtype), values)


def _in_float64(values: object) -> object:
    return tree.map(lambda leaf: leaf.to("cpu", torch.float64) if leaf.is_floating_point() else leaf.cpu(), values)


@pytest.fixture(autouse=True)
def _whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products and convolutions of float32 without TF32, which convolutions have by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


# --- Layers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("row", SAMPLES, ids=lambda row: row.name)
def test_layers_are_as_on_the_cpu(row: Sample, dtype: torch.dtype) -> None:
    if dtype not in row.tolerances:
        pytest.skip("not a dtype of the layer")
    found, expected = _passes(row, dtype, DEVICE), _passes(row, dtype, torch.device("cpu"))
    tolerance = max(TOLERANCES[dtype], 10 * row.tolerances[dtype])
    if dtype != torch.bfloat16:
        assert_trees_close(found, expected, rtol=tolerance, atol=tolerance)
        return
    # Sums that cancel are what rounding leaves of them: both are compared with what is found in float64, by norms.
    exact = _passes(row, dtype, torch.device("cpu"), torch.float64)
    for mine, other, right in zip(*map(tree.leaves, (found, expected, exact)), strict=True):
        allowed = 3 * _distance(other, right) + tolerance * torch.linalg.vector_norm(right.double())
        assert _distance(mine, right) <= allowed + 1e-2


def _passes(row: Sample, dtype: torch.dtype, device: torch.device, wide: torch.dtype | None = None) -> object:
    """The output and all gradients on a device, of numbers of a dtype, computed in another one if it is given."""
    model = tree.map(lambda leaf: _to(_to(leaf, dtype, device), wide or dtype, device), row.model)
    y, residuals = run_forward(model, _moved(_moved(row.x, dtype, device), wide or dtype, device))
    return _in_float64((y, *run_backward(model, residuals, y)))


def _distance(found: Tensor, expected: Tensor) -> Tensor:
    assert found.shape == expected.shape
    distance: Tensor = torch.linalg.vector_norm(found.double() - expected.double())
    return distance


def _to(leaf: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return leaf.to(device, dtype if leaf.is_floating_point() else leaf.dtype)


# --- Attention ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-2), (torch.float16, 1e-2), (torch.float32, 2e-3)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("few", [1, 2, 4])
@pytest.mark.parametrize("size", [8, 64, 96])
def test_attention_is_the_formula(  # noqa: PLR0917  # an axis each
    dtype: torch.dtype, tolerance: float, causal: bool, masked: bool, few: int, size: int
) -> None:
    q, grad = (x.to(DEVICE, dtype) for x in normal(2, 3, 4, 37, size))
    k, v = (x.to(DEVICE, dtype) for x in normal(2, 3, few, 37, size))
    mask = None
    if masked:
        mask = torch.arange(37).expand(3, 37) < torch.tensor([[37], [20], [0]])  # one sequence is padding alone
        mask[0, :5] = False  # and one begins with some, which the first steps alone see where it is causal
        mask = mask.to(DEVICE)
    how = Attention(causal, 0.0)
    attended = how.forward(q, k, v, mask, None)
    assert attended.logsumexp is not None
    q, k, v, grad = (x.to(torch.float64) for x in (q, k, v, grad))
    expected = reference(q, k, v, causal=causal, mask=mask)
    assert_trees_close(attended.output.to(torch.float64), expected, rtol=tolerance, atol=tolerance)
    plain = _by_formula(how, q, k, v, mask)
    grads = tuple(x.to(torch.float64) for x in how.backward(attended, mask, grad.to(dtype)))
    assert_trees_close(grads, how.backward(plain, mask, grad), rtol=4 * tolerance, atol=4 * tolerance)


def _by_formula(how: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Attended:
    return Attention(how.causal, 1e-30).forward(q, k, v, mask, key(0, device=DEVICE))  # dropout that drops nothing


def test_attention_keeps_little() -> None:
    if DEVICE.type != "cuda":
        pytest.skip("memory is counted on a GPU")
    model = initialize(key(0), self_attention(512, 8, dtype=torch.bfloat16), device=DEVICE)
    x = torch.randn(8, 4096, 512, dtype=torch.bfloat16, device=DEVICE)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = forward(model, x)
    assert torch.cuda.max_memory_allocated() - before < 0.3e9
    del kept


# --- Keys and dropout --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (7,), (33, 65)])
def test_random_numbers_are_those_of_the_cpu(shape: tuple[int, ...]) -> None:
    here, there = key(7, device=DEVICE), key(7)
    assert torch.equal(random.bits(here, shape).cpu(), random.bits(there, shape))
    assert torch.equal(random.uniform(here, shape).cpu(), random.uniform(there, shape))
    assert torch.equal(random.split(here, 5).cpu(), random.split(there, 5))
    assert torch.equal(random.fold_in(here, torch.tensor(3, device=DEVICE)).cpu(), random.fold_in(there, 3))
    assert torch.equal(random.fold_in(here, 2**63 + 5).cpu(), random.fold_in(there, 2**63 + 5))
    assert torch.equal(random.permutation(here, 33).cpu(), random.permutation(there, 33))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for draw in (random.uniform, random.normal):
            assert torch.equal(draw(here, shape, dtype=dtype).cpu(), draw(there, shape, dtype=dtype))


@pytest.mark.parametrize("shape", [(4, 8), (6, 5), (2, 3, 7)])
def test_keys_of_parts_draw_what_they_draw_on_the_cpu(shape: tuple[int, ...]) -> None:
    found = []
    for device in (DEVICE, torch.device("cpu")):
        part = random.of_part(key(7, device=device), torch.tensor([1, 2, shape[0]], device=device))
        piece = random.of_piece(part, torch.tensor([2, 3], device=device))
        found.append([random.bernoulli(of, shape, probability=0.3).cpu() for of in (part, piece)])
    assert all(map(torch.equal, *found))


@pytest.mark.skipif(DEVICE.type != "cuda", reason="only a GPU has its kernels")
def test_a_gpu_draws_by_kernels_of_its_own() -> None:
    assert gpu_kernels.kernels(draws_on_gpu.SOURCE, torch.cuda.current_device())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        random.bernoulli(key(7, device=DEVICE), (1 << 20,), probability=0.3)
    assert sum("booleans" in event.name for event in profile.events()) == 1


def test_keys_in_vmap_are_those_of_the_cpu() -> None:
    keys = random.split(key(7), 5)
    found = torch.vmap(lambda one: random.normal(one, (33,)))(keys.to(DEVICE))
    assert torch.equal(found.cpu(), torch.stack([random.normal(one, (33,)) for one in keys]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_what_it_drops_on_the_cpu(dtype: torch.dtype) -> None:
    layer, x = Dropout(0.3), normal(1, 50, 40)[0].to(dtype)
    y = apply(rekey(layer, key(1, device=DEVICE)), x.to(DEVICE))
    assert torch.equal(y.cpu() == 0, apply(rekey(layer, key(1)), x) == 0)


def test_a_run_has_its_key_on_the_models_device() -> None:
    model = initialize(key(0), compose(linear(4, 8), Dropout(0.5), linear(8, 3)), device=DEVICE)
    optimizer = adamw(1e-2)
    state = train_state(key(1), model, optimizer)
    assert state.key.device.type == state.step.device.type == DEVICE.type
    x, target = normal(1, 6, 4)[0].to(DEVICE, torch.float32), torch.arange(6, device=DEVICE) % 3
    on_cpu = train_state(key(1), tree.map(Tensor.cpu, model), optimizer)
    step = train_step(cross_entropy, optimizer)
    for _ in range(3):
        state, report = step(state, (x, target))
        on_cpu, expected = step(on_cpu, (x.cpu(), target.cpu()))
        assert_trees_close(report.loss.cpu(), expected.loss, rtol=1e-3, atol=1e-3)


# --- Recurrences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstm_is_as_on_the_cpu(bidirectional: bool) -> None:
    model = initialize(key(0), lstm(16, 32, depth=2, bidirectional=bidirectional))
    x = normal(1, 4, 50, 16)[0].to(torch.float32)
    grad = torch.ones(4, 50, 64 if bidirectional else 32)
    there = vjp(model, x, grad)
    here = vjp(tree.map(lambda leaf: leaf.to(DEVICE), model), x.to(DEVICE), grad.to(DEVICE))
    assert_trees_close(tree.map(Tensor.cpu, here), there, rtol=1e-2, atol=1e-2)


# --- Batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyed", [False, True])
def test_batches_on_the_device_have_the_rows_of_those_on_the_host(keyed: bool) -> None:
    data = torch.arange(600.0).view(200, 3), torch.arange(200)
    order = key(3) if keyed else None
    found = list(minibatches(order, data, 32, device=DEVICE))
    assert all(leaf.device.type == DEVICE.type for batch in found for leaf in batch)
    expected = list(minibatches(order, data, 32))
    assert tree.equal(tuple(tree.map(Tensor.cpu, batch) for batch in found), tuple(expected))
