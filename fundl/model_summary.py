"""What a model is made of, as a table: its layers, their output shapes, and what they take."""

import functools
import types
from typing import TYPE_CHECKING, TypeAlias, cast

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import shapes, tree
from fundl._common.checks import require_model
from fundl._common.listed import Listed
from fundl._common.modes import no_grad
from fundl._common.running import first_forward, run_forward
from fundl._common.suggestions import with_suggestions
from fundl._common.tables import size_of, text_of
from fundl.initializers import Initializer
from fundl.layer import AnyLayer, Layer, Model
from fundl.layers.masked import FromMasked, Masked, OnMasked, OnMaskedPair
from fundl.layers.pairs import Pipe
from fundl.model import output_shape
from fundl.tree import Record

if TYPE_CHECKING:
    from rich.table import Table

Shape: TypeAlias = "int | tuple[Shape, ...]"
"""The sizes of a tensor, or a tuple of the shapes of several."""


@attrs.frozen
class Row:
    """One layer of a summary.

    Args:
        place: of the layer in the model, such as "[0]" or "[2].layers[1]"; "" for a model of one layer.
        depth: how many layers the layer is part of.
        layer: its name, with its sizes and options.
        output: its output's shape.
        parameters: how many trainable numbers are its own, not those of a layer with a row of its own; none if it is frozen.
        nbytes: how many bytes its own parameters and buffers take.
    """

    place: str
    depth: int
    layer: str
    output: Shape
    parameters: int
    nbytes: int


@attrs.frozen(repr=False)
class Summary(metaclass=Listed):
    """The layers of a model: a table when printed, in colour by ``rich.print``.

    Args:
        input: the input's shape.
        rows: the layers, in the order in which they are applied, a layer before those that it contains.
    """

    input: Shape
    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        """How many trainable numbers the model has."""
        return sum(row.parameters for row in self.rows)

    @property
    def nbytes(self) -> int:
        """How many bytes the model's parameters and buffers take."""
        return sum(row.nbytes for row in self.rows)

    def __rich__(self) -> "Table":
        """The table that rich shows."""
        from rich import box  # noqa: PLC0415  # rich takes its time to load, and few runs of a program show a table
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=box.SIMPLE, show_edge=False, show_footer=True, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("place", Text("total", "bold"), style="dim", overflow="fold", no_wrap=True)
        table.add_column("layer", style="cyan", overflow="fold")
        table.add_column("output", overflow="fold")
        table.add_column("params", Text(f"{self.parameters:,}", "bold"), justify="right", overflow="fold", no_wrap=True)
        table.add_column("size", Text(size_of(self.nbytes), "bold"), justify="right", overflow="fold", no_wrap=True)
        table.add_row(Text("input"), Text(""), Text(str(self.input)))
        outer = [""]
        for row in self.rows:
            outer[row.depth + 1 :] = [row.place]
            place = "  " * row.depth + (row.place.removeprefix(outer[row.depth]) or "model")
            numbers = (f"{row.parameters:,}", size_of(row.nbytes)) if row.nbytes else ()
            table.add_row(Text(place), Text(row.layer), Text(str(row.output)), *numbers)
        return table

    @override
    def __repr__(self) -> str:
        return text_of(self.__rich__())


