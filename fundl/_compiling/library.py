"""The library of a compiled graph: the loops that inductor wrote, with an entry of fundl's own.

Inductor puts its code into AOTInductor's model and container, which takes g++ seven times as long as the loops themselves. The
entry here calls torch by its stable C interface alone, but for exchanges between processes, which it calls by their names.
Graphs with other operators that only the container can call, or on other devices than the CPU, keep it.

In both, numbers below the normal ones count as 0: see flush_denormals.h.
"""

import ctypes
import functools
import hashlib
import json
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, cast

import torch
from torch import Tensor

from fundl._common.folder import kept
from fundl._common.store import Store
from fundl._compiling.corrections import replaced

if TYPE_CHECKING:
    from torch._inductor.cpp_builder import CppTorchDeviceOptions
    from torch._inductor.graph import GraphLowering

NAMES: Final = (
    "torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs",
    "torch._inductor.codecache._precompile_header",
    "torch._inductor.codecache.AotCodeCompiler.compile",
    "torch._inductor.cpp_builder.CppBuilder",
    "torch._inductor.cpp_builder.CppTorchDeviceOptions",
    "torch._inductor.cpu_vec_isa.pick_vec_isa",
)
"""What is private in torch and used here."""

FILE: Final = "program.so"
"""The name of a library with an entry of fundl's own."""

_FLUSHING, _GIVEN, _OPERATORS, _DISPATCH, _ENTRIES = HEADERS = [
    Path(__file__).with_name(name)
    for name in (
        "flush_denormals.h",
        "library_inputs.h",
        "library_operators.h",
        "library_dispatch.h",
        "library_entries.h",
    )
]
"""What a library has beside what inductor wrote."""

_RUN: Final = re.compile(
    r"^void AOTInductorModel::run_impl\([^{]*\{\n(?P<body>.*)^\} // AOTInductorModel::run_impl$", re.MULTILINE | re.DOTALL
)
_INPUTS: Final = re.compile(r"auto inputs = steal_from_raw_handles_to_raii_handles\(input_handles, \d+\);")
_NOT_NEEDED: Final = re.compile(
    r"^.*(_check_inputs|_check_aoti_runtime_check_inputs|AOTInductorModelKernels).*\n", re.MULTILINE
)
_BEFORE: Final = re.compile(r'^(?:CACHE_TORCH_\w+\(\w+\);|extern "C"\s+void\s+\w+\([^;{]*;)', re.MULTILINE)
_KERNELS: Final = "aoti_torch_cpu_"
_DECLARED: Final = {  # where what an entry may call is declared
    _KERNELS: "aoti_torch/c/shim_cpu.h",
    "aoti_torch_aten_": "aoti_torch/generated/c_shim_aten.h",
    "scalar_to_tensor_handle": "aoti_runtime/scalar_to_tensor.h",
}
_FLUSH: Final = "const fundl::FlushDenormals flush;"
_PARALLEL: Final = re.compile(r"#pragma omp parallel(?: [^\n]*)?\n\s*\{")


class _UnlikeError(Exception):
    """Inductor's code is not of the form that is known here."""


@contextmanager
def entries_written(inputs: Sequence[Tensor], folder: Path, *, packaged: bool) -> Iterator[None]:
    """Have inductor compile what it writes for a graph with such inputs to a library with an entry of fundl's own.

    It is in the folder then; or AOTInductor's, if the graph needs that, or is for a package.
    """
    from torch._inductor.codecache import AotCodeCompiler

    of_torch: Callable[..., object] = AotCodeCompiler.compile  # type: ignore[explicit-any]  # it is called by inductor

    def compile_code(
        graph: "GraphLowering", code: str, loops: str, operators: str | None, *, device_type: str, **others: object
    ) -> object:
        loops = _flushing_threads(loops)
        if device_type == "cpu" and not graph.constants and not packaged:
            try:
                entry = _entry(_with_operators(code, operators), inputs, len(graph.graph_outputs))
                return _build(entry, loops, folder)
            except _UnlikeError:
                pass
        return of_torch(graph, _flushing(code), loops, operators, device_type=device_type, **others)

    with replaced(AotCodeCompiler, "compile", compile_code):
        yield


# --- Text ---------------------------------------------------------------------------------------------------------------


