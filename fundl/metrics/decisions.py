"""Metrics of decisions: how many are right, and what was taken for what."""

import torch
from torch import Tensor

from fundl._common.class_axis import axis_hint, classes_along
from fundl._common.modes import is_readable
from fundl._common.suggestions import require_tensor, with_explanations
from fundl.weights import weighed_by


def _decisions(prediction: Tensor, _target: Tensor, *, threshold: float | None = None, axis: int = 1) -> int:
    """How many decisions `accuracy` averages."""
    return prediction.numel() // (prediction.shape[axis] if threshold is None else 1)


@weighed_by(_decisions)
@with_explanations
def accuracy(prediction: Tensor, target: Tensor, *, threshold: float | None = None, axis: int = 1) -> Tensor:
    """The fraction of decisions that are right.

    Without a threshold, the prediction holds a score for each class, and decides for the class of the highest. With one,
    each element is a decision of its own: yes where it is above the threshold. The targets are labels then, and mean yes
    where they are above 0: 0 and 1, -1 and 1, and booleans all serve.

    Args:
        prediction: logits, log-probabilities or probabilities.
        target: class indices, or scores such as one-hot ones, whose highest is the class; with a threshold, labels.
        threshold: above which a score means yes: 0.0 for logits and for outputs that aim at -1 and 1, 0.5 for probabilities.
        axis: that of the classes, in the prediction and in a target of scores: -1 for sequences (B, T, C).

    Shape:
        (B, C, ...) with C > 1, and (B, ...) or (B, C, ...), to (); with a threshold any, the same for both, to ()

    Raises:
        ValueError: the shapes do not fit, the prediction is empty, or it has a single score and there is no threshold; on
            CPUs in eager mode also: a label is none of -1, 0 and 1.
        TypeError: the prediction is not floating-point, or class indices are not integers.
        IndexError: a class index is out of range (checked on CPUs in eager mode).

    >>> from fundl import accuracy
    >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([1, 0, 0]))
    tensor(0.6667)
    >>> accuracy(torch.tensor([[0.7], [-0.2]]), torch.tensor([[1.0], [-1.0]]), threshold=0.0)
    tensor(1.)
    """
    require_tensors(prediction, target)
    if not prediction.is_floating_point():
        raise TypeError(f"the prediction must hold scores, floating-point, not {prediction.dtype}")
    if not prediction.numel():
        raise ValueError(f"there is no prediction to judge: the prediction's shape is {tuple(prediction.shape)}")
    if threshold is None:
        prediction, target, _ = classes_along(axis, prediction, target)
    if threshold is not None:
        require_threshold(threshold)
        require_labels(target, prediction)
        right = (prediction > threshold) == (target > 0)
    elif prediction.ndim < 2 or prediction.shape[1] == 1:
        raise ValueError(
            f"the prediction's shape {tuple(prediction.shape)} has one score for each sample, not one for each class: say above"
            " which score the answer is yes, threshold=0.0 for logits or threshold=0.5 for probabilities"
        )
    else:
        right = prediction.argmax(1) == true_classes(target, prediction.shape)
    return right.to(torch.float32).mean()


@with_explanations
def confusion_matrix(prediction: Tensor, target: Tensor, *, classes: int, axis: int = 1) -> Tensor:
    """How often each class was taken for each: row i, column j counts the samples of the true class i predicted as j.

    The diagonal counts what is right. Divided by its row's sum it is the recall of a class, by its column's the precision.

    Args:
        prediction: scores of the classes, the highest of which decides; or the indices of the predicted classes.
        target: the true classes: indices, or scores such as one-hot ones, whose highest is the class.
        classes: C, how many classes there are, at least 1.
        axis: that of the classes, in the prediction and in a target of scores: -1 for sequences (B, T, C).

    Shape:
        (B, C, ...) for floating-point scores or (B, ...) for indices, and (B, ...) or (B, C, ...), to (C, C), int64

    Raises:
        ValueError: the shapes do not fit, the scores are not of C classes, or C is less than 1.
        TypeError: class indices are not integers.
        IndexError: a class index is out of range.

    >>> from fundl import confusion_matrix
    >>> confusion_matrix(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 1]), classes=2)
    tensor([[1, 1],
            [0, 2]])
    """
    require_tensors(prediction, target)
    if classes < 1:
        raise ValueError(f"classes must be at least 1, not {classes}")
    if prediction.is_floating_point():
        prediction, target, _ = classes_along(axis, prediction, target)
    if not prediction.is_floating_point():
        predicted = prediction.to(torch.int64)
        shape = torch.Size((*prediction.shape[:1], classes, *prediction.shape[1:]))
    elif prediction.ndim > 1 and prediction.shape[1] == classes:
        predicted, shape = prediction.argmax(1), prediction.shape
    else:
        raise ValueError(
            f"the prediction's shape must be (batch, {classes}, ...), a score for each of the {classes} classes, not"
            f" {tuple(prediction.shape)}: if it holds class indices, take prediction.to(torch.int64)"
        )
    true = true_classes(target, shape)
    for indices, name in ((predicted, "prediction"), (true, "target")):
        _require_range(indices, classes, name)
    return torch.bincount((true * classes + predicted).flatten(), minlength=classes**2).reshape(classes, classes)


def require_tensors(prediction: object, target: object) -> None:
    """Raise unless both are tensors."""
    require_tensor(prediction, "the prediction must be")
    require_tensor(target, "the target must be")


def true_classes(target: Tensor, shape: torch.Size) -> Tensor:
    """The classes of a target, for scores of the shape (B, C, ...)."""
    if target.shape == shape:
        return target.to(torch.uint8).argmax(1) if target.dtype == torch.bool else target.argmax(1)
    wanted = (*shape[:1], *shape[2:])
    if target.shape != wanted:
        said = axis_hint(shape, target.shape)
        raise ValueError(
            f"the target must hold class indices of shape {wanted}, or scores of shape {tuple(shape)}, as the prediction's"
            f" shape says, but its shape is {tuple(target.shape)}{said and f': {said}'}"
        )
    if target.is_floating_point():
        raise TypeError(f"class indices must be integers, not {target.dtype}: convert them with target.to(torch.int64)")
    if is_readable(target):
        _require_range(target, shape[1], "target")
    return target.to(torch.int64)


def _require_range(indices: Tensor, classes: int, name: str) -> None:
    wrong = indices[(indices < 0) | (indices >= classes)]
    if wrong.numel():
        raise IndexError(
            f"a class index of the {name} is {int(wrong[0])}, but there {'is' if classes == 1 else 'are'} {classes}"
            f" class{'es' * (classes != 1)}: indices go from 0 to {classes - 1}"
        )


def require_threshold(threshold: object) -> None:
    """Raise unless it is a number."""
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise TypeError(f"threshold is the number above which a score means yes, such as 0.0 for logits, not {threshold!r}")


def require_labels(target: Tensor, prediction: Tensor) -> None:
    """Raise unless there is a label of yes or no for each score."""
    if target.shape != prediction.shape:
        raise ValueError(
            f"with one score for each label, the target must have the prediction's shape {tuple(prediction.shape)}, but"
            f" its shape is {tuple(target.shape)}"
        )
    if is_readable(target) and target.dtype != torch.bool:
        wrong = target[(target != 0) & (target.abs() != 1)]
        if wrong.numel():
            raise ValueError(f"labels of yes and no must be 0 and 1, or -1 and 1, but one is {wrong[0].item():g}")
