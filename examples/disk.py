"""A first deep network: which points of the unit square lie in a disk that covers half of it?

python examples/disk.py --plot disk.png
"""

import importlib.util
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import attrs
import torch
import typer
from torch import Tensor
from typer import BadParameter, Option

import fundl
from fundl import Epoch, Evaluation, Loss, Model, Rate
from fundl.optim.chain import AnyTransform

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
    """Linear layers from size to size, with activations between them."""
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
    progress: bool,
) -> Run:
    """One run, which the seed determines to the last bit."""
    # Each thing that is random has a key of its own.
    train_key, test_key, model_key, run_key = fundl.split(fundl.key(seed, device=device), 4)
    train_points, train_labels = fundl.disk(train_key, train_count, dtype=dtype)
    test_points, test_labels = fundl.disk(test_key, test_count, dtype=dtype)
    train = train_points, fundl.one_hot(train_labels, 2, dtype=dtype)
    test = test_points, fundl.one_hot(test_labels, 2, dtype=dtype)

    state, history = fundl.fit(
        fundl.train_step(loss, optimizer),
        fundl.train_state(run_key, fundl.initialize(model_key, model, dtype=dtype, device=device), optimizer),
        lambda epoch_key: fundl.minibatches(epoch_key, train, batch_size),
        epochs=epochs,
        metric=fundl.accuracy,
        evaluate=lambda model: fundl.evaluate(loss, model, [test], metric=fundl.accuracy),
        progress=progress,
    )
    return Run(
        model=state.model,
        history=history,
        train=fundl.evaluate(loss, state.model, [train], metric=fundl.accuracy),
        test=fundl.evaluate(loss, state.model, [test], metric=fundl.accuracy),
        test_points=test_points,
        test_labels=test_labels,
    )


