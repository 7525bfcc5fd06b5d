"""The cross-entropy of logits of which each process has those of some classes: nobody ever has all of them."""

import torch
from torch import Tensor

from fundl._common.class_axis import classes_along
from fundl._common.half import narrowed
from fundl._common.modes import is_readable, no_grad
from fundl._common.suggestions import with_explanations
from fundl._common.tape import constant
from fundl.collectives import reduced
from fundl.distributed.tensor_layers import place_in
from fundl.groups import Group, require_group
from fundl.losses.classification import SAMPLES, out_of_range
from fundl.losses.reduction import Reduction, ValueAndGrad, computable, divisor, of_kind, one_by_one, require_weights


@of_kind(SAMPLES)
@with_explanations
def split_cross_entropy(
    prediction: Tensor,
    target: Tensor,
    *,
    group: Group,
    classes: int,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    axis: int = 1,
    reduction: Reduction = "mean",
) -> ValueAndGrad:
    """The `cross_entropy` of class indices, from logits that are split: of C classes each of n processes has ceil(C / n).

    They are those that `split_output` gives; what they have beyond C does not count. The largest logit of each sample travels,
    then the sums that softmax and loss are made of: a few numbers for each sample, where the logits would be C.

        m = max of x,    z = sum of exp(x - m),    q = x - m - log z,    of each sample -sum over c of a_c q_c

    with a as `cross_entropy` has it, which it also is like in all else. Each process gets the loss, and the gradient with
    respect to its own logits, 0 for what is beyond C.

    Args:
        prediction: x, the logits of this process.
        target: class indices, integers from 0 to C - 1, the same in all processes of the group.
        group: the processes that have the classes.
        classes: C.
        weight: of shape (C,), each of 0 or more; by default all 1.
        label_smoothing, ignore_index, axis, reduction: as `cross_entropy` takes them.

    Shape:
        (B, ceil(C / n), ...) and (B, ...) to (); the classes where `axis` says

    Raises:
        ValueError: the shapes do not fit, an option is out of its range, or there is nothing to average.
        TypeError: the prediction is not floating-point, or the target is not of integers.
        IndexError: a class index is out of range (checked where tensors can be read for nothing: eager, on CPUs).

    Source:
        Shoeybi, Patwary, Puri, LeGresley, Casper and Catanzaro, Megatron-LM: training multi-billion parameter language models
        using model parallelism, 2019.

    >>> from fundl.distributed import split_cross_entropy, start
    >>> group, device = start()
    >>> split_cross_entropy(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]), group=group, classes=2)
    (tensor(0.6931), tensor([[-0.2500,  0.2500],
            [ 0.2500, -0.2500]]))
    """
    require_group(group)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing, a probability, must be from 0 to 1, not {label_smoothing}")
    scores, y, back = classes_along(axis, prediction, target)
    _require_fitting(scores, y, group, classes)
    with no_grad():
        each = one_by_one(reduction)
        count = 1 if each is not None else divisor(target, reduction)
        y, x = y.to(torch.int64), computable(scores)
        counts = y != ignore_index
        if is_readable(y) and ((y < 0) | (y >= classes)).logical_and(counts).any():
            raise out_of_range(y, classes, ignore_index)
        w = None if weight is None else _weights(weight, classes, x)
        y = torch.where(counts, y, 0)
        of_sample = counts.to(x.dtype) if w is None else torch.where(counts, w[y.clamp(0, classes - 1)], 0)  # w_y
        part = _Part(x, y, w, place_in(group, x) * x.shape[1], classes)
        losses, grad = part.losses(group, of_sample, counts, label_smoothing)
        if each is not None:
            scale = each.scale_for(x).expand(target.shape).reshape(y.shape)
            value, grad = (losses * scale).reshape(target.shape), grad * scale.unsqueeze(1)
        else:
            divided_by = of_sample.sum() if reduction == "mean" else x.new_full((), count)
            value, grad = losses.sum() / divided_by, torch.where(divided_by == 0, 0.0, grad / divided_by)
        return value, narrowed(grad if back is None else back(grad), prediction)


class _Part:
    """The logits x (B, c, ...) of a process, from the class `first` on, of samples of the classes y (B, ...)."""

    def __init__(self, x: Tensor, y: Tensor, weight: Tensor | None, first: Tensor, classes: int) -> None:
        along = [1, -1, *[1] * (x.ndim - 2)]
        own = (torch.arange(x.shape[1], device=x.device) + first).reshape(along)
        self.is_class = own < classes
        self.x = torch.where(self.is_class, x, -torch.inf)
        self.is_true = own == y.unsqueeze(1)
        self.classes = classes
        spread = torch.ones((), dtype=x.dtype, device=x.device) if weight is None else weight[own.clamp(max=classes - 1)]
        self.weight = torch.where(self.is_class, spread, 0)  # of the classes, (1, c, ...)

    def losses(self, group: Group, of_sample: Tensor, counts: Tensor, smoothing: float) -> ValueAndGrad:
        """The losses, and the gradient of their sum with respect to x."""
        (top,) = reduced([self.x.amax(1)], group, "max")
        shifted = self.x - top.unsqueeze(1)
        powers = shifted.exp()
        sums = [powers.sum(1), torch.where(self.is_true, shifted, 0).sum(1)]
        if smoothing:
            sums.append(torch.where(self.weight == 0, 0.0, self.weight * shifted).sum(1))
            sums.append(self.weight.sum().expand(top.shape))
        z, of_true, *even = reduced([torch.stack(sums)], group)[0].unbind()
        log_z = z.log()
        share = smoothing / self.classes
        losses = torch.where(of_sample == 0, 0.0, (1 - smoothing) * of_sample * (log_z - of_true))
        total, coefficients = (1 - smoothing) * of_sample, (1 - smoothing) * of_sample.unsqueeze(1) * self.is_true
        if smoothing:
            losses = losses + share * torch.where(counts, even[1] * log_z - even[0], 0.0)
            total = total + share * even[1] * counts
            coefficients = coefficients + share * self.weight * counts.unsqueeze(1)
        grad = powers / z.unsqueeze(1) * total.unsqueeze(1) - coefficients
        return losses, torch.where(counts.unsqueeze(1) & self.is_class, grad, 0.0)


def _weights(weight: Tensor, classes: int, x: Tensor) -> Tensor:
    if weight.shape != (classes,):
        raise ValueError(f"weight must be of shape ({classes},), one for each class, not {tuple(weight.shape)}")
    require_weights(weight, "weight")
    return constant(weight).to(x.dtype)


def _require_fitting(scores: Tensor, target: Tensor, group: Group, classes: int) -> None:
    if type(classes) is not int or classes < 1:
        raise ValueError(f"classes is how many there are in all processes together, an int of 1 or more, not {classes!r}")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"split_cross_entropy takes class indices, integers, not {target.dtype}")
    part = -(-classes // group.size)
    if scores.ndim < 2 or scores.shape[1] != part:
        raise ValueError(
            f"of {classes} classes each of {group.size} processes has {part}, but the prediction, with the classes as axis 1,"
            f" is of shape {tuple(scores.shape)}: take what split_output gives, and axis=-1 if they are the last axis"
        )
    wanted = (scores.shape[0], *scores.shape[2:])
    if tuple(target.shape) != wanted:
        raise ValueError(
            f"for logits of shape {tuple(scores.shape)}, class indices must have the shape {wanted}, not {tuple(target.shape)}"
        )
