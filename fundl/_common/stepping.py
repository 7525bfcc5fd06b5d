"""Running a model a few positions at a time: the walk through its layers, each with its own cache."""

from typing import cast

from torch import Tensor

from fundl._common.place import Place
from fundl._common.running import note_layer, note_part
from fundl.layer import Model
from fundl.tree import describe


def first_cache(model: object, batch: int, length: int) -> object:
    """The caches of the layers of a model, as a tree like it, before the first position."""
    params = cast("Model", model)  # layers hold objects that are known to be models
    if not isinstance(params, tuple):
        try:
            return params.first_cache(batch, length)
        except Exception as error:
            note_layer(error, params, "its cache", (batch, length))
            raise
    caches: list[object] = []
    try:
        for part in params:
            caches.append(first_cache(part, batch, length))  # noqa: PERF401  # the place of an error is that of the next
    except Exception as error:
        note_part(error, params, len(caches))
        raise
    return tuple(caches)


def run_step(model: object, x: object, cache: object, place: Place) -> tuple[object, object]:
    """The output of a model at some positions, and the caches after them."""
    params = cast("Model", model)
    if not isinstance(params, tuple):
        try:
            y: tuple[object, object] = params.step(x, cache, place)
        except Exception as error:
            note_layer(error, params, "the input", x)
            raise
        return y
    caches: list[object] = []
    try:
        for part, own in zip(params, cast("tuple[object, ...]", cache), strict=True):
            x, after = run_step(part, x, own, place)
            caches.append(after)
    except Exception as error:
        note_part(error, params, len(caches))
        raise
    return x, tuple(caches)


def run_to_last(model: object, x: object, cache: object, place: Place) -> tuple[object, object]:
    """`run_step`, but for what comes behind all that looks at several positions: it is run where the output is wanted."""
    params = cast("Model", model)
    if not isinstance(params, tuple):
        y, after = run_step(params, x, cache, place)
        return place.wanted(y) if isinstance(y, Tensor) else y, after
    own = cast("tuple[object, ...]", cache)
    deciding = max((index for index, part in enumerate(params) if not _is_by_position(part)), default=-1)
    x, before = run_step(params[: max(deciding, 0)], x, own[: max(deciding, 0)], place)
    caches = list(cast("tuple[object, ...]", before))
    for index in range(len(caches), len(params)):
        run = run_to_last if index == deciding else run_step
        x, after = run(params[index], x, own[index], place)
        caches.append(after)
    return place.wanted(x) if isinstance(x, Tensor) else x, tuple(caches)


def _is_by_position(part: Model) -> bool:
    return all(map(_is_by_position, part)) if isinstance(part, tuple) else part.by_position


def step_inside(model: object, x: object, cache: object, place: Place) -> tuple[Tensor, object]:
    """`run_step` of layers inside of one, which give a tensor."""
    y, after = run_step(model, x, cache, place)
    if not isinstance(y, Tensor):
        raise TypeError(f"the layers inside must give a tensor, not {describe(y)}")
    return y, after
