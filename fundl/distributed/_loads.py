"""How many bytes one process has in a step and sends, by what its units take: the most that is there at any time."""

from collections.abc import Sequence
from typing import Final

import attrs
import torch
from torch import Tensor

from fundl.collectives import BUCKET_BYTES, buckets
from fundl.distributed._units import Ran, nbytes_of, rows_of_one
from fundl.optim.chain import AnyTransform
from fundl.optim.transform import Stateless, Transform
from fundl.training._sums import early_buckets

LOSS: Final = 4
SPLIT_LOSS: Final = 8
"""How many times the bytes of the output are there while `cross_entropy` is found, or `split_cross_entropy`."""


@attrs.frozen
class Load:
    """The bytes of one process.

    Args:
        parameters: of its part of the model, buffers included.
        gradients: with respect to its parameters.
        moments: what the optimizer remembers of them.
        residuals: what forward keeps for backward.
        peak: the most that is there at any time of a step.
        sent: what it sends in a step.
    """

    parameters: int
    gradients: int
    moments: int
    residuals: int
    peak: int
    sent: int


# --- What is there at a time -------------------------------------------------------------------------------------------


def most_in_passes(ran: Ran, gradients: int, loss: int = LOSS) -> int:
    """The most that forward, a loss and backward have at a time, beside parameters and moments.

    Backward frees the residuals of a unit, from the last one on, as it makes its gradients. A loss takes so many times what
    its logits take.
    """
    most = ran.residuals + max(loss * ran.logits + ran.beside, ran.output + ran.cast)
    kept = ran.residuals + ran.output + ran.cast
    made = gradients - sum(unit.parameters for unit in ran.units)  # those of layers around the units
    for unit in reversed(ran.units):
        made += unit.gradients
        most = max(most, kept + made + unit.again + unit.work + unit.passed + max(unit.passed, unit.largest))
        kept -= unit.kept
        most = max(most, kept + made + unit.stacked)
    return max(most, kept + made + gradients) if ran.cast else most  # all that was made is cast back at once


def most_in_update(optimizer: AnyTransform, leaves: Sequence[Tensor], moments: int) -> int:
    """What an update of such leaves has, beside them and moments: gradients, what they become, and what is written anew."""
    anew = 0 if optimizer.writes_over else nbytes_of(leaves) + moments
    return nbytes_of(leaves) + in_full(leaves) + (copies_of(optimizer) - 1) * nbytes_of(widened(leaves)) + anew


def most_in_divided_update(optimizer: AnyTransform, leaves: Sequence[Tensor], moments: int, processes: int) -> int:
    """The same with `shard_moments`: first the sums are made, for rows that are filled up; then all gather what others made."""
    rows = [leaf for leaf in widened(leaves) if leaf.ndim]
    own = rows_of_one(rows, processes)
    filled = [one for one, leaf in zip(own, rows, strict=True) if leaf.shape[0] % processes]
    sums = nbytes_of(own) + processes * nbytes_of(filled) + _largest_bucket(rows)
    copied = [one for bucket in shared_buckets(own) for one in bucket if one.shape[0] > 1]  # single rows stay where they came
    gathered = processes * nbytes_of(own) + max(processes * nbytes_of(copied), _largest_bucket(own))
    return nbytes_of(leaves) + in_full(leaves) + max(sums, most_in_update(optimizer, own, moments) + gathered)


def in_full(leaves: Sequence[Tensor]) -> int:
    """What the gradients and params of 16 bits take in 32."""
    return 2 * sum(wide.nbytes for wide, leaf in zip(widened(leaves), leaves, strict=True) if wide.dtype != leaf.dtype)


def copies_of(optimizer: AnyTransform) -> int:
    """How many times the bytes of the gradients an update has at a time: once if one kernel makes it, as for Adam.

    A transform made of others has what one of them made, too; a formula without a kernel, up to three intermediate results.
    """
    if parts := _parts(optimizer):
        return 1 + max(map(_made, parts))
    return 1 if _has_kernel(optimizer) else 1 + _made(optimizer)


def _made(part: AnyTransform) -> int:
    if _parts(part):
        return copies_of(part)
    return 1 if isinstance(part, Stateless) or _has_kernel(part) else 3


def _parts(optimizer: AnyTransform) -> list[AnyTransform]:
    inner: object = getattr(optimizer, "transforms", getattr(optimizer, "transform", ()))
    return [part for part in (inner if isinstance(inner, tuple) else (inner,)) if isinstance(part, Transform)]


def _has_kernel(optimizer: AnyTransform) -> bool:
    return type(optimizer).move_over is not Transform.move_over


def most_in_sum(leaves: Sequence[Tensor]) -> int:
    """What a sum over processes has: the gradients, the sums, and a bucket on its way."""
    return 2 * nbytes_of(leaves) + _largest_bucket(leaves)


def most_in_early_sum(leaves: Sequence[Tensor]) -> int:
    """What a sum that goes on during backward has at its end: the sums, and a bucket that is copied for its way."""
    return nbytes_of(leaves) + max(nbytes_of([leaves[place] for place in places]) for places in early_buckets(leaves))


def shared_buckets(leaves: Sequence[Tensor]) -> list[list[Tensor]]:
    """The leaves that travel with others: they are copied."""
    return [[leaves[place] for place in places] for places in buckets(leaves, BUCKET_BYTES) if len(places) > 1]


def _largest_bucket(leaves: Sequence[Tensor]) -> int:
    return max(map(nbytes_of, shared_buckets(leaves)), default=0)


def widened(leaves: Sequence[Tensor]) -> list[Tensor]:
    """Leaves as optimizers compute with them: in 32 bits or more."""
    return [leaf.to(torch.promote_types(leaf.dtype, torch.float32)) for leaf in leaves]


# --- What is sent, along a ring ----------------------------------------------------------------------------------------


def sent_in_gather(whole: int, processes: int) -> int:
    """What each process sends where all gather the parts of so many bytes, or add them up and keep a part each."""
    return whole * (processes - 1) // processes


def sent_in_sum(nbytes: int, processes: int) -> int:
    """What each process sends where all add up so many bytes, and get the sums: each keeps a part, and all gather these."""
    return 2 * sent_in_gather(nbytes, processes)
