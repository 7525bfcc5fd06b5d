"""Trees taken apart into leaves and a structure, and put together again: the border to optree.

optree states its types in a nominal PyTree of its own, which no record and no plain tuple is. Each thing that is taken from it
gets its true type here, once.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, cast

import optree
from torch import Tensor

T = TypeVar("T")

_NAMESPACE: Final = "fundl"


if TYPE_CHECKING:

    class Structure(Protocol[T]):
        """What is left of a tree of type T when its leaves are taken out: comparable, and hashable."""

        num_leaves: int

        def _of(self, tree: T) -> T: ...  # states that T is invariant; nothing calls it

else:
    Structure = optree.PyTreeSpec


class _Flatten(Protocol):
    def __call__(self, tree: T, /, *, none_is_leaf: bool, namespace: str) -> "tuple[list[Tensor | None], Structure[T]]": ...


class _Accessors(Protocol):
    def __call__(self, tree: object, /, *, none_is_leaf: bool, namespace: str) -> list[optree.PyTreeAccessor]: ...


class _Unflatten(Protocol):
    def __call__(self, structure: "Structure[T]", leaves: Iterable[object], /) -> T: ...


class _Register(Protocol):
    def __call__(self, cls: type, apart: object, together: object, /, *, path_entry_type: type, namespace: str) -> object: ...


_register_node = cast("_Register", optree.register_pytree_node)
_tree_flatten = cast("_Flatten", optree.tree_flatten)
_tree_accessors = cast("_Accessors", optree.tree_accessors)
_tree_unflatten = cast("_Unflatten", optree.tree_unflatten)


def register_node(cls: type, apart: Callable[..., object], together: Callable[..., object]) -> None:  # type: ignore[explicit-any]  # of records of the class
    """Make the instances of a class nodes of trees.

    Args:
        cls: the class.
        apart: from a node to its children, static values, and the names of the children.
        together: from static values and children to the node.
    """
    _register_node(cls, apart, together, path_entry_type=optree.GetAttrEntry, namespace=_NAMESPACE)


def flatten(tree: T) -> "tuple[list[Tensor | None], Structure[T]]":
    """All leaves of a tree from left to right, None and buffers included, and its structure."""
    return _tree_flatten(tree, none_is_leaf=True, namespace=_NAMESPACE)


def unflatten(structure: "Structure[T]", leaves: Iterable[Tensor | None]) -> T:
    """The tree of that structure with these leaves: undoes `flatten`."""
    return _tree_unflatten(structure, leaves)


def leaves(tree: object) -> list[Tensor]:
    """The tensors of a tree from left to right, buffers included, None left out.

    >>> import torch
    >>> from fundl import tree
    >>> tree.leaves({"a": torch.ones(1), "b": (None, torch.zeros(2))})
    [tensor([1.]), tensor([0., 0.])]
    """
    return [leaf for leaf in flatten(tree)[0] if isinstance(leaf, Tensor)]  # residuals may hold other things


def paths(tree: object) -> list[str]:
    """Where each leaf is, in the order of `flatten`, as one would write it.

    >>> import torch
    >>> from fundl import tree
    >>> tree.paths(({"a": torch.ones(1)}, torch.zeros(2)))
    ["[0]['a']", '[1]']
    """
    return [accessor.codify("") for accessor in _tree_accessors(tree, none_is_leaf=True, namespace=_NAMESPACE)]


def require_same_structure(first: object, second: object, *, names: tuple[str, str]) -> None:
    """Raise a TypeError that tells where two trees differ in structure, if they do."""
    if flatten(first)[1] == flatten(second)[1]:
        return
    first_paths, second_paths = paths(first), paths(second)
    only_first = [path for path in first_paths if path not in second_paths]
    only_second = [path for path in second_paths if path not in first_paths]
    if only_first:
        where = f"{names[0]} has a leaf at {only_first[0]} that {names[1]} lacks"
    elif only_second:
        where = f"{names[1]} has a leaf at {only_second[0]} that {names[0]} lacks"
    else:
        where = "their leaves are at the same places, but their records or static fields differ"
    raise TypeError(f"{names[0]} and {names[1]} are not of the same structure: {where}")
