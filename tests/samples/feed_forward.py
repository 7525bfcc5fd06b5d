"""Sample layers: feed-forward networks, and gates."""

from typing import Final

import torch.nn.functional as F
from torch import Tensor

from fundl import GELU, GLU, SiLU, Softmax, feed_forward, gated_feed_forward
from tests.samples.linear import affine
from tests.samples.table import normal, sample


def halves(x: Tensor, axis: int = -1) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2, axis)
    return first, second


SAMPLES: Final = (
    sample("GLU", GLU(), normal(5, 6), lambda _, x: F.glu(x)),
    sample("GLU, axis", GLU(axis=1), normal(5, 4, 3), lambda _, x: F.glu(x, 1)),
    sample("GLU, SiLU", GLU(SiLU()), normal(5, 2, 6), lambda _, x: halves(x)[0] * F.silu(halves(x)[1])),
    sample("GLU, GELU, axis", GLU(GELU(), axis=1), normal(5, 4, 3), lambda _, x: halves(x, 1)[0] * F.gelu(halves(x, 1)[1])),
    # A function of more than one element is no less a gate.
    sample("GLU, Softmax", GLU(Softmax()), normal(5, 6), lambda _, x: halves(x)[0] * halves(x)[1].softmax(-1)),
    sample(
        "feed_forward",
        feed_forward(3, 4),
        normal(5, 2, 3),
        lambda p, x: affine(p[2], F.gelu(affine(p[0], x))),
        kept=2 * 5 * 2 * 4 * 8,
    ),
    sample(
        "gated_feed_forward",
        gated_feed_forward(3, 4),
        normal(5, 2, 3),
        lambda p, x: affine(p[2], halves(affine(p[0], x))[0] * F.silu(halves(affine(p[0], x))[1])),
        kept=3 * 5 * 2 * 4 * 8,
    ),
)
