"""Losses of embeddings: vectors that are to be close to each other, or far apart."""

import torch
from torch import Tensor

from fundl._common.numbers import finite
from fundl._common.suggestions import with_explanations
from fundl.losses._several import OF_VECTORS, Three, Two, narrowed_all, parts_of, rows_of, signs
from fundl.losses.reduction import Reduction, of_kind, reduced


@of_kind(OF_VECTORS)
@with_explanations
def contrastive(prediction: Two, target: Tensor, *, margin: float = 1.0, reduction: Reduction = "mean") -> tuple[Tensor, Two]:
    """The contrastive loss of pairs: those that belong together are to be close, others at least a margin apart.

        u = x1 - x2,    d = |u|,    of each pair d^2 / 2 for yes, and max(0, m - d)^2 / 2 for no

    Before the reduction, grad_1 = u for yes, and -max(0, m - d) u / d for no, 0 where d = 0; and grad_2 = -grad_1.

    Args:
        prediction: the pair (x1, x2), as a model ``shared(encoder)`` gives it for two inputs.
        target: labels: 1, or True, for pairs that belong together; -1, or 0, or False, for others.
        margin: m, how far apart is far enough.
        reduction: see `mse`, whose elements are pairs here.

    Shape:
        (..., F) twice, and (...), to ()

    Raises:
        TypeError: the prediction is not a pair of floating-point tensors.
        ValueError: the shapes do not fit, or there is nothing to average; on CPUs in eager mode also: a label is none of
            -1, 0, 1.

    Source:
        Hadsell, Chopra and LeCun, Dimensionality reduction by learning an invariant mapping, 2006.

    >>> from fundl import contrastive
    >>> x1, x2 = torch.tensor([[0.0, 3.0], [0.0, 0.5]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    >>> value, (grad_1, grad_2) = contrastive((x1, x2), torch.tensor([1, -1]))
    >>> value, grad_1
    (tensor(1.0625), tensor([[ 0.0000,  1.0000],
            [-0.0000, -0.2500]]))
    """
    finite.require("margin", margin)
    first, second = parts_of("contrastive", "(x1, x2)", prediction, 2)
    like = rows_of(first)
    yes = signs(target, like) > 0

    def formula(scale: Tensor) -> tuple[Tensor, Two]:
        difference = first - second
        distance = torch.linalg.vector_norm(difference, dim=-1)
        short = (margin - distance).clamp(min=0)
        losses = torch.where(yes, distance, short).square() * (0.5 * scale)
        slope = torch.where(yes, 1.0, _over(-short, distance)) * scale
        slope = slope.unsqueeze(-1)
        grad = torch.where(slope == 0, 0.0, difference * slope)
        return losses, (grad, -grad)

    value, grads = reduced(formula, like, reduction)
    return value, narrowed_all(grads, prediction)


@of_kind(OF_VECTORS)
@with_explanations
def cosine_embedding(
    prediction: Two, target: Tensor, *, margin: float = 0.0, reduction: Reduction = "mean"
) -> tuple[Tensor, Two]:
    """The cosine of pairs, which is to be 1 for those that belong together, and at most a margin for others.

        s_i = |x_i|^2 + 1e-12,    c = x1 . x2 / sqrt(s1 s2),    of each pair 1 - c for yes, and max(0, c - m) for no

    Before the reduction, with k = -1 for yes, 1 for no where c > m, else 0:

        grad_1 = k (x2 / sqrt(s1 s2) - c x1 / s1),    grad_2 = k (x1 / sqrt(s1 s2) - c x2 / s2)

    Args:
        prediction, target, reduction: see `contrastive`, which also has the shapes and the errors.
        margin: m, a cosine, from -1 to 1.

    >>> from fundl import cosine_embedding
    >>> pair = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    >>> cosine_embedding(pair, torch.tensor([1, -1]))[0]
    tensor(1.)
    """
    finite.require("margin", margin)
    if not -1 <= margin <= 1:
        raise ValueError(f"margin, a cosine, must be from -1 to 1, not {margin}")
    first, second = parts_of("cosine_embedding", "(x1, x2)", prediction, 2)
    like = rows_of(first)
    yes = signs(target, like) > 0

    def formula(scale: Tensor) -> tuple[Tensor, Two]:
        s1, s2 = first.square().sum(-1) + 1e-12, second.square().sum(-1) + 1e-12
        inverse = torch.rsqrt(s1) * torch.rsqrt(s2)
        cosine = (first * second).sum(-1) * inverse
        losses = torch.where(yes, 1 - cosine, (cosine - margin).clamp(min=0)) * scale
        slope = torch.where(yes, -1.0, (cosine > margin).to(cosine.dtype)) * scale
        across = (slope * inverse).unsqueeze(-1)
        own = slope * cosine
        return losses, (
            across * second - (own / s1).unsqueeze(-1) * first,
            across * first - (own / s2).unsqueeze(-1) * second,
        )

    value, grads = reduced(formula, like, reduction)
    return value, narrowed_all(grads, prediction)


