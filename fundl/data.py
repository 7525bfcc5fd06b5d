"""Data: trees of tensors that share their first axis, as minibatches, in two parts, standardized; and the disk.

A data set in memory is any tree of tensors with one example a row: ``(points, labels)``, say. What takes batches (`fit`,
`evaluate`) takes any iterable of them. So data that does not fit into memory comes from a ``torch.utils.data.DataLoader``,
whose order a key decides by way of `generator`.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Final, Generic, TypeVar, final, overload

import attrs
import torch
from torch import Tensor

from fundl import random, tree
from fundl._common import suggestions
from fundl._common.half import HALF, narrowed, widened
from fundl._common.listed import Listed
from fundl._common.modes import inference_mode, is_readable
from fundl._common.suggestions import with_suggestions
from fundl.groups import Group, require_group
from fundl.random import Key

T = TypeVar("T")

_CHUNK_BYTES: Final = 2**20  # gathered at once: many small batches, yet little enough to stay in a processor's cache


# --- Batches --------------------------------------------------------------------------------------------------------


@with_suggestions
def minibatches(
    key: Key | None,
    data: T,
    batch_size: int,
    *,
    drop_last: bool = False,
    part: Group | None = None,
    device: torch.device | str | None = None,
) -> "Minibatches[T]":
    """The batches of one epoch: the data in random order, cut into pieces.

    Args:
        key: decides the order, a permutation of all rows; None keeps the data in order, and copies nothing.
        data: a tree of tensors whose first axes are of one size, the number of examples.
        batch_size: how many examples a batch holds, at least 1. The last batch holds what is left over.
        drop_last: whether to leave out a last batch that is smaller than the others.
        part: a group of processes, each of which takes its part of each batch: of n processes, that of rank r has the rows r,
            r + n, r + 2 n, ... of the batch that one process has whole, from the same key and data. The batch size is that of
            the whole; where the number of processes does not divide it, some have a row more than others, and of a small last
            batch some may have none.
        device: where the batches are to be; None, the default, for where the data is. From the host to a GPU they go by way of
            page-locked memory and by a stream of their own, in pieces of a few batches: the program does not wait for a copy,
            nor does the copy wait for what the GPU still computes.

    Returns:
        Something to iterate over, as often as one likes, that has a length. A batch is a tree like the data.

    Raises:
        TypeError: the batch size is no int.
        ValueError: the batch size is less than 1, the data holds nothing, its first axes differ, or no batch is left.

    >>> from fundl import key, minibatches
    >>> [batch.tolist() for batch in minibatches(key(0), torch.arange(5), 2)]
    [[4, 0], [3, 1], [2]]
    >>> len(minibatches(None, (torch.zeros(60, 28, 28), torch.zeros(60)), 8, drop_last=True))
    7
    """
    rows = count_rows(data)
    if type(batch_size) is not int:
        raise TypeError(f"the batch size must be an int, not {batch_size!r}")
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, not {batch_size}")
    if drop_last and rows < batch_size:
        raise ValueError(
            f"drop_last leaves no batch: the batch size is {batch_size}, but the data has only {rows} rows; make the batches"
            " smaller, or keep the last one"
        )
    if part is not None:
        require_group(part)
    used = rows - rows % batch_size if drop_last else rows
    order = None if key is None else _order(key, rows)[:used].to(_first_device(data))  # once, not for each piece
    return Minibatches(data, order, used, batch_size, part, None if device is None else torch.device(device))


def _first_device(data: object) -> torch.device:
    return next(leaf.device for leaf in tree.flatten(data)[0] if leaf is not None)


def _order(key: Key, rows: int) -> Tensor:
    """A random order: made in inference mode, where small kernels cost less, and copied, so that it is of any use."""
    with inference_mode():
        order = random.permutation(key, rows)
    return order.clone()


@final
@attrs.frozen(eq=False)
class Minibatches(Generic[T], metaclass=Listed):
    """The batches of one epoch; made by `minibatches`."""

    data: T = attrs.field(repr=tree.describe)
    order: Tensor | None = attrs.field(repr=tree.describe)
    rows: int
    batch_size: int
    part: Group | None = attrs.field(default=None, repr=False)
    device: torch.device | None = attrs.field(default=None, repr=False)

    def __len__(self) -> int:
        return math.ceil(self.rows / self.batch_size)

    def __iter__(self) -> Iterator[T]:
        # Gathering rows has a price per call, and one per new page of memory: a chunk of a few batches pays little of both.
        leaves, structure = tree.flatten(self.data)
        batch_bytes = self.batch_size * sum(leaf[:1].nbytes for leaf in leaves if leaf is not None)
        step = max(1, _CHUNK_BYTES // max(1, batch_bytes)) * self.batch_size
        for start in range(0, self.rows, step):
            rows = range(start, min(start + step, self.rows))
            sizes = self._sizes(rows)
            own = self._own(rows)
            columns = [repeat(None) if leaf is None else torch.split(self._take(leaf, own), sizes) for leaf in leaves]
            for batch in zip(*columns, strict=False):  # as many as the tensors have pieces: None repeats without end
                yield tree.unflatten(structure, batch)

    def after(self, count: int) -> "Minibatches[T]":
        """The batches after the first so many, which are not computed.

        >>> from fundl import key, minibatches
        >>> batches = minibatches(key(0), torch.arange(5), 2)
        >>> [batch.tolist() for batch in batches.after(1)] == [batch.tolist() for batch in batches][1:]
        True
        """
        if not isinstance(count, int):
            raise TypeError(f"the count of batches to leave out must be an int, not {count!r}")
        start = min(max(0, count) * self.batch_size, self.rows)
        if self.order is None:
            return attrs.evolve(self, data=tree.map(lambda leaf: leaf[start:], self.data), rows=self.rows - start)
        return attrs.evolve(self, order=self.order[start:], rows=self.rows - start)

    def stacked(self) -> tuple[T | None, T | None]:
        """All full batches as one, along a new first axis, and the batch of the rows that are left; None where there is none.

        >>> from fundl import minibatches
        >>> minibatches(None, torch.arange(5), 2).stacked()
        (tensor([[0, 1],
                [2, 3]]), tensor([4]))
        """
        end = self.rows - self.rows % self.batch_size
        full, rest = range(end), range(end, self.rows)

        def several(leaf: Tensor) -> Tensor:
            rows = self._take(leaf, self._own(full))
            return rows.view(end // self.batch_size, -1, *rows.shape[1:])

        return (
            tree.map(several, self.data) if full else None,
            tree.map(lambda leaf: self._take(leaf, self._own(rest)), self.data) if rest else None,
        )

    def _sizes(self, rows: range) -> int | list[int]:
        """How many of some rows belong to each batch: to this process's part of it."""
        if self.part is None or self.part.size == 1:
            return self.batch_size
        return [len(self._own(range(first, min(first + self.batch_size, rows.stop)))) for first in rows[:: self.batch_size]]

    def _own(self, rows: range) -> Sequence[int]:
        """Of the rows of some batches, one behind the other, those of this process."""
        if self.part is None or self.part.size == 1:
            return rows
        rank, size = self.part.rank, self.part.size
        if self.batch_size % size == 0:
            return rows[rank::size]
        return [row for first in rows[:: self.batch_size] for row in rows[first - rows.start :][: self.batch_size][rank::size]]

    def _take(self, leaf: Tensor, rows: Sequence[int]) -> Tensor:
        taken = self._rows(leaf, rows)
        if self.device is None or taken.device == self.device:
            return taken
        return _sent(taken, self.device) if self.device.type == "cuda" and taken.is_cpu else taken.to(self.device)

    def _rows(self, leaf: Tensor, rows: Sequence[int]) -> Tensor:
        if isinstance(rows, range):
            where = slice(rows.start, rows.stop, rows.step)
            if self.order is None:
                return leaf[where] if rows.step == 1 else leaf[where].contiguous()
            return leaf.index_select(0, self.order[where].to(leaf.device))
        places = torch.tensor(rows, dtype=torch.int64)
        return leaf.index_select(
            0, (places if self.order is None else self.order[places.to(self.order.device)]).to(leaf.device)
        )


