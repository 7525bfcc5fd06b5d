"""What each way to train with many processes takes in one of them.

The library's own functions divide the model, without values, and a run of what a process has of it tells the rest.
"""

from collections.abc import Callable, Sequence

import attrs
import torch

from fundl import tree
from fundl.distributed._loads import (
    LOSS,
    SPLIT_LOSS,
    Load,
    most_in_divided_update,
    most_in_early_sum,
    most_in_passes,
    most_in_sum,
    most_in_update,
    sent_in_gather,
    sent_in_sum,
    widened,
)
from fundl.distributed._units import (
    Log,
    Ran,
    as_one_process_runs_it,
    is_block,
    is_checkpoint,
    nbytes_of,
    rows_of_one,
    run,
    watched,
    with_checkpoint,
    with_units,
    without_checkpoints,
)
from fundl.distributed.moments import ShardMoments
from fundl.distributed.sharding import shard
from fundl.distributed.splitting import TensorParallel, split_output, tensor_parallel
from fundl.distributed.staging import require_no_batch_statistics, stages
from fundl.groups import Group
from fundl.layer import Model
from fundl.layers.embedding import Embedding
from fundl.layers.linear import Linear
from fundl.layers.repeated import Repeat
from fundl.optim.chain import AnyTransform
from fundl.tree import Record


