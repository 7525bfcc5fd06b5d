"""A step of training over a group of processes: loss, gradients and random numbers are those of the whole batch.

Each process has some rows of a batch, and sums travel, never means of means. A loss that is a mean is, over the whole batch,

    (w_1 m_1 + ... + w_n m_n) / (w_1 + ... + w_n)

where m_r is what it is for the rows of process r, and w_r what that divided by, 0 where nothing counts. So the gradient of m_r
goes backward times w_r over the sum, and the gradients with respect to the parameters are added up.
"""

import functools
import math
from collections.abc import Sequence
from typing import Final, Generic, TypeVar

import attrs
import torch
from torch import Tensor

from fundl import random, tree
from fundl._common.checks import loss_and_gradient, require_gradient
from fundl._common.modes import is_readable, is_traced
from fundl._common.running import Pass
from fundl.collectives import reduced
from fundl.groups import Group, device_of, require_group
from fundl.layer import Loss, Model, P, Prediction, Target
from fundl.optim.transform import Transform
from fundl.random import Key
from fundl.training._sums import Sums
from fundl.weights import SUM, Rule, Weight, adds_up, by_rows, count_along, rule_of

T = TypeVar("T")
S = TypeVar("S")

_GONE: Final = torch.empty(0)  # in the place of a gradient that is on its way


@attrs.frozen(eq=False)
class Shares(Generic[Prediction, Target]):
    """What the processes of a group, of more than one, have of a step.

    Args:
        group: the processes.
        loss: of the rows of one of them.
    """

    group: Group
    loss: Loss[Prediction, Target]
    _place: Tensor = attrs.field(init=False)  # a tensor, so that the graph of a step is one for all processes

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_place", torch.tensor([self.group.rank, self.group.size], device=device_of(self.group)))

    def loss_of_whole(self) -> Loss[Prediction, Target]:
        """The loss of the whole batch, and its gradient with respect to the prediction of this process."""

        @functools.wraps(self.loss)
        def whole(prediction: Prediction, target: Target) -> tuple[Tensor, Prediction]:
            value, grad, weight = self.own(prediction, target)
            if adds_up(self.loss):
                (total,) = reduced([value], self.group)
                return total, grad
            counted = torch.where(weight == 0, 0.0, value * weight)  # a mean over nothing is no number
            total, weights = reduced([torch.stack((counted, weight))], self.group)[0].unbind()
            share = torch.where(weights == 0, 0.0, weight / weights)
            return (total / weights).to(value.dtype), tree.map(lambda part: scaled_by_share(part, share), grad)

        return whole

    def weight_of_whole(self, prediction: object, target: object) -> Weight:
        """What the loss of the whole batch divides by."""
        if adds_up(self.loss):
            return SUM
        weight = part_weight(rule_of(self.loss) or by_rows, prediction, target)
        (total,) = reduced([_as_tensor(weight, tree.leaves(prediction)[0])], self.group)
        return total

    def summed(self, grads: T) -> T:
        """The sums of the gradients of all processes; buffers stay as they are.

        Those of the last layers, which are there first, travel first.
        """
        leaves = tree.trainable_leaves(grads)
        own = self._unsummed(grads, len(leaves))
        for place, total in zip(own, reduced([leaves[place] for place in own[::-1]], self.group)[::-1], strict=True):
            leaves[place] = total
        return tree.with_trainable_leaves(grads, leaves)

    def summed_backward(self, ran: Pass[P]) -> P:
        """The same of a model that is run backward: a layer's gradients are on their way while those before it are found."""
        if is_traced():  # what is compiled gets its order later
            return self.summed(ran.backward_params())
        self._unsummed(ran.params, len(tree.trainable_leaves(ran.params)))  # what cannot be summed is refused before any is
        sums, found = Sums(self.group), list[list[Tensor | int]]()

        def taken(grads: Model) -> Model:
            leaves = tree.trainable_leaves(grads)
            places: list[Tensor | int] = [*leaves]
            for place in reversed(self._unsummed(grads, len(leaves))):
                places[place] = sums.add(leaves[place])
            found.append(places)
            return tree.with_trainable_leaves(grads, [_GONE] * len(leaves)) if leaves else grads

        grads = ran.backward_params(taken)
        totals = sums.totals()
        leaves = [totals[one] if isinstance(one, int) else one for places in reversed(found) for one in places]
        return tree.with_trainable_leaves(grads, leaves)

    def _unsummed(self, grads: object, count: int) -> Sequence[int]:
        """The places of the leaves, of so many, that no layer has summed over the processes of the step."""
        if not tree.holds(tree.is_divided, grads):
            return range(count)
        sums = tree.summed_over(grads)
        for split, among in zip(tree.splits_of(grads), sums, strict=True):
            if split is not None and not among and isinstance(split.among, Group) and _meet(split.among, self.group):
                raise ValueError(
                    f"layers of tensor_parallel are split among {split.among}, whose processes are given the same rows, but the"
                    f" step is over {self.group}, whose processes are given different ones: make both by data, tensor ="
                    " grid(data=..., tensor=...), split the layers over tensor, and write train_step(..., over=data)"
                )
        return [place for place, among in enumerate(sums) if not self._has_summed(tuple(among))]

    def _has_summed(self, among: tuple[tree.Division, ...]) -> bool:
        """Whether a leaf's gradient is the sum already over the processes of the step."""
        if among and not _are_together(among, self.group):
            raise ValueError(
                f"the step is over the {self.group.size} processes of {self.group.name!r}, but the model has layers whose"
                f" gradients are summed over {' and '.join(map(str, among))}: shard(group, ...) is for the group of the step,"
                " and shard(ranks, ..., copies=machines), of a grid of all processes, for the step over all of them"
            )
        return bool(among)

    def key(self, key: Key, x: object) -> Key:
        """The key that draws for the rows of this process."""
        rows = self._place.new_full((1,), count_along(x, 0))
        return random.of_part(key, torch.cat((self._place, rows)).to(key.device))

    def own(self, prediction: Prediction, target: Target) -> tuple[Tensor, Prediction, Tensor]:
        """The loss of the rows of this process, its gradient, and its weight; of no rows, nothing."""
        first = tree.leaves(prediction)[0]
        if not has_rows(prediction):
            nothing = first.new_zeros((), dtype=torch.float64)
            return nothing, tree.map(torch.zeros_like, prediction), nothing
        value, grad = loss_and_gradient(self.loss, prediction, target)
        require_gradient(grad, prediction, self.loss)
        return value, grad, _as_tensor((rule_of(self.loss) or by_rows)(prediction, target), first)


