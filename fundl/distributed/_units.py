"""A model in units, such as blocks, and what each of them keeps, found by a run on the meta device."""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Self, cast, final

import attrs
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.modes import no_grad
from fundl._common.running import named_as, run_forward
from fundl.distributed.sharding import replaced
from fundl.distributed.splitting import TensorParallel, part_of_process
from fundl.distributed.tensor_layers import EmbeddingPart, Joined, Spread, SpreadBoth
from fundl.groups import Group
from fundl.layer import Layer, Model
from fundl.layers._inside import Around, Ts
from fundl.layers._same_shape import SameShape
from fundl.layers.dropout import is_stochastic, rekey
from fundl.layers.mixed_precision import MixedPrecision
from fundl.layers.repeated import Repeat
from fundl.layers.structure import Checkpoint
from fundl.random import key
from fundl.tree import Record

# --- Which units there are ---------------------------------------------------------------------------------------------


def with_units(model: Model, change: Callable[[Model, int], Model]) -> Model:
    """The model in which each unit is what `change` makes of it, and of how many of its kind are stacked: 1 for most.

    Units are the parts of the model's tuple. A tuple of blocks is taken apart, as is a `Repeat`, which has one of its blocks
    for all, and a layer around one.
    """
    return _apart(model, change) if isinstance(model, tuple) else _with_units(model, change, 1)


def _apart(model: tuple[Model, ...], change: Callable[[Model, int], Model], count: int = 1) -> Model:
    return named_as(model, [_with_units(part, change, count) for part in model])


def _with_units(part: Model, change: Callable[[Model, int], Model], count: int) -> Model:
    if isinstance(part, Repeat):
        block = cast("Model", part.blocks[0])
        made = _with_units(block, change, part.count)
        return Repeat(tree.stack([(made,)] * part.count), part.count)
    if isinstance(part, tuple):
        is_stack = any(isinstance(one, tuple) or _is_around_blocks(one) for one in part)
        return _apart(part, change, count) if is_stack else change(part, count)
    if not _is_around_blocks(part):
        return change(part, count)
    changed = {
        name: _apart(inner, change, count)
        for name in part.children
        if isinstance(inner := getattr(part, name), tuple) and tree.holds(_is_repeat, inner)
    }
    return cast("Model", tree.evolved(part, changed))


def _is_repeat(cls: type[Record]) -> bool:
    return issubclass(cls, Repeat)


def _is_around_blocks(layer: object) -> bool:
    """Whether layers inside of a layer are units by themselves."""
    return isinstance(layer, Repeat) or (not isinstance(layer, Checkpoint) and tree.holds(_is_repeat, layer))


def is_block(unit: Model) -> bool:
    """Whether a unit is made of several layers, some with parameters: one for which `checkpoint` is."""
    layers = [record for record in tree.records(unit) if isinstance(record, Layer) and not isinstance(record, TensorParallel)]
    return len(layers) > 1 and bool(tree.trainable_leaves(unit))


def with_checkpoint(unit: Model) -> Model:
    """The unit, which keeps its input alone."""
    return Checkpoint(unit if isinstance(unit, tuple) else (unit,))


def is_checkpoint(cls: type[Record]) -> bool:
    """Whether records of a class keep their input alone."""
    return issubclass(cls, Checkpoint)


def without_checkpoints(model: Model) -> Model:
    """The model that keeps what its layers keep."""
    return cast("Model", replaced(model, _inside_of_checkpoint))


def _inside_of_checkpoint(record: Record) -> object:
    if not isinstance(record, Checkpoint):
        return None
    layers: tuple[Model, ...] = record.layers
    inside = [without_checkpoints(layer) for layer in layers]
    return inside[0] if len(inside) == 1 else tuple(inside)


# --- What they keep ----------------------------------------------------------------------------------------------------


@attrs.frozen
class Unit:
    """What a unit takes in one process, in bytes.

    Args:
        kept: its residuals, but for what a unit before it keeps as well.
        gradients: with respect to its parameters.
        work: parameters that are whole, or cast, while it runs, and their gradients.
        passed: its input, or its output, whichever is larger.
        largest: of what it keeps, the largest tensor.
        again: the residuals of a second run forward, if it is checkpointed.
        stacked: those of the gradients of all blocks, for the first of those that `repeat` stacks.
    """

    kept: int
    gradients: int
    work: int
    passed: int
    largest: int
    again: int = 0
    stacked: int = 0


@attrs.frozen
class Ran:
    """What a run forward tells.

    Args:
        units: in the order in which they ran.
        outside: bytes that are kept by no unit, but by layers around them.
        input: bytes of what came in.
        output: bytes of what came out.
        exchanged: bytes that layers of `tensor_parallel` add up over all processes, forward and backward.
    """

    units: tuple[Unit, ...]
    outside: int
    input: int
    output: int
    exchanged: int

    @property
    def residuals(self) -> int:
        """All bytes that forward keeps."""
        return self.outside + sum(unit.kept for unit in self.units)

    def run_again(self, plain: "Ran") -> "Ran":
        """The same of units that are checkpointed, and keep what those of a plain run do while their backward runs."""
        pairs = zip(self.units, plain.units, strict=True)
        units = [attrs.evolve(unit, again=max(other.kept - unit.kept, 0), largest=other.largest) for unit, other in pairs]
        return attrs.evolve(self, units=tuple(units))


