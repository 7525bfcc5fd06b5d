"""One function for many rows at once, with what is the same for all."""

from collections.abc import Callable
from typing import TypeVar

from fundl import tree
from fundl.runs import each, share

S = TypeVar("S")
T = TypeVar("T")
Y = TypeVar("Y")


def of_rows(function: Callable[[S, T], Y], same: S, rows: T) -> Y:
    """What a function gives for each row: trees with a first axis of the rows.

    Args:
        function: pure, of what is the same for all rows, and of one row.
        same: a tree, which is not repeated in memory.
        rows: a tree whose tensors have a first axis of the rows.
    """
    try:
        return each(lambda row: function(same, row))(rows)
    except (RuntimeError, ValueError) as error:  # whatever a layer makes of it
        if "vmap: inplace" not in str(error):
            raise
    # Recurrent layers write into what they have made: vmap has it so only if all that they see is of each row.
    return each(function)(share(same, len(tree.leaves(rows)[0])), rows)
