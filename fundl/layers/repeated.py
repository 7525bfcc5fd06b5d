"""Many blocks of one kind, one after the other, with their parameters in one tensor each."""

from collections.abc import Sequence
from typing import Generic, Self, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.checks import models
from fundl._common.place import Place
from fundl._common.stepping import first_cache, step_inside
from fundl.layers._inside import Around, Ts, fitting, forward_inside
from fundl.shapes import Kept, S


@final
@attrs.frozen(eq=False)
class Repeat(Around[None], Generic[*Ts]):
    """Blocks of one kind, each with its own parameters, one after the other: y = f_n(... f_2(f_1(x))).

    The parameters of all blocks are stacked: a leaf of the block is one tensor with a first axis of size n. So a model of any
    depth has as many leaves as one block, and the optimizer as few kernels to call. What goes through the records of a model
    sees each block by itself: `initialize` draws each from keys of its own and by its own shapes, `rekey` gives each layer
    that drops elements its own key, `calibrate` gives each BatchNorm its own statistics.

    Its vjp is that of a chain, from the last block to the first; the gradients of the blocks are stacked:

        grads_i, grad_(i-1) = vjp(f_i, x_(i-1), grad_i),    grad_n = grad,    grad_x = grad_0

    Args:
        stacked: the layers of a block, whose tensors have a first axis of size `count`; best given to `repeat`. Blocks that
            are there already, one by one, are put together by ``Repeat(tree.stack(blocks), len(blocks))``.
        count: n, how many blocks there are.

    Shape:
        any that the blocks keep

    Residuals:
        Those of each block.

    Raises:
        ValueError: there is less than 1 block, a tensor has not the axis of the blocks, or a block changes the shape of its
            input.
    """

    takes_integers = True  # if the first layer does

    stacked: tuple[*Ts]
    count: int

    def __attrs_post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"repeat's count must be at least 1, not {self.count}")
        for leaf in tree.leaves(self.stacked):
            if leaf.shape[:1] != (self.count,):
                raise ValueError(
                    f"the tensors of {self.count} blocks have a first axis of that size, but here is one of shape"
                    f" {tuple(leaf.shape)}: repeat({self.count}, ...) makes them of one block, tree.stack of several"
                )

    @property
    def blocks(self) -> list[tuple[*Ts]]:
        """The blocks, one by one; their tensors are views."""
        return tree.unstack(self.stacked, self.count)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[object, None]]:
        shape, kept = x.shape, []
        for block in self.blocks:
            x, residuals = forward_inside(block, x)
            if x.shape != shape:
                raise ValueError(
                    f"the blocks of repeat must keep the shape of their input, but make {tuple(x.shape)} of {tuple(shape)}"
                )
            kept.append(residuals)
        return x, (tuple(kept), None)

    @override
    def first_cache(self, batch: int, length: int) -> object:
        return first_cache(tuple(self.blocks), batch, length)

    @override
    def step(self, x: Tensor, cache: object, place: Place) -> tuple[Tensor, object]:
        return step_inside(tuple(self.blocks), x, cache, place)

    @override
    def _model(self, own: None) -> tuple[object, ...]:
        return tuple(self.blocks)

    @override
    def _gradient(self, own: None, grads: object) -> Self:
        """The gradients of the blocks as one; buffers stay as they are."""
        columns = zip(*map(tree.trainable_leaves, cast("tuple[object, ...]", grads)), strict=True)  # one of each block
        return self.gradient(tree.with_trainable_leaves(self.stacked, [torch.stack(column) for column in columns]))

    @override
    def output_shape(self, shape: S) -> Kept[S, *Ts]:
        return Kept(shape, self.blocks[0])

    # --- For whoever goes through records ---

    @override
    def trees_of(self, name: str) -> Sequence[object]:
        return self.blocks

    @override
    def child_of(self, name: str, before: Sequence[object], after: Sequence[object]) -> object:
        """The blocks stacked again: only those of their tensors that are not the same as before."""
        for place, block in enumerate(after):
            tree.require_same_structure(after[0], block, names=("block 0", f"block {place} of repeat"))
        old, new = (zip(*[tree.flatten(block)[0] for block in blocks], strict=True) for blocks in (before, after))
        stacked = {_ids(column): leaf for leaf, column in zip(tree.flatten(self.stacked)[0], old, strict=True)}
        leaves = [stacked[ids] if (ids := _ids(column)) in stacked else _together(column) for column in new]
        return tree.unflatten(tree.flatten(after[0])[1], leaves)


def _ids(column: tuple[Tensor | None, ...]) -> tuple[int, ...]:
    return tuple(map(id, column))


def _together(column: tuple[Tensor | None, ...]) -> Tensor | None:
    """One tensor for all blocks; of one that they share, such as a mask, nothing is copied."""
    first = column[0]
    if first is not None and all(leaf is first for leaf in column):
        return first.expand(len(column), *first.shape)
    return tree.stack(column)


def repeat(count: int, *layers: *Ts) -> Repeat[*Ts]:
    """A `Repeat`: blocks of one kind, one after the other, each with its own parameters.

    Args:
        count: how many blocks there are, at least 1.
        layers: a block: layers, or models (tuples of layers), which keep the shape of their input. If they have values, each
            block starts with them.

    >>> from fundl import ReLU, compose, initialize, key, linear, repeat, residual
    >>> model = initialize(key(0), compose(linear(2, 25), repeat(3, residual(linear(25, 25), ReLU())), linear(25, 1)))
    >>> model[1].stacked[0].layers[0]
    Linear(weight=float32[3, 25, 25], bias=float32[3, 25])
    """
    unchecked: object = count
    if type(unchecked) is not int:
        raise TypeError(f"repeat(count, *layers) takes the number of blocks first, an int, not {tree.describe(unchecked)}")
    block = models(*layers)
    if count < 1:
        raise ValueError(f"repeat's count must be at least 1, not {count}")
    return fitting(Repeat(tree.stack([block] * count), count))
