"""What tables of numbers of bytes share: how these are written, and how a table of rich becomes a text."""

import io
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH: Final = 80
_MEASURED: Final = 10_000  # a table is measured where there is room for it
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def unit_of(nbytes: int) -> tuple[int, str]:
    """The bytes of the largest unit of which there is at least one in so many, and its name."""
    power = min(max(nbytes.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return 1024**power, _UNITS[power]


def size_of(nbytes: int) -> str:
    """A number of bytes in that unit."""
    unit, name = unit_of(nbytes)
    return f"{nbytes / unit:,.1f} {name}" if unit > 1 else f"{nbytes} B"


def text_of(table: "Table", *, folds: bool = True) -> str:
    """A table as a text without colours, for a terminal of 80 columns, or of as many as it needs if it folds, or does not."""
    from rich.console import Console  # noqa: PLC0415  # rich takes its time to load, and few runs of a program show a table

    file = io.StringIO()
    console = Console(file=file, width=_MEASURED, color_system=None, force_jupyter=False, legacy_windows=False)
    widths = console.measure(table)
    console.width = max(_WIDTH, widths.minimum if folds else widths.maximum)  # rather too wide than with numbers cut off
    console.print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
