"""Handwritten digits: a convolutional network learns to read them from the files of MNIST.

    python examples/mnist.py --data DIR --plot mnist.png

DIR holds MNIST in IDX files, gzipped or not: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
t10k-labels-idx1-ubyte. Of a folder that holds only one of the two pairs, four fifths are for training, and the others for the
test. Without --data, the network learns the 1,797 small digits that come with scikit-learn.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import attrs
import torch
from torch import Tensor
from typer import BadParameter, Option

import fundl
from fundl import Epoch, Evaluation, Model, Shape
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

CLASSES = 10
TEST_FRACTION = 0.2

Images = tuple[Tensor, Tensor]
"""Images (N, 1, height, width) from 0 to 1, and what they show (N,)."""


@attrs.frozen(eq=False)
class Run:
    """What came out of a run."""

    history: Sequence[Epoch]
    train: Evaluation
    test: Evaluation
    images: Tensor
    """Those of the test."""
    labels: Tensor
    guesses: Tensor


# --- The network ---------------------------------------------------------------------------------------------------------


def network(shape: tuple[int, ...], channels: int, hidden: int, dropout: float, norm: str) -> Model:
    """Two convolutions, each followed by a pooling, and two linear layers; as yet without values.

    Args:
        shape: of an image: its channels, height and width.
        channels: of the first convolution; the second has twice as many.
        hidden: features between the linear layers.
        dropout: the rate at which these are dropped.
        norm: what the convolutions' outputs are normalised by: "batch", "group" or "none".
    """
    eyes = fundl.compose(
        block(shape[0], channels, norm),
        block(channels, 2 * channels, norm),
        fundl.Flatten(),
    )
    seen = fundl.output_shape(eyes, Shape(None, *shape)).sizes[-1]  # features that are left of an image of this size
    assert isinstance(seen, int)
    head = fundl.compose(fundl.linear(seen, hidden), fundl.ReLU(), fundl.Dropout(dropout), fundl.linear(hidden, CLASSES))
    return fundl.compose(eyes, head)


def block(in_channels: int, out_channels: int, norm: str) -> Model:
    """A convolution that keeps height and width, and a pooling that halves them."""
    convolution = fundl.conv2d(in_channels, out_channels, 5, padding="same")
    rest = fundl.ReLU(), fundl.MaxPool2d(2)
    if norm == "batch":
        return convolution, fundl.batch_norm(out_channels), *rest
    if norm == "group":
        return convolution, fundl.group_norm(4, out_channels), *rest
    return convolution, *rest


# --- The images ----------------------------------------------------------------------------------------------------------


def mnist(folder: Path, split_key: Tensor) -> tuple[Images, Images]:
    """The images in a folder, to train on and to test on."""
    pairs = [pair for pair in (pair_of(folder, "train"), pair_of(folder, "t10k")) if pair is not None]
    if not pairs:
        raise BadParameter(
            f"{folder} holds neither train-images-idx3-ubyte nor t10k-images-idx3-ubyte, with or without .gz",
            param_hint="--data",
        )
    return (pairs[0], pairs[1]) if len(pairs) == 2 else fundl.train_test_split(split_key, pairs[0], test_fraction=TEST_FRACTION)


def pair_of(folder: Path, name: str) -> Images | None:
    """The images and labels of the files with a name, if they are there."""
    if (images_file := file_of(folder, f"{name}-images-idx3-ubyte")) is None:
        return None
    if (labels_file := file_of(folder, f"{name}-labels-idx1-ubyte")) is None:
        raise BadParameter(f"{folder} holds the images of {name}, but not their labels", param_hint="--data")
    try:
        images, labels = fundl.read_idx(images_file), fundl.read_idx(labels_file)
    except (ValueError, OSError) as error:
        raise BadParameter(str(error), param_hint="--data") from error
    if images.ndim != 3 or labels.shape != images.shape[:1] or not len(labels) or int(labels.max()) >= CLASSES:
        raise BadParameter(
            f"{images_file} and {labels_file} do not hold images, and as many digits: they are of shapes"
            f" {tuple(images.shape)} and {tuple(labels.shape)}",
            param_hint="--data",
        )
    return images.unsqueeze(1) / 255, labels.long()


def file_of(folder: Path, name: str) -> Path | None:
    """The file with a name, or with that of its gzipped form."""
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)


def digits(split_key: Tensor) -> tuple[Images, Images]:
    """The small digits of scikit-learn, to train on and to test on."""
    from sklearn.datasets import load_digits  # noqa: PLC0415  # those who have MNIST need not have it

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).to(torch.float32).reshape(-1, 1, 8, 8) / 16
    return fundl.train_test_split(split_key, (x, torch.from_numpy(labels).long()), test_fraction=TEST_FRACTION)


# --- A run ---------------------------------------------------------------------------------------------------------------


def learn(
    seed: int,
    folder: Path | None,
    *,
    channels: int,
    hidden: int,
    dropout: float,
    norm: str,
    learning_rate: float,
    batch_size: int,
    epochs: int,
    device: str,
    checkpoints: Path | None,
    log: Path | None,
    can_compile: bool,
    progress: bool,
) -> Run:
    """One run, which the seed determines to the last bit."""
    split_key, model_key, run_key = fundl.split(fundl.key(seed), 3)
    parts = digits(split_key) if folder is None else mnist(folder, split_key)
    train, test = fundl.tree.move_to(parts, device)

    model = network(tuple(train[0].shape[1:]), channels, hidden, dropout, norm)
    schedule = fundl.cosine_schedule(learning_rate, epochs * math.ceil(len(train[0]) / batch_size))
    optimizer = fundl.adam(schedule)
    state = fundl.train_state(run_key.to(device), fundl.initialize(model_key, model, device=device), optimizer)

    def finished(model: Model) -> Model:
        """The model that answers one image at a time: with the statistics of all images, where a batch's were used."""
        return fundl.calibrate(model, [x for x, _ in fundl.minibatches(None, train, 500)]) if norm == "batch" else model

    def measure(model: Model, images: Images) -> Evaluation:
        return fundl.evaluate(
            fundl.cross_entropy, model, fundl.minibatches(None, images, 500), metrics={"accuracy": fundl.accuracy}
        )

    with of_checkpoints(checkpoints):
        run = fundl.epochs(
            fundl.train_step(fundl.cross_entropy, optimizer),
            state,
            lambda epoch_key: fundl.minibatches(epoch_key, train, batch_size),
            count=epochs,
            metrics={"accuracy": fundl.accuracy},
            evaluate=lambda model: measure(finished(model), test),
            checkpoints=checkpoints_in(checkpoints),
            compile="auto" if can_compile else False,
            progress=progress,
        )
    state, history = go_through(run, state, log)
    model = finished(state.model)
    guesses = [fundl.apply(model, x).argmax(1) for x, _ in fundl.minibatches(None, test, 500)]
    return Run(
        history=history,
        train=measure(model, train),
        test=measure(model, test),
        images=test[0].cpu(),
        labels=test[1].cpu(),
        guesses=torch.cat(guesses).cpu(),
    )


