"""Files that were changed at random are read as what they were, or refused with a sentence: no crash, no hang, no memory."""

import gzip
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
