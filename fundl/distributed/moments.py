"""Optimizers of whose memory each process keeps its rows alone, while the parameters are whole in each."""

from collections.abc import Callable, Sequence
from typing import Generic, Self, TypeVar, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.listed import Listed
from fundl._common.modes import is_untraced
from fundl.collectives import gathered, reduced, scattered
from fundl.distributed.sharding import filled, part_of
from fundl.groups import Group, device_of, require_group
from fundl.optim.flat import Tensors
from fundl.optim.transform import Rule, Transform, require_transform
from fundl.tree import Divided, Division, Split, Splits

S = TypeVar("S")


@final
@attrs.frozen(eq=False)
class ShardedState(Divided, Generic[S], metaclass=Listed):
    """The state of `shard_moments`.

    Args:
        inner: the state of the optimizer for the rows of this process.
        of: what its tensors are parts of, in their order.
    """

    inner: S
    of: Splits

    @override
    def splits(self) -> Splits:
        return self.of

    @override
    def summed_over(self) -> Sequence[Division]:
        return ()

    @override
    def as_whole(self) -> object:
        leaves = tree.trainable_leaves(self.inner)
        whole = [leaf if split is None else split.shown(leaf) for leaf, split in zip(leaves, self.of, strict=True)]
        return tree.with_trainable_leaves(self.inner, whole)


@final
@attrs.frozen
class ShardMoments(Transform[ShardedState[S]], Generic[S]):
    """See `shard_moments`."""

    group: Group
    transform: Transform[S]
    place: Tensor = attrs.field(eq=False, repr=False)  # the rank: a tensor, so that what is traced is one for all processes
    given: Splits = attrs.field(default=(), kw_only=True, repr=False)  # what the params are parts of already
    sums: bool = attrs.field(default=False, kw_only=True, repr=False)  # whether the gradients are still of each process

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> ShardedState[S]:
        splits = self._splits(leaves)
        inner = self.transform.divided(splits)
        state = inner.start(tuple(self._rows(leaves, splits)), paths)
        # Tensors without values that have more rows than anything here, and one more for each: what has these is made of them.
        most = max((size for leaf in leaves for size in leaf.shape), default=0) + 1
        marked = [
            leaf.new_empty((most + place, *leaf.shape[1:]) if splits[place] else leaf.shape, device="meta")
            for place, leaf in enumerate(leaves)
        ]
        of = dict(zip(range(most, most + len(leaves)), splits, strict=True))
        made = tree.trainable_leaves(inner.start(tuple(marked), paths))
        return ShardedState(state, tuple([of.get(leaf.shape[0]) if leaf.ndim else None for leaf in made]))

    @override
    def change(self, grads: Tensors, state: ShardedState[S], params: Tensors) -> tuple[Tensors, ShardedState[S]]:
        return self._by_rows(lambda transform: transform.change, grads, state, params)

    @override
    def move(self, grads: Tensors, state: ShardedState[S], params: Tensors) -> tuple[Tensors, ShardedState[S]]:
        moved, state = self._by_rows(lambda transform: transform.move, grads, state, params)
        return tuple(map(_in_own_memory, moved)), state

    @property
    @override
    def writes_over(self) -> bool:
        return self.transform.writes_over

    @override
    def change_over(self, grads: Tensors, state: ShardedState[S], params: Tensors) -> tuple[Tensors, ShardedState[S]]:
        return self._by_rows(lambda transform: transform.change_over, grads, state, params)

    @override
    def move_over(self, grads: Tensors, state: ShardedState[S], params: Tensors) -> tuple[Tensors, ShardedState[S]]:
        results, state = self._by_rows(lambda transform: transform.move_over, grads, state, params)
        torch._foreach_copy_(params, results)
        return params, state

    @override
    def rest(self, state: ShardedState[S], params: Tensors) -> tuple[Tensors, ShardedState[S]]:
        def rule(transform: Transform[S]) -> Rule[S]:
            return lambda _grads, inner, rows: transform.rest(inner, rows)

        return attrs.evolve(self, sums=False)._by_rows(rule, params, state, params)

    @override
    def loss_scale(self, state: ShardedState[S]) -> Tensor | None:
        return self.transform.loss_scale(state.inner)

    @override
    def weighed(self, weight: float | Tensor) -> Self:
        transform = self.transform.weighed(weight)
        return self if transform is self.transform else attrs.evolve(self, transform=transform)

    @override
    def divided(self, splits: Splits) -> Self:
        return attrs.evolve(self, given=splits)

    @override
    def summing(self, among: Division) -> Self | None:
        return attrs.evolve(self, sums=True) if among == self.group and self.group.size > 1 else None

    def _splits(self, params: Tensors) -> Splits:
        """What the rows of this process are parts of; what is a part already stays as it is."""
        given = self.given or (None,) * len(params)
        return tuple(
            [
                _cut_among(self.group, leaf, split) if _is_whole(split) and _has_rows(leaf) else split
                for leaf, split in zip(params, given, strict=True)
            ]
        )

    def _cut(self, splits: Splits) -> list[int]:
        """The places of the leaves that are cut here."""
        given = self.given or (None,) * len(splits)
        return [
            place
            for place, split in enumerate(splits)
            if split is not None and split.among == self.group and _is_whole(given[place])
        ]

    def _rows(self, tensors: Tensors, splits: Splits) -> list[Tensor]:
        rows = [*tensors]
        for place in self._cut(splits):
            rows[place] = _own_rows(tensors[place], self.group, self.place)
        return rows

    def _sums(self, grads: Tensors, splits: Splits) -> list[Tensor]:
        """The rows of this process of the sums of the gradients of all."""
        places = self._cut(splits)
        others = [place for place in range(len(grads)) if _is_whole(splits[place])]
        sums = [*grads]
        given = [filled(grads[place], self.group.size) for place in places]
        for place, total in zip(places, scattered(given[::-1], self.group)[::-1], strict=True):
            sums[place] = total
        for place, total in zip(others, reduced([grads[place] for place in others], self.group), strict=True):
            sums[place] = total
        return sums

    def _by_rows(
        self, rule_of: Callable[[Transform[S]], Rule[S]], grads: Tensors, state: ShardedState[S], params: Tensors
    ) -> tuple[Tensors, ShardedState[S]]:
        """What a rule of the optimizer makes of the rows of this process, put together with what others make of theirs."""
        splits = self._splits(params)
        own = self._sums(grads, splits) if self.sums else self._rows(grads, splits)
        rule = rule_of(self.transform.divided(splits))
        made, inner = rule(tuple(own), state.inner, tuple(self._rows(params, splits)))
        results = [*made]
        places = self._cut(splits)
        for place, whole in zip(places, gathered([made[place] for place in places], self.group), strict=True):
            rows = params[place].shape[0]
            results[place] = whole if whole.shape[0] == rows else whole[:rows]
        return tuple(results), state if inner is state.inner else attrs.evolve(state, inner=inner)