@functools.cache
def _are_together(among: tuple[tree.Division, ...], group: Group) -> bool:
    """Whether the axes of a grid make up a group: each of the first with each of the second."""
    axes = [one for one in among if one.size > 1]
    if math.prod(one.size for one in axes) != group.size:
        return False
    return axes == [group] or all(isinstance(one, Group) and {*one.ranks} <= {*group.ranks} for one in axes)


@functools.cache
def _meet(among: Group, group: Group) -> bool:
    """Whether there are other processes than this one in both."""
    return len({*among.ranks} & {*group.ranks}) > 1


def shares_of(over: Group | None, loss: Loss[Prediction, Target]) -> Shares[Prediction, Target] | None:
    """What the processes of a group have of a step; None where one has all of it."""
    if over is None:
        return None
    require_group(over)
    return Shares(over, loss) if over.size > 1 else None


def summed_backward(shares: Shares[Prediction, Target] | None, ran: Pass[P], optimizer: Transform[S]) -> tuple[P, Transform[S]]:
    """The gradients of the whole batch, of a model that is run backward, and the optimizer for them.

    Or those that there are, and an optimizer that sums them itself.
    """
    if shares is None:
        require_whole(ran.params)
        return ran.backward_params(), optimizer
    if not tree.holds(tree.is_divided, ran.params) and (summing := optimizer.summing(shares.group)) is not None:
        return ran.backward_params(), summing
    return shares.summed_backward(ran), optimizer


def require_whole(model: object) -> None:
    """Raise unless one process has all rows of a batch: layers that sum gradients over several are for a step over these."""
    if not tree.holds(tree.is_divided, model):
        return
    sizes = [math.prod(one.size for one in among) for among in tree.summed_over(model)]
    if max(sizes, default=1) > 1:
        raise ValueError(
            f"the model's parameters are divided among {max(sizes)} processes, but the step is of one: write"
            " train_step(loss, optimizer, over=group), with the group of shard(group, ...)"
        )


def has_rows(prediction: object) -> bool:
    """Whether a process has any rows of a batch: a small last one may not do for all of them."""
    return count_along(prediction, 0) > 0


def part_weight(rule: Rule, prediction: object, target: object) -> Weight:
    """The weight of the mean over the rows of a process, which may be none."""
    return rule(prediction, target) if has_rows(prediction) else 0


def _as_tensor(weight: Weight, like: Tensor) -> Tensor:
    if isinstance(weight, Tensor):
        return weight.to(torch.float64)
    return like.new_full((), weight, dtype=torch.float64)


def scaled_by_share(grad: Tensor, share: Tensor) -> Tensor:
    """A gradient times a share of 0 to 1; where that is 0, the gradient of a user's loss may be no number."""
    if not grad.is_floating_point():
        return grad
    if is_readable(share):
        return grad * share if share.item() else torch.zeros_like(grad)
    return torch.where(share == 0, 0.0, grad * share)


_MARK: Final = "__fundl_group__"


def mark(step: object, group: Group | None) -> None:
    """Say of a step which processes it is over."""
    if group is not None:
        setattr(step, _MARK, group)


_IN_PYTHON: Final = "__fundl_in_python__"


def mark_in_python(step: object) -> None:
    """Say of a step that it cannot be compiled, whatever it is made of."""
    setattr(step, _IN_PYTHON, True)


def runs_in_python(step: object) -> bool:
    """Whether a step cannot be compiled."""
    return said_of(step, _IN_PYTHON) is not None


def said_of(step: object, name: str) -> object:
    """What a step is marked with under a name, or what is inside of it, where it is compiled or wrapped; None for nothing."""
    while step is not None:
        if (found := getattr(step, name, None)) is not None:
            return found
        step = getattr(step, "__wrapped__", None)
    return None


def group_of_step(step: object) -> Group | None:
    """The processes that a step, compiled or not, is over; None where nothing is known."""
    found = said_of(step, _MARK)
    return found if isinstance(found, Group) else None


def processes_of(step: object, over: Group | None) -> Group | None:
    """The processes of a run of such a step; None for one alone.

    Raises:
        TypeError: it is no group.
        ValueError: the step is over another one.
    """
    if over is not None:
        require_group(over)
    own = group_of_step(step)
    if own is not None and own.size > 1 and own != over:
        raise ValueError(
            f"the step is over the {own.size} processes of {own.name!r}, but the run "
            + ("is of one: give it the same group, over=group" if over is None else f"over those of {over.name!r}")
        )
    return over if over is not None and over.size > 1 else None
