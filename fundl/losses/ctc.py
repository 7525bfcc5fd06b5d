"""Connectionist temporal classification: the loss of a sequence of labels of which nobody knows where they are."""

import math
from typing import Final, TypeAlias

import torch
from torch import Tensor

from fundl._common.half import narrowed
from fundl._common.modes import is_readable
from fundl._common.suggestions import with_explanations
from fundl.losses.classification import require_range
from fundl.losses.reduction import Kind, Reduction, ValueAndGrad, computable, divisor, of_kind, weighted_mean
from fundl.tree import describe
from fundl.weights import Weight

Labels: TypeAlias = Tensor | tuple[Tensor, Tensor]
"""The labels of sequences, or these and how many frames each sequence has."""

_NEVER: Final = -1e30
"""The logarithm of a probability 0, as a number: of infinities, differences are no numbers."""


def _labels(target: Labels) -> Tensor:
    return target[0] if isinstance(target, tuple) else target


def _counts(_prediction: Tensor, target: Labels, **_options: object) -> Tensor:
    """How many labels a sequence has; one without any counts for 1."""
    return (_labels(target) >= 0).sum(1).clamp(min=1)


def _weight(prediction: Tensor, target: Labels, *, reduction: Reduction = "mean", **_options: object) -> Weight:
    divided_by = divisor(prediction.new_empty(len(prediction)), reduction)
    return _counts(prediction, target).sum() if reduction == "mean" else divided_by


def _harmless(prediction: Tensor, target: Labels, kept: Tensor, **_options: object) -> tuple[Tensor, Labels]:
    """Sequences without labels, of frames that say nothing."""
    labels = torch.where(kept.unsqueeze(1), _labels(target), -1)
    x = torch.where(kept.reshape(-1, 1, 1), prediction, 0)
    if not isinstance(target, tuple):
        return x, labels
    return x, (labels, torch.where(kept, target[1], prediction.shape[1]))


SEQUENCES: Final = Kind(_weight, _counts, _harmless)
"""Losses of whole sequences."""


@of_kind(SEQUENCES)
@with_explanations
def ctc(
    prediction: Tensor, target: Labels, *, blank: int = 0, zero_infinity: bool = False, reduction: Reduction = "mean"
) -> ValueAndGrad:
    """Connectionist temporal classification, from logits: how unlikely labels are, wherever they are in the frames.

    Each frame has a class or is blank. A sequence of frames reads as the labels that are left once repetitions are taken as
    one, and blanks are dropped. With y = softmax(x), and l the labels with a blank before, between and behind them (2 S + 1),

        a_t(s) = y_t(l_s) (a_(t-1)(s) + a_(t-1)(s-1) [+ a_(t-1)(s-2) if l_s is no blank and not l_(s-2)])
        b_t(s) = the same, from the last frame backward;    P = a_T(2 S + 1) + a_T(2 S),    of each sequence -log(P)

    Its gradient is, before the reduction, y_t(c) - 1/P sum over s with l_s = c of a_t(s) b_t(s) / y_t(l_s): how likely a class
    is in a frame, minus how likely it is there if the sequence reads as it should. All of it is computed in logarithms.

    "mean" divides by the number of labels (of a sequence without labels, by 1), as the mean of a cross-entropy is over tokens;
    "batch_mean" by the number of sequences. torch divides each loss by its own labels, and takes the mean of that.

    Args:
        prediction: x, logits of classes, one of which is the blank. (Logarithms of probabilities are logits, too.)
        target: labels, integers, each sequence's first, and then -1, or any number below 0, to the end; or a pair of these and
            of how many of the frames each sequence has, integers of shape (B,), by default T. Other frames get no gradient.
        blank: which class says that there is no label.
        zero_infinity: whether sequences that cannot be, as their labels need more frames than there are, cost 0 in the place of
            inf. Their gradient is 0 in any case.
        reduction: "mean", "sum" or "batch_mean".

    Shape:
        (B, T, C) and (B, S), or ((B, S), (B,)), to ()

    Raises:
        ValueError: the shapes do not fit, blank is no class, or there is nothing to average; on CPUs in eager mode also: a
            label is the blank, or a sequence has more frames than there are.
        TypeError: the prediction is not floating-point, or labels are not integers.
        IndexError: a label is no class (checked on CPUs in eager mode).

    Source:
        Graves, Fernandez, Gomez and Schmidhuber, Connectionist temporal classification: labelling unsegmented sequence data
        with recurrent neural networks, 2006.

    >>> from fundl import ctc
    >>> ctc(torch.zeros(1, 2, 3), torch.tensor([[1]]))  # (1, 1), (1, 0) and (0, 1), of 9 that are as likely
    (tensor(1.0986), tensor([[[ 0.0000, -0.3333,  0.3333],
             [ 0.0000, -0.3333,  0.3333]]]))
    """
    if type(zero_infinity) is not bool:
        raise TypeError(f"zero_infinity must be True or False, not {zero_infinity!r}")
    labels, frames = _checked(prediction, target, blank)
    x = computable(prediction)
    paths = _Paths(labels.to(torch.int64), frames, blank)

    def formula(scale: Tensor) -> ValueAndGrad:
        log_y = torch.log_softmax(x, 2)
        total, shares = paths.likelihood(log_y)
        is_possible = total > _NEVER / 2
        losses = torch.where(is_possible, -total, 0.0 if zero_infinity else math.inf)
        losses = torch.where(total.isnan(), total, losses)
        counts = (is_possible.unsqueeze(1) & paths.is_frame(x.shape[1])).unsqueeze(2)
        grad = torch.where(counts, log_y.exp() - shares, 0.0) * _for_each(scale)
        return torch.where(scale == 0, 0.0, losses * scale), grad

    value, grad = weighted_mean(formula, _counts(prediction, target), x.new_empty(len(x)), reduction)
    return value, narrowed(grad, prediction)


