"""Adapters of low rank for any layer with weights: attention, embeddings, convolutions."""

import math
from collections.abc import Sequence
from typing import Generic, Self, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common.checks import require_model
from fundl._common.listed import Listed
from fundl._common.place import Place
from fundl._common.stepping import first_cache, step_inside
from fundl._common.suggestions import with_suggestions
from fundl.initializers import Initializer, uniform_fan_in, zeros
from fundl.layer import AnyLayer
from fundl.layers._inside import Around, forward_inside
from fundl.layers._refusals import require_at_least_one
from fundl.shapes import AnySize, S, Through
from fundl.tree import BUFFER, Record, describe

L = TypeVar("L", bound=AnyLayer)
LayerOf = TypeVar("LayerOf", bound=AnyLayer, default=AnySize)


@final
@attrs.frozen(eq=False)
class Change(Record, metaclass=Listed):
    """A change of low rank to a weight of shape (out, ...): B A, in the shape of the weight.

    Args:
        down: A, of shape (rank, in), with as many columns as the weight has numbers for each output.
        up: B, of shape (out, rank).
        down_init: how `initialize` draws A.
        up_init: how it draws B.
    """

    down: Tensor
    up: Tensor
    down_init: Initializer = attrs.field(default=uniform_fan_in(), kw_only=True)
    up_init: Initializer = attrs.field(default=zeros(), kw_only=True)

    def added(self, weight: Tensor, factor: float) -> Tensor:
        """The weight with the change."""
        return torch.addmm(weight.flatten(1), self.up, self.down, alpha=factor).view(weight.shape)

    def gradients(self, grad: Tensor, factor: float) -> "Change":
        """Those of A and B, from that of the changed weight."""
        rows = grad.flatten(1)  # (out, in)
        down, up = torch.mm(self.up.t(), rows) * factor, torch.mm(rows, self.down.t()) * factor
        return attrs.evolve(self, down=down, up=up)


@final
@attrs.frozen(eq=False)
class Adapted(Around[None], Generic[LayerOf]):
    """A layer that is not trained, and changes of low rank to its weights, which are: y = f(x) with W + s B A for each W.

    s is scale / rank. A weight of shape (out, ...) counts as a matrix of out rows: those of attention are of all queries, keys
    and values together, an embedding has a row for each token, a convolution one for each channel that it gives. The layer is a
    buffer: it has no gradient, no optimizer touches it and no count of parameters has it; a file that the model is saved in
    does.

    Its vjp, with grad_W that of the layer whose weight is W + s B A:

        grad_A = s B^T grad_W,    grad_B = s grad_W A^T,    grad_x that of the layer

    Unlike for a `LowRank`, which is for linear layers alone, grad_W is computed on the way.

    Args:
        layer: f; best given to `adapted`.
        changes: A and B of each weight.
        names: of the weights, fields of the layer.
        scale: s rank.

    Shape:
        that of the layer

    Residuals:
        Those of the layer; the changed weights are found anew.

    Source:
        Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang and Chen, LoRA: low-rank adaptation of large language models, 2021.
    """

    takes_integers = True  # if the layer does

    layer: LayerOf = attrs.field(metadata=BUFFER)
    changes: tuple[Change, ...]
    names: tuple[str, ...] = attrs.field(kw_only=True)
    scale: float = attrs.field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"Adapted's scale must be a finite number, not {self.scale}")
        unchecked: object = self.names
        if not isinstance(unchecked, tuple) or not all(isinstance(name, str) for name in unchecked):
            raise TypeError(f"Adapted's names are a tuple of texts, such as ('weight',), not {unchecked!r}")
        if len(self.names) != len(self.changes):
            raise ValueError(f"Adapted has {len(self.names)} names of weights, and {len(self.changes)} changes: give each one")

    @property
    @override
    def by_position(self) -> bool:
        return self.layer.by_position

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[object, None]]:
        y, residuals = forward_inside(self.merged(), x)
        return y, (residuals, None)

    def merged(self) -> LayerOf:
        """The same map as a plain layer, of the changed weights: to apply it at no extra cost."""
        pairs = zip(self.names, self.changes, strict=True)
        changed = {name: change.added(_weight(self.layer, name), self._factor(change)) for name, change in pairs}
        return attrs.evolve(self.layer, **changed)

    @override
    def first_cache(self, batch: int, length: int) -> object:
        return first_cache(self.layer, batch, length)

    @override
    def step(self, x: Tensor, cache: object, place: Place) -> tuple[Tensor, object]:
        return step_inside(self.merged(), x, cache, place)

    @override
    def _model(self, own: None) -> LayerOf:
        return self.merged()

    @override
    def _gradient(self, own: None, grads: object) -> Self:
        pairs = zip(self.names, self.changes, strict=True)
        return self.gradient(tuple(change.gradients(_weight(grads, name), self._factor(change)) for name, change in pairs))

    @override
    def output_shape(self, shape: S) -> Through[S, LayerOf]:
        return Through(shape, (self.layer,))

    def _factor(self, change: Change) -> float:
        return self.scale / change.down.shape[0]


