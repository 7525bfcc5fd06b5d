"""Samples that are not run, or do not agree: a list that must be exact."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import torch

_PINNED: Final = re.search(r"^torch==([\d.]+)", (Path(__file__).parents[2] / "constraints.txt").read_text(), re.MULTILINE)


@attrs.frozen
class Listed:
    """Samples that are not run, or do not agree."""

    message: str
    """What is raised for them, as a regular expression."""
    counts: Mapping[str, int]
    """How many samples of each, in the PyTorch that constraints.txt names; other versions have more or fewer."""
    reason: str


class NotRunError(Exception):
    """A sample asks for something that nothing of fundl's is a counterpart of."""


def outcome(run: Callable[[], None]) -> str | None:
    """What is raised, if anything is."""
    try:
        run()
    except (ValueError, AssertionError, NotRunError) as error:
        return str(error)
    return None


def outcomes(name: str, runs: Sequence[Callable[[], None]]) -> tuple[int, list[tuple[str, str]]]:
    """How many samples of a name agree, and what is raised for the others, beside the name."""
    messages = [outcome(run) for run in runs]
    refused = [(name, message) for message in messages if message is not None]
    print(f"\n{name}: {len(runs) - len(refused)} samples agree, {len(refused)} are listed with their reasons")
    return len(runs) - len(refused), refused


def compare_with_list(refused: Sequence[tuple[str, str]], listed: Sequence[Listed], *, counted: bool | None = None) -> None:
    """Raise unless what is raised for samples, by name, is what is listed.

    Args:
        refused: the name and the message of each.
        listed: the list.
        counted: whether the counts must be those of the list; None for whether this is the PyTorch that was counted in.
            Otherwise there must be at least one of each name that is listed, and known to this PyTorch.
    """
    found: list[Counter[str]] = [Counter() for _ in listed]
    unlisted = []
    for name, message in refused:
        rows = [row for row, entry in enumerate(listed) if re.search(entry.message, message)]
        if len(rows) == 1:
            found[rows[0]][name] += 1
        else:
            unlisted.append(f"{name} in {len(rows)} rows: {message}")
    assert not unlisted, "\n".join(unlisted)
    if is_counted() if counted is None else counted:
        assert [dict(counts) for counts in found] == [dict(entry.counts) for entry in listed]
    else:
        for counts, entry in zip(found, listed, strict=True):
            assert set(counts) <= set(entry.counts), f"{set(counts) - set(entry.counts)}: {entry.message}"


def is_counted() -> bool:
    """Whether this is the PyTorch whose samples were counted."""
    return _PINNED is not None and torch.__version__.split("+")[0] == _PINNED[1]


def only(name: str, listed: Sequence[Listed]) -> list[Listed]:
    """The rows of a list, with what they say of one name."""
    return [attrs.evolve(entry, counts={key: count for key, count in entry.counts.items() if key == name}) for entry in listed]
