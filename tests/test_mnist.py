"""The digits: files of MNIST are found, read and learned from; what is wrong with them is said."""

import gzip
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from matplotlib import image
from torch import Tensor

from fundl import key, random
from tests.scripts import run, words_of

FEW = ["--epochs", "1", "--channels", "4", "--hidden", "5", "--quiet"]
"""Options for a run that takes no time."""


def write(file: Path, numbers: Tensor, *, gzipped: bool = False) -> None:
    """Write an IDX file of bytes."""
    header = bytes([0, 0, 8, numbers.ndim]) + struct.pack(f">{numbers.ndim}I", *numbers.shape)
    flat: Sequence[int] = numbers.flatten().tolist()
    content = header + bytes(flat)
    file.write_bytes(gzip.compress(content) if gzipped else content)


def images_and_labels(folder: Path, name: str, count: int, *, gzipped: bool = False) -> None:
    """Write some images, and what they show."""
    ending = ".gz" if gzipped else ""
    images = random.randint(key(count), (count, 12, 10), low=0, high=256)
    write(folder / f"{name}-images-idx3-ubyte{ending}", images, gzipped=gzipped)
    write(folder / f"{name}-labels-idx1-ubyte{ending}", torch.arange(count) % 10, gzipped=gzipped)


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_one_pair_of_files_is_divided(tmp_path: Path, norm: str) -> None:
    images_and_labels(tmp_path, "t10k", 30, gzipped=True)
    plot = tmp_path / "digits.png"
    code, words = words_of("mnist", *FEW, "--data", str(tmp_path), "--norm", norm, "--plot", str(plot))
    assert code == 0
    assert re.fullmatch(r"train accuracy \d+\.\d\d% loss \d+\.\d{6} test accuracy \d+\.\d\d% loss \d+\.\d{6}", " ".join(words))
    pixels = image.imread(plot)
    assert pixels.shape == (975, 2100, 4)
    assert pixels.std() > 0.1  # it is not blank


def test_two_pairs_are_for_training_and_for_the_test(tmp_path: Path) -> None:
    images_and_labels(tmp_path, "train", 30)
    images_and_labels(tmp_path, "t10k", 2, gzipped=True)
    code, words = words_of("mnist", *FEW, "--data", str(tmp_path))
    assert code == 0
    assert words[7] in {"0.00%", "50.00%", "100.00%"}  # of two images


def test_the_same_seed_prints_the_same_digits() -> None:
    first, second = (words_of("mnist", *FEW, "--seed", "3") for _ in range(2))
    assert first == second
    assert first[0] == 0


@pytest.mark.slow
def test_by_default_the_digits_are_learned() -> None:
    result = run("mnist")
    assert result.returncode == 0, result.stderr
    found = re.search(r"test   accuracy +(\d+\.\d\d)%", result.stdout)
    assert found is not None
    assert float(found[1]) >= 97.0
    assert result.stderr.count("\n") == 20  # a line for every second epoch


def test_wrong_options_are_explained() -> None:
    for options, message in (
        (["--channels", "6"], "--channels: the number of channels is a multiple of 4, not 6"),
        (["--learning-rate", "0"], "--learning-rate: a learning rate is a number above 0, not 0.0"),
        (["--learning-rate", "1e38", *FEW], "--learning-rate: the loss is nan in epoch 1, at step"),
        (["--data", "no/such/folder"], "--data: no/such/folder holds neither train-images-idx3-ubyte nor t10k-images"),
    ):
        code, words = words_of("mnist", *options)
        assert code == 2
        assert message in " ".join(words)


def test_files_that_do_not_hold_digits_are_explained(tmp_path: Path) -> None:
    def explained(message: str) -> bool:
        code, words = words_of("mnist", *FEW, "--data", str(tmp_path))
        return code == 2 and message in "".join(words)  # a long path is broken at any place

    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    write(images, torch.zeros(3, 4, 4, dtype=torch.uint8))
    assert explained("holdstheimagesoftrain,butnottheirlabels")
    write(labels, torch.tensor([1, 2]))
    assert explained("(3,4,4)and(2,)")
    write(labels, torch.tensor([1, 2, 10]))
    assert explained("donotholdimages,andasmanydigits")
    labels.write_bytes(b"\x89PNG")
    assert explained("isnotanIDXfile:itmustbeginwithtwozeros")
