"""Which way to train with many processes fits into their memory, and what it has them send: found without any of either."""

import itertools
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, final

import attrs
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.checks import require_model
from fundl._common.listed import Listed
from fundl._common.modes import no_grad
from fundl._common.numbers import positive
from fundl._common.running import first_forward
from fundl._common.suggestions import with_suggestions
from fundl._common.tables import size_of, text_of, unit_of
from fundl.distributed._loads import Load
from fundl.distributed._schemes import Asked, data_parallel, divided_moments, in_stages, sharded, split_layers
from fundl.distributed._units import is_block, is_checkpoint, with_units
from fundl.layer import Model
from fundl.optim.adam import adamw
from fundl.optim.chain import AnyTransform
from fundl.optim.transform import require_transform
from fundl.tree import describe
from fundl.weights import count_along

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")


@final
@attrs.frozen
class Scheme(metaclass=Listed):
    """A way to train with many processes, and the bytes that one of them takes; made by `plan`.

    Args:
        name: "data parallel", or the function that divides the model or optimizer: "shard_moments", "shard",
            "tensor_parallel", "stages".
        groups: the names and sizes of the groups of processes, as `grid` takes them.
        checkpointed: whether each block keeps its input alone, and runs forward a second time.
        parameters: of the part of the model that a process has, buffers included.
        gradients: with respect to the parameters that it has.
        moments: what the optimizer remembers of these.
        residuals: what forward keeps for backward; of a pipeline, of all micro-batches at a time.
        peak: the most that is there at any time of a step.
        sent: what a process sends in a step, if sums and gathers go along a ring.
        fits: whether the peak is no more than the memory.
        refusal: why the model cannot be trained so; "" if it can. Then all numbers are 0.
    """

    name: str
    groups: tuple[tuple[str, int], ...]
    checkpointed: bool
    parameters: int
    gradients: int
    moments: int
    residuals: int
    peak: int
    sent: int
    fits: bool
    refusal: str = ""

    @property
    def grid(self) -> str:
        """The groups in words: ``data=4, tensor=8``."""
        return ", ".join(f"{name}={size}" for name, size in self.groups)


@final
@attrs.frozen(repr=False)
class Plan(metaclass=Listed):
    """What each scheme takes; made by `plan`. It is a table when printed, in colour by ``rich.print``.

    Args:
        processes: how many there are.
        rows: of the batch of a step, all processes together.
        memory: what each of them has, in bytes.
        schemes: each without and with checkpoints.
    """

    processes: int
    rows: int
    memory: int
    schemes: tuple[Scheme, ...]

    @property
    def fitting(self) -> tuple[Scheme, ...]:
        """The schemes that fit; first those that run forward once, and of these first what has a process send least."""
        return tuple(sorted((one for one in self.schemes if one.fits), key=lambda one: (one.checkpointed, one.sent)))

    def __rich__(self) -> "Table":
        """The table that rich shows."""
        from rich import box  # noqa: PLC0415  # rich takes its time to load, and few runs of a program show a table
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        unit, name = unit_of(max([one.peak for one in self.schemes if not one.refusal], default=self.memory))
        count = "1 process" if self.processes == 1 else f"{self.processes} processes"
        title = f"{self.rows} rows a step, {count} of {size_of(self.memory)}; what each takes, in {name}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("scheme", style="cyan", overflow="fold", no_wrap=True)
        for heading in ("params", "moments", "grads", "residuals", "peak", "sent"):
            table.add_column(heading, justify="right", overflow="fold", no_wrap=True)
        table.add_column("fits")
        for scheme, ways in itertools.groupby(self.schemes, lambda one: one.name):
            table.add_row(Text(scheme))
            for one in ways:
                sizes = one.parameters, one.moments, one.gradients, one.residuals, one.peak, one.sent
                numbers = ["" if one.refusal else f"{size / unit:,.1f}" for size in sizes]
                fits = Text("yes", "green") if one.fits else Text("no", "red")
                table.add_row(*map(Text, ("    + checkpoint" if one.checkpointed else f"  {one.grid}", *numbers)), fits)
        said = "\n".join(textwrap.shorten(words, _SAID, placeholder=" ...") for words in self._refusals())
        table.caption = Text(said) if said else None
        table.caption_justify = "left"
        return table

    def _refusals(self) -> Iterator[str]:
        """What cannot be, and why; of checkpoints only if they are the reason."""
        known: set[tuple[str, str]] = set()
        for one in self.schemes:
            where = f"{one.name}, {one.grid}"
            if one.refusal and (where, one.refusal) not in known:
                known.add((where, one.refusal))
                yield f"{where}{' + checkpoint' if one.checkpointed else ''}: {one.refusal}"

    @override
    def __repr__(self) -> str:
        return text_of(self.__rich__(), folds=False)


