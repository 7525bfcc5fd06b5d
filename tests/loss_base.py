"""What the tables of sample losses are made of: a sample, numbers, and formulas, one number at a time in Python's floats."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol, TypeAlias

import attrs
import torch
from torch import Tensor

from fundl import Reduction

REDUCTIONS: Final[tuple[Reduction, ...]] = ("mean", "sum", "batch_mean")


# --- The samples -------------------------------------------------------------------------------------------------------


class Loss(Protocol):
    def __call__(self, prediction: Tensor, target: Tensor, /, *, reduction: Reduction = ...) -> tuple[Tensor, Tensor]: ...


class Reference(Protocol):
    def __call__(self, prediction: Tensor, target: Tensor, /, *, reduction: str) -> Tensor: ...


@attrs.frozen(eq=False)
class Sample:
    """A loss, the function of torch that it must agree with, and what to apply both to; floating-point is float64."""

    loss: Loss
    reference: Reference
    prediction: Tensor
    target: Tensor

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.prediction.to(dtype), self.target.to(dtype) if self.target.is_floating_point() else self.target

    def expected(self, prediction: Tensor, target: Tensor, reduction: Reduction) -> tuple[Tensor, Tensor]:
        """The reference's value, and autograd's gradient."""
        x = prediction.detach().requires_grad_()
        with torch.enable_grad():
            if reduction == "batch_mean":
                value = self.reference(x, target, reduction="sum") / len(x)
            else:
                value = self.reference(x, target, reduction=reduction)
            (grad,) = torch.autograd.grad(value, x)
        return value.detach(), grad


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1 + sum(shape)))


# --- Formulas ---------------------------------------------------------------------------------------------------------

Options: TypeAlias = Mapping[str, object]
Costs: TypeAlias = Iterator[tuple[float, float]]
"""Of each element or sample: what it costs, and what it adds to the divisor of a mean."""
Formula: TypeAlias = Callable[[Tensor, Tensor, Options], Costs]


def times(weight: float, cost: float) -> float:
    return 0.0 if weight == 0 else weight * cost


def exp(x: float) -> float:
    return math.inf if x > 709 else math.exp(x)


def log(x: float) -> float:
    return -math.inf if x == 0 else math.log(x)


def log_sigmoid(x: float) -> float:
    return -math.log1p(exp(-x)) if x > 0 else x - math.log1p(exp(x))


def elementwise(cost: Callable[[float, float, Options, int], float]) -> Formula:
    """Of x, t and where in its sample the element stands."""

    def formula(prediction: Tensor, target: Tensor, options: Options) -> Costs:
        each = prediction[0].numel() if len(prediction) else 1
        pairs = zip(prediction.flatten().tolist(), target.double().flatten().tolist(), strict=True)
        for place, (x, t) in enumerate(pairs):
            yield cost(x, t, options, place % each), 1.0

    return formula


def number(options: Options, name: str, default: float) -> float:
    option = options.get(name)
    return default if option is None else float(str(option))
