"""The network of the page of digits: it is trained from files of MNIST, and what is shipped reads what is drawn."""

from pathlib import Path

import pytest
import torch

import digits_network
import fundl
from fundl import key, random
from tests.drawings import DIGITS, image_of
from tests.scripts import words_of
from tests.test_mnist import write

SCRIPT = "browser/digits_model"


def images_and_labels(folder: Path, size: int = 28) -> None:
    """Some images, and what they show."""
    write(folder / "t10k-images-idx3-ubyte", random.randint(key(0), (30, size, size), low=0, high=256))
    write(folder / "t10k-labels-idx1-ubyte", torch.arange(30) % 10)


def test_it_learns_from_files_of_mnist(tmp_path: Path) -> None:
    images_and_labels(tmp_path)
    files = [tmp_path / name for name in ("first.safetensors", "second.safetensors")]
    for file in files:
        code, words = words_of(SCRIPT, "--data", str(tmp_path), "--out", str(file), "--epochs", "1", "--quiet")
        assert code == 0, words
        assert " ".join(words[3:]) == f"of 6 images, after 24 others wrote {file}"
    assert files[0].read_bytes() == files[1].read_bytes()
    assert fundl.load_metadata(files[0])["trained_on"] == "24"
    shipped = fundl.load_model(digits_network.WEIGHTS)
    assert fundl.tree.flatten(fundl.load(files[0], shipped))[1] == fundl.tree.flatten(shipped)[1]


def test_wrong_options_are_explained(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    images_and_labels(tmp_path)
    images_and_labels(tmp_path / "small", 8)
    for options, message in (
        (["--data", str(tmp_path / "small")], "pixels, not 28 x 28"),
        (["--data", str(tmp_path / "other")], "holds neither train-images-idx3-ubyte nor t10k-images"),
        (["--data", str(tmp_path), "--out", str(tmp_path / "none" / "digits")], "--out: there is no folder"),
        (["--data", str(tmp_path), "--learning-rate", "0"], "--learning-rate: a learning rate is a number above 0, not 0.0"),
    ):
        code, words = words_of(SCRIPT, *options)
        assert code == 2
        assert message in " ".join(words)


def test_what_is_shipped_reads_what_is_drawn() -> None:
    images = torch.stack([image_of(strokes) for strokes in DIGITS]).unsqueeze(1).float()
    probabilities = fundl.apply(fundl.load_model(digits_network.WEIGHTS), images)
    assert probabilities.argmax(1).tolist() == list(range(10))
    assert probabilities.amax(1).min() > 0.5


def test_it_is_one_graph(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed, of the extra onnx")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, of the extra onnx")
    import fundl_onnx

    digits_network.write(tmp_path)
    image = random.uniform(key(0), (1, 1, 28, 28))
    (probabilities,) = [fundl_onnx.load(tmp_path / "digits.onnx")(image.numpy())]
    expected = fundl.apply(fundl.load_model(digits_network.WEIGHTS), image)
    assert (torch.from_numpy(probabilities) - expected).abs().max() < 1e-5
