"""Processes that compute together: how they start, and groups of them.

Each process runs the same program on tensors of its own, and one thread of arithmetic or one GPU. A launcher, such as torchrun,
starts them; what they say to each other goes through torch.distributed.
"""

import atexit
import itertools
import math
import os
import platform
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final, final

import attrs
import torch
import torch.distributed
from torch import Tensor

from fundl._common import exchanges
from fundl._common.listed import Listed
from fundl._common.meeting import meet
from fundl._common.suggestions import with_suggestions
from fundl._common.talking import StoreTalk
from fundl.memory import keep_freed_memory
from fundl.tree import describe

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_WORLD: Final = "fundl"


@final
@attrs.frozen
class Group(metaclass=Listed):
    """Some processes that compute together; made by `start`, `grid` and `group_of`.

    It is a static value: the same one on each of its processes, but for the rank, which is not compared. So what is compiled
    by one of them serves the others.

    Args:
        name: which process group of torch's it is, in any of its processes.
        size: how many processes it has.
        rank: which of them this one is, from 0 on.

    A group of one process needs no launcher, and makes any function of groups the identity:

    >>> from fundl.distributed import Group, all_sum
    >>> all_sum(torch.ones(2), Group("alone", 1, 0))
    tensor([1., 1.])
    """

    name: str
    size: int
    rank: int = attrs.field(eq=False)

    def __attrs_post_init__(self) -> None:
        if type(self.size) is not int or type(self.rank) is not int or not isinstance(self.name, str):
            raise TypeError(f"a Group has a name, a size and a rank, as start() finds them, not {tuple(attrs.astuple(self))}")
        if not 0 <= self.rank < self.size:
            raise ValueError(f"the ranks of {self.size} processes go from 0 to {self.size - 1}, but this one's is {self.rank}")

    @property
    def process_group(self) -> "ProcessGroup | None":
        """Torch's own process group, for what takes one; None for a group of one process that no launcher started.

        Raises:
            RuntimeError: no such group is up in this process.
        """
        found = _registered(self.name)
        if found is None and self.size > 1:
            raise not_up(self)
        return found

    @property
    def ranks(self) -> tuple[int, ...]:
        """The numbers of its processes among all that `start` found, in its own order.

        Raises:
            RuntimeError: no such group is up in this process.
        """
        group = self.process_group
        return (self.rank,) if group is None else tuple(torch.distributed.get_process_group_ranks(group))

    def of_all(self, tensor: Tensor, /) -> Tensor:
        """The rows of all processes, (n k, ...) of (k, ...) each, in the order of the ranks; all of them ask together."""
        if self.size == 1:
            return tensor
        require_gathering(tensor, self)
        try:
            return exchanges.wait(exchanges.all_gather(tensor.contiguous(), self.size, self.name))
        except RuntimeError as error:
            if "resolve the process group" in str(error):
                raise not_up(self) from error
            raise

    def talk(self) -> StoreTalk:
        """Texts that they tell each other beside all exchanges of tensors; all of them begin their talks in the same order."""
        from torch._C._distributed_c10d import HashStore  # noqa: PLC0415  # not every torch has it
        from torch.distributed import distributed_c10d  # noqa: PLC0415  # likewise

        if self.process_group is None:
            return StoreTalk(HashStore(), "alone", 0, 0, 1)
        ranks = torch.distributed.get_process_group_ranks(self.process_group)
        place = f"fundl/talk/{self.name}/{ranks[0]}"
        number = next(_talks.setdefault(place, itertools.count()))
        return StoreTalk(distributed_c10d._get_default_store(), place, number, self.rank, self.size)


_talks: Final[dict[str, "itertools.count[int]"]] = {}  # that each group has begun


def require_group(group: object) -> None:
    """Raise an error that says what a group is, unless this is one."""
    if isinstance(group, Group):
        return
    torchs = " (of torch's, group_of(process_group, name) makes one)" if "ProcessGroup" in type(group).__name__ else ""
    raise TypeError(f"a group is what start() of fundl.distributed gives first, not {describe(group)}{torchs}")


def is_up(group: Group) -> bool:
    """Whether this process has a part in a group that has started."""
    return _registered(group.name) is not None


