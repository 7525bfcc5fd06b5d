"""What is saved comes back bit for bit, others read it, nothing is lost on the way, and what is wrong is said in full."""

import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Final, NamedTuple

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fundl import (
    AdamChainState,
    Dropout,
    Linear,
    Record,
    ReLU,
    TrainState,
    adam,
    compose,
    cross_entropy,
    disk,
    fit,
    initialize,
    key,
    linear,
    load,
    load_metadata,
    minibatches,
    save,
    train_state,
    train_step,
    tree,
)
from fundl._common import files
from fundl._common.files import _host
from fundl.optim.chain import AnyTransform
from fundl.saving._header import CODES as _CODES
from fundl.saving._numbers import SMALL as _SMALL
from fundl.tree import BUFFER
from tests.optimizer_samples import OPTIMIZERS
from tests.samples import SAMPLES, Sample

SHAPE_ONLY: Final = compose(linear(2, 3), ReLU(), linear(3, 1))
MODEL: Final = initialize(key(0), SHAPE_ONLY)
OTHER: Final = initialize(key(1), SHAPE_ONLY)


Run = TrainState[tuple[Linear, ReLU, Dropout, Linear], AdamChainState]


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None


@attrs.frozen(eq=False)
class Tracked(Record):
    """A record with a parameter that may be missing, and buffers that may not have been computed yet."""

    weight: Tensor
    bias: Tensor | None = None
    mean: Tensor | None = attrs.field(default=None, metadata=BUFFER)
    moments: tuple[Tensor | None, Tensor | None] = attrs.field(default=(None, None), metadata=BUFFER)


@attrs.frozen(eq=False)
class Hidden(Record):
    """A record with a tensor that its annotation keeps secret."""

    weight: object


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "saved.safetensors"


