"""Pooling, for which compiled code calls torch's kernels: what inductor makes of it went wrong.

To 2.14, it divides the gradient of a mean by the whole window where that reaches beyond the end as well (pytorch#198119), and
finds maxima in other places than they are from, if an image is transposed in memory (pytorch#197434), or if a window that is
padded sees nothing but -inf.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from fundl._common import kernels
from fundl._compiling.torch_private import Decompositions

NAMES: Final = ("torch._inductor.lowering.fallback_handler", "torch._inductor.lowering.lowerings")
"""What is private in torch and used here."""


def decompositions() -> Decompositions:
    """Pooling is not taken apart."""
    return dict.fromkeys(kernels.POOLS, _whole)


def _whole(*_: object) -> object:
    return NotImplemented


@contextmanager
def called() -> Iterator[None]:
    """Have inductor call the kernels meanwhile."""
    from torch._inductor.lowering import fallback_handler, lowerings

    before = {pool: lowerings.get(pool) for pool in kernels.POOLS}
    for pool in kernels.POOLS:
        lowerings[pool] = fallback_handler(pool, add_to_fallback_set=False)  # type: ignore[no-untyped-call]  # torch's own
    try:
        yield
    finally:
        for pool, own in before.items():
            if own is None:
                del lowerings[pool]
            else:
                lowerings[pool] = own
