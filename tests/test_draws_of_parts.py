"""Keys that draw a part of the rows: what each of many processes draws of a batch that one process draws whole."""

import math
from collections.abc import Callable
from typing import Final

import pytest
import torch
from torch import Tensor

from fundl import Dropout, apply, forward, jit, key, vjp
from fundl._common import draws, dropping
from fundl.random import (
    bernoulli,
    beta,
    bits,
    categorical,
    choice,
    dirichlet,
    exponential,
    fold_in,
    gamma,
    gumbel,
    normal,
    of_part,
    permutation,
    rademacher,
    randint,
    split,
    truncated_normal,
    uniform,
)

Draw = Callable[[Tensor, tuple[int, ...]], Tensor]
DRAWS: Final[dict[str, Draw]] = {
    "bits": bits,
    "bernoulli": lambda key, shape: bernoulli(key, shape, probability=0.3),
    "randint": lambda key, shape: randint(key, shape, low=-5, high=2**39),
    "uniform": uniform,
    "uniform in float64": lambda key, shape: uniform(key, shape, dtype=torch.float64),
    "uniform in a range": lambda key, shape: uniform(key, shape, low=-0.1, high=1e-3),
    "normal": normal,
    "normal in float64": lambda key, shape: normal(key, shape, dtype=torch.float64),
    "normal in half precision": lambda key, shape: normal(key, shape, dtype=torch.bfloat16),
    "truncated_normal": truncated_normal,
    "rademacher": rademacher,
    "exponential": exponential,
    "gumbel": gumbel,
    "categorical": lambda key, shape: categorical(key, torch.linspace(-1, 1, 6), shape=shape),
    "choice": lambda key, shape: choice(key, 100, shape),
    "choice by probabilities": lambda key, shape: choice(key, 6, shape, probabilities=torch.linspace(0, 1, 6)),
    "gamma": lambda key, shape: gamma(key, shape, concentration=1.0),
    "gamma of a small concentration": lambda key, shape: gamma(key, shape, concentration=0.1, dtype=torch.float64),
    "beta": lambda key, shape: beta(key, shape, alpha=0.7, beta=3.0),
    "dirichlet": lambda key, shape: dirichlet(key, (*shape, 3), concentration=0.5)[..., 1],
}
SHAPES: Final = [(5, 8), (5, 3), (15, 2, 4), (10, 3, 7), (5, 1), (5, 1200), (35, 1, 1), (5,), (5, 0)]
ROWS, SIZE = 5, 3


def part(place: int, rows: int = ROWS) -> Tensor:
    return torch.tensor([place, SIZE, rows])


@pytest.mark.parametrize("in_c", [True, False], ids=["in C", "in tensors"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_parts_make_the_whole(draw: Draw, shape: tuple[int, ...], in_c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw(fold_in(key(1), 4), (shape[0] * SIZE, *shape[1:])).reshape(ROWS, SIZE, math.prod(shape) // ROWS)
    if not in_c:
        monkeypatch.setattr(draws, "functions", dict)
    for place in range(SIZE):
        drawn = draw(fold_in(of_part(key(1), part(place)), 4), shape)
        assert drawn.shape == shape
        assert torch.equal(drawn.reshape(ROWS, -1), whole[:, place])


def test_no_rows() -> None:
    for draw in DRAWS.values():
        assert draw(of_part(key(1), part(0, rows=0)), (0, 4)).shape == (0, 4)


def test_keys_of_a_part_stay_of_it() -> None:
    own = of_part(key(1), part(2))
    assert torch.equal(split(own, 4)[:, :2], split(key(1), 4))
    assert torch.equal(split(own, 4)[3, 2:], part(2))
    for data in 7, torch.tensor(7):
        assert torch.equal(fold_in(own, data), torch.cat((fold_in(key(1), 7), part(2))))
    assert torch.equal(permutation(own, 9), permutation(key(1), 9))
    for probabilities in (None, torch.ones(9)):
        chosen = [choice(of, 9, (4,), replace=False, probabilities=probabilities) for of in (own, key(1))]
        assert torch.equal(*chosen)
    assert torch.equal(of_part(own, part(1)), of_part(key(1), part(1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("in_c", [True, False], ids=["in C", "in tensors"])
def test_dropout(dtype: torch.dtype, in_c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, grad = normal(key(2), (15, 4, 3), dtype=dtype), normal(key(3), (15, 4, 3), dtype=dtype)
    whole, _ = forward(Dropout(0.5, key(1)), x)
    _, whole_grad = vjp(Dropout(0.5, key(1)), x, grad)
    if not in_c:
        monkeypatch.setattr(draws, "functions", dict)
        monkeypatch.setattr(dropping, "_functions", dict)
    for place in range(SIZE):
        layer = Dropout(0.5, of_part(key(1), part(place)))
        _, grad_x = vjp(layer, x[place::SIZE], grad[place::SIZE])
        assert torch.equal(apply(layer, x[place::SIZE]), whole[place::SIZE])
        assert torch.equal(grad_x, whole_grad[place::SIZE])


def test_compiled() -> None:
    """The place is a number that the graph is given: all processes have one graph."""

    @jit
    def dropped(some_key: Tensor, x: Tensor) -> Tensor:
        return apply(Dropout(0.5, some_key), x)

    x = normal(key(2), (15, 5))
    whole = apply(Dropout(0.5, key(1)), x)
    for place in range(SIZE):
        assert torch.equal(dropped(of_part(key(1), part(place)), x[place::SIZE].contiguous()), whole[place::SIZE])
    assert len(dropped.traces) == 1


def test_what_is_no_part() -> None:
    with pytest.raises(TypeError, match="a part is an int64 tensor of three numbers"):
        of_part(key(0), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="a key has shape"):
        bits(torch.zeros(4, dtype=torch.int64), (2,))
