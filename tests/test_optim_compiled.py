"""Optimizers compiled, all as one graph: after a change of hyper-parameters, and for gradients of all kinds."""

import itertools
from typing import Final

import pytest
import torch

from fundl import State, jit, tree
from fundl.optim.chain import AnyTransform
from tests import test_optim_numbers as numbers
from tests import test_optim_states as states
from tests.optimizer_samples import OPTIMIZERS

pytestmark = pytest.mark.slow

Runs = dict[str, tuple[states.Params, states.AnyState]]
NumberRuns = dict[str, tuple[numbers.Params, State[numbers.Params, object]]]

CONTINUED: Final[dict[str, tuple[AnyTransform, AnyTransform]]] = {
    str(pair.id): (pair.made_by, pair.continued_by) for pair in states.pairs() if pair.is_quick
}


def continued_steps(runs: Runs, grads: states.Params) -> Runs:
    return {name: CONTINUED[name][1].step(grads, state, params) for name, (params, state) in runs.items()}


def test_what_is_in_the_record_is_the_records_compiled_too() -> None:
    runs: Runs = {}
    for name, (made_by, continued_by) in CONTINUED.items():
        params, state, _ = states.after_two_steps(made_by)
        if not states.refuses(continued_by, state):
            runs[name] = (params, state)
    assert len(runs) > 80
    compiled = jit(continued_steps, max_traces=1)
    for seed in (3, 4, 5):
        after, runs = compiled(runs, states.params_of(seed)), continued_steps(runs, states.params_of(seed))
        states.assert_close(after, runs, 1e-12)


def sample_steps(runs: NumberRuns, grads: numbers.Params) -> NumberRuns:
    return {name: OPTIMIZERS[name].step(grads, state, params) for name, (params, state) in runs.items()}


@pytest.mark.parametrize("dtype", numbers.DTYPES, ids=str)
def test_every_gradient_compiled_gives_what_it_gives_eager(dtype: torch.dtype) -> None:
    compiled, unit = jit(sample_steps, max_traces=1), torch.finfo(dtype).eps
    tolerance = max((4 if dtype.itemsize == 2 else 32) * unit, 1e-12)
    for value, everywhere in itertools.product(numbers.VALUES, (True, False)):
        params = numbers.draw(0, dtype)
        runs: NumberRuns = {name: (params, optimizer.init(params)) for name, optimizer in OPTIMIZERS.items()}
        for grads in numbers.gradients(value, dtype, everywhere=everywhere):
            after, expected = compiled(runs, grads), sample_steps(runs, grads)
            for name, (moved, _) in expected.items():
                numbers.assert_alike(after[name][0], moved, tolerance, runs[name][0])
            assert [leaf.dtype for leaf in tree.leaves(after)] == [leaf.dtype for leaf in tree.leaves(expected)]
            runs = expected
