"""Random numbers as a pure function of a key: the same key gives the same bits, everywhere and always.

There is no generator to advance and no global state. A key is a value; what is drawn from it is a function of it; new
keys are made from it by `split` and `fold_in`. Draw from a key once: two draws from one key are made of the same words.

Everything is made of a few operations on whole int64 tensors that never overflow, and of operations on floating-point
numbers that are rounded as IEEE 754 says. So eager, compiled and exported code, on any device, agree to the bit. Where a last
bit may differ all the same, `uniform` and `normal` say so. Normal numbers, and uniform ones outside [0, 1), pass through
float64 on the key's device. On the CPU, the same operations run in a loop in C, which is compiled once on each machine; where
there is no compiler for C, tensors do it, which takes some 30 times as long for many numbers.

The stream
----------
Files and papers rely on what follows; it does not change.

*Words* are unsigned 32-bit integers, held in int64. A *key* is two words: of ``key(seed)``, the low one and the high one
of the 64-bit seed. A *block* is four words, Philox4x32-10 of the key and of a *counter* of four words:

- words 0 and 2: the low and the high word of the block's *position*, from 0 to 2**64 - 1;
- words 1 and 3: the *purpose*, which is 0 for `bits` and all that is drawn, 1 for `fold_in`, 2 for `split`.

``fold_in(key, data)`` is words 0 and 1 of the block at position ``data``; key number i of ``split(key, count)`` is words 0
and 1 of the block at position i. A draw of any shape fills it in row-major order, from block 0 on, and the number at
place i depends on nothing but the key and i:

- `bits`, `bernoulli`, and `uniform` in other dtypes than float64: word i % 4 of block i // 4; a float is made of its
  most significant bits.
- `uniform` in float64, `randint`, `permutation`, `normal`, `truncated_normal`, `exponential`, `gumbel`: words 2 (i % 2), the
  more significant, and 2 (i % 2) + 1 of block i // 2. `normal` takes a block for two numbers: its words 0 and 1 are their
  common radius, 2 and 3 their angle.

What is made of other draws has their numbers:

- `rademacher` those of `bernoulli`; `categorical` those of `gumbel`, with the classes along the last axis; `choice` those of
  `randint`, `permutation`, `uniform` in float64, or, with probabilities and without replacement, of `exponential`.
- `gamma` those of keys that are split from its own: of key 0 `exponential` numbers, for u; of keys 2 r + 1 and 2 r + 2 `normal`
  and `exponential` ones, for round r, from 0 on. `dirichlet` has gamma numbers of its own key, `beta` of two split from it.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
"""

from fundl.random._categories import categorical as categorical
from fundl.random._categories import choice as choice
from fundl.random._gammas import beta as beta
from fundl.random._gammas import dirichlet as dirichlet
from fundl.random._gammas import gamma as gamma
from fundl.random._integers import bernoulli as bernoulli
from fundl.random._integers import bits as bits
from fundl.random._integers import permutation as permutation
from fundl.random._integers import rademacher as rademacher
from fundl.random._integers import randint as randint
from fundl.random._keys import Key as Key
from fundl.random._keys import fold_in as fold_in
from fundl.random._keys import key as key
from fundl.random._keys import of_part as of_part
from fundl.random._keys import of_piece as of_piece
from fundl.random._keys import split as split
from fundl.random._keys import split_twice as split_twice
from fundl.random._normals import normal as normal
from fundl.random._normals import truncated_normal as truncated_normal
from fundl.random._uniforms import uniform as uniform
from fundl.random._waiting import exponential as exponential
from fundl.random._waiting import gumbel as gumbel

__all__ = [
    "Key", "bernoulli", "beta", "bits", "categorical", "choice", "dirichlet", "exponential", "fold_in", "gamma", "gumbel",
    "key", "normal", "permutation", "rademacher", "randint", "split", "truncated_normal", "uniform",
]  # fmt: skip
