"""Files that say what a history says, whatever was there before."""

import csv
import math
import os
import sys
import types
from pathlib import Path
from typing import ClassVar

import pytest
from matplotlib import image

from fundl import (
    Checkpoints,
    Epoch,
    Evaluation,
    TensorBoard,
    accuracy,
    cross_entropy,
    disk,
    epochs,
    evaluate,
    initialize,
    key,
    linear,
    minibatches,
    sgd,
    table,
    train_state,
    train_step,
    write_csv,
    write_picture,
)

HISTORY = [
    Epoch(1, 10, Evaluation(0.1 + 0.2, {"accuracy": 0.5, "odd, name": 1e-9}), None, 0.125),
    Epoch(2, 20, Evaluation(0.25, {"accuracy": 0.75, "odd, name": math.nan}), Evaluation(0.3), 0.5),
    Epoch(3, 30, Evaluation(0.2, {"accuracy": 1.0, "odd, name": -math.inf}), None, 0.25),
    Epoch(4, 40, Evaluation(0.1, {"accuracy": 1.0, "odd, name": 3.0}), Evaluation(0.2), 0.25),
]


def holds(file: Path, history: list[Epoch]) -> bool:
    """Whether a file holds a history, to the last bit, as any reader of CSV sees it."""
    with file.open(newline="") as opened:
        header, *rows = csv.reader(opened)
    columns = table(history)
    assert header == [*columns]
    found = [[math.nan if cell == "" else float(cell) for cell in row] for row in rows]
    expected = [[math.nan if cell is None else float(cell) for cell in row] for row in zip(*columns.values(), strict=True)]
    return repr(found) == repr(expected)


def test_row_by_row_is_all_at_once(tmp_path: Path) -> None:
    file, whole = tmp_path / "run.csv", tmp_path / "whole.csv"
    for count in range(1, 5):
        write_csv(file, HISTORY[:count])
        assert holds(file, HISTORY[:count])
    write_csv(whole, HISTORY)
    assert file.read_bytes() == whole.read_bytes()
    before = file.stat().st_ino
    write_csv(file, HISTORY)  # once more changes nothing
    assert file.read_bytes() == whole.read_bytes()
    assert file.stat().st_ino == before


def test_a_row_is_appended(tmp_path: Path) -> None:
    file = tmp_path / "run.csv"
    write_csv(file, HISTORY[:2])
    before = file.stat().st_ino
    write_csv(file, HISTORY[:3])
    assert file.stat().st_ino == before
    assert holds(file, HISTORY[:3])


@pytest.mark.parametrize("cut", [0, 1, 30, 58, 120, -1])
def test_whatever_a_killed_program_left(tmp_path: Path, cut: int) -> None:
    """Rows that the checkpoint does not know of, or half of one, or nothing."""
    file = tmp_path / "run.csv"
    write_csv(file, HISTORY)
    file.write_bytes(file.read_bytes()[:cut])
    if cut == 1:  # no header begins so
        with pytest.raises(ValueError, match="is there, and holds something else than the log of a run"):
            write_csv(file, HISTORY[:3])
        return
    if cut == 30:
        file.write_bytes(file.read_bytes()[:22])
    write_csv(file, HISTORY[:3])
    assert holds(file, HISTORY[:3])


def test_the_log_of_another_run_is_replaced_and_no_other_file(tmp_path: Path) -> None:
    file = tmp_path / "run.csv"
    write_csv(file, [Epoch(1, 10, Evaluation(0.9, {"recall": 0.5}), None, 0.125)])
    write_csv(file, HISTORY[:2])
    assert holds(file, HISTORY[:2])
    write_csv(file, [])
    assert file.read_text() == "epoch,step,seconds\n"
    write_csv(file, HISTORY[:1])
    assert holds(file, HISTORY[:1])
    file.write_text("my thesis\n")
    with pytest.raises(ValueError, match="is there, and holds something else than the log of a run: give another path"):
        write_csv(file, HISTORY)
    assert file.read_text() == "my thesis\n"
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_csv(tmp_path / "none" / "run.csv", HISTORY)
    with pytest.raises(OSError, match="is a folder"):
        write_csv(tmp_path, HISTORY)


