"""All that is private in torch and that compiling stands on. It is written for torch 2.11 to 2.13; tests watch it.

Tracing is make_fx with fake tensors; compiling is inductor, ahead of time: C++ in a shared library, that a runner of torch
loads. Nothing here is imported with fundl: torch's compiler takes seconds to import.
"""

import copy
import functools
import logging
import pkgutil
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, cast

import attrs
import torch
from torch import Tensor
from torch.utils._device import DeviceContext
from typing_extensions import override

from fundl import kernels, products
from fundl.processor import instructions

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node
    from torch.utils._python_dispatch import TorchDispatchMode

_FORMAT: Final = 5  # of what is compiled: goes up when the same graph is compiled to something else
_SETTINGS: Final[dict[str, object]] = {"compile_threads": 1, "aot_inductor.enable_frame_pointer": False}
# More multiplications than these make a product of matrices worth a call into the BLAS; measured: with 6,000, a step with sums
# takes half the time, with 60,000 nine tenths.
_TINY: Final = 2**16
_SHORT: Final = 2**14  # from here on, their sums are added up in several parts at once
_ROWS, _COLUMNS = 4, 8  # from so many on, the sums of a product go along the columns; measured: a seventh less for a step


# --- What must be there -------------------------------------------------------------------------------------------------

_TO_TRACE: Final = (
    "torch._C._len_torch_dispatch_stack",
    "torch._C._len_torch_function_stack",
    "torch._C._dynamo.guards.TensorGuards",
    "torch._C._is_any_autocast_enabled",
    "torch._C._disabled_torch_dispatch_impl",
    "torch._C._functorch.is_functorch_wrapped_tensor",
    "torch._C._aoti.AOTIModelContainerRunnerCpu.run",
    "torch._is_functional_tensor",
    "torch.fx.experimental.proxy_tensor.make_fx",
    "torch.overrides._get_current_function_mode_stack",
    "torch.utils._device.DeviceContext",
    "torch.utils._python_dispatch.TorchDispatchMode",
    "torch.utils._python_dispatch._disable_current_modes",
)
_TO_COMPILE: Final = (
    "torch._guards.TracingContext",
    "torch._guards.tracing",
    "torch._inductor.config.patch",
    "torch._inductor.config.compile_threads",
    "torch._inductor.config.aot_inductor.output_path",
    "torch._inductor.compile_fx.compile_fx_inner",
    "torch._inductor.cpp_builder.get_cpp_compiler",
    "torch._inductor.decomposition.select_decomp_table",
    "torch._inductor.exc.InvalidCxxCompiler",
    "torch._inductor.inductor_prims.force_stride_order",
    "torch._inductor.ir.ExternKernel.require_contiguous",
    "torch._inductor.ir.FixedLayout",
    "torch._inductor.ir.TensorBox.create",
    "torch._inductor.lowering.lowerings",
    "torch._inductor.mkldnn_ir.LinearUnary",
    "torch._inductor.mkldnn_ir._create_output_node",
    "torch._inductor.virtualized.V.set_aot_compilation",
    "torch._inductor.virtualized.V.set_fake_mode",
)


def require_known(*, to_compile: bool = False) -> None:
    """Raise an error that says which of the names used here this torch lacks, if it lacks any.

    Args:
        to_compile: whether to look for those that only compiling needs, which takes seconds: for what is compiled already
            they are not needed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch deprecates in itself
        missing = [name for name in (_TO_COMPILE if to_compile else _TO_TRACE) if not _is_there(name)]
    if missing:
        raise ImportError(
            f"fundl.jit is written for torch 2.11 to 2.13; torch {torch.__version__} lacks {', '.join(missing)}: use one of"
            " those versions, or a newer fundl"
        )


def _is_there(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return False
    return True


# --- Tensors ------------------------------------------------------------------------------------------------------------

mode_count: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""How many modes (tracing, fake tensors, counting of operations) see the operations of this thread."""

function_mode_count: Callable[[], int] = torch._C._len_torch_function_stack
"""How many modes see the functions of torch that this thread calls; a default device is one of them."""


is_any_autocast: Callable[[], bool] = torch._C._is_any_autocast_enabled
"""Whether operations cast what they are given, on a device of any type."""


def without_modes() -> AbstractContextManager[None]:
    """In it, no mode sees the operations of this thread."""
    from torch.utils._python_dispatch import _disable_current_modes

    return cast("AbstractContextManager[None]", _disable_current_modes())


