"""Layers of whose parameters each process keeps its rows alone: they are whole only while their layers run."""

from collections.abc import Callable, Sequence
from typing import Self, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.checks import models, require_model
from fundl._common.modes import no_grad
from fundl._common.suggestions import with_suggestions
from fundl.collectives import gathered, reduced, scattered
from fundl.distributed._parts import InParts
from fundl.groups import Group, require_group
from fundl.layer import Model
from fundl.layers._inside import Ts, fitting
from fundl.layers.repeated import Repeat
from fundl.tree import Divided, Record, Split, describe


@final
@attrs.frozen(eq=False)
class Sharded(InParts[*Ts]):
    """Layers of whose parameters each process of a group has its rows, 1/n of them: y = f(x).

    All rows of the layers are gathered for forward, once more for backward, and dropped as soon as either is done. The
    gradients are those of a model whose parameters are rows: each process has the sums, over all of them, of its own rows. So
    parameters, gradients, and what an optimizer remembers of them take 1/n of the memory. What is exchanged in a step is the
    parameters twice and the gradients once, 3/2 of what `train_step` sums without this.

    Where there are copies, other groups have the same rows, on other machines say: what is gathered comes from the own group,
    and between them travel the gradients of the rows alone, 1/n of all.

    Its vjp: that of f, with grad_rows = the rows of grad_1 + ... + grad_n, where grad_r is that of process r; of all copies.

    Args:
        layers: f, whose trainable tensors have the rows of this process; best given to `shard`. Rows are filled up with zeros,
            so that all processes have as many. A number without axes is whole in each; so are buffers.
        parts: what each trainable tensor is a part of, in their order; None for one that is not divided.
        group: the processes that have the parts.
        copies: the processes that have the same rows as this one, if there are any.

    Shape:
        that of f

    Residuals:
        Those of the layers.

    Source:
        Rajbhandari, Rasley, Ruwase and He, ZeRO: memory optimizations toward training trillion parameter models, 2020.
    """

    made_by = "shard"

    copies: Group | None = None

    @override
    def _model(self, own: None = None) -> tuple[*Ts]:
        """The layers with all their rows, from all processes."""
        leaves = self._own_leaves()
        if any(leaf.is_meta for leaf in leaves):
            return self._shown()
        cut = [(place, split) for place, split in enumerate(self.parts) if split is not None]
        for (place, split), whole in zip(cut, gathered([leaves[place] for place, _ in cut], self.group), strict=True):
            leaves[place] = whole[: split.whole]
        return tree.with_trainable_leaves(self.layers, leaves)

    @override
    def _gradient(self, own: None, grads: object) -> Self:
        """The sums of the gradients of all processes: the rows of this one, and all of what is not divided."""
        leaves = tree.trainable_leaves(grads)
        places = [place for place, split in enumerate(self.parts) if split is not None]
        others = [place for place, split in enumerate(self.parts) if split is None]
        given = [filled(leaves[place], self.group.size) for place in places]
        for place, total in zip(places, scattered(given, self.group), strict=True):
            leaves[place] = total
        for place, total in zip(others, reduced([leaves[place] for place in others], self.group), strict=True):
            leaves[place] = total
        if self.copies is not None:
            leaves = reduced(leaves, self.copies)
        return self.gradient(tree.with_trainable_leaves(self.layers, leaves))

    def _own_leaves(self) -> list[Tensor]:
        """The trainable leaves of this process, which must have its rows."""
        leaves = tree.trainable_leaves(self.layers)
        for leaf, split in zip(leaves, self.parts, strict=True):
            if split is not None and (leaf.ndim != -split.axis or leaf.shape[0] != split.part):
                raise ValueError(
                    f"of a tensor of {split.whole} rows each of {self.group.size} processes has {split.part}, but here is"
                    f" {describe(leaf)}: nothing stacks layers of shard but repeat(n, shard(group, ...))"
                )
        return leaves

    @override
    def summed_over(self) -> Sequence[Group]:
        return (self.group,) if self.copies is None else (self.group, self.copies)


