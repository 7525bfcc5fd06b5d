"""What is measured: networks, batches, losses and optimizers, the same for every peer.

All is numpy's, from fixed seeds: each peer makes of it what it needs, and begins with the same parameters. Whoever imports
this imports no framework.

disk            2-25-25-25-2 with ReLU and MSE, on random points; one step a call, or an epoch of 1,000 points a call
mlp             784-512-512-10 with ReLU and cross-entropy
convolutional   1 x 28 x 28 images; two convolutions of 3 x 3 with 32 and 64 channels, each with ReLU and pooling; 128; 10
lstm            50 steps of 64 features; an LSTM of 128; 10 classes from the mean over the steps
transformer     128 tokens of 64 kinds; 4 pre-norm blocks, 128 features, 4 heads, causal, GELU; the next token
parameters      no network: an optimizer alone, on 50 MB
dropout         the disk's, with a dropout after each ReLU
dying           the disk's, in which half of the hidden units die within the first steps
deep            64 features; linear layers of 64 with ReLU between them; 10 classes
rows            no network: random batches of 1,000 rows of four numbers, once through the data
"""

from collections.abc import Callable
from itertools import chain, pairwise
from typing import Final, Literal, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Integers: TypeAlias = NDArray[np.int64]
NetworkName: TypeAlias = Literal[
    "disk", "mlp", "convolutional", "lstm", "transformer", "parameters", "dropout", "dying", "deep", "rows"
]
OptimizerName: TypeAlias = Literal["sgd", "momentum", "adam", "adamw"]

CLASSES: Final = 10
TOKENS: Final = 64
FEATURES: Final = 128
HEADS: Final = 4
BLOCKS: Final = 4
LENGTH: Final = 128
MOMENTUM: Final = 0.9
WEIGHT_DECAY: Final = 0.01
POINTS: Final = 1000
WIDTH: Final = 64
DROPPED: Final = 0.1
DISK: Final = (2, 25, 25, 25, 2)
SIZES: Final[dict[NetworkName, tuple[int, ...]]] = {
    **dict.fromkeys(("disk", "dropout", "dying"), DISK),
    "mlp": (784, 512, 512, CLASSES),
}
RATES: Final[dict[OptimizerName, float]] = {"sgd": 0.05, "momentum": 0.01, "adam": 0.001, "adamw": 0.001}