def _sent(x: Tensor, device: torch.device) -> Tensor:
    """A copy on a GPU of what is on the host, by a stream of its own: it does not wait for what the GPU is to do before."""
    pinned = x.pin_memory()  # torch keeps it for as long as the copy goes on
    here = torch.cuda.current_stream(device)
    copying = _copying(here.device_index)
    with torch.cuda.stream(copying):
        sent = pinned.to(here.device, non_blocking=True)
    here.wait_stream(copying)
    sent.record_stream(here)  # its memory is not taken for another copy before what uses it here is done
    return sent


@functools.cache
def _copying(index: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(index)  # type: ignore[no-untyped-call]  # torch does not say


def count_rows(data: object) -> int:
    """The size of the first axis, above 0, that all tensors of a tree share; a ValueError tells if there is none.

    >>> count_rows((torch.zeros(3, 2), torch.zeros(3)))
    3
    """
    sizes: dict[str, int] = {}
    for path, leaf in zip(tree.paths(data), tree.flatten(data)[0], strict=True):
        if leaf is None:
            continue
        suggestions.require_tensor(leaf, f"data{path} must be")
        if leaf.ndim == 0:
            raise ValueError(f"data{path} is a single number, but each tensor of the data needs a first axis, of its examples")
        sizes[f"data{path}"] = leaf.shape[0]
    if not sizes:
        raise ValueError(f"the data holds no tensor: {data!r}")
    rows = next(iter(sizes.values()))
    if any(size != rows for size in sizes.values()):  # a set takes no size that an exported function leaves free
        listed = ", ".join(f"{path} has {size}" for path, size in sizes.items())
        raise ValueError(f"the tensors of the data must have the same number of rows (first axis), but {listed}")
    if rows == 0:
        raise ValueError(f"the data is empty: {tree.describe(data)} has 0 rows")
    return rows


@with_suggestions
def generator(key: Key) -> torch.Generator:
    """A generator for what takes no key, seeded by 64 bits drawn from one: a DataLoader then shuffles as the key says.

    Args:
        key: a key that nothing else was drawn from.

    Raises:
        TypeError: not a key.
        ValueError: not one key.

    The batches of an epoch, as a function of its key, from a data set that is read a piece at a time:

    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> from fundl import generator, key
    >>> dataset = TensorDataset(torch.arange(4.0))
    >>> def batches(key):
    ...     return DataLoader(dataset, batch_size=2, shuffle=True, generator=generator(key))
    >>> [x.tolist() for (x,) in batches(key(0))] == [x.tolist() for (x,) in batches(key(0))]
    True
    """
    low, high = random.bits(key, (2,)).tolist()
    return torch.Generator().manual_seed(low | high << 32)


# --- Two parts ------------------------------------------------------------------------------------------------------


@overload
def train_test_split(key: Key, data: T, *, test_fraction: float) -> tuple[T, T]: ...
@overload
def train_test_split(key: Key, data: T, *, test_count: int) -> tuple[T, T]: ...
@with_suggestions
def train_test_split(key: Key, data: T, *, test_fraction: float | None = None, test_count: int | None = None) -> tuple[T, T]:
    """Two parts of the data, to train on and to test on, with no row in common: which goes where is random.

    Args:
        key: decides it.
        data: a tree of tensors whose first axes are of one size.
        test_fraction: the part of the rows to test on, between 0 and 1; rounded to whole rows.
        test_count: or how many rows to test on.

    Returns:
        What to train on, and what to test on.

    Raises:
        TypeError: both or none of `test_fraction` and `test_count` are given.
        ValueError: the fraction is not between 0 and 1, or a part would be empty; the data is not as it should be.

    >>> from fundl import key, train_test_split
    >>> train, test = train_test_split(key(0), torch.arange(10), test_fraction=0.2)
    >>> train, test
    (tensor([4, 5, 0, 7, 3, 1, 6, 8]), tensor([9, 2]))
    """
    rows = count_rows(data)
    if test_fraction is not None and test_count is None:
        if not 0 < test_fraction < 1:
            raise ValueError(
                f"test_fraction must be between 0 and 1, not {test_fraction}; for a number of rows give test_count"
            )
        test_count = round(test_fraction * rows)
    elif test_count is None or test_fraction is not None:
        raise TypeError("give either test_fraction, the part of the rows to test on, or test_count, how many they are")
    if not 0 < test_count < rows:
        raise ValueError(
            f"of {rows} rows, {test_count} to test on leaves {rows - test_count} to train on: both parts need at least one"
        )
    order = random.permutation(key, rows)
    train, test = order[: rows - test_count], order[rows - test_count :]
    return _rows_of(data, train), _rows_of(data, test)


def _rows_of(data: T, rows: Tensor) -> T:
    return tree.map(lambda leaf: leaf.index_select(0, rows.to(leaf.device)), data)


# --- Values ---------------------------------------------------------------------------------------------------------


@with_suggestions
def mean_and_std(x: Tensor, *, axes: int | tuple[int, ...] = 0) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of each feature, over the examples: what `standardize` needs.

    Those of the training set serve for all data that the model will see.

    Args:
        x: the examples.
        axes: what to average over; the others are features. (0, 2, 3) leaves the channels of images (B, C, H, W).

    Returns:
        Mean and standard deviation (of the population: divided by n), both with the averaged axes kept at size 1; of half
        precision in float32, since in 16 bits a mean far from 0 would be off by more than the deviation. Of a feature that
        never varies the standard deviation is given as 1, so that `standardize` makes it 0.

    Raises:
        TypeError: x is not floating-point.
        ValueError: x is empty.

    >>> from fundl import mean_and_std, standardize
    >>> x = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    >>> mean, std = mean_and_std(x)
    >>> standardize(x, mean, std)
    tensor([[-1.,  0.],
            [ 1.,  0.]])
    """
    if not x.is_floating_point():
        raise TypeError(f"the mean is of floating-point numbers, not {x.dtype}: convert them with x.to(torch.float32)")
    if x.numel() == 0:
        raise ValueError(f"there is no mean of nothing: the shape is {tuple(x.shape)}")
    try:
        std, mean = torch.std_mean(widened(x), axes, correction=0, keepdim=True)
    except (IndexError, RuntimeError, TypeError) as error:
        raise type(error)(
            f"axes are those of the examples to average over, an int or a tuple of ints from {-x.ndim} to {x.ndim - 1}, as the"
            f" shape is {tuple(x.shape)}, not {axes!r}"
        ) from error
    return mean, torch.where(std == 0, torch.ones_like(std), std)


@with_suggestions
def standardize(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Examples with each feature shifted and scaled: (x - mean) / std. Half precision stays what it is.

    Args:
        x: the examples, of the shape that `mean_and_std` saw but for the first axis.
        mean: to subtract.
        std: to divide by.

    Raises:
        TypeError: one of them is no tensor.
        ValueError: the shapes do not fit.
    """
    try:
        scaled = (x - mean) / std
    except RuntimeError as error:
        raise ValueError(
            f"the mean and the std must be of one number, or of one for each feature of x, as mean_and_std(x) gives them, but x"
            f" is {tree.describe(x)}, the mean {tree.describe(mean)}, and the std {tree.describe(std)}"
        ) from error
    return narrowed(scaled, x) if x.dtype in HALF else scaled


@with_suggestions
def one_hot(labels: Tensor, classes: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Labels as rows of zeros with a single one, at the label's place: targets for a loss that compares numbers.

    Args:
        labels: integers from 0 to classes - 1.
        classes: how many classes there are.
        dtype: of the result.

    Shape:
        (...) to (..., classes)

    Raises:
        TypeError: the labels are not integers.
        ValueError: a label is not in range. On a GPU, where looking would have the program wait, such a label gives zeros.

    >>> from fundl import one_hot
    >>> one_hot(torch.tensor([0, 2]), 3)
    tensor([[1., 0., 0.],
            [0., 0., 1.]])
    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels are integers, not {labels.dtype}: convert them with labels.to(torch.int64)")
    if classes < 1:
        raise ValueError(f"classes must be at least 1, not {classes}")
    if is_readable(labels) and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"labels of {classes} classes go from 0 to {classes - 1}, but here they go from {int(labels.min())} to"
            f" {int(labels.max())}"
        )
    return (labels.unsqueeze(-1) == torch.arange(classes, device=labels.device)).to(dtype)


# --- The disk -------------------------------------------------------------------------------------------------------


@with_suggestions
def disk(key: Key, count: int, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Random points of the unit square, and whether each is in a disk that covers half of it.

        label = 1 where |point - (1/2, 1/2)| < 1 / sqrt(2 pi), else 0

    The disk's area is pi / (2 pi) = 1/2: both classes are equally likely.

    Args:
        key: decides the points, and the device that they are on.
        count: how many, at least 1.
        dtype: of the points.

    Returns:
        Points (count, 2), uniform in [0, 1) x [0, 1), and labels (count,), int64; `one_hot` makes numbers of them.

    Raises:
        TypeError: the dtype is not a floating-point one.
        ValueError: the count is less than 1.

    >>> from fundl import disk, key
    >>> points, labels = disk(key(0), 1000)
    >>> points.shape, labels[:8], labels.sum()
    (torch.Size([1000, 2]), tensor([1, 1, 0, 0, 0, 0, 1, 1]), tensor(506))
    """
    if count < 1:
        raise ValueError(f"the disk needs at least 1 point, not {count}")
    points = random.uniform(key, (count, 2), dtype=dtype)
    # Half precision could not tell on which side of the circle a point is.
    squared_distances = (points.to(torch.promote_types(dtype, torch.float32)) - 0.5).square().sum(1)
    return points, (squared_distances < 1 / (2 * math.pi)).to(torch.int64)
