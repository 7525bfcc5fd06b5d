"""A model in units, such as blocks, and what each of them keeps, found by a run on the meta device."""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Self, cast, final

import attrs
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.modes import no_grad
from fundl._common.running import named_as, run_forward
from fundl.distributed.sharding import Sharded, replaced
from fundl.distributed.splitting import TensorParallel, part_of_process
from fundl.distributed.tensor_layers import EmbeddingPart, Joined, Spread, SpreadBoth
from fundl.groups import Group
from fundl.layer import AnyLayer, Layer, Model
from fundl.layers._convolution import Convolution
from fundl.layers._inside import Around, Ts
from fundl.layers._same_shape import SameShape
from fundl.layers.batch_norm import BatchNorm
from fundl.layers.deferred import Deferred, DeferredLogits
from fundl.layers.dropout import is_stochastic, rekey
from fundl.layers.mixed_precision import MixedPrecision
from fundl.layers.repeated import Repeat
from fundl.layers.structure import Checkpoint
from fundl.layers.tied import Tied
from fundl.losses.chunked import LOGITS_AT_ONCE
from fundl.random import key
from fundl.tree import Divided, Record

# --- Which units there are ---------------------------------------------------------------------------------------------


def with_units(model: Model, change: Callable[[Model, int], Model], *, is_whole: bool = True) -> Model:
    """The model in which each unit is what `change` makes of it, and of how many of its kind are stacked: 1 for most.

    Units are the parts of the model's tuple. A tuple of blocks is taken apart, as is a `Repeat`, which has one of its blocks
    for all, and a layer around one; so is a layer around the whole model.
    """
    parts = model if isinstance(model, tuple) else (model,)
    made = _apart(parts, change, 1, alone=is_whole)
    return made if isinstance(model, tuple) else made[0]


def _apart(
    parts: tuple[Model, ...], change: Callable[[Model, int], Model], count: int, *, alone: bool = False
) -> tuple[Model, ...]:
    return named_as(parts, [_with_units(part, change, count, alone=alone and len(parts) == 1) for part in parts])


def _with_units(part: Model, change: Callable[[Model, int], Model], count: int, *, alone: bool = False) -> Model:
    """The same of a part, which may be all that there is of the model."""
    if isinstance(part, Repeat):
        block = cast("Model", part.blocks[0])
        made = _with_units(block, change, part.count)
        return Repeat(tree.stack([(made,)] * part.count), part.count)
    if isinstance(part, tuple):
        is_stack = any(isinstance(one, tuple) or _is_around_blocks(one) for one in part)
        return _apart(part, change, count, alone=alone) if is_stack else change(part, count)
    if alone and isinstance(part, Deferred):
        return cast("Model", Deferred(_before_last(part.layers, change)))
    inside = _parts_inside(part, alone=alone)
    if not inside:
        return change(part, count)
    changed = {name: _apart(parts, change, count, alone=alone) for name, parts in inside.items()}
    return cast("Model", tree.evolved(part, changed))


def _before_last(parts: tuple[Model, ...], change: Callable[[Model, int], Model]) -> tuple[Model, ...]:
    """The parts of a model whose last map is left to the loss, and is no unit."""
    *before, last = parts
    changed = [_with_units(part, change, 1) for part in before]
    if isinstance(last, tuple):
        return named_as(parts, [*changed, _before_last(last, change)])
    return named_as(parts, [*changed, _with_units(last, change, 1, alone=True) if isinstance(last, Tied) else last])


def _parts_inside(layer: AnyLayer, *, alone: bool) -> dict[str, tuple[Model, ...]]:
    """The fields of a layer whose parts are units: those with a `Repeat`, and the layers inside of a model's only layer."""
    if isinstance(layer, Checkpoint | Divided):
        return {}
    fields = {name: getattr(layer, name) for name in layer.children}
    takes_all = alone and isinstance(layer, MixedPrecision | Tied)
    return {
        name: parts
        for name, parts in fields.items()
        if isinstance(parts, tuple) and (takes_all or tree.holds(_is_repeat, parts))
    }


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
        parameters: those that the process has of it, and that gradients are made of.
        gradients: with respect to these, as backward makes them: in half precision inside of `mixed_precision`.
        rows: of these parameters, as they run, what `shard` gathers.
        work: parameters that are whole, or cast, while it runs, and their gradients; copies that kernels make.
        passed: its input, or its output, whichever is larger.
        largest: of what it keeps, the largest tensor.
        again: the residuals of a second run forward, if it is checkpointed.
        stacked: those of the gradients of all blocks, for the first of those that `repeat` stacks.
    """

    kept: int
    parameters: int
    gradients: int
    rows: int
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
        cast: bytes of the parameters that layers around them cast for all of a pass.
        input: bytes of what came in.
        output: bytes of what came out of the last unit.
        logits: the same, or, of a `deferred` model, bytes of the logits that `chunked_cross_entropy` makes at a time.
        beside: what this has beside them: the gradients of features, in pieces, as one and scaled, and of the map, twice.
        exchanged: bytes that layers of `tensor_parallel` add up over all processes, forward and backward.
    """

    units: tuple[Unit, ...]
    outside: int
    cast: int
    input: int
    output: int
    logits: int
    beside: int
    exchanged: int

    @property
    def residuals(self) -> int:
        """All bytes that forward keeps."""
        return self.outside + sum(unit.kept for unit in self.units)

    def run_again(self, plain: "Ran") -> "Ran":
        """The same of units that are checkpointed, and keep what those of a plain run do while their backward runs."""
        pairs = zip(self.units, plain.units, strict=True)
        units = [
            attrs.evolve(unit, again=max(other.kept - unit.kept, 0), work=other.work, largest=other.largest)
            for unit, other in pairs
        ]
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
    parameters: int
    count: int
    log: Log

    @override
    def forward(self, x: object) -> tuple[object, tuple[object, None]]:
        layers: tuple[Model, ...] = cast("tuple[Model, ...]", self.layers)
        y, kept = run_forward(layers, x)
        self.log.notes.append((self, x, y, kept))
        return y, (kept, None)


