"""A first deep network: which points of the unit square lie in a disk that covers half of it?

This trains a network on 1,000 random points, tests it on 1,000 others, and draws what it has learned:

    python examples/disk.py --plot disk.png
"""

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import attrs
import torch
from torch import Tensor
from typer import BadParameter, Option

import fundl
from fundl import AnyTransform, Epoch, Evaluation, Loss, Model, Rate
from shared.options import (
    checkpoints_in,
    go_through,
    of_checkpoints,
    require_device,
    require_log,
    require_picture,
    require_positive,
    start,
)
from shared.pictures import draw_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACTIVATIONS: dict[str, Callable[[], Model]] = {"relu": fundl.ReLU, "tanh": fundl.Tanh, "gelu": fundl.GELU, "silu": fundl.SiLU}
LOSSES: dict[str, Loss[Tensor, Tensor]] = {
    "cross-entropy": fundl.cross_entropy,
    "binary-cross-entropy": fundl.binary_cross_entropy_with_logits,
    "mse": fundl.mse,
}
OPTIMIZERS: dict[str, tuple[Callable[[Rate], AnyTransform], float]] = {  # with a learning rate that suits each
    "sgd": (fundl.sgd, 0.1),
    "momentum": (fundl.momentum, 0.03),
    "adam": (fundl.adam, 0.003),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@attrs.frozen(eq=False)
class Run:
    """What came out of a run."""

    model: Model
    history: Sequence[Epoch]
    train: Evaluation
    test: Evaluation
    test_points: Tensor
    test_labels: Tensor


def network(sizes: Sequence[int], activation: Callable[[], Model]) -> Model:
    """Linear layers from size to size, with activations between them; as yet without values."""
    layers = [part for pair in itertools.pairwise(sizes) for part in (fundl.linear(*pair), activation())]
    return fundl.compose(*layers[:-1])


def learn(
    seed: int,
    model: Model,
    loss: Loss[Tensor, Tensor],
    optimizer: AnyTransform,
    *,
    train_count: int,
    test_count: int,
    batch_size: int,
    epochs: int,
    dtype: torch.dtype,
    device: str,
    checkpoints: Path | None,
    log: Path | None,
    can_compile: bool,
    progress: bool,
) -> Run:
    """One run, which the seed determines to the last bit."""
    # Each thing that is random gets a key of its own.
    train_key, test_key, model_key, run_key = fundl.split(fundl.key(seed, device=device), 4)

    # The network is to answer (1, 0) outside of the disk, where the label is 0, and (0, 1) inside.
    train_points, train_labels = fundl.disk(train_key, train_count, dtype=dtype)
    test_points, test_labels = fundl.disk(test_key, test_count, dtype=dtype)
    train = train_points, fundl.one_hot(train_labels, 2, dtype=dtype)
    test = test_points, fundl.one_hot(test_labels, 2, dtype=dtype)

    # A run makes one state of another, step by step, with the points of each epoch in another order.
    state = fundl.train_state(run_key, fundl.initialize(model_key, model, dtype=dtype, device=device), optimizer)
    with of_checkpoints(checkpoints, seed=seed):
        run = fundl.epochs(
            fundl.train_step(loss, optimizer),
            state,
            lambda epoch_key: fundl.minibatches(epoch_key, train, batch_size),
            count=epochs,
            metrics={"accuracy": fundl.accuracy},
            evaluate=lambda model: fundl.evaluate(loss, model, [test], metrics={"accuracy": fundl.accuracy}),
            checkpoints=checkpoints_in(checkpoints),
            compile="auto" if can_compile else False,
            progress=progress,
        )
    state, history = go_through(run, state, log)
    return Run(
        model=state.model,
        history=history,
        train=fundl.evaluate(loss, state.model, [train], metrics={"accuracy": fundl.accuracy}),
        test=fundl.evaluate(loss, state.model, [test], metrics={"accuracy": fundl.accuracy}),
        test_points=test_points,
        test_labels=test_labels,
    )


def main(
    *,
    hidden: Annotated[str, Option(help="Sizes of the hidden layers; '' for a linear model.")] = "25,25,25",
    activation: Annotated[Literal["relu", "tanh", "gelu", "silu"], Option(help="Between the layers.")] = "relu",
    loss: Annotated[
        Literal["cross-entropy", "binary-cross-entropy", "mse"], Option(help="What training makes small.")
    ] = "cross-entropy",
    optimizer: Annotated[Literal["sgd", "momentum", "adam"], Option(help="How a step follows the gradient.")] = "momentum",
    learning_rate: Annotated[
        float | None,
        Option(
            help="At the start; it falls to 0 along a cosine.", show_default="0.1 for sgd, 0.03 for momentum, 0.003 for adam"
        ),
    ] = None,
    batch_size: Annotated[int, Option(min=1, help="How many points make a step.")] = 10,
    epochs: Annotated[int, Option(min=1, help="How often each point is seen.")] = 200,
    train_count: Annotated[int, Option(min=1, help="How many points to learn from.")] = 1000,
    test_count: Annotated[int, Option(min=1, help="How many other points to test on.")] = 1000,
    seed: Annotated[int, Option(min=0, max=2**32, help="Decides all that is random: the same seed, the same bits.")] = 0,
    runs: Annotated[int, Option(min=1, help="How many runs to make, with seeds from --seed on.")] = 1,
    dtype: Annotated[Literal["float32", "float64"], Option(help="Of points and parameters.")] = "float32",
    device: Annotated[str, Option(help="Where to compute: cpu, cuda, cuda:1.")] = "cpu",
    checkpoints: Annotated[
        Path | None, Option(help="Keep checkpoints in this folder, and go on from the newest that is there.")
    ] = None,
    log: Annotated[
        Path | None, Option(help="Write the numbers of each epoch into this file, as CSV: of the first run.")
    ] = None,
    plot: Annotated[Path | None, Option(help="Draw the first run into this file: .png, .pdf or .svg.")] = None,
    no_jit: Annotated[bool, Option("--no-jit", help="Never compile: very long runs are compiled otherwise.")] = False,
    quiet: Annotated[bool, Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Learn from random points which part of the unit square is a disk, and test on others."""
    torch.set_num_threads(1)  # faster for tensors as small as these, and the same bits on any number of cores
    sizes = sizes_of(hidden)
    transform, suitable_rate = OPTIMIZERS[optimizer]
    rate = suitable_rate if learning_rate is None else learning_rate
    require_positive(rate)
    require_device(device)
    require_picture(plot)
    require_log(log)

    schedule = fundl.cosine_schedule(rate, epochs * math.ceil(train_count / batch_size))
    accuracies: list[float] = []
    for each in range(seed, seed + runs):
        try:
            run = learn(
                each,
                network(sizes, ACTIVATIONS[activation]),
                LOSSES[loss],
                transform(schedule),
                train_count=train_count,
                test_count=test_count,
                batch_size=batch_size,
                epochs=epochs,
                dtype=DTYPES[dtype],
                device=device,
                checkpoints=None if checkpoints is None else checkpoints / f"seed-{each}",
                log=log if each == seed else None,
                can_compile=not no_jit,
                progress=not quiet,
            )
        except FloatingPointError as error:
            raise BadParameter(str(error), param_hint="--learning-rate") from error
        print(f"seed {each}")
        print(f"  train  accuracy {run.train.metrics['accuracy']:7.2%}  loss {run.train.loss:.6f}")
        print(f"  test   accuracy {run.test.metrics['accuracy']:7.2%}  loss {run.test.loss:.6f}")
        if plot is not None and each == seed:
            draw(run, plot)
        accuracies.append(run.test.metrics["accuracy"])
    if runs > 1:
        mean, least, greatest = sum(accuracies) / runs, min(accuracies), max(accuracies)
        print(f"mean of {runs}\n  test   accuracy {mean:7.2%}  from {least:.2%} to {greatest:.2%}")


# --- Options that are more than a number -------------------------------------------------------------------------------


def sizes_of(hidden: str) -> list[int]:
    """The sizes of all layers: of two coordinates, of the hidden layers, of two classes."""
    names = [name.strip() for name in hidden.split(",")] if hidden else []
    if not all(name.isdecimal() and int(name) > 0 for name in names):
        raise BadParameter(
            f"sizes are whole numbers above 0, separated by commas, such as 25,25,25, not {hidden!r}", param_hint="--hidden"
        )
    return [2, *map(int, names), 2]


# --- The picture --------------------------------------------------------------------------------------------------------

OUTSIDE, INSIDE = "#0072B2", "#D55E00"  # told apart by colour-blind eyes as well


def draw(run: Run, file: Path) -> None:
    """Draw how the network learned, and what it makes of the square."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # those who draw nothing need not wait for it, nor have it

    figure = Figure(figsize=(12, 6.5), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    loss = figure.add_subplot(grid[0, 0])
    draw_curves(loss, figure.add_subplot(grid[1, 0], sharex=loss), run.history)
    draw_square(figure.add_subplot(grid[:, 1]), run)
    figure.savefig(file, dpi=150)


def draw_square(axes: "Axes", run: Run) -> None:
    """What the network takes for the disk, and the test points, the misclassified ones with a cross."""
    ticks = torch.linspace(0, 1, 401, dtype=run.test_points.dtype)
    pixels = torch.cartesian_prod(ticks, ticks).to(run.test_points.device)
    scores = fundl.apply(run.model, pixels)
    is_inside = (scores[:, 1] - scores[:, 0]).reshape(401, 401).t().cpu()  # above 0 where it says so
    axes.contourf(ticks, ticks, is_inside, levels=[-math.inf, 0, math.inf], colors=[OUTSIDE, INSIDE], alpha=0.15)
    if is_inside.min() < 0 < is_inside.max():
        axes.contour(ticks, ticks, is_inside, levels=[0], colors="black", linewidths=1.5)
    axes.plot([], [], color="black", label="learned boundary")
    angles = torch.linspace(0, 2 * math.pi, 401)
    radius = 1 / math.sqrt(2 * math.pi)
    axes.plot(0.5 + radius * angles.cos(), 0.5 + radius * angles.sin(), "--", color="black", linewidth=1, label="disk")

    is_wrong = fundl.apply(run.model, run.test_points).argmax(1) != run.test_labels
    for label, name, color in ((1, "inside", INSIDE), (0, "outside", OUTSIDE)):
        x, y = run.test_points[(run.test_labels == label) & ~is_wrong].cpu().unbind(1)
        axes.scatter(x, y, s=8, color=color, label=name)
        x, y = run.test_points[(run.test_labels == label) & is_wrong].cpu().unbind(1)
        axes.scatter(x, y, s=90, color=color, marker="X", edgecolors="black", label=f"{name}, misclassified", zorder=3)
    title = f"{len(is_wrong)} test points, {int(is_wrong.sum())} of them misclassified"
    axes.set(title=title, xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=3, frameon=False)


if __name__ == "__main__":
    sys.exit(start(main))
