"""Attention's kernels on CUDA, without one: which is taken, what they are given, and the formula in their place."""

import math

import pytest
import torch
from torch import Tensor

from fundl import assert_trees_close, backward, cross_attention, forward, self_attention, tree
from fundl._common import fused_attention, kernels
from fundl._common.fused_attention import choice
from fundl.layers._attending import Attention
from tests.fake_cuda import DEVICE, on_device, watched
from tests.samples.attention import attention as reference

A100, H100, RTX, BLACKWELL, TURING = (8, 0), (9, 0), (8, 9), (12, 0), (7, 5)
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("expected", "size", "dtype", "capability", "causal", "masked"),
    [
        ("flash", 64, BF16, A100, False, False),
        ("flash", 64, F16, H100, True, False),
        ("flash", 256, BF16, H100, True, False),
        ("flash", 200, BF16, H100, True, False),
        ("efficient", 200, BF16, RTX, True, False),
        ("efficient", 224, BF16, BLACKWELL, True, False),
        ("flash", 256, BF16, RTX, True, False),
        ("flash", 192, BF16, RTX, True, False),
        ("efficient", 264, BF16, H100, False, False),
        ("efficient", 64, BF16, H100, False, True),
        ("efficient", 64, F32, H100, True, True),
        ("efficient", 4, F32, A100, False, False),
        ("efficient", 64, F16, TURING, False, False),
        (None, 64, BF16, TURING, False, False),
        (None, 6, F32, A100, False, False),
        (None, 12, BF16, H100, False, False),
        (None, 64, F64, H100, False, False),
    ],
)
def test_which_kernel_takes_what(  # noqa: PLR0917  # a column each
    expected: str | None, size: int, dtype: torch.dtype, capability: tuple[int, int], causal: bool, masked: bool
) -> None:
    shape = (2, 4, 10, size)
    assert choice(shape, (2, 2, 10, size), dtype, capability, causal=causal, masked=masked) == expected


def test_what_cudnn_takes_where_it_is_there() -> None:
    shape = (2, 4, 10, 64)
    for dtype in (BF16, F16):
        for capability, expected in (
            (H100, "cudnn"),
            ((10, 0), "cudnn"),
            (A100, "flash"),
            (BLACKWELL, "flash"),
            (TURING, None),
        ):
            found = choice(shape, shape, dtype, capability, causal=True, masked=False, cudnn=True)
            assert found == expected or (found == "efficient" and expected is None)
        assert choice(shape, shape, dtype, H100, causal=False, masked=True, cudnn=True) == "efficient"
        assert choice(shape, (2, 4, 3, 64), dtype, H100, causal=False, masked=False, cudnn=True) == "cudnn"
        for queries, keys in (
            (shape, (2, 2, 10, 64)),  # heads in groups
            ((2, 4, 10, 136), (2, 4, 10, 136)),
            ((2, 4, 1, 64), shape),
            (shape, (2, 4, 1, 64)),
        ):
            assert choice(queries, keys, dtype, H100, causal=False, masked=False, cudnn=True) == "flash"
    assert choice(shape, shape, F32, H100, causal=False, masked=False, cudnn=True) == "efficient"


def test_when_cudnn_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_has_cudnn", True)
    monkeypatch.setattr(fused_attention, "_cudnn_version", lambda: 91501)
    assert fused_attention._has_cudnn()
    for name, value in (("_get_cudnn_enabled", False), ("_get_cudnn_sdp_enabled", False), ("_has_cudnn", None)):
        with monkeypatch.context() as patch:
            patch.setattr(torch._C, name, value if value is None else lambda value=value: value)
            assert not fused_attention._has_cudnn()
    torch.use_deterministic_algorithms(True)
    try:
        assert not fused_attention._has_cudnn()
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(fused_attention, "_cudnn_version", lambda: 91500)
    assert not fused_attention._has_cudnn()


