"""A bar on a terminal, some lines elsewhere, nothing where nothing is asked for."""

import io
import time

import pytest
from rich.console import Console

from fundl.training._progress import Bar, Lines, Progress, show


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def console(*, terminal: bool, width: int = 80) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, force_interactive=terminal, width=width, color_system=None), file


def test_where_it_is_shown_decides_how() -> None:
    assert type(show(False, "epoch", 3)) is Progress
    assert isinstance(show(console(terminal=True)[0], "epoch", 3), Bar)
    assert isinstance(show(console(terminal=False)[0], "epoch", 3), Lines)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(("total", "lines"), [(1, 1), (3, 3), (20, 20), (200, 20), (210, 21)])
def test_lines_are_few_and_the_last_is_among_them(total: int, lines: int) -> None:
    target, file = console(terminal=False)
    with show(target, "epoch", total) as shown:
        for part in range(1, total + 1):
            shown.move(part - 0.5)
            shown.finish(part, "loss 0.5", "9 examples/s")
    printed = file.getvalue().splitlines()
    assert len(printed) == lines
    assert printed[-1] == f"epoch {total}/{total}  loss 0.5  9 examples/s"


def test_a_line_is_due_after_a_long_silence(clock: Clock) -> None:
    target, file = console(terminal=False)
    with show(target, "epoch", 1000) as shown:
        shown.finish(1, "one", "")
        assert file.getvalue() == ""
        clock.now += 31
        shown.finish(2, "two", "")
        shown.finish(3, "three", "")
    assert file.getvalue().split() == ["epoch", "2/1000", "two"]


def test_a_line_is_never_broken_nor_marked_up() -> None:
    target, file = console(terminal=False, width=20)
    with show(target, "epoch", 1) as shown:
        shown.finish(1, "[red] " + 30 * "x", "speed")
    assert file.getvalue() == f"epoch 1/1  [red] {30 * 'x'}  speed\n"


def test_a_bar_is_drawn_now_and_then_and_at_the_end(clock: Clock) -> None:
    target, file = console(terminal=True)
    with show(target, "epoch", 4) as shown:
        shown.move(0.1)
        first = file.getvalue()
        assert "epoch 0/4 " in first
        for _ in range(100):
            shown.move(0.2)  # too soon for another look
        assert file.getvalue() == first
        clock.now += 1
        shown.finish(1, "loss 0.5", "9 examples/s")
        assert "epoch 1/4 " in file.getvalue()
        assert "loss 0.5" in file.getvalue()
        shown.finish(4, "loss 0.1", "8 examples/s")
        assert "epoch 4/4 ━━━━━" in file.getvalue()
        assert "loss 0.1" in file.getvalue()


@pytest.mark.usefixtures("clock")
def test_a_bar_fits_a_narrow_terminal() -> None:
    target, file = console(terminal=True, width=40)
    with show(target, "epoch", 1) as shown:
        shown.finish(1, "loss 0.1234  accuracy 0.9876  test loss 0.2345", "9,999 examples/s")
    assert all(len(line) <= 40 + len("\x1b[1A\x1b[2K") * 2 for line in file.getvalue().splitlines())
    assert "loss 0.1234  accuracy 0.9876" in file.getvalue()
    assert "…" in file.getvalue()


def test_a_bar_lets_go_of_the_terminal_when_an_error_passes() -> None:
    target, file = console(terminal=True)

    def run() -> None:
        with show(target, "epoch", 2) as shown:
            shown.finish(1, "loss 0.5", "")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert file.getvalue().endswith("\x1b[?25h")  # the cursor is back
