"""Trees filled from files."""

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Generic, Literal, NamedTuple, TypeVar, final, overload

import attrs
import torch
from torch import Tensor

from fundl._common.listed import Listed
from fundl._common.suggestions import with_suggestions
from fundl.saving._choice import Where, chooses
from fundl.saving._company import Outcome, company_of
from fundl.saving._file import File, Wanted, opened
from fundl.saving._names import Rename, Source, changed, renamed
from fundl.saving._numbers import part_of
from fundl.saving._pieces import sum_of_remainder
from fundl.saving._structure import described, differences
from fundl.saving._texts import SUMS_KEY, structure_of, users
from fundl.tree import Piece, Record, describe, flatten, parts, paths, unflatten, whole_and_pieces

T = TypeVar("T")


@final
@attrs.frozen
class Unmatched(metaclass=Listed):
    """What a file and a tree do not have in common: what `load` gives beside the tree if it is not strict.

    Args:
        missing: paths of leaves that the file has nothing for.
        unexpected: names of tensors of the file that belong to no leaf.
        different: where both have a tensor, but of another shape or dtype: a sentence for each.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    different: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.missing or self.unexpected or self.different)


@overload
def load(
    path: str | os.PathLike[str],
    like: T,
    *,
    device: torch.device | str | None = None,
    rename: Rename | None = None,
    where: Where | None = None,
    strict: Literal[True] = True,
) -> T: ...


@overload
def load(
    path: str | os.PathLike[str],
    like: T,
    *,
    device: torch.device | str | None = None,
    rename: Rename | None = None,
    where: Where | None = None,
    strict: Literal[False],
) -> tuple[T, Unmatched]: ...


@with_suggestions
def load(
    path: str | os.PathLike[str],
    like: T,
    *,
    device: torch.device | str | None = None,
    rename: Rename | None = None,
    where: Where | None = None,
    strict: bool = True,
) -> T | tuple[T, Unmatched]:
    r"""The tree that was saved to a file, bit for bit.

    What is divided among processes in `like`, as by `distributed.shard`, they load together; each reads what it has of it.

    Args:
        path: of a file that `save` wrote, or any other safetensors file.
        like: a tree to fill, made as the saved one was. Its values are not looked at: it may be on the meta device, as
            ``compose(linear(2, 25), ReLU(), linear(25, 2))`` is. A buffer that is None in it, and has a value in the
            file, such as a calibrated mean, gets that value.
        device: where the tensors go; by default to where those of `like` are, and from the meta device to the CPU.
        rename: where the tensors of another program's file belong, as below: a map from their names to paths, or a function.
        where: what to load, if not all: the path of a part, or a function of a leaf's path and the tensor in the file (or
            the leaf, if there is none) that says whether to load it. All else stays as it is in `like`, and the file may lack
            it or have more.
        strict: whether the file must have all leaves of the tree, and nothing else. If not, what fits is loaded, all else stays
            as it is in `like`, and what did not fit is given back, too.

    Returns:
        A new tree, whose loaded tensors share no memory with each other, nor with the file; or if it is not strict, the
        tree and `Unmatched`.

    Raises:
        FileNotFoundError: there is no such file; another OSError if it may not be read.
        ValueError: it is not a whole safetensors file, a later fundl wrote it, its numbers are not those that were saved, or it
            does not fit `like`: the message lists every tensor that one of the two lacks, or that is of another shape or dtype
            in one than in the other, and where they are made of other layers.

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

    The map of a file of another program has names, in which a star stands for some text without dots, or compiled regular
    expressions for whole names; the first that fits counts. It leads to a path, where a star stands for what the star in the
    same place of the name did (``\1`` for what a group of the expression did); to a path and a function that changes the
    tensor; or to None, for a tensor to leave out. A path may end with the place of a block in what `repeat` has stacked:
    with ``"h.*.attn.c_proj.weight": ("[1].stacked[0].layers[1].out_weight[*]", torch.t)`` the blocks of GPT-2 are stacked, and
    their weights transposed. What the map does not have keeps its name.

    >>> import re, torch
    >>> from fundl import compose
    >>> like = compose(linear(2, 3, bias=False), linear(3, 1, bias=False))
    >>> with TemporaryDirectory() as folder:
    ...     save(f"{folder}/other.safetensors", {"w": torch.ones(2, 3), "out": torch.ones(1, 3), "mask": torch.ones(1)})
    ...     names = {"['w']": ("[0].weight", torch.t), re.compile(r"\['(out)'\]"): "[1].weight"}
    ...     model, rest = load(f"{folder}/other.safetensors", like, rename=names, strict=False)
    >>> model[0].weight.shape, rest.unexpected
    (torch.Size([3, 2]), ("['mask']",))
    """
    whole, pieces = whole_and_pieces(like)
    company = company_of(pieces)
    with contextlib.ExitStack() as stack:
        found: list[_Found[T]] = []
        parts_of: dict[str, Piece] = {}

        def share() -> Outcome:
            file = stack.enter_context(opened(path))
            plan = _plan(whole, pieces, renamed(file.tensors, rename), where)
            parts_of.update({one.name: its for part, its in zip(plan.parts, pieces, strict=True) for one in part.sources})
            if strict and plan.unmatched:
                raise ValueError("\n    ".join(_misfit(file, whole, plan)))
            loaded, remainders = _filled(file, like, pieces, plan, device)
            found.append(_Found(file, plan, loaded))
            return Outcome(f"{os.path.basename(path)} {file.texts.get(SUMS_KEY)}", numbers=remainders)

        outcome = share() if company is None else company.agree(share, parts_of)
        file, plan, loaded = found[0]
        file.require_saved({name: sum_of_remainder(one, file.tensors[name].nbytes) for name, one in outcome.numbers.items()})
    return loaded if strict else (loaded, plan.unmatched)


class _Found(NamedTuple, Generic[T]):
    file: File
    plan: "_Plan"
    tree: T


@with_suggestions
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
    with opened(path) as file:
        return users(file.texts)


# --- What goes where --------------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """A leaf of the tree, what the file has for it, whole or row by row, and whether that is to be loaded, and can be.

    Of one that is not here, but with other processes, these find whether it can be.
    """

    path: str
    leaf: Tensor | None
    given: Tensor | None
    rows: Mapping[int | None, Source]
    is_chosen: bool
    fits: bool

    @property
    def sources(self) -> list[Source]:
        """What is to be read for the leaf; nothing if it stays as it is."""
        return [source for _, source in sorted(self.rows.items())] if self.is_chosen and self.fits else []

    @property
    def is_as_it_is(self) -> bool:
        """Whether it is what one tensor of the file is, unchanged."""
        return None in self.rows and self.rows[None].change is None

    @property
    def line(self) -> str:
        """How the leaf does not fit."""
        if self.given is None and self.rows:
            return f"at {self.path or 'its root'}, the file has only some of its rows, not {', '.join(self.missing()[:5])}"
        return f"at {self.path or 'its root'}, the file has {_words(self.given)}, and like has {_words(self.leaf)}"

    def missing(self) -> list[str]:
        """What the file lacks, if it lacks something."""
        if self.fits or self.given is not None:
            return []
        count = len(self.leaf) if self.leaf is not None and self.rows else 0
        return [f"{self.path}[{row}]" for row in range(count) if row not in self.rows] or [self.path]


class _Plan(NamedTuple):
    """What of a file goes to each leaf, in order, and the tensors of the file that belong to none."""

    parts: Sequence[_Part]
    unexpected: Sequence[str]

    @property
    def misfits(self) -> list[_Part]:
        return [part for part in self.parts if part.is_chosen and not part.fits]

    @property
    def unmatched(self) -> Unmatched:
        lacking = [name for part in self.misfits for name in part.missing()]
        surplus = [part.rows[None].name for part in self.misfits if part.leaf is None]
        different = [part.line for part in self.misfits if part.leaf is not None and part.given is not None]
        return Unmatched(tuple(lacking), tuple(sorted((*self.unexpected, *surplus))), tuple(different))


def _plan(like: object, pieces: Sequence[Piece], sources: Mapping[str, Source], where: Where | None) -> _Plan:
    leaves, unset = dict(zip(paths(like), flatten(like)[0], strict=True)), {*_unset_buffers(like)}
    rows, unexpected = _sorted(sources, leaves)
    planned = [
        _part(path, leaf, rows.get(path, {}), where, is_unset=path in unset, is_here=piece.is_here)
        for (path, leaf), piece in zip(leaves.items(), pieces, strict=True)
    ]
    if where is not None and not any(part.is_chosen for part in planned):
        chosen = f"no leaf of like is in {where!r}" if isinstance(where, str) else "where chooses no leaf of like"
        raise ValueError(f"there is nothing to load, {chosen}; it has {', '.join([*leaves][:5])}, ...")
    return _Plan(planned, unexpected if where is None else ())


def _sorted(
    sources: Mapping[str, Source], leaves: Mapping[str, Tensor | None]
) -> tuple[Mapping[str, Mapping[int | None, Source]], Sequence[str]]:
    """What of a file is a leaf (at None), or a row of one, and the names of all else."""
    found: dict[str, dict[int | None, Source]] = {}
    unexpected: list[str] = []
    for path, source in sources.items():
        row = re.fullmatch(r"(.*)\[(\d{1,9})\]", path, re.DOTALL)
        stacked = None if row is None else leaves.get(row[1])
        if path in leaves:
            found.setdefault(path, {})[None] = source
        elif row is not None and isinstance(stacked, Tensor) and int(row[2]) < (*stacked.shape, 0)[0]:
            found.setdefault(row[1], {})[int(row[2])] = source
        else:
            unexpected.append(source.name)
    for path, rows in found.items():
        if len(rows) > 1 and None in rows:
            raise ValueError(f"{path} is to be loaded both as a whole and row by row: let rename say one of the two")
    return found, unexpected


def _part(
    path: str,
    leaf: Tensor | None,
    rows: Mapping[int | None, Source],
    where: Where | None,
    *,
    is_unset: bool,
    is_here: bool,
) -> _Part:
    given = rows[None].like if None in rows else _of_rows(leaf, [row.like for row in rows.values()])
    seen = leaf if given is None else given
    fits = not is_here or describe(given) == describe(leaf) or (given is not None and is_unset)
    return _Part(path, leaf, given, rows, seen is not None and chooses(where, path, seen), fits)


def _of_rows(leaf: Tensor | None, rows: Sequence[Tensor]) -> Tensor | None:
    """What rows of a file make of a leaf; None if there are not all."""
    if leaf is None or not rows or len(rows) < len(leaf):
        return None
    wrong = [row for row in rows if (row.dtype, row.shape) != (leaf.dtype, leaf.shape[1:])]
    return wrong[0] if wrong else leaf


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


def _misfit(file: File, like: object, plan: _Plan) -> Iterator[str]:
    """How a file does not fit a tree, line by line."""
    yield f"{file.where} does not fit like: make like as the saved tree was made (for its dtypes see tree.cast_to)"
    yield from (part.line for part in plan.misfits)
    for name in sorted(plan.unexpected):
        yield f"at {name or 'its root'}, the file has {describe(file.tensors[name])}, and like has nothing"
    if (structure := structure_of(file.texts, file.where)) is not None:
        for difference in itertools.islice(differences(structure, described(like)), _MOST):
            yield f"what they are made of: {difference}"


_MOST: Final = 10  # differences of structure, which are told beside those of the tensors


def _filled(
    file: File, like: T, pieces: Sequence[Piece], plan: _Plan, device: torch.device | str | None
) -> tuple[T, dict[str, int]]:
    """The tree, with the tensors that the plan has from the file; and the remainders of those that are parts."""
    leaves, structure = flatten(like)
    first = next((leaf.device for leaf in leaves if leaf is not None), torch.device("cpu"))
    wanted: list[Wanted] = []
    others: list[str] = []
    here = [(part, piece) for part, piece in zip(plan.parts, pieces, strict=True) if piece.is_here]
    for part, piece in zip(plan.parts, pieces, strict=True):
        own = piece.own
        home = first if own is None else own.device
        target = torch.device(device or ("cpu" if home.type == "meta" else home))
        if not piece.is_here:
            others += [source.name for source in part.sources] if piece.cuts and part.is_as_it_is else []
        elif own is not None and piece.cuts and part.is_as_it_is:
            wanted += [Wanted(source.name, target, own, piece.cuts) for source in part.sources]
        else:
            wanted += [Wanted(source.name, target) for source in part.sources]
    read, remainders = file.read_parts(wanted)
    numbers = iter(read)
    made = [_leaf(part, piece, numbers) for part, piece in here]
    return unflatten(structure, made), {**dict.fromkeys(others, 0), **remainders}


def _leaf(part: _Part, piece: Piece, numbers: Iterator[Tensor]) -> Tensor | None:
    """The leaf, made of as many of the tensors that were read as it has sources."""
    made = [changed(source, next(numbers)) for source in part.sources]
    if not made:
        return piece.own
    whole = made[0] if None in part.rows else torch.stack(made)
    own = piece.own
    return whole if own is None or not piece.cuts or part.is_as_it_is else part_of(whole, own, piece.cuts)
