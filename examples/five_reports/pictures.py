"""The pictures: learning curves, the true and the estimated distribution, what is misclassified, and times."""

import math
from collections.abc import Sequence
from pathlib import Path

import attrs
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import fundl
from five_reports.engine import Run, Start, is_inside, scaled
from five_reports.setups import Experiment, Setup
from five_reports.tables import Results
from five_reports.timing import Times
from fundl import Model

OUTSIDE, INSIDE, FUNDL, TORCH = "#0072B2", "#D55E00", "#00694D", "#C4C4C4"  # told apart by colour-blind eyes as well
RADIUS = 1 / math.sqrt(2 * math.pi)
CURVES = 6  # runs whose learning curves are drawn


@attrs.frozen(eq=False)
class Trained:
    """A trained model, how it was trained, and from what."""

    setup: Setup
    start: Start
    model: Model


def save(figure: Figure, file: Path, dpi: int = 100) -> None:
    """Write a figure to a file."""
    figure.savefig(file, dpi=dpi)


# --- Learning curves ----------------------------------------------------------------------------------------------------


def draw_curves(experiment: Experiment, results: Results, file: Path) -> None:
    """The test accuracy from epoch to epoch, a panel for each set-up."""
    columns = min(3, len(experiment.setups))
    lines = math.ceil(len(experiment.setups) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel().tolist()
    for axes, setup in zip(panels, experiment.setups, strict=False):
        curves(axes, setup, results[setup.name])
        axes.set_title(setup.name)
    for axes in panels[len(experiment.setups) :]:
        axes.remove()
    for number, axes in enumerate(panels[: len(experiment.setups)]):
        axes.set_xlabel("epoch")
        axes.set_ylabel("test accuracy [%]" if number % columns == 0 else "")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{experiment.name}: learning curves")
    save(figure, file)


def curves(axes: Axes, setup: Setup, runs: Sequence[Run]) -> None:
    """The learning curves of some runs of a set-up."""
    shown = runs[:CURVES]
    for number, run in enumerate(shown):  # torch.nn's are wide, so that they are seen where both are the same
        for learned, name, color, width in ((run.torch, "torch.nn", TORCH, 3.0), (run.fundl, "fundl", FUNDL, 0.9)):
            percent = [100 * accuracy for accuracy in learned.curve]
            label = f"{name}, {len(shown)} run{'s' * (len(shown) > 1)}" if number == 0 else None
            axes.plot(range(1, len(percent) + 1), percent, color=color, linewidth=width, label=label, zorder=5 - width)
    if setup.to_reach is not None:
        axes.axhline(setup.to_reach, color="black", linewidth=1.2, linestyle="--", label="reported", zorder=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


# --- The square ---------------------------------------------------------------------------------------------------------


def draw_square(experiment: Experiment, trained: Trained, runs: Sequence[Run], file: Path) -> None:
    """The true distribution, the estimated one with its boundary, and what was misclassified in all runs."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    truth, estimate, wrong = figure.subplots(1, 3, sharey=True).tolist()
    true_distribution(truth, trained)
    estimated_distribution(estimate, trained)
    misclassified(wrong, runs)
    handles, labels = estimate.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(f"{experiment.name}, {trained.setup.name}")
    save(figure, file)


def true_distribution(axes: Axes, trained: Trained) -> None:
    """The test points, coloured by what they are."""
    points, labels = trained.start.test_points, trained.start.test_labels
    for label, color in ((1, INSIDE), (0, OUTSIDE)):
        x, y = points[labels == label].T
        axes.scatter(x, y, s=7, color=color)
    frame(axes, "true distribution: the test points")


def estimated_distribution(axes: Axes, trained: Trained) -> None:
    """What the network answers all over the square, the line where it changes its mind, and the points beyond it."""
    ticks = torch.linspace(0, 1, 301)
    pixels = torch.cartesian_prod(ticks, ticks)
    score = is_inside(trained.setup, fundl.apply(trained.model, scaled(trained.setup, trained.start, pixels)))
    heights = score.reshape(301, 301).T
    bound = float(heights.abs().quantile(0.5)) or 1.0
    axes.imshow(
        heights.clamp(-bound, bound),
        extent=(0, 1, 0, 1),
        origin="lower",
        cmap="RdBu_r",
        vmin=-1.7 * bound,
        vmax=1.7 * bound,
        interpolation="bilinear",
    )
    if heights.min() < 0 < heights.max():
        axes.contour(ticks, ticks, heights, levels=[0], colors="black", linewidths=1.8)
    axes.plot([], [], color="black", linewidth=1.8, label="decision boundary")
    points, labels = trained.start.test_points, trained.start.test_labels
    is_wrong = (is_inside(trained.setup, fundl.apply(trained.model, scaled(trained.setup, trained.start, points))) > 0) != (
        labels == 1
    )
    for label, name, color in ((1, "inside", INSIDE), (0, "outside", OUTSIDE)):
        x, y = points[(labels == label) & is_wrong].T
        axes.scatter(x, y, s=60, marker="X", color=color, edgecolors="black", label=f"{name}, misclassified", zorder=3)
    frame(axes, f"estimated by fundl: {int(is_wrong.sum())} of {len(labels):,} misclassified")


def misclassified(axes: Axes, runs: Sequence[Run]) -> None:
    """The misclassified test points of all runs: they lie along the circle."""
    points = torch.tensor([point for run in runs for point in run.wrong]).reshape(-1, 2)
    distances = ((points - 0.5).square().sum(1).sqrt() - RADIUS).abs()
    is_inside = (points - 0.5).square().sum(1) < RADIUS**2
    for color, is_there in ((INSIDE, is_inside), (OUTSIDE, ~is_inside)):
        x, y = points[is_there].T
        axes.scatter(x, y, s=9, color=color, alpha=0.7)
    near = f", 90 % within {float(distances.quantile(0.9)):.3f} of the circle" if len(points) else ""
    frame(axes, f"misclassified in {len(runs)} run{'s' * (len(runs) > 1)}{near}")


def frame(axes: Axes, title: str) -> None:
    """The unit square and the circle."""
    angles = torch.linspace(0, 2 * math.pi, 401)
    axes.plot(0.5 + RADIUS * angles.cos(), 0.5 + RADIUS * angles.sin(), "--", color="black", linewidth=1, label="disk")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_title(title, fontsize="medium")


# --- Times --------------------------------------------------------------------------------------------------------------


def draw_times(experiment: Experiment, times: Sequence[Times], file: Path) -> None:
    """Forward and backward time against the size of the data set."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    time_curves(axes, times)
    figure.suptitle(f"{experiment.name}: time of a pass over the whole data set")
    save(figure, file)


def time_curves(axes: Axes, times: Sequence[Times]) -> None:
    """Both libraries, both directions."""
    for part, style in (("forward", "o-"), ("backward", "s--")):
        measured = [time for time in times if time.part == part]
        points = [time.points for time in measured]
        axes.loglog(points, [time.torch for time in measured], style, color="#777777", label=f"torch.nn, {part}")
        axes.loglog(points, [time.fundl for time in measured], style, color=FUNDL, label=f"fundl, {part}")
    axes.set(xlabel="points in the data set", ylabel="milliseconds")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


# --- All in one -----------------------------------------------------------------------------------------------------------


def draw_overview(setup: Setup, runs: Sequence[Run], trained: Trained, times: Sequence[Times], file: Path) -> None:
    """One picture of the reports: learning curves, the estimated distribution, and times."""
    figure = Figure(figsize=(14, 4.8), layout="constrained")
    learning, square, clock = figure.subplots(1, 3).tolist()
    curves(learning, setup, runs)
    learning.set(xlabel="epoch", ylabel="test accuracy [%]", title=f"learning curves ({setup.name})")
    learning.legend(loc="lower right")
    estimated_distribution(square, trained)
    square.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
    time_curves(clock, times)
    clock.set_title("time of a pass over the whole data set")
    save(figure, file, dpi=80)