def device_of(group: Group) -> torch.device:
    """Where tensors of a group are to be: NCCL reaches no memory but a GPU's."""
    if group.size == 1 or torch.distributed.get_backend(group.process_group) != "nccl":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def require_gathering(tensor: Tensor, group: Group) -> None:
    """Refuse rows on a GPU where gloo would have to bring them together: it ends the process."""
    if tensor.is_cuda and torch.distributed.get_backend(group.process_group) == "gloo":
        raise RuntimeError(
            f"the processes of {group.name!r} reach each other by gloo, which gathers and scatters no rows that are on a GPU:"
            " give each process a GPU of its own and let start() choose, which takes NCCL then, or compute on the CPU,"
            ' start(device="cpu")'
        )


def not_up(group: Group) -> RuntimeError:
    """The error of a group that this process has no part in."""
    return RuntimeError(
        f"no group {group.name!r} of {group.size} processes is up in this process: call start() first, in each of the processes"
        " that torchrun started, and make groups of them in the same order"
    )


# --- Starting ----------------------------------------------------------------------------------------------------------


@with_suggestions
def start(*, device: torch.device | str | None = None, minutes: float = 30.0) -> tuple[Group, torch.device]:
    """Meet the other processes: the first thing that a program does which runs as many.

        group, device = start()

    With ``torchrun --nproc-per-node 8 train.py`` this is a group of 8, and on several machines one of all their processes. Run
    as ``python train.py``, or with one process, it is a group of one, of which all functions of groups are the identity. Any
    other launcher will do that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; and so does a process group
    that is there already.

    What would have the processes compute unlike numbers is an error here: versions of Python, torch or fundl that differ, or
    numbers of threads, or default dtypes. Memory that a process frees it keeps, see `keep_freed_memory`.

    Args:
        device: where this process computes. By default its own GPU, number LOCAL_RANK of its machine, where there are any, else
            the CPU; "cuda" is its own GPU.
        minutes: how long a process waits for the others before it gives up.

    Returns:
        The group of all processes, and the device.

    Raises:
        RuntimeError: the processes differ, or not all came; the message says in what, or which.
        ValueError: there are more processes on a machine than GPUs.

    >>> from fundl.distributed import start
    >>> start(device="cpu")
    (Group(name='fundl', size=1, rank=0), device(type='cpu'))
    """
    place = _device(device)
    if torch.distributed.is_available() and not torch.distributed.is_initialized() and _is_launched():
        backend = "nccl" if place.type == "cuda" else "gloo"
        meet(backend, timedelta(minutes=minutes))
        atexit.register(_leave)
    keep_freed_memory()
    group = _world()
    if group.size > 1:
        _require_alike(group)
    return group, place


def _is_launched() -> bool:
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _device(device: torch.device | str | None) -> torch.device:
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device is None and not count:
        return torch.device("cpu")
    place = torch.device("cuda" if device is None else device)
    if str(place) == "cuda":
        if local >= count:
            raise ValueError(
                f"this is process {local} of its machine, counted from 0, which has {count} GPUs: start as many processes as"
                ' GPUs, or compute elsewhere, start(device="cpu")'
            )
        place = torch.device("cuda", local)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    return place


def _require_alike(group: Group) -> None:
    """Raise where processes differ in what their numbers depend on."""
    from fundl import __version__  # noqa: PLC0415  # which is not there yet when this module is imported

    mine = {
        "the version of Python": platform.python_version(),
        "the version of torch": str(torch.__version__),
        "the version of fundl": __version__,
        "the number of threads": str(torch.get_num_threads()),
        "the default dtype": str(torch.get_default_dtype()),
    }
    theirs: list[object] = [None] * group.size
    torch.distributed.all_gather_object(theirs, mine)
    for name, own in mine.items():
        values = [one[name] for one in theirs if isinstance(one, dict)]
        if len(set(values)) > 1:
            other = next(rank for rank, value in enumerate(values) if value != values[0])
            raise RuntimeError(
                f"the processes would compute unlike numbers: {name} is {values[0]} in process 0, and {values[other]} in"
                f" process {other} (this one, {group.rank}, has {own})"
            )


