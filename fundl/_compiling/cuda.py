"""What compiled code for NVIDIA's GPUs depends on, and what it takes to make and to load it.

AOTInductor builds a library that loads kernels of Triton's. Beside Triton and a compiler for C++ it needs CUDA's headers and
the driver's library, which it looks for in one folder, CUDA_HOME. Where torch came as wheels there is no such folder, but the
headers came with Triton, and the driver is where the system has it: a folder is made of these for as long as it is needed.
"""

import importlib
import os
import re
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, TypeAlias

import torch
from torch import Tensor

from fundl._compiling.corrections import replaced

if TYPE_CHECKING:
    from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu

NAMES: Final = (
    "torch._C._get_fp32_precision_getter",
    "torch._inductor.codegen.cpp_wrapper_cpu.CppWrapperCpu.codegen_device",
    "torch._inductor.config.aot_inductor.compile_wrapper_opt_level",
    "torch._inductor.config.triton.autotune_at_compile_time",
    "torch._inductor.config.triton.store_cubin",
    "torch.utils.cpp_extension.CUDA_HOME",
)
"""What is private in torch and used here."""

SETTINGS: Final[dict[str, object]] = {
    # Kernels are tuned one by one on made-up numbers; else the whole graph would run once, on indices that are out of range.
    "triton.autotune_at_compile_time": True,
    "triton.autotune_cublasLt": False,
    "triton.cudagraphs": False,
    "triton.store_cubin": True,
}
"""What inductor is set to for graphs on a GPU, beside what it is set to for all."""

LAUNCHED_ONCE: Final[dict[str, object]] = {"aot_inductor.compile_wrapper_opt_level": "O0"}
"""And for those that are replayed (see replays.py): what launches kernels then runs a few times only, and compiles for long."""

_MOST_PROCESSES: Final = 16


class MissingError(RuntimeError):
    """Something that compiling for a GPU needs is not there; the message says what, and where it was looked for."""


def is_on_gpu(tensors: Sequence[Tensor]) -> bool:
    """Whether one of some tensors is."""
    return any(tensor.device.type == "cuda" for tensor in tensors)


def processes() -> int:
    """How many of them compile kernels side by side, each of which takes a second."""
    return min(_MOST_PROCESSES, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


# --- What code depends on -----------------------------------------------------------------------------------------------

Precision: TypeAlias = tuple[str, ...]
"""How GPUs multiply matrices of float32, by whom: in full, or as TF32."""


def precision() -> Precision:
    """What torch is set to."""
    get = torch._C._get_fp32_precision_getter
    return get("cuda", "matmul"), get("cuda", "conv"), get("cuda", "rnn")


def fingerprint(device: torch.device) -> tuple[object, ...]:
    """The GPU and the software that code for it depends on; not which of several that are alike it is."""
    properties = torch.cuda.get_device_properties(device)
    kind = (
        properties.name,
        (properties.major, properties.minor),
        properties.multi_processor_count,
        properties.total_memory >> 30,
    )
    return *kind, torch.version.cuda, _cudnn(), _triton(), precision(), sorted(SETTINGS.items())


def _cudnn() -> object:
    """Its version: what its recurrent networks keep for backward is of a size of its own."""
    return torch.backends.cudnn.version()  # type: ignore[no-untyped-call]  # torch does not say


def _triton() -> str | None:
    try:
        return str(getattr(importlib.import_module("triton"), "__version__", "unknown"))
    except ImportError:
        return None


_NUMBER: Final = re.compile(r"(?<=\bcuda):\d+|(?<=type='cuda'), index=\d+")


def without_number(text: str) -> str:
    """A text that does not tell which GPU it is of, if it is of one alone: that is for who loads the code to say."""
    numbers = {re.sub(r"\D", "", found) for found in _NUMBER.findall(text)}
    return _NUMBER.sub("", text) if len(numbers) == 1 else text


@contextmanager
def number_left_open() -> Iterator[None]:
    """Have inductor write code for the GPU that it is loaded for, where it would write the number of the one at hand."""
    from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu

    write: Callable[[CppWrapperCpu, torch.device], str] = CppWrapperCpu.codegen_device

    def write_device(code: "CppWrapperCpu", device: torch.device) -> str:
        text = write(code, device)
        return f"{text.rpartition(', ')[0]}, this->device_idx_" if device.type == "cuda" else text

    with replaced(CppWrapperCpu, "codegen_device", write_device):
        yield


# --- What it takes ------------------------------------------------------------------------------------------------------

_HEADERS: Final = ("cuda.h", "cuda_runtime.h", "crt/host_config.h")
_DRIVER: Final = ("libcuda.so.1", "libcuda.so")
_HOW: Final = "install CUDA's toolkit of the version of torch's, and set CUDA_HOME to its folder"


@contextmanager
def toolkit() -> Iterator[None]:
    """Have inductor find CUDA's headers and the driver's library, wherever they are.

    Raises:
        MissingError: they are nowhere.
    """
    from torch.utils import cpp_extension

    if _triton() is None:
        raise MissingError("compiling for a GPU needs the package triton, which comes with torch for CUDA: install it")
    headers, driver = _headers(), _driver()
    with TemporaryDirectory(prefix="fundl-cuda-") as name, ExitStack() as stack:
        home = Path(name)
        (home / "lib64").mkdir()
        (home / "include").symlink_to(headers)
        (home / "lib64" / "libcuda.so").symlink_to(driver)
        stack.enter_context(replaced(cpp_extension, "CUDA_HOME", str(home)))
        yield


def _headers() -> Path:
    """The folder with CUDA's headers."""
    places = [*(home / "include" for home in _homes()), *_of_wheels()]
    for place in places:
        if all((place / header).exists() for header in _HEADERS):
            return place.resolve()
    raise MissingError(
        f"compiling for a GPU needs CUDA's headers ({', '.join(_HEADERS)}), which are not all in one of"
        f" {', '.join(dict.fromkeys(map(str, places)))}: {_HOW}"
    )


def _homes() -> Iterator[Path]:
    """Where a toolkit may be."""
    yield from (Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name))
    if compiler := shutil.which("nvcc"):
        yield Path(compiler).resolve().parent.parent
    yield Path("/usr/local/cuda")
    if version := torch.version.cuda:
        yield Path(f"/usr/local/cuda-{version}")