def _weight(layer: object, name: str) -> Tensor:
    weight: object = getattr(layer, name, None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        raise TypeError(f"{name} is to be a weight of two or more axes, which {describe(layer)} has not")
    return weight


@with_suggestions
def adapted(
    layer: L,
    rank: int,
    *,
    names: Sequence[str] | None = None,
    scale: float | None = None,
    down_init: Initializer = uniform_fan_in(),
) -> Adapted[L]:
    """An `Adapted`: a layer that stays as it is, and changes to its weights, without values yet: `initialize` gives them.

    Args:
        layer: that has values, as those of a model that was trained before: attention, an embedding, a convolution; for a
            `Linear`, `low_rank` is quicker.
        rank: of the changes, at least 1; the less, the fewer parameters.
        names: of the weights to change; None, the default, for all of two or more axes whose names end with "weight".
        scale: what the changes are multiplied by, after it is divided by the rank; by default the rank, so that it is neither.
        down_init: how to draw A. B is 0 at first, and so are the changes.

    Raises:
        ValueError: the rank is less than 1, or the scale is not finite.
        TypeError: the layer has no such weight.

    >>> from fundl import adapted, initialize, key, self_attention, tree
    >>> trained = initialize(key(0), self_attention(64, 4))
    >>> adapter = initialize(key(1), adapted(trained, 2))
    >>> tree.count(trained), tree.count(adapter), adapter.names
    (16640, 768, ('weight', 'output_weight'))
    >>> torch.equal(adapter.merged().weight, trained.weight)
    True
    """
    require_model(layer)
    if isinstance(layer, tuple):
        raise TypeError("adapted is around one layer, not a tuple of layers: tree.map_records goes through those of a model")
    require_at_least_one(rank=rank)
    found = tuple(_weights_of(layer) if names is None else names)
    if not found:
        raise TypeError(f"adapted changes weights of two or more axes, which {describe(layer)} has not")
    changes = tuple(_change(_weight(layer, name), rank, down_init) for name in found)
    return Adapted(layer, changes, names=found, scale=float(rank) if scale is None else scale)


def _weights_of(layer: AnyLayer) -> list[str]:
    values = {name: cast("object", getattr(layer, name)) for name in layer.trainable if name.endswith("weight")}
    return [name for name, value in values.items() if isinstance(value, Tensor) and value.ndim > 1]


def _change(weight: Tensor, rank: int, down_init: Initializer) -> Change:
    rows, columns = weight.shape[0], math.prod(weight.shape[1:])
    down = torch.empty(rank, columns, dtype=weight.dtype, device="meta")
    return Change(down, torch.empty(rows, rank, dtype=weight.dtype, device="meta"), down_init=down_init)