def bits(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    """A tensor of random bits: all numbers that the dtype has, NaN with all payloads, subnormals, minus zero."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(2, shape, generator=generator).to(dtype)
    size = torch.empty((), dtype=dtype).element_size()
    return torch.randint(256, (*shape, size), dtype=torch.uint8, generator=generator).view(dtype).reshape(shape)


# --- Round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", _CODES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (5,), (2, 3, 4)], ids=str)
def test_every_dtype_and_shape_comes_back(path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    saved = bits(dtype, *shape)
    save(path, saved)
    assert tree.equal(load(path, torch.empty_like(saved)), saved)
    assert tree.equal(load_file(path)[""], saved)


LAYOUTS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "as it is": lambda x: x,
    "transposed": lambda x: x.mT if x.ndim > 1 else x,
    "every other": lambda x: x[::2] if x.ndim else x,
    "a part": lambda x: x[1:] if x.ndim else x,
    "expanded": lambda x: x.expand(3, *x.shape),
    "channels last": lambda x: x.reshape(1, 1, 1, -1).to(memory_format=torch.channels_last),
}


def dense(leaf: Tensor) -> Tensor:
    return leaf.clone(memory_format=torch.contiguous_format)


def test_any_tree_comes_back(tmp_path: Path) -> None:
    shapes = st.lists(st.integers(0, 4), max_size=3)
    tensors = st.builds(
        lambda dtype, shape, seed, layout: LAYOUTS[layout](bits(dtype, *shape, seed=seed)),
        st.sampled_from([*_CODES]),
        shapes,
        st.integers(0, 1000),
        st.sampled_from([*LAYOUTS]),
    )
    leaves = st.one_of(tensors, st.none())
    nodes = st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.text(max_size=4), inner, max_size=3),
            st.builds(Pair, tensors, leaves),
            st.builds(Tracked, tensors, leaves, leaves, st.tuples(leaves, leaves)),
        ),
        max_leaves=10,
    )

    def check(saved: object) -> None:
        path = tmp_path / "any"
        save(path, saved)
        again, expected = load(path, tree.map(lambda leaf: leaf.to("meta"), saved)), tree.map(dense, saved)
        assert tree.equal(again, expected)
        named = dict(zip(tree.paths(saved), tree.flatten(expected)[0], strict=True))
        assert tree.equal(load_file(path), {name: leaf for name, leaf in named.items() if leaf is not None})

    settings(max_examples=150, deadline=None)(given(nodes)(check))()


def test_lazily_conjugated_and_negated_numbers_are_saved_as_they_read(path: Path) -> None:
    number = torch.tensor(1 + 2j, dtype=torch.complex64)
    saved = (number.conj(), number.conj().imag)
    assert saved[0].is_conj()
    assert saved[1].is_neg()
    save(path, saved)
    assert [leaf.item() for leaf in load(path, saved)] == [1 - 2j, -2.0]


def test_tensors_that_share_memory_come_back_apart(path: Path) -> None:
    whole = torch.arange(6.0)
    saved = (whole, whole, whole[2:4], whole.expand(2, 6))
    save(path, saved)
    again = load(path, saved)
    assert tree.equal(again, saved)
    assert len({leaf.untyped_storage().data_ptr() for leaf in again}) == 4
    assert path.stat().st_size < 1000


def test_what_is_loaded_is_no_view_of_the_file(path: Path) -> None:
    saved = (torch.ones(3, dtype=torch.bool), torch.ones(1000, dtype=torch.int8), torch.ones(1000))
    save(path, saved)
    again = load(path, saved)
    path.write_bytes(bytes(path.stat().st_size))
    assert tree.equal(again, saved)
    assert all(leaf.data_ptr() % 16 == 0 for leaf in again)


def test_numbers_are_aligned_in_the_file(path: Path) -> None:
    save(path, [bits(dtype, 3) for dtype in reversed([*_CODES])])
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    for name, entry in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            assert start % ((end - start) // 3) == 0


def test_parameters_of_autograd_come_back_as_tensors(path: Path) -> None:
    saved = nn.Linear(2, 3).weight
    save(path, (saved,))
    (again,) = load(path, (saved,))
    assert type(again) is Tensor
    assert not again.requires_grad
    assert torch.equal(again, saved)


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss")
def test_a_large_model_needs_no_second_copy_of_itself(path: Path) -> None:
    program = """
import resource, sys, torch
from fundl import load, save
tree = [torch.ones(2**21) for _ in range(16)]  # 128 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
save(sys.argv[1], tree)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    again = """
import resource, sys, torch
from fundl import load
like = [torch.ones(2**21, device="meta")] * 16
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tree = load(sys.argv[1], like)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    result = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 40 * 1024  # KiB
    result = subprocess.run([sys.executable, "-c", again, path], capture_output=True, text=True, check=True)
    assert int(result.stdout) < (128 + 40) * 1024


# --- Models, optimizers, runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_every_layer_comes_back_into_its_shape(path: Path, sample: Sample) -> None:
    save(path, sample.model)
    assert tree.equal(load(path, tree.map(lambda leaf: leaf.to("meta"), sample.model)), sample.model)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_state_comes_back_and_goes_on(path: Path, name: str) -> None:
    optimizer: AnyTransform = OPTIMIZERS[name]
    grads = tree.map(torch.sin, MODEL)
    params, state = optimizer.step(grads, optimizer.init(MODEL), MODEL)
    save(path, (params, state))
    params_again, state_again = load(path, (MODEL, optimizer.init(SHAPE_ONLY)))
    assert tree.equal(state_again, state)
    assert tree.equal(optimizer.step(grads, state_again, params_again), optimizer.step(grads, state, params))


def test_a_resumed_run_is_the_uninterrupted_one(path: Path) -> None:
    train, optimizer = disk(key(0), 120), adam(0.01, amsgrad=True)
    shape_only = compose(linear(2, 8), ReLU(), Dropout(0.2), linear(8, 2))
    start = train_state(key(2), initialize(key(1), shape_only), optimizer)
    step = train_step(cross_entropy, optimizer)

    def run(state: Run, epochs: int) -> Run:
        return fit(step, state, lambda key: minibatches(key, train, 25), epochs=epochs, progress=False)[0]

    stopped = run(start, 2)
    save(path, stopped)
    meta = tree.map(lambda leaf: leaf.to("meta"), start)
    for like in (start, meta):
        again = load(path, like)
        assert tree.equal(again, stopped)
        assert tree.equal(run(again, 2), run(start, 4))


def test_names_are_what_one_writes_after_the_tree(path: Path) -> None:
    optimizer = adam(0.01)
    save(path, train_state(key(2), MODEL, optimizer))
    names = load_file(path).keys()
    assert {".model[0].weight", ".model[2].bias", ".key", ".step"} < names
    save(path, {"mean": torch.ones(2), "pair": Pair(torch.ones(1), None)})
    assert load_file(path).keys() == {"['mean']", "['pair'].first"}
    save(path, ())
    assert load_file(path) == {}
    assert load(path, ()) == ()


def test_files_of_others_are_read(path: Path) -> None:
    first, _, second = MODEL
    assert first.bias is not None
    assert second.bias is not None
    tensors = {"[0].weight": first.weight, "[0].bias": first.bias, "[2].weight": second.weight, "[2].bias": second.bias}
    save_file(tensors, path)
    assert tree.equal(load(path, SHAPE_ONLY), MODEL)
    assert load_metadata(path) == {}


# --- Buffers and None -------------------------------------------------------------------------------------------------


def test_buffers_that_are_not_set_yet_are_set_from_the_file(path: Path) -> None:
    like = (Tracked(torch.zeros(2)), [Tracked(torch.zeros(2))], {"a": Pair(torch.zeros(1), None)})
    saved = (
        Tracked(torch.ones(2), mean=torch.ones(3), moments=(torch.ones(4), None)),
        [Tracked(torch.ones(2), mean=torch.tensor(5))],
        {"a": Pair(torch.ones(1), None)},
    )
    save(path, saved)
    assert tree.equal(load(path, like), saved)


def test_a_buffer_that_the_file_lacks_is_missed(path: Path) -> None:
    save(path, Tracked(torch.ones(2)))
    with pytest.raises(ValueError, match=re.escape("at .mean, the file has nothing, and like has float32[3]")):
        load(path, Tracked(torch.ones(2), mean=torch.zeros(3)))


def test_a_parameter_is_not_set_where_like_has_none(path: Path) -> None:
    save(path, Tracked(torch.ones(2), bias=torch.ones(2)))
    with pytest.raises(ValueError, match=re.escape("at .bias, the file has float32[2], and like has nothing")):
        load(path, Tracked(torch.ones(2)))


# --- Devices ----------------------------------------------------------------------------------------------------------


def test_tensors_go_where_like_is_or_where_they_are_told(path: Path) -> None:
    saved = Tracked(torch.ones(2), mean=torch.ones(2))
    save(path, saved)
    for device in ("cpu", torch.device("cpu")):
        assert tree.equal(load(path, saved, device=device), saved)
    shapes = load(path, saved, device="meta")
    assert tree.describe(shapes) == tree.describe(saved)
    assert all(leaf.is_meta for leaf in tree.leaves(shapes))
    with torch.device("meta"):
        assert tree.equal(load(path, saved), saved)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_come_from_a_gpu_and_go_there(path: Path) -> None:
    model = tree.move_to(MODEL, "cuda")
    save(path, (model, MODEL, Tracked(torch.ones(2), mean=torch.ones(2))))
    like = (model, MODEL, Tracked(torch.ones(2, device="cuda")))
    again = load(path, like)
    assert tree.equal(again[0], model)
    assert [leaf.device.type for leaf in tree.leaves(again)] == ["cuda"] * 4 + ["cpu"] * 4 + ["cuda"] * 2
    assert all(leaf.is_cuda for leaf in tree.leaves(load(path, like, device="cuda")))
    assert not any(leaf.is_cuda for leaf in tree.leaves(load(path, like, device="cpu")))


# --- Metadata and the version -----------------------------------------------------------------------------------------


def test_metadata_comes_back(path: Path) -> None:
    metadata = {"epochs": "3", "note": 'best so far: "ω"\n', "": ""}
    save(path, MODEL, metadata=metadata)
    assert load_metadata(path) == metadata
    save(path, MODEL)
    assert load_metadata(path) == {}


def test_the_same_tree_makes_the_same_bytes(path: Path, tmp_path: Path) -> None:
    metadata = {letter: letter for letter in "qwertyuiop"}
    save(path, MODEL, metadata=metadata)
    save(tmp_path / "again", initialize(key(0), SHAPE_ONLY), metadata=metadata)
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


def test_metadata_is_text(path: Path) -> None:
    wrong: dict[str, str] = json.loads('{"epochs": 3}')
    with pytest.raises(TypeError, match=r"metadata are texts by name, but here is 'epochs': 3; make it text with str\(\)"):
        save(path, MODEL, metadata=wrong)
    with pytest.raises(ValueError, match=r'names of metadata that begin with "fundl." are reserved, .* \'fundl.format\''):
        save(path, MODEL, metadata={"fundl.format": "2"})
    with pytest.raises(ValueError, match="metadata are Unicode, but here is half a letter: 'half'"):  # no reader takes it
        save(path, MODEL, metadata={"half": "\ud800"})
    assert not os.listdir(path.parent)


def test_a_later_format_is_told(path: Path) -> None:
    save_file({"": torch.ones(1)}, path, metadata={"fundl.format": "2"})
    message = "saved.safetensors is of format 2, from a later fundl; this one reads format 1: update fundl"
    with pytest.raises(ValueError, match=message):
        load(path, torch.ones(1))
    with pytest.raises(ValueError, match=message):
        load_metadata(path)


# --- What does not fit ------------------------------------------------------------------------------------------------


def test_every_difference_is_listed(path: Path) -> None:
    save(path, (*MODEL, torch.zeros(1)))
    like = (linear(2, 4), tree.cast_to(linear(3, 1), torch.float64), linear(3, 1, bias=False))
    with pytest.raises(ValueError, match="does not fit") as info:
        load(path, like)
    assert str(info.value).splitlines() == [
        f"{path} does not fit like: make like as the saved tree was made (for its dtypes see tree.cast_to)",
        "    at [0].weight, the file has float32[3, 2], and like has float32[4, 2]",
        "    at [0].bias, the file has float32[3], and like has float32[4]",
        "    at [1].weight, the file has nothing, and like has float64[1, 3]",
        "    at [1].bias, the file has nothing, and like has float64[1]",
        "    at [2].bias, the file has float32[1], and like has nothing",
        "    at [3], the file has float32[1], and like has nothing",
        "    what they are made of: at its root, the file has a tuple of 4, and like has a tuple of 3",
    ]


def test_another_dtype_is_no_fit_and_the_advice_works(path: Path) -> None:
    save(path, tree.cast_to(MODEL, torch.float64))
    with pytest.raises(ValueError, match=re.escape("at [0].bias, the file has float64[3], and like has float32[3]")):
        load(path, SHAPE_ONLY)
    again = tree.cast_to(load(path, tree.cast_to(SHAPE_ONLY, torch.float64)), torch.float32)
    assert tree.equal(again, MODEL)


def test_the_root_and_things_that_are_no_tensors_are_named(path: Path) -> None:
    save(path, torch.ones(2))
    with pytest.raises(ValueError, match=re.escape("at its root, the file has float32[2], and like has int64[3]")):
        load(path, torch.arange(3))
    with pytest.raises(ValueError, match=re.escape("at ['epoch'], the file has nothing, and like has 3")):
        load(path, {"epoch": 3})


# --- What cannot be read ----------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    missing = re.escape(os.path.abspath("nowhere/model.safetensors"))
    for read in (load_metadata, lambda path: load(path, MODEL)):
        with pytest.raises(FileNotFoundError, match=rf"there is no file {missing}$"):
            read("nowhere/model.safetensors")
        with pytest.raises(FileNotFoundError, match=rf"there is no file {tmp_path}, only a folder of that name$"):
            read(str(tmp_path))


FORBIDDEN: Final = """
import os, tempfile, torch
from fundl import load, save
with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    path = f"{folder}/saved.safetensors"
    save(path, torch.ones(1))
    os.chmod(path, 0)
    if os.geteuid() == 0:
        os.seteuid(65534)  # root may read everything
    try:
        load(path, torch.ones(1))
    except PermissionError as error:
        print(error)
    os.seteuid(os.getuid())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="modes")
