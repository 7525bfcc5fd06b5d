"""Compiling a graph with inductor, torch's compiler, ahead of time: C++ in a shared library, that a runner of torch loads.

Inductor is imported when something is compiled: that takes seconds.
"""

import functools
import hashlib
import inspect
import itertools
import logging
import os
import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, cast

import torch
from torch import Tensor

from fundl._common import kernels, products
from fundl._common.processor import instructions
from fundl._compiling import bounds, corrected, lowering, pools, torch_private
from fundl._compiling.alone import ALONE, uninterrupted

if TYPE_CHECKING:
    from torch._inductor.cpu_vec_isa import VecISA

NAMES: Final = (
    "torch._guards.TracingContext",
    "torch._guards.tracing",
    "torch._inductor.codecache",  # which trying out instruction sets imports, in a thread
    "torch._inductor.config.patch",
    "torch._inductor.config.compile_threads",
    "torch._inductor.config.aot_inductor.output_path",
    "torch._inductor.compile_fx.compile_fx_inner",
    "torch._inductor.cpp_builder.get_cpp_compiler",
    "torch._inductor.cpu_vec_isa.supported_vec_isa_list",
    "torch._inductor.cpu_vec_isa.valid_vec_isa_list",
    "torch._inductor.cpu_vec_isa.x86_isa_checker",
    "torch._inductor.decomposition.select_decomp_table",
    "torch._inductor.dependencies.ReadWrites.rename",
    "torch._inductor.dependencies.StarDep",
    "torch._inductor.dependencies.WeakDep",
    "torch._inductor.exc.InvalidCxxCompiler",
    "torch._inductor.scheduler.SchedulerNode.add_fake_dep",
    "torch._inductor.scheduler.SchedulerNode.recompute_size_and_body",
    "torch._inductor.scheduler.SchedulerNode.set_read_writes",
    "torch._inductor.virtualized.V.set_aot_compilation",
    "torch._inductor.virtualized.V.set_fake_mode",
)
"""What is private in torch and used here."""

_SETTINGS: Final[dict[str, object]] = {"compile_threads": 1, "aot_inductor.enable_frame_pointer": False}


def fingerprint(graph: torch_private.Graph) -> str:
    """All that the compiled form of a graph depends on, as text."""
    machine = (platform.machine(), torch.backends.cpu.get_cpu_capability(), sorted(instructions()), torch.get_num_threads())
    one_dnn = products.is_onednn_quicker() and torch._C._get_mkldnn_enabled()
    settings = (_code(), torch.__version__, *machine, one_dnn, sorted(_SETTINGS.items()))
    return "\n".join([repr(settings), *graph.lines()])


@functools.cache
def _code() -> str:
    """Stands for this module and those that it asks: if they change, the same graph is compiled to something else."""
    files = [__file__, *map(inspect.getfile, (bounds, corrected, lowering, pools, torch_private, products, kernels))]
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def require_known() -> None:
    """Raise an error that says what this torch lacks, if it lacks anything that compiling needs; it takes seconds.

    Raises:
        UnknownTorchError: it does.
    """
    torch_private.require_known((*torch_private.NAMES, *NAMES, *bounds.NAMES, *corrected.NAMES, *lowering.NAMES, *pools.NAMES))


class CompilerError(RuntimeError):
    """A graph cannot be compiled; the message says why."""


def compile_graph(graph: torch_private.Graph, examples: Sequence[Tensor], folder: Path) -> None:
    """Compile a graph to a shared library in a folder.

    Args:
        graph: of what `trace` returned.
        examples: of its inputs.
        folder: where the library goes, and what belongs to it; it exists, and is empty.

    Raises:
        UnknownTorchError: this torch lacks what compiling needs.
        CompilerError: there is no compiler for C++ on this machine, or it or torch's own cannot compile the graph.
    """
    with uninterrupted():
        require_known()
        lowering.prepare()
    with ALONE, warnings.catch_warnings(), _without_remarks():
        warnings.simplefilter("ignore")  # what torch deprecates in itself
        try:
            _compile_graph(graph, examples, folder)
        except CompilerError:
            raise
        except Exception as error:  # of any kind: all that torch's compiler stands on may raise
            cause = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
            raise CompilerError(f"torch's compiler cannot compile its graph of operations ({cause})") from error


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Keep torch's compiler from writing to standard error which operations it calls in another way than others."""
    log = logging.getLogger("torch._inductor.ir")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


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


