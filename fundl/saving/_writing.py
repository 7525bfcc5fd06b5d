"""Trees written to files."""

import contextlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from io import FileIO
from typing import BinaryIO, NamedTuple

import attrs
import torch
from torch import Tensor

from fundl._common.files import atomic_file, replacing_file
from fundl._common.suggestions import with_suggestions
from fundl.saving._choice import Where, chooses
from fundl.saving._company import Company, Outcome, company_of
from fundl.saving._header import CODES, DTYPES, header_of
from fundl.saving._numbers import write_numbers, write_part
from fundl.saving._pieces import sum_of_remainder
from fundl.saving._structure import described
from fundl.saving._texts import SUMS_KEY, sums_text, texts_of, unknown_sums
from fundl.tree import Piece, describe, flatten, misplaced_tensors, paths, unflatten, whole_and_pieces


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

    Of what is divided among processes, as by `distributed.shard` or `distributed.stages`, all of them save together, into one
    file: each writes what it has, and names and shapes are those of the tree that is not divided. If one of them fails, all
    raise an error.

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
        ValueError: a tensor is on the meta device; two leaves have the same path; a name of the metadata begins with "fundl.";
            `where` chooses nothing; processes that save together do not save the same tree.
        RuntimeError: the processes among which the tree is divided are not up.

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


class Content(NamedTuple):
    """What a file is to hold: the tensors by name, as they are there, and the metadata.

    Of each tensor there are the numbers that this process has, if it has any, and what these are of it; and, where that is not
    all, the processes that write together.
    """

    wholes: dict[str, Tensor]
    tensors: dict[str, Tensor]
    pieces: dict[str, Piece]
    texts: dict[str, str]
    company: Company | None


def content_of(tree: object, metadata: Mapping[str, str], where: Where | None) -> Content:
    """What is to be written of a tree; raises an error if it cannot be. Processes that have parts of it all ask together."""
    if misplaced := misplaced_tensors(tree):
        raise TypeError(
            f"{misplaced[0]} holds a tensor, but its annotation mentions none, so it is not a leaf of the tree, and would be"
            " lost: annotate the field as Tensor"
        )
    whole, pieces = whole_and_pieces(tree)
    company = company_of(pieces)
    try:
        if company is not None and not all(piece.is_here for piece in pieces):
            whole = _as_others_have_it(whole, pieces, company)
        content = _content(whole, pieces, where)
        return Content(*content, texts_of(metadata, described(whole)), company)
    except BaseException:
        if company is not None:
            company.leave()
        raise


def _as_others_have_it(whole: object, pieces: Sequence[Piece], company: Company) -> object:
    """The whole, whose leaves that are not here are as others say that they are: what was known of them may be older."""
    leaves, structure = flatten(whole)
    names = paths(whole)
    rows = [*zip(names, leaves, pieces, strict=True)]
    mine = {name: _kind(leaf) for name, leaf, piece in rows if piece.held is not None and piece.held.is_given_here}
    told = company.agree(lambda: Outcome(texts=mine)).texts
    if unknown := [name for name, _, piece in rows if not piece.is_here and name not in told]:
        raise ValueError(
            f"the process that has {unknown[0]} has other layers now than were given to stages(group, model): put the model"
            " together by unstage, change it, and give it to stages again"
        )
    return unflatten(structure, [leaf if piece.is_here else _of_kind(told[name]) for name, leaf, piece in rows])


def _kind(leaf: Tensor | None) -> str:
    return json.dumps(None if leaf is None else [CODES.get(leaf.dtype, "F32"), *leaf.shape])


def _of_kind(text: str) -> Tensor | None:
    kind = json.loads(text)
    return None if kind is None else torch.empty(kind[1:], dtype=DTYPES[kind[0]], device="meta")


def _content(
    whole: object, pieces: Sequence[Piece], where: Where | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Piece]]:
    """The tensors as wholes, those of this process, and what it has of each, by their names."""
    wholes, tensors, parts = dict[str, Tensor](), dict[str, Tensor](), dict[str, Piece]()
    for name, leaf, piece in zip(paths(whole), flatten(whole)[0], pieces, strict=True):
        if leaf is None or not chooses(where, name, leaf):
            continue
        if name in wholes:
            raise ValueError(f"two leaves of the tree have the same path, {name}: give their dict other keys")
        if piece.is_here:
            tensors[name] = _saveable(name, piece.own)
        wholes[name], parts[name] = leaf, attrs.evolve(piece, own=None)  # of which a snapshot may be taken
    if where is not None and not wholes:
        chosen = f"no leaf is in {where!r}" if isinstance(where, str) else "where chooses no leaf"
        raise ValueError(f"there is nothing to save, {chosen}; the tree has {', '.join(paths(whole)[:5])}, ...")
    return wholes, tensors, parts