def _flushing_threads(loops: str) -> str:
    """Loops whose threads flush denormal numbers, beside the one that starts them."""
    return _text(_FLUSHING) + _PARALLEL.sub(rf"\g<0>\n    {_FLUSH}", loops)


def _flushing(code: str) -> str:
    """AOTInductor's model, flushing denormal numbers while it runs."""
    match = _RUN.search(code)
    if match is None:
        return code
    start = match.start("body")
    return f"{_text(_FLUSHING)}{code[:start]}    {_FLUSH}\n{code[start:]}"


def _entry(code: str, inputs: Sequence[Tensor], outputs: int) -> str:
    """The entry for what inductor wrote.

    Raises:
        _UnlikeError: it is not as expected.
    """
    match = _RUN.search(code)
    if match is None:
        raise _UnlikeError
    body, replaced_inputs = _INPUTS.subn(
        "fundl::Inputs<input_count> inputs(tensors, memory, forms);", _NOT_NEEDED.sub("", match["body"])
    )
    body = body.replace("this->device_idx_", "0")
    if replaced_inputs != 1 or "this->" in body or "proxy_executor" in body or "constants_" in body:
        raise _UnlikeError
    before = _BEFORE.findall(code[: match.start()])
    headers = [f"#include <torch/csrc/inductor/{header}>" for name, header in _DECLARED.items() if name in body]
    calls = "true" if _KERNELS in body or _CALLED_BY_NAME in body else "false"
    return "\n".join(
        [
            *map(_text, (_FLUSHING, _GIVEN, *([_OPERATORS] if _CALLED_BY_NAME in body else []))),
            *headers,
            "namespace torch::aot_inductor {",
            *dict.fromkeys(before),
            f"constexpr size_t input_count = {len(inputs)}, output_count = {outputs};",
            f"constexpr bool calls_kernels = {calls};",
            *_forms(inputs),
            "static void program(void** tensors, void** memory, [[maybe_unused]] AtenTensorHandle* output_handles) {",
            "    [[maybe_unused]] constexpr void* stream = nullptr;",
            body,
            "}",
            "}  // namespace torch::aot_inductor",
            "using namespace torch::aot_inductor;",
            _text(_ENTRIES),
        ]
    )


def _forms(inputs: Sequence[Tensor]) -> Iterator[str]:
    """The table of what inputs are like."""
    for number, tensor in enumerate(inputs):
        for name, values in ("sizes", tensor.shape), ("strides", tensor.stride()):
            yield f"static const int64_t {name}_{number}[] = {{{', '.join(map(str, (*values, 0)))}}};"
    yield "static const fundl::Form forms[] = {"
    for number, tensor in enumerate(inputs):
        name = str(tensor.dtype).removeprefix("torch.")
        yield f"    {{aoti_torch_dtype_{name}, {tensor.ndim}, sizes_{number}, strides_{number}}},"
    yield "    {}};"


_BY_NAME: Final = re.compile(
    r"AOTI_TORCH_ERROR_CODE_CHECK\(aoti_torch_proxy_executor_call_function\(proxy_executor, (?P<number>\d+), "
    r"[^;]*std::array<AtenTensorHandle, \d+>\{(?P<tensors>[^}]*)\}\.data\(\)\)\);"
)
_EACH_TENSOR: Final = re.compile(r"(?:[^,()]|\([^()]*\))+")  # a name, or what a function makes of one or more
_CALLED_BY_NAME: Final = "fundl::call_operator("


def _with_operators(code: str, operators: str | None) -> str:
    """Inductor's code, with collectives that it would leave to the container called by their names: see library_operators.h.

    Raises:
        _UnlikeError: it leaves others to it.
    """
    if not operators:
        return code
    nodes = [one["node"] for one in json.loads(operators)["nodes"]]

    def called(match: re.Match[str]) -> str:
        node = nodes[int(match["number"])]
        *tensors, result = [one.strip() for one in _EACH_TENSOR.findall(match["tensors"])]
        remaining, arguments = iter(tensors), list[str]()
        for given in node["inputs"]:
            ((kind, value),) = given["arg"].items()
            if kind == "as_tensor":
                arguments.append(f"static_cast<void*>(AtenTensorHandle({next(remaining, '')}))")
            elif kind == "as_int":
                arguments.append(f"int64_t({int(value)})")
            elif kind == "as_string":
                arguments.append(json.dumps(value, ensure_ascii=False))
            else:
                raise _UnlikeError
        name, _, overload = node["target"].partition(".")
        if not name.startswith("_c10d_functional::") or next(remaining, None) is not None:
            raise _UnlikeError
        return f'{_CALLED_BY_NAME}"{name}", "{overload}", {{{", ".join(arguments)}}}, AtenTensorHandle({result}));'

    return _BY_NAME.sub(called, code)


