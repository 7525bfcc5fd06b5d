"""Whether nobody but one record holds the tensors in it: then what replaces them may be written over them.

A part of a tree that somebody else holds has more references than the tree itself makes: Python counts them. Memory that
another tensor sees, or an array, has more users than one: torch counts those.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import attrs
import torch
from torch import Tensor

from fundl.tree import Record

_uses: Final[Callable[[int], int]] = getattr(torch._C, "_storage_Use_Count", lambda _: 0)
"""How many users the memory of a storage has; where a torch does not tell, all of it is taken for shared."""

_UNREFERENCED: Final = next(map(sys.getrefcount, (object(),)))
"""What counting the references of a part finds beside those in the tree: that of our own tuple, and that of counting."""


class Ownership:
    """Looks after records that are replaced step by step, part for part.

    What was found out of a record holds for the next one that has the same parts: then a question takes a few microseconds.

    Args:
        names: the fields of the records that matter.
    """

    __slots__ = ("_known", "_names")

    def __init__(self, *names: str) -> None:
        self._names = names
        self._known: weakref.WeakKeyDictionary[Record, _Parts] = weakref.WeakKeyDictionary()

    def is_sole(self, record: Record) -> bool:
        """Whether only this record, which others may hold, has the tensors in it, and each is there once and whole."""
        parts = self._known.get(record)
        if parts is None:
            nodes = tuple([getattr(record, name) for name in self._names])
            if max(map(sys.getrefcount, nodes)) > _UNREFERENCED + 1:  # the quickest way to find out
                return False
            parts = self._known[record] = _parts_of(nodes)
            del nodes
        return parts.are_unshared()

    def move(self, before: Record, after: Record) -> None:
        """Note that another record has the very parts of one."""
        self._known[after] = self._known.pop(before)


@attrs.frozen(eq=False)
class _Parts:
    """The parts of a tree through which tensors are reached, how often each is referred to, and the tensors' memory."""

    parts: tuple[object, ...] = ()  # nothing, if they cannot be written
    counts: tuple[int, ...] = ()
    storages: tuple[int, ...] = ()
    inference: bool = False

    def are_unshared(self) -> bool:
        return (
            bool(self.parts)
            and tuple(map(sys.getrefcount, self.parts)) == self.counts
            and not any(map(weakref.getweakrefcount, self.parts))  # of a cache, say, of what was made of a layer
            and tuple(map(_uses, self.storages)) == (_USED_ONCE,) * len(self.storages)
            and (not self.inference or torch.is_inference_mode_enabled())  # elsewhere torch refuses to write over such
        )


def _parts_of(nodes: Sequence[object]) -> _Parts:
    found: list[object] = []
    if not all(_gather(node, found) for node in nodes):
        return _Parts()
    tensors = [part for part in found if isinstance(part, Tensor)]
    if not all(map(_can_be_written, tensors)):
        return _Parts()
    storages = tuple([tensor.untyped_storage()._cdata for tensor in tensors])
    if len({*storages}) < len(storages):
        return _Parts()
    references = Counter(map(id, found))
    parts = tuple({id(part): part for part in found}.values())
    counts = tuple([references[id(part)] + _UNREFERENCED for part in parts])
    return _Parts(parts, counts, storages, any(map(Tensor.is_inference, tensors)))


def _gather(node: object, found: list[object]) -> bool:
    """Find all parts of a node through which tensors are reached; whether none of these can be exchanged."""
    if isinstance(node, Tensor):
        found.append(node)
        return True
    if isinstance(node, Record):
        parts = [getattr(node, name) for name in node.trainable]
    elif isinstance(node, tuple):
        parts = [*node]
    else:
        return node is None
    before = len(found)
    while parts:
        if not _gather(parts.pop(), found):
            return False
    if len(found) > before:
        found.append(node)
    return True


def _can_be_written(tensor: Tensor) -> bool:
    """Whether a tensor is in memory of torch's own, each number of it once."""
    return (
        type(tensor) is Tensor
        and not tensor.is_meta
        and not tensor.requires_grad
        and tensor.layout is torch.strided
        and torch._debug_has_internal_overlap(tensor) == 0
        and tensor.untyped_storage().resizable()  # of another library's memory torch does not know who sees it
    )


def _used_once() -> int:
    """What is counted for the memory of one tensor that was asked for its storage, which may count as well."""
    tensor = torch.empty(1)
    return _uses(tensor.untyped_storage()._cdata)


_USED_ONCE: Final = _used_once() or -1