def is_watched() -> bool:
    """Whether a mode sees what this thread does, other than a default device: then it must be done one by one."""
    return bool(mode_count()) or (bool(function_mode_count()) and not all(isinstance(m, DeviceContext) for m in _modes()))


def _modes() -> list[object]:
    return torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call,no-any-return]  # it has no types


class _Check(Protocol):
    def __call__(self, *tensors: Tensor) -> bool: ...


class _Guards(Protocol):
    check: _Check


def guard(tensors: Sequence[Tensor], *, any_rows: bool = False) -> _Check:
    """A function that tells, in C++, whether tensors are like these: class, dtype, device, shape, strides; none twice.

    Args:
        tensors: as they shall be.
        any_rows: whether the sizes of their first axes do not matter.
    """
    sizes: list[list[int | None]] = [[*tensor.shape] for tensor in tensors]
    guards = torch._C._dynamo.guards.TensorGuards(
        *tensors,
        dynamic_dims_sizes=[[None, *size[1:]] if any_rows else size for size in sizes],  # type: ignore[misc]  # the stub says one size for each
        dynamic_dims_strides=[list(tensor.stride()) for tensor in tensors],  # type: ignore[misc]  # likewise
    )
    return cast("_Guards", guards).check  # the stub has no signature


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is one of numbers in memory: not fake, on the meta device, sparse, or of a function transform."""
    return (
        type(tensor).__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl
        and not tensor.is_meta
        and tensor.layout is torch.strided
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch._is_functional_tensor(tensor)
    )


def owns_its_memory(tensor: Tensor) -> bool:
    """Whether a tensor is all that is in its memory, each number once."""
    overlapping = any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))
    return not overlapping and tensor.untyped_storage().nbytes() == tensor.nbytes


# --- Operations ---------------------------------------------------------------------------------------------------------


class _Argument(Protocol):
    name: str
    alias_info: object


class _Schema(Protocol):
    is_mutable: bool
    arguments: list[_Argument]


class _Overload(Protocol):
    _schema: _Schema
    tags: list[torch.Tag]

    def __call__(self, *args: object, **kwargs: object) -> object: ...


@attrs.frozen
class Operation:
    """What an operation of ATen says of itself."""

    overload: _Overload

    @property
    def name(self) -> str:
        """As the program might have called it."""
        return f"torch.{str(self.overload).removeprefix('aten.').split('.')[0]}"

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers; attention, which only may, does not."""
        return torch.Tag.nondeterministic_seeded in self.overload.tags and "attention" not in self.name

    @property
    def needs_values(self) -> bool:
        """Whether its result, or the shape of that, depends on the values of tensors."""
        tags = self.overload.tags
        return torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags

    def written(self, arguments: Sequence[object]) -> Iterator[Tensor]:
        """The arguments that it writes to."""
        if self.overload._schema.is_mutable:
            for argument, value in zip(self.overload._schema.arguments, arguments, strict=False):
                alias = argument.alias_info
                if alias is not None and getattr(alias, "is_write", False):
                    parts = value if isinstance(value, tuple | list) else (value,)
                    yield from (part for part in parts if isinstance(part, Tensor))


def is_unknown(result: object) -> bool:
    """Whether a result, or its shape, stands for a number that nobody knows."""
    sizes = (result, *result.shape) if isinstance(result, Tensor) else (result,)
    return any(isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool) for size in sizes)


_Watcher = Callable[[Operation, Sequence[object], Callable[[], object]], object]


