"""Compiled functions are used as functions are: as methods of classes, copied, and pickled."""

import copy
import pickle

import attrs
import pytest
import torch
from torch import Tensor

from fundl import DonatedError, jit, mse, scan, sgd, train_step
from fundl.tree import Record


@attrs.frozen(eq=False)
class Counter(Record):
    total: Tensor
    by: int = 1

    @jit
    def plus(self, x: Tensor) -> "Counter":
        return Counter(self.total + self.by * x, self.by)

    @staticmethod
    @jit
    def twice(x: Tensor) -> Tensor:
        return 2 * x


class Scaler:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    @jit
    def bare(self, x: Tensor) -> Tensor:
        return x * self.factor

    def _scaled(self, x: Tensor) -> Tensor:
        return x * self.factor

    scaled = jit(_scaled, static="self")


@jit
def double(x: Tensor) -> Tensor:
    return x * 2


def total(state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return state + x, state


compiled_total = jit(total, donate="state")
scanned_total = scan(total)


@pytest.mark.usefixtures("interpreted")
def test_methods_are_compiled() -> None:
    counter, x = Counter(torch.zeros(2)), torch.ones(2)
    for number in range(3):
        counter = counter.plus(x)
        assert torch.equal(counter.total, torch.full((2,), number + 1.0))
    assert torch.equal(Counter(torch.zeros(2), 3).plus(x=x).total, torch.full((2,), 3.0))
    assert torch.equal(Counter.plus(counter, x).total, torch.full((2,), 4.0))
    assert torch.equal(Counter.twice(x), 2 * x)
    assert len(Counter.plus.traces) == 2  # the second for the argument that was given by name, and another static field
    one, other = Scaler(2), Scaler(3)
    assert torch.equal(one.scaled(x), 2 * x)
    assert torch.equal(other.scaled(x), 3 * x)
    with pytest.raises(TypeError, match=r"^self is a Scaler, .* be named in jit\(\.\.\., static=\.\.\.\)"):
        one.bare(x)


@pytest.mark.usefixtures("interpreted", "interpreted_loop")
def test_copies_and_pickles() -> None:
    x = torch.ones(2)
    for function in (double, compiled_total, scanned_total):
        assert copy.copy(function) is function
        assert copy.deepcopy([function])[0] is function
    assert pickle.loads(pickle.dumps(double)) is double
    again = pickle.loads(pickle.dumps(compiled_total))
    assert again is not compiled_total
    state = torch.zeros(2)
    assert torch.equal(again(state, x)[0], x)
    with pytest.raises(DonatedError):
        state + 1
    state, reports = pickle.loads(pickle.dumps(scanned_total))(torch.zeros(2), torch.ones(3, 2))
    assert torch.equal(state, torch.full((2,), 3.0))
    assert torch.equal(reports[:, 0], torch.arange(3.0))
    assert pickle.loads(pickle.dumps(jit(total, static=(), max_traces=0))).traces == ()
    step = train_step(mse, sgd(0.1))
    compiled, scanned = jit(step, donate="state"), scan(step)
    for local in (jit(lambda x: x), compiled, scanned):
        with pytest.raises(TypeError, match="cannot be pickled, compiled or not: it is made inside of a function"):
            pickle.dumps(local)
