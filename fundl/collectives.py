"""What the processes of a group make together: sums, and the tensors of all, as pure functions of trees.

Each process of the group calls the same functions in the same order, with tensors of the same shapes; the result is there
once all of them have. Within a compiled function they are operations like others.
"""

import ctypes
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Generic, Literal, TypeVar, final

import torch
import torch.distributed
from torch import Tensor

from fundl import tree
from fundl._common import exchanges
from fundl._common.modes import no_grad
from fundl._common.suggestions import with_suggestions
from fundl._common.tape import refuse_tape
from fundl.groups import Group, device_of, not_up, require_gathering, require_group
from fundl.tree import describe

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work

T = TypeVar("T")

BUCKET_BYTES: Final = 25 * 2**20
"""So many bytes travel at once: fewer, larger messages cost less, and the first can be on its way while others are made."""


@with_suggestions
def all_sum(values: T, group: Group, *, bucket_bytes: int = BUCKET_BYTES) -> T:
    """The sums, leaf by leaf, of the trees of all processes: each process gets them, the same to the bit.

    Args:
        values: a tree of tensors. Sums are made in the tensors' own dtype.
        group: whose trees are added up.
        bucket_bytes: tensors of one dtype travel together until they have so many bytes; 0 for each by itself.

    Raises:
        RuntimeError: the group is not up in this process.

    >>> from fundl.distributed import all_sum, start
    >>> group, device = start()
    >>> all_sum({"loss": torch.tensor(2.0), "count": torch.tensor(3)}, group)  # of one process
    {'loss': tensor(2.), 'count': tensor(3)}
    """
    return _leafwise(values, group, lambda tensors: reduced(tensors, group, "sum", bucket_bytes))


@with_suggestions
def all_max(values: T, group: Group, *, bucket_bytes: int = BUCKET_BYTES) -> T:
    """The largest, element by element, of the trees of all processes; arguments are those of `all_sum`."""
    return _leafwise(values, group, lambda tensors: reduced(tensors, group, "max", bucket_bytes))


@with_suggestions
def all_gather(values: T, group: Group, *, bucket_bytes: int = BUCKET_BYTES) -> T:
    """The rows of all processes, leaf by leaf, in the order of the ranks.

    Args:
        values: a tree of tensors, of the same shapes in all processes.
        group, bucket_bytes: as `all_sum` takes them.

    Shape:
        of each leaf (k, ...) to (n k, ...), with n processes

    Raises:
        ValueError: a tensor has no axis.
        RuntimeError: the group is not up in this process.
    """
    return _leafwise(values, group, lambda tensors: gathered(tensors, group, bucket_bytes))


@with_suggestions
def scatter_sum(values: T, group: Group, *, bucket_bytes: int = BUCKET_BYTES) -> T:
    """Of the sums of the trees of all processes, leaf by leaf, the rows of this one: the r-th of n equal parts has rank r.

    Args:
        values: a tree of tensors, of the same shapes in all processes.
        group, bucket_bytes: as `all_sum` takes them.

    Shape:
        of each leaf (n k, ...) to (k, ...), with n processes

    Raises:
        ValueError: the rows of a tensor cannot be divided so.
        RuntimeError: the group is not up in this process.
    """
    return _leafwise(values, group, lambda tensors: scattered(tensors, group, bucket_bytes))


@with_suggestions
def broadcast(values: T, group: Group, *, source: int = 0) -> T:
    """The tree of one process, for all of them.

    Args:
        values: a tree of tensors, of the same shapes in all processes.
        group: the processes.
        source: the rank of the one whose numbers all get.

    Raises:
        ValueError: there is no such process.
        RuntimeError: the group is not up in this process.
    """
    if type(source) is not int:
        raise TypeError(f"broadcast(..., source=) is the rank of a process, an int, not {source!r}")
    require_group(group)
    if not 0 <= source < group.size:
        raise ValueError(f"broadcast(..., source={source}): the ranks of the group go from 0 to {group.size - 1}")
    return _leafwise(values, group, lambda tensors: spread(tensors, group, source))


@with_suggestions
def require_same(values: object, group: Group, name: str = "the tree") -> None:
    """Raise unless a tree is the same in all processes, to the bit: they compare digests, a few bytes for each leaf.

    Of a tensor on the meta device, which has no values, they compare the shape.

    Args:
        values: a tree of tensors.
        group: the processes.
        name: what the message calls it.

    Raises:
        ValueError: it is not; the message says which leaf differs first.
    """
    require_group(group)
    if group.size == 1:
        return
    leaves = [(path, leaf) for path, leaf in zip(tree.paths(values), tree.flatten(values)[0], strict=True) if leaf is not None]
    form = [f"{path} {describe(leaf)}" for path, leaf in leaves]
    if len({*gather_numbers([_digest("\n".join(form).encode())], group)}) > 1:
        raise ValueError(f"{name} is of another structure, or of other shapes, in some process: here, it is {describe(values)}")
    digests = gather_numbers([0 if leaf.is_meta else _digest_of(leaf) for _, leaf in leaves], group)
    for place, (path, _) in enumerate(leaves):
        if len({*digests[place :: len(leaves)]}) > 1:
            raise ValueError(
                f"{name}{path} is not the same in all processes: make it from the same key in each, or take that of one, by"
                " broadcast"
            )


