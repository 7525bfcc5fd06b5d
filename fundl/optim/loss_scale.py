"""Scaling the loss, so that small gradients are not lost in float16: by a constant, or by as much as is possible."""

import functools
from collections.abc import Callable
from typing import Final, Generic, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.checks import loss_and_gradient, require_loss
from fundl._common.listed import Listed
from fundl._common.numbers import count_of_steps, positive
from fundl._common.suggestions import with_suggestions
from fundl.layer import Loss, Prediction, Target
from fundl.optim._sometimes import Sometimes
from fundl.optim.flat import Tensors, all_finite, new_count, select, times
from fundl.optim.transform import Rule, S, Transform, require_transform
from fundl.tree import Record, describe

LEAST: Final = 1.0
MOST: Final = 2.0**24
"""Between these the scale stays: gradients that are all 0 would let it grow for ever."""


def _in_range(_record: object, field: "attrs.Attribute[float]", value: float) -> None:
    positive(_record, field, value)
    if not LEAST <= value <= MOST:
        raise ValueError(f"the scale stays between {LEAST:g} and 2^24, so {field.name} must too, and not be {value}")


def scale_loss(loss: Loss[Prediction, Target], scale: float | Tensor) -> Loss[Prediction, Target]:
    """The loss whose gradient is multiplied by a scale: (value, scale grad). Its value stays what it is.

    What comes of it is to be divided by the scale before anything looks at its size: ``chain(fundl.scale(1 / 1024), adam())``
    for ``scale_loss(loss, 1024.0)``. `dynamic_loss_scale` does all of this, and finds the scale.

    Args:
        loss: from a prediction and its target to the loss and its gradient.
        scale: a number above 0, or a tensor without axes; powers of two lose nothing.

    Raises:
        TypeError: the loss is no function, or the scale no number.
        ValueError: the scale is not above 0, or has axes.

    >>> import torch
    >>> from fundl import mse, scale_loss
    >>> mse(torch.tensor([1.0]), torch.tensor([0.0]))
    (tensor(1.), tensor([2.]))
    >>> scale_loss(mse, 1024.0)(torch.tensor([1.0]), torch.tensor([0.0]))
    (tensor(1.), tensor([2048.]))
    """
    require_loss(loss)
    if not isinstance(scale, Tensor):
        positive.require("the scale", scale)
    elif scale.ndim or not scale.is_floating_point():
        raise ValueError(f"the scale is one number: a floating-point tensor without axes, not {describe(scale)}")

    @functools.wraps(loss)
    def of_scaled(prediction: Prediction, target: Target) -> tuple[Tensor, Prediction]:
        value, grad = loss_and_gradient(loss, prediction, target)
        return value, scaled(grad, scale)

    return of_scaled


def scaled(grad: Prediction, scale: float | Tensor) -> Prediction:
    """The gradient of a scaled loss: a tensor, or a tree, in which that of integers and booleans, which is 0, stays."""
    return tree.map(lambda leaf: leaf * scale if leaf.is_floating_point() else leaf, grad)


@final
@attrs.frozen(eq=False)
class LossScaleState(Record, Generic[S], metaclass=Listed):
    """The state of `dynamic_loss_scale`.

    Args:
        scale: what the next gradient is to be multiplied by, float32 without axes.
        good_steps: the steps since the scale was changed, int64 without axes.
        inner: the state of the transform that sees the gradient as it would be without a scale.
    """

    scale: Tensor
    good_steps: Tensor
    inner: S