@of_kind(OF_VECTORS)
@with_explanations
def triplet(
    prediction: Three,
    target: object = None,  # noqa: ARG001  # every loss is given one
    *,
    margin: float = 1.0,
    swap: bool = False,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Three]:
    """The triplet loss: an anchor is to be closer to what belongs to it than to what does not, by a margin.

        p = |a - b|,    n = |a - c|,    of each triplet r = max(0, p - n + m)

    Before the reduction, where r > 0, and with u / |u| = 0 for u = 0,

        grad_a = (a - b) / p - (a - c) / n,    grad_b = -(a - b) / p,    grad_c = (a - c) / n

    Args:
        prediction: the triplet (a, b, c): the embeddings of an anchor, of a positive and of a negative.
        target: is not looked at: the triplet says what belongs together. It may be whatever the batches have.
        margin: m.
        swap: whether n is |b - c| where that is smaller: its gradient goes to b and c then.
        reduction: see `mse`, whose elements are triplets here.

    Shape:
        (..., F) three times, to ()

    Raises:
        TypeError: the prediction is not a tuple of three floating-point tensors.
        ValueError: their shapes differ, or there is nothing to average.

    Source:
        Schroff, Kalenichenko and Philbin, FaceNet: a unified embedding for face recognition and clustering, 2015; the swap is
        that of Balntas, Riba, Ponsa and Mikolajczyk, Learning local feature descriptors with triplets and shallow convolutional
        neural networks, 2016.

    >>> from fundl import triplet
    >>> anchor, positive, negative = torch.tensor([[0.0]]), torch.tensor([[2.0]]), torch.tensor([[1.5]])
    >>> triplet((anchor, positive, negative), None)
    (tensor(1.5000), (tensor([[0.]]), tensor([[1.]]), tensor([[-1.]])))
    """
    finite.require("margin", margin)
    if type(swap) is not bool:
        raise TypeError(f"swap must be True or False, not {swap!r}")
    a, b, c = parts_of("triplet", "(anchor, positive, negative)", prediction, 3)

    def formula(scale: Tensor) -> tuple[Tensor, Three]:
        near, to_near = _direction(a - b)
        far, of_anchor = _direction(a - c)
        of_positive = torch.zeros_like(of_anchor)
        if swap:
            other, to_other = _direction(b - c)
            is_nearer = (other < far).unsqueeze(-1)
            far = torch.minimum(far, other)
            of_anchor, of_positive = torch.where(is_nearer, 0.0, of_anchor), torch.where(is_nearer, to_other, 0.0)
        short = near - far + margin
        counts = ((short > 0) * scale).unsqueeze(-1)
        grads = (to_near - of_anchor) * counts, (-to_near - of_positive) * counts, (of_anchor + of_positive) * counts
        return short.clamp(min=0) * scale, grads

    value, grads = reduced(formula, rows_of(a), reduction)
    return value, narrowed_all(grads, prediction)


def _direction(u: Tensor) -> tuple[Tensor, Tensor]:
    """The lengths of vectors, and u / |u|; 0 for those of length 0."""
    length = torch.linalg.vector_norm(u, dim=-1)
    return length, _over(u, length.unsqueeze(-1))


def _over(x: Tensor, length: Tensor) -> Tensor:
    return torch.where(length == 0, 0.0, x / torch.where(length == 0, 1.0, length))
