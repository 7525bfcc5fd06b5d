"""Layers that are applied to each step of a sequence, all at once."""

from typing import Generic, final

import attrs
from torch import Tensor
from typing_extensions import override

from fundl._common.checks import models
from fundl.layers._inside import Around, Ts, fitting, forward_inside
from fundl.shapes import Folded, S


@final
@attrs.frozen(eq=False)
class OverTime(Around[None], Generic[*Ts]):
    """Layers on each step of sequences, as one batch: y[:, t] = f(x[:, t]) for all t.

    The first two axes become one, that of B T examples, and are two again behind. Layers that work on the last axes alone, such
    as `Linear` and normalisation of features, need no such help; images of a film do, and what else is made for batches of one
    example each. Layers that look at a whole batch, such as `BatchNorm`, see all steps.

    Its vjp: that of f, on the batch of B T examples.

    Args:
        layers: f, the layers one after the other; best given to `over_time`, which checks them.

    Shape:
        (B, T, ...) to (B, T, ...), where f takes and gives (N, ...)

    Residuals:
        Those of the layers. The input is not copied if its first two axes lie one behind the other in memory.

    Raises:
        ValueError: the input has fewer than two axes, or the layers do not keep the number of examples.

    >>> import torch
    >>> from fundl import Flatten, apply, over_time
    >>> apply(over_time(Flatten()), torch.zeros(10, 5, 3, 8, 8)).shape
    torch.Size([10, 5, 192])
    """

    takes_integers = True  # if the first layer does

    layers: tuple[*Ts]

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[object, None]]:
        if x.ndim < 2:
            raise ValueError(f"over_time needs sequences, of shape (B, T, ...), but the input's shape is {tuple(x.shape)}")
        batch, steps = x.shape[:2]
        y, residuals = forward_inside(self.layers, x.flatten(0, 1))  # (B T, ...)
        if y.shape[:1] != (batch * steps,):
            raise ValueError(
                f"the layers of over_time must keep the number of examples, {batch * steps} for {steps} steps of {batch}"
                f" sequences, but their output's shape is {tuple(y.shape)}"
            )
        return y.reshape(batch, steps, *y.shape[1:]), (residuals, None)

    @override
    def _grad_inside(self, own: None, grad: Tensor) -> Tensor:
        return grad.flatten(0, 1)

    @override
    def _grad_x(self, own: None, grad: Tensor, grad_inside: Tensor) -> Tensor:
        return grad_inside.reshape(*grad.shape[:2], *grad_inside.shape[1:])

    @override
    def output_shape(self, shape: S) -> Folded[S, *Ts]:
        return Folded(shape, self.layers)


def over_time(*layers: *Ts) -> OverTime[*Ts]:
    """An `OverTime` of layers, or models, for a batch of examples without an axis of time. They are checked as by `compose`."""
    return fitting(OverTime(models(*layers)))