def _digest_of(leaf: Tensor) -> int:
    """A digest of a tensor's numbers, to the bit."""
    whole = leaf.detach().cpu().contiguous()
    return _digest((ctypes.c_char * whole.nbytes).from_address(whole.data_ptr()) if whole.nbytes else b"")


def _digest(content: "bytes | ctypes.Array[ctypes.c_char]") -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def gather_numbers(numbers: Sequence[int], group: Group) -> list[int]:
    """Some integers of each process, in the order of the ranks: the answer is waited for."""
    if group.size == 1:
        return [*numbers]
    with no_grad():
        found: list[int] = gathered([torch.tensor(numbers, dtype=torch.int64, device=device_of(group))], group)[0].tolist()
    return found


# --- From one process to another ----------------------------------------------------------------------------------------


@final
class Sending:
    """Tensors on their way to another process; whoever sent them may go on."""

    __slots__ = ("_tensors", "_works")

    def __init__(self, works: "Sequence[Work]", tensors: Sequence[Tensor]) -> None:
        self._works, self._tensors = works, tensors  # which stay until they have left

    @property
    def is_done(self) -> bool:
        """Whether all have left."""
        return all(work.is_completed() for work in self._works)

    def wait(self) -> None:
        """Return once all have left."""
        for work in self._works:
            work.wait()


@final
class Receiving(Generic[T]):
    """A tree that is coming from another process."""

    __slots__ = ("_tree", "_works")

    def __init__(self, works: "Sequence[Work]", values: T) -> None:
        self._works, self._tree = works, values

    def wait(self) -> T:
        """The tree, once it is there."""
        for work in self._works:
            work.wait()
        return self._tree


@with_suggestions
def send(values: object, group: Group, *, to: int, tag: int = 0) -> Sending:
    """Begin to send a tree to another process of the group, which calls `receive` for it.

    Args:
        values: a tree of tensors.
        group: the processes.
        to: the rank of the one that gets it.
        tag: trees of the same tag come in the order in which they were sent.

    Raises:
        ValueError: there is no such process, or it is this one.
        RuntimeError: the group is not up in this process.
    """
    channel = _channel(group, to, tag)
    tensors = [leaf.detach().contiguous() for leaf in tree.leaves(values) if leaf.numel()]
    begun = [torch.distributed.isend(leaf, group=channel, group_dst=to, tag=tag) for leaf in tensors]
    return Sending([work for work in begun if work is not None], tensors)


@with_suggestions
def receive(like: T, group: Group, *, source: int, tag: int = 0) -> Receiving[T]:
    """Begin to receive a tree that another process sends; ``receive(like, group, source=0).wait()`` is that tree.

    Args:
        like: a tree of the same structure, shapes and dtypes; it may be on the meta device.
        group: the processes.
        source: the rank of the one that sends it.
        tag: that it was sent with.

    Raises:
        ValueError: there is no such process, or it is this one.
        RuntimeError: the group is not up in this process.
    """
    channel, device = _channel(group, source, tag), device_of(group)

    def room(leaf: Tensor) -> Tensor:
        return torch.empty(leaf.shape, dtype=leaf.dtype, device=device if leaf.is_meta else leaf.device)

    coming = tree.map(room, like)
    begun = [
        torch.distributed.irecv(leaf, group=channel, group_src=source, tag=tag) for leaf in tree.leaves(coming) if leaf.numel()
    ]
    return Receiving([work for work in begun if work is not None], coming)


def _channel(group: Group, other: int, tag: int) -> "ProcessGroup":
    """By which messages of a tag go. Those of NCCL have no tags: each but the first gets a group of its own.

    Else two processes, each of which sends first, would wait for each other.
    """
    require_group(group)
    if type(other) is not int or not 0 <= other < group.size or other == group.rank:
        raise ValueError(f"messages of process {group.rank} go to and come from others of {group.size}, not {other!r}")
    whole = group.process_group
    assert whole is not None  # there are several processes
    if not tag or torch.distributed.get_backend(whole) != "nccl":
        return whole
    return _of_tag(whole, tag)


@functools.cache
def _of_tag(whole: "ProcessGroup", tag: int) -> "ProcessGroup":  # noqa: ARG001  # each tag has one
    made: ProcessGroup = torch.distributed.new_group(
        torch.distributed.get_process_group_ranks(whole), use_local_synchronization=True
    )
    return made


# --- Of tensors --------------------------------------------------------------------------------------------------------


