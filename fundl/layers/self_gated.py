"""Self-gated activations: products of x and a sigmoid of it.

They are not monotonic: the output does not tell the input, which is kept for backward. And they have no answer to an infinite
input, of which one factor is infinite and the other 0: to clamp x would take another pass over it, forward and backward, for an
input that only an overflow before can have made.
"""

from typing import Literal, Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common import kernels
from fundl._common.modes import is_in_forward_mode
from fundl.layers.activation import Activation


@final
@attrs.frozen(eq=False)
class GELU(Activation):
    """The Gaussian error linear unit: y = x P(x), with P(x) = (1 + erf(x / sqrt(2))) / 2, the normal distribution.

    With ``approximate="tanh"``: P(x) = (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, off by less than 5e-4 in y.

    Its vjp: grad_x = grad (P(x) + x P'(x)), with P'(x) = exp(-x^2 / 2) / sqrt(2 pi) if not approximate.

    An infinite x, the mark of an overflow before, gives NaN. With ``approximate="tanh"``, so does the vjp where x^3 is
    infinite: in float32, beyond 1e12.

    Args:
        approximate: "none", the default, or "tanh".

    Shape:
        any, kept

    Residuals:
        The input, not copied, but alive until backward: 4 bytes per element in float32.

    Raises:
        ValueError: `approximate` is something else.

    Source:
        Hendrycks and Gimpel, Gaussian error linear units (GELUs), 2016.

    >>> import torch
    >>> from fundl import GELU, apply
    >>> apply(GELU(), torch.tensor([-1.0, 1.0]))
    tensor([-0.1587,  0.8413])
    >>> apply(GELU(approximate="tanh"), torch.tensor([-1.0, 1.0]))
    tensor([-0.1588,  0.8412])
    """

    counterpart = "GELU"

    approximate: Literal["none", "tanh"] = "none"

    def __attrs_post_init__(self) -> None:
        if self.approximate not in {"none", "tanh"}:
            raise ValueError(f"GELU's approximate must be 'none' or 'tanh', not {self.approximate!r}")

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.gelu(x, approximate=self.approximate), x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, kernels.gelu_backward(grad, residuals, approximate=self.approximate)


@final
@attrs.frozen(eq=False)
class SiLU(Activation):
    """The sigmoid linear unit, also known as swish: y = x s, with s = 1 / (1 + exp(-x)).

    Its vjp: grad_x = grad s (1 + x (1 - s)).

    An infinite x, the mark of an overflow before, gives NaN.

    Shape:
        any, kept

    Residuals:
        The input, not copied, but alive until backward: 4 bytes per element in float32.

    Source:
        Elfwing, Uchibe and Doya, Sigmoid-weighted linear units for neural network function approximation in reinforcement
        learning, 2017.

    >>> import torch
    >>> from fundl import SiLU, apply
    >>> apply(SiLU(), torch.tensor([-1.0, 1.0]))
    tensor([-0.2689,  0.7311])
    """

    counterpart = "SiLU"

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.silu(x), x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        if is_in_forward_mode():  # torch knows no derivative of the kernel
            s = torch.sigmoid(residuals)
            return self, grad * s * (1 + residuals * (1 - s))
        return self, kernels.silu_backward(grad, residuals)


@final
@attrs.frozen(eq=False)
class Hardswish(Activation):
    """The hard swish, made of straight pieces but for one: y = x h, with h = min(max(x + 3, 0), 6) / 6.

    Its vjp: grad_x = 0 where x <= -3, grad where x >= 3, and grad (2 x + 3) / 6 between.

    An x of -inf, the mark of an overflow before, gives NaN; in float32, one beyond 5e37 gives inf.

    Shape:
        any, kept

    Residuals:
        The input, not copied, but alive until backward: 4 bytes per element in float32.

    Source:
        Howard, Sandler, Chu, Chen, Chen, Tan, Wang, Zhu, Pang, Vasudevan, Le and Adam, Searching for MobileNetV3, 2019.

    >>> import torch
    >>> from fundl import Hardswish, apply
    >>> apply(Hardswish(), torch.tensor([-4.0, 1.0, 4.0])) + 0.0
    tensor([0.0000, 0.6667, 4.0000])
    """

    counterpart = "Hardswish"

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.hardswish(x), x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, kernels.hardswish_backward(grad, residuals)


@final
@attrs.frozen(eq=False)
class Mish(Activation):
    """The Mish activation: y = x t, with t = tanh(log(1 + exp(x))).

    Its vjp: grad_x = grad (t + x s (1 - t^2)), with s = 1 / (1 + exp(-x)).

    An infinite x, the mark of an overflow before, gives NaN.

    Shape:
        any, kept

    Residuals:
        The input, not copied, but alive until backward: 4 bytes per element in float32.

    Source:
        Misra, Mish: a self regularized non-monotonic activation function, 2019.

    >>> import torch
    >>> from fundl import Mish, apply
    >>> apply(Mish(), torch.tensor([-1.0, 1.0]))
    tensor([-0.3034,  0.8651])
    """

    counterpart = "Mish"

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.mish(x), x

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        if is_in_forward_mode():  # likewise
            s, t = torch.sigmoid(residuals), torch.tanh(kernels.softplus(residuals, 1.0, 20.0))
            return self, grad * (t + residuals * s * (1 - t * t))
        return self, kernels.mish_backward(grad, residuals)
