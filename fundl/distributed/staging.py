"""Models in stages: of a tuple of layers each process of a group has some, one behind the other."""

import json
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple, NoReturn, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.checks import require_model
from fundl._common.modes import no_grad
from fundl._common.running import named_as
from fundl.collectives import spread
from fundl.groups import Group, device_of, require_group
from fundl.layer import AnyLayer, Layer, Model
from fundl.layers.batch_norm import BatchNorm, is_batch_norm
from fundl.layers.batch_statistics import with_statistics
from fundl.model import require_fitting
from fundl.shapes import AnyShape, of_model
from fundl.tree import Divided, Held, Outline, Piece, Record, Splits


@final
@attrs.frozen(eq=False)
class Elsewhere(Divided, Layer[None]):
    """The place of layers that another stage of a pipeline has; made by `stages`.

    Args:
        outline: what they look like.
        stage: which process of the group has them.
        group: the processes, one for each stage.
    """

    takes_integers = True  # as far as is known here

    outline: Outline
    stage: int
    group: Group

    @override
    def forward(self, x: Tensor) -> NoReturn:
        raise ValueError(
            f"this layer is in process {self.stage} of the pipeline: train by pipeline_step(loss, optimizer, through=group,"
            " ...), and use what unstage(model) gives"
        )

    @override
    def backward(self, residuals: None, grad: Tensor) -> NoReturn:
        self.forward(grad)

    @override
    def output_shape(self, shape: AnyShape) -> AnyShape:
        return of_model(shape, self.as_whole())

    @property
    @override
    def beyond(self) -> Group:
        return self.group

    @property
    @override
    def places(self) -> int:
        inner = tree.records(self.as_whole())
        return sum(record.places if isinstance(record, Divided) else 1 for record in inner)

    @override
    def splits(self) -> Splits:
        return ()

    @override
    def summed_over(self) -> tuple[()]:
        return ()

    @override
    def as_whole(self) -> AnyLayer:
        whole = self.outline.on("meta")
        assert isinstance(whole, Layer)  # a tuple is taken apart, see `_elsewhere`
        return whole

    @override
    def pieces(self) -> Sequence[Piece]:
        return [Piece(None, (), Held(self.group, self.stage), is_here=False) for _ in self.outline.kinds]


def stages(group: Group, model: tuple[Model, ...], *, starts: Sequence[int] | None = None) -> tuple[Model, ...]:
    """A model of which this process has one stage: some layers, one behind the other, of a pipeline through a group.

    It is the model's tuple, in which the layers of other processes are replaced by an `Elsewhere`. So layers, parameters, and
    what is told of them have the places of the whole: initialised from the same key, they have the same numbers. What looks at
    all parameters, as `clip_by_global_norm`, `skip_nonfinite`, `dynamic_loss_scale` and `tree.norm` do, sees those of all
    stages, and `tree.count` counts them. `pipeline_step` trains it; `save`, `load` and checkpoints are of the whole; `unstage`
    makes it whole.

    Layers of it may be those of `shard`, over the data's group, and of `tensor_parallel`, over another axis of the grid; then
    ``unshard(unstage(model))`` is the plain model.

    Args:
        group: the processes, one for each stage, which all make the same model.
        model: a tuple of layers, as `compose` gives it, best without values. A layer of it is in one stage, with all that is in
            it: write ``compose(*[block() for _ in range(24)])`` for blocks that are to be in several, and not ``repeat``.
        starts: the place of the first layer of each stage, from 0 on, in the tuple. By default the stage with the most
            parameters has as few as can be.

    Raises:
        TypeError: there is no group, or the model is no tuple of layers.
        ValueError: a stage would have no parameters, the places are none, or the model is in stages already.

    >>> from fundl import ReLU, compose, linear, tree
    >>> from fundl.distributed import Group, stages
    >>> model = stages(Group("two", 2, 1), compose(linear(2, 3), ReLU(), linear(3, 1)))
    >>> model[2], tree.count(model), tree.trainable_paths(model)
    (Linear(weight=float32[1, 3], bias=float32[1]), 13, ['[2].weight', '[2].bias'])
    """
    require_group(group)
    unchecked: object = model
    if not isinstance(unchecked, tuple):
        raise TypeError(f"stages(group, model) cuts a tuple of layers, as compose gives it, not {tree.describe(unchecked)}")
    require_fitting(model)
    if group_of_stages(model) is not None:
        raise ValueError("this model is in stages already: stages takes a whole one, as unstage(model) gives it")
    if group.size == 1:
        return model
    counts = [tree.count(part) for part in model]
    cuts = _even(counts, group.size) if starts is None else [*starts]
    if cuts[:1] != [0] or len(cuts) != group.size or cuts != sorted({*cuts}) or cuts[-1] >= len(model):
        raise ValueError(
            f"starts=... says where each of {group.size} stages begins in the {len(model)} layers, from 0 on, as in"
            f" starts={[*range(group.size)]}, not {cuts}"
        )
    ends = [*cuts[1:], len(model)]
    for stage, (start, end) in enumerate(zip(cuts, ends, strict=True)):
        if not sum(counts[start:end]):
            raise ValueError(f"stage {stage}, of layers {start} to {end - 1}, has no parameters: each stage needs some")
    parts: list[Model] = []
    for stage, (start, end) in enumerate(zip(cuts, ends, strict=True)):
        parts += model[start:end] if stage == group.rank else [_elsewhere(part, stage, group) for part in model[start:end]]
    return named_as(model, parts)


