"""Processes that compute together, for tests: they are started once, and run one function after the other."""

import atexit
import functools
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar, TypeVarTuple, cast

import torch

from fundl.distributed import Group, start

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

SECONDS = 300  # that an answer may take, where many compile


def together(
    count: int, function: Callable[[Group, *Ts], R], *args: *Ts, backend: str = "gloo", device: str = "cpu"
) -> list[R]:
    """What a function of a group, defined at the top of a module, gives in each of so many processes, by their ranks.

    An error in one of them is raised here as a RuntimeError with its text; after it, all are started anew.
    """
    return _processes(count, backend, device).run(function, *args)


@functools.cache
def _processes(count: int, backend: str, device: str) -> "_Processes":
    return _Processes(count, backend, device)


class _Processes:
    def __init__(self, count: int, backend: str, device: str) -> None:
        server = multiprocessing.get_context("forkserver")  # which imports fundl once
        server.set_forkserver_preload(["fundl"])
        self._folder = TemporaryDirectory()
        self._connections: list[Connection[bytes, bytes]] = []
        self._processes = []
        store = str(Path(self._folder.name) / "store")
        for rank in range(count):
            here, there = server.Pipe()
            process = server.Process(target=_serve, args=(rank, count, store, there, backend, device), daemon=True)
            process.start()
            there.close()
            self._connections.append(here)
            self._processes.append(process)
        atexit.register(self.stop)

    def run(self, function: Callable[[Group, *Ts], R], *args: *Ts) -> list[R]:
        for connection in self._connections:
            connection.send_bytes(pickle.dumps((function, args)))
        answers: list[R] = []
        errors: list[str] = []
        for rank, connection in enumerate(self._connections):
            try:
                came = connection.poll(1 if errors else SECONDS)
                good, answer = cast("tuple[bool, object]", pickle.loads(connection.recv_bytes())) if came else (False, None)
            except EOFError:
                came, good, answer = True, False, "it died"
            if good:
                answers.append(cast("R", answer))
            else:
                errors.append(f"in process {rank}: {answer}" if came else f"process {rank} gave no answer")
        if errors:
            self.stop()
            _processes.cache_clear()
            raise RuntimeError("\n".join(errors))
        return answers

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()


def _serve(  # noqa: PLR0917  # what a process is started with
    rank: int, count: int, store: str, connection: "Connection[bytes, bytes]", backend: str, device: str
) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group(backend, f"file://{store}", rank=rank, world_size=count)
    group, _ = start(device=device)
    while True:
        try:
            function, args = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer = True, function(group, *args)
        except Exception:
            answer = False, traceback.format_exc()
        connection.send_bytes(pickle.dumps(answer))
