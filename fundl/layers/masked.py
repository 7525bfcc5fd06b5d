"""Sequences of different lengths in one batch: a mask beside the values, and the layers that heed it.

Layers over sequences take and give tensors, of shape (B, T, ...). Those for which it matters which positions are real have a
buffer field named ``mask``: None for all of them, or a tensor (B, T). `with_mask` fills it, and so do, for one run and from
what they are given, `on_masked`, `from_masked` and `on_masked_pair`. So a model is the same with and without masks, and a
layer of a user's that has such a field is as good as those of fundl.
"""

from collections.abc import Mapping
from typing import Generic, Self, TypeVar, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.checks import as_model, models, require_model
from fundl._common.half import in_float32
from fundl._common.listed import Listed
from fundl.layer import AnyLayer, Layer, P, zero_gradient
from fundl.layers._inside import Around, Sizes, Ts, fitting, forward_inside
from fundl.shapes import Batch, Features, S, Shape, Steps, Through
from fundl.tree import BUFFER, Record, describe

T = TypeVar("T")
L = TypeVar("L", bound=AnyLayer)
Y = TypeVar("Y")


@final
@attrs.frozen(eq=False)
class Masked(Record, metaclass=Listed):
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
    as_model(model)
    return _with_masks(model, {"mask": mask}, keep=False)


def _require_bool(mask: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"a mask is a tensor of shape (B, T) and dtype torch.bool, not {tree.describe(mask)}")
    if mask.dtype != torch.bool:
        raise TypeError(f"a mask is of dtype torch.bool, True where a position is real, not {mask.dtype}")


def _with_masks(layers: T, masks: Mapping[str, Tensor | None], *, keep: bool) -> T:
    """The layers with these masks wherever they heed one; with `keep`, where they have none of their own."""

    def changed(record: Record) -> Record:
        heeded = {name: mask for name, mask in masks.items() if name in record.children and name not in record.trainable}
        changes = {name: mask for name, mask in heeded.items() if not keep or getattr(record, name) is None}
        return attrs.evolve(record, **changes) if changes else record

    return tree.map_records(changed, layers)


def _like(layers: T, grads: object) -> T:
    """The gradients, with the layers' own masks: as buffers, they are handed back as they are."""
    return tree.with_trainable_leaves(layers, tree.trainable_leaves(grads))


# --- Layers over masked batches ----------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _Heeding(Around[Tensor, Masked, Y], Generic[Y, *Ts]):
    """Layers on a masked batch, which heed the mask: what the layer keeps of its own."""

    layers: tuple[*Ts]

    def _forward(self, x: Masked) -> tuple[Tensor, tuple[object, Tensor]]:
        """The output of the layers, and what backward needs."""
        _require_masked(x)
        y, residuals = forward_inside(self._model(x.mask), x.values)
        return y, (residuals, x.mask)

    @override
    def _model(self, own: Tensor) -> tuple[*Ts]:
        return _with_masks(self.layers, {"mask": own}, keep=True)

    @override
    def _grad_x(self, own: Tensor, grad: Y, grad_inside: Tensor) -> Masked:
        return Masked(grad_inside, zero_gradient(own))

    @override
    def _gradient(self, own: Tensor, grads: object) -> Self:
        return self.gradient(_like(self.layers, grads))

    @override
    def output_shape(self, shape: S) -> Through[S, *Ts]:
        return Through(shape, self.layers)


def _require_masked(x: object) -> None:
    if not isinstance(x, Masked):
        raise TypeError(f"the input must be Masked(values, mask), not {describe(x)}")


@final
@attrs.frozen(eq=False)
class OnMasked(_Heeding[Masked, *Ts]):
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

    @override
    def forward(self, x: Masked) -> tuple[Masked, tuple[object, Tensor]]:
        y, residuals = self._forward(x)
        return Masked(y, x.mask), residuals

    @override
    def _grad_inside(self, own: Tensor, grad: Masked) -> Tensor:
        return grad.values


