"""The batches of all runs."""

from collections.abc import Iterator
from typing import Generic, final

import attrs
import torch
from torch import Tensor

from fundl import random, tree
from fundl._common.listed import Listed
from fundl._common.suggestions import with_suggestions
from fundl.data import Minibatches, count_rows
from fundl.data import minibatches as minibatches_of_one
from fundl.ensemble.models import require_keys
from fundl.runs import T, count_runs, each


@with_suggestions
def minibatches(keys: Tensor | None, data: T, batch_size: int, *, drop_last: bool = False) -> "RunMinibatches[T]":
    """The batches of one epoch for all runs at once: of each what `minibatches` gives for its key.

    Args:
        keys: one for each run, which decides the order of its batches; None keeps the data in order.
        data: a tree of tensors (R, N, ...), N examples for each run; `share` gives all runs the same, without copies.
        batch_size, drop_last: see `minibatches`; B is how many examples of each run a batch holds.

    Returns:
        Something to iterate over, as often as one likes, that has a length. A batch is a tree like the data, of tensors
        (R, B, ...).

    Raises:
        ValueError: the data lacks the axis of the runs, or its size is not the number of keys; or as for `minibatches`.

    >>> from fundl import ensemble, key, split
    >>> data = ensemble.share(torch.arange(5), 2)
    >>> [batch.tolist() for batch in ensemble.minibatches(split(key(0), 2), data, 2)]
    [[[1, 3], [0, 2]], [[0, 4], [3, 4]], [[2], [1]]]
    """
    runs = count_runs(data, "the data")
    if keys is not None and require_keys(keys) != runs:
        raise ValueError(f"the data is of {runs} runs, but there are keys of {len(keys)}: its first axis is that of the runs")
    rows_of = tree.map(lambda leaf: leaf[0], data)
    rows = count_rows(rows_of)
    used = minibatches_of_one(None, rows_of, batch_size, drop_last=drop_last).rows

    order = torch.arange(rows).expand(runs, rows) if keys is None else each(lambda key: random.permutation(key, rows))(keys)
    is_shared = all(leaf.stride(0) == 0 for leaf in tree.leaves(data))
    if not is_shared:  # the rows of all runs, one run below the other
        order = order + rows * torch.arange(runs, device=order.device).unsqueeze(1)
        rows_of = tree.map(lambda leaf: leaf.flatten(0, 1), data)
    pieces = [piece.flatten() for piece in torch.split(order[:, :used], batch_size, 1)]  # of each batch, run after run
    return RunMinibatches(Minibatches(rows_of, torch.cat(pieces), used * runs, batch_size * runs), runs)


@final
@attrs.frozen(eq=False)
class RunMinibatches(Generic[T], metaclass=Listed):
    """The batches of one epoch for all runs at once; made by `ensemble.minibatches`."""

    rows: Minibatches[T]
    runs: int

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[T]:
        for batch in self.rows:
            yield tree.map(lambda leaf: leaf.reshape(self.runs, -1, *leaf.shape[1:]), batch)
