"""An exponential moving average of params, which often generalise better than the last ones."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.listed import ListedABC
from fundl._common.modes import is_readable, no_grad
from fundl._common.numbers import fraction
from fundl._common.suggestions import with_suggestions
from fundl.optim.flat import Number, Tensors, all_narrowed, all_widened, copies, new_count, require_fit
from fundl.optim.partition import PartitionState
from fundl.optim.transform import P, State, Transform, flatten_params
from fundl.tree import Record, describe


@attrs.frozen(eq=False, init=False)
class Averaging(Record):
    """A state that has an average of the params, which `averaged` reads."""

    @abstractmethod
    def with_newest(self, params: Tensors) -> Tensors:
        """The average, with the params that the last step made."""


@final
@attrs.frozen(eq=False)
class EmaState(Averaging, metaclass=ListedABC):
    """The state of `ema`. The params that the last step made are not in the average yet: only the next step is given them.

    Args:
        average: the average of the params before them.
        share: what they weigh as they come in, float64 without axes.
        count: how many params the average is then of, int64 without axes.
    """

    average: Tensors
    share: Tensor
    count: Tensor

    @override
    def with_newest(self, params: Tensors) -> Tensors:
        require_fit(self.average, params)
        share = self.share
        if is_readable(share) and not share.ndim:
            weight = share.item()
            # What weighs nothing leaves no trace, whatever it is: infinity times 0 would be NaN.
            return copies(params) if weight == 1 else torch._foreach_lerp(self.average, params, weight)
        # Of an ensemble there may be a share for each run.
        shares = [share.reshape((*share.shape, *[1] * (leaf.ndim - share.ndim))).to(leaf) for leaf in params]
        mixed = torch._foreach_lerp(self.average, params, shares)
        return tuple([torch.where(one == 1, new, mean) for one, new, mean in zip(shares, params, mixed, strict=True)])


@final
@attrs.frozen
class _Ema(Transform[EmaState]):
    elementwise = True
    writes_over = True
    numbers = ("decay",)

    decay: Number = attrs.field(validator=fraction)
    debias: bool

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> EmaState:
        count = new_count(leaves)
        return EmaState(copies(leaves), torch.zeros_like(count, dtype=torch.float64), count)

    @override
    def change(self, grads: Tensors, state: EmaState, params: Tensors) -> tuple[Tensors, EmaState]:
        count = state.count + 1
        # A few operations on numbers cost less than as many on tensors.
        share = self._share(count.item() if is_readable(count) and not count.ndim else count)
        if not isinstance(share, Tensor):
            share = torch.full_like(state.share, share)
        return grads, EmaState(state.with_newest(params), share, count)

    @override
    def change_over(self, grads: Tensors, state: EmaState, params: Tensors) -> tuple[Tensors, EmaState]:
        if not is_readable(state.share):
            return self.change(grads, state, params)
        require_fit(state.average, params)
        if (weight := state.share.item()) == 1:
            torch._foreach_copy_(state.average, params)
        else:
            torch._foreach_lerp_(state.average, params, weight)
        state.share.fill_(self._share(state.count.add_(1).item()))
        return grads, state

    def _share(self, count: Number) -> Number:
        """What the newest of so many params weighs."""
        if isinstance(count, Tensor):
            count = count.to(torch.float64)
            own = torch.zeros_like(count) + (1 - self.decay)
            return own / (1 - torch.pow(self.decay, count)) if self.debias else own
        return (1 - self.decay) / (1 - self.decay**count) if self.debias else 1 - self.decay


@with_suggestions
def ema(decay: float, *, debias: bool = True) -> Transform[EmaState]:
    """An exponential moving average of the params, beside their training: after each step, a = decay a + (1 - decay) p.

        optimizer = chain(ema(0.999), adamw(1e-3))

    It leaves the gradients as they are, so its place in a chain does not matter; it only remembers the params that it sees,
    those of the last step. `averaged` takes those of a state in as well, and gives the model with the average. So it is in a
    compiled step, in a checkpoint, and in an ensemble, as all of a state is.

    Where a step is not made, because it is skipped (`skip_nonfinite`) or a window is not full (`accumulate`), a chain inside of
    that takes nothing in, and a chain around it takes the same params in once more. In a part of a `partition`, it averages
    those of the part. Params of 16 bits are averaged in float32, each as it is after it was rounded: there, steps of 1 - decay
    are not lost. It takes the memory of the params, those of 16 bits in float32, once more.

    Args:
        decay: how much of the average is kept, in [0, 1).
        debias: whether the first params do not count: after t steps the params weigh as decay^(t - 1), ..., decay, 1, divided
            by the sum of these. Without it, the average begins at those of `init`, which have the weight decay^t then.

    Source:
        Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992; Kingma and Ba, Adam: a method for
        stochastic optimization, 2015, section 7.2.

    >>> from fundl import averaged, chain, ema, sgd
    >>> optimizer, params = chain(ema(0.5), sgd(1.0)), torch.zeros(1)
    >>> state = optimizer.init(params)
    >>> for _ in range(2):
    ...     params, state = optimizer.step(torch.tensor([-3.0]), state, params)
    >>> params, averaged(state, params)
    (tensor([6.]), tensor([5.]))
    """
    return _Ema(decay, debias)


def average_in(state: object, params: P) -> P:
    """The params with the averages that an optimizer's state has of them; those of which it has none are as they are.

    Raises:
        ValueError: there is no average in it, or there are several of the same params, or of others.
    """
    leaves = flatten_params(params)
    found = [*_averages(state, range(len(leaves)))]
    if not found:
        raise ValueError(f"{describe(state)} has no average: one of chain(ema(0.999), optimizer) has")
    all_places = [place for _, places in found for place in places]
    if len({*all_places}) < len(all_places):
        raise ValueError(f"the state has several averages of the same params: which of the {len(found)} is not said")
    results = [*leaves]
    with no_grad():
        for average, places in found:
            own = tuple([leaves[place] for place in places])
            try:
                newest = all_narrowed(average.with_newest(all_widened(own)), own)
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"the average in the state is of other params than {describe(params)}") from error
            for place, leaf in zip(places, newest, strict=True):
                results[place] = leaf
        return tree.with_trainable_leaves(params, results)


def _averages(state: object, places: Sequence[int]) -> Iterator[tuple[Averaging, Sequence[int]]]:
    """All averages in a state, each with the places of the leaves that it is of."""
    if isinstance(state, Averaging):
        yield state, places
    elif isinstance(state, tree.Divided) and not isinstance(state, State) and any(state.splits()):
        if next(_averages(tree.children(state), places), None) is not None:
            raise ValueError(
                "the average in the state is of the rows of this process alone: write what averages around what divides the"
                " memory of an optimizer, chain(shard_moments(group, ...), ema(...)) or"
                " schedule_free(shard_moments(group, ...), rate)"
            )
    elif isinstance(state, PartitionState):
        parts: Sequence[object] = state.inner
        for number, part in enumerate(parts):
            yield from _averages(part, [place for place, its in zip(places, state.part, strict=False) if its == number])
    else:
        for _, part in tree.parts(state):
            yield from _averages(part, places)