@with_suggestions
def summary(model: Model, input_shape: tuple[Shape, ...], *, dtype: torch.dtype = torch.float32) -> Summary:
    """The layers of a model, with the shapes of what they make of an input, and what their parameters take.

    The model runs on the meta device: nothing is allocated or computed, and it is all one whether it is initialised. Buffers
    count as bytes, not as parameters, and so do all parameters that are `frozen`. A layer that contains layers stands before
    them; its own row counts only what they do not. Of repeated layers, there are the rows of one block, with the parameters of
    all.

    Args:
        model: a layer or a nested tuple of layers.
        input_shape: the shape of an input, its batch axis included; of several inputs, such as a pair, the tuple of theirs. Of
            a masked batch, it is that of the values.
        dtype: of the input, such as torch.int64 for token numbers.

    Raises:
        TypeError: `model` is not a model, or the input's dtype does not fit.
        ValueError: the layers do not fit together, or not the input.

    >>> from fundl import ReLU, compose, linear, summary
    >>> print(summary(compose(linear(2, 25), ReLU(), linear(25, 1)), (10, 2)))
    place  layer                             output    params   size
    ────────────────────────────────────────────────────────────────
    input                                    (10, 2)
    [0]    Linear(weight=[25,2], bias=[25])  (10, 25)      75  300 B
    [1]    ReLU()                            (10, 25)
    [2]    Linear(weight=[1,25], bias=[1])   (10, 1)       26  104 B
    ────────────────────────────────────────────────────────────────
    total                                                 101  404 B
    """
    require_model(model)
    x = _masked_for(_first(model), _input(input_shape, dtype))
    # raises, if the layers do not fit together, or not the input
    output_shape(model, shapes.Shape(*x.shape) if isinstance(x, Tensor) else None)
    with no_grad():
        shapes_only = tree.map(lambda leaf: leaf.to("meta"), cast("Model", tree.as_whole(model)))
        first_forward(shapes_only, x)  # what else does not fit is told here, with the place of the layer
        try:
            rows = _Run(inner=True).rows(shapes_only, x)
        except Exception:  # a layer asks more of its parts than that they are of their class
            rows = _Run(inner=False).rows(shapes_only, x)
        return Summary(input_shape, tuple(rows))


# --- The input --------------------------------------------------------------------------------------------------------


def _input(shape: object, dtype: torch.dtype) -> object:
    """An input of a shape, or several; without values."""
    if isinstance(shape, tuple) and all(isinstance(size, int) and size >= 0 for size in shape):
        return torch.empty(shape, dtype=dtype, device="meta")
    if isinstance(shape, tuple) and all(isinstance(part, tuple) for part in shape):
        return tuple(_input(part, dtype) for part in shape)
    raise TypeError(
        "input_shape is a tuple of sizes, the batch axis included, such as (10, 2), not"
        f" {tree.describe(shape)}; of a pair of inputs, it is the pair of theirs, such as ((10, 2), (10, 3))"
    )


def _first(model: object) -> object:
    """The layer that the input comes to first."""
    if isinstance(model, tuple):
        return _first(model[0])
    return _first(model.layers) if isinstance(model, Pipe) else model


def _masked_for(layer: object, x: object) -> object:
    """The input as a layer takes it: masked batches for one that takes such."""
    match x:
        case Tensor() if isinstance(layer, OnMasked | FromMasked):
            return _masked(x)
        case (Tensor() as first, Tensor() as second) if isinstance(layer, OnMaskedPair):
            return _masked(first), _masked(second)
        case _:
            return x


def _masked(values: Tensor) -> Masked:
    return Masked(values, torch.empty(values.shape[:2], dtype=torch.bool, device="meta"))


# --- Watching a model run ---------------------------------------------------------------------------------------------

# The model runs as it is, but each layer is of a class that derives from its own, and notes what forward returns. A layer keeps
# that class when another one is made of it on the way: with another weight, a mask, of another dtype, or as one of many blocks.


@attrs.frozen(eq=False)
class _Watch:
    """A layer that is watched: its place, the watches of the layers around it, what it takes, and where to note its outputs."""

    place: str
    layer: AnyLayer
    around: tuple["_Watch", ...]
    parameters: int
    outputs: dict["_Watch", list[object]]


