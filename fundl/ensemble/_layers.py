"""The layers that do for all runs what the layers of the models do for each.

For a `Linear` a product of batches of matrices; for what is `elementwise` the layer itself; for any other layer what vmap makes
of it. With vmap for all, a step of a small network would take 1.4 times as long.
"""

from typing import Self, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.running import named_as
from fundl.layer import AnyLayer, Layer, Model
from fundl.layers.activation import Tanh
from fundl.layers.linear import Linear
from fundl.runs import each


def batched(models: Model) -> Model:
    """The layers that do for all runs what the models' layers do for each."""
    if isinstance(models, tuple):
        return named_as(models, [batched(part) for part in models])
    if isinstance(models, Linear):
        return _Linears(models.weight, models.bias)
    if isinstance(models, Tanh):
        return _Tanh()
    return models if models.elementwise and not models.trainable else _Each(models)


def as_models(models: Model, grads: object) -> Model:
    """The gradients that the layers of `batched` found, as those of the models: each has the class of its layer."""
    if isinstance(models, tuple) and isinstance(grads, tuple):
        return named_as(models, [as_models(part, grad) for part, grad in zip(models, grads, strict=True)])
    if isinstance(models, Linear) and isinstance(grads, _Linears):
        return models.gradient(grads.weight, grads.bias)
    return grads.layer if isinstance(grads, _Each) else models


@final
@attrs.frozen(eq=False)
class _Linears(Layer[Tensor]):
    """R affine maps: y[r] = x[r] W[r]^T + b[r], from (R, ..., in) to (R, ..., out).

    Its vjp: grad_weight[r] = grad[r]^T x[r], grad_bias[r] = the sum over the rows of grad[r], grad_x[r] = grad[r] W[r].
    The input is kept, as columns, shared, not copied.
    """

    weight: Tensor  # (R, out, in)
    bias: Tensor | None  # (R, out)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        try:
            columns = self._rows(x).mT  # (R, in, B): the products of W with columns are the quickest
            bias = self.bias
            y = torch.bmm(self.weight, columns) if bias is None else torch.baddbmm(bias.unsqueeze(2), self.weight, columns)
        except RuntimeError as error:
            self._explain(x, error)
            raise
        return y.mT if x.ndim == 3 else y.mT.reshape(*x.shape[:-1], -1), columns

    @override
    def backward_params(self, residuals: Tensor, grad: Tensor) -> Self:
        rows = self._rows(grad)  # (R, B, out)
        grad_weight = torch.bmm(rows.mT, residuals.mT)  # (R, out, B) (R, B, in)
        return self.gradient(grad_weight, None if self.bias is None else rows.sum(1))

    @override
    def backward_input(self, residuals: Tensor, grad: Tensor) -> Tensor:
        grad_x = torch.bmm(self.weight.mT, self._rows(grad).mT).mT  # (R, B, in)
        return grad_x if grad.ndim == 3 else grad_x.reshape(*grad.shape[:-1], -1)

    def _rows(self, x: Tensor) -> Tensor:
        """The rows of all further axes, one below the other: (R, B, ...)."""
        if x.ndim == 3:
            return x
        self._require_axis(x)
        return x.reshape(self.weight.shape[0], -1, x.shape[-1])

    def _require_axis(self, x: Tensor) -> None:
        runs = self.weight.shape[0]
        if x.ndim < 2 or x.shape[0] != runs:
            raise ValueError(
                f"an ensemble of {runs} models takes an input whose first axis is that of the runs, of size {runs}, but its"
                f" shape is {tuple(x.shape)}: ensemble.share(x, {runs}) is the same for all"
            )

    def _explain(self, x: Tensor, error: RuntimeError) -> None:
        """Say what is wrong with the input, after a kernel refused it: what one of the layers says."""
        try:
            self._require_axis(x)
            Linear(self.weight[0], None if self.bias is None else self.bias[0]).forward(x[0])
        except (TypeError, ValueError) as reason:
            raise reason from error


@final
@attrs.frozen(eq=False)
class _Tanh(Layer[Tensor]):
    """The hyperbolic tangent of many numbers: y = e / (e + 2), where e = exp(2 x) - 1.

    On CPUs these few kernels take half the time of the one for the tangent, and are as precise but for the last two bits.
    """

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not x.is_cpu or x.dtype != torch.float32:
            return Tanh().forward(x)
        e = torch.clamp(x, max=30.0).mul_(2.0).expm1_()  # beyond 9, y is 1; beyond 44, e would be inf
        y = e / (e + 2.0)
        return y, y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, Tanh().backward(residuals, grad)[1]


@final
@attrs.frozen(eq=False)
class _Each(Layer[object]):
    """R layers of any kind, by way of `each`."""

    takes_integers = True  # if the layer does

    layer: AnyLayer  # its tensors have a first axis of size R

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        return each(type(self.layer).forward)(self.layer, x)

    @override
    def backward(self, residuals: object, grad: Tensor) -> tuple[Self, Tensor]:
        grads, grad_x = each(type(self.layer).backward)(self.layer, residuals, grad)
        return self.gradient(grads), grad_x

    @override
    def backward_params(self, residuals: object, grad: Tensor) -> Self:
        return self.gradient(each(type(self.layer).backward_params)(self.layer, residuals, grad))

    @override
    def backward_input(self, residuals: object, grad: Tensor) -> Tensor:
        grad_x: Tensor = each(type(self.layer).backward_input)(self.layer, residuals, grad)
        return grad_x
