"""Random numbers, and what is made of them: fundl's against torch's own, which has a state and no promise of bits.

Drawing 100 to 10,000,000 numbers, and for many runs at once; giving a network its first parameters, which takes longer for the
first network of a kind; and an eager step of the disk network with a dropout after each ReLU. Both sides take turns in one
process, on one thread; the ratio is the median over the turns, of how many times as long torch takes.

    python -m benchmarks.drawing
    python -m benchmarks.drawing --rounds 31 --only normal
"""

from collections.abc import Iterator
from functools import partial
from itertools import cycle, pairwise
from typing import Annotated, Final

import torch
import typer
from torch import Tensor, nn

from benchmarks.turns import Side, compared, machine
from fundl import (
    Dropout,
    Model,
    ReLU,
    compose,
    ensemble,
    initialize,
    key,
    linear,
    mse,
    random,
    sgd,
    split,
    train_state,
    train_step,
)

SIZES: Final = (100, 10_000, 1_000_000, 10_000_000)
DISK: Final = (2, 25, 25, 25, 2)
MLP: Final = (784, 512, 512, 10)
RATE: Final = 0.1


def draws() -> Iterator[tuple[str, Side, Side]]:
    """Names, and what fundl and torch do."""
    some_key = key(0)
    for size in SIZES:
        shape = (size,)
        yield f"normal {size}", partial(random.normal, some_key, shape), partial(torch.randn, shape)
        yield f"uniform {size}", partial(random.uniform, some_key, shape), partial(torch.rand, shape)
        yield f"bernoulli {size}", partial(random.bernoulli, some_key, shape, probability=0.9), partial(bernoulli, shape)


def batched() -> Iterator[tuple[str, Side, Side]]:
    """Numbers for each of 10 runs."""
    keys, runs = split(key(0), 10), torch.zeros(10)
    mine = ensemble.each(lambda one: random.normal(one, SIZES[:1]))
    other = torch.vmap(lambda _: torch.randn(SIZES[:1]), randomness="different")
    yield f"normal {SIZES[0]} in vmap", lambda: mine(keys), lambda: other(runs)


def bernoulli(shape: tuple[int, ...]) -> Tensor:
    """As `random.bernoulli`, by torch."""
    return torch.empty(shape, dtype=torch.bool).bernoulli_(0.9)


def networks() -> Iterator[tuple[str, Side, Side]]:
    """Networks made and given their first parameters: torch.nn does both in one."""
    for sizes in (DISK, MLP):
        name = "initialize " + "-".join(map(str, sizes))
        yield name, partial(initialized, sizes), partial(theirs, sizes)
    kinds = [cycle([(*DISK[:-1], outputs) for outputs in range(1, 101)]) for _ in range(2)]  # more than are kept
    yield "initialize, each another kind", lambda: initialized(next(kinds[0])), lambda: theirs(next(kinds[1]))


def initialized(sizes: tuple[int, ...]) -> Model:
    """A network with values."""
    return initialize(key(0), ours(sizes))


def ours(sizes: tuple[int, ...], *, dropout: bool = False) -> Model:
    """A network, without values."""
    layers: list[Model] = []
    for inputs, outputs in pairwise(sizes):
        layers += [linear(inputs, outputs), ReLU(), *([Dropout(RATE)] if dropout else [])]
    return compose(*layers[: -2 if dropout else -1])


def theirs(sizes: tuple[int, ...], *, dropout: bool = False) -> nn.Sequential:
    """The same for torch.nn."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), *([nn.Dropout(RATE)] if dropout else [])]
    return nn.Sequential(*layers[: -2 if dropout else -1])


def steps() -> Iterator[tuple[str, Side, Side]]:
    """A step of SGD with three dropouts, on 100 points."""
    points, targets = random.uniform(key(1), (100, 2)), random.uniform(key(2), (100, 2))
    optimizer, module = sgd(0.05), theirs(DISK, dropout=True)
    step = train_step(mse, optimizer)
    state = train_state(key(0), initialize(key(0), ours(DISK, dropout=True)), optimizer)
    updates = torch.optim.SGD(module.parameters(), 0.05)

    def torch_step() -> Tensor:
        updates.zero_grad()
        loss = nn.functional.mse_loss(module(points), targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not say
        updates.step()
        return loss.detach()

    yield "step with dropout", lambda: step(state, (points, targets)), torch_step


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each side has its turn.")] = 15,
    only: Annotated[str, typer.Option(help="How the names of what is measured begin; all by default.")] = "",
) -> None:
    """Print a table."""
    torch.set_num_threads(1)
    print(machine())
    print(f"{'what':32}{'fundl us':>12}{'torch':>8}")
    for name, mine, other in (*draws(), *batched(), *networks(), *steps()):
        if name.startswith(only):
            took, ratio = compared(mine, other, rounds)
            print(f"{name:32}{took * 1e6:>12.1f}{ratio:>8.2f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