def test_a_run_that_is_taken_up_goes_on_with_its_log(tmp_path: Path) -> None:
    data, optimizer = disk(key(0), 40), sgd(0.1)
    step, file = train_step(cross_entropy, optimizer), tmp_path / "run.csv"
    metrics = {"accuracy": accuracy}

    def run(stop: int, every: int) -> list[Epoch]:
        state = train_state(key(2), initialize(key(1), linear(2, 2)), optimizer)
        history: list[Epoch] = []
        for epoch in epochs(
            step,
            state,
            lambda key: minibatches(key, data, 10),
            count=8,
            metrics=metrics,
            evaluate=lambda model: evaluate(cross_entropy, model, [data], metrics=metrics),
            evaluate_every=2,
            checkpoints=Checkpoints(tmp_path / "run", every=every),
            progress=False,
        ):
            history = [*epoch.history]
            write_csv(file, history)
            assert holds(file, history)
            if epoch.epoch == stop:
                break
        return history

    run(5, 3)  # the log is ahead of the checkpoint, which is of epoch 3
    history = run(8, 3)
    assert [epoch.epoch for epoch in history] == [*range(1, 9)]
    assert run(8, 3) == history  # it is finished
    assert holds(file, history)


# --- TensorBoard ------------------------------------------------------------------------------------------------------


class Recorder:
    """Stands for tensorboard's writer, and keeps what it was told."""

    made: ClassVar[list["Recorder"]] = []

    def __init__(self, log_dir: str, *, purge_step: int) -> None:
        self.where, self.purged = log_dir, purge_step
        self.scalars: list[tuple[str, float, int]] = []
        self.is_open = True
        Recorder.made.append(self)

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.append((tag, scalar_value, global_step))

    def flush(self) -> None:
        assert self.is_open

    def close(self) -> None:
        self.is_open = False


def test_tensorboard_is_told_each_epoch_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = types.ModuleType("torch.utils.tensorboard")
    monkeypatch.setattr(module, "SummaryWriter", Recorder, raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with TensorBoard(tmp_path) as board:
        board.write(HISTORY[:2])
        board.write(HISTORY[:2])
        board.write(HISTORY[:4])
    writer = Recorder.made.pop()
    assert (writer.where, writer.purged, writer.is_open) == (str(tmp_path), 0, False)
    losses = [(step, value) for tag, value, step in writer.scalars if tag == "loss/train"]
    assert losses == [(epoch.step, epoch.train.loss) for epoch in HISTORY]
    assert [step for tag, _, step in writer.scalars if tag == "loss/test"] == [20, 40]
    assert {tag for tag, _, _ in writer.scalars} == {
        "loss/train",
        "accuracy/train",
        "odd, name/train",
        "loss/test",
        "seconds",
    }


def test_without_tensorboard_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'TensorBoard needs tensorboard: pip install "fundl\[tensorboard\]"'):
        TensorBoard(tmp_path)


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is an extra, and not installed here")
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for count in 3, 4:  # the second as of a run that was taken up
        with TensorBoard(tmp_path) as board:
            board.write(HISTORY[:count])
    read = accumulators.EventAccumulator(os.fspath(tmp_path))
    read.Reload()
    assert [event.step for event in read.Scalars("loss/train")] == [10, 20, 30, 40]


# --- A picture --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_history_is_drawn(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"run.{kind}"
    write_picture(file, HISTORY)
    assert file.stat().st_size > 1000
    if kind == "png":
        height, width, _ = image.imread(file).shape
        assert height > width  # three diagrams, one above the other
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_what_cannot_be_drawn_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a picture is a png, pdf, svg file, not 'run\.txt'"):
        write_picture(tmp_path / "run.txt", HISTORY)
    with pytest.raises(ValueError, match="there is nothing to draw"):
        write_picture(tmp_path / "run.png", [])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'a picture needs matplotlib: pip install "fundl\[plot\]"'):
        write_picture(tmp_path / "run.png", HISTORY)
