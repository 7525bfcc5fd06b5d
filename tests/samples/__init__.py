"""The table of sample layers that drives the generic tests: each layer beside its formula in plain torch.

A new layer gets a row in the file of its family, and with it all tests of test_layers.py. A new family gets a file, and a
line here.
"""

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

SAMPLES: Final[tuple[Sample, ...]] = (
    *activation.SAMPLES,
    *attention.SAMPLES,
    *convolution.SAMPLES,
    *embedding.SAMPLES,
    *feed_forward.SAMPLES,
    *linear.SAMPLES,
    *low_rank.SAMPLES,
    *masked.SAMPLES,
    *normalization.SAMPLES,
    *pairs.SAMPLES,
    *pooling.SAMPLES,
    *positional.SAMPLES,
    *recurrent.SAMPLES,
    *resampling.SAMPLES,
    *structure.SAMPLES,
    *transformer.SAMPLES,
)

__all__ = ["ELEMENTWISE", "SAMPLES", "TOLERANCES", "Sample", "affine", "normal", "sample", "with_values"]
