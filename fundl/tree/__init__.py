"""Trees of tensors: the one shape that parameters, gradients, optimizer state and residuals share.

A tree is a tensor, None, a `Record`, or a tuple, list, dict or named tuple of trees. Records are frozen attrs classes:
their fields that can hold tensors are the tree's children, all other fields (sizes, rates, initialisers) are static,
a part of the tree's structure. None is a leaf, so that trees with and without a bias line up.

A field marked ``attrs.field(metadata=BUFFER)`` is a child that no optimizer touches. The *trainable* leaves of a
tree are its tensors that are not in a buffer.

optree does the walking, in C++, and holds the structures; only trainable leaves are taken out and put in by lines of our own.
"""

# fmt: off
import types
import typing

from fundl.tree._structure import (
    Structure as Structure, flatten as flatten, leaves as leaves, paths as paths,
    require_same_structure as require_same_structure, unflatten as unflatten,
)
from fundl.tree._records import BUFFER as BUFFER, STATISTIC as STATISTIC, Record as Record, describe as describe
from fundl.tree._nodes import (
    children as children, evolved as evolved, map_records as map_records,
    misplaced_tensors as misplaced_tensors, outer_records as outer_records,
    parts as parts, rebuilt as rebuilt, records as records, records_and_buffers as records_and_buffers,
    records_of as records_of,
    static_fields as static_fields, with_children as with_children,
)
from fundl.tree._divided import (
    Cuts as Cuts, Divided as Divided, Division as Division, Held as Held, Piece as Piece, Split as Split, Splits as Splits,
    Talk as Talk, beyond_of as beyond_of, holds as holds,
    is_divided as is_divided, splits_of as splits_of, summed_over as summed_over,
)
from fundl.tree._trainable import (
    trainable_leaves as trainable_leaves, trainable_paths as trainable_paths,
    with_trainable_leaves as with_trainable_leaves,
)
from fundl.tree._whole import (
    as_whole as as_whole, cuts_of as cuts_of, whole_and_pieces as whole_and_pieces, with_all_layers as with_all_layers,
    with_whole_shapes as with_whole_shapes,
)
from fundl.tree._outline import Outline as Outline
from fundl.tree._mapping import (
    cast_to as cast_to, map as map, map_with_path as map_with_path, move_to as move_to, stack as stack, unstack as unstack,
    zeros_like as zeros_like,
)
from fundl.tree._measures import count as count, equal as equal, nbytes as nbytes, norm as norm, norm_of as norm_of
from fundl.tree._arithmetic import (
    all as all, any as any, axpy as axpy, inner_product as inner_product, max as max, mean as mean, min as min, sum as sum,
    where as where,
)
from fundl.tree._place import Place as Place, at as at

if not typing.TYPE_CHECKING:  # a checker takes what is imported as itself
    __all__ = sorted(
        name for name, value in globals().items() if not name.startswith("_") and not isinstance(value, types.ModuleType)
    )

    def __dir__():
        return __all__
