"""Saving beside training: a snapshot, and a thread that writes it."""

import atexit
import functools
import os
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, final

from torch import Tensor

from fundl._common.files import require_folder
from fundl._common.listed import Listed
from fundl.saving._choice import Where
from fundl.saving._writing import Content, content_of, write


@final
class Saver(metaclass=Listed):
    """Saves trees while the program goes on: `save` copies the tensors, and a thread writes the copies.

        with Saver() as saver:
            for epoch in range(100):
                state = ...
                saver.save("run.safetensors", state)

    Each file is written as `fundl.save` does it, whole or not at all. One file is written at a time: `save` first waits
    until the one before is done. If that failed, its error is raised by the next `save`, by `wait`, or at the end of the
    ``with``, whichever comes first. A program that ends waits for the last file; if it fails and nobody waits for it,
    its error is printed.

    A snapshot takes as much memory as the tree, until it is written.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> from fundl import Saver, load
    >>> with TemporaryDirectory() as folder, Saver() as saver:
    ...     numbers = torch.ones(3)
    ...     saver.save(f"{folder}/numbers.safetensors", numbers)
    ...     _ = numbers.zero_()
    ...     saver.wait()
    ...     load(f"{folder}/numbers.safetensors", numbers)
    tensor([1., 1., 1.])
    """

    def __init__(self) -> None:
        self._background = Background()

    def save(
        self,
        path: str | os.PathLike[str],
        tree: object,
        *,
        metadata: Mapping[str, str] | None = None,
        where: Where | None = None,
    ) -> None:
        """Write the tensors of a tree, as they are now, to a file; returns once they are copied.

        Args:
            path: as for `fundl.save`, and so are the others.
            tree: what to save.
            metadata: texts to go with it.
            where: what of it to save.

        Raises:
            OSError: the file before could not be written; nothing of this one is, so call it again to try.
            FileNotFoundError: there is no folder to save it in.
            TypeError, ValueError: the tree cannot be saved, as for `fundl.save`.
        """
        require_folder(path)
        self._background.wait()
        content = content_of(tree, metadata or {}, where)
        snapshot = content._replace(tensors=_copies(content.tensors), wholes=_without_numbers(content.wholes))
        del content
        self._background.start(functools.partial(_write, os.path.abspath(path), [snapshot]))

    def wait(self) -> None:
        """Wait until the last file is written; raises the error of one that could not be."""
        self._background.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if error is None:
            self.wait()
        else:
            self._background.wait_beside(error)


class Background:
    """Does one thing at a time beside the program, each in a thread; what fails is told to whoever waits for it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._last: _Work | None = None

    def start(self, what: Callable[[], None]) -> None:
        """Begin with something, once what was begun before is done; raises the error of that."""
        with self._lock:
            self.wait()
            self._last = _Work(what)
            self._last.begin()  # whoever is interrupted here waits for it nevertheless

    def wait(self) -> None:
        """Wait until all is done; raises the error of what failed, once."""
        with self._lock:
            if self._last is None:
                return
            if self._last.thread.ident is not None:  # else its beginning was interrupted
                self._last.thread.join()
            work, self._last = self._last, None
            work.tell()

    def look(self) -> None:
        """Raise the error of what has failed by now."""
        with self._lock:
            if self._last is not None and not self._last.thread.is_alive():
                self.wait()

    def wait_beside(self, error: BaseException) -> None:
        """Wait while an error is on its way; one of what failed is a note on it."""
        try:
            self.wait()
        except Exception as second:
            error.add_note(f"besides, the last file could not be saved: {second}")


class _Work:
    """What a thread does, and what came of it."""

    def __init__(self, what: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._do, args=([what],), name="fundl.Saver")  # a program that ends waits for it

    def begin(self) -> None:
        atexit.register(self.tell)
        self.thread.start()

    def _do(self, work: list[Callable[[], None]]) -> None:
        try:
            work.pop()()  # nothing else holds what it works on
        except BaseException as error:  # it is raised where somebody waits
            self._error = error

    def tell(self) -> None:
        """Raise the error, once."""
        atexit.unregister(self.tell)
        error, self._error = self._error, None
        if error is not None:
            raise error


def _write(path: str, contents: list[Content]) -> None:
    write(path, contents.pop(), None)  # a program that ends starts no more threads: so there is no worker


def _without_numbers(wholes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("meta") for name, tensor in wholes.items()}


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with memory of their own, on the CPU."""
    return {name: _copy(tensor.detach()) for name, tensor in tensors.items()}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.device.type == "cpu" else tensor.cpu()
