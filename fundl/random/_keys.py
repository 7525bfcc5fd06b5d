"""Keys: of a seed, and new ones from a key and a number, or several at once; and those of a part of what a key draws."""

from array import array
from typing import TypeAlias

import torch
from torch import Tensor

from fundl._common import draws, philox
from fundl._common.keys import require_key
from fundl._common.modes import is_readable
from fundl._common.suggestions import with_explanations

Key: TypeAlias = Tensor
"""Two 32-bit words in an int64 tensor of shape (2,), as `key`, `split` and `fold_in` make them. To checkers it is a Tensor."""


@with_explanations
def key(seed: int, *, device: torch.device | str | None = None) -> Key:
    """The key of a seed.

    Args:
        seed: any integer from 0 to 2**64 - 1. Neighbouring seeds are as unlike as any two.
        device: where the key lives, and with it all that is drawn from it.

    Raises:
        TypeError: the seed is not an int.
        ValueError: the seed is negative, or does not fit into 64 bits.

    >>> key(7)
    tensor([7, 0])
    """
    _require_64_bits(seed, "a seed")
    return torch.tensor((seed & philox.WORD, seed >> 32), device=device)


def fold_in(key: Key, data: int | Tensor) -> Key:
    """A new key from a key and a number: of a step, an epoch, a layer, a device.

    Args:
        key: the key to derive from.
        data: an int from 0 to 2**64 - 1, or a tensor of one integer, such as the counter of a compiled step. A negative
            integer in a tensor stands for itself plus 2**64.

    Raises:
        TypeError: data is neither an int nor a tensor of integers.
        ValueError: data is negative or does not fit into 64 bits, or is a tensor of more than one number.

    >>> step = torch.tensor(3)
    >>> torch.equal(fold_in(key(0), step), fold_in(key(0), 3))
    True
    """
    require_key(key)
    if isinstance(data, Tensor):
        if data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
            raise TypeError(f"the number to fold in must be an integer, not {data.dtype}")
        if data.numel() != 1:
            raise ValueError(f"one number can be folded in, not a tensor of shape {tuple(data.shape)}")
        if not is_readable(data):
            words = philox.keys(draws.words_of(key), data.to(key.device, torch.int64).reshape(1), philox.FOLD_IN).reshape(2)
            return _of_same_part(words, key)
        data = int(data) % 2**64
    _require_64_bits(data, "the number to fold in")
    return _of_same_part(draws.keys(draws.words_of(key), data if data < 2**63 else data - 2**64, (2,), philox.FOLD_IN), key)


def split(key: Key, count: int = 2) -> Tensor:
    """New keys from a key, independent of each other and of it.

    Args:
        key: the key to split. Do not draw from it afterwards.
        count: how many keys to make. The first keys are the same for any count.

    Shape:
        (count, 2): iterating over it gives keys.

    Raises:
        ValueError: the count is negative.

    >>> weight_key, bias_key = split(key(0))
    >>> weight_key.shape
    torch.Size([2])
    """
    require_key(key)
    if type(count) is not int:
        raise TypeError(f"how many keys to make must be an int, not {count!r}: write split(key, 2), say")
    if count < 0:
        raise ValueError(f"a key can be split into 0 or more keys, not {count}")
    return _of_same_part(draws.keys(draws.words_of(key), 0, (count, 2), philox.SPLIT), key)


def of_part(key: Key, part: Tensor) -> Key:
    """The key that draws a part of the rows of what a key draws: each process draws those of its own rows of a batch.

    Each draw is of rows along its first axis. Of a whole draw, it gives the rows place, place + size, place + 2 size, ... A
    draw may have several lines for each row, one behind the other, such as the steps of sequences that were made one axis.
    Keys that are made from it, by `split` and `fold_in`, draw the same part. `train_step` gives such keys to the layers of a
    model that is trained over a group of processes.

    Args:
        key: of the whole draw.
        part: three integers, on the key's device: place, the first row; size, the distance to the next one; and how many rows
            there are.

    >>> from fundl.random import uniform
    >>> part = of_part(key(0), torch.tensor([1, 2, 2]))
    >>> torch.equal(uniform(part, (2, 3)), uniform(key(0), (4, 3))[1::2])
    True
    """
    require_key(key)
    unchecked: object = part
    if not isinstance(unchecked, Tensor) or part.shape != (3,) or part.dtype != torch.int64:
        raise TypeError(f"a part is an int64 tensor of three numbers, place, size and rows, not {part!r}")
    return torch.cat((draws.words_of(key), part))


def of_piece(key: Key, piece: Tensor) -> Key:
    """The key that draws a piece of each line of what a key draws: a process that has some of the features draws those.

    Each draw is of lines, along its last axis. Of n equal pieces, which the lines of a whole draw would have, one behind the
    other, it gives the piece of one place in each. The key may be one `of_part`. `distributed.tensor_parallel` gives such keys
    to layers that change each feature by itself.

    Args:
        key: of the whole draw.
        piece: two integers, on the key's device: place, from 0 on; and n.

    >>> from fundl.random import uniform
    >>> piece = of_piece(key(0), torch.tensor([1, 2]))
    >>> torch.equal(uniform(piece, (3, 4)), uniform(key(0), (3, 8))[:, 4:])
    True
    """
    require_key(key)
    unchecked: object = piece
    if not isinstance(unchecked, Tensor) or piece.shape != (2,) or piece.dtype != torch.int64:
        raise TypeError(f"a piece is an int64 tensor of two numbers, place and how many pieces there are, not {piece!r}")
    if key.shape == (7,):
        raise ValueError("the key is of a piece already: make the other piece of the key that it was made of")
    rows = key if draws.is_of_part(key) else torch.cat((key, key.new_tensor([0, 1, 1])))
    return torch.cat((rows, piece))


def _of_same_part(keys: Tensor, key: Key) -> Tensor:
    """Keys that draw the part of the rows that another one draws."""
    if not draws.is_of_part(key):
        return keys
    return torch.cat((keys, key[2:].expand(*keys.shape[:-1], key.shape[-1] - 2)), -1)


def split_twice(key: Key, places: "array[int]", count: int) -> tuple[Key, ...]:
    """The keys ``split(split(key, ...)[place], count)`` of some places, in order, of 64 bits each; one behind the other."""
    require_key(key)
    return draws.nested_keys(draws.words_of(key), places, count, philox.SPLIT)


def _require_64_bits(number: int, name: str) -> None:
    if type(number) is not int:
        raise TypeError(f"{name} must be an int, not {number!r}")
    if not 0 <= number < 2**64:
        raise ValueError(f"{name} must be from 0 to 2**64 - 1, not {number}")
