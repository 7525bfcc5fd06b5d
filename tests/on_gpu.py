"""What tests that want a GPU have in common. With FUNDL_TEST_DEVICE=cpu they run against the CPU itself, which tests them."""

import os
from typing import Final, TypeVar

import pytest
import torch
from torch import Tensor

from fundl import assert_trees_close, tree

T = TypeVar("T")

CPU: Final = torch.device("cpu")
DEVICE: Final = torch.device(os.environ.get("FUNDL_TEST_DEVICE", "cuda"))
IS_GPU: Final = DEVICE.type == "cuda"

MARKS: Final = [pytest.mark.cuda, pytest.mark.skipif(IS_GPU and not torch.cuda.is_available(), reason="there is no GPU")]


def moved(values: T, dtype: torch.dtype | None = None, device: torch.device = DEVICE) -> T:
    """A tree on the device; numbers that are not whole of another dtype, if one is given. What was there is copied as well."""
    return tree.map(lambda leaf: _moved(leaf, dtype, device), values)


def _moved(leaf: Tensor, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    return leaf.to(device, dtype if dtype is not None and leaf.is_floating_point() else leaf.dtype, copy=True)


def assert_as_on_cpu(found: object, expected: object, tolerance: float) -> None:
    """What was found on the device is on it, and is what was expected on the CPU."""
    assert {leaf.device.type for leaf in tree.leaves(found)} <= {DEVICE.type}
    assert_trees_close(moved(found, device=CPU), expected, rtol=tolerance, atol=tolerance)
