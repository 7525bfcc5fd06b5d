"""Products of matrices: the same numbers from each library, which one it is told by shapes and dtype alone."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fundl import Linear, check_vjp, jit, key, random, vjp
from fundl._common import graph_operations, kernels, products
from fundl._compiling import lowering

pytestmark = pytest.mark.skipif(kernels.linear_onednn is None, reason="this build of torch has no oneDNN")


@pytest.fixture(autouse=True)
def quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever processor this is, be of the kind for which oneDNN is quicker."""
    monkeypatch.setattr(products, "is_onednn_quicker", lambda: True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of what oneDNN is given."""
    seen: list[torch.Size] = []
    kernel = kernels.linear_onednn
    assert kernel is not None

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None, *_: object) -> Tensor:
        seen.append(x.shape)
        return kernel(x, weight, bias, "none", [], "")

    monkeypatch.setattr(kernels, "linear_onednn", counted)
    return seen


def of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return random.normal(key(sum(shape)), shape).to(dtype)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-4)  # sums of some hundred products


def test_large_products_are_of_one_dnn_and_right(calls: list[torch.Size]) -> None:
    x, weight, bias = of(4, 64, 512), of(256, 512), of(256)
    assert_close(products.linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias))
    assert_close(products.linear(x, weight, None), torch.nn.functional.linear(x, weight))
    assert_close(products.matmul(x, weight.t()), x @ weight.t())
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("x", "matrix"),
    [
        (of(8, 4096), of(4096, 512)),  # few rows
        (of(64, 64), of(64, 64)),  # small
        (of(512, 256).t(), of(512, 256)),  # rows that are not one after the other
        (of(256, 512, dtype=torch.float64), of(512, 256, dtype=torch.float64)),
        (of(256, 512, dtype=torch.bfloat16), of(512, 256, dtype=torch.bfloat16)),
        (of(256, 512, dtype=torch.bfloat16).to("meta"), of(512, 256, dtype=torch.bfloat16).to("meta")),
    ],
)
def test_other_products_are_torchs(calls: list[torch.Size], x: Tensor, matrix: Tensor) -> None:
    assert products.matmul(x, matrix).shape == (x.shape[0], matrix.shape[1])
    assert products.linear(x, matrix.t(), None).shape == (x.shape[0], matrix.shape[1])
    assert not calls


def test_torchs_switch_turns_it_off(calls: list[torch.Size]) -> None:
    torch._C._set_mkldnn_enabled(False)  # the public context manager warns of what else it sets
    try:
        products.matmul(of(256, 512), of(512, 256))
    finally:
        torch._C._set_mkldnn_enabled(True)
    assert not calls


@pytest.mark.parametrize("product", [products.matmul, lambda x, matrix: products.linear(x, matrix.t(), None)])
def test_what_does_not_fit_is_torchs_error(product: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        product(of(256, 512), of(511, 256))
    with pytest.raises(RuntimeError, match="dtype"):
        product(of(256, 512), of(512, 256, dtype=torch.float64))


def test_transforms_and_traces_see_torchs_operations(calls: list[torch.Size]) -> None:
    x, matrix = of(2, 256, 512), of(512, 256)
    assert_close(torch.func.vmap(products.matmul, in_dims=(0, None))(x, matrix), x @ matrix)
    assert not calls


def test_a_large_layer_and_its_vjp(calls: list[torch.Size]) -> None:
    layer, x, grad = Linear(of(256, 512), of(256)), of(256, 512), of(256, 256)
    grads, grad_x = vjp(layer, x, grad)
    assert len(calls) == 2
    assert_close(grad_x, grad @ layer.weight)
    assert_close(grads.weight, grad.t() @ x)
    check_vjp(Linear(of(20, 512), of(20)), of(2, 512))


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 9, 11, 13, 26, 64])
@pytest.mark.parametrize("inner", [1, 8, 9, 25])
@pytest.mark.parametrize("columns", [1, 7, 8, 25])
def test_small_products_as_sums_are_right(rows: int, inner: int, columns: int) -> None:
    def of_either_order(rows: int, columns: int) -> list[Tensor]:
        return [of(rows, columns, dtype=torch.float64), of(columns, rows, dtype=torch.float64).t()]

    mm, addmm = (lowering.decompositions({})[each] for each in (graph_operations.mm, graph_operations.addmm))
    for a, b in itertools.product(of_either_order(rows, inner), of_either_order(inner, columns)):
        torch.testing.assert_close(mm(a, b), a @ b)
    torch.testing.assert_close(addmm(b[0], a, b), b[0] + a @ b)


def test_which_products_are_sums() -> None:
    """Small ones, and narrow ones that are not so small, of few terms; of floating point."""

    def is_sum(*sizes: int, dtype: torch.dtype = torch.float32) -> bool:
        rows, inner, columns = sizes
        mm = lowering.decompositions({})[graph_operations.mm]
        return mm(torch.zeros(rows, inner, dtype=dtype), torch.zeros(inner, columns, dtype=dtype)) is not NotImplemented

    assert is_sum(50, 50, 50)
    assert not is_sum(52, 52, 52)
    assert is_sum(128, 512, 10)
    assert not is_sum(128, 512, 20)
    assert not is_sum(256, 512, 10)
    assert not is_sum(16, 2048, 10)
    assert not is_sum(2, 2, 2, dtype=torch.int64)


def test_compiled_products_are_right() -> None:
    def both(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.relu(products.linear(x, weight, bias))
        return h, products.matmul(h, weight) / 100, torch.mm(h.t(), x)

    arguments = of(64, 512), of(512, 512), of(512)
    compiled = jit(both)
    for actual, expected in zip(compiled(*arguments), both(*arguments), strict=True):
        assert_close(actual, expected)
    assert compiled.traces[0].compiled
