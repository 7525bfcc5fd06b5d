"""The losses that a loss adds up: handed out one by one, or each with a weight of its own."""

import abc
import functools
from collections.abc import Mapping
from typing import Generic, TypeVar, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.checks import require_loss
from fundl._common.modes import no_grad
from fundl._common.suggestions import name_of, with_suggestions
from fundl._common.tape import constant, refuse_tape
from fundl.layer import Loss, Prediction, Target
from fundl.losses.reduction import Each, Kind, OfOptions, computable, kind_of, require_weights
from fundl.runs import each as over_each
from fundl.tree import describe
from fundl.weights import Weight, adds_up, rule_of, weighed_by

F = TypeVar("F")


@with_suggestions
def unreduced(loss: Loss[Prediction, Target]) -> Loss[Prediction, Target]:
    """The losses that a loss adds up, one by one: what other libraries call ``reduction="none"``.

        losses, grad = unreduced(loss)(prediction, target)

    Of a loss of elements, as `mse`, that is one of each element; of one of classes, as `cross_entropy`, of each sample and
    position; of one of pairs, of each pair. The gradient is that of their sum, so each loss' own gradient stands where its
    element or sample does. What is left out by `ignore_index` is 0. The reduction that a loss was given does not matter.

    To train with losses that weigh differently, take `weighted`.

    Args:
        loss: any. One that is not fundl's is asked about each row by itself, as a batch of one; then it must not look at the
            values of tensors to decide what to do.

    Returns:
        A function of a prediction and a target. Its losses have float32 or more.

    >>> from fundl import mse, unreduced
    >>> unreduced(mse)(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
    (tensor([[1., 4.]]), tensor([[2., 4.]]))
    """
    parts = _parts_of(loss)

    def losses_of(prediction: Prediction, target: Target) -> tuple[Tensor, Prediction]:
        return parts.losses(prediction, target, None)

    losses_of.__name__ = f"unreduced({name_of(loss)})"  # for messages
    return losses_of


@with_suggestions
def weighted(loss: Loss[Prediction, Target]) -> Loss[Prediction, tuple[Target, Tensor]]:
    """The loss whose target is a pair, (target, weight): each of the losses that it adds up has a weight of its own.

        sum of w_i l_i / sum of w_i n_i,    with the losses l_i, and n_i what each counts for in the loss' own mean

    A mask is a weight of booleans: the mean is that over what is not masked, exactly, however batches are cut, in groups of
    processes and by `accumulate`, too. n_i is 1, or the weight of a class for those that weigh classes. With
    ``reduction="sum"`` it is the weighted sum, with ``"batch_mean"`` that sum divided by the size of the batch.

    What has the weight 0 adds nothing, and may be anything: NaN, or no class at all. Where all weights are 0, the mean is nan,
    and its gradient 0. The weights themselves are constants: nothing is differentiated with respect to them.

    Args:
        loss: any, options included: ``weighted(partial(huber, delta=0.5))``. One that is not fundl's is weighed by rows.

    Returns:
        A loss. Its weights are 0 or more, or booleans, of the shape of the losses that `unreduced` hands out; or of the first
        axes of that shape: (B,) for one weight of each row, (B, T) for one of each position.

    Raises:
        TypeError: when called: the target is not a pair, or the weight not a tensor of real numbers.
        ValueError: when called: the weight's shape does not fit, or, on CPUs in eager mode, a weight is below 0.

    >>> from fundl import mse, weighted
    >>> prediction, target = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.zeros(2, 2)
    >>> weighted(mse)(prediction, (target, torch.tensor([True, False])))
    (tensor(2.5000), tensor([[1., 2.],
            [0., 0.]]))
    """
    parts = _parts_of(loss)

    def divided_by(prediction: Prediction, given: tuple[Target, Tensor]) -> Weight:
        return parts.divisor(prediction, *_pair(given, name_of(loss)))

    @weighed_by("sum" if adds_up(loss) else divided_by)
    def weighted_loss(prediction: Prediction, given: tuple[Target, Tensor]) -> tuple[Tensor, Prediction]:
        target, weight = _pair(given, name_of(loss))
        refuse_tape(prediction)
        with no_grad():
            weight = constant(weight)
            divisor = parts.divisor(prediction, target, weight)
            wide = _wide(prediction)
            total = divisor.to(wide.dtype) if isinstance(divisor, Tensor) else wide.new_full((), float(divisor))
            scale = weight.to(wide.dtype) * torch.where(total == 0, 0.0, 1 / total)
            losses, grad = parts.losses(prediction, target, scale)
            return torch.where(total == 0, torch.nan, losses.sum()), grad

    weighted_loss.__name__ = f"weighted({name_of(loss)})"  # for messages
    return weighted_loss


# --- What a loss adds up -------------------------------------------------------------------------------------------------


class _Parts(abc.ABC, Generic[Prediction, Target]):
    """The losses that a loss adds up."""

    @abc.abstractmethod
    def losses(self, prediction: Prediction, target: Target, scale: Tensor | None) -> tuple[Tensor, Prediction]:
        """Each of them, times a number of its own, and the gradient of their sum. Where the number is 0, so are both."""

    @abc.abstractmethod
    def divisor(self, prediction: Prediction, target: Target, weight: Tensor) -> Weight:
        """What their weighted mean divides by, or what the loss' own reduction does."""


