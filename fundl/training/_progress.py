"""The progress of a long computation: a bar on a terminal, lines in other places, or nothing at all.

Nothing runs in the background: what is shown changes when the computation calls.
"""

import time
from typing import TYPE_CHECKING, Final, Self, final

from typing_extensions import override

if TYPE_CHECKING:
    from rich.console import Console

_REFRESH: Final = 0.1  # seconds between two looks of the bar
_LINES: Final = 20  # about so many lines tell of a whole computation
_SILENCE: Final = 30.0  # seconds after which a line is due anyway


class Progress:
    """Shows nothing; its descendants show the progress of a computation of several parts, within ``with``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave on the screen what is there."""

    def move(self, done: float) -> None:
        """Show how many parts are done; called often, it mostly takes less than a microsecond."""

    def say(self, what: str) -> None:
        """Say what is being done, or was done, besides."""

    def finish(self, part: int, summary: str, speed: str) -> None:
        """Say that a part is done, counted from 1, what came out, and how fast."""


def show(progress: "bool | Console", what: str, total: int) -> Progress:
    """What shows the progress of a computation of so many parts, called so: on standard error, or on a console."""
    if progress is False:
        return Progress()
    from rich.console import Console  # noqa: PLC0415  # rich takes its time to load: those who see nothing need not wait

    console = Console(stderr=True) if progress is True else progress
    if not isinstance(console, Console):
        raise TypeError(f"progress is True, False or a Console of rich, not {progress!r}")
    return Bar(console, what, total) if console.is_interactive else Lines(console, what, total)


@final
class Lines(Progress):
    """Prints a line about some of the parts, evenly spread, and about the last."""

    def __init__(self, console: "Console", what: str, total: int) -> None:
        self._console, self._what, self._total = console, what, total
        self._every = max(1, total // _LINES)
        self._printed = time.monotonic()

    @override
    def say(self, what: str) -> None:
        self._console.print(what, markup=False, highlight=False, soft_wrap=True)

    @override
    def finish(self, part: int, summary: str, speed: str) -> None:
        now = time.monotonic()
        if part % self._every == 0 or part == self._total or now - self._printed >= _SILENCE:
            self._printed = now
            self.say(f"{self._what} {part:>{len(str(self._total))}}/{self._total}  {summary}  {speed}")


@final
class Bar(Progress):
    """Draws a bar with the time left, and below it what came out of the last part."""

    def __init__(self, console: "Console", what: str, total: int) -> None:
        # Loaded here for the same reason as above.
        from rich.console import Group  # noqa: PLC0415
        from rich.live import Live  # noqa: PLC0415
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415
        from rich.progress import Progress as RichProgress  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[speed]}", markup=False),
            console=console,
        )
        self._what, self._total = what, total
        self._task = self._bar.add_task(self._description(0), total=total, speed="")
        self._summary = Text(no_wrap=True, overflow="ellipsis")
        self._shown = Group(self._bar, self._summary)
        self._live = Live(console=console, auto_refresh=False)
        self._due = 0.0

    def _description(self, part: int) -> str:
        return f"{self._what} {part:>{len(str(self._total))}}/{self._total}"

    @override
    def __enter__(self) -> Self:
        self._live.start()
        return self

    @override
    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @override
    def move(self, done: float) -> None:
        if (now := time.monotonic()) >= self._due:
            self._due = now + _REFRESH
            self._draw(done)

    @override
    def say(self, what: str) -> None:
        self._summary.plain = what
        self._live.update(self._shown, refresh=True)

    @override
    def finish(self, part: int, summary: str, speed: str) -> None:
        self._bar.update(self._task, description=self._description(part), speed=speed)
        self._summary.plain = summary
        if part == self._total:
            self._draw(part)
        else:
            self.move(part)

    def _draw(self, done: float) -> None:
        self._bar.update(self._task, completed=done)
        self._live.update(self._shown, refresh=True)