def test_nothing_and_too_much_are_for_the_formula() -> None:
    for queries, keys in (
        ((0, 4, 10, 64), (0, 4, 10, 64)),
        ((2, 4, 0, 64), (2, 4, 10, 64)),
        ((2, 4, 10, 64), (2, 4, 0, 64)),
        ((2**16, 4, 10, 64), (2**16, 4, 10, 64)),
    ):
        for dtype in (BF16, F32):
            assert choice(queries, keys, dtype, H100, causal=False, masked=False) is None
    assert choice((2, 4, 10, 64), (2, 4, 9, 64), BF16, H100, causal=True, masked=False) is None


# --- On fake tensors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "kept"), [(BF16, 0.17e9), (F32, 0.34e9)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("few", [8, 2])
def test_little_is_kept(dtype: torch.dtype, kept: float, causal: bool, few: int) -> None:
    model = self_attention(512, 8, dtype=dtype, causal=causal, key_value_heads=few)
    with watched() as watch:
        layer = on_device(model)
        x = torch.empty(8, 4096, 512, dtype=dtype, device=DEVICE)
        y, residuals = forward(layer, x)
        grads, grad_x = backward(layer, residuals, y)
    assert not watch.waits
    assert sum(leaf.nbytes for leaf in tree.leaves(residuals) if leaf is not x) <= kept
    assert (grad_x.shape, grad_x.device, grad_x.dtype) == (x.shape, x.device, dtype)
    assert [leaf.shape for leaf in tree.leaves(grads)] == [leaf.shape for leaf in tree.leaves(layer)]
    assert sum("attention" in name for name in watch.operations) == 2


def test_masks_and_two_sequences_of_different_lengths() -> None:
    model = cross_attention(64, 4, key_value_heads=2)
    with watched() as watch:
        layer = tree.at(on_device(model), lambda p: p.memory_mask).set(torch.empty(3, 7, dtype=torch.bool, device=DEVICE))
        x, memory = torch.empty(3, 5, 64, device=DEVICE), torch.empty(3, 7, 64, device=DEVICE)
        y, residuals = forward(layer, (x, memory))
        _, (grad_x, grad_memory) = backward(layer, residuals, y)
    assert not watch.waits
    assert (grad_x.shape, grad_memory.shape) == (x.shape, memory.shape)
    assert "torch._scaled_dot_product_efficient_attention_backward" in watch.operations


# --- The formula in the kernels' place ---------------------------------------------------------------------------------

# As the kernels do it: rows of scores that see nothing give NaN, the log-sum-exp is as long as the kernel makes it.


def _scores(q: Tensor, k: Tensor, added: Tensor | None, causal: bool) -> Tensor:
    scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    return scores if added is None else scores + added