def test_a_file_that_may_not_be_read() -> None:
    result = subprocess.run([sys.executable, "-c", FORBIDDEN], capture_output=True, text=True, check=True)
    assert re.search("Permission denied: '.*/saved.safetensors'", result.stdout)


def test_a_file_that_was_cut_off_anywhere(path: Path, tmp_path: Path) -> None:
    save(path, MODEL)
    content = path.read_bytes()
    part = tmp_path / "part"
    for length in range(len(content)):
        part.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"part is not a safetensors file, or only a part of one \(.+\): load what"):
            load(part, MODEL)
    part.write_bytes(content + b"x")
    with pytest.raises(ValueError, match="part is not a safetensors file"):
        load(part, MODEL)


def test_a_file_of_another_kind(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="is not a safetensors file, or only a part of one"):
        load(path, MODEL)

    def check(content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a safetensors file, or only a part of one"):
            load(path, MODEL)

    settings(max_examples=100, deadline=None)(given(st.binary(max_size=200))(check))()


def test_a_file_with_numbers_that_torch_does_not_know(path: Path) -> None:
    header = json.dumps({"": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"abc")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load(path, MODEL)


# --- What cannot be saved ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saved", "error", "message"),
    [
        ({"epoch": 3}, TypeError, r"only tensors can be saved, but at \['epoch'\] is 3 \(int\): make it one, or text"),
        (SHAPE_ONLY, ValueError, r"at \[0\].weight is float32\[3, 2\] without values: save what initialize\(key\(0\), model\)"),
        (torch.zeros(2, device="meta"), ValueError, r"the tree is float32\[2\] without values"),
        ([torch.zeros(1, dtype=torch.complex128)], TypeError, r"at \[0\] is complex128\[1\] .* has no place in a safetensors"),
        ([torch.zeros(2).to_sparse()], TypeError, r"at \[0\] is float32\[2\] \(torch.sparse_coo\), which has no place"),
        ((Hidden(torch.ones(1)),), TypeError, "Hidden.weight holds a tensor, but its annotation mentions none"),
        ({float("nan"): torch.ones(1), -float("nan"): torch.ones(1)}, ValueError, r"two leaves .* the same path, \[nan\]"),
    ],
    ids=["int", "meta model", "meta tensor", "complex128", "sparse", "misplaced", "same path"],
)
def test_what_cannot_be_saved_is_told_before_anything_is_written(
    path: Path, saved: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        save(path, saved)
    assert not os.listdir(path.parent)


def test_a_folder_that_is_not_there_and_one_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"there is no folder {tmp_path}/runs/a to save x.safetensors in: make it"):
        save(tmp_path / "runs" / "a" / "x.safetensors", MODEL)
    with pytest.raises(OSError, match=rf"{tmp_path} is a folder or a device, not a file: give the path of a file to save to"):
        save(tmp_path, MODEL)
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes")
def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match=rf"{pipe} is a folder or a device, not a file"):
        save(pipe, MODEL)
    assert pipe.is_fifo()


