"""The examples, run as a newcomer runs them, and in this process."""

import functools
import io
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from shared.options import start

EXAMPLES = Path(__file__).parent.parent / "examples"


@functools.cache
def namespace_of(name: str) -> dict[str, object]:
    """What an example defines."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def words_of(name: str, *options: str) -> tuple[int, list[str]]:
    """The exit status of an example, run in this process, and the words that it printed."""
    main, printed = namespace_of(name)["main"], io.StringIO()
    assert callable(main)
    with redirect_stdout(printed), redirect_stderr(printed):
        status = start(main, options)
    if status == 2:  # what is wrong with a command line is one line
        assert printed.getvalue().count("\n") == 1
    return status, printed.getvalue().split()


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """An example in a process of its own."""
    wide = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=wide)