@functools.cache
def _watched_class(cls: type[AnyLayer]) -> type[AnyLayer]:
    """A class derived from a layer's, whose layers note their outputs."""

    def forward(self: AnyLayer, x: object) -> tuple[object, object]:
        watch: object = getattr(self, "watch")  # noqa: B009  # the field that is added below
        assert isinstance(watch, _Watch)
        outputs = watch.outputs.setdefault(watch, [])
        result: tuple[object, object] = cls.forward(self, x)
        outputs.append(result[0])
        return result

    members = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__annotations__": {"watch": _Watch},
        "watch": attrs.field(kw_only=True),
        "forward": forward,
    }
    derived: type[AnyLayer] = types.new_class(cls.__name__, (cls,), exec_body=lambda namespace: namespace.update(members))
    return attrs.frozen(eq=False)(derived)


@attrs.frozen(eq=False)
class _Run:
    """A run of a model to see its layers run, with or without those inside others; it has their outputs in order."""

    inner: bool
    outputs: dict[_Watch, list[object]] = attrs.field(factory=dict[_Watch, list[object]])

    def rows(self, model: Model, x: object) -> list[Row]:
        """The rows of the layers that run on an input; parts of theirs that never run count for them."""
        watched = self._watch(model, "", (), is_trained=True)
        assert isinstance(watched, Layer | tuple)
        run_forward(watched, x)
        around = {watch: [outer for outer in watch.around if outer in self.outputs] for watch in self.outputs}
        inside = {watch: [part for part, outer in around.items() if outer[-1:] == [watch]] for watch in around}
        return [
            Row(
                place=watch.place,
                depth=len(outer),
                layer=_name(watch.layer),
                output=_shape(self.outputs[watch][0]),
                parameters=watch.parameters - sum(part.parameters for part in inside[watch]),
                nbytes=tree.nbytes(watch.layer) - sum(tree.nbytes(part.layer) for part in inside[watch]),
            )
            for watch, outer in around.items()
        ]

    def _watch(self, part: object, place: str, around: tuple[_Watch, ...], *, is_trained: bool) -> object:
        if isinstance(part, tuple):
            inner = [self._watch(one, place + step, around, is_trained=is_trained) for step, one in tree.parts(part)]
            return tree.rebuilt(part, inner)
        if not isinstance(part, Layer):
            return part
        watch = _Watch(place, part, around, tree.count(part) if is_trained else 0, self.outputs)
        watched = object.__new__(_watched_class(type(part)))
        for field in attrs.fields(type(part)):
            value: object = getattr(part, field.name)
            if self.inner and field.name in part.children:
                is_inner_trained = is_trained and field.name in part.trainable
                value = self._watch(value, f"{place}.{field.name}", (*around, watch), is_trained=is_inner_trained)
            object.__setattr__(watched, field.name, value)
        object.__setattr__(watched, "watch", watch)
        return watched


# --- What a row says --------------------------------------------------------------------------------------------------


def _name(layer: AnyLayer) -> str:
    """A layer's name, the sizes of its tensors, and its options where they are not the default.

    Spaces stand only where a line may break.
    """
    said: list[str] = []
    for field in attrs.fields(type(layer)):
        value: object = getattr(layer, field.name)
        if field.name not in layer.children:
            if not isinstance(value, Initializer) and value != field.default:
                said.append(f"{field.name}={repr(value).replace(', ', ',')}")
        elif value is not None and not tree.records(value):
            said.append(f"{field.name}={_sizes(value)}")
    return f"{type(layer).__name__}({', '.join(said)})"


def _sizes(value: object) -> str:
    """The sizes of a tensor as a list, of several as a tuple of lists."""
    match value:
        case Tensor():
            return f"[{','.join(map(str, value.shape))}]"
        case tuple() | list():
            return f"({','.join(_sizes(part) for part in value)})"
        case _:
            return str(value)


def _shape(value: object) -> Shape:
    """The shape of a tensor, of several the tuple of their shapes."""
    match value:
        case Tensor():
            return tuple(value.shape)
        case Record():
            return tuple(_shape(getattr(value, name)) for name in value.children)
        case tuple() | list():
            return tuple(_shape(part) for part in value)
        case _:
            return ()
