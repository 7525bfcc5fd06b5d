"""Compiling a graph ahead of time with inductor, torch's compiler, to a shared library that torch loads and runs.

Inductor is imported when something is compiled: that takes seconds.
"""

import functools
import hashlib
import inspect
import itertools
import logging
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import torch
from torch import Tensor

from fundl._common import kernels, products, recurrent_kernels
from fundl._common.processor import instructions
from fundl._compiling import bounds, corrections, cuda, graphs, library, lowering, overlap, torch_private
from fundl._compiling.graphs import Decompositions, Graph
from fundl._compiling.lock import COMPILER_LOCK, uninterrupted

if TYPE_CHECKING:
    from torch._inductor.cpu_vec_isa import VecISA

NAMES: Final = (
    "torch._C._AutoDispatchBelowAutograd",
    "torch._guards.TracingContext",
    "torch._guards.tracing",
    "torch._inductor.config.patch",
    "torch._inductor.config.compile_threads",
    "torch._inductor.config.aot_inductor.output_path",
    "torch._inductor.compile_fx.compile_fx_inner",
    "torch._inductor.cpp_builder.get_cpp_compiler",
    "torch._inductor.cpu_vec_isa.VecISA.build_arch_flags",
    "torch._inductor.cpu_vec_isa.VecISA.check_build",
    "torch._inductor.cpu_vec_isa.supported_vec_isa_list",
    "torch._inductor.cpu_vec_isa.valid_vec_isa_list",
    "torch._inductor.cpu_vec_isa.x86_isa_checker",
    "torch._inductor.decomposition.select_decomp_table",
    "torch._inductor.exc.InvalidCxxCompiler",
    "torch._inductor.virtualized.V.set_aot_compilation",
    "torch._inductor.virtualized.V.set_fake_mode",
)
"""What is private in torch and used here."""

_SETTINGS: Final[dict[str, object]] = {
    "compile_threads": 1,
    "aot_inductor.enable_frame_pointer": False,
    "aot_inductor.enable_line_tables": False,
    # A value that is used several times is computed anew for each use, up to so many operations: with 2.13's 50 in place of
    # the 30 before, a chain of small ones, each used three times, takes minutes and more to compile.
    "realize_cpu_opcount_threshold": 30,
}

_PACKAGED: Final[dict[str, object]] = {
    "aot_inductor.package": True,
    "aot_inductor.precompile_headers": False,  # 284 MB, which take longer than the one file that would need them
}
"""Of a package."""


def fingerprint(graph: Graph) -> str:
    """All that the compiled form of a graph depends on, as text."""
    machine = (platform.machine(), torch.backends.cpu.get_cpu_capability(), sorted(instructions()), torch.get_num_threads())
    one_dnn = products.is_onednn_quicker() and torch._C._get_mkldnn_enabled()
    gpus = [cuda.fingerprint(device) for device in graph.devices if device.type == "cuda"]
    settings = (_code(), torch.__version__, *machine, one_dnn, *gpus, sorted(_SETTINGS.items()))
    return "\n".join([repr(settings), *graph.lines()])


@functools.cache
def _code() -> str:
    """A digest of the modules that decide what a graph is compiled to."""
    modules = (bounds, corrections, cuda, graphs, library, lowering, overlap, products, kernels, recurrent_kernels)
    files = [*map(Path, (__file__, *map(inspect.getfile, modules))), *library.HEADERS]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def require_known() -> None:
    """Raise an error that says what this torch lacks, if it lacks anything that compiling needs; it takes seconds.

    Raises:
        UnknownTorchError: it does.
    """
    names = NAMES, bounds.NAMES, corrections.NAMES, cuda.NAMES, library.NAMES, lowering.NAMES, overlap.NAMES
    torch_private.require_known((*torch_private.NAMES, *itertools.chain(*names)))


class CompilerError(RuntimeError):
    """A graph cannot be compiled; the message says why."""


def compile_graph(graph: Graph, examples: Sequence[Tensor], folder: Path) -> None:
    """Compile a graph to a shared library in a folder.

    Args:
        graph: the graph.
        examples: of its inputs.
        folder: an empty one, for the library and what belongs to it.

    Raises:
        UnknownTorchError: this torch lacks what compiling needs.
        CompilerError: there is no compiler for C++ on this machine, or it or torch's own cannot compile the graph.
    """
    _compile(graph, examples, folder, {}, {})


def compile_package(graph: Graph, examples: Sequence[Tensor], folder: Path, held: Mapping[int, Tensor]) -> None:
    """Compile a graph to the files of an AOTInductor package in a folder, for programs in C++.

    Args:
        graph: the graph.
        examples: of its inputs, which may be fake ones, with sizes that are free.
        folder: an empty one.
        held: for some of the inputs, by number, what they are: a part of the package, and no input of it.

    Raises:
        UnknownTorchError, CompilerError: as of `compile_graph`.
    """
    _compile(graph, examples, folder, held, _PACKAGED)


def _compile(
    graph: Graph, examples: Sequence[Tensor], folder: Path, held: Mapping[int, Tensor], settings: Mapping[str, object]
) -> None:
    with uninterrupted():
        require_known()
        lowering.prepare()
    log = logging.getLogger("torch._inductor.ir")  # which remarks on operators that are called by another interface
    with COMPILER_LOCK, warnings.catch_warnings(), corrections.replaced(log, "disabled", True):
        warnings.simplefilter("ignore")  # what torch deprecates in itself
        try:
            _compile_graph(graph, examples, folder, held, settings)
            for file in folder.glob("*.wrapper.so"):
                _require_one_library(file)
        except CompilerError:
            raise
        except cuda.MissingError as error:
            raise CompilerError(str(error)) from error
        except Exception as error:  # of any kind: all that torch's compiler stands on may raise
            cause = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
            raise CompilerError(f"torch's compiler cannot compile its graph of operations ({cause})") from error