def on_masked(*layers: *Ts) -> OnMasked[*Ts]:
    """An `OnMasked` of layers, or models. They are checked as by `compose`.

    >>> from fundl import Masked, apply, initialize, key, linear, on_masked
    >>> model = initialize(key(0), on_masked(linear(3, 4)))
    >>> apply(model, Masked(torch.zeros(2, 5, 3), torch.ones(2, 5, dtype=torch.bool)))
    Masked(values=float32[2, 5, 4], mask=bool[2, 5])
    """
    return fitting(OnMasked(models(*layers)))


@final
@attrs.frozen(eq=False)
class FromMasked(_Heeding[Tensor, *Ts]):
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

    @override
    def forward(self, x: Masked) -> tuple[Tensor, tuple[object, Tensor]]:
        return self._forward(x)


def from_masked(*layers: *Ts) -> FromMasked[*Ts]:
    """A `FromMasked` of layers, or models. They are checked as by `compose`.

    >>> from fundl import Masked, MeanOfPositions, apply, from_masked, initialize, key, linear
    >>> model = initialize(key(0), from_masked(linear(3, 4), MeanOfPositions(), linear(4, 2)))
    >>> apply(model, Masked(torch.zeros(2, 5, 3), torch.ones(2, 5, dtype=torch.bool))).shape
    torch.Size([2, 2])
    """
    return fitting(FromMasked(models(*layers)))


@final
@attrs.frozen(eq=False)
class OnMaskedPair(Around[tuple[Tensor, Tensor], tuple[Masked, Masked], Masked, tuple[Tensor, Tensor]], Generic[L]):
    """A layer of a sequence and a memory, such as a decoder, on masked batches of both: y = (f(values, memory), mask).

    As `OnMasked`; besides, layers with a buffer field named ``memory_mask`` heed the memory's mask.

    Its vjp: grad_f, (grad_values, grad_memory) = vjp(f, (values, memory), grad.values).

    Args:
        layer: f.

    Shape:
        that of f, from values (B, T, ...) and a memory (B, S, ...) to values (B, T, ...)

    Residuals:
        Those of f. The masks, shared, not copied.

    Raises:
        TypeError: an input is not `Masked`.
        ValueError: the output of the layer is not of shape (B, T, ...).
    """

    layer: L

    @override
    def forward(self, x: tuple[Masked, Masked]) -> tuple[Masked, tuple[object, tuple[Tensor, Tensor]]]:
        queries, memory = x
        _require_masked(queries)
        _require_masked(memory)
        masks = queries.mask, memory.mask
        y, residuals = forward_inside(self._model(masks), (queries.values, memory.values))
        return Masked(y, queries.mask), (residuals, masks)

    @override
    def _model(self, own: tuple[Tensor, Tensor]) -> L:
        mask, memory_mask = own
        return _with_masks(self.layer, {"mask": mask, "memory_mask": memory_mask}, keep=True)

    @override
    def _grad_inside(self, own: tuple[Tensor, Tensor], grad: Masked) -> Tensor:
        return grad.values

    @override
    def _grad_x(self, own: tuple[Tensor, Tensor], grad: Masked, grad_inside: tuple[Tensor, Tensor]) -> tuple[Masked, Masked]:
        grad_x, grad_memory = (Masked(values, zero_gradient(mask)) for values, mask in zip(grad_inside, own, strict=True))
        return grad_x, grad_memory

    @override
    def _gradient(self, own: tuple[Tensor, Tensor], grads: object) -> Self:
        return self.gradient(_like(self.layer, grads))


def on_masked_pair(layer: L) -> OnMaskedPair[L]:
    """An `OnMaskedPair` of a layer that takes a sequence and a memory, such as a `decoder` or a `cross_attention`.

    >>> from fundl import Masked, apply, cross_attention, initialize, key, on_masked_pair
    >>> layer = initialize(key(0), on_masked_pair(cross_attention(8, 2)))
    >>> x, memory = (Masked(torch.zeros(3, steps, 8), torch.ones(3, steps, dtype=torch.bool)) for steps in (5, 7))
    >>> apply(layer, (x, memory))
    Masked(values=float32[3, 5, 8], mask=bool[3, 5])
    """
    require_model(layer)
    return OnMaskedPair(layer)


