"""Philox4x32-10, a generator of random words without a state, in whole int64 tensors; `fundl.random` says what it makes of it.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
"""

from typing import Final

import torch
from torch import Tensor

WORD: Final = 0xFFFFFFFF
MULTIPLIERS: Final = 0xD2511F53, 0xCD9E8D57
_WEYL: Final = 0x9E3779B9, 0xBB67AE85
_ROUNDS: Final = 10

DRAW: Final = 0
FOLD_IN: Final = 1
SPLIT: Final = 2


def keys(key: Tensor, positions: Tensor, purpose: int) -> Tensor:
    """The keys (n, 2) at positions (n,): words 0 and 1 of their blocks, of one key (2,) or of a key (n, 2) for each."""
    even, odd = blocks(key, positions, purpose)
    return torch.stack((even[0], odd[0]), dim=1)


def integers(key: Tensor, positions: Tensor, bits: int) -> Tensor:
    """Integers of so many bits, up to 63, in the order of their blocks at positions (n,): (4, n), or (2, n) for two words each.

    They are the most significant bits of a word, or of two if one is too short.
    """
    if bits > 32:
        return wide(key, positions, bits)
    even, odd = blocks(key, positions, DRAW)
    words = torch.stack((even, odd), dim=1)  # (2, 2, n): words 0 and 1, words 2 and 3
    return words.reshape(4, -1) >> (32 - bits)


def wide(key: Tensor, positions: Tensor, bits: int) -> Tensor:
    """Integers (2, n) of 33 to 63 bits: each block gives one in the first row and one in the second."""
    even, odd = blocks(key, positions, DRAW)
    return (even << (bits - 32)) | (odd >> (64 - bits))


def blocks(key: Tensor, positions: Tensor, purpose: int) -> tuple[Tensor, Tensor]:
    """The blocks at positions (n,): words 0 and 2 in the first tensor (2, n), 1 and 3 in the second (2, n)."""
    even = torch.stack((positions, positions >> 32)) & WORD
    odd = torch.full((2, 1), purpose, dtype=torch.int64, device=key.device)
    return philox(even, odd, key)


def philox(even: Tensor, odd: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Philox4x32-10 of counters, whose words 0 and 2 are in one tensor (2, n), 1 and 3 in the other.

    A round maps words a, b, c, d to high(C c) ^ b ^ k, low(C c), high(A a) ^ d ^ l, low(A a), with constants A and C and
    the round's key k, l. The constants exceed 2**31: C c might overflow, but (C - 2**32) c never does; it has the same
    low word, and its high word is less by c.
    """
    multipliers = _pair(MULTIPLIERS[1] - 2**32, MULTIPLIERS[0] - 2**32, key.device).reshape(2, 1)
    for round_key in _round_keys(key):
        swapped = even.flip(0)
        product = swapped * multipliers
        even, odd = ((product >> 32) + swapped) ^ odd ^ round_key, product & WORD
    return even, odd


def _round_keys(key: Tensor) -> tuple[Tensor, ...]:
    """The keys of each round (2, n), of n keys: the words grow from round to round by two constants, modulo 2**32."""
    rounds = torch.arange(_ROUNDS, device=key.device).reshape(-1, 1, 1)
    words = (rounds * _pair(*_WEYL, key.device).reshape(2, 1) + key.reshape(-1, 2).t()) & WORD  # (rounds, 2, n)
    return words.unbind()


def _pair(first: int, second: int, device: torch.device) -> Tensor:
    """Two integers, made where they are used: torch.tensor would have the device wait for a copy from the host.

    (Of a range, torch's compiler makes an expression of the index, which has 32 bits with a sign on a GPU.)
    """
    return torch.cat([torch.full((1,), value, dtype=torch.int64, device=device) for value in (first, second)])
