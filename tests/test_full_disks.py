"""Checkpoints on a disk that is full, may not be written to, or is gone: an error that says so, and nothing is lost."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from fundl import Checkpoints, epochs, fit, key, last_good, load, save, train_state, tree
from tests.nursery import Nursery, open_to_all
from tests.test_checkpoints import OPTIMIZER, STEP, batches, model, names

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits, modes, and what is in /proc")


def limit(_folder: Path) -> None:
    """Let no file be larger than 3,000 bytes."""
    import resource  # which Windows has not

    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def close(folder: Path) -> None:
    """Let no file be made in a folder: root may do so anywhere, and so becomes nobody."""
    folder.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)


def vanish(folder: Path) -> None:
    shutil.rmtree(folder)


HAPPENS: Final[dict[str, Callable[[Path], None]]] = {"full": limit, "closed": close, "vanished": vanish}


def train(folder: str, left: str, happens: str, after: int, seconds: float | None) -> None:
    """A run whose disk is spoiled after an epoch; it prints the error, and saves what is left in memory elsewhere."""
    first, uid = train_state(key(2), model(), OPTIMIZER), os.geteuid()
    spoil = HAPPENS[happens]
    if not after:
        spoil(Path(folder))
    try:
        for epoch in epochs(STEP, first, batches, count=9, checkpoints=Checkpoints(folder, seconds=seconds), progress=False):
            if epoch.epoch == after:
                for thread in threading.enumerate():
                    if thread.name == "fundl.Saver":
                        thread.join()
                spoil(Path(folder))
    except OSError as error:
        state, history = last_good(error, first)
        print(type(error).__name__, int(state.step), len(history))
        print(error, *getattr(error, "__notes__", ()))
        os.seteuid(uid)
        if happens != "full":
            save(left, state)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery("tests.test_full_disks", tmp_path_factory.mktemp("nursery")) as one:
        yield one


TOLD: Final = {
    "full": "[Errno 27] File too large: {folder}/{name}.safetensors is not written; what was there before is as it was",
    "closed": "[Errno 13] Permission denied: {folder}/{name}.safetensors is not written; what was there before is as it was",
    "vanished": "the folder {folder} of the checkpoints is gone, and nothing can be written there: give",
}


@pytest.mark.parametrize("happens", HAPPENS)
@pytest.mark.parametrize("seconds", [None, 1e-9])
def test_a_disk_that_is_spoiled_while_a_run_goes_on(
    nursery: Nursery, happens: str, seconds: float | None, tmp_path: Path
) -> None:
    """In the middle of an epoch, or at its end."""
    open_to_all(tmp_path)
    folder, left, first = tmp_path / "run", tmp_path / "left", train_state(key(2), model(), OPTIMIZER)
    arguments = {"folder": str(folder), "left": str(left), "happens": happens, "after": 2, "seconds": seconds}
    assert nursery.run("train", **arguments) == 0, nursery.printed
    told, _, message = nursery.printed.partition("\n")
    kind, step, finished = told.split()
    assert kind == {"full": "OSError", "closed": "PermissionError", "vanished": "FileNotFoundError"}[happens]
    assert int(step) > 10
    assert int(finished) == int(step) // 5
    name = "epoch-000003" + ("-step-000011" if seconds else "")
    assert message.startswith(TOLD[happens].format(folder=folder, name=name))
    assert "Nothing is lost" in message
    whole = [one.state for one in epochs(STEP, first, batches, count=45, every=1, progress=False)]
    if happens != "full":
        assert tree.equal(load(left, first), whole[int(step) - 1])
    if happens == "vanished":
        assert not folder.exists()
        return
    folder.chmod(0o755)
    assert max(names(folder)) == "epoch-000002.safetensors"
    assert tree.equal(load(folder / "epoch-000002.safetensors", first), whole[9])
    assert f"The same call goes on from {folder}/epoch-000002.safetensors." in message
    again, _ = fit(STEP, first, batches, epochs=3, checkpoints=Checkpoints(folder), progress=False)
    assert tree.equal(again, fit(STEP, first, batches, epochs=3, progress=False)[0])


def test_a_folder_that_may_not_be_written_to_is_told_before_any_work_is_done(nursery: Nursery, tmp_path: Path) -> None:
    open_to_all(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    arguments = {"folder": str(folder), "left": str(tmp_path / "left"), "happens": "closed", "after": 0, "seconds": None}
    assert nursery.run("train", **arguments) == 0, nursery.printed
    told, _, message = nursery.printed.partition("\n")
    assert told == "PermissionError 0 0"
    assert message.startswith(f"no file may be written into the folder {folder}: give Checkpoints another one, or the right")


def test_a_file_in_place_of_the_folder_is_told_before_any_work_is_done(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(NotADirectoryError, match=r"a is a file: give Checkpoints the path of a folder, which is made"):
        epochs(STEP, train_state(key(2), model(), OPTIMIZER), batches, count=3, checkpoints=Checkpoints(tmp_path / "a"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_small_disk_that_is_full(small_disk: Path) -> None:
    first, where = (
        train_state(key(2), model(), OPTIMIZER),
        Checkpoints(small_disk, keep=99, best=lambda epoch: epoch.train.loss),
    )
    with pytest.raises(
        OSError, match=r"No space left on device: .* is not written; what was there before is as it was"
    ) as caught:
        fit(STEP, first, batches, epochs=99, checkpoints=where, progress=False)
    state, history = last_good(caught.value, first)
    assert tree.equal(state, fit(STEP, first, batches, epochs=len(history), progress=False)[0])
    there = names(small_disk)
    assert all(name.endswith(".safetensors") and not name.startswith(".") for name in there)
    for name in there:
        load(small_disk / name, first)
    newest = max(there)
    assert any(f"The same call goes on from {small_disk / newest}." in note for note in caught.value.__notes__)
    for name in there:
        if name != newest:
            (small_disk / name).unlink()
    count = int(newest.removeprefix("epoch-").removesuffix(".safetensors")) + 2
    again, _ = fit(STEP, first, batches, epochs=count, checkpoints=where, progress=False)
    assert tree.equal(again, fit(STEP, first, batches, epochs=count, progress=False)[0])
