"""What a model is made of, as a table: its layers, their output shapes, and what they take.

The model runs on the meta device, which computes shapes without memory or arithmetic: a summary costs the same for a
model of any size, initialised or not.
"""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import shapes, tree
from fundl.initialize import Initializer
from fundl.kernels import no_grad
from fundl.layer import AnyLayer, Layer, Model
from fundl.model import apply, output_shape, require_model, run_forward
from fundl.tree import Record

if TYPE_CHECKING:
    from rich.table import Table

Shape: TypeAlias = "int | tuple[Shape, ...]"
"""The sizes of a tensor, or a tuple of the shapes of several."""

_WIDTH: Final = 80


@attrs.frozen
class Row:
    """One layer of a summary.

    Args:
        place: of the layer in the model, such as "[0]" or "[2].layers[1]"; "" for a model of one layer.
        depth: how many layers the layer is part of.
        layer: its name, with its sizes and options.
        output: its output's shape.
        parameters: how many trainable numbers are its own, not those of a layer with a row of its own.
        nbytes: how many bytes its own parameters and buffers take.
    """

    place: str
    depth: int
    layer: str
    output: Shape
    parameters: int
    nbytes: int


@attrs.frozen(repr=False)
class Summary:
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
        table.add_column("size", Text(_size(self.nbytes), "bold"), justify="right", overflow="fold", no_wrap=True)
        table.add_row(Text("input"), Text(""), Text(str(self.input)))
        outer = [""]
        for row in self.rows:
            outer[row.depth + 1 :] = [row.place]
            place = "  " * row.depth + (row.place.removeprefix(outer[row.depth]) or "model")
            numbers = (f"{row.parameters:,}", _size(row.nbytes)) if row.nbytes else ()
            table.add_row(Text(place), Text(row.layer), Text(str(row.output)), *numbers)
        return table

    @override
    def __repr__(self) -> str:
        from rich.console import Console  # noqa: PLC0415

        file = io.StringIO()
        console = Console(file=file, width=_WIDTH, color_system=None, force_jupyter=False, legacy_windows=False)
        console.width = max(_WIDTH, console.measure(self).minimum)  # rather too wide than with numbers cut off
        console.print(self)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _size(nbytes: int) -> str:
    """A number of bytes in the largest unit of which there is at least one."""
    size, units = float(nbytes), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:,.1f} {units[0]}" if units[0] != "B" else f"{nbytes} B"


def summary(model: Model, input_shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32) -> Summary:
    """The layers of a model, with the shapes of what they make of an input, and what their parameters take.

    Nothing is allocated or computed, so it is all one whether the model is initialised. Buffers count as bytes, not as
    parameters. A layer that contains layers stands before them; its own row counts only what they do not.

    Args:
        model: a layer or a nested tuple of layers.
        input_shape: the shape of an input, its batch axis included.
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
    _require_shape(input_shape)
    output_shape(model, shapes.Shape(*input_shape))  # raises, if the layers do not fit together, or not the input
    with no_grad():
        shapes_only = tree.map(lambda leaf: leaf.to("meta"), model)
        x = torch.empty(input_shape, dtype=dtype, device="meta")
        apply(shapes_only, x)  # what else does not fit is told here, with the place of the layer
        return Summary(input_shape, tuple(_rows(shapes_only, x, "", 0)[0]))


def _require_shape(shape: object) -> None:
    if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise TypeError(f"input_shape is a tuple of sizes, the batch axis included, such as (10, 2), not {shape!r}")


def _rows(model: Model, x: object, place: str, depth: int) -> tuple[list[Row], object]:
    """The rows of a model that is at a place, and its output."""
    if isinstance(model, tuple):
        rows: list[Row] = []
        for index, part in enumerate(model):
            more, x = _rows(part, x, f"{place}[{index}]", depth)
            rows += more
        return rows, x
    output, _ = run_forward(model, x)
    inner = [row for path, layer, seen in _seen_inside(model, x) for row in _rows(layer, seen, place + path, depth + 1)[0]]
    row = Row(
        place=place,
        depth=depth,
        layer=_name(model),
        output=_shape(output),
        parameters=tree.count(model) - sum(row.parameters for row in inner),
        nbytes=tree.nbytes(model) - sum(row.nbytes for row in inner),
    )
    return [row, *inner], output


# --- Looking inside a layer -------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _Watched(Layer[object, object, object]):
    """Stands in for a layer inside another, and tells what input it is run on."""

    run: Callable[[object], tuple[object, object]]

    @override
    def forward(self, x: object) -> tuple[object, object]:
        return self.run(x)

    @override
    def backward(self, residuals: object, grad: object) -> tuple["_Watched", object]:
        raise NotImplementedError("a watched layer is run forward only")


def _seen_inside(layer: AnyLayer, x: object) -> list[tuple[str, AnyLayer, object]]:
    """The layers that a layer runs as it is applied: where each is, itself, and the first input that it is run on."""
    seen: dict[str, tuple[AnyLayer, object]] = {}

    def watched(part: object, place: str) -> object:
        if isinstance(part, tuple):
            return tuple(watched(inner, f"{place}[{index}]") for index, inner in enumerate(part))
        if not isinstance(part, Layer):
            return part

        def run(x: object) -> tuple[object, object]:
            seen.setdefault(place, (part, x))
            return run_forward(part, x)

        return _Watched(run)

    if not any(isinstance(record, Layer) for record in tree.records(layer)[1:]):
        return []
    try:
        parts = {name: watched(getattr(layer, name), f".{name}") for name in layer.children}
        run_forward(attrs.evolve(layer, **parts), x)
    except Exception:  # it asks more of its parts than that they run: it has one row, with theirs in it
        return []
    return [(place, part, x) for place, (part, x) in seen.items()]


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
