"""Options that examples share: what cannot be meant is refused before the work, with a sentence that says why."""

import importlib.util
import math
from pathlib import Path

import torch
from typer import BadParameter


def require_positive(number: float, option: str = "--learning-rate") -> None:
    """Refuse a number that is not above 0: a learning rate that teaches nothing, say."""
    if not 0 < number < math.inf:
        what = option.removeprefix("--").replace("-", " ")
        raise BadParameter(f"a {what} is a number above 0, not {number}", param_hint=option)


def require_device(device: str) -> None:
    """Refuse a device that cannot compute."""
    try:
        torch.ones((), device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadParameter(f"the device {device!r} cannot be used here: {reason}", param_hint="--device") from error


def require_picture(plot: Path | None) -> None:
    """Refuse a file that cannot be drawn, before the work is done rather than after."""
    if plot is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise BadParameter('a plot needs matplotlib: pip install "fundl[plot]"', param_hint="--plot")
    if plot.suffix not in {".png", ".pdf", ".svg"}:
        raise BadParameter(f"a plot is a .png, .pdf or .svg file, not {plot.name!r}", param_hint="--plot")
    if not plot.parent.is_dir():
        raise BadParameter(f"there is no folder {str(plot.parent)!r} to put the plot into", param_hint="--plot")
