"""Where the numbers of a run can be read: a CSV file, TensorBoard, a picture. Each is made to say what a history says.

A history is whole also in a run that was taken up, so that nothing is lost or doubled, whatever was there before.
"""

import csv
import importlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol, Self, cast, final

from fundl._common.files import atomic_file
from fundl._common.listed import Listed
from fundl._common.suggestions import with_suggestions
from fundl.training.history import Epoch
from fundl.training.judging import table

_TAIL: Final = 2**16  # bytes at the end of a file: more than a row has


@with_suggestions
def write_csv(path: str | os.PathLike[str], history: Sequence[Epoch]) -> None:
    """Make a CSV file hold a history: a row for each epoch, a column for each number of `table`.

    Called after each epoch, it appends that epoch's row. If the file holds anything else, more rows than the history has or
    less, or half a row, it is written anew, in one go: a program that is killed leaves a file of whole rows, and one that goes
    on from a checkpoint neither doubles nor loses any.

    Args:
        path: of the file; a file of another run is replaced, one that holds something else is not.
        history: of all epochs so far: ``epoch.history`` in a loop, or what `fit` returned.

    Raises:
        ValueError: the file is there, and is not one that this function wrote.
        OSError: it cannot be written.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from fundl import Epoch, Evaluation, write_csv
    >>> history = [Epoch(1, 10, Evaluation(0.7), None, 0.5), Epoch(2, 20, Evaluation(0.6), None, 0.5)]
    >>> with TemporaryDirectory() as folder:
    ...     for count in 1, 2:
    ...         write_csv(Path(folder, "run.csv"), history[:count])
    ...     print(Path(folder, "run.csv").read_text(), end="")
    epoch,step,seconds,train_loss
    1,10,0.5,0.7
    2,20,0.5,0.6
    """
    file = Path(path)
    header, last = _ends_of(file)
    columns = [*header]
    if header[:3] not in ([], _FIRST):
        raise ValueError(f"{file} is there, and holds something else than the log of a run: give another path")
    if history and {*history[-1].numbers} <= {*columns}:
        if last == _row(history[-1], columns):
            return
        if last == (_row(history[-2], columns) if len(history) > 1 else _line(columns)):
            with file.open("ab") as opened:
                opened.write(_row(history[-1], columns))
            return
    columns = [*table(history)] or _FIRST
    with atomic_file(file) as opened:
        opened.write(b"".join([_line(columns), *(_row(epoch, columns) for epoch in history)]))


_FIRST: Final = ["epoch", "step", "seconds"]


def _ends_of(file: Path) -> tuple[list[str], bytes]:
    """The columns of a file, and its last line; neither of one that is not there, or is empty."""
    if not file.is_file():
        return [], b""
    with file.open("rb") as opened:
        first = opened.readline(_TAIL)
        opened.seek(max(0, file.stat().st_size - _TAIL))
        lines = opened.read().splitlines(keepends=True)
    columns = next(csv.reader(first.decode(errors="replace").splitlines()), [])
    return columns, lines[-1] if lines else b""


def _row(epoch: Epoch, columns: Iterable[str]) -> bytes:
    numbers = epoch.numbers
    return _line([repr(numbers[name]) if name in numbers else "" for name in columns])


def _line(cells: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


class _Writer(Protocol):
    """What is used of tensorboard's own writer."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class _MakesWriter(Protocol):
    def __call__(self, log_dir: str, *, purge_step: int) -> _Writer: ...


@final
class TensorBoard(metaclass=Listed):
    """Shows the numbers of a run in TensorBoard, by its own writer: curves over the steps, `train` and `test` of each number.

        with TensorBoard("runs/disk") as board:
            for epoch in epochs(...):
                board.write(epoch.history)

    A run that is taken up from a checkpoint shows its whole history once: what the folder held is hidden.

    Args:
        folder: of this run alone; it is made if it is not there.

    Raises:
        ImportError: tensorboard is not installed: it comes with ``pip install "fundl[tensorboard]"``.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            module = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise ImportError('TensorBoard needs tensorboard: pip install "fundl[tensorboard]"') from error
        make = cast("_MakesWriter", module.SummaryWriter)  # it has no types
        self._writer = make(os.fspath(folder), purge_step=0)
        self._written = 0

    def write(self, history: Sequence[Epoch]) -> None:
        """Show the epochs of a history that were not shown yet: all at first, then those that came since."""
        for epoch in history[self._written :]:
            for part, result in ("train", epoch.train), ("test", epoch.test):
                for name, number in {} if result is None else result.numbers.items():
                    self._writer.add_scalar(f"{name}/{part}", number, epoch.step)
            self._writer.add_scalar("seconds", epoch.seconds, epoch.step)
        self._written = len(history)
        self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


@with_suggestions
def write_picture(path: str | os.PathLike[str], history: Sequence[Epoch]) -> None:
    """Draw a history into a file: one diagram for the loss and for each metric, over the epochs, `train` and `test` of each.

    Args:
        path: of a .png, .pdf or .svg file; it is replaced in one go.
        history: at least one epoch.

    Raises:
        ValueError: the history is empty, or there is no such kind of picture.
        ImportError: matplotlib is not installed: it comes with ``pip install "fundl[plot]"``.
        OSError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # those who draw nothing need not have it
    except ImportError as error:
        raise ImportError('a picture needs matplotlib: pip install "fundl[plot]"') from error
    if not history:
        raise ValueError("there is nothing to draw: the history has no epochs")
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in _KINDS:
        raise ValueError(f"a picture is a {', '.join(_KINDS)} file, not {Path(path).name!r}")
    columns = table(history)
    names = [name.removeprefix("train_") for name in columns if name.startswith("train_")]
    figure = Figure(figsize=(7, 2.5 * len(names) + 0.5), layout="constrained")
    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(len(names), 1, place)
        for part, color in ("train", "#000000"), ("test", "#009E73"):  # told apart by colour-blind eyes as well
            measured = [
                (epoch.epoch, epoch.numbers[f"{part}_{name}"]) for epoch in history if f"{part}_{name}" in epoch.numbers
            ]
            if measured:
                mark = "." if len(measured) < 30 else ""
                axes.plot(*zip(*measured, strict=True), color=color, linewidth=1, marker=mark, label=part)
        axes.set(ylabel=name, xlabel="epoch" if place == len(names) else "")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with atomic_file(path) as file:
        figure.savefig(file, format=kind, dpi=150)


_KINDS: Final = ("png", "pdf", "svg")
