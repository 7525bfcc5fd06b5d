"""The typed door to torch's exchanges between processes, as `kernels` is to what one process computes.

All but the last give a tensor at once, whose numbers are there when that waits for it. A process group is given by its name.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor


def _no_processes(*_: object) -> Tensor:
    raise ImportError("this torch was built without torch.distributed, by which processes reach each other")


def _between_processes(name: str) -> Callable[..., Tensor]:  # type: ignore[explicit-any]  # its signature stands below
    if not torch.distributed.is_available():
        return _no_processes
    operation: Callable[..., Tensor] = getattr(torch.ops._c10d_functional, name).default  # type: ignore[explicit-any]
    return operation


# x, "sum" or "max", group: the sum, or the largest, of the tensors of all processes.
all_reduce: Callable[[Tensor, Literal["sum", "max"], str], Tensor] = _between_processes("all_reduce")
# The same, written over x, which nobody else may hold.
all_reduce_: Callable[[Tensor, Literal["sum", "max"], str], Tensor] = _between_processes("all_reduce_")
# x (k, ...), size of the group n, group: those of all processes, one behind the other, (n k, ...).
all_gather: Callable[[Tensor, int, str], Tensor] = _between_processes("all_gather_into_tensor")
# x (n k, ...), "sum", n, group: of the sum of the tensors of all processes the rows of this one, (k, ...).
reduce_scatter: Callable[[Tensor, Literal["sum"], int, str], Tensor] = _between_processes("reduce_scatter_tensor")
# x, place of the process in the group whose tensor all get, group.
broadcast: Callable[[Tensor, int, str], Tensor] = _between_processes("broadcast")
wait: Callable[[Tensor], Tensor] = _between_processes("wait_tensor")