def main(
    *,
    data: Annotated[Path | None, Option(help="A folder of MNIST's IDX files.", show_default="scikit-learn's digits")] = None,
    channels: Annotated[
        int, Option(min=4, help="Of the first convolution; a multiple of 4. The second has twice as many.")
    ] = 16,
    hidden: Annotated[int, Option(min=1, help="Features between the two linear layers.")] = 128,
    dropout: Annotated[float, Option(min=0, max=0.99, help="The rate at which these features are dropped in training.")] = 0.3,
    norm: Annotated[Literal["none", "batch", "group"], Option(help="What normalises the convolutions.")] = "none",
    learning_rate: Annotated[float, Option(help="Of Adam, at the start; it falls to 0 along a cosine.")] = 0.002,
    batch_size: Annotated[int, Option(min=2, help="How many images make a step.")] = 64,
    epochs: Annotated[
        int | None, Option(min=1, help="How often each image is seen.", show_default="10, and 40 without --data")
    ] = None,
    seed: Annotated[int, Option(min=0, max=2**32, help="Decides all that is random: the same seed, the same bits.")] = 0,
    device: Annotated[str, Option(help="Where to compute: cpu, cuda, cuda:1.")] = "cpu",
    checkpoints: Annotated[
        Path | None, Option(help="Keep checkpoints in this folder, and go on from the newest that is there.")
    ] = None,
    log: Annotated[Path | None, Option(help="Write the numbers of each epoch into this file, as CSV.")] = None,
    plot: Annotated[Path | None, Option(help="Draw the run into this file: .png, .pdf or .svg.")] = None,
    no_jit: Annotated[bool, Option("--no-jit", help="Never compile: very long runs are compiled otherwise.")] = False,
    quiet: Annotated[bool, Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Learn to read handwritten digits, and test on others."""
    require_positive(learning_rate)
    require_device(device)
    require_picture(plot)
    require_log(log)
    if channels % 4:
        raise BadParameter(f"the number of channels is a multiple of 4, not {channels}", param_hint="--channels")
    try:
        run = learn(
            seed,
            data,
            channels=channels,
            hidden=hidden,
            dropout=dropout,
            norm=norm,
            learning_rate=learning_rate,
            batch_size=batch_size,
            epochs=epochs or (40 if data is None else 10),
            device=device,
            checkpoints=checkpoints,
            log=log,
            can_compile=not no_jit,
            progress=not quiet,
        )
    except FloatingPointError as error:
        raise BadParameter(str(error), param_hint="--learning-rate") from error
    print(f"train  accuracy {run.train.metrics['accuracy']:7.2%}  loss {run.train.loss:.6f}")
    print(f"test   accuracy {run.test.metrics['accuracy']:7.2%}  loss {run.test.loss:.6f}")
    if plot is not None:
        draw(run, plot)


# --- The picture ---------------------------------------------------------------------------------------------------------

SHOWN = 24  # images that were misread


def draw(run: Run, file: Path) -> None:
    """Draw how the network learned, which digits it takes for which, and images that it misread."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # those who draw nothing need not wait for it, nor have it

    figure = Figure(figsize=(14, 6.5), layout="constrained")
    grid = figure.add_gridspec(1, 3, width_ratios=(1, 1.15, 1))
    curves, table, misread = (figure.add_subfigure(grid[0, column]) for column in range(3))
    loss, accuracy = curves.subplots(2, 1, sharex=True)
    draw_curves(loss, accuracy, run.history)
    draw_confusions(table.subplots(), run)
    is_wrong = run.guesses != run.labels
    misread.suptitle(f"{int(is_wrong.sum())} of {len(is_wrong)} test images misread")
    wrong = [int(place) for place in is_wrong.nonzero()[:SHOWN, 0]]
    for axes, place in zip(misread.subplots(6, 4).flat, [*wrong, *[None] * SHOWN], strict=False):
        axes.axis("off")
        if place is not None:
            axes.imshow(run.images[place, 0].numpy(), cmap="gray_r")
            axes.set_title(f"{run.labels[place]} read as {run.guesses[place]}", fontsize=8)
    figure.savefig(file, dpi=150)


def draw_confusions(axes: "Axes", run: Run) -> None:
    """How often each digit was taken for each other."""
    counts = fundl.confusion_matrix(run.guesses, run.labels, classes=CLASSES)
    mistakes = counts - counts.diag().diag()
    axes.imshow(mistakes.numpy(), cmap="Oranges", vmax=2 * max(1, int(mistakes.max())))  # dark enough to see, and to read
    for label in range(CLASSES):
        for guess in range(CLASSES):
            if counts[label, guess]:
                weight = "bold" if label == guess else "normal"
                axes.text(guess, label, str(int(counts[label, guess])), ha="center", va="center", fontsize=8, weight=weight)
    axes.set(title="Test images", xlabel="read as", ylabel="shows", xticks=range(CLASSES), yticks=range(CLASSES))


if __name__ == "__main__":
    sys.exit(start(main))
