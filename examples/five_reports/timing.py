"""How long fundl and torch.nn take to make a network, to run it forward and to run it backward."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, TypeAlias

import attrs
import torch
from torch import Tensor

import fundl
from five_reports.engine import torch_network
from fundl import Model

SIZES = (10, 100, 1_000, 10_000, 100_000)

Part: TypeAlias = Literal["initialisation", "forward", "backward"]


@attrs.frozen
class Times:
    """Medians in milliseconds.

    Args:
        part: of the work.
        points: in the data set, which goes through the network as one batch; 0 for the initialisation.
        fundl: fundl's time.
        torch: torch.nn's time.
    """

    part: Part
    points: int
    fundl: float
    torch: float

    @property
    def ratio(self) -> float:
        """How many times as long as torch.nn fundl takes."""
        return self.fundl / self.torch


def measure(model: Model, sizes: Sequence[int] = SIZES, rounds: int = 15) -> list[Times]:
    """The times of both libraries, which take turns, so that a change of the machine's speed meets both.

    Args:
        model: the network, without values.
        sizes: of the data sets.
        rounds: how often each has its turn, after two that warm up.
    """
    times = [initialisation(model, rounds)]
    for points in sizes:
        times += passes(model, points, rounds)
    return times


def initialisation(model: Model, rounds: int) -> Times:
    """The time to draw all parameters anew, of a network that is there already."""
    network = torch_network(fundl.initialize(fundl.key(0), model))
    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]

    def theirs() -> None:
        for layer in layers:
            layer.reset_parameters()

    medians = in_turns({"fundl": lambda: fundl.initialize(fundl.key(0), model), "torch": theirs}, rounds)
    return Times("initialisation", 0, medians["fundl"], medians["torch"])


def passes(model: Model, points: int, rounds: int) -> list[Times]:
    """The times of a forward and of a backward pass, which gives the gradients of all parameters."""
    x, _ = fundl.disk(fundl.key(1), points)
    ours = fundl.initialize(fundl.key(0), model)
    theirs = torch_network(ours)
    y, residuals = fundl.forward(ours, x)
    grad = torch.ones_like(y)

    # torch.nn's backward consumes what its forward kept, so each turn makes its own, outside of the clock.
    def prepare() -> Callable[[], object]:
        theirs.zero_grad()
        output: Tensor = theirs(x)
        return lambda: torch.autograd.backward(output, grad)

    forward = in_turns({"fundl": lambda: fundl.forward(ours, x), "torch": lambda: theirs(x)}, rounds)
    backward = in_turns({"fundl": lambda: fundl.backward_params(ours, residuals, grad)}, rounds, prepared={"torch": prepare})
    return [
        Times("forward", points, forward["fundl"], forward["torch"]),
        Times("backward", points, backward["fundl"], backward["torch"]),
    ]


def in_turns(
    work: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    prepared: Mapping[str, Callable[[], Callable[[], object]]] | None = None,
) -> dict[str, float]:
    """The median time of each piece of work, in milliseconds; fundl's runs in inference mode, as in `fit`."""
    makers = {name: partial(ready, call) for name, call in work.items()} | dict(prepared or {})
    times: dict[str, list[float]] = {name: [] for name in makers}
    for turn in range(rounds + 2):
        for name, make in makers.items():
            with torch.inference_mode(name == "fundl"):
                call = make()
                start = time.perf_counter()
                call()
                seconds = time.perf_counter() - start
            if turn >= 2:
                times[name].append(1000 * seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def ready(call: Callable[[], object]) -> Callable[[], object]:
    """Work that needs no preparation."""
    return call
