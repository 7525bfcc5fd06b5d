"""What is told of a run: epoch by epoch, and by a checkpoint."""

from pathlib import Path

import attrs

from fundl.training.evaluation import Evaluation


@attrs.frozen
class Epoch:
    """What `fit` and `epochs` tell of an epoch.

    Args:
        epoch: its number, from 1 on, in this call of `fit`.
        step: how many steps the state has made at its end.
        train: means over the epoch, of each batch before its update.
        test: what the function given as `evaluate` returned; None if it was not asked after this epoch.
        seconds: that the steps took. Two epochs that differ in nothing else are equal.
    """

    epoch: int
    step: int
    train: Evaluation
    test: Evaluation | None
    seconds: float = attrs.field(eq=False)


@attrs.frozen
class Found:
    """What a checkpoint tells of a run, beside its state."""

    path: Path
    history: list[tuple[Epoch, ...]]
    began: int  # the step at which the pass through the batches began
    compiled: bool  # whether its steps are
