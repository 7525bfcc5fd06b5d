"""The model of a text: it learns, repeats itself to the bit, writes, and says what is wrong with an option."""

import re
from pathlib import Path

import pytest
from matplotlib import image

from tests.scripts import run, words_of

FEW = ["--epochs", "2", "--steps", "3", "--features", "8", "--depth", "2", "--heads", "2", "--length", "16", "--quiet"]
"""Options for a run that takes no time."""


@pytest.mark.parametrize("model", ["transformer", "lstm"])
def test_a_model_learns_and_writes(tmp_path: Path, model: str) -> None:
    plot = tmp_path / "curve.png"
    options = [*FEW, "--model", model, "--dropout", "0.1", "--count", "30", "--prompt", "The ", "--plot", str(plot)]
    first = run("shakespeare", *options)
    assert first.returncode == 0, first.stderr
    numbers = r"\d+\.\d{4} nats per character"
    assert re.fullmatch(
        r"3,368 characters, \d\d different; [\d,]+ parameters\n"
        rf"train       loss {numbers}, in the mean of the last epoch\n"
        rf"validation  loss {numbers}\n"
        r"\nThe (.|\n){30}\n",
        first.stdout,
    )
    pixels = image.imread(plot)
    assert pixels.shape == (675, 1050, 4)
    assert pixels.std() > 0.05  # it is not blank
    assert run("shakespeare", *options).stdout == first.stdout


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("né à Aÿ, à l'été; " * 30, encoding="utf-8")
    code, words = words_of("shakespeare", *FEW, "--text", str(file), "--prompt", "é", "--count", "0")
    assert code == 0
    assert words[:5] == ["540", "characters,", "11", "different;", words[4]]
    assert words[-1] == "character"  # it wrote nothing


@pytest.mark.slow
def test_by_default_the_story_is_learned() -> None:
    result = run("shakespeare", "--epochs", "1", "--steps", "300", "--features", "64", "--depth", "2", "--length", "64")
    assert result.returncode == 0, result.stderr
    found = re.search(r"train       loss (\d+\.\d{4})", result.stdout)
    assert found is not None
    assert float(found[1]) < 2.5  # to guess blindly costs 3.6


def test_wrong_options_are_explained(tmp_path: Path) -> None:
    short, binary = tmp_path / "short", tmp_path / "binary"
    short.write_text("to be or not to be")
    binary.write_bytes(b"\xff\xfe\xff")
    for options, message in (
        (["--temperature", "0"], "--temperature: a temperature is a number above 0, not 0.0"),
        (["--learning-rate", "-1"], "--learning-rate: a learning rate is a number above 0, not -1.0"),
        (["--learning-rate", "1e38", *FEW], "--learning-rate: the loss is nan in epoch 1, at step"),
        (["--heads", "3"], "--heads: each of 3 heads takes an even number of the features, and 128 cannot be shared so"),
        (["--prompt", ""], "--prompt: a model needs a character to begin with"),
        (["--prompt", "§"], "--prompt: there is no '§' in the text, and the model knows none"),
        (["--text", "no/such/file"], "--text: no/such/file cannot be read as a text: "),
        (["--text", str(binary)], "cannot be read as a text: 'utf-8' codec"),
        (["--text", str(short)], "has 18 characters; a tenth of them, for validation, must be more than a piece of 128."),
    ):
        code, words = words_of("shakespeare", *options)
        assert code == 2
        assert message.replace(" ", "") in "".join(words)  # a long path is broken at any place