def _leafwise(values: T, group: Group, function: Callable[[Sequence[Tensor]], Sequence[Tensor]]) -> T:
    """A function of tensors, for the leaves of a tree; of one process it is the identity."""
    require_group(group)
    leaves, structure = tree.flatten(values)
    given = [leaf for leaf in leaves if leaf is not None]
    if group.size == 1 or not given:
        return values
    refuse_tape(given)
    with no_grad():
        made = iter(function(given))
    return tree.unflatten(structure, [None if leaf is None else next(made) for leaf in leaves])


def reduced(
    tensors: Sequence[Tensor], group: Group, how: Literal["sum", "max"] = "sum", bucket_bytes: int = BUCKET_BYTES
) -> list[Tensor]:
    """`all_sum` or `all_max` of tensors; the caller has turned grad mode off."""

    def begin(flat: Tensor) -> Tensor:
        return exchanges.all_reduce(flat, how, group.name)

    return _exchanged(tensors, group, bucket_bytes, begin, rows=1, shape_of=_shape)


def gathered(tensors: Sequence[Tensor], group: Group, bucket_bytes: int = BUCKET_BYTES) -> list[Tensor]:
    """`all_gather` of tensors; the caller has turned grad mode off."""
    for tensor in tensors:
        if not tensor.ndim:
            raise ValueError(
                "all_gather puts rows behind each other, but here is a tensor without axes: give it one, x.reshape(1)"
            )

    def begin(flat: Tensor) -> Tensor:
        require_gathering(flat, group)
        return exchanges.all_gather(flat, group.size, group.name)

    def shape_of(tensor: Tensor) -> tuple[int, ...]:
        return group.size * tensor.shape[0], *tensor.shape[1:]

    return _exchanged(tensors, group, bucket_bytes, begin, rows=1, shape_of=shape_of)


def scattered(tensors: Sequence[Tensor], group: Group, bucket_bytes: int = BUCKET_BYTES) -> list[Tensor]:
    """`scatter_sum` of tensors; the caller has turned grad mode off."""
    for tensor in tensors:
        if not tensor.ndim or tensor.shape[0] % group.size:
            raise ValueError(
                f"scatter_sum divides rows equally among {group.size} processes, but here is a tensor of shape"
                f" {tuple(tensor.shape)}: fill it up with rows of zeros"
            )

    def begin(flat: Tensor) -> Tensor:
        require_gathering(flat, group)
        return exchanges.reduce_scatter(flat, "sum", group.size, group.name)

    def shape_of(tensor: Tensor) -> tuple[int, ...]:
        return tensor.shape[0] // group.size, *tensor.shape[1:]

    return _exchanged(tensors, group, bucket_bytes, begin, rows=group.size, shape_of=shape_of)


def spread(tensors: Sequence[Tensor], group: Group, source: int) -> list[Tensor]:
    """`broadcast` of tensors; the caller has turned grad mode off."""

    def begin(flat: Tensor) -> Tensor:
        return exchanges.broadcast(flat, source, group.name)

    return _exchanged(tensors, group, BUCKET_BYTES, begin, rows=1, shape_of=_shape)


def _exchanged(
    tensors: Sequence[Tensor],
    group: Group,
    bucket_bytes: int,
    begin: Callable[[Tensor], Tensor],
    *,
    rows: int,
    shape_of: Callable[[Tensor], tuple[int, ...]],
) -> list[Tensor]:
    """What becomes of tensors, of which each travels as so many rows, in buckets; all have begun before one is waited for."""
    if group.size == 1:
        return [*tensors]
    exchanged = [*tensors]
    flying: list[tuple[list[int], Tensor]] = []
    with explained(group):
        for places in buckets(tensors, bucket_bytes):
            parts = [tensors[place].reshape(rows, tensors[place].numel() // rows) for place in places]
            flying.append((places, begin(torch.cat(parts, 1) if len(parts) > 1 else parts[0].contiguous())))
    for places, flat in flying:
        sizes = [tensors[place].numel() // rows for place in places]
        for place, part in zip(places, exchanges.wait(flat).split_with_sizes(sizes, 1), strict=True):
            exchanged[place] = part.reshape(shape_of(tensors[place]))
    return exchanged


@contextmanager
def explained(group: Group) -> Iterator[None]:
    """Say of a group that has not started that it has not."""
    try:
        yield
    except RuntimeError as error:
        if "resolve the process group" in str(error):
            raise not_up(group) from error
        raise


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def buckets(tensors: Sequence[Tensor], bucket_bytes: int) -> Iterator[list[int]]:
    """The places of tensors that travel together: of one dtype on one device."""
    if type(bucket_bytes) is not int or bucket_bytes < 0:
        raise ValueError(f"bucket_bytes is an int, 0 for no buckets or more, not {bucket_bytes!r}")
    open_buckets: dict[object, tuple[list[int], int]] = {}
    for place, tensor in enumerate(tensors):
        kind = tensor.dtype, tensor.device
        places, filled = open_buckets.pop(kind, ([], 0))
        if places and filled + tensor.nbytes > bucket_bytes:
            yield places
            places, filled = [], 0
        open_buckets[kind] = [*places, place], filled + tensor.nbytes
    yield from (places for places, _ in open_buckets.values())
