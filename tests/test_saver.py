"""Saving beside training: what is written is the snapshot, errors come up, the last good file stays."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

import pytest
import torch

from fundl import Saver, initialize, key, linear, load, load_metadata, save, tree
from tests.nursery import open_to_all

MODEL: Final = initialize(key(0), linear(2, 3))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "saved.safetensors"


def test_it_writes_what_save_writes(path: Path, tmp_path: Path) -> None:
    with Saver() as saver:
        saver.save(path, MODEL, metadata={"a": "b"}, where=".weight")
    save(tmp_path / "same", MODEL, metadata={"a": "b"}, where=".weight")
    assert path.read_bytes() == (tmp_path / "same").read_bytes()


def test_it_is_the_tree_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written over the tensors before the thread gets there."""
    go, sync = threading.Event(), os.fsync
    monkeypatch.setattr("os.fsync", lambda descriptor: (go.wait(10), sync(descriptor)))
    numbers = [torch.ones(1000), torch.ones(3, 4).t(), torch.ones(1).expand(5)]
    with Saver() as saver:
        saver.save(path, numbers)
        assert not path.exists()  # it is not written yet, and the program goes on
        for tensor in numbers:
            tensor.zero_() if tensor.stride() != (0,) else tensor[:1].zero_()
        go.set()
        saver.wait()
        assert tree.equal(load(path, numbers), [torch.ones(1000), torch.ones(4, 3), torch.ones(5)])


def test_one_file_is_written_at_a_time(tmp_path: Path) -> None:
    with Saver() as saver:
        for number in range(20):
            saver.save(tmp_path / "same", torch.tensor(number))
            assert sum(thread.name == "fundl.Saver" for thread in threading.enumerate()) <= 1
    assert load(tmp_path / "same", torch.tensor(0)).item() == 19
    assert os.listdir(tmp_path) == ["same"]


def fail(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def save_and_fail(path: Path) -> None:
    with Saver() as saver:
        saver.save(path, torch.ones(1))
        raise KeyError("theirs")


def test_an_error_is_raised_by_the_next_call_or_at_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(path, MODEL)
    saver = Saver()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        saver.save(path, torch.ones(1))
        message = r"No space left on device: .*saved.safetensors is not written; what was there before is as it was"
        with pytest.raises(OSError, match=message) as info:
            saver.save(path, torch.ones(1))
        assert info.value.errno == errno.ENOSPC
        saver.wait()  # once is enough
        with pytest.raises(OSError, match="No space left"), Saver() as other:
            other.save(path, torch.ones(1))
        with pytest.raises(KeyError) as both:
            save_and_fail(path)
        assert "besides, the last file could not be saved: [Errno 28] No space left" in both.value.__notes__[0]
    assert tree.equal(load(path, MODEL), MODEL)
    assert os.listdir(path.parent) == [path.name]
    saver.save(path, torch.ones(1))  # it goes on
    saver.wait()
    assert load(path, torch.zeros(1)).item() == 1


def test_what_cannot_be_saved_is_told_at_once(path: Path) -> None:
    with Saver() as saver:
        with pytest.raises(ValueError, match="without values"):
            saver.save(path, linear(2, 3))
        with pytest.raises(TypeError, match="metadata are texts"):
            saver.save(path, MODEL, metadata={"a": wrong()})
    assert not path.exists()


def wrong() -> str:
    value: str = eval("3")  # what a program without types could give
    return value


def run(program: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


ENDS: Final = """
import sys, time, torch
from fundl import Saver
import fundl.saving._writing as writing
write = writing.write_numbers
writing.write_numbers = lambda *them: (time.sleep(0.5), write(*them))[1]
Saver().save(sys.argv[1], [torch.ones(100_000)])
"""


def test_a_program_that_ends_waits_for_the_file(path: Path) -> None:
    result = run(ENDS, path)
    assert (result.returncode, result.stderr) == (0, "")
    assert tree.equal(load(path, [torch.zeros(100_000)]), [torch.ones(100_000)])


def test_a_program_that_ends_tells_of_the_error(tmp_path: Path) -> None:
    result = run("import os; os.fsync = lambda _: open('')" + ENDS, tmp_path / "x")
    assert "FileNotFoundError: [Errno 2] No such file or directory: " in result.stderr
    assert f"{tmp_path / 'x'} is not written; what was there before is as it was" in result.stderr


def folder(path: Path) -> Path:
    path.mkdir()
    return path


# --- Disks that are full, or may not be written to --------------------------------------------------------------------

FULL: Final = """
import resource, sys, torch
from fundl import Saver, save
save(sys.argv[1], [torch.ones(1000)])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
state = [torch.zeros(100_000)]
for write in (save, Saver().save):
    try:
        write(sys.argv[1], state)
        write.__self__.wait()
    except OSError as error:
        print(error)
assert not state[0].any()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits")
def test_a_full_disk(path: Path) -> None:
    result = run(FULL, path)
    told = f"[Errno 27] File too large: {path} is not written; what was there before is as it was"
    assert result.stdout.splitlines() == [told, told], result.stderr
    assert os.listdir(path.parent) == [path.name]
    assert tree.equal(load(path, [torch.zeros(1000)]), [torch.ones(1000)])


READ_ONLY: Final = """
import os, sys, torch
from fundl import Saver, save
save(sys.argv[1], [torch.ones(1000)])
os.chmod(os.path.dirname(sys.argv[1]), 0o555)
if os.geteuid() == 0:
    os.seteuid(65534)
for write in (save, Saver().save):
    try:
        write(sys.argv[1], [torch.zeros(1000)])
        write.__self__.wait()
    except PermissionError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="modes")
def test_a_folder_that_is_read_only(path: Path) -> None:
    open_to_all(path.parent)
    result = run(READ_ONLY, path)
    told = f"[Errno 13] Permission denied: {path} is not written; what was there before is as it was"
    assert result.stdout.splitlines() == [told, told], result.stderr
    path.parent.chmod(0o755)
    assert tree.equal(load(path, [torch.zeros(1000)]), [torch.ones(1000)])


def test_a_folder_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    path = folder(tmp_path / "runs") / "x"
    told = rf"there is no folder {path.parent} to save x in: make it first"
    with Saver() as saver:
        saver.save(path, MODEL)
        saver.wait()
        path.unlink()
        path.parent.rmdir()
        with pytest.raises(FileNotFoundError, match=told):
            saver.save(path, MODEL)
        path.parent.mkdir()
        saver.save(path, MODEL)
    assert load_metadata(path) == {}


def test_a_folder_that_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "runs") / "x"
    with Saver() as saver, monkeypatch.context() as patch:
        patch.setattr("fundl.saving._background.require_folder", lambda path: path.parent.rmdir())
        saver.save(path, MODEL)
        with pytest.raises(FileNotFoundError, match=rf"there is no folder {path.parent} to save x in: make it first"):
            saver.wait()