def mode(watcher: _Watcher) -> "TorchDispatchMode":
    """A mode in which a function sees each operation, its arguments in their order, and what runs it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__
        @override
        def __torch_dispatch__(
            self, func: _Overload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
        ) -> object:
            named = kwargs or {}
            order = [*args, *(named.get(argument.name) for argument in func._schema.arguments[len(args) :])]
            return watcher(Operation(func), order, lambda: func(*args, **named))

    return Mode()  # type: ignore[no-untyped-call]  # likewise


# --- Graphs -------------------------------------------------------------------------------------------------------------


Source: TypeAlias = tuple[Literal["input", "output"], int]
"""A tensor that an input or an output of a graph stands for."""


@attrs.frozen(eq=False)
class Graph:
    """A graph of ATen's operations, from tensors to tensors."""

    module: "GraphModule"

    @property
    def outputs(self) -> int:
        """How many tensors it computes."""
        (outputs,) = self.module.graph.output_node().args
        return len(outputs) if isinstance(outputs, tuple | list) else 0

    def write_back(self, writes: Sequence[tuple[int, "Source"]], returns: Sequence["Source"]) -> "Graph":
        """The graph that writes into its inputs.

        Args:
            writes: an input, and what is written into it after all else is computed.
            returns: what is returned still.
        """
        module = copy.deepcopy(self.module)
        graph, inputs = module.graph, module.graph.find_nodes(op="placeholder")
        node = graph.output_node()
        outputs: list[Node] = [*node.args[0]]  # type: ignore[misc]  # they are nodes: see trace
        with graph.inserting_before(node):

            def value(source: Source) -> "Node":
                if source[0] == "output":
                    return outputs[source[1]]
                return graph.call_function(kernels.clone, (inputs[source[1]],))  # as it was before the writing

            written, returned = [value(source) for _, source in writes], [value(source) for source in returns]
            for (place, _), new in zip(writes, written, strict=True):
                graph.call_function(kernels.copy_, (inputs[place], new))
        node.args = (returned,)
        module.recompile()
        return Graph(module)

    def with_slots(self, outputs: Sequence[int]) -> "tuple[Graph, list[Tensor]]":
        """The graph with a further input for each of some outputs, to be written to; and stand-ins for those inputs."""
        module = copy.deepcopy(self.module)
        graph = module.graph
        inputs, nodes = graph.find_nodes(op="placeholder"), [*graph.output_node().args[0]]  # type: ignore[misc]  # see trace
        examples: list[Tensor] = []
        for number, output in enumerate(outputs):
            value: Tensor = nodes[output].meta["val"]
            with graph.inserting_after(inputs[-1]):
                inputs.append(graph.placeholder(f"slot_{number}"))
            inputs[-1].meta = {"val": value}
            examples.append(torch.empty(value.shape, dtype=value.dtype, device=value.device))
        return Graph(module), examples

    def is_contiguous(self, output: int) -> bool:
        """Whether an output is."""
        nodes: list[Node] = [*self.module.graph.output_node().args[0]]  # type: ignore[misc]  # see trace
        value: Tensor = nodes[output].meta["val"]
        return value.is_contiguous()

    def is_like(self, is_output: bool, index: int, example: Tensor) -> bool:
        """Whether an input or output can be written into a tensor like an example."""
        graph = self.module.graph
        nodes: list[Node] = [*graph.output_node().args[0]] if is_output else graph.find_nodes(op="placeholder")  # type: ignore[misc]  # see trace
        value: Tensor = nodes[index].meta["val"]
        return (value.shape, value.dtype, value.device) == (example.shape, example.dtype, example.device)

    def fingerprint(self) -> str:
        """All that its compiled form depends on, as text."""
        settings = (
            _FORMAT,
            torch.__version__,
            platform.machine(),
            torch.backends.cpu.get_cpu_capability(),
            sorted(instructions()),
        )
        lines = [repr((*settings, torch.get_num_threads(), _TINY, products.is_onednn_quicker(), sorted(_SETTINGS.items())))]
        lines += [
            f"{node.op} {node.name} {node.target} {node.args} {node.kwargs} {_described(node)}"
            for node in self.module.graph.nodes
        ]
        return "\n".join(lines)


def _described(node: "Node") -> str:
    text = f"{node.op} {node.name} {node.target} {node.args} {node.kwargs}"
    value: object = node.meta.get("val")
    if node.op != "placeholder" or not isinstance(value, Tensor):
        return text
    return f"{text} {value.dtype} {value.device} {tuple(value.shape)} {value.stride()}"


_Decompositions = Mapping[object, Callable[..., object]]  # type: ignore[explicit-any]  # of any arguments


class _OfTensors(Protocol):
    def __call__(self, *tensors: Tensor) -> list[Tensor]: ...


class _MakeFx(Protocol):
    def __call__(  # type: ignore[explicit-any]  # it returns a function of as many tensors as the one given
        self, function: _OfTensors, table: _Decompositions, *, tracing_mode: Literal["fake"], _allow_non_fake_inputs: bool
    ) -> "Callable[..., GraphModule]": ...


def trace(function: _OfTensors, examples: Sequence[Tensor], *, functional: bool) -> tuple[Graph, list[Tensor]]:
    """The graph of a function, and the tensors that it used without being given them, which are its last inputs.

    Args:
        function: of tensors.
        examples: of what it is given.
        functional: whether it writes to tensors, of its own making, so that the writing must be traced away.
    """
    module = _make_fx(torch.func.functionalize(function) if functional else function, examples, {})
    constants: list[Tensor] = []
    inputs = module.graph.find_nodes(op="placeholder")
    for node in module.graph.find_nodes(op="get_attr"):
        value: object = getattr(module, str(node.target))
        if not isinstance(value, Tensor):
            raise TypeError(f"the trace holds a {type(value).__name__}, for which there is no compiler: {node.target}")
        with module.graph.inserting_after(inputs[-1]) if inputs else module.graph.inserting_before():
            inputs.append(module.graph.placeholder(f"constant_{len(constants)}"))
        inputs[-1].meta = {"val": value}
        node.replace_all_uses_with(inputs[-1])
        module.graph.erase_node(node)
        constants.append(value)
    module.graph.eliminate_dead_code()
    module.recompile()
    return Graph(module), constants


