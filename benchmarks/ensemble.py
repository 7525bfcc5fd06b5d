"""Many runs of a small network as one ensemble, against one run.

The network is 2-25-25-25-1 with Tanh between and Sigmoid at the end, the loss MSE, the optimizer SGD with rate 0.16, the
batch 50, the data 1,000 points of the disk. Both sides initialise and train. They take turns in one process, so that a
change of the machine's speed meets both; the ratio is the median over the turns.

    python -m benchmarks.ensemble
"""

import statistics
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.turns import machine, seconds
from fundl import (
    Model,
    Sigmoid,
    Tanh,
    compose,
    disk,
    ensemble,
    fit,
    initialize,
    key,
    linear,
    minibatches,
    mse,
    sgd,
    split,
    train_state,
    train_step,
    xavier_normal,
)

BATCH = 50


def network() -> Model:
    """The network, without values."""
    hidden, last = xavier_normal(gain=5 / 3), xavier_normal()
    a, b, c = (linear(size, 25, weight_init=hidden) for size in (2, 25, 25))
    return compose(a, Tanh(), b, Tanh(), c, Tanh(), linear(25, 1, weight_init=last), Sigmoid())


def one_run(data: tuple[Tensor, Tensor], epochs: int) -> None:
    """Initialise and train one network."""
    optimizer = sgd(0.16)
    state = train_state(key(1), initialize(key(0), network()), optimizer)
    fit(train_step(mse, optimizer), state, lambda key: minibatches(key, data, BATCH), epochs=epochs, progress=False)


def many_runs(data: tuple[Tensor, Tensor], runs: int, epochs: int) -> None:
    """Initialise and train many networks, each from keys of its own, as one."""
    optimizer, shared = sgd(0.16), ensemble.share(data, runs)
    state = ensemble.train_state(split(key(1), runs), ensemble.initialize(split(key(0), runs), network()), optimizer)
    ensemble.fit(
        ensemble.train_step(mse, optimizer),
        state,
        lambda keys: ensemble.minibatches(keys, shared, BATCH),
        epochs=epochs,
        progress=False,
    )


def main(
    runs: Annotated[int, typer.Option(min=1, help="How many runs the ensemble makes.")] = 50,
    epochs: Annotated[int, typer.Option(min=1, help="Of each run.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="How often each side has its turn.")] = 5,
) -> None:
    """Print how many times as long as one run an ensemble of runs takes, with 1 thread and with 2."""
    print(machine())
    print(f"{'threads':>7}{'1 run s':>10}{f'{runs} runs s':>12}{'ratio':>8}")
    points, labels = disk(key(2), 1000)
    data = points, labels.to(torch.float32).unsqueeze(1)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        one_run(data, 2)  # the first of each warms up
        many_runs(data, runs, 2)
        pairs = [
            (seconds(lambda: one_run(data, epochs)), seconds(lambda: many_runs(data, runs, epochs))) for _ in range(rounds)
        ]
        one, many = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(all_runs / single for single, all_runs in pairs)
        print(f"{threads:>7}{one:>10.3f}{many:>12.3f}{ratio:>8.2f}")


if __name__ == "__main__":
    typer.run(main)
