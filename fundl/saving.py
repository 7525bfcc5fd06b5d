"""Trees on disk: a model, the state of an optimizer, or that of a whole training run, in a safetensors file.

A file holds the tensors of a tree by name, and nothing else: no code, so reading one runs none, whoever wrote it. Its
tensors are read by every program that knows the format. A tensor's name is its path as `tree.paths` has it, which is what
one writes after the tree to get there: ``[0].weight`` of a model, ``.model[0].weight`` and ``.step`` of a `TrainState`; the
name of a tree that is a tensor itself is empty.

All else (which layers there are, sizes, rates, where None stands) is the program's. So `load` fills a tree, `like`, that
was made as the saved one was. Where their names, shapes and dtypes agree, the tree comes back bit for bit.
"""

import ctypes
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fundl.tree import Record, describe, flatten, misplaced_tensors, paths, unflatten

T = TypeVar("T")

_FORMAT_KEY: Final = "fundl.format"  # by its version, a later fundl can tell what it reads
_FORMAT: Final = "1"


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

    If the disk fills up, or the process dies, what the path named before is still there, as it was. Tensors that share
    memory are written one by one; how they lie in memory (strides) is not kept. The same tree makes the same bytes.

    Args:
        path: of the file, by custom in ".safetensors"; a file that is there already is replaced.
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
    with whole_file(path) as file:
        _write(file, tensors, texts)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to, that takes the place of what is there when all is written.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: the file cannot be written.
    """
    target = Path(os.path.realpath(path))  # what a link leads to is replaced, not the link
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent} to save {target.name} in: make it first, with os.makedirs")
    if target.exists() and not target.is_file():
        raise OSError(f"{target} is a folder or a device, not a file: give the path of a file to save to")
    unfinished = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # first the bytes reach the disk, then the name
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


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
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    entries: dict[str, object] = {"__metadata__": texts}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _CODES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [start, end]}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
    for _, tensor in ordered:
        _write_numbers(file, tensor)


def _write_numbers(file: BinaryIO, tensor: Tensor) -> None:
    """Write the numbers of one tensor, from the first axis to the last."""
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    file.write((ctypes.c_char * dense.nbytes).from_address(dense.data_ptr()))


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
        ValueError: it is not a whole safetensors file, a later fundl wrote it, or it does not fit `like`: the message lists
            every tensor that one of the two lacks, or that is of another shape or dtype in one than in the other.

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
    stored, _ = _read(path)
    if differences := _differences(stored, like):
        raise ValueError(
            f"{os.fspath(path)} does not fit like: make like as the saved tree was made (for its dtypes see tree.cast_to)\n    "
            + "\n    ".join(differences)
        )
    leaves, structure = flatten(like)
    first = next((leaf.device for leaf in leaves if leaf is not None), torch.device("cpu"))
    loaded: list[Tensor | None] = []
    for name, leaf in zip(paths(like), leaves, strict=True):
        target = device or _off_meta(first if leaf is None else leaf.device)
        # What is stored lies in the file itself: a copy is safe from who writes there next, and aligned as tensors are.
        loaded.append(stored[name].to(target, copy=True) if name in stored else None)
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


def _off_meta(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "meta" else device


def _unset_buffers(tree: object, path: str = "", *, in_buffer: bool = False) -> Iterator[str]:
    """Where buffers are None, which is how they are before they are first computed."""
    match tree:
        case None if in_buffer:
            yield path
        case Record():
            for name in tree.children:
                is_buffer = in_buffer or name not in tree.trainable
                yield from _unset_buffers(getattr(tree, name), f"{path}.{name}", in_buffer=is_buffer)
        case tuple() | list():
            fields: Sequence[str] = getattr(tree, "_fields", ())  # of a named tuple
            for index, part in enumerate(tree):
                step = f".{fields[index]}" if fields else f"[{index}]"
                yield from _unset_buffers(part, path + step, in_buffer=in_buffer)
        case dict():
            for key, part in tree.items():
                yield from _unset_buffers(part, f"{path}[{key!r}]", in_buffer=in_buffer)
        case _:
            return


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that were saved to a file with its tensors.

    Args:
        path: of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file; another OSError if it may not be read.
        ValueError: it is not a whole safetensors file, or a later fundl wrote it.

    >>> from tempfile import TemporaryDirectory
    >>> from fundl import load_metadata, save
    >>> with TemporaryDirectory() as folder:
    ...     save(f"{folder}/mean.safetensors", torch.zeros(3), metadata={"of": "the training set"})
    ...     load_metadata(f"{folder}/mean.safetensors")
    {'of': 'the training set'}
    """
    return _read(path)[1]


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, as views of the file, and its metadata."""
    where = os.path.abspath(path)
    if not os.path.isfile(where):
        found = ", only a folder of that name" if os.path.isdir(where) else ""
        raise FileNotFoundError(f"there is no file {where}{found}")
    with open(where, "rb"):  # if it may not be read, this says so: safetensors would say that it is not there
        pass
    try:
        with safe_open(where, framework="pt") as file:
            names, texts = file.keys(), file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(
            f"{where} is not a safetensors file, or only a part of one ({error}): load what fundl.save wrote"
        ) from error
    version = texts.pop(_FORMAT_KEY, _FORMAT)
    if version != _FORMAT:
        raise ValueError(f"{where} is of format {version}, from a later fundl; this one reads format {_FORMAT}: update fundl")
    return tensors, texts
