"""Classes and places that are drawn from a key, by their logits or their probabilities."""

import math

import torch
from torch import Tensor

from fundl._common import draws
from fundl._common.arguments import said
from fundl._common.keys import require_key_and_shape
from fundl._common.looping import is_exported
from fundl._common.modes import is_readable
from fundl.random._integers import permutation, randint
from fundl.random._keys import Key
from fundl.random._requirements import require_floating
from fundl.random._uniforms import uniform


def categorical(key: Key, logits: Tensor, *, axis: int = -1, shape: tuple[int, ...] = ()) -> Tensor:
    """Random classes, in int64: class i with the probability exp(logits_i) / (sum over j of exp(logits_j)).

    It is the place of the greatest of logits_i + g_i, where all g_i are Gumbel numbers, in float64; so one draw for each class.
    A class with a logit of -inf is never drawn.

    Args:
        key: a key that nothing else was drawn from. That of a part is for rows along the first axis of the result.
        logits: of any floating-point dtype, with the classes along an axis, and a distribution for each place in the others.
        axis: that of the classes.
        shape: how many times to draw from each distribution: the axes of the result that come before those of the logits.

    Returns:
        Of the shape (*shape, *that of the logits without the axis).

    Raises:
        ValueError: there is no class, or no such axis; or the greatest logit of a distribution is infinite or not a number.
            Where numbers cannot be looked at, as in compiled code and on a GPU, -1 is drawn from such a distribution.
        TypeError: the logits are not a tensor of floating-point numbers.

    Source: Gumbel, "Statistical theory of extreme values and some practical applications", 1954.

    >>> from fundl import key, random
    >>> import torch
    >>> logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, -torch.inf, 0.0]])
    >>> random.categorical(key(0), logits, shape=(4,)).shape
    torch.Size([4, 2])
    """
    require_key_and_shape(key, shape)
    require_floating("logits", logits)
    if type(axis) is not int:
        raise TypeError(f"axis must be an int, not {said(axis)}")
    if not -logits.ndim <= axis < logits.ndim:
        raise ValueError(f"axis={axis} is none of the logits, whose shape is {tuple(logits.shape)}")
    if not logits.shape[axis]:
        raise ValueError(f"there is no class along axis {axis} of logits of shape {tuple(logits.shape)}")
    scores = logits.detach().to(key.device).movedim(axis, -1)
    is_possible = scores.amax(-1).isfinite()
    if is_readable(is_possible) and not is_possible.all():
        raise ValueError(
            "the greatest logit of each distribution must be finite, and not all are: some are NaN, inf or all -inf"
        )
    noise = draws.gumbel(key, (*shape, *scores.shape), torch.float64, scale=1.0, location=0.0)
    return torch.where(is_possible, (scores + noise).argmax(-1), -1)


def choice(
    key: Key, count: int, shape: tuple[int, ...], *, replace: bool = True, probabilities: Tensor | None = None
) -> Tensor:
    """Random integers from 0 to count - 1, in int64: ``rows[choice(key, len(rows), (5,))]`` are five rows of a tensor.

    With replacement each is drawn by itself, so that one may come again; without, all are different, in the order of drawing:
    the next one is drawn from those that are left.

    Args:
        key: as in `bits`. Without replacement, that of a part draws what the key of the whole does.
        count: how many integers to choose from.
        shape: of the result.
        replace: whether the same integer may come again.
        probabilities: (count,), of 0 or more, of each integer; what they are divided by their sum. None, the default, for all
            alike. What is 0 is never chosen.

    Raises:
        ValueError: there are no integers, or too few without replacement; probabilities are negative, infinite or NaN, or too
            few are above 0. Where numbers cannot be looked at, as in compiled code and on a GPU, -1 comes in the place of what
            cannot be chosen.

    Source: Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006, for those with probabilities without
        replacement: the least of exponential numbers that are divided by the probabilities come first.

    >>> from fundl import key, random
    >>> random.choice(key(0), 10, (4,), replace=False)
    tensor([4, 5, 0, 7])
    """
    require_key_and_shape(key, shape)
    if type(count) is not int:
        raise TypeError(f"count, how many integers to choose from, must be an int, not {said(count)}")
    if type(replace) is not bool:
        raise TypeError(f"replace must be True or False, not {said(replace)}")
    wanted = math.prod(shape)
    if count < (min(wanted, 1) if replace else wanted):
        how = "" if replace else " without replacement"
        raise ValueError(f"{wanted} integers cannot be chosen from {count}{how}")
    if probabilities is None:
        if replace:
            return randint(key, shape, low=0, high=max(count, 1))
        return permutation(key, count)[:wanted].reshape(shape)
    weights = _weights(probabilities, count, 1 if replace else wanted).to(key.device)
    if replace:
        return _with_replacement(key, weights, shape)
    waiting = draws.exponential(draws.words_of(key), (count,), torch.float64, scale=1.0) / weights
    order = waiting.argsort(stable=True)[:wanted]
    return torch.where(waiting[order].isfinite(), order, -1).reshape(shape)


def _with_replacement(key: Key, weights: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first place each whose weight, added to those of all places before it, is above the number drawn."""
    sums = weights.cumsum(0)
    numbers = uniform(key, shape, dtype=torch.float64) * sums[-1:].squeeze(0)
    searched = not is_exported()  # for programs that have no search
    places = torch.searchsorted(sums, numbers, right=True) if searched else (sums <= numbers.unsqueeze(-1)).sum(-1)
    return torch.where(numbers.isfinite() & (sums[-1] > 0), places, -1)


def _weights(probabilities: Tensor, count: int, wanted: int) -> Tensor:
    """Probabilities in float64; raises unless so many can be chosen by them."""
    require_floating("probabilities", probabilities)
    if probabilities.shape != (count,):
        raise ValueError(f"probabilities must be of shape ({count},), one for each integer, not {tuple(probabilities.shape)}")
    weights = probabilities.detach().to(torch.float64)
    if is_readable(weights):
        if not ((weights >= 0) & weights.isfinite()).all():
            raise ValueError("probabilities must be finite numbers of 0 or more, and not all of these are")
        if (possible := int((weights > 0).sum())) < wanted:
            raise ValueError(f"{wanted} integers cannot be chosen, for {possible} of the probabilities are above 0")
    return weights