def _is_whole(split: Split | None) -> bool:
    """Whether a leaf is no part, as far as is known: one that is in a stage of a pipeline may be whole there."""
    return split is None or split.among.size == 1


def _cut_among(group: Group, leaf: Tensor, before: Split | None) -> Split:
    rows = leaf.shape[0]
    return Split(group, rows, part_of(rows, group.size), beyond=None if before is None else before.beyond)


def _has_rows(leaf: Tensor) -> bool:
    return leaf.ndim > 0 and leaf.shape[0] > 0


def _in_own_memory(tensor: Tensor) -> Tensor:
    """A copy of what is a part of something that was gathered: no later step could write over it."""
    return tensor.clone() if is_untraced(tensor) and tensor._is_view() else tensor


def _own_rows(tensor: Tensor, group: Group, rank: Tensor) -> Tensor:
    """The rows of this process, with zeros where there are too few."""
    rows, part = tensor.shape[0], part_of(tensor.shape[0], group.size)
    if group.size == 1:
        return tensor
    if is_untraced(tensor):
        own = tensor[group.rank * part : (group.rank + 1) * part]
        return own if own.shape[0] == part else torch.cat((own, own.new_zeros((part - own.shape[0], *own.shape[1:]))))
    places = rank * part + torch.arange(part, device=tensor.device)
    own = tensor.index_select(0, places.clamp(max=rows - 1))
    if rows % group.size == 0:
        return own
    return torch.where((places < rows).reshape(part, *[1] * (tensor.ndim - 1)), own, 0.0)


def shard_moments(group: Group, optimizer: Transform[S]) -> ShardMoments[S]:
    """The optimizer, of whose memory each process keeps its rows: for models that fit, where the moments of Adam do not.

    The parameters are whole in each process, and the model is any model. Each process has what the optimizer remembers of its
    rows of each parameter, 1/n of it, makes the step of these rows alone, and all gather what the others made. The numbers are
    those of the optimizer by itself.

        optimizer = shard_moments(group, chain(clip_by_global_norm(1.0), adamw(1e-3)))
        step = train_step(loss, optimizer, over=group)

    If it is the outermost, as here, and the step is over the same group, gradients are summed for the rows of each process
    alone, so that a step exchanges as much as without. Inside of another transform, it is given what that makes of the sums of
    all. What looks at more than each number by itself may be either inside or around; a mean of parameters, `ema`, goes around
    (``chain(shard_moments(...), ema(...))``), since `averaged` gives whole ones.

    Where parameters do not fit either, see `shard`. Layers of `shard` in the model keep the rows that they have.

    Args:
        group: the processes, which all have the same parameters.
        optimizer: any transform that goes on with rows: see `Transform.divided`.

    Raises:
        TypeError: there is no group, or no transform; in `init`, it does not say how it goes on with rows.

    Source:
        Rajbhandari, Rasley, Ruwase and He, ZeRO: memory optimizations toward training trillion parameter models, 2020: stage 1.

    >>> from fundl import adam
    >>> from fundl.distributed import shard_moments, start
    >>> group, device = start()
    >>> optimizer, params = shard_moments(group, adam(0.1)), torch.ones(3)
    >>> optimizer.step(torch.ones(3), optimizer.init(params), params)[0]
    tensor([0.9000, 0.9000, 0.9000])
    """
    require_group(group)
    require_transform(optimizer)
    return ShardMoments(group, optimizer, torch.tensor(group.rank, device=device_of(group)))