def _for_each(scale: Tensor) -> Tensor:
    return scale.reshape(-1, 1, 1) if scale.ndim else scale


class _Paths:
    """The ways to read labels in frames, of all sequences of a batch at once.

    A state is a place among the labels and the blanks between them. Logarithms of states, (B, 2 S + 1), have two columns more
    in front or behind, of places that never are, so that moving on by one and by two is a view.
    """

    def __init__(self, labels: Tensor, frames: Tensor | None, blank: int) -> None:
        batch, count = labels.shape
        self.frames = frames
        self.ends = 2 * (labels >= 0).sum(1, keepdim=True)  # (B, 1), the blank behind the last label
        blanks = labels.new_full((batch, count + 1), blank)
        between = torch.stack((blanks[:, :-1], torch.where(labels >= 0, labels, blank)), 2).flatten(1)
        self.classes = torch.cat((between, blanks[:, :1]), 1)  # (B, 2 S + 1)
        before = torch.cat((blanks[:, :1], blanks[:, :1], self.classes[:, :-2]), 1)[:, : 2 * count + 1]
        self.may_skip = (self.classes != blank) & (self.classes != before)  # from two places before, to here

    def likelihood(self, log_y: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithm of how likely the labels are, (B,), and how likely each class then is in each frame, (B, T, C)."""
        count = log_y.shape[1]
        classes = self.classes.unsqueeze(1).expand(-1, count, -1)
        emitted = log_y.gather(2, classes).clamp(min=_NEVER).unbind(1)
        never = log_y.new_full((len(log_y), 2), _NEVER)
        skip, inside = torch.where(self.may_skip, 0.0, _NEVER).to(log_y.dtype), self.is_frame(count).unsqueeze(2).unbind(1)
        first = torch.full_like(skip, _NEVER).index_fill(1, self.ends.new_zeros(1), 0.0)
        state, forward = first, list[Tensor]()
        for e, is_in in zip(emitted, inside, strict=True):
            wide = torch.cat((never, state), 1)
            moved = torch.logaddexp(torch.logaddexp(state, wide[:, 1:-1]), wide[:, :-2] + skip) + e
            state = torch.where(is_in, moved, state)
            forward.append(state)
        places = torch.arange(skip.shape[1], device=skip.device)
        is_end = (places == self.ends) | (places == self.ends - 1)
        last = torch.where(is_end, 0.0, _NEVER).to(log_y.dtype)
        total = torch.logsumexp(torch.where(is_end, state, _NEVER), 1)
        state, backward = last, list[Tensor]()
        for e, is_in in zip(reversed(emitted), reversed(inside), strict=True):
            backward.append(state)
            told = state + e
            wide, skipped = torch.cat((told, never), 1), torch.cat((told + skip, never), 1)
            moved = torch.logaddexp(torch.logaddexp(told, wide[:, 1:-1]), skipped[:, 2:])
            state = torch.where(is_in, moved, state)
        if not count:
            return total, torch.zeros_like(log_y)
        shares = torch.exp(torch.stack(forward, 1) + torch.stack(backward[::-1], 1) - total.reshape(-1, 1, 1))
        return total, torch.zeros_like(log_y).scatter_add(2, classes, shares)

    def is_frame(self, count: int) -> Tensor:
        """Which frames the sequences have, (B, T)."""
        places = torch.arange(count, device=self.classes.device)
        if self.frames is None:
            return (places >= 0).expand(len(self.classes), count)
        return places < self.frames.unsqueeze(1)


def _checked(prediction: Tensor, target: Labels, blank: int) -> tuple[Tensor, Tensor | None]:
    """The labels, and how many frames there are, if that is told."""
    labels, frames = _parts(target)
    for name, part in (("labels", labels), ("numbers of frames", frames)):
        if part is not None and (part.is_floating_point() or part.is_complex() or part.dtype == torch.bool):
            raise TypeError(f"{name} must be integers, not {part.dtype}")
    if prediction.ndim != 3 or labels.ndim != 2 or len(labels) != len(prediction):
        raise ValueError(
            "ctc takes logits (batch, frames, classes) and labels (batch, labels), not"
            f" {tuple(prediction.shape)} and {tuple(labels.shape)}"
        )
    count, classes = prediction.shape[1:]
    if type(blank) is not int or not 0 <= blank < classes:
        raise ValueError(f"blank={blank!r} must be one of the {classes} classes, 0 to {classes - 1}")
    if frames is not None and frames.shape != labels.shape[:1]:
        raise ValueError(f"there must be one number of frames for each of {len(labels)} sequences, not {tuple(frames.shape)}")
    if is_readable(labels):
        require_range(labels.clamp(min=0), classes)
        if (labels == blank).any():
            raise ValueError(
                f"a label is {blank}, which is the blank: labels are the other classes, and below 0 where there is none"
            )
        if ((labels[:, 1:] >= 0) & (labels[:, :-1] < 0)).any():
            raise ValueError("each sequence's labels come first, and numbers below 0, where there is none, behind them")
    if frames is not None and is_readable(frames) and ((frames < 0) | (frames > count)).any():
        raise ValueError(f"a sequence can have 0 to {count} of the frames, but they go to {int(frames.max())}")
    return labels, frames


def _parts(target: Labels) -> tuple[Tensor, Tensor | None]:
    given: object = target
    match given:
        case Tensor():
            return given, None
        case (Tensor() as labels, Tensor() as frames):
            return labels, frames
        case _:
            raise TypeError(f"the target of ctc is labels, a tensor, or a pair (labels, frames), not {describe(given)}")
