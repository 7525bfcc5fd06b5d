"""Sequences of different lengths in one batch: a mask beside the values, and the layers that heed it.

Layers over sequences take and give tensors, of shape (B, T, ...). Those for which it matters which positions are real have a
buffer field named ``mask``: None for all of them, or a tensor (B, T). `with_mask` fills it, and so do `on_masked` and
`from_masked`, for one run, from what they are given. So a model is the same with and without masks, and a layer of a user's
that has such a field is as good as those of fundl.
"""

from collections.abc import Callable
from typing import Generic, Protocol, Self, TypeVar, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVarTuple, Unpack, override

from fundl import tree
from fundl.layer import Layer, Model, zero_gradient
from fundl.layers.inside import Sizes
from fundl.model import models, output_shape, run_backward, run_backward_params, run_forward
from fundl.shapes import AnySize, S, Shape, Through
from fundl.tree import BUFFER, Record, describe

P = TypeVar("P", bound=Model)
T = TypeVar("T")
Batch = TypeVar("Batch")
Steps = TypeVar("Steps")
Features = TypeVar("Features")
Ts = TypeVarTuple("Ts", default=Unpack[tuple[AnySize, ...]])


@final
@attrs.frozen(eq=False)
class Masked(Record):
    """A batch of sequences of different lengths: filled up to the longest, and a mask that tells what is real.

    Args:
        values: of shape (B, T, ...). What stands where there is only padding does not matter, but must be finite.
        mask: of shape (B, T) and dtype bool: True where a position is real, False where it is padding.

    Raises:
        TypeError: the mask's dtype is not bool.
        ValueError: the mask's shape is not (B, T).

    >>> tokens = torch.tensor([[5, 2, 7], [4, 0, 0]])
    >>> Masked(tokens, tokens != 0)
    Masked(values=int64[2, 3], mask=bool[2, 3])
    """

    values: Tensor
    mask: Tensor

    def __attrs_post_init__(self) -> None:
        _require_bool(self.mask)
        if self.mask.ndim != 2 or self.mask.shape != self.values.shape[:2]:
            raise ValueError(
                f"a mask is of shape (B, T), the first two axes of the values {tuple(self.values.shape)}, not of shape"
                f" {tuple(self.mask.shape)}"
            )


# --- Masks in layers ---------------------------------------------------------------------------------------------------


def with_mask(model: P, mask: Tensor | None) -> P:
    """The model with this mask in each layer that heeds one: each that has a buffer field named ``mask``.

    Args:
        model: a layer or a nested tuple of layers.
        mask: of shape (B, T) and dtype bool, True where a position is real; None for no mask.

    Returns:
        A new model; the model itself if none of its layers heeds a mask.

    Raises:
        TypeError: the mask's dtype is not bool.

    >>> from fundl import MeanOfPositions, apply
    >>> x = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> apply(with_mask(MeanOfPositions(), torch.tensor([[True, True, False]])), x)
    tensor([[2.]])
    """
    if mask is not None:
        _require_bool(mask)
    return _with_masks(model, lambda _: mask)


def _require_bool(mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"a mask is of dtype torch.bool, True where a position is real, not {mask.dtype}")


def _with_masks(layers: T, new: Callable[[Tensor | None], Tensor | None]) -> T:
    """The layers with a function of the mask, if they heed one, in its place; in the order of `tree.records`."""

    def changed(record: Record) -> Record:
        if "mask" not in record.children or "mask" in record.trainable:
            return record
        changes = {"mask": new(cast("_Heeding", record).mask)}
        return attrs.evolve(record, **changes)

    return tree.map_records(changed, layers)


class _Heeding(Protocol):
    @property
    def mask(self) -> Tensor | None: ...


# --- Layers over masked batches ----------------------------------------------------------------------------------------


def _forward(layers: object, x: Masked) -> tuple[Tensor, tuple[object, Tensor]]:
    """The output of the layers, which heed the mask, and what they keep."""
    if not isinstance(x, Masked):
        raise TypeError(f"the input must be Masked(values, mask), not {describe(x)}")
    output, residuals = run_forward(_heeding(layers, x.mask), x.values)
    if not isinstance(output, Tensor):
        raise TypeError(f"the layers inside must give a tensor, not {describe(output)}")
    return output, (residuals, x.mask)


