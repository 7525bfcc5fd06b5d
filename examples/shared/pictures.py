"""Pictures that examples share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fundl import Epoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAIN, TEST = "#000000", "#009E73"  # told apart by colour-blind eyes as well


def draw_curves(loss: "Axes", accuracy: "Axes", history: Sequence[Epoch]) -> None:
    """Loss and accuracy from epoch to epoch."""
    train = [(epoch.epoch, epoch.train) for epoch in history]
    test = [(epoch.epoch, epoch.test) for epoch in history if epoch.test is not None]
    for name, color, measured in (("train", TRAIN, train), ("test", TEST, test)):
        epochs = [epoch for epoch, _ in measured]
        loss.semilogy(epochs, [result.loss for _, result in measured], color=color, linewidth=1)
        accuracy.plot(
            epochs, [100 * result.metrics["accuracy"] for _, result in measured], color=color, linewidth=1, label=name
        )
    loss.set(title="Learning curve", ylabel="loss")
    accuracy.set(xlabel="epoch", ylabel="accuracy [%]")
    accuracy.legend(loc="lower right")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
