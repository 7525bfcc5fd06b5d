"""Donation: a compiled function writes its result over an argument, which is used up.

That nobody reads what was donated is made sure of, not hoped for. There are two ways. In general, the result's tensors are
new objects over the old memory, and the old objects become `Donated`, which refuse everything. But a record that a compiled
function returned, and that comes back unchanged, was handed out as a whole: where the counts of references show that nobody
holds a part of it, the parts move to a new record as they are, and the old record is emptied. That takes a microsecond.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import attrs
from torch import Tensor
from typing_extensions import override

from fundl._common.donated import DonatedError, refusal
from fundl._compiling import torch_private
from fundl._compiling.walk import children
from fundl.tree import Record


class Donated(Tensor):
    """What is left of a tensor that was donated."""

    @classmethod
    @override
    def __torch_function__(cls, *_: object, **__: object) -> object:
        raise DonatedError(refusal("tensor"))

    @override
    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]  # torch's has no types
        return "<a tensor that was donated>"


def require_not_donated(leaves: Sequence[Tensor], paths: Sequence[str]) -> None:
    """Raise an error that says which tensor of some was donated, if one was."""
    for path, leaf in zip(paths, leaves, strict=True):
        if isinstance(leaf, Donated):
            raise DonatedError(f"{path}: {refusal('tensor')}")


def bury(tensors: Sequence[Tensor]) -> list[Tensor]:
    """New tensors over the memory of these, which refuse everything from now on."""
    heirs = [tensor.detach() for tensor in tensors]
    for tensor in tensors:
        tensor.__class__ = Donated
    return heirs


def empty(record: Record) -> None:
    """Take all fields from a record: who reads one is told that it was donated."""
    for name in type(record).children:
        object.__delattr__(record, name)


def are_exclusive(donated: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether each of the donated tensors has memory of its own, all of it."""
    if not all(map(torch_private.owns_its_memory, donated)):
        return False
    addresses = Counter(tensor.untyped_storage().data_ptr() for tensor in (*donated, *others) if tensor.numel())
    return all(addresses[tensor.untyped_storage().data_ptr()] == 1 for tensor in donated if tensor.numel())


def _nothing() -> None:
    """Gives no record."""


@attrs.define(eq=False)
class Estate:
    """A record that a compiled function returned, and what is in it.

    Args:
        root: gives the record, if it is still there.
        kind: what its tree is like.
        leaves: its tensors.
    """

    root: Callable[[], Record | None] = attrs.field(default=_nothing)
    kind: object = None
    leaves: tuple[Tensor, ...] = ()
    _parts: tuple[object, ...] = ()
    _counts: tuple[int, ...] = ()

    def follow(self, root: Record) -> None:
        """The parts are now in this record."""
        self.root = weakref.ref(root, self._forget)

    def is_untouched(self) -> bool:
        """Whether nobody holds a part of it."""
        return tuple(map(sys.getrefcount, self._parts)) == self._counts

    def _forget(self, _root: object) -> None:
        self.leaves, self._parts, self._counts = (), (), ()
        self.root = _nothing


@attrs.define(eq=False)
class Estates:
    """The last of the records that a compiled function returned; other threads replace it, but leave it as it is.

    Args:
        last: it.
    """

    last: Estate = attrs.field(factory=Estate)

    def adopt(self, root: object, kind: object, leaves: Sequence[Tensor]) -> None:
        """Remember a record, of parts that nobody else has."""
        found: list[object] = []
        if not isinstance(root, Record) or not _gather(root, found):
            return
        references = Counter(map(id, [*found, *leaves]))
        parts = tuple({id(part): part for part in found}.values())
        counts = tuple([references[id(part)] + _UNREFERENCED for part in parts])
        estate = Estate(kind=kind, leaves=tuple(leaves), parts=parts, counts=counts)
        estate.follow(root)
        self.last = estate


def _gather(node: object, found: list[object]) -> bool:
    """Find all parts of a node that hold tensors; whether none of them can be changed."""
    for _, part in children(node, ""):
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, list | dict):
            return False
        elif isinstance(part, Record | tuple):
            before = len(found)
            if not _gather(part, found):
                return False
            if len(found) > before:
                found.append(part)
    return True


_UNREFERENCED: Final = next(map(sys.getrefcount, (object(),)))
"""What `is_untouched` counts for a part beside the references in the tree: its own tuple's, and that of counting."""
