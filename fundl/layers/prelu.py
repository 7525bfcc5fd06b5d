"""PReLU: a rectifier whose slope for negative numbers is trained."""

from typing import Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common import kernels
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer, constant
from fundl.layer import Layer
from fundl.layers._refusals import require_at_least_one, require_dtype
from fundl.layers._same_shape import SameShape


@final
@attrs.frozen(eq=False)
class PReLU(SameShape, Layer[Tensor]):
    """The parametric rectified linear unit: y = x where x > 0, else a x, with a slope a that is trained.

    Its vjp, with sums over all axes but that of the channels, or over all axes if there is one slope:

        grad_x = grad where x > 0, else a grad,    grad_a = sum of grad x where x <= 0

    Args:
        weight: a, of shape (1,) for one slope, or (C,) for one of each channel.
        weight_init: how `initialize` makes the slopes; all 0.25 by default.

    Shape:
        any, kept; (B, C, ...) for slopes of channels

    Residuals:
        The input, not copied, but alive until backward: 4 bytes per element in float32.

    Raises:
        ValueError: the input has no C channels along its second axis.
        TypeError: the input's dtype is not the weight's.

    Source:
        He, Zhang, Ren and Sun, Delving deep into rectifiers, 2015. They do not decay the slopes: with `adamw`, which by
        default decays matrices alone, these are not.

    >>> from fundl import PReLU, apply
    >>> apply(PReLU(weight=torch.tensor([0.5])), torch.tensor([-1.0, 2.0]))
    tensor([-0.5000,  2.0000])
    """

    counterpart = "PReLU"

    weight: Tensor
    weight_init: Initializer = attrs.field(default=constant(0.25), kw_only=True)

    @property
    @override
    def elementwise(self) -> bool:
        return self.weight.numel() == 1

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.prelu(x, self._slopes(x)), x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        grad_x, each = kernels.prelu_backward(grad, residuals, self._slopes(residuals))
        over = range(each.ndim) if self.elementwise else [0, *range(2, each.ndim)]
        return self.gradient(each.sum([*over]).reshape(self.weight.shape)), grad_x

    def _slopes(self, x: Tensor) -> Tensor:
        """The slopes, along the axis of the channels."""
        require_dtype("PReLU's weight is", self.weight, x)
        if self.elementwise:
            return self.weight.reshape((1,) * x.ndim)
        channels = self.weight.numel()
        if x.ndim < 2 or x.shape[1] != channels:
            raise ValueError(
                f"PReLU has the slopes of {channels} channels, the second axis of the input, but the input's shape is"
                f" {tuple(x.shape)}: take prelu() for one slope of all"
            )
        return self.weight.reshape(1, -1, *(1,) * (x.ndim - 2))


@with_suggestions
def prelu(channels: int = 1, *, weight_init: Initializer = constant(0.25), dtype: torch.dtype = torch.float32) -> PReLU:
    """A `PReLU`, without values: give it some with `initialize`.

    Args:
        channels: how many slopes there are: 1 by default, for all numbers; or one for each channel.
        weight_init: how `initialize` makes the slopes.
        dtype: the parameters' dtype.

    Raises:
        ValueError: the number of channels is less than 1.

    >>> from fundl import prelu
    >>> prelu(), prelu(16)
    (PReLU(weight=float32[1]), PReLU(weight=float32[16]))
    """
    require_at_least_one(channels=channels)
    return PReLU(torch.empty(channels, dtype=dtype, device="meta"), weight_init=weight_init)