def _backward(layers: T, residuals: tuple[object, Tensor], grad: Tensor) -> tuple[T, Masked]:
    grads, grad_values = run_backward(_heeding(layers, residuals[1]), residuals[0], grad)
    return _like(layers, grads), Masked(cast("Tensor", grad_values), zero_gradient(residuals[1]))


def _backward_params(layers: T, residuals: tuple[object, Tensor], grad: Tensor) -> T:
    return _like(layers, run_backward_params(_heeding(layers, residuals[1]), residuals[0], grad))


def _heeding(layers: object, mask: Tensor) -> Model:
    """The layers with the mask wherever they heed one and have none of their own."""
    bound = _with_masks(layers, lambda own: mask if own is None else own)
    return cast("Model", bound)  # Python cannot say that the types of a TypeVarTuple are layers; see structure.py


def _like(layers: T, grads: Model) -> T:
    """The gradients with the layers' own masks: as buffers, they are handed back as they are."""
    masks: list[Tensor | None] = []

    def noted(own: Tensor | None) -> Tensor | None:
        masks.append(own)
        return own

    _with_masks(layers, noted)
    own = iter(masks)
    return _with_masks(cast("T", grads), lambda _: next(own))  # each gradient is of its layer's type


@final
@attrs.frozen(eq=False)
class OnMasked(Layer[tuple[object, Tensor], Masked, Masked], Generic[*Ts]):
    """Layers on a masked batch: y = (f(values), mask), with f the layers one after the other, which heed the mask.

    Attention sees real positions only, recurrent layers pass over padding, and all other layers, which are functions of each
    position, run on the values as they are. What comes out at padding is of no meaning.

    Its vjp: grad_layers, grad_values = vjp(f, values, grad.values). Padding is real to functions of each position: see that
    grad is 0 there.

    Args:
        layers: f; best given to `on_masked`, which checks them.

    Shape:
        that of f, from values (B, T, ...) to values (B, T, ...)

    Residuals:
        Those of the layers. The mask, shared, not copied.

    Raises:
        TypeError: the input is not `Masked`.
        ValueError: the output of the layers is not of shape (B, T, ...).
    """

    layers: tuple[*Ts]

    @override
    def forward(self, x: Masked) -> tuple[Masked, tuple[object, Tensor]]:
        output, residuals = _forward(self.layers, x)
        return Masked(output, x.mask), residuals

    @override
    def backward(self, residuals: tuple[object, Tensor], grad: Masked) -> tuple["OnMasked[*Ts]", Masked]:
        grads, grad_x = _backward(self.layers, residuals, grad.values)
        return OnMasked(grads), grad_x

    @override
    def backward_params(self, residuals: tuple[object, Tensor], grad: Masked) -> "OnMasked[*Ts]":
        return OnMasked(_backward_params(self.layers, residuals, grad.values))

    @override
    def output_shape(self, shape: S) -> Through[S, *Ts]:
        return Through(shape, self.layers)


def on_masked(*layers: *Ts) -> OnMasked[*Ts]:
    """An `OnMasked`: layers that heed the mask of a masked batch, from `Masked` to `Masked`.

    Args:
        layers: layers, or models (tuples of layers).

    Raises:
        ValueError: there is no layer, or they do not fit together.
        TypeError: a part is not a layer.

    >>> from fundl import Masked, apply, initialize, key, linear, on_masked
    >>> model = initialize(key(0), on_masked(linear(3, 4)))
    >>> apply(model, Masked(torch.zeros(2, 5, 3), torch.ones(2, 5, dtype=torch.bool)))
    Masked(values=float32[2, 5, 4], mask=bool[2, 5])
    """
    layer = OnMasked(models(*layers))
    output_shape(layer)
    return layer


