"""Trees written to files."""

import os
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import BinaryIO

import torch
from torch import Tensor

from fundl._common.files import atomic_file
from fundl._common.suggestions import with_suggestions
from fundl.saving._choice import Where, chooses
from fundl.saving._header import CODES, header_of
from fundl.saving._numbers import write_numbers
from fundl.saving._structure import Json, described
from fundl.saving._texts import SUMS_KEY, sums_text, texts_of, unknown_sums
from fundl.tree import describe, flatten, holds, is_divided, misplaced_tensors, paths


@with_suggestions
def save(
    path: str | os.PathLike[str], tree: object, *, metadata: Mapping[str, str] | None = None, where: Where | None = None
) -> None:
    """Write the tensors of a tree to a safetensors file, whole or not at all.

    If the disk fills up, the process dies, or the power goes, what the path named before is still there, as it was. Tensors
    that share memory are written one by one; how they lie in memory (strides) is not kept. The same tree makes the same bytes.

    The metadata of the file tell whoever opens it what it holds: ``fundl.tree`` is the structure of the tree as JSON, with its
    containers, the types of its layers and their static fields, ``fundl.version`` the version of fundl that wrote it,
    ``fundl.format`` that of the format, and ``fundl.crc32`` has checksums of all of it. The file of the model below says

        fundl.tree      [{"Linear": {"weight": "float32[25, 2]", "bias": "float32[25]", "weight_init": ..., ...}}, "ReLU", ...]
        fundl.version   0.1.0

    There a tensor is its dtype and shape, None is null, a tuple is a list, and a record has its class and then its fields. A
    list is ``{"list": [...]}``, a dict ``{"dict": {...}}``, and a tensor that layers have in common, where it is met again,
    ``{"same as": "[0].weight"}``.

    Args:
        path: of the file, by custom in ".safetensors"; a file that is there already is replaced, and who may read and write it
            stays as it was.
        tree: a model, an optimizer's state, a `TrainState`, or any other tree of tensors with values.
        metadata: texts to go with it, by name, for `load_metadata` and whoever else reads the file.
        where: what to save, if not all: the path of a part, ``"[3].adapter"``, or a function of a leaf's path and the
            leaf that says whether to save it.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: the file cannot be written.
        TypeError: a leaf is not a tensor, its dtype or layout has no place in the format, or a field holds a tensor that its
            annotation does not mention; the metadata is not all text.
        ValueError: a tensor is on the meta device; two leaves have the same path; layers are divided among processes
            (see `distributed.shard`); a name of the metadata begins with "fundl."; `where` chooses nothing.

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
    content = content_of(tree, metadata or {}, where)
    with ThreadPoolExecutor(1) as worker:
        write(path, content, worker)


Content = tuple[dict[str, Tensor], dict[str, str]]
"""What a file is to hold: the tensors by name, and the metadata."""


def content_of(tree: object, metadata: Mapping[str, str], where: Where | None) -> Content:
    """What is to be written of a tree; raises an error if it cannot be."""
    tensors = _named_tensors(tree, where)
    structure: Json = described(tree)
    return tensors, texts_of(metadata, structure)


def write(path: str | os.PathLike[str], content: Content, worker: Executor | None) -> None:
    """Write a file, whole or not at all; checksums are found by the worker, or if there is none, in between."""
    try:
        with atomic_file(path) as file:
            _write(file, *content, worker)
    except OSError as error:
        if error.errno is None:  # our own words
            raise
        what = f"{error.strerror}: {os.path.abspath(path)} is not written; what was there before is as it was"
        raise type(error)(error.errno, what) from error


def _named_tensors(tree: object, where: Where | None) -> dict[str, Tensor]:
    """The tensors of a tree by path, if all of them can be saved."""
    if misplaced := misplaced_tensors(tree):
        raise TypeError(
            f"{misplaced[0]} holds a tensor, but its annotation mentions none, so it is not a leaf of the tree, and would be"
            " lost: annotate the field as Tensor"
        )
    if holds(is_divided, tree):
        raise ValueError(
            "the tree has layers whose parameters are divided among processes, of which none could write them: save what"
            " unshard(model) of fundl.distributed gives in each process"
        )
    tensors: dict[str, Tensor] = {}
    for name, leaf in zip(paths(tree), flatten(tree)[0], strict=True):
        if leaf is None or not chooses(where, name, leaf):
            continue
        if name in tensors:
            raise ValueError(f"two leaves of the tree have the same path, {name}: give their dict other keys")
        tensors[name] = _saveable(name, leaf)
    if where is not None and not tensors:
        chosen = f"no leaf is in {where!r}" if isinstance(where, str) else "where chooses no leaf"
        raise ValueError(f"there is nothing to save, {chosen}; the tree has {', '.join(paths(tree)[:5])}, ...")
    return tensors


def _saveable(name: str, leaf: object) -> Tensor:
    where = f"at {name}" if name else "the tree"
    if not isinstance(leaf, Tensor):
        raise TypeError(
            f"only tensors can be saved, but {where} is {leaf!r} ({type(leaf).__name__}): make it one, or text in the metadata"
        )
    if leaf.is_meta:
        raise ValueError(f"{where} is {describe(leaf)} without values: save what initialize(key(0), model) returns")
    if leaf.layout != torch.strided or leaf.dtype not in CODES:
        raise TypeError(f"{where} is {describe(leaf)} ({leaf.layout}), which has no place in a safetensors file: convert it")
    return leaf


def _write(file: BinaryIO, tensors: Mapping[str, Tensor], texts: Mapping[str, str], worker: Executor | None) -> None:
    # Numbers are aligned in the file: to that end the widest come first.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    unknown = unknown_sums(len(ordered))
    header = header_of(ordered, {SUMS_KEY: unknown, **texts})
    file.write(header)
    sums = {name: write_numbers(file, tensor, worker) for name, tensor in ordered.items()}
    file.seek(0)
    file.write(header.replace(unknown.encode(), sums_text(ordered, texts, sums).encode(), 1))  # the first text that it has
