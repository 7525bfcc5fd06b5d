"""Trees on disk: a model, the state of an optimizer, or that of a whole training run, in a safetensors file.

A file holds the tensors of a tree by name, and nothing else: no code, so reading one runs none, whoever wrote it. Its
tensors are read by every program that knows the format. A tensor's name is its path as `tree.paths` has it, which is what
one writes after the tree to get there: ``[0].weight`` of a model, ``.model[0].weight`` and ``.step`` of a `TrainState`; the
name of a tree that is a tensor itself is empty.

The metadata have a checksum of each tensor, and one of the rest, so that what a disk or a network has changed is found.

All else (which layers there are, sizes, rates, where None stands) is the program's. So `load` fills a tree, `like`, that
was made as the saved one was. Where their names, shapes and dtypes agree, the tree comes back bit for bit.
"""

import ctypes
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, Final, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fundl._common.files import atomic_file, existing_file
from fundl.tree import Record, describe, flatten, misplaced_tensors, parts, paths, unflatten

T = TypeVar("T")

_FORMAT_KEY: Final = "fundl.format"  # by its version, a later fundl can tell what it reads
_FORMAT: Final = "1"
_SUMS_KEY: Final = "fundl.crc32"

_CODES: Final[Mapping[torch.dtype, str]] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the format calls each dtype."""


# --- Saving -----------------------------------------------------------------------------------------------------------


def save(path: str | os.PathLike[str], tree: object, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write the tensors of a tree to a safetensors file, whole or not at all.

    If the disk fills up, the process dies, or the power goes, what the path named before is still there, as it was. Tensors
    that share memory are written one by one; how they lie in memory (strides) is not kept. The same tree makes the same bytes.

    Args:
        path: of the file, by custom in ".safetensors"; a file that is there already is replaced, and who may read and write it
            stays as it was.
        tree: a model, an optimizer's state, a `TrainState`, or any other tree of tensors with values.
        metadata: texts to go with it, by name, for `load_metadata` and whoever else reads the file.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: the file cannot be written.
        TypeError: a leaf is not a tensor, its dtype or layout has no place in the format, or a field holds a tensor that its
            annotation does not mention; the metadata is not all text.
        ValueError: a tensor is on the meta device; two leaves have the same path; a name of the metadata begins with "fundl.".

    >>> from tempfile import TemporaryDirectory
    >>> from fundl import ReLU, compose, initialize, key, linear, load, load_metadata, save, tree
    >>> shape_only = compose(linear(2, 25), ReLU(), linear(25, 2))
    >>> model = initialize(key(0), shape_only)
    >>> with TemporaryDirectory() as folder:
    ...     save(f"{folder}/disk.safetensors", model, metadata={"epochs": "3"})
    ...     again = load(f"{folder}/disk.safetensors", shape_only)
    ...     texts = load_metadata(f"{folder}/disk.safetensors")
    >>> tree.equal(again, model), texts
    (True, {'epochs': '3'})
    """
    tensors, texts = _named_tensors(tree), _texts(metadata or {})
    with atomic_file(path) as file:
        _write(file, tensors, texts)


def _named_tensors(tree: object) -> dict[str, Tensor]:
    """The tensors of a tree by path, if all of them can be saved."""
    if misplaced := misplaced_tensors(tree):
        raise TypeError(
            f"{misplaced[0]} holds a tensor, but its annotation mentions none, so it is not a leaf of the tree, and would be"
            " lost: annotate the field as Tensor"
        )
    tensors: dict[str, Tensor] = {}
    for name, leaf in zip(paths(tree), flatten(tree)[0], strict=True):
        if leaf is None:
            continue
        if name in tensors:
            raise ValueError(f"two leaves of the tree have the same path, {name}: give their dict other keys")
        tensors[name] = _saveable(name, leaf)
    return tensors


def _saveable(name: str, leaf: object) -> Tensor:
    where = f"at {name}" if name else "the tree"
    if not isinstance(leaf, Tensor):
        raise TypeError(
            f"only tensors can be saved, but {where} is {leaf!r} ({type(leaf).__name__}): make it one, or text in the metadata"
        )
    if leaf.is_meta:
        raise ValueError(f"{where} is {describe(leaf)} without values: save what initialize(key(0), model) returns")
    if leaf.layout != torch.strided or leaf.dtype not in _CODES:
        raise TypeError(f"{where} is {describe(leaf)} ({leaf.layout}), which has no place in a safetensors file: convert it")
    return leaf


