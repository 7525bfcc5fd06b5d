"""Corrections of what torch's tracer and compiler get wrong; those of indices out of range are in `bounds`.

Fake attention: before 2.13, the log-sum-exp of attention in float64 is taken for one in float32 (pytorch#185539), and compiled
code ends with an error.

Pooling: to 2.14, the gradient of a mean is divided by the whole window where that reaches beyond the end as well
(pytorch#198119), and maxima are found in other places than they come from, if an image is transposed in memory
(pytorch#197434), or if a window that is padded sees nothing but -inf. So compiled code calls torch's kernels.

Order of writes: to 2.13, inductor forgets what a loop has to wait for when it arranges the loop anew, so as to fuse it with
another: that what it reads is written to first, as gradients of embeddings and of pooling are, or that others read what it
writes to first. So it reads too early, and results are wrong (pytorch#177816, pytorch#185873).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from fundl._common import graph_operations, kernels
from fundl._compiling.graphs import Decompositions

if TYPE_CHECKING:
    from torch._subclasses import FakeTensorMode

NAMES: Final = (
    "torch._inductor.dependencies.ReadWrites.rename",
    "torch._inductor.dependencies.StarDep",
    "torch._inductor.dependencies.WeakDep",
    "torch._inductor.lowering.fallback_handler",
    "torch._inductor.lowering.lowerings",
    "torch._inductor.scheduler.SchedulerNode.add_fake_dep",
    "torch._inductor.scheduler.SchedulerNode.recompute_size_and_body",
    "torch._inductor.scheduler.SchedulerNode.set_read_writes",
    "torch._subclasses.FakeTensorMode",
    "torch._subclasses.fake_impls.op_implementations_dict",
)
"""What is private in torch and used here."""


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Replace an attribute for a while."""
    before: object = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


# --- Fake attention -----------------------------------------------------------------------------------------------------


def correct_fake_attention() -> None:
    """Have the fake results of attention be of their dtypes, for as long as the process lives, unless they are."""
    from torch._subclasses import FakeTensorMode
    from torch._subclasses.fake_impls import op_implementations_dict

    with FakeTensorMode():
        q = torch.empty(1, 1, 1, 1, dtype=torch.float64, device="cpu")
        _, logsumexp = kernels.attention(q, q, q, 0, False, attn_mask=None)
    if logsumexp.dtype is not q.dtype:
        op_implementations_dict[kernels.attention] = _attention


def _attention(
    mode: "FakeTensorMode", _kernel: object, q: Tensor, *_others: object, **_options: object
) -> tuple[Tensor, Tensor]:
    batch, heads, queries, _ = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    with mode:
        return torch.empty_like(q), q.new_empty(batch, queries, heads, dtype=wide).transpose(1, 2)


# --- Pooling ------------------------------------------------------------------------------------------------------------


def pooling_decompositions() -> Decompositions:
    """Pooling is not decomposed."""
    return dict.fromkeys(graph_operations.POOLS, lambda *_: NotImplemented)


@contextmanager
def pooling_kernels_called() -> Iterator[None]:
    """Have inductor call torch's kernels for pooling meanwhile."""
    from torch._inductor.lowering import fallback_handler, lowerings

    before = {pool: lowerings[pool] for pool in graph_operations.POOLS if pool in lowerings}
    for pool in graph_operations.POOLS:
        lowerings[pool] = fallback_handler(pool, add_to_fallback_set=False)  # type: ignore[no-untyped-call]  # torch's own
    try:
        yield
    finally:
        for pool in graph_operations.POOLS:
            if pool in before:
                lowerings[pool] = before[pool]
            else:
                del lowerings[pool]


# --- Order of writes ----------------------------------------------------------------------------------------------------


@contextmanager
def write_order_kept() -> Iterator[None]:
    """Have inductor remember what a loop has to wait for when it arranges the loop anew."""
    from torch._inductor.dependencies import StarDep, WeakDep
    from torch._inductor.scheduler import SchedulerNode

    recompute: Callable[..., None] = SchedulerNode.recompute_size_and_body  # type: ignore[explicit-any]  # they are handed on

    def recompute_and_remember(node: SchedulerNode, **options: object) -> None:
        orders = [read for read in node.read_writes.reads if isinstance(read, (StarDep, WeakDep))]
        recompute(node, **options)
        for order in orders:
            node.add_fake_dep(order)
        node.set_read_writes(node.read_writes.rename(node.mutation_renames))

    with replaced(SchedulerNode, "recompute_size_and_body", recompute_and_remember):
        yield
