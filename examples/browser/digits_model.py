"""What the page of digits reads with: a small network learns from MNIST, and is written to digits.safetensors.

    PYTHONPATH=examples python examples/browser/digits_model.py --data DIR

DIR holds MNIST in IDX files, as for examples/mnist.py: of a folder that holds only one of the two pairs, four fifths are for
training, and the others for the test. Each epoch sees the images distorted anew, since what is drawn with a mouse is slanted,
wobbly, and as thick as the pen.
"""

import math
import sys
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from torch import Tensor
from typer import BadParameter, Option

import fundl
from digits_network import SIZE, WEIGHTS, network
from fundl import Model, random
from mnist import Images, mnist
from shared.options import go_through, require_positive, start

# --- Images, distorted ---------------------------------------------------------------------------------------------------

PIECE = 2000  # images at once, so that what is between takes little memory
FIELD = 5  # displacements are drawn on a grid of so many points, and are straight lines between


def distorted(key: Tensor, images: Tensor) -> Tensor:
    """Images (N, 1, 28, 28), each in another way: thicker or thinner, turned, slanted, stretched, shifted, and wobbly."""
    pieces = torch.split(images, PIECE)
    return torch.cat([moved(one, piece) for one, piece in zip(fundl.split(key, len(pieces)), pieces, strict=True)])


def moved(key: Tensor, images: Tensor) -> Tensor:
    """The images with other pens, seen through grids of points that are moved a little."""
    pen_key, grid_key = fundl.split(key)
    return torch.grid_sampler(thickened(pen_key, images), points(grid_key, len(images)), 0, 0, align_corners=False)


def thickened(key: Tensor, images: Tensor) -> Tensor:
    """The images with other pens: each between itself and the brightest of the 3 x 3 pixels around, or the darkest."""
    largest = fundl.MaxPool2d(3, stride=1, padding=1)
    thick, thin = fundl.apply(largest, images), -fundl.apply(largest, -images)
    share = random.uniform(key, (len(images), 1, 1, 1), low=-0.3, high=1.0)
    return images + share.clamp(min=0) * (thick - images) + (-share).clamp(min=0) * (thin - images)


def points(key: Tensor, count: int) -> Tensor:
    """Where each pixel of a moved image is taken from (N, 28, 28, 2): x and y, -1 and 1 at the borders."""
    turn_key, shift_key, field_key = fundl.split(key, 3)
    turn, slant, wide, high = random.uniform(turn_key, (4, count), low=-1.0).unbind()
    cos, sin = torch.cos(0.2 * turn), torch.sin(0.2 * turn)  # radians: up to 11 degrees
    wide, high, slant = torch.exp(0.15 * wide), torch.exp(0.15 * high), 0.25 * slant
    rows = torch.stack([cos * wide, (slant * cos - sin) * wide, sin * high, (slant * sin + cos) * high]).T.reshape(count, 2, 2)
    shift = random.uniform(shift_key, (count, 2, 1), low=-0.1, high=0.1)  # 1.4 pixels
    affine = torch.affine_grid_generator(torch.cat([rows, shift], 2), [count, 1, SIZE, SIZE], align_corners=False)
    field = random.normal(field_key, (count, 2, FIELD, FIELD), std=0.05)  # 0.7 pixels
    wobble = fundl.apply(fundl.Upsample(size=SIZE, mode="linear", align_corners=True), field)
    return affine + wobble.permute(0, 2, 3, 1)


# --- A run ---------------------------------------------------------------------------------------------------------------


class Reading(NamedTuple):
    """How well the images of the test are read."""

    trained_on: int
    tested_on: int
    accuracy: float


def learn(
    seed: int, folder: Path, *, epochs: int, batch_size: int, learning_rate: float, progress: bool
) -> tuple[Model, Reading]:
    """The network, and how well it reads; the seed determines it to the last bit."""
    split_key, model_key, run_key = fundl.split(fundl.key(seed), 3)
    train, test = mnist(folder, split_key)
    for images, _ in (train, test):
        if tuple(images.shape[1:]) != (1, SIZE, SIZE):
            raise BadParameter(
                f"the images in {folder} are of {tuple(images.shape[2:])} pixels, not 28 x 28", param_hint="--data"
            )

    def batches(key: Tensor) -> fundl.Minibatches[Images]:
        distortion_key, order_key = fundl.split(key)
        images, labels = train
        return fundl.minibatches(order_key, (distorted(distortion_key, images), labels), batch_size)

    optimizer = fundl.adam(fundl.cosine_schedule(learning_rate, epochs * math.ceil(len(train[0]) / batch_size)))
    state = fundl.train_state(run_key, fundl.initialize(model_key, network()), optimizer)
    step = fundl.train_step(fundl.cross_entropy, optimizer)
    metrics = {"accuracy": fundl.accuracy}
    run = fundl.epochs(step, state, batches, count=epochs, metrics=metrics, progress=progress)
    state, _ = go_through(run, state, None)
    distorted_images = [x for x, _ in batches(fundl.fold_in(run_key, epochs))]
    model = fundl.calibrate(state.model, distorted_images)
    result = fundl.evaluate(fundl.cross_entropy, model, fundl.minibatches(None, test, 500), metrics=metrics)
    return fundl.compose(model, fundl.Softmax()), Reading(len(train[0]), len(test[0]), result.metrics["accuracy"])


def main(
    *,
    data: Annotated[Path, Option(help="A folder of MNIST's IDX files.")],
    out: Annotated[Path, Option(help="The file to write.")] = WEIGHTS,
    epochs: Annotated[int, Option(min=1, help="How often each image is seen, each time distorted anew.")] = 30,
    batch_size: Annotated[int, Option(min=2, help="How many images make a step.")] = 64,
    learning_rate: Annotated[float, Option(help="Of Adam, at the start; it falls to 0 along a cosine.")] = 0.003,
    seed: Annotated[int, Option(min=0, max=2**32, help="Decides all that is random: the same seed, the same bits.")] = 0,
    quiet: Annotated[bool, Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Learn to read what is drawn, and write the network to a file."""
    require_positive(learning_rate)
    if not out.parent.is_dir():
        raise BadParameter(f"there is no folder {str(out.parent)!r} to put the file into", param_hint="--out")
    try:
        model, reading = learn(
            seed, data, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, progress=not quiet
        )
    except FloatingPointError as error:
        raise BadParameter(str(error), param_hint="--learning-rate") from error
    print(f"test   accuracy {reading.accuracy:7.2%}  of {reading.tested_on} images, after {reading.trained_on} others")
    fundl.save(out, model, metadata={name: str(value) for name, value in reading._asdict().items()})
    print(f"wrote  {out}")


if __name__ == "__main__":
    sys.exit(start(main))
