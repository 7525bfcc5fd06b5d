"""Trees taken apart into leaves and a structure, and put together again: the border to optree.

optree states its types in a nominal PyTree of its own, which no record and no plain tuple is. So what is given to it and taken
from it is not of the types that it states; each gets its true type here, once.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import optree
from torch import Tensor

from fundl._common.generated import Function

T = TypeVar("T")

_NAMESPACE: Final = "fundl"


if TYPE_CHECKING:

    class Structure(Protocol[T]):
        """What is left of a tree of type T when its leaves are taken out: comparable, and hashable."""

        num_leaves: int
        type: type[object] | None
        kind: optree.PyTreeKind

        def entries(self) -> list[object]: ...
        def children(self) -> "list[Structure[object]]": ...
        def _of(self, tree: T) -> T: ...  # states that T is invariant; nothing calls it

else:
    Structure = optree.PyTreeSpec


def register_node(cls: type, apart: Function, together: Function) -> None:
    """Make instances of a class nodes: apart(node) is children, static values and names; together(static, children) a node."""
    optree.register_pytree_node(
        cls,
        apart,  # type: ignore[arg-type]  # see above
        together,  # type: ignore[arg-type]  # likewise
        path_entry_type=optree.GetAttrEntry,
        namespace=_NAMESPACE,
    )


def flatten(tree: T) -> "tuple[list[Tensor | None], Structure[T]]":
    """All leaves of a tree from left to right, None and buffers included, and its structure."""
    return optree.tree_flatten(tree, none_is_leaf=True, namespace=_NAMESPACE)  # type: ignore[arg-type,return-value]  # see above


def unflatten(structure: "Structure[T]", leaves: Iterable[Tensor | None]) -> T:
    """The tree of that structure with these leaves: undoes `flatten`."""
    return optree.tree_unflatten(structure, leaves)  # type: ignore[arg-type,return-value]  # see above


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
    accessors = optree.tree_accessors(tree, none_is_leaf=True, namespace=_NAMESPACE)  # type: ignore[arg-type]  # see above
    return [accessor.codify("") for accessor in accessors]


def require_same_structure(first: object, second: object, *, names: tuple[str, str]) -> None:
    """Raise a TypeError that tells where two trees differ in structure, if they do."""
    (_, structure), (_, other) = flatten(first), flatten(second)
    if structure == other:
        return
    first_paths, second_paths = paths(first), paths(second)
    only_first = [path for path in first_paths if path not in second_paths]
    only_second = [path for path in second_paths if path not in first_paths]
    if only_first:
        where = f"{names[0]} has a leaf at {only_first[0]} that {names[1]} lacks"
    elif only_second:
        where = f"{names[1]} has a leaf at {only_second[0]} that {names[0]} lacks"
    else:
        where = _difference(structure, other, "", names)
    raise TypeError(f"{names[0]} and {names[1]} are not of the same structure: {where}")


def _difference(first: "Structure[object]", second: "Structure[object]", path: str, names: tuple[str, str]) -> str:
    """Where two structures differ whose leaves are at the same places, and how."""
    here = f"at {path or 'the root'}"
    if first.type is not second.type:
        kinds = [getattr(structure.type, "__name__", "leaf") for structure in (first, second)]
        if kinds[0] == kinds[1]:
            return f"{here}, both are of a class {kinds[0]}, but it was defined twice, and these are two classes"
        return f"{here}, {names[0]} is of class {kinds[0]}, and {names[1]} of class {kinds[1]}"
    if first.entries() != second.entries():
        return f"{here}, {names[0]} has the parts {first.entries()}, and {names[1]} {second.entries()}"
    for place, (one, other) in enumerate(zip(first.children(), second.children(), strict=True)):
        if one != other:
            return _difference(one, other, path + _step(first, place), names)
    return f"{here}, both are of class {getattr(first.type, '__name__', 'leaf')}, but their static fields differ"


def _step(structure: "Structure[object]", place: int) -> str:
    """How a part of a node is written behind the node."""
    entry = structure.entries()[place]
    if structure.kind == optree.PyTreeKind.NAMEDTUPLE:
        return f".{structure.type._fields[place]}"  # type: ignore[union-attr]  # it is one
    return f".{entry}" if structure.kind == optree.PyTreeKind.CUSTOM else f"[{entry!r}]"
