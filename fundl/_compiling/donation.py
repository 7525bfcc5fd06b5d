"""Donation: a compiled function writes its result over an argument, which nobody can use from then on.

That nobody reads what was donated is made sure of, in two ways. In general, the result's tensors are new objects over the
old memory, and the old objects become `Donated`, which refuse everything. But where a donated record is the one that the last
call returned, and counts of references show that nobody holds a part of it, the parts move to a new record as they are, and
the old record loses its fields. That takes a microsecond.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Final

import attrs
from torch import Tensor
from typing_extensions import override

from fundl._common.donated import DonatedError, refusal
from fundl._compiling import torch_private
from fundl._compiling.trees import children
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


def own_their_memory(donated: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether each of the donated tensors has memory of its own, all of it."""
    if not all(map(torch_private.owns_its_memory, donated)):
        return False
    addresses = Counter(tensor.untyped_storage().data_ptr() for tensor in (*donated, *others) if tensor.numel())
    return all(addresses[tensor.untyped_storage().data_ptr()] == 1 for tensor in donated if tensor.numel())


def take_memory(tensors: Sequence[Tensor]) -> list[Tensor]:
    """New tensors over the memory of these, which refuse everything from now on."""
    new = [tensor.detach() for tensor in tensors]
    for tensor in tensors:
        tensor.__class__ = Donated
    return new


def clear_fields(record: Record) -> None:
    """Take all fields from a record: whoever reads one gets an error that says that it was donated."""
    for name in type(record).children:
        object.__delattr__(record, name)


def _no_record() -> None:
    """Stands for a reference to a record that is gone."""


@attrs.define(eq=False)
class Returned:
    """A record that a compiled function returned."""

    root: Callable[[], Record | None] = attrs.field(default=_no_record)  # gives the record, if it is still there
    key: object = None  # stands for its structure, see `LastReturned.key`
    leaves: tuple[Tensor, ...] = ()  # its tensors
    _parts: tuple[object, ...] = ()
    _counts: tuple[int, ...] = ()

    def move_to(self, root: Record) -> None:
        """Note that the parts are in this record now."""
        self.root = weakref.ref(root, self._forget)

    def is_unshared(self) -> bool:
        """Whether nobody else holds a part of it."""
        return tuple(map(sys.getrefcount, self._parts)) == self._counts

    def _forget(self, _root: object) -> None:
        self.leaves, self._parts, self._counts = (), (), ()
        self.root = _no_record


@attrs.define(eq=False)
class LastReturned:
    """The last record that a compiled function returned in the place of a donated argument."""

    last: Returned = attrs.field(factory=Returned)  # another thread may put another one here, but does not change this one
    _keys: dict[Hashable, object] = attrs.field(factory=dict)

    def key(self, structure: Hashable) -> object:
        """The one object that stands for a structure: it is compared in no time."""
        return self._keys.setdefault(structure, object())

    def remember(self, root: object, key: object, leaves: Sequence[Tensor]) -> None:
        """Take a record as the last one; its parts are new, so that nobody else holds any."""
        found: list[object] = []
        if not isinstance(root, Record) or not _gather_parts(root, found):
            return
        references = Counter(map(id, [*found, *leaves]))
        parts = tuple({id(part): part for part in found}.values())
        counts = tuple([references[id(part)] + _UNREFERENCED for part in parts])
        returned = Returned(key=key, leaves=tuple(leaves), parts=parts, counts=counts)
        returned.move_to(root)
        self.last = returned


def _gather_parts(node: object, found: list[object]) -> bool:
    """Find all parts of a node that hold tensors; whether none of them can be changed."""
    for _, part in children(node, ""):
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, list | dict):
            return False
        elif isinstance(part, Record | tuple):
            before = len(found)
            if not _gather_parts(part, found):
                return False
            if len(found) > before:
                found.append(part)
    return True


_UNREFERENCED: Final = next(map(sys.getrefcount, (object(),)))
"""What `is_unshared` counts for a part beside the references in the tree: that of its own tuple, and that of counting."""