@attrs.frozen(eq=False)
class Asked:
    """What a plan is made for.

    Args:
        model: on the meta device.
        x: the input of the whole batch, likewise.
        rows: how many that has.
        optimizer: whose moments are kept.
        micro_batches: in how many a pipeline cuts the rows that it is given.
        again: whether blocks are checkpointed, and run forward a second time.
    """

    model: Model
    x: object
    rows: int
    optimizer: AnyTransform
    micro_batches: int
    again: bool = False

    def rows_of(self, processes: int) -> int:
        """How many rows each of so many processes has; the last may have fewer."""
        return max(-(-self.rows // processes), 1)

    def x_of(self, rows: int) -> object:
        """An input of so many rows."""
        return tree.map(
            lambda leaf: leaf.new_empty((rows, *leaf.shape[1:])) if leaf.shape[:1] == (self.rows,) else leaf, self.x
        )

    def unit(self, unit: Model) -> Model:
        """A unit that is checkpointed, if it is to be: where the model says which are, as it says, else each block."""
        if not self.again:
            return without_checkpoints(unit)
        return unit if tree.holds(is_checkpoint, self.model) or not is_block(unit) else with_checkpoint(unit)


# --- Schemes -----------------------------------------------------------------------------------------------------------


def data_parallel(asked: Asked, processes: int) -> Load:
    """A step over so many processes, each of which has the whole model."""
    ran, leaves = ran_forward(asked, asked.rows_of(processes)), tree.trainable_leaves(asked.model)
    exchange = most_in_early_sum(leaves) if processes > 1 else 0
    return _load(asked.model, asked.optimizer, ran, exchange, sent=sent_in_sum(nbytes_of(leaves), processes))


def divided_moments(asked: Asked, processes: int) -> Load:
    """The same, with `shard_moments`."""
    ran, leaves = ran_forward(asked, asked.rows_of(processes)), tree.trainable_leaves(asked.model)
    optimizer = ShardMoments(Group("all", processes, 0), asked.optimizer, torch.tensor(0))
    parameters, moments = tree.nbytes(asked.model), tree.nbytes(optimizer.init(asked.model))
    end = most_in_divided_update(asked.optimizer, leaves, moments, processes)
    peak = parameters + moments + ran.input + max(most_in_passes(ran, nbytes_of(leaves)), ran.output + end)
    wide = widened(leaves)
    whole = processes * nbytes_of(rows_of_one(wide, processes))
    sent = 2 * sent_in_gather(whole, processes) + sent_in_sum(nbytes_of([leaf for leaf in wide if not leaf.ndim]), processes)
    return Load(parameters, nbytes_of(leaves), moments, ran.residuals, peak, sent)


def sharded(asked: Asked, ranks: int, copies: int) -> Load:
    """Each unit in a `shard` of its own, over a group of so many ranks; and so many groups."""
    group, others = Group("ranks", ranks, 0), Group("copies", copies, 0)

    def shared(unit: Model) -> Model:
        if not any(leaf.ndim for leaf in tree.trainable_leaves(unit)):
            return unit
        return shard(group, *(unit if isinstance(unit, tuple) else (unit,)), copies=others if copies > 1 else None)

    model = with_units(asked.model, lambda unit, _: shared(asked.unit(unit)))
    if not tree.holds(tree.is_divided, model):
        raise ValueError("there is nothing to shard: no parameter has rows")
    ran = ran_forward(asked, asked.rows_of(ranks * copies), shared)
    pairs = zip(tree.trainable_leaves(model), tree.splits_of(model), strict=True)
    whole = nbytes_of([leaf for leaf, split in pairs if split is None])
    own = sum(unit.rows for unit in ran.units)
    sent = 3 * sent_in_gather(own * ranks, ranks) + sent_in_sum(own, copies) + sent_in_sum(whole, ranks * copies)
    return _load(model, asked.optimizer, ran, sent=sent)


def split_layers(asked: Asked, ranks: int, data: int) -> Load:
    """`tensor_parallel` among so many ranks, and a step over so many such groups."""
    split = attrs.evolve(asked, model=_split(asked.model, Group("tensor", ranks, 0)))
    ran = ran_forward(split, asked.rows_of(data))
    leaves = tree.trainable_leaves(split.model)
    exchange = most_in_early_sum(leaves) if data > 1 else 0
    logits = _split_logits(split.model)  # of each row, the loss of those adds up three numbers
    exchanged = ran.exchanged + (3 * ran.output // logits if logits else 0)
    sent = sent_in_sum(exchanged, ranks) + sent_in_sum(nbytes_of(leaves), data)
    return _load(split.model, asked.optimizer, ran, exchange, sent=sent, loss=SPLIT_LOSS if logits else LOSS)


def in_stages(asked: Asked, count: int, data: int) -> Load:
    """A pipeline through so many stages, and so many pipelines: what the stage has that needs most."""
    require_no_batch_statistics(asked.model)
    unrolled = _unrolled(asked.model)
    models = [stages(Group("pipeline", count, rank), unrolled) for rank in range(count)]
    rows = asked.rows_of(data)
    micro_batches = min(asked.micro_batches, rows)
    part = -(-rows // micro_batches)
    found: list[Load] = []
    for stage, ran in enumerate(_ran_in_stages(asked, unrolled, models, part)):
        here = attrs.evolve(asked, model=models[stage])
        given, gives = ran.input * (stage > 0), ran.output * (stage + 1 < count)
        sent = (given + gives) * rows // part
        last = ran if stage + 1 == count else attrs.evolve(ran, output=0, logits=0)
        found.append(_load_of_stage(here, last, min(count - stage, micro_batches), micro_batches, data, rows, sent))
    return max(found, key=lambda load: load.peak)


def _load_of_stage(  # noqa: PLR0917  # all that a stage depends on
    asked: Asked, ran: Ran, in_flight: int, micro_batches: int, data: int, rows: int, sent: int
) -> Load:
    """What a stage has that keeps the residuals of so many micro-batches at a time."""
    leaves = tree.trainable_leaves(asked.model)
    gradients, added_up = nbytes_of(leaves), nbytes_of(widened(leaves))
    parameters, moments = tree.nbytes(asked.model), tree.nbytes(asked.optimizer.init(asked.model))
    passes = (in_flight - 1) * ran.residuals + added_up * (micro_batches > 1) + most_in_passes(ran, gradients)
    update = most_in_update(asked.optimizer, leaves, moments)
    exchange = most_in_sum(widened(leaves)) if data > 1 else 2 * added_up * (micro_batches == 1)
    return Load(
        parameters,
        gradients,
        moments,
        in_flight * ran.residuals,
        parameters + moments + tree.nbytes(asked.x_of(rows)) + max(passes, exchange, update),
        sent + sent_in_sum(added_up, data),
    )


def _load(model: Model, optimizer: AnyTransform, ran: Ran, exchange: int = 0, *, sent: int, loss: int = LOSS) -> Load:
    """What a process has whose gradients are exchanged with so many bytes at a time."""
    parameters, moments = tree.nbytes(model), tree.nbytes(optimizer.init(model))
    leaves = tree.trainable_leaves(model)
    gradients = nbytes_of(leaves)
    after = ran.output + max(exchange, most_in_update(optimizer, leaves, moments))
    most = max(most_in_passes(ran, gradients, loss), after)
    return Load(parameters, gradients, moments, ran.residuals, parameters + moments + ran.input + most, sent)


# --- Runs --------------------------------------------------------------------------------------------------------------


def _same(unit: Model) -> Model:
    return unit


def ran_forward(asked: Asked, rows: int, divided: Callable[[Model], Model] = _same) -> Ran:
    """What a run of so many rows tells of a model each unit of which is divided so."""
    log = Log()
    (ran,) = run(_watching(asked, asked.model, log, divided), asked.x_of(rows), [log])
    return ran.run_again(ran_forward(attrs.evolve(asked, again=False), rows, divided)) if asked.again else ran


def _ran_in_stages(asked: Asked, unrolled: tuple[Model, ...], models: Sequence[tuple[Model, ...]], rows: int) -> list[Ran]:
    """What a run of so many rows tells of each stage."""
    logs = [Log() for _ in models]
    watching: list[Model] = []
    for place, part in enumerate(unrolled):
        log = next(log for log, model in zip(logs, models, strict=True) if not tree.holds(tree.is_divided, model[place]))
        watching.append(_watching(asked, (part,), log, is_whole=False))
    found = run(tuple(watching), asked.x_of(rows), logs, copied=True)
    if not asked.again:
        return found
    plain = _ran_in_stages(attrs.evolve(asked, again=False), unrolled, models, rows)
    return [ran.run_again(other) for ran, other in zip(found, plain, strict=True)]


def _watching(
    asked: Asked, model: Model, log: Log, divided: Callable[[Model], Model] = _same, *, is_whole: bool = True
) -> Model:
    """The model, or a part of it, as a process runs it, whose units note what they take."""

    def noting(unit: Model, count: int) -> Model:
        own = divided(asked.unit(unit))
        alone = as_one_process_runs_it(own, log, twice=tree.holds(is_checkpoint, own))
        return watched(alone, log, count)

    return with_units(model, noting, is_whole=is_whole)


# --- Models that are divided -------------------------------------------------------------------------------------------


def _split(model: Model, group: Group) -> Model:
    """The model with layers that are split; of a model of tokens, the last linear map as well."""
    if isinstance(model, tuple) and len(model) > 1 and isinstance(model[-1], Linear) and tree.holds(_is_embedding, model):
        before = tensor_parallel(group, *model[:-1])
        return *(before if isinstance(before, tuple) else (before,)), split_output(group, model[-1])
    return tensor_parallel(group, model)


def _is_embedding(cls: type[Record]) -> bool:
    return issubclass(cls, Embedding)


def _split_logits(model: Model) -> int:
    """How many logits of each row a process has, if the last linear map is split; else 0."""
    last = model[-1] if isinstance(model, tuple) else model
    is_split = isinstance(last, TensorParallel) and isinstance(last.layers[0], Linear)
    return tree.trainable_leaves(last)[0].shape[-2] if is_split else 0


def _unrolled(model: Model) -> tuple[Model, ...]:
    """The layers that `stages` deals out; those of a `repeat` one by one."""
    parts = model if isinstance(model, tuple) else (model,)
    return tuple([inner for part in parts for inner in (part.blocks if isinstance(part, Repeat) else (part,))])
