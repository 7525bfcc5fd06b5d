"""The examples, run as a newcomer runs them, and in this process."""

import functools
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import typer
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parent.parent / "examples"


@functools.cache
def app(name: str) -> typer.Typer:
    """An example as an app, in this process."""
    script = typer.Typer()
    script.command()(runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"])
    return script


def words_of(name: str, *options: str) -> tuple[int, list[str]]:
    """The exit code of an example, and the words that it printed, without the frame around them."""
    result = CliRunner().invoke(app(name), options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, re.sub(r"[│╭╮╰╯─]", " ", result.output).split()


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """An example in a process of its own."""
    wide = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=wide)