class Log:
    """What the units of a model note as they run."""

    def __init__(self) -> None:
        self.notes: list[tuple[Watched, object, object, object]] = []  # with what came in, what came out, what is kept
        self.exchanged = 0


@final
@attrs.frozen(eq=False)
class Watched(Around[None, object, object], Generic[*Ts]):
    """A unit that notes what runs through it."""

    takes_integers = True

    layers: tuple[*Ts]
    gradients: int
    work: int
    count: int
    log: Log

    @override
    def forward(self, x: object) -> tuple[object, tuple[object, None]]:
        layers: tuple[Model, ...] = cast("tuple[Model, ...]", self.layers)
        y, kept = run_forward(layers, x)
        self.log.notes.append((self, x, y, kept))
        return y, (kept, None)


def watched(unit: Model, log: Log, *, of: Model, count: int, work: int) -> Model:
    """A unit as it runs in one process, which notes its bytes, and those of what the process has `of` it."""
    gradients = sum(leaf.nbytes for leaf in tree.trainable_leaves(of))
    layers = unit if isinstance(unit, tuple) else (unit,)
    return Watched(layers, gradients, work + 2 * _cast_bytes(unit), count, log)


def _cast_bytes(unit: Model) -> int:
    """How much the parameters take that are cast while layers run."""
    found = [record for record in tree.records(unit) if isinstance(record, MixedPrecision)]
    return sum(
        leaf.numel() * record.compute.itemsize
        for record in found
        for leaf in tree.leaves(record.layers)
        if leaf.is_floating_point() and leaf.dtype != record.compute
    )


def run(model: Model, x: object, logs: Sequence[Log], *, copied: bool = False) -> list[Ran]:
    """What a run of a model tells, whose units note what they do in several logs, one after the other.

    What they keep of x takes no memory, unless that is copied for the run.
    """
    if tree.holds(is_stochastic, model):
        model = rekey(model, key(0).to("meta"))
    with no_grad():
        y, residuals = run_forward(model, x)
    there = _storages((model, y) if copied else (model, x, y))
    found: list[Ran] = []
    kept_by_units: set[int] = set()
    for log in logs:
        seen = {*there}
        units = tuple(_units(log, seen))
        kept_by_units |= seen
        first, last = (log.notes[0][1], log.notes[-1][2]) if log.notes else (x, y)
        found.append(Ran(units, 0, tree.nbytes(first), tree.nbytes(last), log.exchanged))
    outside = sum(nbytes for place, nbytes in _storages(residuals).items() if place not in kept_by_units)
    return [attrs.evolve(ran, outside=outside) for ran in found]


def _units(log: Log, seen: set[int]) -> Iterable[Unit]:
    """What each run of a unit keeps that is not seen before; that is seen from now on."""
    stacked = 0
    for unit, x, y, residuals in log.notes:
        kept = {place: nbytes for place, nbytes in _storages(residuals).items() if place not in seen}
        seen |= {*kept}
        passed = max(tree.nbytes(x), tree.nbytes(y))
        is_first = unit.count > 1 and stacked % unit.count == 0
        stacked += unit.count > 1
        own = unit.count * unit.gradients if is_first else 0
        largest = max(kept.values(), default=0)
        yield Unit(sum(kept.values()), unit.gradients, unit.work, passed, largest, stacked=own)


def _storages(values: object) -> dict[int, int]:
    """The memory behind tensors, and its bytes; the tensors are held elsewhere, so that no other takes its place."""
    found = [leaf.untyped_storage() for leaf in tree.leaves(values)]
    return {storage._cdata: storage.nbytes() for storage in found}


# --- What one process has of split layers ------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Noted(SameShape, Layer[None]):
    """In the place of an exchange: it notes how many bytes that would be, and so many times."""

    takes_integers = True

    log: Log
    times: int

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        self.log.exchanged += self.times * tree.nbytes(x)
        return x, None

    @override
    def backward(self, residuals: None, grad: Tensor) -> tuple[Self, Tensor]:
        return self, grad


def as_one_process_runs_it(model: Model, log: Log, *, twice: bool) -> Model:
    """The model with what a process has of layers of `tensor_parallel`, without exchanges, which are noted.

    Those forward are made twice if the layers run a second time.
    """

    def of_process(record: Record) -> object:
        if not isinstance(record, TensorParallel) or record.group.size == 1:
            return None
        return tuple([alone(part) for part in part_of_process(record.layers, record.group, record.parts)])

    def alone(part: object) -> object:
        if isinstance(part, Spread | SpreadBoth):
            return Noted(log, 1)
        if isinstance(part, Joined):
            return Noted(log, 2 if twice else 1)
        return attrs.evolve(part, group=Group("alone", 1, 0)) if isinstance(part, EmbeddingPart) else part

    return cast("Model", replaced(model, of_process))
