"""The cache of compiled code: nobody else's code is run, what is broken is made anew, and nothing that is wrong with it stops.

What is compiled here is a text: the compiler itself is not the point.
"""

import multiprocessing
import os
import re
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import torch
from typing_extensions import override

from fundl import jit
from fundl._common import folder, store
from fundl._compiling import cache, inductor

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="owners, modes and links")

METADATA: Final = '{"device": "cpu"}'
KEY: Final = "0" * 64
only_root: Final = pytest.mark.skipif(sys.platform != "win32" and os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the cache, which is not there yet."""
    monkeypatch.setenv("FUNDL_CACHE_DIR", str(tmp_path / "cache"))
    folder._told.clear()
    yield tmp_path / "cache"
    folder._told.clear()


class Compiler:
    """Makes a library of a text, and counts how often it was asked to."""

    def __init__(self, content: str = "right") -> None:
        self.content, self.count = content, 0

    def make(self, made: Path) -> None:
        self.count += 1
        (made / "a.so").write_text(self.content)
        (made / "a.json").write_text(METADATA)
        (made / "a.cpp").write_text("the program")

    def load(self, library: Path) -> str:
        return (library / "a.so").read_text()

    def run(self, key: str = KEY) -> tuple[str, bool]:
        text, library, found = cache._loaded(key, self.make, self.load)
        assert (library / "a.json").read_text() == METADATA
        return text, found


def library(place: Path) -> Path:
    (found,) = (place / "libraries").iterdir()
    return found


def entries(place: Path) -> list[Path]:
    return [place, *place.rglob("*")]


# --- What is kept -----------------------------------------------------------------------------------------------------


def test_what_is_compiled_is_kept_for_the_user_alone(place: Path) -> None:
    before = os.umask(0)
    try:
        assert Compiler().run() == ("right", False)
    finally:
        os.umask(before)
    assert Compiler("another").run() == ("right", True)
    assert {path.name for path in library(place).iterdir()} == {"a.so", "a.json"}
    for path in entries(place):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    sums = subprocess.run("sha256sum * | sha256sum", shell=True, cwd=library(place), capture_output=True, check=True, text=True)
    assert sums.stdout.split()[0] == library(place).name


def test_bytes_are_on_the_disk_before_what_refers_to_them(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    Compiler().run()
    names = [Path(path).relative_to(place).parts[0] for path in synced]
    assert names == ["libraries"] * 4 + ["graphs"] * 2


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:3])


def flip(file: Path) -> None:
    file.write_bytes(b"wrong")


def link(file: Path) -> None:
    (file.parent.parent.parent / "elsewhere").write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(file.parent.parent.parent / "elsewhere")


def in_the_way(file: Path) -> None:
    file.unlink()
    (file / "a").mkdir(parents=True)


def more(file: Path) -> None:
    (file.parent / "b.so").write_bytes(b"wrong")
    (file.parent / "b").mkdir()


def let_others_write(file: Path) -> None:
    file.chmod(0o666)


def give_away(file: Path) -> None:
    os.chown(file, 1234, 1234)


DAMAGE: Final = [
    empty,
    cut,
    flip,
    Path.unlink,
    link,
    in_the_way,
    more,
    let_others_write,
    pytest.param(give_away, marks=only_root),
]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["a.so", "a.json"])
def test_what_is_broken_is_compiled_anew(place: Path, damage: Callable[[Path], None], name: str) -> None:
    Compiler().run()
    damage(library(place) / name)
    assert Compiler().run() == ("right", False)
    assert Compiler().run() == ("right", True)
    assert all(path.is_file() and folder.is_private(path) for path in library(place).iterdir())
    assert len([*library(place).iterdir()]) == 2


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"../../evil", b"/evil", b"1" * 64, b"a" * 63, b"x" * 10**6])
def test_what_refers_to_nothing_is_written_anew(place: Path, content: bytes) -> None:
    Compiler().run()
    (place / "graphs" / KEY).write_bytes(content)
    (place / "evil").mkdir()
    (place / "evil" / "a.so").write_text("evil")
    assert Compiler().run() == ("right", False)
    assert Compiler().run() == ("right", True)


def test_what_was_left_by_a_dead_process_does_not_disturb(place: Path) -> None:
    Compiler().run()
    (library(place) / f".a.so.{'0' * 16}.fundl.tmp").write_text("left")
    assert Compiler().run() == ("right", True)


def test_what_is_whole_but_cannot_be_loaded_is_compiled_anew(place: Path) -> None:
    """By another system, say; or, where programs may not be run from the user's folder, it is loaded from elsewhere."""
    Compiler().run()

    class Fails(Compiler):
        @override
        def load(self, library: Path) -> str:
            if place in library.parents:
                raise OSError("failed to map segment from shared object\nand more")
            return super().load(library)

    with pytest.warns(RuntimeWarning, match=r"cannot be loaded \(failed to map segment from shared object\)\. Name a folder"):
        assert Fails().run() == ("right", False)


def test_what_can_never_be_loaded_is_told(place: Path) -> None:
    class Fails(Compiler):
        @override
        def load(self, library: Path) -> str:
            raise RuntimeError(f"no such symbol in {library.name}")

    with pytest.raises(inductor.CompilerError, match=r"what was compiled cannot be loaded \(no such symbol"):
        Fails().run()
    assert place.exists()


# --- Not more than so much --------------------------------------------------------------------------------------------


def test_what_was_not_used_for_the_longest_time_goes_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOST_BYTES", 3 * (1000 + len(METADATA)))
    for number in range(3):
        Compiler(str(number) * 1000).run(str(number) * 64)
    assert Compiler("0" * 1000).run("0" * 64)[1]  # so that 1 is the oldest
    Compiler("3" * 1000).run("3" * 64)
    assert [Compiler(str(n) * 1000).run(str(n) * 64)[1] for n in (0, 2, 3)] == [True] * 3
    assert {path.name for path in (place / "graphs").iterdir()} == {name * 64 for name in "023"}
    assert not Compiler("4" * 10_000).run("4" * 64)[1]  # more than there may be, and yet kept
    assert {path.name for path in (place / "graphs").iterdir()} == {"4" * 64}
    assert len([*(place / "libraries").iterdir()]) == 1


# --- Folders that are not used ----------------------------------------------------------------------------------------

TEMPORARY: Final = (
    r"^compiled code is kept only until this process ends: .*{}.*\. Name a folder of your own, .* FUNDL_CACHE_DIR$"
)


def assert_not_used(reason: str) -> None:
    """What is compiled is compiled for this process alone, which is told once."""
    folder._told.clear()
    with pytest.warns(RuntimeWarning, match=TEMPORARY.format(reason)):
        assert Compiler().run() == ("right", False)
    assert Compiler().run() == ("right", False)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720, 0o702, 0o1777])