def _texts(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of the file, which begin with the version of the format."""
    for name, text in metadata.items():
        if not all(isinstance(part, str) for part in (name, text)):
            raise TypeError(
                f"metadata are texts by name, but here is {name!r}: {text!r}; make it text with str() or json.dumps"
            )
        if name.startswith("fundl."):
            raise ValueError(f'names of metadata that begin with "fundl." are reserved, but here is {name!r}: choose another')
    return {_FORMAT_KEY: _FORMAT, **metadata}


# The writer is our own, since that of safetensors asks for numpy, refuses tensors that share memory, makes files that no
# other user may read, and puts metadata in random order. The format is the length of a header in 8 bytes, the header in
# JSON, and the bytes of the tensors, without gaps. Numbers are aligned in the file: to that end the widest come first.


def _write(file: BinaryIO, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    unknown = " ".join(["0" * 8] * (len(ordered) + 1))
    header = _header(ordered, {_SUMS_KEY: unknown, **texts})
    file.write(header)
    with ThreadPoolExecutor(1) as worker:
        sums = {name: _write_numbers(file, tensor, worker) for name, tensor in ordered.items()}
    file.seek(0)
    file.write(header.replace(unknown.encode(), _sums_text(ordered, texts, sums).encode(), 1))  # the first text that it has


def _header(ordered: Mapping[str, Tensor], texts: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": texts}
    end = 0
    for name, tensor in ordered.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _CODES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [start, end]}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _write_numbers(file: BinaryIO, tensor: Tensor, worker: ThreadPoolExecutor) -> int:
    """Write the numbers of one tensor, from the first axis to the last; and their checksum."""
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    sums = _sum_of(dense, worker)
    file.write(_memory(dense))
    return sums()


# --- Checksums --------------------------------------------------------------------------------------------------------

# CRC-32 finds each flipped bit. It takes less time than to copy the numbers, and another thread finds it meanwhile. The text
# has the checksums in hexadecimal: first that of all else in the file, then those of the tensors, in the order of their names.

_SMALL: Final = 2**16  # bytes that take less time than another thread to ask


def _sums_text(tensors: Mapping[str, Tensor], texts: Mapping[str, str], sums: Mapping[str, int]) -> str:
    names = sorted(tensors)
    described = [(name, _CODES.get(tensors[name].dtype), [*tensors[name].shape], sums[name]) for name in names]
    rest = zlib.crc32(json.dumps([sorted(texts.items()), described]).encode())
    return " ".join(f"{number:08x}" for number in (rest, *(sums[name] for name in names)))


def _sum_of(dense: Tensor, worker: ThreadPoolExecutor) -> Callable[[], int]:
    """What waits for the checksum of a contiguous tensor's numbers."""
    if dense.nbytes > _SMALL:
        return worker.submit(zlib.crc32, _memory(dense)).result
    number = zlib.crc32(_memory(dense))
    return lambda: number


def _memory(dense: Tensor) -> "ctypes.Array[ctypes.c_char]":
    return (ctypes.c_char * dense.nbytes).from_address(dense.data_ptr())


# --- Loading ----------------------------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str], like: T, *, device: torch.device | str | None = None) -> T:
    """The tree that was saved to a file, bit for bit.

    Args:
        path: of a file that `save` wrote, or any other safetensors file with such names.
        like: a tree to fill, made as the saved one was. Its values are not looked at: it may be on the meta device, as
            ``compose(linear(2, 25), ReLU(), linear(25, 2))`` is. A buffer that is None in it, and has a value in the
            file, such as a calibrated mean, gets that value.
        device: where the tensors go; by default to where those of `like` are, and from the meta device to the CPU.

    Returns:
        A new tree, whose tensors share no memory with each other, nor with the file.

    Raises:
        FileNotFoundError: there is no such file; another OSError if it may not be read.
        ValueError: it is not a whole safetensors file, a later fundl wrote it, its numbers are not those that were saved, or it
            does not fit `like`: the message lists every tensor that one of the two lacks, or that is of another shape or dtype
            in one than in the other.

    A training run goes on where it was stopped, as if it had not been:

    >>> from tempfile import TemporaryDirectory
    >>> from fundl import adam, disk, fit, initialize, key, linear, load, minibatches, mse, one_hot, save, train_state
    >>> from fundl import train_step, tree
    >>> points, labels = disk(key(0), 100)
    >>> data, optimizer = (points, one_hot(labels, 2)), adam(0.01)
    >>> start = train_state(key(2), initialize(key(1), linear(2, 2)), optimizer)
    >>> def run(state, epochs):
    ...     batches = lambda key: minibatches(key, data, 10)
    ...     return fit(train_step(mse, optimizer), state, batches, epochs=epochs, progress=False)[0]
    >>> with TemporaryDirectory() as folder:
    ...     save(f"{folder}/run.safetensors", run(start, epochs=2))
    ...     resumed = run(load(f"{folder}/run.safetensors", start), epochs=1)
    >>> tree.equal(resumed, run(start, epochs=3))
    True
    """
    file = _read(path)
    if differences := _differences(file.tensors, like):
        raise ValueError(
            f"{os.fspath(path)} does not fit like: make like as the saved tree was made (for its dtypes see tree.cast_to)\n    "
            + "\n    ".join(differences)
        )
    leaves, structure = flatten(like)
    first = next((leaf.device for leaf in leaves if leaf is not None), torch.device("cpu"))
    loaded: list[Tensor | None] = []
    sums: dict[str, Callable[[], int]] = {}
    with ThreadPoolExecutor(1) as worker:
        for name, leaf in zip(paths(like), leaves, strict=True):
            home = first if leaf is None else leaf.device
            target = torch.device(device or ("cpu" if home.type == "meta" else home))
            stored = file.tensors.get(name)
            if stored is not None and name in file.sums and target.type != "meta":
                sums[name] = _sum_of(stored, worker)
            # What is stored lies in the file itself: a copy is safe from who writes there next, and aligned as tensors are.
            loaded.append(None if stored is None else stored.to(target, copy=True))
    if damaged := [name for name, number in sums.items() if number() != file.sums[name]]:
        raise _damaged(path, f"the numbers of {', '.join(name or 'its root' for name in damaged)}")
    return unflatten(structure, loaded)


def _differences(stored: Mapping[str, Tensor], like: object) -> list[str]:
    """What the tensors of a file and the leaves of a tree do not agree on, in the order of the tree."""
    wanted, unset = dict(zip(paths(like), flatten(like)[0], strict=True)), {*_unset_buffers(like)}
    return [
        f"at {name or 'its root'}, the file has {_words(stored.get(name))}, and like has {_words(wanted.get(name))}"
        for name in (*wanted, *sorted(stored.keys() - wanted.keys()))
        if describe(stored.get(name)) != describe(wanted.get(name)) and name not in unset
    ]


def _words(leaf: Tensor | None) -> str:
    return "nothing" if leaf is None else describe(leaf)


def _unset_buffers(tree: object, path: str = "", *, in_buffer: bool = False) -> Iterator[str]:
    """Where buffers are None, which is how they are before they are first computed."""
    match tree:
        case None if in_buffer:
            yield path
        case Record():
            for name in tree.children:
                is_buffer = in_buffer or name not in tree.trainable
                yield from _unset_buffers(getattr(tree, name), f"{path}.{name}", in_buffer=is_buffer)
        case _:
            for step, part in parts(tree):
                yield from _unset_buffers(part, path + step, in_buffer=in_buffer)


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that were saved to a file with its tensors.

    Args:
        path: of a safetensors file.

    Raises: as `load`; the tensors' numbers are not looked at.

    >>> from tempfile import TemporaryDirectory
    >>> from fundl import load_metadata, save
    >>> with TemporaryDirectory() as folder:
    ...     save(f"{folder}/mean.safetensors", torch.zeros(3), metadata={"of": "the training set"})
    ...     load_metadata(f"{folder}/mean.safetensors")
    {'of': 'the training set'}
    """
    return dict(_read(path).texts)


class _File(NamedTuple):
    """What a file holds: its tensors by name, as views of it; the metadata; and the tensors' checksums, if fundl wrote it."""

    tensors: Mapping[str, Tensor]
    texts: Mapping[str, str]
    sums: Mapping[str, int]


def _read(path: str | os.PathLike[str]) -> _File:
    where = existing_file(path)
    with open(where, "rb"):  # if it may not be read, this says so: safetensors would say that it is not there
        pass
    tensors, texts = _of_one_file(where)
    version, written = texts.get(_FORMAT_KEY, _FORMAT), texts.pop(_SUMS_KEY, None)
    if version != _FORMAT:
        raise ValueError(f"{where} is of format {version}, from a later fundl; this one reads format {_FORMAT}: update fundl")
    sums = {} if written is None else _sums(where, written, tensors, texts)
    texts.pop(_FORMAT_KEY, None)
    return _File(tensors, texts, sums)


def _of_one_file(where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file that others may replace meanwhile: safetensors opens it more than once."""
    for _ in range(_TRIES):
        before = _identity(where)
        try:
            with safe_open(where, framework="pt") as file:
                names, texts = file.keys(), file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in names}
        except SafetensorError as error:
            if _identity(where) == before:
                raise ValueError(
                    f"{where} is not a safetensors file, or only a part of one ({error}): load what fundl.save wrote"
                ) from error
        else:
            if _identity(where) == before:
                return tensors, texts
    raise OSError(f"{where} is replaced by others again and again while it is read: wait until they are done")


_TRIES: Final = 100


def _identity(where: str) -> tuple[int, ...]:
    found = os.stat(where)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _sums(where: str, written: str, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> Mapping[str, int]:
    """The checksums of a file's tensors, if all but their numbers is as it was saved."""
    try:
        sums = dict(zip(sorted(tensors), (int(number, 16) for number in written.split(" ")[1:]), strict=True))
    except ValueError:
        raise _damaged(where, "its checksums") from None
    if _sums_text(tensors, texts, sums) != written:
        raise _damaged(where, "its metadata, or the names or kinds of its tensors,")
    return sums


def _damaged(path: str | os.PathLike[str], what: str) -> ValueError:
    return ValueError(
        f"{os.path.abspath(path)} is damaged: {what} are not what was saved. Load another copy; if another program has changed"
        f" it on purpose, have that leave {_SUMS_KEY} out of the metadata"
    )
