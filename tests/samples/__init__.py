"""The table of sample layers that drives the generic tests: each layer beside its formula in plain torch.

A new layer gets a row in the file of its family, and with it all tests of test_layers.py. A new family gets a file, and a
line here.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Final

from tests.samples import (
    activation,
    attention,
    convolution,
    embedding,
    feed_forward,
    linear,
    low_rank,
    masked,
    normalization,
    pairs,
    pooling,
    positional,
    recurrent,
    resampling,
    structure,
    transformer,
)
from tests.samples.activation import ELEMENTWISE
from tests.samples.linear import affine
from tests.samples.table import TOLERANCES, Sample, normal, sample, with_values

FAMILIES: Final[tuple[ModuleType, ...]] = (
    activation,
    attention,
    convolution,
    embedding,
    feed_forward,
    linear,
    low_rank,
    masked,
    normalization,
    pairs,
    pooling,
    positional,
    recurrent,
    resampling,
    structure,
    transformer,
)


def _samples() -> Iterator[Sample]:
    for family in FAMILIES:
        samples: tuple[Sample, ...] = family.SAMPLES
        yield from samples


SAMPLES: Final[tuple[Sample, ...]] = tuple(_samples())

__all__ = ["ELEMENTWISE", "FAMILIES", "SAMPLES", "TOLERANCES", "Sample", "affine", "normal", "sample", "with_values"]