@final
@attrs.frozen(eq=False)
class FromMasked(Layer[tuple[object, Tensor], Masked, Tensor], Generic[*Ts]):
    """Layers that make a tensor of a masked batch: y = f(values), with f the layers one after the other, which heed the mask.

    As `OnMasked`, but that the output is of any shape: one row for each sequence, say, as after `MeanOfPositions`.

    Its vjp: grad_layers, grad_values = vjp(f, values, grad).

    Args:
        layers: f; best given to `from_masked`, which checks them.

    Shape:
        that of f, from values (B, T, ...)

    Residuals:
        Those of the layers. The mask, shared, not copied.

    Raises:
        TypeError: the input is not `Masked`.
    """

    layers: tuple[*Ts]

    @override
    def forward(self, x: Masked) -> tuple[Tensor, tuple[object, Tensor]]:
        return _forward(self.layers, x)

    @override
    def backward(self, residuals: tuple[object, Tensor], grad: Tensor) -> tuple["FromMasked[*Ts]", Masked]:
        grads, grad_x = _backward(self.layers, residuals, grad)
        return FromMasked(grads), grad_x

    @override
    def backward_params(self, residuals: tuple[object, Tensor], grad: Tensor) -> "FromMasked[*Ts]":
        return FromMasked(_backward_params(self.layers, residuals, grad))

    @override
    def output_shape(self, shape: S) -> Through[S, *Ts]:
        return Through(shape, self.layers)


def from_masked(*layers: *Ts) -> FromMasked[*Ts]:
    """A `FromMasked`: layers that heed the mask of a masked batch, from `Masked` to a tensor.

    Args:
        layers: layers, or models (tuples of layers).

    Raises:
        ValueError: there is no layer, or they do not fit together.
        TypeError: a part is not a layer.

    >>> from fundl import Masked, MeanOfPositions, apply, from_masked, initialize, key, linear
    >>> model = initialize(key(0), from_masked(linear(3, 4), MeanOfPositions(), linear(4, 2)))
    >>> apply(model, Masked(torch.zeros(2, 5, 3), torch.ones(2, 5, dtype=torch.bool))).shape
    torch.Size([2, 2])
    """
    layer = FromMasked(models(*layers))
    output_shape(layer)
    return layer


@final
@attrs.frozen(eq=False)
class MeanOfPositions(Layer[Sizes]):
    """The mean over the positions of a sequence, or over those that are real: y = sum_t m_t x_t / max(1, sum_t m_t).

    m_t is 1 at a real position and 0 at padding; without a mask, 1. A sequence without a real position gives 0.

    Its vjp: grad_x_t = m_t grad / max(1, sum_t m_t).

    Args:
        mask: of shape (B, T) and dtype bool; None, the default, if all positions are real. `from_masked` fills it.

    Shape:
        (B, T, F) to (B, F), with F features

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        ValueError: the input is not of shape (B, T, F), or not of the mask's B and T.

    >>> from fundl import apply
    >>> apply(MeanOfPositions(), torch.tensor([[[1.0], [3.0]]]))
    tensor([[2.]])
    """

    mask: Tensor | None = attrs.field(default=None, metadata=BUFFER)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Sizes]:
        if x.ndim != 3 or (self.mask is not None and self.mask.shape != x.shape[:2]):
            wanted = "(B, T, F)" if self.mask is None else f"({', '.join(map(str, self.mask.shape))}, F) by its mask"
            raise ValueError(f"MeanOfPositions expects an input of shape {wanted}, but it is of shape {tuple(x.shape)}")
        if self.mask is None:
            return x.sum(1) / max(1, x.shape[1]), Sizes(x.shape)
        return (x * _shares(self.mask, x.dtype)).sum(1), Sizes(x.shape)

    @override
    def backward(self, residuals: Sizes, grad: Tensor) -> tuple[Self, Tensor]:
        if self.mask is None:
            return self, (grad / max(1, residuals.sizes[1])).unsqueeze(1).expand(residuals.sizes)
        return self, grad.unsqueeze(1) * _shares(self.mask, grad.dtype)

    @override
    def output_shape(self, shape: Shape[Batch, Steps, Features]) -> Shape[Batch, Features]:
        batch, _, features = shape.exactly(3)
        return Shape(batch, features)


def _shares(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What each position counts in the mean of its sequence, (B, T, 1)."""
    return (mask.to(dtype) / mask.sum(1, keepdim=True).clamp(min=1)).unsqueeze(-1)
