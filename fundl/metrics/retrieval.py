"""Metrics of what is found: how much of what was looked for, and how much of what was found is right."""

from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from fundl._common.class_axis import classes_along
from fundl._common.suggestions import with_explanations
from fundl.metrics.decisions import require_labels, require_tensors, require_threshold, true_classes
from fundl.metrics.metric import Gathering, gathered_as
from fundl.weights import weighed_by

Average: TypeAlias = Literal["macro", "micro"]


# --- Top k ----------------------------------------------------------------------------------------------------------------


def _decisions(prediction: Tensor, _target: Tensor, *, axis: int = 1, **_options: object) -> int:
    return prediction.numel() // prediction.shape[axis]


@weighed_by(_decisions)
@with_explanations
def top_k_accuracy(prediction: Tensor, target: Tensor, *, k: int = 5, axis: int = 1) -> Tensor:
    """The fraction of samples whose true class is among the k of the highest scores.

    Of scores that are equal, those of lower classes are taken to be higher, so that k = 1 is `accuracy`. A true class whose
    score is NaN is not found.

    Args:
        prediction: scores of the classes.
        target: class indices, or scores such as one-hot ones, whose highest is the class.
        k: at least 1, and at most the number of classes.
        axis: that of the classes, in the prediction and in a target of scores: -1 for sequences (B, T, C).

    Shape:
        (B, C, ...), and (B, ...) or (B, C, ...), to ()

    Raises: as `accuracy`, and ValueError: k is out of its range.

    >>> from fundl import top_k_accuracy
    >>> top_k_accuracy(torch.tensor([[0.1, 0.5, 0.4], [0.2, 0.3, 0.5]]), torch.tensor([2, 0]), k=2)
    tensor(0.5000)
    """
    scores, true = _scores(prediction, target, axis)
    if type(k) is not int or not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k must be an int from 1 to the number of classes, {scores.shape[1]}, not {k!r}")
    own = scores.gather(1, true.unsqueeze(1))
    classes = torch.arange(scores.shape[1], device=scores.device).reshape(-1, *[1] * (scores.ndim - 2))
    before = (scores > own) | ((scores == own) & (classes < true.unsqueeze(1)))
    right = (before.sum(1) < k) & ~own.squeeze(1).isnan()
    return right.to(torch.float32).mean()


# --- Precision, recall and their mean -------------------------------------------------------------------------------------


def _counts(
    prediction: Tensor,
    target: Tensor,
    *,
    threshold: float | None = None,
    axis: int = 1,
    average: Average = "macro",  # noqa: ARG001  # for the value alone
    of: int | None = None,
) -> Tensor:
    """Of each class, or of yes: how many are found rightly, found, and there."""
    if threshold is not None:
        require_tensors(prediction, target)
        require_threshold(threshold)
        require_labels(target, prediction)
        found, true = prediction > threshold, target > 0
        return torch.stack([part.sum() for part in (found & true, found, true)])
    scores, true = _scores(prediction, target, axis)
    count = scores.shape[1]
    if of is not None and not 0 <= of < count:
        raise ValueError(f"of={of!r} is to be a class, from 0 to {count - 1}")
    found, true = scores.argmax(1).flatten(), true.flatten()
    counted = [torch.bincount(part, minlength=count) for part in (true[found == true], found, true)]
    return torch.stack(counted).flatten()