def test_a_folder_that_others_can_write_to_is_not_used(place: Path, mode: int) -> None:
    Compiler("evil").run()
    place.chmod(mode)
    assert_not_used(f"others can write to it .*mode {mode:o}.*, and what is in it is run")
    place.chmod(0o755)
    assert Compiler().run() == ("evil", True)


@pytest.mark.parametrize("part", ["graphs", "libraries"])
def test_nor_one_in_which_they_can_write_to_a_part(place: Path, part: str) -> None:
    Compiler("evil").run()
    (place / part).chmod(0o777)
    assert_not_used("is another user's, or others can write to it")


@only_root
def test_a_folder_of_another_user_is_not_used(place: Path) -> None:
    Compiler("evil").run()
    os.chown(place, 1234, 1234)
    assert_not_used("another user's, .*user 1234, mode 700")


@pytest.mark.usefixtures("place")
@only_root
def test_nor_is_one_that_another_user_can_replace(tmp_path: Path) -> None:
    Compiler("evil").run()
    os.chown(tmp_path, 1234, 1234)
    assert_not_used(f"can be replaced by others: they can write to {re.escape(str(tmp_path))} ")
    os.chown(tmp_path, 0, 1234)
    for mode, used in ((0o755, True), (0o1777, True), (0o777, False), (0o775, False)):
        tmp_path.chmod(mode)
        if used:
            assert Compiler().run() == ("evil", True)
        else:
            assert_not_used("can be replaced by others")
    os.chown(tmp_path, 0, 0)  # a group of the user alone
    assert Compiler().run() == ("evil", True)


def test_links_are_followed_to_a_folder_of_ones_own_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode, used in ((0o700, True), (0o777, False)):
        target, link = tmp_path / f"target{mode}", tmp_path / f"link{mode}"
        target.mkdir()
        target.chmod(mode)
        link.symlink_to(target)
        monkeypatch.setenv("FUNDL_CACHE_DIR", str(link))
        if used:
            assert Compiler().run() == ("right", False)
            assert (target / "libraries").is_dir()
        else:
            assert_not_used("others can write")


def test_a_file_in_the_way_and_a_name_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for name, reason in ((tmp_path / "file", "is not a folder"), (tmp_path / "file" / "a" / "b", "is not a folder"),
                         (tmp_path / ("x" * 300), "File name too long"), ("/proc/nothing/fundl", "No such file")):  # fmt: skip
        monkeypatch.setenv("FUNDL_CACHE_DIR", str(name))
        assert_not_used(reason)


