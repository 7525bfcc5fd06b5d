"""What is drawn on an NVIDIA GPU: by kernels of draws.cu, compiled for it at the first draw, by the compiler that torch brings.

In whole tensors, each number passes through memory a hundred times. What is done here can be done so: where the compiler is
missing there is no kernel, and no error.
"""

import contextlib
import ctypes
import functools
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor


class Draw(Protocol):
    """A function of draws.c or draws.cu: a tensor of a shape, from a key and what is the function's own.

    Of keys (..., 2), each of which draws, the axes come first.
    """

    def __call__(self, key: Tensor, shape: tuple[int, ...], *own: float) -> Tensor: ...


_SOURCE: Final = Path(__file__).with_name("draws.cu")
_THREADS: Final = 256  # of a block
_NUMBERS: Final = 4  # that a thread makes
# Products and sums are rounded each by itself, as on any processor.
_OPTIONS: Final = (b"--std=c++17", b"-fmad=false", b"-prec-div=true", b"-prec-sqrt=true", b"-ftz=false")

_OF_ALL: Final = "@PiqqqP"  # as `struct` says it: the keys and their sizes, and where to; see draws.cu
_NO_MORE, _BUFFER, _BUFFER_SIZE = 0, 1, 2  # how the driver calls what it is given


class _CannotError(OSError):
    """The compiler or the driver is missing, or does not take what it is given."""


def draw(name: str, key: Tensor, dtype: torch.dtype, own: str) -> Draw | None:
    """The function of a name, for keys on a GPU, with what is its own as `struct` says it; None if there is none."""
    kernel = _kernels(key.device.index).get(f"fundl_{name}")
    if kernel is None:
        return None

    def drawn(key: Tensor, shape: tuple[int, ...], *own_values: float) -> Tensor:
        words = key.contiguous()
        result = torch.empty((*key.shape[:-1], *shape), dtype=dtype, device=key.device)
        if total := result.numel():
            sizes = key.shape[-1], math.prod(shape), shape[0] if shape else 1, total
            given = struct.pack(_OF_ALL + own, words.data_ptr(), *sizes, result.data_ptr(), *own_values)
            _launch(kernel, key.device.index, total, given)
        return result

    return drawn


def _launch(kernel: int, device: int, numbers: int, given: bytes) -> None:
    """Run a kernel on the current stream of a GPU."""
    blocks = -(-numbers // (_THREADS * _NUMBERS))
    buffer, size = ctypes.create_string_buffer(given, len(given)), ctypes.c_size_t(len(given))
    more = (ctypes.c_void_p * 5)(_BUFFER, ctypes.addressof(buffer), _BUFFER_SIZE, ctypes.addressof(size), _NO_MORE)
    stream = torch._C._cuda_getCurrentRawStream(device)
    with contextlib.nullcontext() if torch.cuda.current_device() == device else torch.cuda.device(device):
        error = _driver().cuLaunchKernel(kernel, blocks, 1, 1, _THREADS, 1, 1, 0, stream, None, more)
    if error:
        raise RuntimeError(f"CUDA's driver answers {error} to a kernel that draws {numbers} random numbers")


# --- Compiling ----------------------------------------------------------------------------------------------------------


def _kernels(device: int) -> Mapping[str, int]:
    """The kernels on a GPU by their names; none if they cannot be compiled, or while the GPU's work is recorded."""
    if device not in _loaded:
        if torch.cuda.is_current_stream_capturing():
            return {}
        try:
            _loaded[device] = _on_device(device)
        except OSError:
            _loaded[device] = {}
    return _loaded[device]


_loaded: Final[dict[int, Mapping[str, int]]] = {}


def _on_device(device: int) -> Mapping[str, int]:
    if torch.version.cuda is None:  # AMD's have another compiler
        return {}
    code, names, module = compiled(torch.cuda.get_device_capability(device)), _names(), ctypes.c_void_p()
    kernels = {name: ctypes.c_void_p() for name in names}
    with torch.cuda.device(device):  # whose context is that of the key
        _require(_driver().cuModuleLoadData(ctypes.byref(module), code))
        for name, kernel in kernels.items():
            _require(_driver().cuModuleGetFunction(ctypes.byref(kernel), module, name.encode()))
    return {name: kernel.value or 0 for name, kernel in kernels.items()}


def _names() -> list[str]:
    lines = _SOURCE.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("KERNEL ").split("(")[0] for line in lines if line.startswith("KERNEL ")]


def compiled(capability: tuple[int, int]) -> bytes:
    """The kernels, compiled for GPUs of a compute capability.

    Raises:
        OSError: there is no compiler, or it does not take them.
    """
    compiler, program, size = _compiler(), ctypes.c_void_p(), ctypes.c_size_t()
    options = (f"--gpu-architecture=sm_{capability[0]}{capability[1]}".encode(), *_OPTIONS)
    _require(compiler.nvrtcCreateProgram(ctypes.byref(program), _SOURCE.read_bytes(), b"draws.cu", 0, None, None))
    try:
        _require(compiler.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)))
        _require(compiler.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        code = ctypes.create_string_buffer(size.value)
        _require(compiler.nvrtcGetCUBIN(program, code))
    finally:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))
    return code.raw


def _require(error: int) -> None:
    if error:
        raise _CannotError(f"it answers {error}")


@functools.cache
def _compiler() -> ctypes.CDLL:
    """CUDA's compiler at run time, which torch's own kernels need as well."""
    major = (torch.version.cuda or "").split(".")[0]
    wheels = sorted(Path(torch.__file__).parent.parent.glob(f"nvidia/*/lib/libnvrtc.so.{major}"))
    for name in (f"libnvrtc.so.{major}", *map(str, wheels)):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise _CannotError("there is no libnvrtc.so")


@functools.cache
def _driver() -> ctypes.CDLL:
    driver = ctypes.CDLL("libcuda.so.1")
    address, word = ctypes.c_void_p, ctypes.c_uint
    driver.cuLaunchKernel.argtypes = address, word, word, word, word, word, word, word, address, address, address
    return driver