@attrs.frozen
class Case:
    """Something to train, or to update.

    Args:
        name: as the command line has it.
        network: see above.
        optimizer: with the rate of `RATES`, and else what torch.optim has by default.
        batch: how many examples there are in a batch.
        threads: that each peer may use.
        epoch: whether a call is an epoch of batches, rather than a step.
        memory: whether the memory of a call is measured as well.
        points: how many there are in an epoch.
        depth: how many layers or blocks the network has, where that is not told by its name.
        repeat: whether its blocks are one record, with their parameters stacked, rather than one after the other.
        grows: how many layers, rows or steps it has, if it is one of several cases that differ in this alone; 0 if not.
        looped: whether a call has so many steps that only a compiled loop is asked to make them.
    """

    name: str
    network: NetworkName
    optimizer: OptimizerName
    batch: int = 1
    threads: int = 2
    epoch: bool = False
    memory: bool = False
    points: int = POINTS
    depth: int = BLOCKS
    repeat: bool = False
    grows: int = 0
    looped: bool = False

    @property
    def rate(self) -> float:
        """The learning rate."""
        return RATES[self.optimizer]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of a network of linear layers."""
        return (*([WIDTH] * self.depth), CLASSES) if self.network == "deep" else SIZES[self.network]

    @property
    def mean_squared(self) -> bool:
        """Whether the loss is MSE, rather than cross-entropy."""
        return SIZES.get(self.network) == DISK

    @property
    def repeated(self) -> int:
        """How many blocks the network has that are alike: of a deep one, all layers but the last."""
        return self.depth - (self.network == "deep")

    @property
    def deepens(self) -> bool:
        """Whether it is one of several depths."""
        return self.grows == self.depth

    def batches(self) -> tuple[Floats | Integers, Floats | Integers]:
        """The inputs and the targets of the steps of a call, along a first axis."""
        numbers = np.random.default_rng(1)
        first = (self.points // self.batch if self.epoch else 1, self.batch)
        match self.network:
            case "disk" | "dropout" | "dying":
                points = numbers.uniform(-1, 1, (*first, 2)).astype(np.float32)
                inside = (points**2).sum(-1) < 0.5
                return points, np.stack([inside, ~inside], -1).astype(np.float32)
            case "transformer":
                tokens = numbers.integers(TOKENS, size=(*first, LENGTH + 1))
                return tokens[..., :-1].copy(), tokens[..., 1:].copy()
            case _:
                shape = {"convolutional": (1, 28, 28), "lstm": (50, 64)}.get(self.network, self._flat_shape())
                return numbers.standard_normal((*first, *shape), np.float32), numbers.integers(CLASSES, size=first)

    def _flat_shape(self) -> tuple[int, ...]:
        return self.sizes[:1] if self.network in {*SIZES, "deep"} else ()

    def rows(self) -> Floats:
        """What is cut into batches."""
        return np.random.default_rng(1).uniform(-1, 1, (self.points, 4)).astype(np.float32)

    def parameters(self) -> list[Floats]:
        """The first parameters, in the order and of the shapes that torch.nn has them in."""
        numbers = np.random.default_rng(0)

        def uniform(fan_in: int, *shapes: tuple[int, ...]) -> list[Floats]:
            bound = fan_in**-0.5
            return [numbers.uniform(-bound, bound, shape).astype(np.float32) for shape in shapes]

        def linear(inputs: int, outputs: int) -> list[Floats]:
            return uniform(inputs, (outputs, inputs), (outputs,))

        def norm() -> list[Floats]:
            return [np.ones(FEATURES, np.float32), np.zeros(FEATURES, np.float32)]

        def block() -> list[Floats]:
            attention = [*norm(), *linear(FEATURES, 3 * FEATURES), *linear(FEATURES, FEATURES)]
            return [*attention, *norm(), *linear(FEATURES, 4 * FEATURES), *linear(4 * FEATURES, FEATURES)]

        def blocks(make: Callable[[], list[Floats]]) -> list[Floats]:
            made = [make() for _ in range(self.repeated)]
            return [np.stack(leaves) for leaves in zip(*made, strict=True)] if self.repeat else [*chain(*made)]

        match self.network:
            case "disk" | "mlp" | "dropout" | "dying":
                layers = [linear(*sizes) for sizes in pairwise(self.sizes)]
                return [*chain(*(map(_dying, range(len(layers)), layers) if self.network == "dying" else layers))]
            case "deep":
                return [*blocks(lambda: [_AS_LARGE * leaf for leaf in linear(WIDTH, WIDTH)]), *linear(WIDTH, CLASSES)]
            case "convolutional":
                first, second = uniform(9, (32, 1, 3, 3), (32,)), uniform(288, (64, 32, 3, 3), (64,))
                return [*first, *second, *linear(64 * 7 * 7, 128), *linear(128, CLASSES)]
            case "lstm":
                return [*uniform(128, (512, 64), (512, 128), (512,), (512,)), *linear(128, CLASSES)]
            case "transformer":
                return [*uniform(1, (TOKENS, FEATURES)), *blocks(block), *norm(), *linear(FEATURES, TOKENS)]
            case "parameters" | "rows":
                return uniform(1, *([(1024, 1024)] * (12 if self.network == "parameters" else 0)))

    def gradients(self) -> list[Floats]:
        """Gradients for an optimizer alone."""
        numbers = np.random.default_rng(2)
        return [numbers.standard_normal(leaf.shape, np.float32) for leaf in self.parameters()]


_AS_LARGE: Final = np.float32(6**0.5)  # the bound of weights that keep the size of what goes through layers with ReLU
_LAST: Final = 3


def _dying(number: int, layer: list[Floats]) -> list[Floats]:
    """A layer of the disk's network, half of whose units are alive by so little that the first steps of Adam end it.

    As long as the outputs are too large, which they are by far, what a unit passes on with positive weights only makes them
    larger: the bias falls with each step, and soon no point is left that the unit answers to. So its gradients have been
    there, but will not come again, and the moments of its weights decay.
    """
    weight, bias = layer
    if number == _LAST:
        return [np.abs(weight), bias + 3]
    half = len(bias) // 2
    weight, bias = weight.copy(), bias.copy()
    weight[:half], bias[:half] = 0, 5e-4
    if number:
        weight[half:] = np.abs(weight[half:])
    return [weight, bias]


def _steps(optimizer: OptimizerName, batch: int) -> Case:
    return Case(f"disk-{optimizer}-{batch}", "disk", optimizer, batch, threads=1, grows=batch)


def _epochs(optimizer: OptimizerName, batch: int) -> Case:
    return Case(f"epoch-{optimizer}-{batch}", "disk", optimizer, batch, threads=1, epoch=True)


def _growing(name: str, network: NetworkName, depth: int, *, repeat: bool) -> Case:
    batch, name = (32 if network == "deep" else 1), f"{name}-repeat" if repeat else name
    return Case(f"{name}-{depth}", network, "adam", batch, threads=1, depth=depth, repeat=repeat, grows=depth)


def _many_steps(steps: int) -> Case:
    name = f"steps-{steps}"
    return Case(name, "disk", "adam", threads=1, epoch=True, memory=True, points=steps, grows=steps, looped=True)


def _many_rows(rows: int) -> Case:
    return Case(f"rows-{rows}", "rows", "sgd", 1000, threads=1, epoch=True, memory=True, points=rows, grows=rows)


_OPTIMIZERS: Final[tuple[OptimizerName, ...]] = ("sgd", "adam")
CASES: Final[dict[str, Case]] = {
    case.name: case
    for case in (
        *(_steps(name, batch) for name in _OPTIMIZERS for batch in (1, 10, 100, 1000, 10_000)),
        *(_epochs(name, batch) for name in _OPTIMIZERS for batch in (1, 10, 100)),
        Case("mlp", "mlp", "adam", 128, memory=True),
        Case("convolutional", "convolutional", "adam", 64, memory=True),
        Case("lstm", "lstm", "adam", 32, memory=True),
        Case("transformer", "transformer", "adamw", 8, memory=True),
        Case("optimizer-momentum", "parameters", "momentum"),
        Case("optimizer-adam", "parameters", "adam"),
        Case("dropout-sgd-100", "dropout", "sgd", 100, threads=1),
        Case("dying-adam-1", "dying", "adam", threads=1, epoch=True, points=100),
        *(_growing("deep", "deep", depth, repeat=repeat) for repeat in (False, True) for depth in (4, 32, 128)),
        *(_growing("blocks", "transformer", depth, repeat=repeat) for repeat in (False, True) for depth in (2, 8, 24)),
        *map(_many_rows, (100_000, 1_000_000, 10_000_000)),
        *map(_many_steps, (10_000, 100_000, 1_000_000)),
    )
}
"""In the order in which they are measured."""
