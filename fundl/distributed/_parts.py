"""Layers of whose tensors each process of a group has parts: what `shard` and `tensor_parallel` have in common."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic

import attrs
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl.groups import Group
from fundl.layers._inside import Around, Ts, forward_inside
from fundl.shapes import S, Through
from fundl.tree import Divided, Splits, describe


@attrs.frozen(eq=False)
class InParts(Around[None], Divided, Generic[*Ts]):
    """Layers f of whose trainable tensors each process of a group has parts; whoever looks inside sees shapes of the whole.

    Args:
        layers: f, with the parts of this process.
        parts: what each trainable tensor is a part of, in their order; None for one that each process has whole. Axes are
            counted from the last, so that they hold for stacked layers, too.
        group: the processes.
    """

    takes_integers = True  # if the first layer does
    made_by: ClassVar[str]  # the function that makes such layers

    layers: tuple[*Ts]
    parts: Splits
    group: Group

    @abstractmethod
    @override
    def _model(self, own: None = None) -> tuple[object, ...]:
        """What runs in this process."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[object, None]]:
        output, residuals = forward_inside(self._model(), x)
        return output, (residuals, None)

    @override
    def output_shape(self, shape: S) -> Through[S, *Ts]:
        return Through(shape, self._shown())

    @override
    def splits(self) -> Splits:
        return self.parts

    @override
    def undivided(self) -> object:
        if self.group.size == 1:
            return _alone_if_one(self.layers)
        whole = [
            leaf if split is None else split.whole_of(leaf)
            for leaf, split in zip(tree.trainable_leaves(self.layers), self.parts, strict=True)
        ]
        return _alone_if_one(tree.with_trainable_leaves(self.layers, whole))

    @override
    def as_whole(self) -> object:
        return _alone_if_one(self._shown())

    def _shown(self) -> tuple[*Ts]:
        """The layers with tensors of the whole, on the meta device: what one process would have."""
        leaves = tree.trainable_leaves(self.layers)
        whole = [leaf if split is None else split.shown(leaf) for leaf, split in zip(leaves, self.parts, strict=True)]
        return tree.with_trainable_leaves(self.layers, whole)

    @override
    def trees_of(self, name: str) -> Sequence[object]:
        return (self._shown(),)

    @override
    def child_of(self, name: str, before: Sequence[object], after: Sequence[object]) -> object:
        """The layers with the parts of this process: its own, where all stayed as it was shown, or those of new tensors."""
        old, new, own = (tree.trainable_leaves(layers) for layers in (before[0], after[0], self.layers))
        if len(new) != len(own):
            raise ValueError(
                f"layers of {self.made_by} had {len(own)} trainable tensors, and now have {len(new)}: change the layers first,"
                f" and give them to {self.made_by} then; or put them together by unshard"
            )
        kept = [self._kept(place, *three) for place, three in enumerate(zip(own, old, new, strict=True))]
        return tree.with_trainable_leaves(after[0], kept)

    def _kept(self, place: int, own: Tensor, old: Tensor, new: Tensor) -> Tensor:
        split = self.parts[place]
        if new is old:
            return own
        if split is None:
            return new
        if new.shape != old.shape or (new.is_meta and not own.is_meta):
            raise ValueError(
                f"a tensor of layers of {self.made_by} was {describe(old)} as a whole, and now is {describe(new)}"
                f"{' without values' if new.is_meta else ''}, but each process has a part of it: put the layers together by"
                f" unshard, change them, and give them to {self.made_by} again"
            )
        return split.part_of(new, self.group.rank)


def _alone_if_one(layers: tuple[object, ...]) -> object:
    """What stood where layers were divided: a single one by itself."""
    return layers[0] if len(layers) == 1 else layers