def _make_fx(function: _OfTensors, examples: Sequence[Tensor], decompositions: _Decompositions) -> "GraphModule":
    from torch.fx.experimental.proxy_tensor import make_fx

    tracer = cast("_MakeFx", make_fx)(function, decompositions, tracing_mode="fake", _allow_non_fake_inputs=True)
    return tracer(*[tensor.detach() for tensor in examples])  # each by itself, though two of them be the same


# --- Compiling ----------------------------------------------------------------------------------------------------------


class CompilerError(RuntimeError):
    """A graph cannot be compiled; the message says why."""


def compile_graph(graph: Graph, examples: Sequence[Tensor], folder: Path) -> None:
    """Compile a graph to a shared library in a folder.

    Args:
        graph: of what `trace` returned.
        examples: of its inputs.
        folder: where the library goes, and what belongs to it; it exists, and is empty.

    Raises:
        ImportError: this torch lacks what compiling needs.
        CompilerError: there is no compiler for C++ on this machine, or it or torch's own cannot compile the graph.
    """
    require_known(to_compile=True)
    with warnings.catch_warnings(), _without_remarks():
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


def _compile_graph(graph: Graph, examples: Sequence[Tensor], folder: Path) -> None:
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
        module = _make_fx(graph.module, examples, {**select_decomp_table(), **_products(), kernels.foreach_norm: _norms})
        _keep_numbers(module)
        _finish_before_writing(module)
        outputs = module.graph.output_node()
        outputs.meta["user_visible_output_idxs"] = [*range(graph.outputs)]  # they keep the strides that eager has
        inputs: list[Tensor] = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
        stack.enter_context(V.set_aot_compilation(True))
        if fake_mode := next((getattr(value, "fake_mode", None) for value in inputs), None):
            stack.enter_context(V.set_fake_mode(fake_mode))
            stack.enter_context(tracing(TracingContext(fake_mode)))
        compile_fx_inner(module, inputs, cpp_wrapper=True)


def _finish_before_writing(module: "GraphModule") -> None:
    """Have inductor compute all that a graph returns or writes before it writes anything.

    It puts computing off, so as to fuse it, and is to notice when what it would read is written to. That went wrong: torch
    2.11 computed gradients from weights that were new already. What is finished needs nobody's attention.
    """
    from torch._inductor.inductor_prims import force_stride_order

    graph = module.graph
    writes = graph.find_nodes(op="call_function", target=kernels.copy_)
    if not writes:
        return
    output = graph.output_node()
    written: list[Node] = [write.args[1] for write in writes]
    returned: list[Node] = [*output.args[0]]  # type: ignore[misc]  # they are nodes: see trace
    finished = {node: node for node in [*written, *returned]}
    with graph.inserting_before(writes[0]):
        for node in (*written, *returned):
            if node.op != "placeholder" and finished[node] is node:
                value: Tensor = node.meta["val"]
                finished[node] = graph.call_function(force_stride_order, (node, value.stride()))
                finished[node].meta["val"] = value
    for write, node in zip(writes, written, strict=True):
        write.args = (write.args[0], finished[node])
    output.args = ([finished[node] for node in returned],)
    module.recompile()


def _keep_numbers(module: "GraphModule") -> None:
    """Have numbers computed once: inductor would compute them again in each loop that uses them, powers and roots too."""
    graph = module.graph
    for node in [node for node in graph.nodes if _makes_a_number(node)]:
        users = [user for user in node.users if _ndim(user) != 0 and user.op != "output"]
        if users:
            with graph.inserting_after(node):
                kept = graph.call_function(kernels.as_strided, (node, (), ()))  # which wants its input in memory
            kept.meta = {"val": node.meta["val"]}
            for user in users:
                user.replace_input_with(node, kept)
    module.recompile()


def _makes_a_number(node: "Node") -> bool:
    """Whether a node computes a tensor without axes; not if that might be a view, whose place as_strided would forget."""
    if node.op != "call_function" or _ndim(node) != 0:
        return False
    if node.target is kernels.convert_element_type:  # to another dtype, or it is none
        return any(source.meta["val"].dtype != node.meta["val"].dtype for source in node.all_input_nodes)
    return node.target in kernels.ARITHMETIC


