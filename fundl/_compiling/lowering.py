"""What inductor is made to do otherwise: small matrix products as sums, scalars once, and all results before any write."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, cast

import torch
from torch import Tensor

from fundl._common import graph_operations, kernels, products
from fundl._compiling.graphs import Decompositions

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

NAMES: Final = (
    "torch._inductor.inductor_prims.force_stride_order",
    "torch._inductor.ir.BaseView",
    "torch._inductor.ir.ExternKernel.realize_input",
    "torch._inductor.ir.ExternKernel.require_contiguous",
    "torch._inductor.ir.FixedLayout",
    "torch._inductor.ir.InputBuffer",
    "torch._inductor.ir.InputsKernel.get_inputs_that_alias_output",
    "torch._inductor.ir.MutableBox",
    "torch._inductor.ir.TensorBox.create",
    "torch._inductor.lowering.lowerings",
    "torch._inductor.mkldnn_ir.LinearUnary",
    "torch._inductor.mkldnn_ir._create_output_node",
)
"""What is private in torch and used here."""


def prepare() -> None:
    """Register operators with torch and inductor, once."""
    _onednn_product()
    _finished()


# --- Operations ---------------------------------------------------------------------------------------------------------

# More multiplications than these make a product of matrices worth a call into the BLAS; measured: sums take from half the time
# to the same. Of a narrow matrix, with a side of at most _NARROW, MKL makes less: sums take a tenth of the time to the same.
_TINY, _NARROW, _TINY_IF_NARROW = 2**17, 16, 2**20
_LONG: Final = 2**10  # terms; a BLAS adds up more of them, in parts, with smaller errors
_ROWS, _COLUMNS = 4, 8  # from so many on, the sums of a product go along the columns; measured: a seventh less for a step
_PARTS: Final = range(4, 9)  # so many rows at once keep a processor's units busy; measured: two thirds of the time
_WRITTEN_OUT: Final = 8  # terms: a sum of no more is no loop


def decompositions(known: Decompositions) -> Decompositions:
    """Decompositions that are quicker than torch's own kernels, or than those that are known."""
    own: Decompositions = {graph_operations.mm: _mm, graph_operations.addmm: _addmm, graph_operations.foreach_norm: _norms}
    gradients: set[object] = {kernels.nll_loss_backward, kernels.nll_loss2d_backward}
    return {**own, **{each: _nll_loss_backward(known[each]) for each in gradients if each in known}}


def _mm(a: Tensor, b: Tensor) -> object:
    (rows, inner), columns = a.shape, b.shape[1]
    if not a.is_cpu or not a.is_floating_point() or any(isinstance(size, torch.SymInt) for size in (rows, inner, columns)):
        return NotImplemented  # for any number of rows it is the BLAS
    narrow = min(rows, inner, columns) <= _NARROW and inner <= _LONG
    if rows * inner * columns <= (_TINY_IF_NARROW if narrow else _TINY):
        return _sums(a, b)
    if a.is_contiguous() and products.suits_onednn(rows, inner, columns, a.dtype):
        return _onednn_product()(a, b.t())
    return NotImplemented


def _nll_loss_backward(known: Callable[..., object]) -> Callable[..., object]:  # type: ignore[explicit-any]  # of any arguments
    """The gradient of the loss of class indices; on a GPU, unless classes have weights, as `in_each_row`."""

    def decomposed(  # noqa: PLR0917  # as the kernel
        grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, kind: int, ignore_index: int, total: Tensor
    ) -> object:
        if not x.is_cuda or x.ndim < 2 or weight is not None:
            return known(grad, x, target, weight, kind, ignore_index, total)
        return in_each_row(-grad / total if kind == 1 else -grad, x, target, ignore_index)

    return decomposed


