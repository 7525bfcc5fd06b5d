"""Files that were changed at random are read as what they were, or refused with a sentence: no crash, no hang, no memory."""

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import torch

from fundl import (
    Dropout,
    ReLU,
    adam,
    batch_norm,
    compose,
    initialize,
    key,
    linear,
    load,
    load_metadata,
    load_model,
    read_idx,
    repeat,
    residual,
    save,
    train_state,
    tree,
)
from tests.mutations import BOUND, header_changed, idx_changed, mutated, outcome, peak, tree_changed

MODEL: Final = initialize(
    key(0), compose(linear(2, 3), batch_norm(3), ReLU(), repeat(2, residual(linear(3, 3), Dropout(0.1))), linear(3, 1))
)
STATE: Final = train_state(key(1), MODEL, adam(0.1))
NUMBERS: Final = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)


def saved(path: Path, what: object) -> bytes:
    save(path, what, metadata={"epochs": "3"})
    return path.read_bytes()


def idx(*, packed: bool) -> bytes:
    content = bytes([0, 0, 0x0D, 3]) + struct.pack(">3I", *NUMBERS.shape) + struct.pack(">24f", *NUMBERS.flatten().tolist())
    return gzip.compress(content, mtime=0) if packed else content


def check_load(path: Path, seed: int, content: bytes) -> None:
    """What is loaded fits, and if the checksums were there, it is what was saved."""
    path.write_bytes(changed := mutated(content, seed, header_changed))
    read = outcome(lambda path: load(path, STATE), path)
    if read is not None and b"fundl.crc32" in changed:
        assert tree.equal(read, STATE)


def check_metadata(path: Path, seed: int, content: bytes) -> None:
    path.write_bytes(changed := mutated(content, seed, header_changed))
    read = outcome(load_metadata, path)
    assert read is None or isinstance(read, dict)
    if read is not None and b"fundl.crc32" in changed:
        assert read == {"epochs": "3"}


def check_model(path: Path, seed: int, content: bytes) -> None:
    path.write_bytes(changed := mutated(content, seed, header_changed))
    read = outcome(load_model, path)
    if read is not None and b"fundl.crc32" in changed:
        assert tree.equal(read, MODEL)
    if read is not None:
        assert len(tree.leaves(read)) < 1000


def check_idx(path: Path, seed: int, content: bytes) -> None:
    path.write_bytes(mutated(content, seed, idx_changed))
    read = outcome(read_idx, path)
    assert read is None or isinstance(read, torch.Tensor)


Check = Callable[[Path, int, bytes], None]


def check_structure(path: Path, seed: int, content: bytes) -> None:
    """What the file says of its tree is changed alone, so that nothing else finds it."""
    path.write_bytes(tree_changed(content, seed))
    read = outcome(load_model, path)
    assert read is None or len(tree.leaves(read)) < 1000


CHECKS: Final[dict[str, tuple[Check, Callable[[Path], bytes], int]]] = {
    "load": (check_load, lambda path: saved(path, STATE), 10_000),
    "load_metadata": (check_metadata, lambda path: saved(path, MODEL), 2_000),
    "load_model": (check_model, lambda path: saved(path, MODEL), 2_000),
    "load_model: what it says": (check_structure, lambda path: saved(path, MODEL), 2_000),
    "read_idx": (check_idx, lambda _: idx(packed=False), 2_000),
    "read_idx: gzipped": (check_idx, lambda _: idx(packed=True), 2_000),
}


ENTRY: Final = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

