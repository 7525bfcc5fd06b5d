"""Compiled functions in files: another process runs them at once, and what does not fit is told.

All is compiled once, in the fixture `saved`.
"""

import json
import os
import pickle
import re
import subprocess
import sys
import threading
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import attrs
import pytest
import torch
from torch import Tensor

import fundl
from fundl import Compiled, RetraceError, jit, tree
from fundl._common import store
from fundl._compiling import cache, identity
from fundl._compiling.trees import flatten
from fundl.tree import Record
from tests import compiled_samples as samples
from tests.samples import SAMPLES

Functions = tuple[samples.Powers | samples.Epoch, ...]
Libraries = dict[str, dict[str, bytes]]


def new() -> Functions:
    return samples.new()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files 0.compiled, ..., and what the functions returned that they are of."""
    folder = tmp_path_factory.mktemp("saved")
    compiled, epoch = samples.new()
    fundl.save(folder / "expected.safetensors", samples.results(compiled, epoch))
    functions: Functions = (compiled, epoch)
    for number, function in enumerate(functions):
        function.save(folder / f"{number}.compiled")
    return folder


def altered(saved: Path, folder: Path, *, libraries: Libraries | None = None, **changes: object) -> Path:
    """The first file, with another manifest, and other libraries."""
    with zipfile.ZipFile(saved / "0.compiled") as old:
        text = json.dumps(json.loads(old.read("fundl.json")) | changes)
    path = written(saved, folder, text, libraries)
    if isinstance(forms := changes.get("forms"), list):  # the parts of others are not to be there
        with zipfile.ZipFile(path) as file:
            parts = {name: file.read(name) for name in file.namelist()}
        with zipfile.ZipFile(path, "w") as file:
            for name, content in parts.items():
                number, library = name.partition(".")[0], name.partition("/")[0]
                is_needed = "/" not in name or libraries is not None or library in {form.get("library") for form in forms}
                if is_needed and (not number.isdigit() or int(number) < len(forms)):
                    file.writestr(name, content)
    return path


def written(saved: Path, folder: Path, text: str, libraries: Libraries | None = None) -> Path:
    path = folder / "altered.compiled"
    with zipfile.ZipFile(saved / "0.compiled") as old, zipfile.ZipFile(path, "w") as file:
        for name in old.namelist():
            if libraries is None or "/" not in name:
                file.writestr(name, text if name == "fundl.json" else old.read(name))
        for library, files in (libraries or {}).items():
            for name, content in files.items():
                file.writestr(f"{library}/{name}", content)
    return path


@attrs.frozen
class Manifest:
    needs: dict[str, str]
    forms: list[dict[str, object]]


def manifest(saved: Path) -> Manifest:
    with zipfile.ZipFile(saved / "0.compiled") as file:
        text = json.loads(file.read("fundl.json"))
    return Manifest(text["needs"], text["forms"])


# --- What comes back ----------------------------------------------------------------------------------------------------


def test_another_process_runs_what_it_loads_without_a_compiler(saved: Path, tmp_path: Path) -> None:
    settings = {"CXX": "/no/such/compiler", "FUNDL_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment = os.environ | settings | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    program = f"from tests import compiled_samples; compiled_samples.run_what_was_saved({str(saved)!r})"
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    with zipfile.ZipFile(saved / "0.compiled") as file:
        assert any(name.endswith("wrapper.json") for name in file.namelist())  # which names the LSTM's kernel
    assert (saved / "results.safetensors").read_bytes() == (saved / "expected.safetensors").read_bytes()


def test_loaded_forms_are_told_and_are_no_traces(saved: Path) -> None:
    compiled, epoch = samples.new(max_traces=0)
    compiled.load(saved / "0.compiled")
    compiled.load(saved / "0.compiled")  # has nothing new
    assert [trace.loaded for trace in compiled.traces] == [True, True]
    assert all(trace.cached and trace.compiled for trace in compiled.traces)
    assert compiled.traces[0].reason == f"it was loaded from {saved / '0.compiled'}"
    assert repr(compiled) == "<compiled powers, traced 0 times, loaded 2>"
    epoch.load(saved / "1.compiled")
    with pytest.raises(RetraceError, match=r"was traced 0 times, .* a batch of batches\[0\] was float32\[4, 2\], and is"):
        epoch(samples.state(), samples.batches(5, 3))


def test_what_is_loaded_can_be_saved_again(saved: Path, tmp_path: Path) -> None:
    for number, function in enumerate(new()):
        function.load(saved / f"{number}.compiled")
        function.save(tmp_path / "again.compiled")
        again = new()[number]
        again.load(tmp_path / "again.compiled")
        assert len(again.traces) == len(function.traces)
        with zipfile.ZipFile(tmp_path / "again.compiled") as file, zipfile.ZipFile(saved / f"{number}.compiled") as old:
            assert file.namelist() == old.namelist()


def test_static_values_of_results_are_those_of_the_arguments(saved: Path) -> None:
    """By identity, which is quickly recognised."""
    compiled, _ = samples.new(max_traces=0)
    compiled.load(saved / "0.compiled")
    pair = samples.pair(torch.arange(5.0))
    assert compiled(pair, torch.neg, 2)[0].kept is pair.kept


def test_the_kind_of_any_layer_comes_back() -> None:
    for sample in SAMPLES:
        signature = flatten(sample.model, "model").signature
        again = pickle.loads(pickle.dumps(signature))
        assert again == signature, sample
        assert identity.digest(again) == identity.digest(signature), sample


@pytest.mark.usefixtures("interpreted")
def test_tensors_from_outside_come_back_with_their_strides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    outside = (base, base.t(), base[1:, ::2], base[0].expand(2, 4), base[:0], torch.tensor(2j), base.bfloat16()[1], base)
    monkeypatch.setattr(cache, "load", lambda _library, _devices: lambda _inputs: [])
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere" / "library").write_bytes(b"")
    monkeypatch.setenv("FUNDL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for max_traces in (1, 0):
        compiled = jit(lambda x: (x, outside), max_traces=max_traces)
        if not max_traces:
            compiled.load(tmp_path / "file")
        _, found = compiled(torch.ones(1))
        compiled.save(tmp_path / "file")
        assert tree.equal(found, outside)
        assert [leaf.stride() for leaf in found] == [leaf.stride() for leaf in outside]
        assert found[0] is found[-1]


# --- What cannot be saved -----------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Holds(Record):
    value: Tensor
    what: object


class Equal:
    """Equal to nothing but itself."""


def wrap(holds: Holds) -> object:
    return (attrs.evolve(holds, what=lambda: None), 1) if holds.what == "a lambda" else holds.value


@pytest.mark.usefixtures("interpreted")
def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    def first(what: object) -> Compiled[[Holds], object]:
        compiled = jit(wrap)
        compiled(Holds(torch.ones(1), what))
        return compiled

    for what, message in (
        (lambda: None, r"holds\.what is <function .*<lambda> at .*>, which cannot be pickled .*: give it a name at the top of"),
        (Equal(), r"holds\.what was <.*Equal object .*, which is equal to no other object, .*: give its class an __eq__"),
        ("a lambda", r"the result\[0\]\.what is <function .*, which cannot be pickled"),
    ):
        with pytest.raises(TypeError, match=f"^wrap cannot be saved.*: {message}"):
            first(what).save(tmp_path / "file")
    with pytest.raises(ValueError, match=r"^wrap is not compiled yet, so there is nothing to save: call it first"):
        jit(wrap).save(tmp_path / "file")
    with pytest.raises(ValueError, match=r"^the compiled code is no longer in nowhere: "):
        first("nothing").save(tmp_path / "file")
    assert not [*tmp_path.iterdir()]


def test_a_file_is_written_whole_or_not_at_all(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, _ = samples.new()
    compiled.load(saved / "0.compiled")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        compiled.save(tmp_path / "none" / "file")

    def fail(_file: int) -> None:
        raise OSError("the disk is full")

    (tmp_path / "file").write_text("what was there")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is full"):
        compiled.save(tmp_path / "file")
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]
    assert (tmp_path / "file").read_text() == "what was there"


# --- What does not fit --------------------------------------------------------------------------------------------------


def refusal(path: Path, compiled: Compiled[..., object] | None = None) -> str:  # type: ignore[explicit-any]  # of any arguments
    mine = compiled or samples.new()[0]
    with pytest.raises(ValueError, match=r".") as caught:
        mine.load(path)
    assert not mine.traces
    return str(caught.value).removeprefix(f"{path} ")


def test_a_file_that_is_none_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*, only a folder of that name"):
        samples.new()[0].load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing$"):
        samples.new()[1].load(tmp_path / "nothing")
    whole, path = (saved / "0.compiled").read_bytes(), tmp_path / "file"
    damaged = whole[:5000] + bytes(100) + whole[5100:]
    for content in (b"", b"text", whole[:-100], damaged):
        path.write_bytes(content)
        assert re.match(r"is not a file of compiled functions, or only a part of one \(.*\): save it anew", refusal(path))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("something", "else")
    assert "(it lacks fundl.json)" in refusal(path)
    later, earlier = (
        altered(saved, tmp_path, format=3),
        "is of format 1, from an earlier fundl; this one reads format 2: save it anew",
    )
    assert refusal(later) == "is of format 3, from a later fundl; this one reads format 2: update fundl"
    assert refusal(altered(saved, tmp_path, format=1)) == earlier


def test_a_file_of_another_function_is_refused(saved: Path) -> None:
    path = saved / "0.compiled"
    static = ("how", "power")
    assert refusal(path, jit(wrap)) == "is of powers, and not of wrap: load it into the function that it was saved from"
    assert refusal(path, jit(samples.powers, static=static)) == (
        "was made with other options (donate was ('pair',), and is ()): compile with those that were, or save it anew"
    )
    same_name = {**vars(samples), "FACTORS": samples.FACTORS + 1}
    other = types.FunctionType(samples.powers.__code__, same_name, "powers")
    assert refusal(path, jit(other, static=static, donate="pair")) == (
        "is of another powers (FACTORS differs): make it as the saved one was made, or save it anew"
    )
    with pytest.raises(
        ValueError, match=r"is of another a scan of train_step.<locals>.step \(differentiate, optimizer differs\): make it as"
    ):
        samples.new(rate=0.25)[1].load(saved / "1.compiled")
    with pytest.raises(ValueError, match=r"is of powers, and not of a scan of"):
        samples.new()[1].load(path)


def test_another_process_is_told_what_differs(saved: Path, tmp_path: Path) -> None:
    old = manifest(saved)
    for name, value in old.needs.items():
        needs = {**old.needs, name: "another"}
        assert refusal(altered(saved, tmp_path, needs=needs)) == (
            f"does not fit this process ({name} was another, and is {value}): load it where all that is as it was, or save it"
            " anew here"
        )
    assert refusal(altered(saved, tmp_path, instructions=["avx10", "avx4096"])) == (
        "was compiled for instructions that this CPU lacks (avx10, avx4096): save it anew on this machine"
    )
    first = old.forms[0]
    threads = torch.get_num_threads()
    assert refusal(altered(saved, tmp_path, forms=[{**first, "threads": 99}, {**first, "threads": 98}])) == (
        f"was compiled where torch.get_num_threads() was 98 or 99, and it is {threads}: call torch.set_num_threads(98) first,"
        " or save it anew"
    )
    assert refusal(altered(saved, tmp_path, forms=[{**first, "devices": {"cuda:99": "a card"}}])) == (
        "was compiled for another device (cuda:99 was a card, and is nothing): save it anew on this machine"
    )
    assert refusal(altered(saved, tmp_path, forms=[{**first, "classes": "others"}])) == (
        "was made when classes or functions among the arguments, or what these name, were others: save it anew"
    )


def test_a_class_that_is_not_there_is_named(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(samples, "Pair")
    path = altered(saved, tmp_path, parts=identity.parts(samples.powers))
    assert re.match(r"refers to something that is not there \(.*'Pair'.*\): the modules of the classes", refusal(path))


def test_code_that_cannot_be_written_is_kept_for_this_process(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FUNDL_CACHE_DIR", str(tmp_path / "file"))
    compiled, epoch = samples.new(max_traces=0)
    with pytest.warns(RuntimeWarning, match=r"compiled code is kept only until this process ends: .*/file is not a folder"):
        compiled.load(saved / "0.compiled")
    epoch.load(saved / "1.compiled")  # of which it is told once
    fundl.save(tmp_path / "results.safetensors", samples.results(compiled, epoch))
    assert (tmp_path / "results.safetensors").read_bytes() == (saved / "expected.safetensors").read_bytes()
    compiled.save(tmp_path / "again.compiled")
    with zipfile.ZipFile(tmp_path / "again.compiled") as file, zipfile.ZipFile(saved / "0.compiled") as old:
        assert file.namelist() == old.namelist()


def test_code_that_cannot_be_loaded_is_told(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNDL_CACHE_DIR", str(tmp_path / "new"))
    files = {"broken.so": b"no library"}
    name = store.digest(files)
    path = altered(
        saved, tmp_path, forms=[{**form, "library": name} for form in manifest(saved).forms], libraries={name: files}
    )
    assert re.match("holds code that this system cannot load: .*broken.so", refusal(path))
    empty = store.digest({})
    forms = [{**form, "library": empty} for form in manifest(saved).forms]
    assert f"it does not hold the code of the digest {empty}" in refusal(altered(saved, tmp_path, forms=forms, libraries={}))


# --- What is wrong with a file, by accident or on purpose ---------------------------------------------------------------


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_file_that_was_cut_off_or_changed_anywhere(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, or nothing that matters was changed; it writes nothing that the whole file does not write."""
    monkeypatch.setenv("FUNDL_CACHE_DIR", str(tmp_path / "cache"))
    samples.new()[0].load(saved / "0.compiled")
    before = everything(tmp_path)
    whole, path = (saved / "0.compiled").read_bytes(), tmp_path / "file"
    ends = whole.rindex(b"PK\x05\x06")
    directory = int.from_bytes(whole[ends + 16 : ends + 20], "little")
    places = [*range(0, directory, len(whole) // 30), *range(directory, len(whole), 11)]
    refused = 0
    for place in places:
        for content in (whole[:place], whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]):
            path.write_bytes(content)
            compiled = samples.new()[0]
            try:
                compiled.load(path)
            except ValueError:
                refused += 1
                assert not compiled.traces
            path.unlink()
            assert everything(tmp_path) == before, place
    assert refused > 1.2 * len(places)


WRONG: list[object] = [None, True, -1, 1.5, "../x", [], [1], {}, {"a": None}]


def test_misshapen_manifests_are_refused(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNDL_CACHE_DIR", str(tmp_path / "cache"))
    with zipfile.ZipFile(saved / "0.compiled") as file:
        text = json.loads(file.read("fundl.json"))
    first: dict[str, object] = text["forms"][0]
    for wrong in WRONG:
        changes: list[dict[str, object]] = [{name: wrong} for name, value in text.items() if type(wrong) is not type(value)]
        for name, value in first.items():
            if type(wrong) is not type(value) or name in {"library", "classes"}:
                changes.append({"forms": [{**first, name: wrong}, *text["forms"][1:]]})
        for change in changes:
            refusal(written(saved, tmp_path, json.dumps({**text, **change})))
        assert "is not a file of compiled functions" in refusal(written(saved, tmp_path, json.dumps(wrong)))
    for name in text:
        less = {other: value for other, value in text.items() if other != name}
        assert "is not a file of compiled functions" in refusal(written(saved, tmp_path, json.dumps(less)))
    for name in first:
        less = {other: value for other, value in first.items() if other != name}
        assert "is not a file of compiled functions" in refusal(altered(saved, tmp_path, forms=[less]))
    for more in ("", "{", "\x00", "[" * 100_000, '{"format": 2}', '{"format": NaN}', '{"format": 1e999}', '"\\ud800"'):
        assert "is not a file of compiled functions" in refusal(written(saved, tmp_path, more))
    assert "says more than it should: 'more'" in refusal(altered(saved, tmp_path, more=1))
    assert not everything(tmp_path / "cache")


@pytest.mark.parametrize(
    "name", ["../evil.so", "/tmp/evil.so", "{library}/../../evil.so", "{library}/a/b.so", "{library}/.hidden", "{library}/",
             "{library}/a\\b.so", "{library}/..", "evil.so", "9.pickle", "0.tensor.x", "00.pickle", "loop.so", "C:evil.so",
             "{library}/" + "x" * 300],
)  # fmt: skip
def test_files_cannot_name_where_they_are_written(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("FUNDL_CACHE_DIR", str(tmp_path / "cache" / "deep"))
    path = tmp_path / "evil.compiled"
    path.write_bytes((saved / "0.compiled").read_bytes())
    evil = name.format(library=manifest(saved).forms[0]["library"])
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(evil, b"evil")
    assert re.match(r"is not a file of compiled functions, or only a part of one \(it holds '.*'\)", refusal(path))
    assert [*tmp_path.iterdir()] == [path]


def test_code_is_what_the_manifest_says(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file puts its own code in the place of another's."""
    monkeypatch.setenv("FUNDL_CACHE_DIR", str(tmp_path / "cache"))
    forms = manifest(saved).forms
    victim = str(forms[0]["library"])
    evil = {"evil.so": b"evil"}
    path = altered(saved, tmp_path, forms=forms[:1], libraries={victim: evil})
    assert f"it does not hold the code of the digest {victim}" in refusal(path)
    for library in ("..", "../../x", "/x", victim[:-1], victim.upper(), f"{victim}/x", ""):
        path = altered(saved, tmp_path, forms=[{**form, "library": library} for form in forms], libraries={library: evil})
        assert "is not a file of compiled functions" in refusal(path)
    assert not (tmp_path / "cache").exists()


def test_what_became_of_libraries_on_disk_is_repaired(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damages: list[Callable[[bytes], bytes]] = [lambda _: b"", lambda x: x[: len(x) // 2], lambda x: x[:-1] + b"!"]
    for number, damage in enumerate(damages):
        place = tmp_path / str(number)
        monkeypatch.setenv("FUNDL_CACHE_DIR", str(place))
        for count, function in enumerate(new()):
            function.load(saved / f"{count}.compiled")
        before = everything(place)
        for file, content in before.items():
            (place / file).unlink()  # which is mapped: another file takes its place
            if not file.endswith("json"):
                (place / file).write_bytes(damage(content))
        compiled, epoch = samples.new(max_traces=0)
        compiled.load(saved / "0.compiled")
        epoch.load(saved / "1.compiled")
        assert everything(place) == before
        fundl.save(tmp_path / "results.safetensors", samples.results(compiled, epoch))
        assert (tmp_path / "results.safetensors").read_bytes() == (saved / "expected.safetensors").read_bytes()


def test_what_is_loaded_is_run_by_no_other_function(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file adds libraries, but no graph is looked up in it: what the next function compiles is its own."""
    monkeypatch.setenv("FUNDL_CACHE_DIR", str(tmp_path))
    for number, function in enumerate(new()):
        function.load(saved / f"{number}.compiled")
    assert [*tmp_path.iterdir()] == [tmp_path / "libraries"]


# --- What a function is -------------------------------------------------------------------------------------------------


def made(source: str, **scope: object) -> Callable[..., object]:  # type: ignore[explicit-any]  # of any arguments
    """The function f of a program."""
    module = {"__name__": "__main__", **scope}
    exec(source, module)
    return cast("Callable[..., object]", module["f"])  # type: ignore[explicit-any]  # see above


def same(first: str, second: str) -> bool:
    return identity.parts(made(first)) == identity.parts(made(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("f = lambda x: x + 1", "f = lambda x: x + 2"),
        ("f = lambda x: x + 1", "f = lambda x: x - 1"),
        ("f = lambda x: x.sin()", "f = lambda x: x.cos()"),
        ("def f(x, y=1): return x + y", "def f(x, y=2): return x + y"),
        ("def f(x, *, y=1): return x + y", "def f(x, *, y=2): return x + y"),
        ("rate = 1\nf = lambda x: x + rate", "rate = 2\nf = lambda x: x + rate"),
        ("g = lambda x: x + 1\nf = lambda x: g(x)", "g = lambda x: x + 2\nf = lambda x: g(x)"),
        ("def f(x):\n def g(): return x + 1\n return g()", "def f(x):\n def g(): return x + 2\n return g()"),
        ("class A:\n def g(self): return 1\nf = lambda x: A().g()", "class A:\n def g(self): return 2\nf = lambda x: A().g()"),
        ("class A:\n b = 1\nf = lambda x: A.b", "class A:\n b = 2\nf = lambda x: A.b"),
        (
            "class A:\n @property\n def g(self): return 1\nf = lambda x: A().g",
            "class A:\n @property\n def g(self): return 2\nf = lambda x: A().g",
        ),
        ("class A: pass\na = A()\na.b = 1\nf = lambda x: a.b", "class A: pass\na = A()\na.b = 2\nf = lambda x: a.b"),
        (
            "class A:\n __slots__ = 'b'\na = A()\na.b = 1\nf = lambda x: a.b",
            "class A:\n __slots__ = 'b'\na = A()\na.b = 2\nf = lambda x: a.b",
        ),
        ("from functools import partial\nf = partial(max, 1)", "from functools import partial\nf = partial(max, 2)"),
        ("from fundl import jit\nf = jit(lambda x: x + 1)", "from fundl import jit\nf = jit(lambda x: x + 2)"),
        ("from fundl import scan\nf = scan(lambda x: x + 1)", "from fundl import scan\nf = scan(lambda x: x + 2)"),
        ("a = [1, {2}]\nf = lambda x: a", "a = [1, {3}]\nf = lambda x: a"),
        ("a = {1: 2}\nf = lambda x: a", "a = {1: 3}\nf = lambda x: a"),
        ("import torch\na = torch.ones(2)\nf = lambda x: a", "import torch\na = torch.zeros(2)\nf = lambda x: a"),
        ("import torch\na = torch.int32\nf = lambda x: a", "import torch\na = torch.int64\nf = lambda x: a"),
        ("f = [].append", "f = {}.update"),
    ],
)
def test_functions_that_compute_something_else_differ(first: str, second: str) -> None:
    assert same(first, first)
    assert same(second, second)
    assert not same(first, second)


def test_functions_that_compute_the_same_do_not_differ() -> None:
    assert same("rate = 1\nf = lambda x: x.rate", "rate = 2\n\nf = lambda x: x.rate")  # no global but an attribute
    assert same("def f(x): return g(x)\ndef g(x): return f(x)", "def g(x): return f(x)\ndef f(x): return g(x)")
    assert same("def f(x):\n return h\n def h(): pass", "def f(x):\n return h\n def h(): pass")
    assert identity.parts(made("f = lambda x: m.powers(x)", m=samples)).keys() == {"its code", "its defaults", "m.powers"}
    assert identity.digest(torch.empty(2, device="meta")) == identity.digest(torch.empty(2, device="meta"))
    assert identity.digest(threading.Lock()) == identity.digest(threading.Lock())  # without its address
    assert identity.digest({"a", "b", "c"}) == identity.digest({"c", "b", "a"})
