"""The kernel of cross-entropy for a GPU, built for the CPU with one thread for each row: the formula's numbers."""

import ctypes
import struct
import subprocess
from typing import Final

import pytest
import torch

from fundl import cross_entropy, key, random
from fundl._common import cross_entropy_on_gpu as on_gpu
from fundl._common import gpu_kernels
from fundl._compiling.inductor import cpp_compiler

_ON_A_CPU: Final = """
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#undef INFINITY
#define __device__
#define __global__
#define __shared__ static
#define asm(...)
struct Index { unsigned x; } blockIdx, blockDim = {1}, threadIdx;
static unsigned __float_as_uint(float x) { unsigned bits; std::memcpy(&bits, &x, 4); return bits; }
static float __uint_as_float(unsigned bits) { float x; std::memcpy(&x, &bits, 4); return x; }
static float __int_as_float(unsigned bits) { return __uint_as_float(bits); }
#define __expf std::exp
static float __shfl_xor_sync(unsigned, float x, int) { return x; }
static void __syncthreads() {}
static void __assertfail(const char* said, const char*, int, const char*, int) { std::puts(said); std::exit(3); }
extern "C" void block(unsigned place) { blockIdx.x = place; }
"""
_CODES: Final = {"P": ctypes.c_void_p, "i": ctypes.c_int32, "q": ctypes.c_int64, "f": ctypes.c_float}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """cross_entropy.cu as a library of this processor's."""
    folder = tmp_path_factory.mktemp("cross-entropy")
    (folder / "kernels.cpp").write_text(_ON_A_CPU + on_gpu.SOURCE.read_text(encoding="utf-8"), encoding="utf-8")
    command = [cpp_compiler(), "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "kernels.cpp", "-o", "kernels.so"]
    subprocess.run(command, check=True, cwd=folder)
    return ctypes.CDLL(str(folder / "kernels.so"))


@pytest.fixture(autouse=True)
def _by_rows(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(kernel: str, device: None, blocks: int, threads: int, given: bytes) -> None:
        assert device is None
        assert threads in {32, 64, 128, 256, 512}
        values = struct.unpack(on_gpu.GIVEN, given)
        for row in range(blocks):
            library.block(row)
            library[kernel](*(_CODES[code](value) for code, value in zip(on_gpu.GIVEN[1:], values, strict=True)))

    names = gpu_kernels.names(on_gpu.SOURCE.read_text(encoding="utf-8"))
    monkeypatch.setattr(gpu_kernels, "kernels", lambda *_: dict(zip(names, names, strict=True)))
    monkeypatch.setattr(gpu_kernels, "launch", launch)
    monkeypatch.setattr(gpu_kernels, "takes", lambda _: True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 2, 7, 64, 1001])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("count", [None, 3])
def test_rows_are_those_of_the_formula(dtype: torch.dtype, classes: int, smoothing: float, count: int | None) -> None:
    x, target = random.normal(key(0), (9, classes)).to(dtype), random.randint(key(1), (9,), low=0, high=classes)
    target[3] = -100
    kernel = on_gpu.kernel_for(x, target)
    assert kernel is not None
    value, grad = on_gpu.cross_entropy(kernel, x, target, ignore_index=-100, label_smoothing=smoothing, count=count)
    exact = cross_entropy(x.double(), target, label_smoothing=smoothing, reduction="mean" if count is None else "sum")
    each = torch.tensor(1.0 if count is None else count, dtype=torch.float64)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(value.double(), exact[0] / each, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), exact[1] / each, rtol=tolerance, atol=tolerance * 0.1)
    assert grad.dtype == dtype


def test_what_no_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    x, target = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    assert on_gpu.kernel_for(x, target) is not None
    assert on_gpu.kernel_for(x.double(), target) is None
    assert on_gpu.kernel_for(x[None], target) is None
    assert on_gpu.kernel_for(x[:0], target[:0]) is None
    monkeypatch.undo()
    assert on_gpu.kernel_for(x, target) is None  # on a CPU
