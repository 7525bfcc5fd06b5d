"""One training step of larger networks: fundl against torch.nn, autograd and torch.optim, in eager mode; time and memory.

The networks are those of benchmarks/networks.py, the optimizer is Adam, two threads. Both sides take turns in one process;
torch.optim runs fused, its fastest setting here. The memory is the most that tensors take at once during a step, beyond what
they took before it, as the profiler counts it.

    python -m benchmarks.layers
"""

from typing import Annotated

import torch
import typer
from torch.profiler import ProfilerActivity, profile

from benchmarks.networks import NETWORKS, Network
from benchmarks.timing import Step, machine, medians
from fundl import adam, initialize, key, value_and_grad


def fundl_step(network: Network) -> Step:
    """A function that trains a model of its own by one step each time it is called."""
    model, optimizer = initialize(key(0), network.model), adam(0.001)
    state = optimizer.init(model)

    def run() -> None:
        nonlocal model, state
        _, grads = value_and_grad(network.loss, model, *network.batch)
        model, state = optimizer.step(grads, state, model)

    return run


def torch_step(network: Network) -> Step:
    """The same for torch.nn."""
    module = network.module()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.001, fused=True)
    x, target = network.batch

    def run() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(network.torch_loss(module(x), target))
        optimizer.step()

    return run


def peak_mebibytes(step: Step) -> float:
    """The most that tensors take at once during a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    result = profiled.profiler
    assert result is not None
    assert result.kineto_results is not None
    changes = [event for event in result.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most / 2**20


def main(rounds: Annotated[int, typer.Option(min=1, help="How often each side has its turn.")] = 100) -> None:
    """Print how many times as fast as torch.nn a training step is, and the memory that it takes."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    print(machine())
    print(f"{'network':<14}{'fundl ms':>10}{'torch.nn ms':>13}{'ratio':>7}{'fundl MiB':>11}{'torch.nn MiB':>14}")
    for name, make in NETWORKS.items():
        network = make()
        steps = {"fundl": fundl_step(network), "torch.nn": torch_step(network)}
        seconds = medians(steps, rounds=rounds)
        ours, theirs = 1e3 * seconds["fundl"], 1e3 * seconds["torch.nn"]
        with torch.inference_mode():
            our_peak = peak_mebibytes(steps["fundl"])
        their_peak = peak_mebibytes(steps["torch.nn"])
        print(f"{name:<14}{ours:>10.2f}{theirs:>13.2f}{theirs / ours:>7.2f}{our_peak:>11.1f}{their_peak:>14.1f}")


if __name__ == "__main__":
    typer.run(main)