def _ratio_of(part: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:  # type: ignore[explicit-any]  # with the options of the counts
    """From counts to a metric that is a ratio of some of them."""

    def value(
        counts: Tensor,
        *,
        threshold: float | None = None,  # noqa: ARG001  # the counts know it
        axis: int = 1,  # noqa: ARG001  # likewise
        average: Average = "macro",
        of: int | None = None,
    ) -> Tensor:
        if average not in {"macro", "micro"}:
            raise ValueError(f'average must be "macro" or "micro", not {average!r}; of=3 is that of class 3')
        right, found, true = counts.double().reshape(3, -1)
        above, below = part(right, found, true)
        if of is not None:
            above, below, found, true = (each[of : of + 1] for each in (above, below, found, true))
        elif average == "micro":
            above, below = above.sum(0, keepdim=True), below.sum(0, keepdim=True)
            found, true = found.sum(0, keepdim=True), true.sum(0, keepdim=True)
        occurs = found + true > 0
        ratios = torch.where(below == 0, 0.0, above / torch.where(below == 0, 1.0, below))
        mean: Tensor = torch.where(occurs, ratios, 0.0).sum() / occurs.sum()
        return mean

    return value


_precision: Final = _ratio_of(lambda right, found, _true: (right, found))
_recall: Final = _ratio_of(lambda right, _found, true: (right, true))
_f1: Final = _ratio_of(lambda right, found, true: (2 * right, found + true))


@gathered_as(Gathering(_counts, _precision, in_rows=False))
@with_explanations
def precision(
    prediction: Tensor,
    target: Tensor,
    *,
    threshold: float | None = None,
    average: Average = "macro",
    of: int | None = None,
    axis: int = 1,
) -> Tensor:
    """How much of what is found is right: of a class, found rightly / found.

    Without a threshold, the class of the highest score is found; the precision is that of all classes together, as `average`
    says, or of one. With a threshold, each element is a decision of its own, and it is the precision of yes. What is 0 / 0, as
    of a class that is never found, is 0. In `evaluate` and `fit` it is that of all data: counts are added up.

    Args:
        prediction: logits, log-probabilities or probabilities.
        target: class indices, or scores such as one-hot ones; with a threshold, labels, which mean yes above 0.
        threshold: above which a score means yes: 0.0 for logits, 0.5 for probabilities.
        average: "macro" is the mean over the classes that occur, in the predictions or in the targets; "micro" divides the
            counts of all classes together, which is the accuracy.
        of: one class, in the place of an average.
        axis: that of the classes, in the prediction and in a target of scores: -1 for sequences (B, T, C).

    Shape:
        as of `accuracy`

    Raises: as `accuracy`, and ValueError: an option is out of its range.

    >>> from fundl import precision
    >>> scores, labels = torch.tensor([0.9, 0.2, 0.8, 0.7]), torch.tensor([1, 1, 0, 1])
    >>> precision(scores, labels, threshold=0.5)
    tensor(0.6667)
    """
    counts = _counts(prediction, target, threshold=threshold, axis=axis, of=of)
    return _precision(counts, average=average, of=of).float()


@gathered_as(Gathering(_counts, _recall, in_rows=False))
@with_explanations
def recall(
    prediction: Tensor,
    target: Tensor,
    *,
    threshold: float | None = None,
    average: Average = "macro",
    of: int | None = None,
    axis: int = 1,
) -> Tensor:
    """How much of what is there is found: of a class, found rightly / there.

    Args:
        prediction, target, threshold, average, of, axis: see `precision`, which also has the shapes and the errors.

    >>> from fundl import recall
    >>> recall(torch.tensor([0.9, 0.2, 0.8, 0.7]), torch.tensor([1, 1, 0, 0]), threshold=0.5)
    tensor(0.5000)
    """
    counts = _counts(prediction, target, threshold=threshold, axis=axis, of=of)
    return _recall(counts, average=average, of=of).float()


@gathered_as(Gathering(_counts, _f1, in_rows=False))
@with_explanations
def f1(
    prediction: Tensor,
    target: Tensor,
    *,
    threshold: float | None = None,
    average: Average = "macro",
    of: int | None = None,
    axis: int = 1,
) -> Tensor:
    """The harmonic mean of precision and recall: of a class, 2 found rightly / (found + there).

    Args:
        prediction, target, threshold, average, of, axis: see `precision`, which also has the shapes and the errors.

    Source:
        van Rijsbergen, Information retrieval, 1979.

    >>> from functools import partial
    >>> from fundl import Identity, cross_entropy, evaluate, f1
    >>> scores, labels = torch.eye(3)[torch.tensor([0, 1, 1, 2])], torch.tensor([0, 1, 2, 2])
    >>> batches = [(scores[:1], labels[:1]), (scores[1:], labels[1:])]
    >>> metrics = {"F1": f1, "F1 of class 2": partial(f1, of=2)}
    >>> found = evaluate(cross_entropy, Identity(), batches, metrics=metrics).metrics
    >>> f"{found['F1']:.4f} {found['F1 of class 2']:.4f}"
    '0.7778 0.6667'
    """
    counts = _counts(prediction, target, threshold=threshold, axis=axis, of=of)
    return _f1(counts, average=average, of=of).float()


# --- Ranks -----------------------------------------------------------------------------------------------------------------


def _scored(prediction: Tensor, target: Tensor) -> Tensor:
    """The score and the label of each."""
    require_tensors(prediction, target)
    if not prediction.is_floating_point():
        raise TypeError(f"the prediction must hold scores, floating-point, not {prediction.dtype}")
    require_labels(target, prediction)
    scores = prediction.to(torch.promote_types(prediction.dtype, torch.float32)).flatten()
    return torch.stack((scores, (target > 0).to(scores.dtype).flatten()), 1)


def _area(rows: Tensor) -> Tensor:
    scores, labels = rows.unbind(1)
    yes, no = scores[labels > 0].contiguous(), scores[labels <= 0].sort().values
    below = torch.searchsorted(no, yes).double() + torch.searchsorted(no, yes, right=True).double()
    area = below.sum() / (2 * len(yes) * len(no)) if len(yes) and len(no) else below.new_full((), torch.nan)
    return torch.where(scores.isnan().any(), torch.nan, area)


@gathered_as(Gathering(_scored, _area, in_rows=True))
@with_explanations
def auroc(prediction: Tensor, target: Tensor) -> Tensor:
    """The area under the receiver operating characteristic: how likely a yes has a higher score than a no.

        the fraction of all pairs of a yes and a no whose scores are in this order; those of equal scores count for a half

    It is nan where there is no yes or no no, or a score is NaN. In `evaluate` and `fit` it is that of all data, exactly: all
    scores and labels are kept for it, 16 bytes for each.

    Args:
        prediction: scores, one for each decision.
        target: labels, which mean yes above 0: 0 and 1, -1 and 1, or booleans.

    Shape:
        any, the same for both, to ()

    Raises:
        ValueError: the shapes differ; on CPUs in eager mode also: a label is none of -1, 0 and 1.
        TypeError: the prediction is not floating-point.

    Source:
        Hanley and McNeil, The meaning and use of the area under a receiver operating characteristic (ROC) curve, 1982.

    >>> from fundl import auroc
    >>> auroc(torch.tensor([0.9, 0.3, 0.8, 0.1]), torch.tensor([1, 1, 0, 0]))
    tensor(0.7500)
    """
    return _area(_scored(prediction, target)).float()


# --- What is given ---------------------------------------------------------------------------------------------------------


def _scores(prediction: Tensor, target: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Scores (B, C, ...) and true classes (B, ...)."""
    require_tensors(prediction, target)
    if not prediction.is_floating_point():
        raise TypeError(f"the prediction must hold scores, floating-point, not {prediction.dtype}")
    scores, true, _ = classes_along(axis, prediction, target)
    if scores.ndim < 2 or scores.shape[1] < 2:
        raise ValueError(
            f"the prediction's shape {tuple(prediction.shape)} has no score for each class: for one score for each sample, say"
            " above which the answer is yes, threshold=0.0 for logits or threshold=0.5 for probabilities"
        )
    if not scores.numel():
        raise ValueError(f"there is no prediction to judge: the prediction's shape is {tuple(prediction.shape)}")
    return scores, true_classes(true, scores.shape)