# --- One row for each sequence -----------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _OfPositions(Layer[Sizes]):
    """What makes one row of the positions of each sequence."""

    mask: Tensor | None = attrs.field(default=None, metadata=BUFFER)

    @override
    def output_shape(self, shape: Shape[Batch, Steps, Features]) -> Shape[Batch, Features]:
        batch, _, features = shape.exactly(3)
        return Shape(batch, features)

    def _require_positions(self, x: Tensor) -> None:
        mask = self.mask
        if x.ndim != 3 or (mask is not None and mask.shape != x.shape[:2]):
            wanted = "(B, T, F)" if mask is None else f"({', '.join(map(str, mask.shape))}, F) by its mask"
            raise ValueError(f"{type(self).__name__} expects an input of shape {wanted}, but it is of shape {tuple(x.shape)}")


@final
@attrs.frozen(eq=False)
class MeanOfPositions(_OfPositions):
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

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Sizes]:
        self._require_positions(x)
        return in_float32(self._mean, x), Sizes(x.shape)

    @override
    def backward(self, residuals: Sizes, grad: Tensor) -> tuple[Self, Tensor]:
        if self.mask is None:
            return self, (grad / max(1, residuals.sizes[1])).unsqueeze(1).expand(residuals.sizes)
        mask = self.mask
        return self, in_float32(lambda wide: wide.unsqueeze(1) * _shares(mask, wide.dtype), grad)

    def _mean(self, x: Tensor) -> Tensor:
        if self.mask is None:
            return x.sum(1) / max(1, x.shape[1])
        return (x * _shares(self.mask, x.dtype)).sum(1)


def _shares(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What each position counts in the mean of its sequence, (B, T, 1)."""
    return (mask.to(dtype) / mask.sum(1, keepdim=True).clamp(min=1)).unsqueeze(-1)


@final
@attrs.frozen(eq=False)
class LastPosition(_OfPositions):
    """The last position of a sequence, or the last that is real: y = x_t with the largest t at which m_t is 1.

    m_t is 1 at a real position and 0 at padding; without a mask, 1. A sequence without a real position gives 0. Behind a
    recurrent layer in both directions, the second has seen no more than one step there: `stateful` gives the last states.

    Its vjp: grad_x_t = grad at that position, and 0 at the others.

    Args:
        mask: of shape (B, T) and dtype bool; None, the default, if all positions are real. `from_masked` fills it.

    Shape:
        (B, T, F) to (B, F), with F features

    Residuals:
        The sizes of the input: no bytes.

    Raises:
        ValueError: the input is not of shape (B, T, F), or not of the mask's B and T.

    >>> from fundl import apply
    >>> apply(LastPosition(torch.tensor([[True, True, False]])), torch.tensor([[[1.0], [3.0], [9.0]]]))
    tensor([[3.]])
    """

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Sizes]:
        self._require_positions(x)
        if self.mask is None:
            return x[:, -1:].sum(1), Sizes(x.shape)
        return torch.where(_last(self.mask), x, 0).sum(1), Sizes(x.shape)

    @override
    def backward(self, residuals: Sizes, grad: Tensor) -> tuple[Self, Tensor]:
        if self.mask is None:
            return self, torch.constant_pad_nd(grad.unsqueeze(1), (0, 0, residuals.sizes[1] - 1, 0))  # -1 where T is 0
        return self, torch.where(_last(self.mask), grad.unsqueeze(1), 0)


def _last(mask: Tensor) -> Tensor:
    """Where the last real position of each sequence is, (B, T, 1)."""
    real_from_here = mask.flip(1).cumsum(1).flip(1)
    return (mask & (real_from_here == 1)).unsqueeze(-1)
