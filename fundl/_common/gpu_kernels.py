"""Kernels for NVIDIA GPUs, compiled at their first use by the compiler that torch brings, and launched on torch's streams.

What they do can be done by ATen's kernels, in more passes over the memory: where the compiler is missing, or does not take
them, there is no kernel, and no error.
"""

import contextlib
import ctypes
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from fundl._common.modes import is_in_forward_mode, is_untraced

_OPTIONS: Final = b"--std=c++17", b"-prec-div=true", b"-prec-sqrt=true", b"-ftz=false"
_NO_MORE, _BUFFER, _BUFFER_SIZE = 0, 1, 2  # how the driver calls what it is given
_NAME: Final = re.compile(r"^KERNEL(?: |\()(fundl_\w+)", re.MULTILINE)


class _CannotError(OSError):
    """The compiler or the driver is missing, or does not take what it is given."""


def takes(x: Tensor) -> bool:
    """Whether a kernel may read a tensor: its numbers are on a GPU, and nothing traces, wraps or differentiates it."""
    if not x.is_cuda or not is_untraced(x) or is_in_forward_mode():
        return False
    return not (x.requires_grad and torch.is_grad_enabled()) and not x.is_neg()


def kernels(source: Path, device: int) -> Mapping[str, int]:
    """The kernels of a file, on a GPU, by their names; none if they cannot be compiled, or while the GPU's work is recorded."""
    place = source, device
    if place not in _loaded:
        if torch.cuda.is_current_stream_capturing():
            return {}
        try:
            _loaded[place] = _on_device(source, device)
        except OSError:
            _loaded[place] = {}
    return _loaded[place]


_loaded: Final[dict[tuple[Path, int], Mapping[str, int]]] = {}


def launch(kernel: int, device: int, blocks: int, threads: int, given: bytes) -> None:
    """Run so many blocks of threads of a kernel on the current stream of a GPU, with arguments as `struct` packs them."""
    buffer, size = ctypes.create_string_buffer(given, len(given)), ctypes.c_size_t(len(given))
    more = (ctypes.c_void_p * 5)(_BUFFER, ctypes.addressof(buffer), _BUFFER_SIZE, ctypes.addressof(size), _NO_MORE)
    stream = torch._C._cuda_getCurrentRawStream(device)
    with contextlib.nullcontext() if torch.cuda.current_device() == device else torch.cuda.device(device):
        error = _driver().cuLaunchKernel(kernel, blocks, 1, 1, threads, 1, 1, 0, stream, None, more)
    if error:
        raise RuntimeError(f"CUDA's driver answers {error} to the launch of a kernel of {blocks} blocks of {threads} threads")


# --- Compiling ----------------------------------------------------------------------------------------------------------


def _on_device(source: Path, device: int) -> Mapping[str, int]:
    if torch.version.cuda is None:  # AMD's have another compiler
        return {}
    text, module = source.read_text(encoding="utf-8"), ctypes.c_void_p()
    code = compiled(text, torch.cuda.get_device_capability(device))
    found = {name: ctypes.c_void_p() for name in names(text)}
    with torch.cuda.device(device):
        _require(_driver().cuModuleLoadData(ctypes.byref(module), code))
        for name, kernel in found.items():
            _require(_driver().cuModuleGetFunction(ctypes.byref(kernel), module, name.encode()))
    return {name: kernel.value or 0 for name, kernel in found.items()}


def names(text: str) -> list[str]:
    """Those of the kernels in a file."""
    return _NAME.findall(text)


def compiled(text: str, capability: tuple[int, int]) -> bytes:
    """A file of kernels, compiled for GPUs of a compute capability; its first line may say further options.

    Raises:
        OSError: there is no compiler, or it does not take them.
    """
    compiler, program, size = _compiler(), ctypes.c_void_p(), ctypes.c_size_t()
    own = [option.encode() for option in text.split("\n", 1)[0].split() if option.startswith("-")]
    options = (f"--gpu-architecture=sm_{capability[0]}{capability[1]}".encode(), *_OPTIONS, *own)
    _require(compiler.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None))
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