@pytest.mark.parametrize("broken", ["os.fsync", "os.replace", "os.mkdir"])
def test_a_disk_that_is_full_or_cannot_be_written(place: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    place.mkdir(mode=0o700)
    whole = getattr(os, broken.removeprefix("os."))

    def fail(*arguments: object, **options: object) -> object:
        if broken == "os.mkdir" and "cache" not in str(arguments[0]):
            return whole(*arguments, **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(broken, fail)
    assert_not_used("No space left on device")
    monkeypatch.undo()
    assert not [path for path in entries(place) if path.name == "a.so" and path.read_text() != "right"]


@only_root
def test_a_small_disk(place: Path) -> None:
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", place], check=False).returncode:
        pytest.skip("no file systems can be mounted here")
    try:
        assert Compiler().run() == ("right", False)
        with pytest.warns(RuntimeWarning, match=TEMPORARY.format("No space left on device")):
            assert Compiler("x" * 100_000).run("1" * 64) == ("x" * 100_000, False)
        assert Compiler().run() == ("right", True)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        assert Compiler().run() == ("right", True)  # to read is enough
        assert_not_used_for("2" * 64, "Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        (place / "graphs" / KEY).unlink()
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        assert_not_used("Read-only file system")
    finally:
        subprocess.run(["umount", place], check=True)


def assert_not_used_for(key: str, reason: str) -> None:
    folder._told.clear()
    with pytest.warns(RuntimeWarning, match=TEMPORARY.format(reason)):
        assert Compiler("another").run(key) == ("another", False)


@pytest.mark.parametrize("home", [None, "/proc/nothing", ""])
def test_a_user_without_a_home(home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor an entry in the list of users, as in many containers."""
    monkeypatch.delenv("FUNDL_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which is to be ignored
    if home is None:
        monkeypatch.delenv("HOME")

        def unknown(_user: int) -> None:
            raise KeyError("getpwuid(): uid not found")

        monkeypatch.setattr("pwd.getpwuid", unknown)
    else:
        monkeypatch.setenv("HOME", home)
    if home != "":
        assert_not_used("has no home folder" if home is None else "No such file")
    assert not Path("relative").exists()


def test_the_folder_is_the_users_own_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUNDL_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder.kept() == tmp_path / ".cache" / "fundl"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert folder.kept() == tmp_path / "other" / "fundl"


def test_temporary_folders_go_with_their_process_and_not_with_a_child() -> None:
    program = """
import os
from fundl._common import folder
print(folder.temporary(), flush=True)
if not os.fork():
    print(folder.temporary(), flush=True)
    raise SystemExit
os.wait()
assert folder.base().exists()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, second = map(Path, done.stdout.split())
    assert first.parent != second.parent
    assert not first.parent.exists()
    assert not second.parent.exists()


def test_without_a_temporary_folder_functions_run_as_they_are(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.mkdtemp", fail)
    monkeypatch.setattr(folder, "_bases", {})
    with pytest.warns(
        RuntimeWarning, match=r"neg is not compiled, and runs as it is: .* \(No usable temporary directory found\)"
    ):
        assert torch.equal(jit(torch.neg)(torch.ones(2)), -torch.ones(2))
    assert not place.exists() or not [*place.iterdir()]


# --- What torch keeps -------------------------------------------------------------------------------------------------


def test_torch_keeps_nothing_where_others_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder has a name that everybody knows, in a folder that everybody can write to."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    theirs, own = tmp_path / "torch", tmp_path / "own"
    theirs.mkdir()
    for mode, used in ((0o700, theirs), (0o777, own)):
        theirs.chmod(mode)
        monkeypatch.setenv(name, str(theirs))
        with folder.for_torch(own):
            assert os.environ[name] == str(used)
        assert os.environ[name] == str(theirs)
    monkeypatch.delenv(name)

    def no_name() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("torch._inductor.runtime.cache_dir_utils.default_cache_dir", no_name)
    with folder.for_torch(own):
        assert os.environ[name] == str(own)
    assert name not in os.environ
    monkeypatch.setattr("torch._inductor.runtime.cache_dir_utils.default_cache_dir", lambda: str(theirs))
    with folder.for_torch(own):
        assert os.environ[name] == str(own)
    theirs.chmod(0o755)
    with folder.for_torch(own):
        assert name not in os.environ


# --- Several processes ------------------------------------------------------------------------------------------------


def _compile(number: int) -> None:
    warnings.simplefilter("error")
    for round_ in range(10):
        compiler = Compiler(str(number % 2) * 20_000)
        text, _ = compiler.run(f"{round_:064}")
        assert text in {"0" * 20_000, "1" * 20_000}


def test_processes_that_compile_the_same_at_once(place: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_compile, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert all(found for _, found in (Compiler("2").run(f"{round_:064}") for round_ in range(10)))
    assert not [path for path in entries(place) if path.name.endswith(".tmp")]


@pytest.mark.parametrize("static", [False, True])
def test_a_library_with_a_standard_library_of_its_own_is_refused(tmp_path: Path, static: bool) -> None:
    source, built = tmp_path / "a.cpp", tmp_path / "a.wrapper.so"
    source.write_text("#include <regex>\nbool matches(const char* text) { return std::regex_match(text, std::regex{text}); }\n")
    flags = ["-static-libstdc++"] if static else []
    subprocess.run([inductor.cpp_compiler(), "-shared", "-fPIC", str(source), *flags, "-o", str(built)], check=True)
    if not static:
        inductor._require_one_library(built)
        return
    with pytest.raises(inductor.CompilerError, match=r"two of them the process would crash: let the environment variable CXX"):
        inductor._require_one_library(built)
