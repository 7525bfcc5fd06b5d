"""Wherever in memory the numbers lie, every layer of the table computes the same: eager and compiled.

The parameters, the input and the cotangent lie, each in turn, in every layout of `fundl._common.layouts`, in float64 and in
float32.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import pytest
import torch

from fundl import Model, jit, tree
from fundl._common.layouts import LAYOUTS
from fundl._common.running import run_backward, run_forward
from tests.samples import SAMPLES, Sample
from tests.test_jit_samples import GROUPS, gradient_for

# How far numbers may be from those of contiguous tensors, relative to the largest of their tensor: kernels round in other ways.
TOLERANCES: Final = {torch.float64: 1e-12, torch.float32: 2e-5}

every_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


class Given(NamedTuple):
    """What a run is given: what may lie in memory in one way or another."""

    parameters: Model
    input: object
    cotangent: object


def given(sample: Sample, dtype: torch.dtype) -> Given:
    model, x = tree.cast_to((sample.model, sample.x), dtype)
    return Given(model, x, gradient_for(model, x))


def laid_out(contiguous: Given) -> Iterator[tuple[str, Given]]:
    """All that is given, with one part of it in each layout that is another, under a name for messages."""
    for name, layout in LAYOUTS.items():
        moved = tree.map(layout, contiguous)
        for part, some in (
            ("parameters", contiguous._replace(parameters=moved.parameters)),
            ("input", contiguous._replace(input=moved.input)),
            ("cotangent", contiguous._replace(cotangent=moved.cotangent)),
        ):
            if strides(some) != strides(contiguous):
                yield f"the {part} {name}", some


def strides(values: object) -> list[tuple[int, ...]]:
    return [leaf.stride() for leaf in tree.leaves(values)]


def run(some: Given) -> object:
    output, residuals = run_forward(some.parameters, some.input)
    return output, run_backward(some.parameters, residuals, some.cotangent)


def run_contiguous(some: Given) -> object:
    return run(tree.map(lambda leaf: leaf.clone(memory_format=torch.contiguous_format), some))


def assert_near(actual: object, expected: object, when: str) -> None:
    assert tree.paths(actual) == tree.paths(expected), when
    for path, one, other in zip(tree.paths(actual), tree.flatten(actual)[0], tree.flatten(expected)[0], strict=True):
        if one is None or other is None or not other.is_floating_point():
            continue  # integers have no gradient
        largest = float(other.abs().max()) if other.numel() else 0.0

        def said(text: str, path: str = path) -> str:
            return f"{when}{path}: {text}"

        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCES[other.dtype] * max(1.0, largest), msg=said)


@every_dtype
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_layouts_do_not_matter(sample: Sample, dtype: torch.dtype) -> None:
    contiguous = given(sample, dtype)
    for name, moved in laid_out(contiguous):
        assert_near(run(moved), run_contiguous(moved), name)


def all_layouts(everything: Mapping[str, Mapping[str, Given]]) -> dict[str, dict[str, object]]:
    return {sample: {name: run(moved) for name, moved in layouts.items()} for sample, layouts in everything.items()}


@pytest.mark.slow
@every_dtype
@pytest.mark.parametrize("samples", GROUPS.values(), ids=GROUPS.keys())
def test_compiled_layouts_do_not_matter(samples: Sequence[Sample], dtype: torch.dtype) -> None:
    everything = {sample.name: dict(laid_out(given(sample, dtype))) for sample in samples if dtype in sample.tolerances}
    compiled = jit(all_layouts)
    actual = compiled(everything)
    assert all(trace.compiled for trace in compiled.traces)
    for sample, layouts in everything.items():
        for name, moved in layouts.items():
            assert_near(actual[sample][name], run_contiguous(moved), f"{sample}, {name}")