@with_suggestions
def plan(
    model: Model,
    x: object,
    group_sizes: int | Sequence[int],
    *,
    memory: float,
    optimizer: AnyTransform = adamw(1e-3),  # noqa: B008  # a frozen record
    micro_batches: int = 8,
) -> Plan:
    """What training a model takes in each of many processes, scheme by scheme, and which of these fit into their memory.

    Nothing is allocated or computed: the model is divided as the scheme divides it, on the meta device, and runs forward there.

        plan(model, torch.empty(32, 8192, dtype=torch.int64, device="meta"), (4, 8), memory=80e9)

    is of 4 machines with 8 processes each, and a batch of 32 rows for all of them together.

    - "data parallel" is ``train_step(loss, optimizer, over=group)``, of all processes.
    - "shard_moments" is the same, of ``shard_moments(group, optimizer)``.
    - "shard" puts each unit in a `shard` of its own, over all processes, or with ``copies=``, over some of them.
    - "tensor_parallel" splits the layers that it finds, and, of a model of tokens, a last linear map, by `split_output`; the
      step is over the processes that have other rows.
    - "stages" is `pipeline_step` with `one_forward_one_backward`, over such processes too. Blocks of a `repeat` are taken one
      by one. The numbers are those of the stage that needs most.

    The units are the parts of the model's tuple. A tuple of blocks in it is taken apart, and of `repeat` each block is one; so
    is what `mixed_precision`, `tied` or `deferred` have inside, around the whole model. Each scheme is there twice: without any
    `checkpoint`; and with those that the model has, or, if it has none, with one around each unit that is made of several
    layers.

    Params, gradients, moments and residuals are what they will be, to the byte, but for recurrent layers, whose kernels keep
    more than their formula; so is what is sent, but for the few numbers of a loss, and of `batch_norm`. The peak is that of an
    eager step that writes over its state, as those of `fit` do. It is the most of three: after forward, all residuals, and 4
    times the output for a loss such as `cross_entropy`, 8 times for `split_cross_entropy`, or 4 times the logits that
    `chunked_cross_entropy` makes at once; in backward, the residuals that are left, the gradients that are made, and what the
    unit at hand takes; at the end, what is exchanged and updated. For models of linear maps, attention and convolutions, and
    the optimizers that are one kernel (`sgd`, `adam`, `adamw`), it is right to an eighth; what another optimizer takes for its
    update is rather too much. It knows nothing of what other kernels need for themselves, of targets, of memory that lies in
    pieces too small to use, and of compiled steps: leave some free.

    Args:
        model: plain, as one process would train it, with or without values.
        x: an input for it, of the batch of all processes together; on the meta device, it takes no memory. Rows come first.
        group_sizes: how many processes there are along each axis of a grid, those on one machine last; or all of them. What a
            scheme divides among some processes, it divides among those of each axis, of neighbouring axes together, and of all.
        memory: of each process, in bytes.
        optimizer: what is to make the updates.
        micro_batches: in how many a pipeline cuts the rows of each of its processes; or in as many as there are rows.

    Raises:
        TypeError: the model is none, or does not take such an input.
        ValueError: the model is divided already, does not fit the input, or has no parameters; or a number is out of its range.
        RuntimeError: a layer looks at the values of tensors.

    Source:
        Rajbhandari, Rasley, Ruwase and He, ZeRO: memory optimizations toward training trillion parameter models, 2020;
        Korthikanti, Casper, Lym, McAfee, Andersch, Shoeybi and Catanzaro, Reducing activation recomputation in large
        transformer models, 2022.

    >>> import torch
    >>> from fundl import ReLU, compose, linear
    >>> from fundl.distributed import plan
    >>> model = compose(linear(1000, 4000), ReLU(), linear(4000, 1000))
    >>> found = plan(model, torch.empty(64, 1000, device="meta"), 4, memory=100e6)
    >>> [f"{scheme.name}({scheme.grid})" for scheme in found.fitting]
    ['tensor_parallel(data=1, tensor=4)', 'shard(ranks=4)']
    """
    require_model(model)
    require_transform(optimizer)
    positive.require("memory", memory)
    sizes = _sizes(group_sizes)
    if type(micro_batches) is not int or micro_batches < 1:
        raise ValueError(f"plan(..., micro_batches=) is an int of 1 or more, not {micro_batches!r}")
    if tree.holds(tree.is_divided, model):
        raise ValueError("this model is divided among processes already: plan takes the plain one, that unshard gives")
    rows = _rows_of(x)
    plain, batch = _without_values(model), _without_values(x)
    _require_runs(plain, batch, rows)
    optimizer.init(plain)  # and that there is nothing to train
    asked = Asked(plain, batch, rows, optimizer, micro_batches)
    kinds = [False, True] if tree.holds(is_checkpoint, plain) or _has_blocks(plain) else [False]
    schemes = [
        _scheme(name, groups, load, attrs.evolve(asked, again=again), memory)
        for name, groups, load in _ways(sizes)
        for again in kinds
    ]
    return Plan(math.prod(sizes), asked.rows, int(memory), tuple(schemes))