# --- Groups ------------------------------------------------------------------------------------------------------------


@with_suggestions
def group_of(process_group: "ProcessGroup", name: str) -> Group:
    """The group for a process group of torch's.

    Args:
        process_group: that this process is in.
        name: of your own, the same in each of its processes: compiled code knows the group by it.

    Raises:
        ValueError: another group has this name.
    """
    unchecked: object = name
    if not isinstance(unchecked, str):
        raise TypeError(f"the name of a group is a str, the same in all its processes, not {name!r}")
    return _named(process_group, name)


def grid(**sizes: int) -> tuple[Group, ...]:
    """All processes as a grid: for each of its axes the group of those that differ from this one along that axis alone.

        data, tensor = grid(data=4, tensor=2)

    of 8 processes, numbered 0 to 7: process 5 is in the third row and the second column, so that ``data`` is the group of 1, 3,
    5, 7, and ``tensor`` that of 4, 5. Processes of the last axis are neighbours, on one machine: it is for those that say the
    most to each other. Each process makes the same grids, in the same order.

    Args:
        sizes: by names of your own, how many processes there are along each axis, 1 or more; all of them together are as many
            as `start` found.

    Raises:
        ValueError: the sizes do not give the number of processes.

    >>> from fundl.distributed import grid
    >>> data, tensor = grid(data=1, tensor=1)
    >>> tensor
    Group(name='tensor of data=1, tensor=1', size=1, rank=0)
    """
    if not sizes or not all(type(size) is int and size >= 1 for size in sizes.values()):
        raise TypeError(
            f"grid takes the size of each axis by a name, an int of 1 or more, as in grid(data=4, tensor=2), not {sizes}"
        )
    world, asked = _world(), math.prod(sizes.values())
    told = ", ".join(f"{name}={size}" for name, size in sizes.items())
    if asked != world.size:
        raise ValueError(f"grid({told}) is of {asked} processes, but there are {world.size}")
    return tuple(_along(place, [*sizes.values()], f"{name} of {told}", world.rank) for place, name in enumerate(sizes))


def _along(axis: int, sizes: Sequence[int], name: str, rank: int) -> Group:
    """The group of this process along an axis of a grid. All processes make all groups of the axis: torch wants it so."""
    if sizes[axis] == 1:
        return Group(name, 1, 0)
    if (found := _registered(name)) is None:
        step = math.prod(sizes[axis + 1 :])
        firsts = (
            sum(index * math.prod(sizes[place + 1 :]) for place, index in enumerate(indices))
            for indices in itertools.product(*(range(1 if place == axis else size) for place, size in enumerate(sizes)))
        )
        for first in firsts:
            ranks = [first + step * place for place in range(sizes[axis])]
            made = torch.distributed.new_group(ranks)
            if rank in ranks:
                found = made
    assert found is not None
    return _named(found, name)


def _world() -> Group:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Group(_WORLD, 1, 0)
    world = torch.distributed.group.WORLD
    assert world is not None
    return _named(world, _WORLD)


def _named(process_group: "ProcessGroup", name: str) -> Group:
    """The group by which torch's operations find a process group under a name of ours.

    Torch's own name for it differs between the groups along an axis of a grid: a graph that had it would be another one for
    each process.
    """
    import torch.distributed._functional_collectives  # noqa: F401, PLC0415  # it tells what operations give, and takes 40 ms
    from torch._C import _distributed_c10d as c10d  # noqa: PLC0415  # not every torch has it

    found = _registered(name)
    if found is None:
        c10d._register_process_group(name, process_group)  # type: ignore[arg-type]  # a name is a str
    elif found is not process_group:
        raise ValueError(f"another group is called {name!r}: groups of other processes have other names")
    return Group(name, process_group.size(), process_group.rank())


def _registered(name: str) -> "ProcessGroup | None":
    """The process group that torch's operations find under a name."""
    if not torch.distributed.is_available():
        return None
    from torch._C import _distributed_c10d as c10d  # noqa: PLC0415  # likewise

    try:
        return c10d._resolve_process_group(name)  # type: ignore[arg-type]  # likewise
    except RuntimeError:
        return None
