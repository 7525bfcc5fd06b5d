"""Processes that save or load a tree together, of which each has parts: how they agree that all is well, or nothing is done.

Each of them does its share of a stage and then tells what came of it. If one of them failed, all of them raise an error.
"""

import functools
import json
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import attrs

from fundl.tree import Division, Piece, Talk, whole_and_pieces

T = TypeVar("T")


@attrs.frozen
class Outcome:
    """What came of a process's share.

    Args:
        digest: of what is done, the same in all of them.
        said: by the first process to all others.
        numbers: by names, to be put together: those of parts by exclusive or, all others are the same.
        texts: by names, of which each process knows some.
        error: what went wrong, if anything did.
    """

    digest: str = ""
    said: str = ""
    numbers: Mapping[str, int] = attrs.field(factory=dict)
    texts: Mapping[str, str] = attrs.field(factory=dict)
    error: str | None = None


class Company:
    """The processes among which leaves are divided, along each axis of their grid.

    Args:
        along: those along each axis, in an order that is the same in all of them.
    """

    def __init__(self, along: Sequence[Division]) -> None:
        self._along = along
        self._talks: list[Talk] = [among.talk() for among in along]

    @property
    def is_first(self) -> bool:
        """Whether this process does what only one does."""
        return not any(among.rank for among in self._along)

    def writes(self, piece: Piece, number: int) -> bool:
        """Whether this process writes what it has of a leaf: of those that have the same, one does, another for each number."""
        others = [among for among in self._along if among not in piece.among]
        place = functools.reduce(lambda place, among: place * among.size + among.rank, others, 0)
        return place == number % math.prod(among.size for among in others)

    def agree(self, share: Callable[[], Outcome], pieces: Mapping[str, Piece] = {}) -> Outcome:  # which is only read
        """Do the share of this process, and find what came of those of all.

        Args:
            share: what this process does.
            pieces: of the leaves that the outcome has numbers for.

        Raises:
            BaseException: that of the share.
            OSError: another process could not do its share; the message has its reason.
            ValueError: they do not do the same, or leaves that are whole in each of them differ.
        """
        failure: BaseException | None = None
        try:
            outcome = share()
        except BaseException as error:
            failure, outcome = error, Outcome(error=f"{type(error).__name__}: {error}")
        try:
            for among, talk in zip(self._along, self._talks, strict=True):
                together = functools.partial(_together, among, pieces)
                outcome = _read(talk.told(json.dumps(attrs.asdict(outcome)), together))
        except BaseException as error:
            self.leave()
            if failure is None:
                raise
            failure.add_note(f"besides, the other processes could not be told: {error}")
        if failure is not None:
            raise failure
        if outcome.error is not None:
            raise (ValueError if outcome.error.startswith("ValueError: ") else OSError)(outcome.error.partition(": ")[2])
        return outcome

    def leave(self) -> None:
        """Have nobody wait for this process."""
        for talk in self._talks:
            talk.leave()


def _together(among: Division, pieces: Mapping[str, Piece], texts: Sequence[str]) -> str:
    outcomes = [_read(text) for text in texts]
    return json.dumps(attrs.asdict(_all(among, pieces, outcomes)))


def _all(among: Division, pieces: Mapping[str, Piece], outcomes: Sequence[Outcome]) -> Outcome:
    """What came of all along an axis."""
    for rank, outcome in enumerate(outcomes):
        if outcome.error is not None:
            kind, _, what = outcome.error.partition(": ")
            where = "" if what.startswith("in process ") else f"in process {rank} of {among.size}, "
            return Outcome(error=f"{kind}: {where}{what}")
    if len({(outcome.digest, *sorted(outcome.numbers)) for outcome in outcomes}) > 1:
        return Outcome(error="ValueError: the processes do not save or load the same tree, at the same path")
    numbers = {name: [outcome.numbers[name] for outcome in outcomes] for name in outcomes[0].numbers}
    for name, each in numbers.items():
        if among not in pieces[name].among and len({*each}) > 1:
            return Outcome(
                error=f"ValueError: {name or 'the root'} is whole in each of {among.size} processes, and not the same in"
                " all of them: let each compute it of the same numbers, or take that of one, by broadcast of fundl.distributed"
            )
    put = {
        name: functools.reduce(operator.xor, each) if among in pieces[name].among else each[0] for name, each in numbers.items()
    }
    told = {name: text for outcome in reversed(outcomes) for name, text in outcome.texts.items()}
    return Outcome(outcomes[0].digest, "".join({outcome.said for outcome in outcomes}), put, told)


def first_with(tree: object, rank: int) -> int:
    """The rank of the first of those processes that have a tree together; this one's, where it has all. They ask together."""
    company = company_of(whole_and_pieces(tree)[1])
    if company is None:
        return rank
    return int(company.agree(lambda: Outcome(said=str(rank) if company.is_first else "")).said)


def company_of(pieces: Iterable[Piece]) -> Company | None:
    """The processes that have parts of leaves; None where one process has all."""
    along = [*dict.fromkeys(among for piece in pieces for among in piece.among if among.size > 1)]
    return Company(along) if along else None


def _read(text: str) -> Outcome:
    told = json.loads(text)
    return Outcome(told["digest"], told["said"], told["numbers"], told["texts"], told["error"])