def cpp_compiler() -> str:
    """The compiler for C++ on this machine."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise CompilerError(
            f"{error}. Compiling needs a compiler for C++, g++ or clang++; the environment variable CXX says where it is"
        ) from error


def _require_one_library(file: Path) -> None:
    """Raise an error if what was built has a standard library of C++ of its own.

    Two in a process, torch's and this one, end it: each takes the other's locales for its own.
    """
    if sys.platform == "linux" and not re.search(rb"\0libstdc\+\+\.so\.\d+\0", file.read_bytes()):
        raise CompilerError(
            f"{cpp_compiler()} puts the standard library of C++ into what it builds, and with two of them the process would"
            " crash: let the environment variable CXX name a compiler that links to libstdc++.so, which is torch's, such as g++"
        )


def _compile_graph(
    graph: Graph, examples: Sequence[Tensor], folder: Path, held: Mapping[int, Tensor], packaged: Mapping[str, object]
) -> None:
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.virtualized import V

    cpp_compiler()
    with ExitStack() as stack:
        settings: dict[str, object] = {"cpp_wrapper": True, "aot_inductor.output_path": str(folder)}
        # Nothing that is returned may be on the stack: the next call would overwrite it.
        settings["aot_inductor.allow_stack_allocation"] = graph.outputs == 0
        there = config.get_config_copy()  # 2.11 lacks some
        known = {name: value for name, value in {**_SETTINGS, **packaged}.items() if name in there}
        if cuda.is_on_gpu(examples):
            settings |= {"compile_threads": cuda.processes(), **cuda.SETTINGS}
            stack.enter_context(cuda.toolkit())
            stack.enter_context(cuda.number_left_open())
        stack.enter_context(config.patch({**known, **settings}))
        stack.enter_context(_instruction_sets_not_tried_out())
        stack.enter_context(corrections.write_order_kept())
        stack.enter_context(corrections.pooling_kernels_called())
        stack.enter_context(bounds.thrown_after_loops())
        defaults: Decompositions = select_decomp_table()
        table = {**defaults, **lowering.decompositions(defaults), **corrections.pooling_decompositions()}
        module = graphs.make_fx(graph.module, examples, {**table, **bounds.decompositions(table)})
        lowering.state_storage_offsets(module)
        lowering.compute_scalars_once(module)
        lowering.put_in_place(module)
        lowering.finish_before_writing(module)
        if any(map(graphs.is_collective, module.graph.nodes)):
            overlap.spread(module)
            stack.enter_context(config.patch(overlap.SETTINGS))
        elif cuda.is_on_gpu(examples) and not graph.outputs:
            stack.enter_context(config.patch(cuda.LAUNCHED_ONCE))
        graphs.hold(module, held)
        outputs = module.graph.output_node()
        outputs.meta["user_visible_output_idxs"] = [*range(graph.outputs)]  # they keep the strides that eager has
        inputs: list[Tensor] = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
        stack.enter_context(V.set_aot_compilation(True))
        if fake_mode := next((getattr(value, "fake_mode", None) for value in inputs), None):
            stack.enter_context(V.set_fake_mode(fake_mode))
            stack.enter_context(tracing(TracingContext(fake_mode)))
        stack.enter_context(library.entries_written(inputs, folder, packaged=bool(packaged)))
        compile_fx_inner(module, inputs, cpp_wrapper=True)


@contextmanager
def _instruction_sets_not_tried_out() -> Iterator[None]:
    """Have inductor take this processor's best instruction set that the compiler knows, while it works at the graph.

    Else it compiles and runs a program for each of them, on each machine once, which takes seconds.
    """
    from torch._inductor import config, cpu_vec_isa

    if "ATEN_CPU_CAPABILITY" in os.environ or config.cpp.simdlen is not None or platform.machine() not in {"x86_64", "AMD64"}:
        yield
        return
    with corrections.replaced(cpu_vec_isa, "valid_vec_isa_list", _best_instruction_set):
        yield


@functools.cache
def _best_instruction_set() -> "list[VecISA]":
    from torch._inductor import cpu_vec_isa

    def is_known(isa: "VecISA", _program: str) -> bool:
        command = [cpp_compiler(), *isa.build_arch_flags().split(), "-x", "c++", "-fsyntax-only", os.devnull]
        return not subprocess.run(command, check=False, capture_output=True).returncode

    known = cpu_vec_isa.x86_isa_checker()
    there = (each for each in cpu_vec_isa.supported_vec_isa_list if all(name in known for name in str(each).split()))
    with corrections.replaced(cpu_vec_isa.VecISA, "check_build", is_known):
        return [*itertools.islice(filter(None, there), 1)]


Run: TypeAlias = Callable[[list[Tensor]], list[Tensor]]


def load(folder: Path, device: torch.device) -> Run:
    """The function in a folder that `compile_graph` filled."""
    if (file := folder / library.FILE).exists():
        return library.load(file)
    file = next(folder.glob("*.so"))
    if device.type == "cpu":
        return _below_autograd(torch._C._aoti.AOTIModelContainerRunnerCpu(str(file), 1).run)
    return _below_autograd(cuda.load(file, device))


def _below_autograd(run: Run) -> Run:
    """A function whose operators go past rules for derivatives.

    Those of exchanges between processes are written in Python: their tensors would become objects of Python's, which gloo's
    threads then free, each waiting for Python, while Python waits for gloo.
    """

    def below(tensors: list[Tensor]) -> list[Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            return run(tensors)

    return below
