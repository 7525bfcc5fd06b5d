"""What each report trained, as data: the network, loss, labels, optimizer and budget, and the accuracy that it reported.

The task is the same in all: 1,000 points to train on and 1,000 to test on, uniform in the unit square; which of them lie in
the disk that covers half of it?
"""

from itertools import pairwise
from typing import Literal, TypeAlias

import attrs

from fundl import Dropout, Initializer, Model, Reduction, compose, linear, tree

Labels: TypeAlias = Literal["-1/+1", "0/1", "one-hot", "class"]
"""What the network is to answer: a number or its sign, or a score for each of two classes."""
LossName: TypeAlias = Literal["mse", "cross-entropy", "binary-cross-entropy"]


@attrs.frozen
class SGD:
    """Stochastic gradient descent; annealed, its rate falls to 0 along a cosine."""

    rate: float
    momentum: float = 0.0
    is_annealed: bool = False


@attrs.frozen
class Adam:
    """Adam with its usual constants; annealed, its rate falls to 0 along a cosine."""

    rate: float
    is_annealed: bool = False


@attrs.frozen(eq=False)
class Setup:
    """One row of a report's table.

    Args:
        name: of the row.
        model: the network, without values.
        loss: what training makes small.
        reduction: what becomes of the losses of a batch.
        labels: what the network is to answer.
        optimizer: how a step follows the gradient.
        batch_size: how many points make a step.
        epochs: how often each point is seen.
        runs: how many runs to make, each with data and initial parameters of its own.
        reported: the accuracy that the report tells of, in percent, as text.
        to_reach: the test accuracy to reach, in percent; None if the report has none.
        is_shuffled: whether the points of each epoch come in another order.
        is_normalised: whether coordinates are shifted and scaled to mean 0 and standard deviation 1.
    """

    name: str
    model: Model
    loss: LossName
    labels: Labels
    optimizer: SGD | Adam
    batch_size: int
    epochs: int
    runs: int
    reported: str
    to_reach: float | None
    reduction: Reduction = "mean"
    is_shuffled: bool = True
    is_normalised: bool = False

    @property
    def is_noisy(self) -> bool:
        """Whether the network has dropout, which fundl and torch.nn draw differently."""
        return any(isinstance(record, Dropout) and record.rate > 0 for record in tree.records(self.model))


@attrs.frozen(eq=False)
class Experiment:
    """A report.

    Args:
        name: of the report.
        about: what it trained, in a sentence.
        choices: what it left open, and how that is filled in here.
        setups: the rows of its table; the first is the one that is drawn.
        times: what it measured of times, in a sentence; empty if it measured none.
    """

    name: str
    about: str
    choices: tuple[str, ...]
    setups: tuple[Setup, ...]
    times: str = ""


def network(
    sizes: tuple[int, ...], activations: tuple[Model, ...], weight: tuple[Initializer, ...] | Initializer, bias: Initializer
) -> Model:
    """Linear layers from size to size, an activation after each as far as there are any; as yet without values."""
    weights = weight if isinstance(weight, tuple) else (weight,) * (len(sizes) - 1)
    layers = [linear(*pair, weight_init=init, bias_init=bias) for pair, init in zip(pairwise(sizes), weights, strict=True)]
    parts: list[Model] = []
    for number, layer in enumerate(layers):
        parts += [layer, *activations[number : number + 1]]
    return compose(*parts)