def watched(unit: Model, log: Log, count: int) -> Model:
    """A unit as it runs in one process, which notes its bytes."""
    layers = unit if isinstance(unit, tuple) else (unit,)
    return Watched(layers, nbytes_of(tree.trainable_leaves(unit)), count, log)


def _is_watched(cls: type[Record]) -> bool:
    return issubclass(cls, Watched)


def _rows_of(unit: Watched) -> int:
    """The bytes of the rows that a unit gathers."""
    splits = tree.splits_of(unit.layers)
    return nbytes_of([leaf for leaf, split in zip(tree.trainable_leaves(unit.layers), splits, strict=False) if split])


def _work_of(unit: Watched) -> int:
    """The bytes that are whole, or cast, while a unit runs: parameters, and their gradients."""
    gathered = 0
    for record in tree.records(unit.layers):
        if isinstance(record, Sharded):
            whole = tree.trainable_leaves(record.as_whole())
            filled_up = [leaf for leaf in whole if leaf.ndim and leaf.shape[0] % record.group.size]
            gathered += 2 * nbytes_of(whole) + record.group.size * nbytes_of(rows_of_one(filled_up, record.group.size))
    return gathered + 2 * sum(map(_cast_by, tree.records(replaced(unit.layers, _as_whole))))


def _has_copies(cls: type[Record]) -> bool:
    """Whether backward of a layer has as much as input and output again: what kernels lay out anew, or a formula centers."""
    return issubclass(cls, Convolution | BatchNorm)


def _as_whole(record: Record) -> object:
    return record.as_whole() if isinstance(record, Sharded) else None


def _cast_by(record: Record) -> int:
    """How much the parameters take that a layer casts while layers inside of it run."""
    if not isinstance(record, MixedPrecision):
        return 0
    floats = [leaf for leaf in tree.leaves(record.layers) if leaf.is_floating_point() and leaf.dtype != record.compute]
    return sum(leaf.numel() for leaf in floats) * record.compute.itemsize


def run(model: Model, x: object, logs: Sequence[Log], *, copied: bool = False) -> list[Ran]:
    """What a run of a model tells, whose units note what they do in several logs, one after the other.

    What they keep of x takes no memory, unless that is copied for the run.
    """
    if tree.holds(is_stochastic, model):
        model = rekey(model, key(0).to("meta"))
    with no_grad():
        y, residuals = run_forward(model, x)
    there = _storages((model, y) if copied else (model, x, y))
    cast_around = sum(_cast_by(record) for record in tree.records(model) if tree.holds(_is_watched, record))
    found: list[Ran] = []
    kept_by_units: set[int] = set()
    for log in logs:
        seen = {*there}
        units = tuple(_units(log, seen))
        kept_by_units |= seen
        first, last = (log.notes[0][1], log.notes[-1][2]) if log.notes else (x, y)
        logits, beside = _of_loss(y) if isinstance(y, DeferredLogits) else (tree.nbytes(last), 0)
        found.append(Ran(units, 0, cast_around, tree.nbytes(first), tree.nbytes(last), logits, beside, log.exchanged))
    outside = sum(nbytes for place, nbytes in _storages(residuals).items() if place not in kept_by_units)
    return [attrs.evolve(ran, outside=outside) for ran in found]


def _of_loss(y: DeferredLogits) -> tuple[int, int]:
    """The bytes of logits that a loss makes at a time, and of what it has beside them."""
    classes, rows = y.weight.shape[0], y.features[..., 0].numel()
    at_once = min(rows, max(1, LOGITS_AT_ONCE // classes))
    return at_once * classes * y.features.element_size(), 3 * y.features.nbytes + 2 * y.weight.nbytes


def _units(log: Log, seen: set[int]) -> Iterable[Unit]:
    """What each run of a unit keeps that is not seen before; that is seen from now on."""
    stacked = 0
    for unit, x, y, residuals in log.notes:
        kept = {place: nbytes for place, nbytes in _storages(residuals).items() if place not in seen}
        seen |= {*kept}
        passed = max(tree.nbytes(x), tree.nbytes(y))
        is_first = unit.count > 1 and stacked % unit.count == 0
        stacked += unit.count > 1
        largest = max(kept.values(), default=0)
        copied = 2 * max(passed, largest) if tree.holds(_has_copies, unit.layers) else 0
        gradients = nbytes_of(tree.trainable_leaves(unit.layers))
        yield Unit(
            kept=sum(kept.values()),
            parameters=unit.parameters,
            gradients=gradients,
            rows=_rows_of(unit),
            work=_work_of(unit) + copied,
            passed=passed,
            largest=largest,
            stacked=unit.count * gradients if is_first else 0,
        )


def nbytes_of(leaves: Iterable[Tensor]) -> int:
    """The bytes of some tensors."""
    return sum(leaf.nbytes for leaf in leaves)


def rows_of_one(leaves: Sequence[Tensor], processes: int) -> list[Tensor]:
    """Of leaves, but for numbers without axes, what one of so many processes has, filled up so that all have as many rows."""
    return [leaf.new_empty((-(-leaf.shape[0] // processes), *leaf.shape[1:])) for leaf in leaves if leaf.ndim]


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