def _efficient(  # as the kernel has them
    q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, _wanted: bool, _dropout: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert q.shape[1] == k.shape[1] == v.shape[1]
    if added is not None:
        assert added.shape == (*q.shape[:3], k.shape[2])
        assert added.stride(-1) == 1
        assert all(stride % 8 == 0 for stride in added.stride()[:3])
    scores = _scores(q, k, added, causal)
    padding = -q.shape[2] % 32
    logsumexp = torch.nn.functional.pad(scores.logsumexp(-1), (0, padding), value=math.inf)
    output = torch.matmul(scores.softmax(-1), v).transpose(1, 2).contiguous().transpose(1, 2)
    return output, logsumexp, q, q


def _efficient_backward(  # noqa: PLR0917  # likewise
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    added: Tensor | None,
    output: Tensor,
    logsumexp: Tensor,
    _seed: Tensor,
    _offset: Tensor,
    _dropout: float,
    _wanted: tuple[bool, bool, bool, bool],
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor, None]:
    assert output.transpose(1, 2).is_contiguous()
    weights = (_scores(q, k, added, causal) - logsumexp[:, :, : q.shape[2], None]).exp()
    of_weights = torch.matmul(grad, v.transpose(-1, -2))
    of_scores = weights * (of_weights - (grad * output).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
    transposed = of_scores.transpose(-1, -2), weights.transpose(-1, -2)
    return torch.matmul(of_scores, k), torch.matmul(transposed[0], q), torch.matmul(transposed[1], grad), None


def _cudnn(  # likewise
    q: Tensor, k: Tensor, v: Tensor, added: None, _wanted: bool, _dropout: float, causal: bool, _weights: bool
) -> tuple[Tensor, Tensor]:
    output, logsumexp, *_ = _efficient(q, k, v, added, True, 0.0, causal)
    return output, logsumexp[:, :, : q.shape[2], None]


def _cudnn_backward(  # noqa: PLR0917  # likewise
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    seed: Tensor,
    offset: Tensor,
    added: None,
    _queries: None,
    _keys: None,
    most_queries: int,
    most_keys: int,
    _dropout: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    assert grad.stride() == output.stride()
    assert (most_queries, most_keys) == (q.shape[2], k.shape[2])
    given = grad, q, k, v, added, output, logsumexp[..., 0], seed, offset, 0.0, (True, True, True, False), causal
    return _efficient_backward(*given)[:3]


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula where the kernels stand, and tensors on the CPU that are taken for such on a GPU."""
    monkeypatch.setattr(kernels, "efficient_attention", _efficient)
    monkeypatch.setattr(kernels, "efficient_attention_backward", _efficient_backward)
    monkeypatch.setattr(kernels, "cudnn_attention", _cudnn)
    monkeypatch.setattr(kernels, "cudnn_attention_backward", _cudnn_backward)


@pytest.mark.usefixtures("formula")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("few", [1, 2, 4])
def test_what_the_kernels_are_given_and_give(causal: bool, masked: bool, few: int) -> None:
    generator = torch.Generator().manual_seed(0)
    steps = 7
    q = torch.randn(3, 4, steps, 8, dtype=F64, generator=generator)
    k, v = torch.randn(2, 3, few, steps, 8, dtype=F64, generator=generator)
    mask = None
    if masked:
        mask = torch.rand(3, steps, generator=generator) < 0.5
        mask[0] = False  # a sequence of padding
        mask[1, :3] = False  # padding first: no step before the fourth sees any
    grad = torch.randn(q.shape, dtype=F64, generator=generator)
    output, logsumexp = fused_attention.forward("efficient", q, k, v, causal=causal, mask=mask)
    assert_trees_close(output, reference(q, k, v, causal=causal, mask=mask), rtol=1e-10, atol=1e-10)
    found = fused_attention.backward("efficient", grad, q, k, v, output, logsumexp, causal=causal, mask=mask)
    how = Attention(causal, 0.0)
    assert_trees_close(found, how.backward(how.forward(q, k, v, mask, None), mask, grad), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("formula")
@pytest.mark.parametrize("causal", [False, True])
def test_what_cudnn_is_given_and_gives(causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, grad = torch.randn(2, 3, 4, 7, 8, dtype=F64, generator=generator)
    k, v = torch.randn(2, 3, 4, 7 if causal else 5, 8, dtype=F64, generator=generator)
    output, logsumexp = fused_attention.forward("cudnn", q, k, v, causal=causal, mask=None)
    assert_trees_close(output, reference(q, k, v, causal=causal, mask=None), rtol=1e-10, atol=1e-10)
    found = fused_attention.backward("cudnn", grad, q, k, v, output, logsumexp, causal=causal, mask=None)
    how = Attention(causal, 0.0)
    assert_trees_close(found, how.backward(how.forward(q, k, v, None, None), None, grad), rtol=1e-9, atol=1e-9)


def test_odd_layouts_are_copied() -> None:
    dense = torch.zeros(2, 4, 5, 64, dtype=BF16)
    assert fused_attention._aligned(dense) is dense
    for odd in (
        dense.transpose(2, 3),
        torch.zeros(2, 4, 5, 65, dtype=BF16)[..., 1:],
        torch.zeros(2, 4, 5, 68, dtype=BF16)[..., :64],
    ):
        assert fused_attention._aligned(odd).is_contiguous()