def _ndim(node: "Node") -> int | None:
    value: object = node.meta.get("val")
    return value.ndim if isinstance(value, Tensor) else None


def _products() -> _Decompositions:
    """Products of matrices where torch's own kernel is not the quickest."""
    return {kernels.mm: _mm, kernels.addmm: _addmm}


def _mm(a: Tensor, b: Tensor) -> object:
    if not a.is_cpu or not a.is_floating_point():
        return NotImplemented
    (rows, inner), columns = a.shape, b.shape[1]
    if rows * inner * columns <= _TINY:  # a call into the BLAS costs more than the arithmetic: sums, which fuse
        return _sums(a, b)
    if a.is_contiguous() and products.suits_onednn(rows, inner, columns, a.dtype):
        return _onednn_product()(a, b.t())
    return NotImplemented


def _sums(a: Tensor, b: Tensor) -> Tensor:
    """A product of matrices as sums, of which a compiler makes vectors: along the columns of b, or, if these are few, the sums.

    Both are put into memory, unless there are few rows: what is computed on the way is not to be computed again in each sum,
    and to add up within a vector takes longer than to transpose b.
    """
    (rows, inner), columns = a.shape, b.shape[1]
    if rows >= _ROWS:
        a = _in_memory(a)
        b = _in_memory(b) if columns >= _COLUMNS else b
    some = max(some for some in range(1, 8) if inner % some == 0)  # so few are written out: more is added up at once
    if rows * inner * columns > _SHORT and 1 < some < inner:
        return (torch.unflatten(a, 1, (-1, some)).unsqueeze(3) * torch.unflatten(b, 0, (-1, some)).unsqueeze(0)).sum(2).sum(1)
    product = (a.unsqueeze(2) * b.unsqueeze(0)).sum(1)
    return _in_memory(product) if inner == 1 else product


def _in_memory(matrix: Tensor) -> Tensor:
    """A contiguous matrix, which inductor computes once."""
    from torch._inductor.inductor_prims import force_stride_order

    return cast("Tensor", force_stride_order(matrix, (max(1, matrix.shape[1]), 1)))


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> object:
    product = _mm(a, b) if (beta, alpha) == (1, 1) else NotImplemented
    return NotImplemented if product is NotImplemented else bias + cast("Tensor", product)


@functools.cache
def _onednn_product() -> "Callable[[Tensor, Tensor], Tensor]":
    """An operation for graphs, x W^T, and how inductor calls oneDNN for it; its own way copies a W that is transposed."""
    from torch._inductor import ir, mkldnn_ir
    from torch._inductor.lowering import lowerings

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return products.linear(x, weight, None)

    def shape(x: Tensor, weight: Tensor) -> Tensor:
        return x.new_empty(x.shape[0], weight.shape[0])

    def lower(x: ir.TensorBox, weight: ir.TensorBox) -> ir.IRNode:
        rows = ir.ExternKernel.require_contiguous(ir.ExternKernel.realize_input(x))
        weights = ir.ExternKernel.realize_input(weight)
        sizes = [x.get_size()[0], weight.get_size()[0]]
        layout = ir.FixedLayout(torch.device("cpu"), x.get_dtype(), sizes)
        node = mkldnn_ir.LinearUnary(layout, inputs=[rows, weights], constant_args=(None, "none", [-1], ""))
        return ir.TensorBox.create(mkldnn_ir._create_output_node(node))  # type: ignore[no-untyped-call]  # torch's own

    operation = torch.library.custom_op("fundl::product", product, mutates_args=(), device_types="cpu")
    operation.register_fake(shape)
    lowerings[operation._opoverload] = lower
    return operation


def _norms(tensors: list[Tensor], order: float = 2, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The one foreach kernel that inductor would call instead of compiling it."""
    return [torch.linalg.vector_norm(tensor, order, dtype=dtype) for tensor in tensors]


Run = Callable[[list[Tensor]], list[Tensor]]


class _Runner(Protocol):
    run: Run


def load(folder: Path, device: torch.device) -> Run:
    """The function in a folder that `compile_graph` filled."""
    library = str(next(folder.glob("*.so")))
    if device.type == "cpu":
        return cast("_Runner", torch._C._aoti.AOTIModelContainerRunnerCpu(library, 1)).run
    return cast("_Runner", torch._C._aoti.AOTIModelContainerRunnerCuda(library, 1, str(device), str(folder))).run