_Way: TypeAlias = tuple[str, tuple[tuple[str, int], ...], Callable[[Asked], Load]]


def _ways(sizes: Sequence[int]) -> Iterator[_Way]:
    """The schemes, their groups, and what finds their bytes."""
    count = math.prod(sizes)
    yield "data parallel", (("data", count),), lambda asked: data_parallel(asked, count)
    if count == 1:
        return
    yield "shard_moments", (("data", count),), lambda asked: divided_moments(asked, count)
    yield "shard", (("ranks", count),), lambda asked: sharded(asked, count, 1)
    parts = _parts(sizes)
    for part in parts[:-1]:
        yield "shard", (("copies", count // part), ("ranks", part)), _with(sharded, part, count // part)
    for part in parts:
        yield "tensor_parallel", (("data", count // part), ("tensor", part)), _with(split_layers, part, count // part)
    for part in parts:
        yield "stages", (("data", count // part), ("pipeline", part)), _with(in_stages, part, count // part)


def _with(load: Callable[[Asked, int, int], Load], part: int, others: int) -> Callable[[Asked], Load]:
    return lambda asked: load(asked, part, others)


def _parts(sizes: Sequence[int]) -> list[int]:
    """How many processes neighbouring axes have together, from the fewest on; all of them last."""
    found = {math.prod(sizes[start:stop]) for start in range(len(sizes)) for stop in range(start + 1, len(sizes) + 1)}
    return sorted(found - {1})


_SAID: Final = 240  # letters, of what may describe a whole model
_NOTHING: Final = Load(0, 0, 0, 0, 0, 0)


def _scheme(
    name: str, groups: tuple[tuple[str, int], ...], load: Callable[[Asked], Load], asked: Asked, memory: float
) -> Scheme:
    try:
        found, refusal = load(asked), ""
    except (TypeError, ValueError) as error:  # of the function that divides: the model itself runs
        found, refusal = _NOTHING, str(error)
    fits = not refusal and found.peak <= memory
    numbers: Mapping[str, int] = attrs.asdict(found)
    return Scheme(name, groups, asked.again, **numbers, fits=fits, refusal=refusal)


def _has_blocks(model: Model) -> bool:
    """Whether a model has a unit that `checkpoint` is for."""
    found: list[bool] = []

    def look(unit: Model, _count: int) -> Model:
        found.append(is_block(unit))
        return unit

    with_units(model, look)
    return any(found)


def _rows_of(x: object) -> int:
    """How many rows an input has, which is made of tensors."""
    leaves: list[object] = [*tree.leaves(x)]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if len(tensors) < len(leaves) or not any(leaf.ndim for leaf in tensors):
        raise TypeError(
            "x is an input for the model, of the whole batch, rows first, such as torch.empty(32, 8192, dtype=torch.int64,"
            f' device="meta"), not {describe(x)}'
        )
    rows = count_along(x, 0)
    if not rows:
        raise ValueError(f"x has the rows of all processes together, but here are none: {describe(x)}")
    return rows


def _require_runs(model: Model, x: object, rows: int) -> None:
    """Raise unless a model runs without values, and gives as many rows as it is given."""
    try:
        with no_grad():
            y = first_forward(model, x)[0]
    except RuntimeError as error:
        error.add_note("plan runs the model on the meta device, where tensors have shapes, and no values to look at")
        raise
    if isinstance(y, Tensor) and y.shape[:1] != (rows,):
        raise ValueError(
            f"what processes divide among them is rows, the first axis of x, but from x, {describe(x)}, the model makes"
            f" {describe(y)}, which has not as many"
        )


def _without_values(values: T) -> T:
    return tree.map(lambda leaf: leaf.to("meta"), values)


def _sizes(group_sizes: object) -> tuple[int, ...]:
    sizes = group_sizes if isinstance(group_sizes, tuple | list) else (group_sizes,)
    if not sizes or any(type(size) is not int for size in sizes):
        raise TypeError(
            "group_sizes is how many processes there are, an int, or how many along each axis of a grid, as in (4, 8), not"
            f" {group_sizes!r}"
        )
    if min(sizes) < 1:
        raise ValueError(f"group_sizes are of 1 process or more, not {group_sizes}")
    return tuple(sizes)