# --- All or nothing ---------------------------------------------------------------------------------------------------


def fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("broken", ["fundl.saving._writing.write_numbers", "os.fsync", "os.replace"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_write_that_fails_leaves_what_was_there(
    path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, is_there: bool
) -> None:
    if is_there:
        save(path, MODEL)
    with monkeypatch.context() as patch:
        patch.setattr(broken, fail)
        with pytest.raises(OSError, match="No space left on device"):
            save(path, OTHER)
    assert os.listdir(path.parent) == [path.name] * is_there
    assert not is_there or tree.equal(load(path, MODEL), MODEL)
    save(path, OTHER)
    assert tree.equal(load(path, MODEL), OTHER)


@pytest.mark.skipif(sys.platform == "win32", reason="folders")
def test_the_bytes_are_on_the_disk_before_the_name_and_then_the_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_ino, path.exists())))
    save(path, MODEL)
    assert synced == [(path.stat().st_ino, False), (path.parent.stat().st_ino, True)]


@pytest.mark.parametrize(("number", "raised"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_folder_that_cannot_be_synced_and_one_that_fails(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raised: bool
) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "as it is")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError, match="as it is") if raised else nullcontext():
        save(path, MODEL)
    assert tree.equal(load(path, MODEL), MODEL)


KILLED: Final = """
import os, signal, sys, torch
from fundl import save
save(sys.argv[1], [torch.ones(1000)])
setattr(*{where}, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
save(sys.argv[1], [torch.zeros(1000)])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    "where", ["(sys.modules['fundl.saving._writing'], 'write_numbers')", "(os, 'fsync')", "(os, 'replace')"]
)
def test_a_process_that_is_killed_leaves_what_was_there(path: Path, where: str) -> None:
    result = subprocess.run([sys.executable, "-c", KILLED.format(where=where), path], check=False)
    assert result.returncode == -signal.SIGKILL
    assert tree.equal(load(path, [torch.zeros(1000)]), [torch.ones(1000)])


FULL: Final = """
import resource, sys, torch
from fundl import save
save(sys.argv[1], [torch.ones(1000)])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
save(sys.argv[1], [torch.zeros(100_000)])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits")
def test_a_disk_that_fills_up_leaves_what_was_there(path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=False)
    assert "OSError: [Errno 27] File too large" in result.stderr
    assert os.listdir(path.parent) == [path.name]
    assert tree.equal(load(path, [torch.zeros(1000)]), [torch.ones(1000)])


