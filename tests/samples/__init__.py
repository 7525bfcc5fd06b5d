"""The table of sample layers that drives the generic tests: each layer beside its formula in plain torch.

A new layer gets a row in the file of its family, and with it all tests of test_layers.py. A new family gets a file.
"""

import importlib
import pkgutil
from types import ModuleType
from typing import Final

from tests.samples.activation import ELEMENTWISE
from tests.samples.linear import affine
from tests.samples.table import TOLERANCES, Sample, normal, sample, with_values

FAMILIES: Final[tuple[ModuleType, ...]] = tuple(
    importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__) if found.name != "table"
)


def samples_of(family: ModuleType) -> tuple[Sample, ...]:
    """The rows in the file of a family."""
    samples: tuple[Sample, ...] = family.SAMPLES
    return samples


SAMPLES: Final[tuple[Sample, ...]] = tuple(row for family in FAMILIES for row in samples_of(family))

__all__ = [
    "ELEMENTWISE",
    "FAMILIES",
    "SAMPLES",
    "TOLERANCES",
    "Sample",
    "affine",
    "normal",
    "sample",
    "samples_of",
    "with_values",
]
