"""What is wrong with a model, and where it is written."""

from collections.abc import Iterator, Sequence
from typing import Final

from mypy.errorcodes import ErrorCode
from mypy.nodes import Expression, TupleExpr
from mypy.plugin import CheckerPluginInterface
from mypy.types import TupleType, Type, get_proper_type

from fundl_mypy.rules import Read, chain, is_layer, part, shapes

LAYER_MISFIT: Final = ErrorCode("layer-misfit", "Layers that do not fit together", "fundl")


def report(model: Type, written: Sequence[Expression], whole: Expression, api: CheckerPluginInterface, read: Read) -> list[int]:
    """Report what does not fit in a model of this type.

    Args:
        model: its type.
        written: its layers, as far as they are written one by one.
        whole: the model.
        api: takes the errors.
        read: called with the rules that are read.

    Returns:
        The places of the outermost layers in which something does not fit, counted from 1; 0 for the model as a whole.
    """
    found = list(_misfits(model, read))
    for misfit in found:
        api.fail(str(misfit), _located(written, misfit, whole), code=LAYER_MISFIT)
    return [misfit.path[0] if misfit.path else 0 for misfit in found]


def _misfits(model: Type, read: Read) -> Iterator[shapes.Misfit]:
    model = get_proper_type(model)
    if isinstance(model, TupleType):
        yield from _misfits_of_chain(chain(model, read))
    elif is_layer(model):
        try:
            shapes.of_model(shapes.Shape(...), part(model, read))
        except shapes.Misfit as misfit:
            yield misfit


def _misfits_of_chain(layers: Sequence[object]) -> Iterator[shapes.Misfit]:
    """One misfit after the other: each time, the rest is run as if it had the right input."""
    first = 0
    while first < len(layers):
        try:
            shapes.through(shapes.Shape(...), layers, start=first)
            return
        except shapes.Misfit as misfit:
            yield misfit
            index, *inside = misfit.path
            first = index if inside or index == first + 1 else index - 1


def _located(written: Sequence[Expression], misfit: shapes.Misfit, whole: Expression) -> Expression:
    """The expression of the layer that does not take what it is given."""
    found = whole
    for index in misfit.path:
        if index > len(written):
            break
        found = written[index - 1]
        written = found.items if isinstance(found, TupleExpr) else ()
    return found