def test_who_reads_while_others_write_sees_one_whole_tree(path: Path) -> None:
    trees = [[torch.full((10_000,), float(number)) for _ in range(3)] for number in range(3)]
    save(path, trees[0])

    def write(saved: list[Tensor]) -> None:
        for _ in range(20):
            save(path, saved)

    writers = [threading.Thread(target=write, args=(saved,)) for saved in trees]
    for writer in writers:
        writer.start()
    seen = [load(path, trees[0]) for _ in range(40)]
    for writer in writers:
        writer.join()
    assert all(any(tree.equal(one, saved) for saved in trees) for one in seen)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="links and modes")
def test_links_are_followed_and_modes_are_as_usual(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(path.name)
    save(link, MODEL)
    save(link, OTHER)
    assert link.is_symlink()
    assert tree.equal(load(path, MODEL), OTHER)
    (tmp_path / "usual").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


@pytest.mark.skipif(sys.platform == "win32", reason="modes")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666])
def test_who_may_read_and_write_a_file_stays_so(path: Path, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is written, too."""
    save(path, MODEL)
    path.chmod(mode)
    found: list[int] = []

    def fsync(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            found.append(stat.S_IMODE(os.fstat(descriptor).st_mode))

    monkeypatch.setattr("os.fsync", fsync)
    save(path, OTHER)
    assert [*found, stat.S_IMODE(path.stat().st_mode)] == [mode, mode]
    assert tree.equal(load(path, MODEL), OTHER)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can give files away")
def test_a_file_stays_its_owners(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(path, MODEL)
    path.chmod(0o660)
    os.chown(path, 1234, 2345)
    save(path, OTHER)
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 2345, 0o660)

    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr("os.fchown", refuse)
    save(path, MODEL)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600  # the group is another one: it is not let in


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, "日" * 85])
def test_names_may_be_as_long_as_file_systems_allow(tmp_path: Path, name: str) -> None:
    for _ in range(2):
        save(tmp_path / name, MODEL)
    assert os.listdir(tmp_path) == [name]
    assert tree.equal(load(tmp_path / name, MODEL), MODEL)


# --- What dead processes left -----------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_what_a_dead_process_left_is_cleared_by_the_next_one(path: Path) -> None:
    program = KILLED.format(where="(sys.modules['fundl.saving._writing'], 'write_numbers')")
    subprocess.run([sys.executable, "-c", program, path], check=False)
    assert len(os.listdir(path.parent)) == 2
    save(path.parent / "another", MODEL)
    assert sorted(os.listdir(path.parent)) == ["another", path.name]


def test_what_is_being_written_is_left_alone(path: Path) -> None:
    with files.atomic_file(path) as file:
        (unfinished,) = path.parent.iterdir()
        save(path, OTHER)
        assert unfinished.exists()
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    assert os.listdir(path.parent) == [path.name]


def test_what_is_on_another_machine_is_left_alone_for_a_day(path: Path) -> None:
    mine, others, foreign = (
        path.with_name(f".saved.{name}.tmp") for name in (f"{_host()}01234567.fundl", "0123456701234567.fundl", "01234567")
    )
    for unfinished in (mine, others, foreign):
        unfinished.touch()
    save(path, MODEL)
    assert {*path.parent.iterdir()} == {path, others, foreign}
    os.utime(others, (time.time() - 1e5,) * 2)
    save(path, MODEL)
    assert {*path.parent.iterdir()} == {path, foreign}


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes")
def test_links_and_pipes_in_the_place_of_what_was_left_are_not_touched(path: Path, tmp_path: Path) -> None:
    name = f".saved.{_host()}0123456{{}}.fundl.tmp"
    (tmp_path / "kept").touch()
    path.with_name(name.format(1)).symlink_to(tmp_path / "kept")
    os.mkfifo(path.with_name(name.format(2)))
    path.with_name(name.format(3)).mkdir()
    before = {*tmp_path.iterdir()}
    save(path, MODEL)
    assert {*tmp_path.iterdir()} == before | {path}


# --- Checksums --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", [MODEL, bits(torch.uint8, 2 * _SMALL + 1), (bits(torch.int64, 2**14), torch.ones(3))])
def test_a_flipped_bit_is_found(path: Path, saved: object) -> None:
    save(path, saved, metadata={"a": "b"})
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    step = max(1, (len(content) - start) // 100)
    for place in range(start, len(content), step):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"saved.safetensors is damaged: the numbers of .* are not what was saved"):
            load(path, saved)
    for place in range(0, start, 3):  # of the header: found, unless it is in the name of the checksums, or in blanks
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            assert tree.equal(load(path, saved), saved)
            assert load_metadata(path).get("a") == "b"
        except ValueError:
            continue


def test_what_is_damaged_is_named(path: Path) -> None:
    save(path, {"a": torch.ones(2), "b": torch.ones(1)}, metadata={"note": "first"})
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!")
    message = (
        r"saved.safetensors is damaged: the numbers of \['b'\] are not what was saved. Load another copy; if another program"
    )
    with pytest.raises(ValueError, match=message):
        load(path, {"a": torch.ones(2), "b": torch.ones(1)})
    assert load_metadata(path) == {"note": "first"}  # which reads no numbers
    path.write_bytes(content.replace(b"first", b"worst"))
    with pytest.raises(
        ValueError, match="is damaged: its metadata, or the names or kinds of its tensors, are not what was saved"
    ):
        load_metadata(path)
    sums = safe_metadata(path)["fundl.crc32"]
    for other in (b"", sums[:8].encode(), sums.replace(" ", "x").encode(), b"0 1 2"):
        save_file({"": torch.ones(1)}, path, metadata={"fundl.crc32": other.decode()})
        with pytest.raises(ValueError, match="is damaged: its "):
            load(path, torch.ones(1))


def safe_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def test_who_writes_the_same_in_another_order_may_keep_the_checksums(path: Path) -> None:
    saved = [bits(dtype, 3) for dtype in _CODES]
    save(path, saved, metadata={"b": "1", "a": "2"})
    save_file(load_file(path), path, metadata=safe_metadata(path))
    assert tree.equal(load(path, saved), saved)
    assert load_metadata(path) == {"b": "1", "a": "2"}
