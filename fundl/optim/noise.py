"""Noise on gradients, which lessens from step to step."""

from typing import final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import random
from fundl._common.keys import require_key
from fundl._common.listed import Listed
from fundl._common.modes import is_untraced
from fundl._common.numbers import non_negative
from fundl._common.suggestions import with_suggestions
from fundl.optim.flat import Number, Tensors, new_count, times
from fundl.optim.transform import Transform
from fundl.random import Key
from fundl.tree import Record


@final
@attrs.frozen(eq=False)
class NoiseState(Record, metaclass=Listed):
    """The state of `add_noise`.

    Args:
        key: from which the noise of all steps is drawn.
        count: the steps done, int64 without axes.
    """

    key: Key
    count: Tensor


@final
@attrs.frozen
class _AddNoise(Transform[NoiseState]):
    writes_over = True
    numbers = ("variance", "decay")

    words: tuple[int, int]
    variance: Number = attrs.field(validator=non_negative)
    decay: Number = attrs.field(validator=non_negative)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> NoiseState:
        return NoiseState(torch.tensor(self.words, device=leaves[0].device), new_count(leaves))

    @override
    def change(self, grads: Tensors, state: NoiseState, params: Tensors) -> tuple[Tensors, NoiseState]:
        return self._noisy(grads, state), NoiseState(state.key.clone(), state.count + 1)

    @override
    def change_over(self, grads: Tensors, state: NoiseState, params: Tensors) -> tuple[Tensors, NoiseState]:
        updates = self._noisy(grads, state)
        state.count.add_(1)
        return updates, state

    def _noisy(self, grads: Tensors, state: NoiseState) -> Tensors:
        if type(state) is not NoiseState:
            raise TypeError("the state is of another transform")
        key = torch.stack((state.key[0], state.key[1]))  # of two words, also where the trace leaves sizes open
        wide = torch.float64 if torch.float64 in [grad.dtype for grad in grads] else torch.float32
        sizes = [grad.numel() for grad in grads]
        drawn = random.normal(random.fold_in(key, state.count), (sum(sizes),), dtype=wide).split_with_sizes(sizes)
        numbers = [own.reshape(grad.shape).to(grad.dtype) for own, grad in zip(drawn, grads, strict=True)]
        steps = (state.count + 1).to(torch.float64)
        return torch._foreach_add(grads, times(tuple(numbers), (self.variance * torch.pow(steps, -self.decay)).sqrt()))


@with_suggestions
def add_noise(key: Key, *, variance: float = 0.01, decay: float = 0.55) -> Transform[NoiseState]:
    """Add normal noise that lessens: u = g + sqrt(variance / (1 + t)^decay) n at step t = 0, 1, ..., with n standard normal.

    The noise is a function of the key and the step, which are in the state: a run that is taken up goes on with the same, eager
    or compiled. In an ensemble all runs have the same noise, which each of them would have alone.

    Args:
        key: from which it is drawn, one with values.
        variance: of the noise at the first step, of 0 or more.
        decay: how quickly the variance falls, of 0 or more; 0 for not at all.

    Source:
        Neelakantan et al., Adding gradient noise improves learning for very deep networks, 2015.

    >>> import torch
    >>> from fundl import add_noise, key
    >>> noise, params = add_noise(key(0)), torch.zeros(3)
    >>> noise.update(torch.ones(3), noise.init(params), params)[0]
    tensor([1.0586, 0.9968, 1.0666])
    """
    require_key(key)
    if key.shape != (2,):
        raise ValueError("the key is of a part of what is drawn: noise is drawn from the key that it was made of")
    if not is_untraced(key) or key.is_meta:
        raise ValueError(
            "the key has no values here: make the optimizer outside of what is compiled or mapped, add_noise(key(0))"
        )
    first, second = key.tolist()
    return _AddNoise((first, second), variance, decay)