@functools.cache
def _text(header: Path) -> str:
    return header.read_text(encoding="utf-8")


# --- Compiling ----------------------------------------------------------------------------------------------------------

_LOOPS_HEADER: Final = "torch/csrc/inductor/cpp_prefix.h"


def _build(entry: str, loops: str, folder: Path) -> str:
    """Compile an entry and its loops, both at once; the path of the library.

    Raises:
        _UnlikeError: the compiler does not take the entry.
        RuntimeError: it does not take something else.
    """
    from torch._inductor.codecache import _precompile_header
    from torch._inductor.cpp_builder import CppBuilder, CppTorchDeviceOptions
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    isa = pick_vec_isa()
    options = functools.partial(CppTorchDeviceOptions, vec_isa=isa, device_type="cpu", aot_mode=True)
    with TemporaryDirectory() as place, ThreadPoolExecutor(1) as thread:

        def builder(name: str, text: str, how: "CppTorchDeviceOptions") -> CppBuilder:
            source = Path(place) / f"{name}.cpp"
            source.write_text(text, encoding="utf-8")
            return CppBuilder(name=name, sources=str(source), output_dir=place, BuildOption=how)

        of_entry = builder("entry", entry, options(compile_only=True, min_optimize=True))
        entry_done = thread.submit(_run, of_entry.get_command_line())
        headed = options(compile_only=True)
        if sys.platform != "win32":
            command = CppBuilder(name="o", sources="i", BuildOption=options()).get_command_line()
            headed.precompiled_header = _precompile_header(
                _LOOPS_HEADER, repr(command), vec_isa=isa, device_type="cpu", aot_mode=True
            )
        of_loops = builder("loops", loops, headed)
        _run(of_loops.get_command_line())
        try:
            entry_done.result()
        except RuntimeError as error:
            raise _UnlikeError from error
        objects = [of_entry.get_target_file_path(), of_loops.get_target_file_path()]
        if _CALLED_BY_NAME in entry:
            text = f"{_text(_OPERATORS)}\n{_text(_DISPATCH)}"
            dispatch = builder("dispatch", text, options(compile_only=True, min_optimize=True))
            objects.append(str(_compiled_once(dispatch.get_command_line(), text, Path(dispatch.get_target_file_path()))))
        linker = CppBuilder(name=Path(FILE).stem, sources=objects, output_dir=str(folder), BuildOption=options())
        _run(linker.get_command_line())
        return str(linker.get_target_file_path())


_OBJECT: Final = "object.bin"


def _compiled_once(command: str, text: str, target: Path) -> Path:
    """The object that a command makes of a text: from disk, if it was compiled before on this machine."""
    place = str(target.parent)
    facts = (text, command.replace(place, ""), torch.__version__, platform.machine())
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    with suppress(OSError):
        if (found := Store(kept()).find(key)) is not None:
            return Path(shutil.copy(found / _OBJECT, target))
    _run(command)
    with suppress(OSError):
        Store(kept()).add({_OBJECT: target.read_bytes()}, key)
    return target


def _run(command: str) -> None:
    """Run a compiler.

    Raises:
        RuntimeError: it refuses; with the first error that it tells.
    """
    done = subprocess.run(shlex.split(command), check=False, capture_output=True)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines()
        raise RuntimeError(next((line for line in lines if "error" in line), "the compiler does not say why it failed"))


# --- Calling ------------------------------------------------------------------------------------------------------------


def load(file: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    """The program in a library, as a function of Python, which lets other threads go on if it takes long."""
    # It stays loaded, which takes some 25 kB, also once the function is dropped: its definition and its code are in here, a
    # loop has addresses of it without a reference, and so may a thread that is on its way out of it. ctypes unloads nothing.
    library = ctypes.PyDLL(str(file))
    library.fundl_function.restype = ctypes.py_object
    tensors_of = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs
    return cast("Callable[[list[Tensor]], list[Tensor]]", library.fundl_function(ctypes.py_object(tensors_of)))
