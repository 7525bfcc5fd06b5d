"""What is a key, and what is said of what is none; `fundl.random` makes them."""

from typing import Final

import torch
from torch import Tensor

_SHAPES: Final = {(2,), (5,), (7,)}  # of a key, of one for a part of the rows, and of one for a piece of each


def require_key(key: Tensor) -> None:
    """Raise an error that says what a key is, unless this is one."""
    if not isinstance(key, Tensor):
        raise TypeError(f"a key is made by key(seed), split or fold_in, and is not {key!r}")
    if key.dtype != torch.int64:
        raise TypeError(f"a key is an int64 tensor made by key(seed), split or fold_in, not a tensor of {key.dtype}")
    if key.shape in _SHAPES:
        return
    if key.ndim == 2 and key.shape[1] == 2:
        raise ValueError(f"one key is needed, but here are {key.shape[0]}, as from split: iterate over them or pick one")
    raise ValueError(f"a key has shape (2,), as made by key(seed), split or fold_in, not {tuple(key.shape)}")


def require_key_and_shape(key: Tensor, shape: tuple[int, ...]) -> None:
    """Raise an error that says what is wrong, unless numbers of this shape can be drawn from the key."""
    require_key(key)
    unchecked: object = shape
    if not isinstance(unchecked, tuple) or not all(isinstance(size, int | torch.SymInt) for size in unchecked):
        raise TypeError(f"a shape is a tuple of ints, such as (2, 3), not {shape!r}")
    if any(size < 0 for size in shape):  # min would compare sizes with one another, which one that is free forbids
        raise ValueError(f"a shape has sizes of 0 or more, not {tuple(shape)}")
