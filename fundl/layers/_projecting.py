"""What layers of attention are made of beside attention itself: affine maps to heads and back, and what they refuse."""

import math

import torch
from torch import Tensor

from fundl._common import products
from fundl.layers._layout import as_matrix
from fundl.layers._refusals import require_at_least_one, require_dtype

# --- Projections -------------------------------------------------------------------------------------------------------


def in_heads(x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, *, layer: str, name: str = "the input") -> Tensor:
    """An affine map of (B, T, F), seen as heads (B, heads, T, d), in memory (B, T, heads, d); errors name layer and input."""
    try:
        projected = products.linear(x, weight, bias)
    except RuntimeError as error:
        features = weight.shape[1]
        if x.shape[-1] != features:
            raise ValueError(
                f"{layer} expects {features} features, but {name} is of shape {tuple(x.shape)}: its last axis must be of size"
                f" {features}"
            ) from error
        require_dtype(f"{layer}'s parameters are", weight, x, error)
        raise
    return projected.view(*x.shape[:2], heads, weight.shape[0] // heads).transpose(1, 2)


def merged(heads: Tensor) -> Tensor:
    """Heads (B, heads, T, d) as (B, T, heads d): no copy, if they are in memory (B, T, heads, d)."""
    return heads.transpose(1, 2).flatten(2)


def joined(*parts: Tensor) -> Tensor:
    """Heads of several kinds, (B, heads, T, d) each, one after the other, as (B, T, heads d)."""
    return torch.cat([part.transpose(1, 2) for part in parts], 2).flatten(2)  # as kernels have them in memory, one copy


def of_output(weight: Tensor, bias: Tensor | None, heads: Tensor, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradients of the output's weight and bias, and with respect to the heads."""
    grad_heads = products.matmul(grad, weight).view(*grad.shape[:2], heads.shape[1], heads.shape[3]).transpose(1, 2)
    return *of_affine(merged(heads), grad, bias), grad_heads


def of_affine(x: Tensor, grad: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The gradients of an affine map's weight and bias."""
    rows = as_matrix(grad)
    return torch.mm(rows.t(), as_matrix(x)), None if bias is None else rows.sum(0)


def affine(out_features: int, in_features: int, *, bias: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The weight and bias of an affine map, without values."""
    weight = torch.empty(out_features, in_features, dtype=dtype, device="meta")
    return weight, torch.empty(out_features, dtype=dtype, device="meta") if bias else None


# --- What is refused ---------------------------------------------------------------------------------------------------


def head_size(features: int, heads: int, key_value_heads: int | None) -> int:
    """How many features each head has."""
    require_at_least_one(features=features)
    require_heads(heads, key_value_heads)
    if features % heads:
        raise ValueError(f"the heads must divide the features, but {features} features do not go into {heads} heads")
    return features // heads


def require_heads(heads: int, key_value_heads: int | None) -> None:
    require_at_least_one(heads=heads)
    if key_value_heads is not None and (key_value_heads < 1 or heads % key_value_heads):
        raise ValueError(f"key_value_heads must divide the heads evenly, but {heads} heads cannot share {key_value_heads}")


def require_dropout(layer: str, rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(
            f"{layer}'s dropout is the probability to drop a weight, from 0 up to, but not including, 1, not {rate}"
        )


def require_scores(layer: str, window: int | None, soft_cap: float | None, scale: float | None) -> None:
    """Raise unless what is done to scores is in its range."""
    if window is not None and window < 1:
        raise ValueError(f"{layer}'s window is how many positions a query sees, at least 1, or None for all, not {window}")
    if soft_cap is not None and not 0 < soft_cap < math.inf:
        raise ValueError(f"{layer}'s soft_cap must be a finite number above 0, or None for no cap, not {soft_cap}")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"{layer}'s scale must be a finite number, or None for 1 / sqrt(d), not {scale}")


def require_visible(layer: str, visible: Tensor, sizes: tuple[int, ...]) -> None:
    """Raise unless `visible` is of dtype bool, and broadcasts to (B, H, T, S)."""
    if visible.dtype != torch.bool:
        raise TypeError(f"{layer}'s visible is of dtype torch.bool, True where a query may see a key, not {visible.dtype}")
    require_pairs(layer, "visible", visible, sizes)


def require_pairs(layer: str, name: str, of_pairs: Tensor, sizes: tuple[int, ...]) -> None:
    """Raise unless what is given of each pair of a query and a key broadcasts to (B, H, T, S)."""
    shape = of_pairs.shape
    padded = (*[1] * (4 - len(shape)), *shape)
    if len(padded) > 4 or any(own not in (1, size) for own, size in zip(padded, sizes, strict=True)):
        raise ValueError(
            f"{layer}'s {name} must be of a shape that broadcasts to (B, H, T, S), {sizes} here, not {tuple(shape)}"
        )


def require_sequences(name: str, x: Tensor, mask: Tensor | None = None) -> None:
    if x.ndim != 3:
        raise ValueError(f"{name} expects sequences of shape (B, T, F), but the input is of shape {tuple(x.shape)}")
    if mask is not None and mask.shape != x.shape[:2]:
        raise ValueError(
            f"{name} has a mask of shape {tuple(mask.shape)}, which must be the first two axes of the input's shape"
            f" {tuple(x.shape)}"
        )