@final
@attrs.frozen
class DynamicLossScale(Sometimes[S, LossScaleState[S]]):
    """See `dynamic_loss_scale`."""

    initial: float = attrs.field(default=2.0**16, validator=_in_range, kw_only=True)
    growth: float = attrs.field(default=2.0, validator=positive, kw_only=True)
    backoff: float = attrs.field(default=0.5, validator=positive, kw_only=True)
    every: int = attrs.field(default=2000, validator=count_of_steps, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not self.backoff < 1 <= self.growth:
            raise ValueError(
                f"the scale grows by a factor of 1 or more and backs off by one less than 1, not growth={self.growth} and"
                f" backoff={self.backoff}"
            )

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> LossScaleState[S]:
        scale = torch.full((), self.initial, dtype=torch.float32, device=leaves[0].device)
        return LossScaleState(scale, new_count(leaves), self.transform.start(leaves, paths))

    @override
    def _own(self, state: LossScaleState[S]) -> Tensor:
        return state.scale

    @override
    def loss_scale(self, state: LossScaleState[S]) -> Tensor:
        return state.scale

    @override
    def rest(self, state: LossScaleState[S], params: Tensors) -> tuple[Tensors, LossScaleState[S]]:
        results, inner = self.transform.rest(state.inner, params)
        return results, LossScaleState(state.scale, state.good_steps, inner)

    @override
    def _copied(self, state: LossScaleState[S]) -> LossScaleState[S]:
        return LossScaleState(state.scale.clone(), state.good_steps.clone(), state.inner)

    @override
    def _selected(
        self, rule: Rule[S], grads: Tensors, state: LossScaleState[S], params: Tensors, *, otherwise: Tensors
    ) -> tuple[Tensors, LossScaleState[S]]:
        unscaled = times(grads, state.scale.reciprocal())
        finite = all_finite(unscaled, self.splits)
        results, inner = rule(unscaled, state.inner, params)
        scale, good_steps = self._next_scale(state, finite)
        return select(finite, results, otherwise), LossScaleState(scale, good_steps, select(finite, inner, state.inner))

    @override
    def _chosen(
        self,
        rule: Rule[S],
        grads: Tensors,
        state: LossScaleState[S],
        params: Tensors,
        *,
        otherwise: Callable[[Tensors], Tensors],
    ) -> tuple[Tensors, LossScaleState[S]]:
        unscaled = times(grads, state.scale.reciprocal())
        finite = all_finite(unscaled, self.splits)
        scale, good_steps = self._next_scale(state, finite)
        results, inner = rule(unscaled, state.inner, params) if finite else (otherwise(params), state.inner)
        state.scale.copy_(scale)
        state.good_steps.copy_(good_steps)
        return results, state if inner is state.inner else LossScaleState(state.scale, state.good_steps, inner)

    def _next_scale(self, state: LossScaleState[S], finite: Tensor) -> tuple[Tensor, Tensor]:
        """The scale after this step, and the steps since it was changed."""
        good_steps = state.good_steps + 1
        due = good_steps >= self.every  # the state may be of more steps
        scale = state.scale * torch.where(finite, torch.where(due, self.growth, 1.0), self.backoff)
        return scale.clamp(LEAST, MOST).to(torch.float32), torch.where(finite & ~due, good_steps, 0)


@with_suggestions
def dynamic_loss_scale(
    transform: Transform[S],
    *,
    initial: float = 2.0**16,
    growth: float = 2.0,
    backoff: float = 0.5,
    every: int = 2000,
) -> DynamicLossScale[S]:
    """Let a transform see gradients that were computed of a scaled loss, at the largest scale at which they are finite.

    float16 knows no numbers below 6e-8, and many gradients are smaller. They are found if the loss' gradient is multiplied by
    a scale, and what comes of it divided by the scale, in float32. Too large a scale makes infinite gradients: then the step
    is skipped, that is params and the state of the transform stay as they are, and the scale backs off. After many steps
    without such, it grows. All this is computed without asking for the values of tensors: so that a step can be traced.

    `train_step` multiplies the loss' gradient by the scale of the optimizer's state. Whoever writes a step does the same:

        scale = optimizer.loss_scale(state.inner)
        value, grads = value_and_grad(scale_loss(loss, scale), model, x, target)
        params, state = optimizer.step(grads, state, params)

    Args:
        transform: what sees the gradient: an optimizer. This one is the outermost: no part of a `chain`.
        initial: the scale to begin with, between 1 and 2^24.
        growth: what the scale is multiplied by, of 1 or more; it stays between 1 and 2^24.
        backoff: what it is multiplied by if a gradient is not finite, above 0 and below 1.
        every: after how many steps without such it grows, of 1 or more.

    Source:
        Micikevicius, Narang, Alben, Diamos, Elsen, Garcia, Ginsburg, Houston, Kuchaiev, Venkatesh and Wu, Mixed precision
        training, 2017.

    >>> import torch
    >>> from fundl import dynamic_loss_scale, sgd
    >>> optimizer, params = dynamic_loss_scale(sgd(0.5), initial=8.0), torch.ones(2)
    >>> params, state = optimizer.step(torch.tensor([8.0, 16.0]), optimizer.init(params), params)
    >>> params
    tensor([0.5000, 0.0000])
    >>> params, state = optimizer.step(torch.tensor([8.0, torch.inf]), state, params)
    >>> params, optimizer.loss_scale(state.inner)
    (tensor([0.5000, 0.0000]), tensor(4.))
    """
    require_transform(transform)
    return DynamicLossScale(transform, initial=initial, growth=growth, backoff=backoff, every=every)
