"""Processes to be ended: children of one that has loaded the library, each a process group of its own."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self, final

ROOT: Final = Path(__file__).parent.parent

_SERVER: Final = """
import importlib, json, os, signal, sys, traceback
module = importlib.import_module(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    name, log, arguments = json.loads(line)
    child = os.fork()
    if not child:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts in the background ignore it
        print(os.getpid(), flush=True)  # by the child, which is a group by now: its parent may be quicker than that
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        status = 1
        try:
            getattr(module, name)(**arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def open_to_all(folder: Path) -> None:
    """Let other users come to a folder for temporary files, as pytest does not."""
    for parent in (folder, *folder.parents):
        if parent == Path(tempfile.gettempdir()):
            break
        parent.chmod(0o755)


@final
class Nursery:
    """Runs functions of a module in processes of their own, one at a time.

    Args:
        module: the module's name.
        folder: for what they print.
        environment: of all of them, beside that of this process.
    """

    def __init__(self, module: str, folder: Path, environment: dict[str, str] | None = None) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **(environment or {})},
        )
        self._log = folder / "printed"
        self._child = 0
        assert self._read() == "ready"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self._child:
            self.send(signal.SIGKILL)
            self.wait()
        self._server.communicate()

    def start(self, function: str, **arguments: object) -> None:
        """Begin a function in a process."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps([function, str(self._log), arguments]) + "\n")
        self._server.stdin.flush()
        self._child = int(self._read())

    def wait(self) -> int:
        """Its exit status once it has ended; that of one that a signal has ended is below 0. Nothing that it began is left."""
        status, child, self._child = int(self._read()), self._child, 0
        until = time.monotonic() + 10
        while members(child) and time.monotonic() < until:
            time.sleep(0.01)
        assert not members(child)
        return status

    def run(self, function: str, **arguments: object) -> int:
        """The exit status of a function in a process."""
        self.start(function, **arguments)
        return self.wait()

    def send(self, number: int) -> None:
        """Send a signal to the process; one that kills is for all that it has begun, too."""
        if number == signal.SIGKILL:
            os.killpg(self._child, number)
        else:
            os.kill(self._child, number)

    def is_over(self, within: float) -> bool:
        """Whether the process ends within some seconds."""
        assert self._server.stdout is not None
        return bool(select.select([self._server.stdout.fileno()], [], [], within)[0])

    def names(self) -> set[str]:
        """What runs in the group of the process."""
        return {name for _, name in members(self._child)}

    @property
    def printed(self) -> str:
        """What the last process has printed."""
        return self._log.read_text()

    def _read(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()


def members(group: int) -> list[tuple[int, str]]:
    """The processes of a group that run: their numbers and names."""
    found: list[tuple[int, str]] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            except OSError:  # it has just ended
                continue
            state, _, its_group = rest.split()[:3]
            if int(its_group) == group and state != "Z":
                found.append((int(folder.name), name))
    return found
