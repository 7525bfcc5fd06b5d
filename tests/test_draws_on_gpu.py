"""The kernels that draw on a GPU, built for the CPU: each of their threads gives the bits of functions in C and of tensors."""

import ctypes
import struct
import subprocess
from typing import Final, Protocol

import pytest
import torch
from torch import Tensor

from fundl import key, random
from fundl._common import draws, draws_on_gpu, gpu_kernels
from fundl._compiling.inductor import cpp_compiler

_ON_A_CPU = """
#include <cmath>
#include <cstring>
#define __device__
#define __global__
struct Index { unsigned x; } blockIdx, blockDim, threadIdx;
static long long __double_as_longlong(double x) { long long bits; std::memcpy(&bits, &x, 8); return bits; }
static double __longlong_as_double(long long bits) { double x; std::memcpy(&x, &bits, 8); return x; }
static double __dsqrt_rn(double x) { return std::sqrt(x); }
extern "C" void thread(unsigned block, unsigned size, unsigned place) {
  blockIdx.x = block;
  blockDim.x = size;
  threadIdx.x = place;
}
"""


_CODES: Final = {
    "P": ctypes.c_void_p,
    "i": ctypes.c_int32,
    "I": ctypes.c_uint32,
    "q": ctypes.c_int64,
    "Q": ctypes.c_uint64,
    "d": ctypes.c_double,
}


class Drawn(Protocol):
    """A function of draws.cu by its name."""

    def __call__(self, name: str, key: Tensor, shape: tuple[int, ...], *own: float) -> Tensor: ...


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """draws.cu as a library of this processor's."""
    folder = tmp_path_factory.mktemp("draws")
    (folder / "draws.cpp").write_text(_ON_A_CPU + draws_on_gpu.SOURCE.read_text(encoding="utf-8"), encoding="utf-8")
    command = [cpp_compiler(), "-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "draws.cpp", "-o", "draws.so"]
    subprocess.run(command, check=True, cwd=folder)
    return ctypes.CDLL(str(folder / "draws.so"))


@pytest.fixture
def on_gpu(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """A function of draws.cu by its name, whose threads run one after the other."""

    def launch(kernel: str, device: None, blocks: int, threads: int, given: bytes) -> None:
        assert device is None
        codes = (draws_on_gpu.OF_ALL + draws._ON_GPU[kernel.removeprefix("fundl_")]).removeprefix("@")
        values = struct.unpack("@" + codes, given)
        for block in range(blocks):
            for thread in range(threads):
                library.thread(block, threads, thread)
                library[kernel](*(_CODES[code](value) for code, value in zip(codes, values, strict=True)))

    names = gpu_kernels.names(draws_on_gpu.SOURCE.read_text(encoding="utf-8"))
    monkeypatch.setattr(gpu_kernels, "kernels", lambda *_: dict(zip(names, names, strict=True)))
    monkeypatch.setattr(gpu_kernels, "launch", launch)

    def drawn(name: str, key: Tensor, shape: tuple[int, ...], *own: float) -> Tensor:
        function = draws_on_gpu.draw(name, key, draws._FUNCTIONS[name][0], draws._ON_GPU[name])
        assert function is not None
        return function(key, shape, *own)

    return drawn


DRAWS: dict[str, tuple[float, ...]] = {
    "short_integers": (7,),
    "long_integers": (63,),
    "booleans": (draws.threshold(0.3),),
    "unit_float32": (24,),
    "uniform_float32": (24, 2.0**-23, -1.0, 0.75),
    "uniform_float64": (2.0**-52, -1.0, 0.75),
    "exponential_float32": (2.0, 0.0),
    "exponential_float64": (2.0, 0.0),
    "gumbel_float32": (2.0, -1.0),
    "gumbel_float64": (2.0, -1.0),
    "normal_float32": (2.0, -1.0),
    "normal_float64": (2.0, -1.0),
}


@pytest.mark.parametrize("shape", [(), (1,), (2,), (5,), (33, 65), (0, 3)], ids=str)
@pytest.mark.parametrize("name", DRAWS)
def test_numbers_are_those_in_c(name: str, shape: tuple[int, ...], on_gpu: Drawn) -> None:
    for keys in (key(7), random.split(key(7), 3)):
        assert torch.equal(on_gpu(name, keys, shape, *DRAWS[name]), draws.functions()[name](keys, shape, *DRAWS[name]))


@pytest.mark.parametrize("name", ["booleans", "normal_float32"])
@pytest.mark.parametrize("shape", [(4, 8), (6, 5), (2, 3, 7), (8, 1)], ids=str)
def test_keys_of_parts_draw_their_part(name: str, shape: tuple[int, ...], on_gpu: Drawn) -> None:
    part, piece = random.of_part(key(3), torch.tensor([1, 2, 2])), torch.tensor([2, 3])
    for of in (part, random.of_piece(part, piece), random.of_piece(key(3), piece)):
        if name == "booleans":
            expected = draws.booleans(of, shape, draws.threshold(0.3))
        else:
            expected = draws.normal(of, shape, torch.float32, std=2.0, mean=-1.0)
        assert torch.equal(on_gpu(name, of, draws._lines(of, shape), *DRAWS[name]).reshape(shape), expected)


@pytest.mark.parametrize("position", [0, 5, 2**40, -1])
def test_keys_are_those_in_c(position: int, on_gpu: Drawn) -> None:
    for of in (key(7), random.split(key(7), 3)):
        expected = draws.functions()["keys"](of, (5, 2), 2, position)
        assert torch.equal(on_gpu("keys", of, (5, 2), 2, position), expected)


def test_keys_of_keys_are_those_of_each_key(on_gpu: Drawn) -> None:
    found = on_gpu("nested_keys", key(7), (4, 3, 2), 2, 3)
    assert torch.equal(found, torch.stack([random.split(one, 3) for one in random.split(key(7), 4)]))


def test_what_is_missing_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise OSError

    monkeypatch.setattr(gpu_kernels, "_loaded", {})
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(gpu_kernels, "_compiler", none)
    assert not gpu_kernels.kernels(draws_on_gpu.SOURCE, 0)