def main(
    hidden: Annotated[str, Option(help="Sizes of the hidden layers; '' for a linear model.")] = "25,25,25",
    activation: Annotated[Literal["relu", "tanh", "gelu", "silu"], Option(help="Between the layers.")] = "relu",
    loss: Annotated[
        Literal["cross-entropy", "binary-cross-entropy", "mse"], Option(help="What training makes small.")
    ] = "cross-entropy",
    optimizer: Annotated[Literal["sgd", "momentum", "adam"], Option(help="How a step follows the gradient.")] = "momentum",
    learning_rate: Annotated[
        float | None, Option(help="At the start; it falls to 0 along a cosine.", show_default="0.1, 0.03, 0.003 for the three")
    ] = None,
    batch_size: Annotated[int, Option(min=1, help="How many points make a step.")] = 10,
    epochs: Annotated[int, Option(min=1, help="How often each point is seen.")] = 200,
    train_count: Annotated[int, Option(min=1, help="How many points to learn from.")] = 1000,
    test_count: Annotated[int, Option(min=1, help="How many other points to test on.")] = 1000,
    seed: Annotated[int, Option(min=0, help="Decides all that is random: the same seed, the same bits.")] = 0,
    runs: Annotated[int, Option(min=1, help="How many runs to make, with seeds from --seed on.")] = 1,
    dtype: Annotated[Literal["float32", "float64"], Option(help="Of points and parameters.")] = "float32",
    device: Annotated[str, Option(help="Where to compute: cpu, cuda, cuda:1.")] = "cpu",
    plot: Annotated[Path | None, Option(help="Draw the first run into this file: .png, .pdf or .svg.")] = None,
    quiet: Annotated[bool, Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Learn from random points which part of the unit square is a disk, and test on others."""
    torch.set_num_threads(1)  # tensors as small as these are not worth sharing among threads
    sizes = sizes_of(hidden)
    transform, suitable_rate = OPTIMIZERS[optimizer]
    rate = suitable_rate if learning_rate is None else learning_rate
    require_positive(rate)
    require_device(device)
    require_picture(plot)

    schedule = fundl.cosine_schedule(rate, epochs * math.ceil(train_count / batch_size))
    results: list[float] = []
    for number in range(seed, seed + runs):
        run = learn(
            number,
            network(sizes, ACTIVATIONS[activation]),
            LOSSES[loss],
            transform(schedule),
            train_count=train_count,
            test_count=test_count,
            batch_size=batch_size,
            epochs=epochs,
            dtype=DTYPES[dtype],
            device=device,
            progress=not quiet,
        )
        print(f"seed {number}")
        for name, result in (("train", run.train), ("test", run.test)):
            print(f"  {name:5}  accuracy {result.metric:7.2%}  loss {result.loss:.6f}")
        if plot is not None and not results:
            draw(run, plot)
        results.append(run.test.metric)
    if runs > 1:
        print(f"{runs} runs\n  test   accuracy {sum(results) / runs:7.2%}  from {min(results):.2%} to {max(results):.2%}")


# --- Options that are more than a number -------------------------------------------------------------------------------


def sizes_of(hidden: str) -> list[int]:
    """The sizes of all layers: of two coordinates, of the hidden layers, of two classes."""
    names = [name.strip() for name in hidden.split(",")] if hidden else []
    if not all(name.isdecimal() and int(name) > 0 for name in names):
        raise BadParameter(f"sizes are whole numbers above 0, separated by commas, such as 25,25,25, not {hidden!r}")
    return [2, *map(int, names), 2]


def require_positive(rate: float) -> None:
    """Refuse a learning rate that teaches nothing."""
    if not 0 < rate < math.inf:
        raise BadParameter(f"a learning rate is a number above 0, not {rate}")


def require_device(device: str) -> None:
    """Refuse a device that cannot compute."""
    try:
        torch.ones((), device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise BadParameter(f"the device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def require_picture(plot: Path | None) -> None:
    """Refuse a file that cannot be drawn, before the work is done rather than after."""
    if plot is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise BadParameter('a plot needs matplotlib: pip install "fundl[plot]"')
    if plot.suffix not in {".png", ".pdf", ".svg"}:
        raise BadParameter(f"a plot is a .png, .pdf or .svg file, not {plot.name!r}")
    if not plot.parent.is_dir():
        raise BadParameter(f"there is no folder {str(plot.parent)!r} to put the plot into")


# --- The picture --------------------------------------------------------------------------------------------------------

OUTSIDE, INSIDE, TRAIN, TEST = "#0072B2", "#D55E00", "#000000", "#009E73"  # told apart by colour-blind eyes as well


def draw(run: Run, file: Path) -> None:
    """Draw how the network learned, and what it makes of the square."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # those who draw nothing need not wait for it, nor have it

    figure = Figure(figsize=(12, 6), layout="constrained")
    left, right = figure.subfigures(1, 2)
    loss, accuracy = left.subplots(2, 1, sharex=True)
    draw_curves(loss, accuracy, run)
    draw_square(right.subplots(), run)
    figure.savefig(file, dpi=150)


def draw_curves(loss: "Axes", accuracy: "Axes", run: Run) -> None:
    """Loss and accuracy from epoch to epoch."""
    tested = [(epoch.epoch, epoch.test) for epoch in run.history if epoch.test is not None]
    epochs, train, test_epochs = (
        [epoch.epoch for epoch in run.history],
        [epoch.train for epoch in run.history],
        [number for number, _ in tested],
    )
    loss.semilogy(epochs, [each.loss for each in train], color=TRAIN, label="train")
    loss.semilogy(test_epochs, [each.loss for _, each in tested], color=TEST, linestyle="--", label="test")
    loss.set(title="Learning curve", ylabel="loss")
    loss.legend()
    accuracy.plot(epochs, [100 * each.metric for each in train], color=TRAIN)
    accuracy.plot(test_epochs, [100 * each.metric for _, each in tested], color=TEST, linestyle="--")
    accuracy.set(xlabel="epoch", ylabel="accuracy [%]")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)


def draw_square(axes: "Axes", run: Run) -> None:
    """The decision boundary, the disk, and the test points, those that are misclassified with a cross."""
    from matplotlib.patches import Circle  # noqa: PLC0415

    ticks = torch.linspace(0, 1, 301, dtype=run.test_points.dtype, device=run.test_points.device)
    grid = torch.cartesian_prod(ticks, ticks)
    scores = fundl.apply(run.model, grid)
    inside = (scores[:, 1] - scores[:, 0]).reshape(301, 301).t().cpu().numpy()
    axes.contourf(ticks, ticks, inside, levels=[-math.inf, 0, math.inf], colors=[OUTSIDE, INSIDE], alpha=0.15)
    axes.contour(ticks, ticks, inside, levels=[0], colors="black")
    axes.add_patch(Circle((0.5, 0.5), 1 / math.sqrt(2 * math.pi), fill=False, linestyle="--"))

    predicted = fundl.apply(run.model, run.test_points).argmax(1)
    for label, name, color in ((0, "outside", OUTSIDE), (1, "inside", INSIDE)):
        for wrong, marker in ((False, "."), (True, "X")):
            chosen = (run.test_labels == label) & ((predicted != label) == wrong)
            x, y = run.test_points[chosen].cpu().unbind(1)
            axes.scatter(x, y, color=color, marker=marker, label=f"{name}, misclassified" if wrong else name)
    axes.set(title="Test points", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend()


if __name__ == "__main__":
    typer.run(main)
