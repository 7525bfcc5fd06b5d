"""The digit reader of the page digits.html: a small convolutional network, and the graph that the page runs.

What it has learned is in digits.safetensors, which ``digits_model.py`` wrote.
"""

from pathlib import Path
from typing import Final

import fundl
from fundl import Model, random
from fundl.interop import onnx

WEIGHTS: Final = Path(__file__).with_name("digits.safetensors")
SIZE: Final = 28
"""Pixels of an image, along each axis."""

CLASSES: Final = 10


def network() -> Model:
    """Three convolutions, each of which halves the image, and a linear layer: 12,638 numbers, as yet without values."""
    return fundl.compose(
        block(1, 12),  # (N, 12, 14, 14)
        block(12, 24),  # (N, 24, 7, 7)
        block(24, 32),  # (N, 32, 3, 3)
        fundl.Flatten(),
        fundl.linear(32 * 3 * 3, CLASSES),
    )


def block(in_channels: int, out_channels: int) -> Model:
    """A convolution that keeps height and width, and a pooling that halves them."""
    convolution = fundl.conv2d(in_channels, out_channels, 3, padding="same", bias=False)  # the norm adds one
    return convolution, fundl.batch_norm(out_channels), fundl.ReLU(), fundl.MaxPool2d(2)


def write(folder: Path) -> None:
    """Write the graph of the page into a folder: an image (1, 1, 28, 28), 1 where there is ink, to probabilities (1, 10)."""
    image = random.uniform(fundl.key(0), (1, 1, SIZE, SIZE))  # of its numbers nothing is kept
    onnx.export_apply(folder / "digits.onnx", fundl.load_model(WEIGHTS), image, free=())
