"""What is measured: networks, batches, losses and optimizers, the same for every peer.

All is numpy's, from fixed seeds: each peer makes of it what it needs, and begins with the same parameters. Whoever imports
this imports no framework.

disk            2-25-25-25-2 with ReLU and MSE, on random points; one step a call, or an epoch of 1,000 points a call
mlp             784-512-512-10 with ReLU and cross-entropy
convolutional   1 x 28 x 28 images; two convolutions of 3 x 3 with 32 and 64 channels, each with ReLU and pooling; 128; 10
lstm            50 steps of 64 features; an LSTM of 128; 10 classes from the mean over the steps
transformer     128 tokens of 64 kinds; 4 pre-norm blocks, 128 features, 4 heads, causal, GELU; the next token
parameters      no network: an optimizer alone, on 50 MB
"""

from itertools import pairwise
from typing import Final, Literal, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Integers: TypeAlias = NDArray[np.int64]
NetworkName: TypeAlias = Literal["disk", "mlp", "convolutional", "lstm", "transformer", "parameters"]
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
SIZES: Final[dict[NetworkName, tuple[int, ...]]] = {"disk": (2, 25, 25, 25, 2), "mlp": (784, 512, 512, CLASSES)}
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
        memory: whether the memory of a step is measured as well.
    """

    name: str
    network: NetworkName
    optimizer: OptimizerName
    batch: int = 1
    threads: int = 2
    epoch: bool = False
    memory: bool = False

    @property
    def rate(self) -> float:
        """The learning rate."""
        return RATES[self.optimizer]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of a network of linear layers."""
        return SIZES[self.network]

    @property
    def mean_squared(self) -> bool:
        """Whether the loss is MSE, rather than cross-entropy."""
        return self.network == "disk"

    def batches(self) -> tuple[Floats | Integers, Floats | Integers]:
        """The inputs and the targets of the steps of a call, along a first axis."""
        numbers = np.random.default_rng(1)
        first = (POINTS // self.batch if self.epoch else 1, self.batch)
        match self.network:
            case "disk":
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
        return self.sizes[:1] if self.network in SIZES else ()

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

        match self.network:
            case "disk" | "mlp":
                return [leaf for sizes in pairwise(self.sizes) for leaf in linear(*sizes)]
            case "convolutional":
                first, second = uniform(9, (32, 1, 3, 3), (32,)), uniform(288, (64, 32, 3, 3), (64,))
                return [*first, *second, *linear(64 * 7 * 7, 128), *linear(128, CLASSES)]
            case "lstm":
                return [*uniform(128, (512, 64), (512, 128), (512,), (512,)), *linear(128, CLASSES)]
            case "transformer":
                blocks = [leaf for _ in range(BLOCKS) for leaf in block()]
                return [*uniform(1, (TOKENS, FEATURES)), *blocks, *norm(), *linear(FEATURES, TOKENS)]
            case "parameters":
                return uniform(1, *([(1024, 1024)] * 12))

    def gradients(self) -> list[Floats]:
        """Gradients for an optimizer alone."""
        numbers = np.random.default_rng(2)
        return [numbers.standard_normal(leaf.shape, np.float32) for leaf in self.parameters()]


def _disk(optimizer: OptimizerName, batch: int, *, epoch: bool) -> Case:
    name = f"{'epoch' if epoch else 'disk'}-{optimizer}-{batch}"
    return Case(name, "disk", optimizer, batch, threads=1, epoch=epoch)


_OPTIMIZERS: Final[tuple[OptimizerName, ...]] = ("sgd", "adam")
CASES: Final[dict[str, Case]] = {
    case.name: case
    for case in (
        *(_disk(name, batch, epoch=epoch) for epoch in (False, True) for name in _OPTIMIZERS for batch in (1, 10, 100)),
        Case("mlp", "mlp", "adam", 128, memory=True),
        Case("convolutional", "convolutional", "adam", 64, memory=True),
        Case("lstm", "lstm", "adam", 32, memory=True),
        Case("transformer", "transformer", "adamw", 8, memory=True),
        Case("optimizer-momentum", "parameters", "momentum"),
        Case("optimizer-adam", "parameters", "adam"),
    )
}
