"""All layers, losses and optimizers of the tables: compiled they compute what they do uncompiled, parameter by parameter.

The fast tests run the traced graphs as they are, which must give the very same bits. The slow ones compile them: some samples
as one graph, since each compilation takes seconds, whatever its size.
"""

import itertools
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Final, TypeAlias

import pytest
import torch
from torch import Tensor

from fundl import Model, jit, key, random, tree
from fundl._common.running import run_backward, run_forward
from fundl.optim.transform import State
from tests.loss_base import REDUCTIONS
from tests.loss_samples import SAMPLES as LOSSES
from tests.optimizer_samples import OPTIMIZERS
from tests.samples import FAMILIES, SAMPLES, Sample, attention, recurrent, transformer

# How far numbers may be from eager's, relative to the largest of their tensor.
TOLERANCES: Final = {torch.float64: 1e-13, torch.float32: 5e-6}

PER_GRAPH: Final = 8
FEWER: Final[Mapping[ModuleType, int]] = {attention: 4, recurrent: 3, transformer: 4}
"""How many samples of a family are compiled as one graph: as many as compile in less than a minute."""


def groups() -> dict[str, Sequence[Sample]]:
    found: dict[str, Sequence[Sample]] = {}
    for family in FAMILIES:
        size = FEWER.get(family, PER_GRAPH)
        samples: tuple[Sample, ...] = family.SAMPLES
        name = family.__name__.rpartition(".")[2]
        found |= {f"{name} {start}": samples[start : start + size] for start in range(0, len(samples), size)}
    return found


GROUPS: Final = groups()

# A graph has each step of a recurrence; those of several layers, directions or masks are long to trace, and left to the slow
# test.
QUICK: Final = [
    sample for sample in SAMPLES if not (sample in recurrent.SAMPLES and ("deep" in sample.name or "mask" in sample.name))
]


def output_and_gradients(model: Model, x: object, grad: object) -> object:
    output, residuals = run_forward(model, x)
    return output, run_backward(model, residuals, grad)


def gradient_for(model: Model, x: object) -> object:
    """A random gradient with respect to the output."""
    output, _ = run_forward(model, x)
    return tree.map(lambda leaf: random.normal(key(3), tuple(leaf.shape), dtype=torch.float64).to(leaf.dtype), output)


def assert_near(actual: object, expected: object) -> None:
    """Two trees are alike, and their tensors equal up to rounding."""
    assert tree.paths(actual) == tree.paths(expected)
    for path, one, other in zip(tree.paths(actual), tree.flatten(actual)[0], tree.flatten(expected)[0], strict=True):
        if one is None or other is None:
            assert one is other, path
            continue
        assert (one.shape, one.dtype) == (other.shape, other.dtype), path
        exact = other.dtype not in TOLERANCES or not other.numel()
        tolerance = 0.0 if exact else TOLERANCES[other.dtype] * float(other.abs().max())

        def said(what: str, path: str = path) -> str:
            return f"{path}: {what}"

        torch.testing.assert_close(one, other, rtol=0, atol=tolerance, equal_nan=True, msg=said)


def test_every_family_is_here() -> None:
    assert sorted(sample.name for group in GROUPS.values() for sample in group) == sorted(sample.name for sample in SAMPLES)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("sample", QUICK, ids=lambda sample: sample.name)
def test_every_layer_traced_is_itself(sample: Sample) -> None:
    grad = gradient_for(sample.model, sample.x)
    compiled = jit(output_and_gradients)
    for _ in range(2):
        actual = compiled(sample.model, sample.x, grad)
        assert tree.equal(actual, output_and_gradients(sample.model, sample.x, grad))
    assert len(compiled.traces) == 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("samples", GROUPS.values(), ids=GROUPS.keys())
def test_every_layer_compiled_equals_itself(samples: Sequence[Sample], dtype: torch.dtype) -> None:
    models, xs, grads = dict[str, Model](), dict[str, object](), dict[str, object]()
    for sample, rows in itertools.product(samples, [None, 1, 2]):
        if dtype in sample.tolerances and (sample.batched or rows is None):
            model, x = tree.cast_to((sample.model, sample.x), dtype)
            name = f"{sample.name}, {rows or 'all'} rows"
            models[name], xs[name] = model, tree.map(lambda leaf: leaf[:rows], x) if rows else x  # noqa: B023  # called at once
            grads[name] = gradient_for(model, xs[name])

    def all_of_them(models: dict[str, Model], xs: dict[str, object], grads: dict[str, object]) -> dict[str, object]:
        return {name: output_and_gradients(model, xs[name], grads[name]) for name, model in models.items()}

    compiled = jit(all_of_them)
    assert_near(compiled(models, xs, grads), all_of_them(models, xs, grads))
    assert all(trace.compiled for trace in compiled.traces)


# --- Losses -------------------------------------------------------------------------------------------------------------


def losses(dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: sample.inputs(dtype) for name, sample in LOSSES.items()}


def values_and_grads(inputs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, object]:
    return {
        f"{name}, {reduction}": LOSSES[name].loss(prediction, target, reduction=reduction)
        for name, (prediction, target) in inputs.items()
        for reduction in REDUCTIONS
    }


@pytest.mark.usefixtures("interpreted")
def test_every_loss_traced_is_itself() -> None:
    inputs = losses(torch.float64)
    assert tree.equal(jit(values_and_grads)(inputs), values_and_grads(inputs))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_loss_compiled_equals_itself(dtype: torch.dtype) -> None:
    inputs = losses(dtype)
    assert_near(jit(values_and_grads)(inputs), values_and_grads(inputs))


# --- Optimizers ---------------------------------------------------------------------------------------------------------

Params: TypeAlias = tuple[Tensor, dict[str, Tensor]]
Runs: TypeAlias = dict[str, tuple[Params, State[Params, object]]]


def optimizer_steps(runs: Runs, grads: Params) -> Runs:
    return {name: OPTIMIZERS[name].step(grads, state, params) for name, (params, state) in runs.items()}


def assert_five_steps_are_near() -> None:
    params: Params = (random.normal(key(0), (3, 5)), {"a": random.normal(key(1), (5,)), "b": random.normal(key(2), ())})
    compiled = jit(optimizer_steps, max_traces=1)
    run: Runs = {name: (params, optimizer.init(params)) for name, optimizer in OPTIMIZERS.items()}
    for number in range(5):
        seeds = iter(random.split(random.fold_in(key(3), number), 3))
        grads = tree.map(lambda leaf: random.normal(next(seeds), tuple(leaf.shape)), params)  # noqa: B023  # called at once
        after, run = compiled(run, grads), optimizer_steps(run, grads)
        assert_near(after, run)


@pytest.mark.usefixtures("interpreted")
def test_every_optimizer_traced_equals_itself() -> None:
    assert_five_steps_are_near()  # not the same bits: eager has fused kernels


@pytest.mark.slow
def test_every_optimizer_compiled_equals_itself() -> None:
    assert_five_steps_are_near()