def _of_wheels() -> Iterator[Path]:
    """Where packages of Python have headers."""
    packages = [Path(torch.__file__).parent.parent, Path(sysconfig.get_path("purelib"))]
    for folder in dict.fromkeys(packages):
        yield from sorted(folder.glob("nvidia/cu[0-9]*/include"))
        yield folder / "triton/backends/nvidia/include"


def _driver() -> Path:
    """The driver's library."""
    folders = [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    folders += [
        place for home in _homes() for place in (home / "lib64", home / "lib64/stubs", home / "lib", home / "lib/stubs")
    ]
    folders += [*map(Path, _SYSTEM)]
    loaded = _loaded()
    for place in [*loaded, *(folder / name for folder in folders for name in _DRIVER)]:
        if place.exists():
            return place.resolve()
    raise MissingError(
        "compiling for a GPU needs the driver's library, libcuda.so, which is in none of the folders of LD_LIBRARY_PATH, of the"
        f" toolkit, and of the system: name its folder in LD_LIBRARY_PATH, or {_HOW}"
    )


_SYSTEM: Final = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
    "/run/opengl-driver/lib",
)


def _loaded() -> list[Path]:
    """The driver's library that this process runs on, if Linux tells."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [Path(name) for name in re.findall(r"(/\S*/libcuda\.so\S*)$", maps, re.MULTILINE)]


# --- Calling ------------------------------------------------------------------------------------------------------------

Run: TypeAlias = Callable[[list[Tensor]], list[Tensor]]


def load(file: Path, device: torch.device) -> Run:
    """The program in a library of AOTInductor's, for a GPU.

    By itself, a runner waits before each call until the GPU is done with the last one. One for a single thread does not, and
    can be captured as a graph; Python lets one thread at a time into it.
    """
    run: Run = torch._C._aoti.AOTIModelContainerRunnerCuda(  # type: ignore[call-overload]  # the stub lacks the last parameter
        str(file), 1, str(device), str(file.parent), True
    ).run

    def on_device(tensors: list[Tensor]) -> list[Tensor]:
        with torch.cuda.device(device):  # whose current stream it runs on
            return run(tensors)

    return on_device