def _compile_graph(graph: torch_private.Graph, examples: Sequence[Tensor], folder: Path) -> None:
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.virtualized import V

    cpp_compiler()
    with ExitStack() as stack:
        settings: dict[str, object] = {"cpp_wrapper": True, "aot_inductor.output_path": str(folder)}
        # Memory on the stack is for what is not returned: outputs that are there would be overwritten by the next call.
        settings["aot_inductor.allow_stack_allocation"] = graph.outputs == 0
        known = {name: value for name, value in _SETTINGS.items() if name in config.get_config_copy()}  # 2.11 lacks one
        stack.enter_context(config.patch({**known, **settings}))
        stack.enter_context(_best_instruction_set_alone())
        stack.enter_context(_order_kept())
        stack.enter_context(_thrown_after_loops())
        stack.enter_context(pools.called())
        table = {**select_decomp_table(), **lowering.decompositions(), **pools.decompositions()}
        module = torch_private.make_fx(graph.module, examples, {**table, **bounds.decompositions(table)})
        lowering.tell_where_views_begin(module)
        lowering.keep_numbers(module)
        lowering.finish_before_writing(module)
        outputs = module.graph.output_node()
        outputs.meta["user_visible_output_idxs"] = [*range(graph.outputs)]  # they keep the strides that eager has
        inputs: list[Tensor] = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
        stack.enter_context(V.set_aot_compilation(True))
        if fake_mode := next((getattr(value, "fake_mode", None) for value in inputs), None):
            stack.enter_context(V.set_fake_mode(fake_mode))
            stack.enter_context(tracing(TracingContext(fake_mode)))
        compile_fx_inner(module, inputs, cpp_wrapper=True)


@contextmanager
def _best_instruction_set_alone() -> Iterator[None]:
    """Have inductor try out only the best of this processor's instruction sets, while it works at the graph.

    Else it tries all of them, each for 2 s, once on each machine, and takes the best, unless it is told otherwise.
    """
    from torch._inductor import config, cpu_vec_isa

    if "ATEN_CPU_CAPABILITY" in os.environ or config.cpp.simdlen is not None or platform.machine() not in {"x86_64", "AMD64"}:
        yield
        return
    with ThreadPoolExecutor(1) as thread:
        best = thread.submit(_best_instruction_set)
        with _replaced(cpu_vec_isa, "valid_vec_isa_list", best.result):
            yield


@functools.cache
def _best_instruction_set() -> "list[VecISA]":
    from torch._inductor import cpu_vec_isa

    known = cpu_vec_isa.x86_isa_checker()
    there = (each for each in cpu_vec_isa.supported_vec_isa_list if all(name in known for name in str(each).split()))
    return [*itertools.islice(filter(None, there), 1)]


def _order_kept() -> AbstractContextManager[None]:
    """Have inductor remember what a loop has to wait for when it arranges the loop anew, so as to fuse it with another.

    To 2.13, torch then takes from the loop alone what it reads: not that this was written to meanwhile, as gradients of
    embeddings and of pooling are, nor that others are to have read it before. So it read too early, and results were wrong:
    https://github.com/pytorch/pytorch/pull/177816, https://github.com/pytorch/pytorch/pull/185873.
    """
    from torch._inductor.dependencies import StarDep, WeakDep
    from torch._inductor.scheduler import SchedulerNode

    recompute: Callable[..., None] = SchedulerNode.recompute_size_and_body  # type: ignore[explicit-any]  # they are handed on

    def recompute_and_remember(node: SchedulerNode, **options: object) -> None:
        orders = [read for read in node.read_writes.reads if isinstance(read, (StarDep, WeakDep))]
        recompute(node, **options)
        for order in orders:
            node.add_fake_dep(order)
        node.set_read_writes(node.read_writes.rename(node.mutation_renames))

    return _replaced(SchedulerNode, "recompute_size_and_body", recompute_and_remember)


@contextmanager
def _thrown_after_loops() -> Iterator[None]:
    """Have inductor write loops that throw nothing from within, and ask the kernels that it calls whether they refused."""
    from torch._inductor.codegen.cpp import CppKernel, KernelGroup
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen

    with (
        _replaced(CppKernel, "check_bounds", bounds.noting(CppKernel.check_bounds)),
        _replaced(KernelGroup, "codegen_group", bounds.throwing(KernelGroup.codegen_group)),
        _replaced(PythonWrapperCodegen, "set_writeline", bounds.asking(PythonWrapperCodegen.set_writeline)),
    ):
        yield


@contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Have a name in torch stand for something else meanwhile."""
    before: object = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


Run: TypeAlias = Callable[[list[Tensor]], list[Tensor]]


class _Runner(Protocol):
    run: Run


def load(folder: Path, device: torch.device) -> Run:
    """The function in a folder that `compile_graph` filled."""
    library = str(next(folder.glob("*.so")))
    if device.type == "cpu":
        return cast("_Runner", torch._C._aoti.AOTIModelContainerRunnerCpu(library, 1)).run
    return cast("_Runner", torch._C._aoti.AOTIModelContainerRunnerCuda(library, 1, str(device), str(folder))).run