@with_suggestions
def shard(group: Group, *layers: *Ts, copies: Group | None = None) -> Sharded[*Ts]:
    """A `Sharded`: layers of whose parameters each process of the group keeps its rows, gathered while the layers run.

    It goes around what is to be whole at the same time, a block of a transformer, say: the smaller that is, the less memory,
    and the more and smaller messages. With ``train_step(loss, optimizer, over=group)`` the numbers are those of the layers
    without it, whatever the number of processes: initialised from the same key, clipped by the same norm. Each process needs
    memory for 1/n of all, and for one of these as a whole.

        block = shard(group, *transformer_block(1024, 16, causal=True))
        model = initialize(key(0), compose(shard(group, embedding(50_000, 1024)), repeat(24, checkpoint(block)), ...))

    What looks at more than each number by itself sees the whole: `clip_by_global_norm`, `skip_nonfinite`,
    `dynamic_loss_scale`, `tree.norm`, `tree.count`, `summary`; all processes go through it together, as through a run of the
    model. An optimizer of your own that does so is refused, until it has a method `divided`. Ensembles
    refuse such models. `save`, `load` and checkpoints are of the whole: all processes write one file, in which nothing tells
    how it was divided.

    ``mixed_precision(shard(group, ...))`` gathers parameters and sums gradients in half precision,
    ``shard(group, mixed_precision(...))`` in the precision of the parameters.

    Where it is far from one machine to the next, the parts stay on a machine, and each machine has all of them:

        machines, ranks = grid(machines=4, ranks=8)
        block = shard(ranks, *transformer_block(1024, 16, causal=True), copies=machines)

    for a step over the group of all processes, which `start` gave. 1/8 of all is in each process then, and from one machine to
    another travel the sums of the gradients of 1/8.

    Args:
        group: the processes, which all make the same model.
        layers: layers, or models, which are checked as by `compose`. If they have values, these are the same in all processes,
            and each keeps its rows of them.
        copies: the processes that have the same rows, one of each machine, say: the other axis of a `grid`. By default there
            are none.

    Raises:
        TypeError: there is no group, or something is not a layer.
        ValueError: the layers have no parameters that could be divided, or are `repeat` or `shard` themselves; or the copies
            are the group itself.

    >>> from fundl import initialize, key, linear, tree
    >>> from fundl.distributed import Group, shard, start
    >>> group, device = start()
    >>> model = initialize(key(0), shard(group, linear(2, 25)))
    >>> model.layers[0], tree.count(model)
    (Linear(weight=float32[25, 2], bias=float32[25]), 75)

    Of 4 processes, each would have 7 of these 25 rows, the last one 4 of its own and 3 of zeros:

    >>> shard(Group("four", 4, 0), linear(2, 25)).layers[0]
    Linear(weight=float32[7, 2], bias=float32[7])
    """
    require_group(group)
    if copies is not None:
        require_group(copies)
        if copies == group and group.size > 1:
            raise ValueError(
                f"the copies are in other groups than the parts, but both are {group}: machines, ranks = grid(machines=4,"
                " ranks=8) gives two that fit, for shard(ranks, ..., copies=machines)"
            )
    whole = models(*layers)
    for record in tree.records(whole):
        if isinstance(record, Repeat):
            raise ValueError(
                "shard(group, repeat(n, block)) would gather all blocks at once: write repeat(n, shard(group, block)), which"
                " has one of them whole at a time"
            )
        if isinstance(record, Divided):
            raise ValueError(
                f"the layers of shard are divided already, by the {type(record).__name__} among them: give shard"
                " the layers beside it; shard_moments(group, optimizer) divides what an optimizer remembers of all of them"
            )
    leaves = tree.trainable_leaves(whole)
    parts = tuple([_split(group, leaf) for leaf in leaves])
    if not any(parts):
        raise ValueError(f"there is nothing to shard: no parameter has rows in {describe(whole)}")
    fitting(Sharded(whole, (None,) * len(parts), Group(group.name, 1, 0)))
    own = [
        leaf if split is None or group.size == 1 else split.part_of(leaf, group.rank)
        for leaf, split in zip(leaves, parts, strict=True)
    ]
    return Sharded(tree.with_trainable_leaves(whole, own), parts, group, copies)


def _split(group: Group, leaf: Tensor) -> Split | None:
    """What the rows of a process are a part of; None for a tensor that has none."""
    rows = leaf.shape[0] if leaf.ndim else 0
    return Split(group, rows, part_of(rows, group.size), -leaf.ndim) if rows else None


def unshard(model: Model) -> Model:
    """The model as it would be without `shard` and `tensor_parallel`: all of it in each process, the layers where they were.

    A layer that was sharded by itself is that layer again; of several, there is the tuple. All processes call it, at the same
    time. It is what one process saves, loads, looks at, and uses by itself.

    Args:
        model: a layer or a nested tuple of layers.

    Raises:
        TypeError: it is no model.

    >>> from fundl import initialize, key, linear
    >>> from fundl.distributed import shard, start, unshard
    >>> group, device = start()
    >>> unshard(initialize(key(0), (shard(group, linear(2, 3)),)))
    (Linear(weight=float32[3, 2], bias=float32[3]),)
    """
    require_model(model)
    with no_grad():
        return cast("Model", replaced(model, _undivided))  # each layer of layers holds models


def _undivided(record: Record) -> object:
    return record.undivided() if isinstance(record, Divided) else None


def replaced(part: object, how: Callable[[Record], object]) -> object:
    """A tree with something else in the place of records, wherever they are in it: what `how` gives, unless that is None."""
    if isinstance(part, Record):
        if (other := how(part)) is not None:
            return other
        changed: dict[str, object] = {}
        for name in part.children:
            if not isinstance(getattr(part, name), Tensor | None):
                before = part.trees_of(name)
                changed[name] = part.child_of(name, before, [replaced(one, how) for one in before])
        return tree.evolved(part, changed) if changed else part
    if isinstance(part, tuple | list):
        return tree.rebuilt(part, [replaced(one, how) for one in part])
    return {name: replaced(one, how) for name, one in part.items()} if isinstance(part, dict) else part


def part_of(rows: int, size: int) -> int:
    """How many of so many rows each process has."""
    return -(-rows // size)


def filled(tensor: Tensor, size: int) -> Tensor:
    """The tensor with rows of zeros behind, so that they can be divided."""
    missing = -tensor.shape[0] % size
    return torch.cat((tensor, tensor.new_zeros((missing, *tensor.shape[1:])))) if missing else tensor