def _elsewhere(part: Model, stage: int, group: Group) -> Model:
    if isinstance(part, tuple):
        return named_as(part, [_elsewhere(inner, stage, group) for inner in part])
    return Elsewhere(Outline.of(part), stage, group)


def _even(counts: Sequence[int], size: int) -> list[int]:
    """Where the stages begin, so that the largest is as small as can be, and each has some parameters."""
    if sum(map(bool, counts)) < size:
        raise ValueError(
            f"{size} stages need as many layers with parameters, but the tuple has {sum(map(bool, counts))}: a `repeat` is one"
            " layer; write compose(*[block() for _ in range(count)])"
        )
    until = [0, *accumulate(counts)]
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}  # of the layers before a place: the largest stage, and the starts
    for _ in range(size):
        found: dict[int, tuple[int, list[int]]] = {}
        for end in range(1, len(until)):
            ways = [
                (max(most, until[end] - until[start]), [*starts, start])
                for start, (most, starts) in best.items()
                if until[end] > until[start]
            ]
            if ways:
                found[end] = min(ways)
        best = found
    return best[len(counts)][1]


def unstage(model: Model) -> Model:
    """The model with the layers of all stages, in each process: what is used elsewhere.

    All processes of the pipeline call it, at the same time.

    Args:
        model: that `stages` made, with values.

    Raises:
        TypeError: it is no model.
        ValueError: layers of a stage were changed to others.

    >>> from fundl import compose, initialize, key, linear
    >>> from fundl.distributed import start, stages, unstage
    >>> group, device = start()
    >>> unstage(initialize(key(0), stages(group, compose(linear(2, 3), linear(3, 1)))))[1]
    Linear(weight=float32[1, 3], bias=float32[1])
    """
    require_model(model)
    group = group_of_stages(model)
    if group is None:
        return model
    kinds = _kinds_of_all(model, group)
    with no_grad():
        return _whole(model, group, iter(kinds))


class _Kind(NamedTuple):
    """What a layer is: its class, and dtype and shape of each leaf; None of one that is None."""

    of: str
    leaves: Sequence[tuple[str, Sequence[int]] | None]

    @classmethod
    def found(cls, layer: Record) -> "_Kind":
        leaves = tree.flatten(layer)[0]
        names = [None if leaf is None else (str(leaf.dtype).removeprefix("torch."), [*leaf.shape]) for leaf in leaves]
        return cls(type(layer).__qualname__, names)

    def became(self, other: "_Kind") -> bool:
        """Whether a layer may have become another one: cast, or with statistics that it had not."""
        if self.of != other.of or len(self.leaves) != len(other.leaves):
            return False
        pairs = zip(self.leaves, other.leaves, strict=True)
        return all(one is None or two is None or [*one[1]] == [*two[1]] for one, two in pairs)


