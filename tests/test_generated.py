"""Functions made as text: their lines show in tracebacks, for as long as they live."""

import inspect
import linecache
import traceback

import pytest
import torch

from fundl import Linear
from fundl._common.generated import define

SOURCE = """
def divided(x):
    y = x + 1
    return total / y
"""


def test_a_traceback_shows_the_lines() -> None:
    divided = define(SOURCE, "divided", {"total": 6})
    assert divided(2) == 2
    with pytest.raises(ZeroDivisionError) as raised:
        divided(-1)
    assert "return total / y" in "".join(traceback.format_exception(raised.value))
    assert inspect.getsource(divided) == SOURCE.removeprefix("\n")


def test_what_is_dropped_leaves_nothing() -> None:
    before = len(linecache.cache)
    for _ in range(10):
        assert define(SOURCE, "divided", {"total": 1})(0) == 1
    assert len(linecache.cache) == before


def test_what_is_written_for_records_can_be_read() -> None:
    layer = Linear(torch.ones(1, 2), None)
    assert "store_weight(__record, weight)" in inspect.getsource(layer.gradient)
    with pytest.raises(TypeError, match=r"Linear\.gradient\(\) missing 1 required positional argument: 'bias'"):
        layer.gradient(torch.ones(1, 2))
