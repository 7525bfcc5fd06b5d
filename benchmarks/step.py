"""One training step of the disk network: fundl against torch.nn, autograd and torch.optim, in eager mode.

The network is 2-25-25-25-2 with ReLU, the loss MSE, one thread. Both sides do forward, loss, backward and update on the same
batch. They take turns in one process, so that a change of the machine's speed meets both; torch.optim runs with each of its
settings (plain, foreach, fused), and the fastest counts. fundl runs in inference mode, as in `fit`; autograd cannot.

    python -m benchmarks.step
"""

from itertools import pairwise
from typing import Annotated, TypeVar

import torch
import typer
from torch import Tensor, nn

from benchmarks.timing import Step, machine, medians
from fundl import ReLU, Transform, adam, compose, initialize, key, linear, mse, random, sgd, value_and_grad

SIZES = (2, 25, 25, 25, 2)
S = TypeVar("S")


def fundl_step(optimizer: Transform[S], x: Tensor, y: Tensor) -> Step:
    """A function that trains a model of its own by one step each time it is called."""
    a, b, c, d = (linear(*sizes) for sizes in pairwise(SIZES))
    model = initialize(key(0), compose(a, ReLU(), b, ReLU(), c, ReLU(), d))
    state = optimizer.init(model)

    def run() -> None:
        nonlocal model, state
        _, grads = value_and_grad(mse, model, x, y)
        model, state = optimizer.step(grads, state, model)

    return run


def torch_step(optimizer: str, setting: str, x: Tensor, y: Tensor) -> Step:
    """The same for torch.nn with one setting of torch.optim."""
    layers = [nn.Linear(*sizes) for sizes in pairwise(SIZES)]
    network = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1]
    foreach, fused = setting == "foreach", setting == "fused"
    update: torch.optim.Optimizer
    if optimizer == "sgd":
        update = torch.optim.SGD(network.parameters(), lr=0.01, foreach=foreach, fused=fused)
    else:
        update = torch.optim.Adam(network.parameters(), lr=0.001, foreach=foreach, fused=fused)
    loss = nn.MSELoss()

    def run() -> None:
        update.zero_grad()
        loss(network(x), y).backward()
        update.step()

    return run


def main(
    rounds: Annotated[int, typer.Option(help="How often each side has its turn.")] = 60,
    calls: Annotated[int, typer.Option(help="Steps in a turn.")] = 100,
) -> None:
    """Print how many times as fast as torch.nn a training step is."""
    torch.set_num_threads(1)
    print(machine())
    print(f"{'optimizer':<10}{'batch':>6}{'fundl us':>10}{'torch.nn us':>13}{'ratio':>7}  fastest torch.optim setting")
    for optimizer in ("sgd", "adam"):
        for batch in (10, 100):
            x, y = random.normal(key(2), (batch, 2)), random.normal(key(3), (batch, 2))
            settings = {setting: torch_step(optimizer, setting, x, y) for setting in ("plain", "foreach", "fused")}
            ours = fundl_step(sgd(0.01), x, y) if optimizer == "sgd" else fundl_step(adam(0.001), x, y)
            seconds = medians({"fundl": ours, **settings}, rounds=rounds, calls=calls)
            fastest = min(settings, key=seconds.__getitem__)
            us, theirs = 1e6 * seconds["fundl"], 1e6 * seconds[fastest]
            print(f"{optimizer:<10}{batch:>6}{us:>10.1f}{theirs:>13.1f}{theirs / us:>7.2f}  {fastest}")


if __name__ == "__main__":
    typer.run(main)