def in_each_row(value: Tensor, x: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """A value, without axes, at the class of each row that counts, and 0 elsewhere, in the shape (B, C, ...) of x.

    It is found number by number, wherever it is used: torch's own writes zeros to memory first, and then to one in each row,
    which of logits of a large vocabulary is more memory than all the rest of the loss.
    """
    classes = torch.arange(x.shape[1], device=x.device).reshape(-1, *[1] * (x.ndim - 2))
    own = (target.unsqueeze(1) == classes) & (target != ignore_index).unsqueeze(1)
    return torch.where(own, value, 0.0).to(x.dtype)


def _sums(a: Tensor, b: Tensor) -> Tensor:
    """A product of matrices as sums, vectorised along the columns of b, or, if these are few, within each sum.

    Unless there are few rows, both matrices are put into memory: else they would be computed again for each sum; and to
    transpose b takes less time than to add up within a vector. The rows are in parts, which the compiler puts into one loop:
    one reading of b serves them all, and no sum waits for another.
    """
    (rows, inner), columns = a.shape, b.shape[1]
    if rows >= _ROWS:
        a = _in_memory(a.t()).t() if a.t().is_contiguous() else _in_memory(a)
        b = _in_memory(b) if columns >= _COLUMNS else b
    if rows < _ROWS or columns < _COLUMNS or inner <= _WRITTEN_OUT:
        product = (a.unsqueeze(2) * b.unsqueeze(0)).sum(1)
        return _in_memory(product) if inner == 1 else product
    parts = min(_PARTS, key=lambda parts: (rows % parts, -parts))
    return torch.cat([(some.unsqueeze(2) * b.unsqueeze(0)).sum(1) for some in torch.split(a, rows // parts)])


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


# --- Graphs -------------------------------------------------------------------------------------------------------------


def finish_before_writing(module: "GraphModule") -> None:
    """Have inductor compute all that a graph returns or writes, in memory of its own, before it writes to an input.

    Inductor postpones computing, so as to fuse it, and sometimes misses that what it will read is written to first: gradients
    were computed from new weights. And it takes the copy of an input, or a view, for the input itself: so old values that were
    to be returned were read after they were written over.
    """
    graph = module.graph
    writes = graph.find_nodes(op="call_function", target=graph_operations.copy_)
    if not writes:
        return
    output = graph.output_node()
    written: list[Node] = [write.args[1] for write in writes]
    returned: list[Node] = [*output.args[0]]  # type: ignore[misc]  # they are nodes: see trace
    finished: dict[Node, Node] = {}
    with graph.inserting_before(writes[0]):
        for node in (*written, *returned):
            if node not in finished:
                value: Tensor = node.meta["val"]
                finished[node] = graph.call_function(_finished(), (node, _order_of_axes(value)))
                finished[node].meta["val"] = value
    for write, node in zip(writes, written, strict=True):
        write.args = (write.args[0], finished[node])
    output.args = ([finished[node] for node in returned],)
    module.recompile()


def put_in_place(module: "GraphModule") -> None:
    """Have rows that are put into an input, which is then written over by that, be put there at once: see `index_put`.

    So a cache of keys and values costs as much as what is new in it, and not two copies of all. It is done where nothing else
    looks at the input, so that none of what is computed can miss what was there before.
    """
    graph = module.graph
    for write in graph.find_nodes(op="call_function", target=graph_operations.copy_):
        home, put = write.args
        if put.op != "call_function" or put.target is not graph_operations.index_put or put.args[0] is not home:
            continue
        if {*home.users} != {put, write} or home.op != "placeholder" or put in graph.output_node().all_input_nodes:
            continue
        with graph.inserting_before(put):
            there = graph.call_function(graph_operations.index_put_, put.args, put.kwargs)
        there.meta = {"val": home.meta["val"]}
        graph.erase_node(write)
        put.replace_all_uses_with(there)
        graph.erase_node(put)
    module.recompile()


def _order_of_axes(tensor: Tensor) -> Sequence[int]:
    """Strides that a tensor of such a shape can have in memory of its own: its own ones, unless numbers share their place."""
    shared = any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))
    return torch.empty(tensor.shape, device="meta").stride() if shared else tensor.stride()


@functools.cache
def _finished() -> "Callable[[Tensor, Sequence[int]], Tensor]":
    """An operator for graphs: the tensor itself, but computed by now, in memory of its own, with strides in that order.

    Only what is, or may be, in the memory of an input is copied. No pass of inductor's knows the operator, so none removes it.
    """
    from torch._inductor import ir
    from torch._inductor.inductor_prims import force_stride_order
    from torch._inductor.lowering import lowerings

    def finish(tensor: Tensor, strides: Sequence[int]) -> Tensor:
        return tensor.new_empty_strided(tensor.shape, strides).copy_(tensor)

    def shape(tensor: Tensor, strides: Sequence[int]) -> Tensor:
        return tensor.new_empty_strided(tensor.shape, strides)

    def lower(tensor: ir.TensorBox, strides: Sequence[int]) -> ir.IRNode:
        tensor.realize()
        memory: ir.IRNode = tensor
        while isinstance(memory, ir.BaseView | ir.MutableBox):
            memory = memory.data
        if isinstance(memory, ir.InputBuffer) or (
            isinstance(memory, ir.InputsKernel) and memory.get_inputs_that_alias_output()
        ):
            tensor = lowerings[graph_operations.clone](tensor)
            tensor.realize()
        return cast("ir.IRNode", lowerings[force_stride_order](tensor, strides))

    operation = torch.library.custom_op("fundl::finished", finish, mutates_args=())
    operation.register_fake(shape)
    lowerings[operation._opoverload] = lower
    return operation._opoverload


def state_storage_offsets(module: "GraphModule") -> None:
    """State the storage offset of each as_strided of a view of an input: before 2.13, inductor takes that of the input."""
    if torch.__version__ >= "2.13":
        return
    inputs: dict[object, Tensor] = {}
    for node in module.graph.nodes:
        value: object = node.meta.get("val")
        if not isinstance(value, Tensor):
            continue
        memory = value.untyped_storage()._cdata
        if node.op == "placeholder":
            inputs[memory] = value
        elif node.target is graph_operations.as_strided and len(node.args) == 3 and memory in inputs:
            node.args = (*node.args, value.storage_offset() - inputs[memory].storage_offset())
    module.recompile()


def compute_scalars_once(module: "GraphModule") -> None:
    """Have scalars computed once: inductor would compute them again in each loop that uses them, powers and roots too."""
    graph = module.graph
    for node in [node for node in graph.nodes if _computes_a_scalar(node)]:
        users = [user for user in node.users if _ndim(user) != 0 and user.op != "output"]
        if users:
            with graph.inserting_after(node):
                kept = graph.call_function(graph_operations.as_strided, (node, (), ()))  # which wants its input in memory
            kept.meta = {"val": node.meta["val"]}
            for user in users:
                user.replace_input_with(node, kept)
    module.recompile()


def _computes_a_scalar(node: "Node") -> bool:
    """Whether a node computes a tensor without axes; not if that may be a view, whose storage offset as_strided would lose."""
    if node.op != "call_function" or _ndim(node) != 0:
        return False
    if node.target is graph_operations.convert_element_type:  # to another dtype, or it is none
        return any(source.meta["val"].dtype != node.meta["val"].dtype for source in node.all_input_nodes)
    return node.target in graph_operations.ARITHMETIC


def _ndim(node: "Node") -> int | None:
    value: object = node.meta.get("val")
    return value.ndim if isinstance(value, Tensor) else None
