"""On a GPU: the kernel of cross-entropy against the formula in float64 on the CPU. `pytest -m cuda` runs it."""

import os
from typing import Final

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fundl import cross_entropy, key, random
from fundl._common import cross_entropy_on_gpu as on_gpu

DEVICE: Final = torch.device(os.environ.get("FUNDL_TEST_DEVICE", "cuda"))

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="there is no GPU"),
]
DTYPES: Final = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def given(rows: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = random.normal(key(0), (rows, classes), std=3.0).to(dtype)
    return x, random.randint(key(1), (rows,), low=0, high=classes)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (7, 10), (33, 64), (65, 1001), (5, 50304)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "batch_mean"])
def test_cross_entropy_is_the_formula(shape: tuple[int, int], dtype: torch.dtype, smoothing: float, reduction: str) -> None:
    x, target = given(*shape, dtype)
    target[3::4] = -100
    options = {"label_smoothing": smoothing, "reduction": reduction}
    value, grad = cross_entropy(x.to(DEVICE), target.to(DEVICE), **options)  # type: ignore[arg-type]  # of their own kinds
    exact, exact_grad = cross_entropy(x.double(), target, **options)  # type: ignore[arg-type]  # likewise
    assert value.dtype == torch.float32
    assert grad.dtype == dtype
    torch.testing.assert_close(value.cpu().double(), exact, rtol=1e-5, atol=1e-5)
    assert (
        torch.linalg.vector_norm(grad.cpu().double() - exact_grad)
        <= DTYPES[dtype] * torch.linalg.vector_norm(exact_grad) + 1e-9
    )
    assert not grad[3::4].any()


def test_one_kernel_takes_it() -> None:
    x, target = (each.to(DEVICE) for each in given(33, 64, torch.bfloat16))
    assert (on_gpu.kernel_for(x, target) is not None) == (DEVICE.type == "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_odd_layouts(dtype: torch.dtype) -> None:
    x, target = (each.to(DEVICE) for each in given(33, 65, dtype))
    for odd in (x[:, 1:], x.t().contiguous().t(), x[::2], x[:, ::3]):
        classes, labels = odd.shape[1], target[: len(odd)].to(torch.int32) % odd.shape[1]
        assert classes
        found, expected = cross_entropy(odd, labels), cross_entropy(odd.cpu().contiguous(), labels.cpu())
        torch.testing.assert_close([each.cpu() for each in found], [*expected])


@pytest.mark.parametrize("classes", [4, 33, 700])
def test_what_is_no_number(classes: int) -> None:
    x, target = given(6, classes, torch.float32)
    target[:] = torch.tensor([0, 0, 1, 0, -100, 1])
    x[0, 1] = -torch.inf  # a class that cannot be
    x[1, 0] = -torch.inf  # which is the true one
    x[2, 2], x[3, 0], x[4, 1] = torch.inf, torch.nan, torch.nan
    x[5] = -torch.inf
    for rows in ([0], [1], [2], [3], [4], [5], [0, 4], [3, 4]):
        found = cross_entropy(x[rows].to(DEVICE), target[rows].to(DEVICE))
        expected = cross_entropy(x[rows], target[rows])
        torch.testing.assert_close([each.cpu() for each in found], [*expected], equal_nan=True)


def test_nothing_counts() -> None:
    x, target = (each.to(DEVICE) for each in given(5, 9, torch.float32))
    value, grad = cross_entropy(x, torch.full_like(target, -100))
    assert value.isnan()
    assert not grad.any()
    value, grad = cross_entropy(x, torch.full_like(target, 7), ignore_index=7, reduction="sum")
    assert value == 0
    assert not grad.any()


def test_classes_along_the_last_axis() -> None:
    x, target = random.normal(key(0), (2, 5, 9)), random.randint(key(1), (2, 5), low=0, high=9)
    found, expected = cross_entropy(x.to(DEVICE), target.to(DEVICE), axis=-1), cross_entropy(x, target, axis=-1)
    torch.testing.assert_close([each.cpu() for each in found], [*expected])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which torch's own forward mode calls
def test_dual_numbers_keep_their_tangents() -> None:
    """In forward mode the formula stands: a kernel sees no tangent."""
    found: list[Tensor] = []
    for device in (DEVICE, torch.device("cpu")):
        x, target = (each.to(device) for each in given(7, 10, torch.float32))
        with forward_ad.dual_level():
            dual: Tensor = forward_ad.make_dual(x, x.sin())  # type: ignore[no-untyped-call]  # torch does not say
            for part in cross_entropy(dual, target):
                tangent: Tensor | None = forward_ad.unpack_dual(part).tangent  # type: ignore[no-untyped-call]  # likewise
                assert tangent is not None
                found.append(tangent.cpu())
    torch.testing.assert_close(found[:2], found[2:])
    assert found[1].any()
