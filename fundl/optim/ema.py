"""An exponential moving average of params, which often generalise better than the last ones."""

from typing import Generic, final

import attrs
import torch
from torch import Tensor

from fundl import tree
from fundl._common.modes import no_grad
from fundl._common.numbers import fraction
from fundl.optim.flat import all_widened, copies, new_count, select
from fundl.optim.transform import P, flatten_alike, flatten_params
from fundl.tree import Record


@final
@attrs.frozen(eq=False)
class Average(Record, Generic[P]):
    """The average of params of type P so far.

    Args:
        value: the averaged params, those of 16 bits in float32; their buffers are those of the last params.
        count: how many params they are the average of, int64 without axes.
    """

    value: P
    count: Tensor


@final
@attrs.frozen
class Ema:
    """See `ema`."""

    decay: float = attrs.field(validator=fraction)
    debias: bool

    def init(self, params: P) -> Average[P]:
        """The average before the first step; its value is the params.

        Args:
            params: a model, or any other tree of tensors.

        Raises:
            TypeError: a trainable leaf is not a real floating-point tensor.
            ValueError: there is no trainable leaf.
        """
        leaves = flatten_params(params)
        with no_grad():
            return Average(tree.with_trainable_leaves(params, copies(all_widened(leaves))), new_count(leaves))

    def update(self, average: Average[P], params: P) -> Average[P]:
        """The average with the params of one more step.

        Args:
            average: what `init` or the last update returned.
            params: the params after a step.

        Raises:
            TypeError: average and params are of different structures or dtypes.
            ValueError: they are of different shapes, or on different devices.
        """
        with no_grad():
            wide = tree.with_trainable_leaves(params, all_widened(tuple(tree.trainable_leaves(params))))
            old, new, _ = flatten_alike(average.value, wide, name="average")
            count = average.count + 1
            if self.debias:
                share = (1 - self.decay) / (1 - torch.pow(self.decay, count.to(torch.float64)))
                shares = {dtype: share.to(dtype) for dtype in (torch.float32, torch.float64)}
                mixed = torch._foreach_lerp(old, new, tuple(shares[leaf.dtype] for leaf in new))
                # The params of `init` count for nothing, whatever they are: infinity times 0 would be NaN.
                leaves = select(count == 1, new, mixed)
            else:
                leaves = torch._foreach_lerp(old, new, 1 - self.decay)
            return Average(tree.with_trainable_leaves(params, leaves), count)


def ema(decay: float, *, debias: bool = True) -> Ema:
    """An exponential moving average of params: a = decay a + (1 - decay) p.

    It is for evaluation, beside the training, which goes on with the params themselves. Params of 16 bits are averaged in
    float32, where steps of 1 - decay are not lost in rounding: cast the value with `tree.cast_to` to apply it to inputs of
    16 bits.

    In a loop over `epochs`, its value is a model that is evaluated, saved and applied as any other is:

        averaging = ema(0.9)
        average = averaging.init(state.model)
        for epoch in epochs(step, state, batches, count=100):
            average = averaging.update(average, epoch.state.model)
            test = evaluate(loss, average.value, test_batches)

    Args:
        decay: how much of the average is kept, in [0, 1).
        debias: whether the first params of `init` do not count: after t updates the params weigh as decay^(t - 1), ...,
            decay, 1, divided by the sum of these. Without it, the average begins at the params of `init`.

    Source:
        Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992; Kingma and Ba, Adam: a method for
        stochastic optimization, 2015, section 7.2.

    >>> from fundl import ema
    >>> averaging = ema(0.5)
    >>> average = averaging.init(torch.zeros(1))
    >>> for number in (3.0, 6.0):
    ...     average = averaging.update(average, torch.tensor([number]))
    >>> average.value
    tensor([5.])
    """
    return Ema(decay, debias)