@final
@attrs.frozen(eq=False)
class _Known(_Parts[Prediction, Target]):
    """Those of a loss of which it is known what they are."""

    loss: OfOptions[tuple[Tensor, Prediction]]
    options: Mapping[str, object]  # all but the reduction
    reduction: str
    kind: Kind

    @override
    def losses(self, prediction: Prediction, target: Target, scale: Tensor | None) -> tuple[Tensor, Prediction]:
        if scale is None:
            return self.loss(prediction, target, **self.options, reduction=Each())
        scale = _along(scale, self.kind.counts(prediction, target, **self.options).shape)
        harmless = self.kind.without(prediction, target, scale != 0, **self.options)
        return self.loss(*harmless, **self.options, reduction=Each(scale))

    @override
    def divisor(self, prediction: Prediction, target: Target, weight: Tensor) -> Weight:
        if self.reduction != "mean":
            return self.kind.rule(prediction, target, **self.options, reduction=self.reduction)
        return _weighted_sum(weight, self.kind.counts(prediction, target, **self.options))


@final
@attrs.frozen(eq=False)
class _ByRows(_Parts[Prediction, Target]):
    """What any other loss is for each row of a batch by itself."""

    loss: Loss[Prediction, Target]

    @override
    def losses(self, prediction: Prediction, target: Target, scale: Tensor | None) -> tuple[Tensor, Prediction]:
        losses, grads = over_each(self.loss)(*self._rows(prediction, target))
        if losses.ndim != 1:
            raise ValueError(f"{name_of(self.loss)} gives no single number for a batch of one, but {describe(losses[0])}")
        grads = tree.map(lambda grad: grad.flatten(0, 1), grads)
        if scale is None:
            return losses, grads
        scale = _along(scale, losses.shape) * self._counts(prediction, target)
        return _times(scale, losses), tree.map(lambda grad: _times(scale, grad), grads)

    @override
    def divisor(self, prediction: Prediction, target: Target, weight: Tensor) -> Weight:
        return 1.0 if adds_up(self.loss) else _weighted_sum(weight, self._counts(prediction, target))

    def _counts(self, prediction: Prediction, target: Target) -> Tensor:
        """What the mean over one row divides by."""
        rows, rule = self._rows(prediction, target), rule_of(self.loss)
        if rule is None or adds_up(self.loss):
            first = tree.leaves(prediction)[0]
            return first.new_ones(len(first), dtype=torch.int64)
        return over_each(lambda prediction, target: torch.as_tensor(rule(prediction, target)))(*rows)

    def _rows(self, prediction: Prediction, target: Target) -> tuple[Prediction, Target]:
        """The batch, taken apart into batches of one."""
        sizes = {leaf.shape[:1] for leaf in tree.leaves((prediction, target))}
        if len(sizes) > 1 or sizes == {()}:
            raise ValueError(
                f"{name_of(self.loss)} is taken apart by rows, so that all tensors of prediction and target must have a first"
                f" axis of one size, but they are {describe(prediction)} and {describe(target)}"
            )
        return tree.map(lambda leaf: leaf.unsqueeze(1), (prediction, target))


def _parts_of(loss: Loss[Prediction, Target]) -> _Parts[Prediction, Target]:
    require_loss(loss)
    function, options = without_options(loss)
    if (kind := kind_of(function)) is None:
        return _ByRows(loss)
    reduction = str(options.pop("reduction", "mean"))
    return _Known(cast("OfOptions[tuple[Tensor, Prediction]]", function), options, reduction, kind)  # as it was given


def without_options(function: object) -> tuple[object, dict[str, object]]:
    """A function and the options that `functools.partial` gave it; with arguments by place, as it is."""
    if isinstance(function, functools.partial) and not function.args:
        inner, options = without_options(function.func)
        return inner, options | function.keywords
    return function, {}


# --- Weights -----------------------------------------------------------------------------------------------------------


def _pair(given: tuple[Target, Tensor], name: str) -> tuple[Target, Tensor]:
    """The target and the weight that a weighted loss is given."""
    unchecked: object = given
    if not isinstance(unchecked, tuple) or len(unchecked) != 2 or not isinstance(unchecked[1], Tensor):
        raise TypeError(
            f"the target of weighted({name}) is a pair, (target, weight), with the weight a tensor, not {describe(given)}"
        )
    _require_weight(given[1])
    return given


def _require_weight(weight: Tensor) -> None:
    if weight.is_complex():
        raise TypeError(f"a weight is of real numbers or booleans, not of {weight.dtype}")
    if weight.dtype != torch.bool:
        require_weights(weight, "the weight of a weighted loss")


def _along(weight: Tensor, shape: torch.Size) -> Tensor:
    """A weight of the first axes of a shape, along all of them."""
    if weight.shape != shape[: weight.ndim]:
        fitting = " or ".join(str(tuple(shape[:count])) for count in range(1, len(shape) + 1)) or "()"
        raise ValueError(f"the weight's shape is {tuple(weight.shape)}, but the losses' allow {fitting}")
    return weight.reshape([*weight.shape, *[1] * (len(shape) - weight.ndim)]).expand(shape)


def _weighted_sum(weight: Tensor, counts: Tensor) -> Tensor:
    weight = _along(weight, counts.shape)
    if weight.dtype == torch.bool:
        return torch.where(weight, counts, 0).sum()
    return torch.where(weight == 0, 0.0, weight.to(torch.promote_types(weight.dtype, torch.float32)) * counts).sum()


def _times(scale: Tensor, of_rows: Tensor) -> Tensor:
    """What each row has, times its number; 0 where that is 0."""
    scale = scale.reshape(-1, *[1] * (of_rows.ndim - 1))
    return torch.where(scale == 0, 0.0, scale * of_rows).to(of_rows.dtype)


def _wide(prediction: object) -> Tensor:
    """The first tensor of a prediction that is floating-point, in single precision at least."""
    first = next(leaf for leaf in tree.leaves(prediction) if leaf.is_floating_point())
    return computable(first)
