"""The disk runs as a newcomer runs it, says what is wrong with an option, and repeats itself to the bit."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from matplotlib import image

from tests.scripts import EXAMPLES, run, words_of

FEW = ["--epochs", "2", "--train-count", "50", "--test-count", "40"]
"""Options for a run that takes no time."""


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts back the number of threads, which the example sets for its process."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


# --- disk.py, as it is run --------------------------------------------------------------------------------------------


def test_the_same_seed_prints_the_same_digits() -> None:
    options = [*FEW, "--seed", "7", "--runs", "2", "--optimizer", "adam", "--dtype", "float64", "--batch-size", "33"]
    first, second = run("disk", *options), run("disk", *options, "--quiet")
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    result = r"accuracy +\d+\.\d\d%  loss \d\.\d{6}\n"
    seeds = "".join(rf"seed {seed}\n  train  {result}  test   {result}" for seed in (7, 8))
    summary = r"mean of 2\n  test   accuracy +\d+\.\d\d%  from \d+\.\d\d% to \d+\.\d\d%\n"
    assert re.fullmatch(seeds + summary, first.stdout)
    assert first.stderr.startswith("epoch 1/2  loss ")
    assert first.stderr.count("\n") == 4
    assert second.stderr == ""


def test_help_explains_each_option() -> None:
    result = run("disk", "--help")
    assert result.returncode == 0
    explained = {line.split()[1]: line for line in result.stdout.splitlines() if line.startswith("│ --")}
    for option in ("hidden", "activation", "loss", "optimizer", "learning-rate", "batch-size", "epochs", "train-count"):
        assert "[default: " in explained.pop(f"--{option}")
    for option in ("test-count", "seed", "runs", "dtype", "device"):
        assert "[default: " in explained.pop(f"--{option}")
    assert explained.keys() == {"--checkpoints", "--log", "--plot", "--no-jit", "--quiet", "--help"}
    assert "Draw the first run into this file: .png, .pdf or .svg." in explained["--plot"]


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    log, folder = tmp_path / "run.csv", tmp_path / "checkpoints"
    options = [*FEW[2:], "--epochs", "20", "--checkpoints", str(folder), "--log", str(log), "--quiet"]
    command = [sys.executable, str(EXAMPLES / "disk.py"), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as stopped:
        while stopped.poll() is None and not (log.is_file() and log.read_text().count("\n") > 3):
            time.sleep(0.002)
        stopped.send_signal(signal.SIGTERM)
        _, said = stopped.communicate()
    if stopped.returncode:  # else it was done before
        assert (stopped.returncode, said) == (130, "disk.py: stopped: the same command goes on\n")
    code, words = words_of("disk", *options)
    assert (code, words) == words_of("disk", *FEW[2:], "--epochs", "20", "--quiet")
    assert [line.split(",")[0] for line in log.read_text().splitlines()] == ["epoch", *map(str, range(1, 21))]
    code, words = words_of("disk", *options, "--hidden", "3")
    assert code == 2
    assert "--checkpoints: what is there was begun with --hidden '25,25,25', not with --hidden '3': give that" in " ".join(
        words
    )
    log.write_text("my thesis")
    code, words = words_of("disk", *options)
    assert code == 2
    assert "is there, and is no log of a run" in " ".join(words)


@pytest.mark.slow
def test_by_default_the_disk_is_learned() -> None:
    result = run("disk", "--runs", "5", "--quiet")
    assert result.returncode == 0, result.stderr
    accuracies = [float(number) for number in re.findall(r"test   accuracy +(\d+\.\d\d)%  loss", result.stdout)]
    assert len(accuracies) == 5
    assert min(accuracies) >= 97.0
    assert sum(accuracies) / 5 >= 97.5


# --- disk.py, in this process -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("png", ["--hidden", "7, 5", "--activation", "tanh", "--loss", "mse", "--optimizer", "sgd"]),
        ("svg", ["--hidden", "3", "--activation", "gelu", "--loss", "binary-cross-entropy", "--optimizer", "adam"]),
        ("pdf", ["--hidden", "", "--learning-rate", "0.001"]),  # a linear model, with no boundary in the square as yet
        ("png", ["--train-count", "1", "--test-count", "1", "--activation", "silu"]),
    ],
)
def test_odd_options_and_the_plot(tmp_path: Path, suffix: str, options: list[str]) -> None:
    file = tmp_path / f"disk.{suffix}"
    code, words = words_of("disk", *FEW, *options, "--quiet", "--plot", str(file))
    assert code == 0
    assert words[:4] == ["seed", "0", "train", "accuracy"]
    assert file.stat().st_size > 10_000
    if suffix == "png":
        pixels = image.imread(file)
        assert pixels.shape == (975, 1800, 4)
        assert pixels.std() > 0.1  # it is not blank


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype", "float16"], "'float16' is not one of 'float32', 'float64'"),
        (["--loss", "l1"], "'l1' is not one of 'cross-entropy', 'binary-cross-entropy', 'mse'"),
        (["--learning-rate", "0"], "--learning-rate: a learning rate is a number above 0, not 0.0"),
        (["--learning-rate", "-1"], "a learning rate is a number above 0, not -1.0"),
        (["--learning-rate", "nan"], "a learning rate is a number above 0, not nan"),
        (["--learning-rate", "1e9", "--quiet"], "--learning-rate: the loss is nan in epoch 1, at step"),
        (["--device", "nowhere"], "--device: the device 'nowhere' cannot be used here: "),
        (["--device", "meta"], "--device: the device 'meta' cannot be used here: "),
        (
            ["--hidden", "25,,25"],
            "--hidden: sizes are whole numbers above 0, separated by commas, such as 25,25,25, not '25,,25'",
        ),
        (["--hidden", "0"], "sizes are whole numbers above 0"),
        (["--plot", "disk.txt"], "--plot: a plot is a .png, .pdf or .svg file, not 'disk.txt'"),
        (["--plot", "no/such/folder/disk.png"], "there is no folder 'no/such/folder' to put the plot into"),
        (["--epochs", "0"], "--epochs"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_a_wrong_option_is_explained(options: list[str], message: str) -> None:
    code, words = words_of("disk", *options)
    assert code == 2
    assert message in " ".join(words)
    assert "seed 0" not in " ".join(words)  # nothing was trained


@pytest.mark.usefixtures("threads")
def test_a_plot_needs_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    code, words = words_of("disk", "--plot", "disk.png")
    assert code == 2
    assert 'a plot needs matplotlib: pip install "fundl[plot]"' in " ".join(words)