def write(path: str | os.PathLike[str], content: Content, worker: Executor | None) -> None:
    """Write a file, whole or not at all; checksums are found by the worker, or if there is none, in between."""
    try:
        if content.company is not None:
            write_together(path, content, content.company)
            return
        with atomic_file(path) as file:
            _write(file, content, worker)
    except OSError as error:
        if error.errno is None:  # our own words
            raise
        what = f"{error.strerror}: {os.path.abspath(path)} is not written; what was there before is as it was"
        raise type(error)(error.errno, what) from error


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


def _in_order(content: Content) -> dict[str, Tensor]:
    """The tensors as they follow each other in the file: to be aligned there, the widest come first."""
    return dict(sorted(content.wholes.items(), key=lambda item: -item[1].element_size()))


def _write(file: BinaryIO, content: Content, worker: Executor | None) -> None:
    ordered = _in_order(content)
    unknown = unknown_sums(len(ordered))
    header = header_of(ordered, {SUMS_KEY: unknown, **content.texts})
    file.write(header)
    sums = {name: write_numbers(file, content.tensors[name], worker) for name in ordered}
    file.seek(0)
    file.write(_known(header, unknown, sums_text(ordered, content.texts, sums)))


def _known(header: bytes, unknown: str, sums: str) -> bytes:
    return header.replace(unknown.encode(), sums.encode(), 1)  # the first text that it has


# --- By many processes -------------------------------------------------------------------------------------------------


def write_together(path: str | os.PathLike[str], content: Content, company: Company) -> None:
    """Write a file of which each process has parts: all write to one, and the first gives it its name once all is there."""
    ordered = _in_order(content)
    unknown = unknown_sums(len(ordered))
    header = header_of(ordered, {SUMS_KEY: unknown, **content.texts})
    digest = f"{os.path.basename(path)} {zlib.crc32(header_of(ordered, {})):08x}"
    with contextlib.ExitStack() as stack:
        file: list[BinaryIO] = []

        def begin() -> Outcome:
            if not company.is_first:
                return Outcome(digest)
            opened, unfinished = stack.enter_context(replacing_file(path))
            file.append(opened)
            opened.write(header)
            opened.truncate(len(header) + sum(leaf.nbytes for leaf in ordered.values()))
            opened.flush()
            return Outcome(digest, f"{len(header)} {unfinished.name}")

        start, _, name = company.agree(begin).said.partition(" ")  # metadata are those of the first
        shared = os.path.join(os.path.dirname(os.path.realpath(path)), name)
        parts = company.agree(
            lambda: Outcome(digest, numbers=_write_parts(shared, int(start), ordered, content, company)), content.pieces
        )
        sums = {name: sum_of_remainder(number, ordered[name].nbytes) for name, number in parts.numbers.items()}

        def end() -> Outcome:
            if company.is_first:
                file[0].seek(0)
                file[0].write(_known(header, unknown, sums_text(ordered, content.texts, sums)))
                stack.close()
            return Outcome(digest)

        company.agree(end)


def _write_parts(path: str, start: int, ordered: Mapping[str, Tensor], content: Content, company: Company) -> dict[str, int]:
    """Write what this process has to a file that is there: of what several have, one does. Returns the remainders."""
    remainders: dict[str, int] = {}
    with _opened(path) as file:
        for number, (name, whole) in enumerate(ordered.items()):
            piece, remainders[name] = content.pieces[name], 0
            if name in content.tensors and (piece.held is None or piece.held.is_given_here):
                place = file if company.writes(piece, number) else None
                remainders[name] = write_part(place, start, content.tensors[name], whole, piece.cuts)
            start += whole.nbytes
        os.fsync(file.fileno())
    return remainders


def _opened(path: str) -> FileIO:
    try:
        return open(path, "r+b", buffering=0)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the file that another process has begun is not in {os.path.dirname(path)}, as this one sees it: save to a folder"
            " that all of them share"
        ) from error
