"""How examples start, and the options that they share: what cannot be meant is refused before the work, in one line."""

import functools
import importlib.util
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import ParamSpec, Protocol, TypeVar, runtime_checkable

import torch
import typer
from typer import BadParameter

import fundl

Options = ParamSpec("Options")
asked_for: ContextVar[Mapping[str, object]] = ContextVar("asked_for", default=MappingProxyType({}))
"""The options of the command line, by their names."""
P = TypeVar("P", bound=fundl.Model)
S = TypeVar("S")


@runtime_checkable
class Refusal(Protocol):
    """What typer raises about a command line."""

    exit_code: int

    def format_message(self) -> str:
        """What is wrong."""
        ...


def start(main: Callable[Options, None], arguments: Sequence[str] | None = None) -> int:
    """Run a program with what stands on its command line, or with other arguments; what is wrong with them is one line.

    Returns:
        The exit status: 2 for wrong arguments, 1 if a file cannot be read or written, 130 after Ctrl-C or SIGTERM.
    """

    @functools.wraps(main)
    def told(*args: Options.args, **options: Options.kwargs) -> None:
        asked_for.set(options)
        try:
            with terminated_as_by_ctrl_c():
                main(*args, **options)
        except KeyboardInterrupt as stop:
            if os.environ.get("RANK", "0") == "0":  # of many processes one says it, which end together
                say("stopped: the same command goes on" if options.get("checkpoints") else "stopped")
            raise typer.Exit(130) from stop
        except OSError as error:
            say(str(error))
            raise typer.Exit(1) from error

    app = typer.Typer(add_completion=False)
    app.command()(told)
    try:
        status: object = app(None if arguments is None else [*arguments], standalone_mode=False)
    except Exception as error:
        if not isinstance(error, Refusal):
            raise
        say(error.format_message())
        return error.exit_code
    return status if isinstance(status, int) else 0


@contextmanager
def terminated_as_by_ctrl_c() -> Generator[None]:
    """SIGTERM meanwhile is what Ctrl-C is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say(message: str) -> None:
    """Say in one line what went wrong."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(message.split())}", file=sys.stderr)


def checkpoints_in(folder: Path | None) -> fundl.Checkpoints | None:
    """The checkpoints of a run in a folder: the newest, and that with the least test loss."""
    if folder is None:
        return None
    return fundl.Checkpoints(folder, keep=2, best=lambda epoch: epoch.numbers.get("test_loss", math.nan))


ELSEWHERE = {"checkpoints", "log", "plot", "quiet", "no_jit", "device", "runs", "prompt", "count", "temperature"}
"""Options that do not make another run."""


@contextmanager
def of_checkpoints(folder: Path | None, **own: object) -> Generator[None]:
    """What cannot be gone on from is told as what is wrong with an option: which one, as the folder keeps those it began with.

    Args:
        folder: of the checkpoints.
        own: options that are others for this run than on the command line.
    """
    if folder is None:
        yield
        return
    options = {name: str(value) for name, value in {**asked_for.get(), **own}.items() if name not in ELSEWHERE}
    began = options_in(folder, options)
    try:
        yield
    except ValueError as error:
        other = [name for name in options if began.get(name, options[name]) != options[name]]
        if other:
            was, now = (" ".join(f"{flag(name)} {values[name]!r}" for name in other) for values in (began, options))
            message = f"what is there was begun with {was}, not with {now}: give that, or another folder"
        else:
            reason = str(error.__cause__ or error).partition("\n    what they")[0]
            message = f"what is there is no run with these options: give those it began with, or another folder ({reason})"
        raise BadParameter(message, param_hint="--checkpoints") from error


def options_in(folder: Path, options: Mapping[str, str]) -> Mapping[str, str]:
    """The options that the run in a folder began with; where none has begun, these, which are written there."""
    file = folder / "options.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.glob("*.safetensors")):
            file.write_text(json.dumps(options, indent=4), encoding="utf-8")
        return {name: str(value) for name, value in json.loads(file.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except ValueError:  # somebody wrote something else into it
        return {}
    except OSError as error:
        message = f"the folder {str(folder)!r} cannot be made, or not be written to: {error.strerror}"
        raise BadParameter(message, param_hint="--checkpoints") from error


def flag(name: str) -> str:
    """The option of a name."""
    return f"--{name.replace('_', '-')}"


def go_through(
    run: Iterable[fundl.Milestone[P, S]], state: fundl.TrainState[P, S], log: Path | None
) -> tuple[fundl.TrainState[P, S], Sequence[fundl.Epoch]]:
    """The state and the history after the last epoch of a run that begins with a state; each epoch is written to a log."""
    history: Sequence[fundl.Epoch] = ()
    for epoch in run:
        state, history = epoch.state, epoch.history
        if log is not None:
            fundl.write_csv(log, history)
    return state, history


def require_log(log: Path | None) -> None:
    """Refuse a file that cannot be written to, before the work is done rather than after."""
    if log is None:
        return
    if log.is_dir():
        raise BadParameter(f"{str(log)!r} is a folder: give a file in it, such as {str(log / 'run.csv')!r}", param_hint="--log")
    if not log.parent.is_dir():
        raise BadParameter(f"there is no folder {str(log.parent)!r} to put the log into", param_hint="--log")
    if log.is_file() and log.stat().st_size and not log.read_bytes().startswith(b"epoch,step,seconds"):
        raise BadParameter(f"{log} is there, and is no log of a run", param_hint="--log")


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
        names = "it is none; write cpu, cuda or cuda:1"
        reason = names if "Expected one of" in str(error) else str(error).splitlines()[0]
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