def _kinds_of_all(model: Model, group: Group) -> list[_Kind]:
    """What each layer is, as the process says that has it: an outline may be older than what became of a model.

    Raises:
        ValueError: it is another layer.
    """
    layers, talk = tree.outer_records(model), group.talk()
    mine = {place: _Kind.found(layer) for place, layer in enumerate(layers) if not isinstance(layer, Elsewhere)}
    told = json.loads(talk.told(json.dumps(mine), _together))
    kinds = [_Kind(*told[str(place)]) for place in range(len(layers))]
    changed = [
        layer.stage
        for layer, kind in zip(layers, kinds, strict=True)
        if isinstance(layer, Elsewhere) and not _Kind.found(layer.as_whole()).became(kind)
    ]
    if stage := talk.told(str(changed[0]) if changed else "", lambda texts: next(filter(None, texts), "")):
        raise ValueError(
            f"process {stage} has other layers now than were given to stages(group, model): change a model before it is in"
            " stages"
        )
    return kinds


def _together(texts: Sequence[str]) -> str:
    return json.dumps({place: kinds for text in texts for place, kinds in json.loads(text).items()})


def _whole(part: Model, group: Group, kinds: Iterator[_Kind]) -> Model:
    if isinstance(part, tuple):
        return named_as(part, [_whole(inner, group, kinds) for inner in part])
    its = next(kinds).leaves
    layer, source = (part.as_whole(), part.stage) if isinstance(part, Elsewhere) else (part, group.rank)
    leaves, structure = tree.flatten(layer)
    given = [
        torch.empty(kind[1], dtype=_BY_NAME[kind[0]], device=device_of(group)) if leaf is None or leaf.is_meta else leaf
        for leaf, kind in zip(leaves, its, strict=True)
        if kind is not None
    ]
    there = iter(spread(given, group, source))
    return tree.unflatten(structure, [None if kind is None else next(there) for kind in its])


_BY_NAME: Final = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_DTYPES: Final = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)


def codes_of(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """The dtypes of tensors, as numbers: an outline may be older than what became of a model, cast to another one."""
    return torch.tensor([_DTYPES.index(tensor.dtype) for tensor in tensors], dtype=torch.int64, device=device)


def like(tensor: Tensor, code: int, device: torch.device | str) -> Tensor:
    """A tensor of that shape, without values, of the dtype that a number says."""
    return torch.empty(tensor.shape, dtype=_DTYPES[code], device=device)


def group_of_stages(model: Model) -> Group | None:
    """The processes that have the stages of a model; None where one has all of it."""
    return next((record.group for record in tree.records(model) if isinstance(record, Elsewhere)), None)


def require_no_batch_statistics(model: Model) -> None:
    """Raise where a layer normalises with what it finds in a micro-batch, which is not the batch."""
    for record in tree.records(model):
        if isinstance(record, BatchNorm) and record.mean is None:
            raise ValueError(
                "a BatchNorm without statistics would normalise with those of each micro-batch by itself: give it some by"
                " calibrate or with_statistics, or take layer_norm or group_norm"
            )


def _is_elsewhere(cls: type[Record]) -> bool:
    return issubclass(cls, Elsewhere)


def layers_before(model: Model) -> "Model | None":
    """What comes before the own stage, on the meta device; None for the first."""
    assert isinstance(model, tuple)
    first = next(place for place, part in enumerate(model) if not tree.holds(_is_elsewhere, part))
    if not first:
        return None
    before = cast("Model", tree.as_whole(model[:first]))
    return with_statistics(before) if tree.holds(is_batch_norm, before) else before  # it has some by now, see above