HEADERS: Final[dict[str, str]] = {
    "nothing": "",
    "no object": "[]",
    "no metadata": '{"__metadata__": []}',
    "metadata that are no text": '{"__metadata__": {"a": 1}}',
    "half a letter in a name": json.dumps({"\ud800": ENTRY}),
    "half a letter in a text": json.dumps({"__metadata__": {"a": "\ud800"}, "a": ENTRY}),
    "half a letter in the tree": json.dumps({"__metadata__": {"fundl.tree": '"\\ud800"'}, "a": ENTRY}),
    "deep": '{"a":' * 100_000,
    "deep lists": "[" * 1_000_000,
    "a deep tree": json.dumps({"__metadata__": {"fundl.tree": "[" * 100_000}, "a": ENTRY}),
    "a tree that is just not too deep": json.dumps({"__metadata__": {"fundl.tree": "[" * 900 + "]" * 900}, "a": ENTRY}),
    "a name twice": f'{{"a": {json.dumps(ENTRY)}, "a": {json.dumps(ENTRY)}}}',
    "no number": '{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}',
    "a long number": '{"a": {"dtype": "F32", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 8]}}',
    "a huge shape": json.dumps({"a": {**ENTRY, "shape": [2**62, 2**62]}}),
    "a huge shape of nothing": json.dumps({"a": {**ENTRY, "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}),
    "a size beyond all": json.dumps({"a": {**ENTRY, "shape": [0, 10**30], "data_offsets": [0, 0]}}),
    "a negative shape": json.dumps({"a": {**ENTRY, "shape": [-1, -2]}}),
    "true for a size": json.dumps({"a": {**ENTRY, "shape": [True, 2]}}),
    "a fraction": json.dumps({"a": {**ENTRY, "shape": [2.0]}}),
    "the end first": json.dumps({"a": {**ENTRY, "data_offsets": [8, 0]}}),
    "three places": json.dumps({"a": {**ENTRY, "data_offsets": [0, 8, 8]}}),
    "a gap": json.dumps({"a": {**ENTRY, "shape": [1], "data_offsets": [4, 8]}}),
    "one over the other": json.dumps({"a": ENTRY, "b": ENTRY}),
    "an unknown dtype": json.dumps({"a": {**ENTRY, "dtype": "F4"}}),
    "a dtype that is none": json.dumps({"a": {**ENTRY, "dtype": ["F32"]}}),
    "more than there is": json.dumps({"a": {**ENTRY, "more": 1}}),
    "too short": json.dumps({"a": {**ENTRY, "shape": [1], "data_offsets": [0, 4]}}),
    "too long": json.dumps({"a": {**ENTRY, "shape": [3], "data_offsets": [0, 12]}}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_cannot_be(tmp_path: Path, name: str) -> None:
    path, written = tmp_path / "changed.bin", HEADERS[name].encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + bytes(8))
    reads: tuple[Callable[[Path], object], ...] = (lambda path: load(path, [torch.zeros(2)]), load_model)
    for read in reads:
        with pytest.raises(ValueError, match=str(path)) as info:
            read(path)
        assert len(str(info.value).encode()) < 1000


@pytest.mark.parametrize("length", [0, 1, 9, 2**31, 2**63, 2**64 - 1])
def test_lengths_that_cannot_be(tmp_path: Path, length: int) -> None:
    path = tmp_path / "changed.bin"
    for content in (length.to_bytes(8, "little"), length.to_bytes(8, "little") + bytes(8), b"", b"\0" * 7):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path} is not a safetensors file, or only a part of one"):
            load_metadata(path)


@pytest.mark.parametrize("name", CHECKS)
def test_a_few_hundred(tmp_path: Path, name: str) -> None:
    sweep(tmp_path, name, range(300))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_all_of_them(tmp_path: Path, name: str) -> None:
    sweep(tmp_path, name, range(CHECKS[name][2]))


def sweep(tmp_path: Path, name: str, seeds: range) -> None:
    check, make, _ = CHECKS[name]
    content = make(tmp_path / "whole")
    before = peak()
    for seed in seeds:
        try:
            check(tmp_path / "changed.bin", seed, content)
        except BaseException as error:
            error.add_note(f"{name}, seed {seed}")
            raise
    assert peak() - before < BOUND + 2 * 10**7
