"""Checks of a layer's contract: is its backward the derivative of its forward, and are both pure functions?

They need nothing but a layer and an input, and serve a user's own layers as well as those of fundl.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fundl import random, tree
from fundl._common.layouts import LAYOUTS, expanded
from fundl._common.running import run_backward, run_backward_input, run_backward_params, run_forward
from fundl._common.suggestions import with_suggestions
from fundl.layer import Model
from fundl.model import compose
from fundl.tree import describe


@with_suggestions
def check_vjp(
    params: Model,
    x: object,
    *,
    tolerance: float = 1e-6,
    directions: int = 3,
    step: float = 1e-5,
    key: Tensor | None = None,
) -> None:
    """Raise an AssertionError that lists what is wrong with a layer or a model, if anything is.

    The parameters and x are copied and cast to float64. Then

    - neither forward nor backward changes what it is given: the parameters, x, the residuals, grad;
    - both give the same bits each time, whether grad mode is on or off or inference mode is on, and nothing requires grad;
    - gradients have the structure, shapes, dtypes and devices of what they belong to; buffers come back as they are;
    - backward_params and backward_input give the two halves of what backward gives;
    - wherever the numbers lie in memory, output and gradients are the same: with the parameters, x or the cotangent transposed,
      with the channels last, strided or expanded, up to the tolerance;
    - backward gives the derivatives that central differences give: for each trainable tensor p of the parameters, and each
      floating-point tensor p of x, along random directions d, with a random cotangent c,

          <vjp(c), d> = <c, f(p + step d) - f(p - step d)> / (2 step)

    The two sides may differ by the tolerance times the right one, and by the differences' rounding error, which is taken as
    2e-14 / step times the sum of |c f|. At a kink of f there is no derivative: choose x some ten steps away from it (from 0,
    for ReLU).

    Args:
        params: a layer, or a nested tuple of layers, with values.
        x: an input, of numbers of the order of 1: a tensor, or a tuple of them for a layer that takes one.
        tolerance: of the derivatives, relative.
        directions: how many to try for each tensor.
        step: half the distance of the differences.
        key: what directions and cotangents are drawn from; key(0) unless given.

    Raises:
        AssertionError: something is wrong. The message names each wrong tensor, such as ``model[0].weight`` or ``x``, and the
            layout in which it was wrong.
        TypeError: params is not a model.
        ValueError: params or x has no values (it is on the meta device), or an option is not positive.

    >>> from fundl import Tanh, check_vjp
    >>> check_vjp(Tanh(), torch.tensor([0.3, -1.2]))
    """
    compose(params)  # raises unless it is a model
    if any(leaf.is_meta for leaf in tree.leaves((params, x))):
        raise ValueError(
            "there is nothing to check without values: call initialize(key(0), model), and make x on a real device"
        )
    if not (tolerance > 0 and directions > 0 and step > 0):
        raise ValueError(f"{tolerance=}, {directions=} and {step=} must all be positive")
    key = random.key(0) if key is None else key
    with torch.no_grad():
        point = tree.cast_to(_Point(params, x), torch.float64)
        output, _ = run_forward(*tree.map(torch.clone, point))  # of copies, which it may change
        given = _Given(*tree.map(torch.clone, point), _random_like(output, key))
        faults = (
            _mutations(given)
            or _variations(given)
            or _misfits(given, tolerance)
            or _wrong_derivatives(given, key, tolerance=tolerance, directions=directions, step=step)
            or _layout_faults(given, tolerance)
        )
    if faults:
        raise AssertionError("\n  ".join((f"{describe(params)} breaks the contract of a layer:", *faults)))


@with_suggestions
def assert_trees_close(actual: object, expected: object, *, rtol: float, atol: float) -> None:
    """Raise an AssertionError unless two trees have the same structure, shapes and dtypes, and nearly the same numbers.

    For each element, |actual - expected| <= atol + rtol |expected|. NaN is close to NaN, and None to None.

    Raises:
        AssertionError: the message lists the tensors that differ, the worst first, each with its worst element.

    >>> from fundl import assert_trees_close
    >>> assert_trees_close({"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([1.0, 2.5])}, rtol=1e-3, atol=0.0)
    Traceback (most recent call last):
    AssertionError: the trees are not close:
      ['a'][1] is 2.0 instead of 2.5 (1 of 2 elements differ)
    """
    if faults := _distances(actual, expected, rtol=rtol, atol=atol):
        raise AssertionError("\n  ".join(("the trees are not close:", *faults)))


# --- Trees of named tensors --------------------------------------------------------------------------------------------


class _Point(NamedTuple):
    """Where a model is differentiated, and also the gradient there: its paths are the names that messages use."""

    model: Model
    x: object


class _Given(NamedTuple):
    """All that a run needs: what may lie in memory in one way or another."""

    model: Model
    x: object
    grad: object


class _Run(NamedTuple):
    """All that comes out of it, under the names that messages use."""

    output: object
    residuals: object
    gradient: _Point


def _run(given: _Given) -> _Run:
    output, residuals = run_forward(given.model, given.x)
    return _Run(output, residuals, _Point(*run_backward(given.model, residuals, given.grad)))


def _random_like(output: object, key: Tensor) -> object:
    """A cotangent for an output: a normally distributed number for each of its numbers."""
    keys = iter(random.split(key, len(tree.leaves(output))))
    return tree.map(lambda leaf: _normal(next(keys), leaf), output)


def _normal(key: Tensor, like: Tensor) -> Tensor:
    return random.normal(key, tuple(like.shape), dtype=torch.float64).to(like)


def _named(values: object, name: str = "") -> dict[str, Tensor]:
    """The tensors of a tree by their paths; residuals may hold other things, a shape, say."""
    places = zip(tree.paths(values), tree.flatten(values)[0], strict=True)
    return {(name + path).removeprefix("."): leaf for path, leaf in places if isinstance(leaf, Tensor)}


def _trainable(point: _Point) -> dict[str, Tensor]:
    """The trainable ones of a point, likewise."""
    paths = (path.removeprefix(".") for path in tree.trainable_paths(point))
    return dict(zip(paths, tree.trainable_leaves(point), strict=True))


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """The names of the tensors whose bits differ."""
    return [name for name in before | after if not tree.equal(before.get(name), after.get(name))]


# --- Purity ------------------------------------------------------------------------------------------------------------


def _mutations(given: _Given) -> list[str]:
    """What forward or backward changes of that which it should only read."""
    tensors = _named(given)
    before = tree.map(torch.clone, tensors)
    _, residuals = run_forward(given.model, given.x)
    if changed := _changed(before, tensors):
        return [f"forward changes {name}" for name in changed]
    tensors |= _named(residuals, "residuals")
    before = tree.map(torch.clone, tensors)
    first, second = (_named(_Point(*run_backward(given.model, residuals, given.grad))) for _ in range(2))
    if changed := _changed(before, tensors):
        return [f"backward changes {name}" for name in changed]
    return [f"a second backward gives another gradient of {name}" for name in _changed(first, second)]


def _variations(given: _Given) -> list[str]:
    """What comes out different a second time or in another grad mode, or requires grad."""
    first = _named(_run(given))
    modes = {"a second time": torch.no_grad, "with grad mode on": torch.enable_grad, "in inference mode": torch.inference_mode}
    for when, mode in modes.items():
        with mode():
            again = _named(_run(given))
        different = [f"{name} comes out different {when}" for name in _changed(first, again)]
        taped = [f"{name} requires grad {when}" for name, tensor in again.items() if tensor.requires_grad]
        if different or taped:
            return different + taped
    return []


# --- Structure ---------------------------------------------------------------------------------------------------------


def _misfits(given: _Given, tolerance: float) -> list[str]:
    """Where outputs and gradients are not of the structure, shapes, dtypes and devices that they should be."""
    point, (output, residuals, gradient) = _Point(*given[:2]), _run(given)
    faults = [
        f"the output is {describe(leaf)}, though the parameters and the input are float64"
        for leaf in tree.leaves(output)
        if leaf.is_floating_point() and leaf.dtype != torch.float64
    ]
    for name, values, grads in zip(_Point._fields, point, gradient, strict=True):
        faults += _other_structure(values, grads, names=(name, "its gradient"))
    if faults:
        return faults
    tensors, gradients, trainable = _named(point), _named(gradient), _trainable(point)
    faults = [
        _misfit(name, tensors.get(name), gradients.get(name), buffer=name in tensors and name not in trainable)
        for name in tensors | gradients
    ]
    own = run_backward_params(given.model, residuals, given.grad)
    if distances := _distances(own, gradient.model, rtol=tolerance, atol=tolerance):
        faults.append(f"backward_params does not give what backward gives: model{distances[0]}")
    with_grad_x = gradient._replace(x=run_backward_input(given.model, residuals, given.grad))
    if distances := _distances(with_grad_x, gradient, rtol=tolerance, atol=tolerance):
        faults.append(f"backward_input does not give what backward gives: {distances[0].removeprefix('.')}")
    return [fault for fault in faults if fault]


def _misfit(name: str, leaf: Tensor | None, grad: Tensor | None, *, buffer: bool) -> str:
    """What is wrong with the form of a gradient, if anything is; integers have none."""
    if buffer:
        return "" if tree.equal(leaf, grad) else f"backward does not hand back the buffer {name} as it is"
    if leaf is not None and not leaf.is_floating_point():
        return ""
    fits = describe(leaf) == describe(grad)
    return "" if fits else f"the gradient of {name} is {describe(grad)}, but {name} is {describe(leaf)}"


def _other_structure(first: object, second: object, *, names: tuple[str, str]) -> list[str]:
    """Where two trees differ in structure."""
    try:
        tree.require_same_structure(first, second, names=names)
    except TypeError as error:
        return [str(error)]
    return []


def _distances(actual: object, expected: object, *, rtol: float, atol: float) -> list[str]:
    """Where two trees are not close, the worst first."""
    if differences := _other_structure(actual, expected, names=("the actual tree", "the expected tree")):
        return differences
    places = zip(tree.paths(actual), tree.flatten(actual)[0], tree.flatten(expected)[0], strict=True)
    found = [_distance(path, one, other, rtol=rtol, atol=atol) for path, one, other in places]
    return [message for distance, message in sorted(found, reverse=True) if message]


def _distance(path: str, actual: Tensor | None, expected: Tensor | None, *, rtol: float, atol: float) -> tuple[float, str]:
    """How far the worst element is off, and what there is to say about it: nothing, if it is close."""
    if describe(actual) != describe(expected):
        return math.inf, f"{path or 'it'} is {describe(actual)} instead of {describe(expected)}"
    if actual is None or expected is None:
        return 0.0, ""
    one, other = actual.to("cpu", torch.float64), expected.to("cpu", torch.float64)
    far = ~torch.isclose(one, other, rtol=rtol, atol=atol, equal_nan=True)
    if not far.any():
        return 0.0, ""
    distances = torch.where(far, (one - other).abs().nan_to_num(math.inf), -1.0)
    index = tuple(int(place) for place in torch.unravel_index(distances.argmax(), distances.shape))
    where = f"{path}{list(index) if index else ''}" or "it"
    message = f"{where} is {float(one[index])} instead of {float(other[index])}"
    return float(distances[index]), f"{message} ({int(far.sum())} of {far.numel()} elements differ)"


# --- Layouts -----------------------------------------------------------------------------------------------------------


def _layout_faults(given: _Given, tolerance: float) -> list[str]:
    """What comes out different, or not at all, if something that goes in lies in memory in another order."""
    expected, faults = _run(given), list[str]()
    for name, layout in LAYOUTS.items():
        moved = tree.map(layout, given)
        for what, some in (
            ("the parameters", given._replace(model=moved.model)),
            ("x", given._replace(x=moved.x)),
            ("grad", given._replace(grad=moved.grad)),
        ):
            if [leaf.stride() for leaf in tree.leaves(some)] != [leaf.stride() for leaf in tree.leaves(given)]:
                own = expected
                if layout is expanded:  # of other numbers
                    own = _run(tree.map(lambda leaf: leaf.clone(memory_format=torch.contiguous_format), some))
                faults += _layout_fault(some, own, tolerance, f"with {what} {name}")
    return faults


def _layout_fault(given: _Given, expected: _Run, tolerance: float, when: str) -> list[str]:
    try:
        found = _run(given)
    except Exception as error:  # whatever the layer raises is what is wrong
        return [f"{when}, {type(error).__name__}: {str(error).splitlines()[0]}"]
    found, expected = found._replace(residuals=None), expected._replace(residuals=None)
    distances = _distances(found, expected, rtol=tolerance, atol=tolerance)
    return [f"{when}, {distance.removeprefix('.')}" for distance in distances[:1]]


# --- Central differences -----------------------------------------------------------------------------------------------


def _wrong_derivatives(given: _Given, key: Tensor, *, tolerance: float, directions: int, step: float) -> list[str]:
    """Which gradients are not what central differences give."""
    point, (output, _, gradient) = _Point(*given[:2]), _run(given)
    cotangent, gradients = _vector(given.grad), _named(gradient)
    noise = 2e-14 / step * float((cotangent * _vector(output)).abs().sum())
    faults = []
    for place, (name, leaf) in enumerate(_trainable(point).items()):
        if leaf.is_floating_point():
            ways = [_normal(way_key, leaf) for way_key in random.split(random.fold_in(key, place), directions)]
            got = [float((gradients[name] * way).sum()) for way in ways]
            expected = [float(cotangent @ _difference(point, place, step * way)) / (2 * step) for way in ways]
            faults += _disagreement(name, list(zip(got, expected, strict=True)), tolerance=tolerance, noise=noise)
    return faults


def _difference(point: _Point, place: int, move: Tensor) -> Tensor:
    """By how much the output differs between one trainable tensor moved ahead and moved back."""
    leaves = tree.trainable_leaves(point)
    ahead, behind = (
        tree.with_trainable_leaves(point, [*leaves[:place], leaves[place] + way, *leaves[place + 1 :]]) for way in (move, -move)
    )
    return _vector(run_forward(*ahead)[0]) - _vector(run_forward(*behind)[0])


def _vector(values: object) -> Tensor:
    """All numbers of a tree, in one vector."""
    return torch.cat([leaf.reshape(-1) for leaf in tree.leaves(values)])


def _disagreement(name: str, pairs: list[tuple[float, float]], *, tolerance: float, noise: float) -> list[str]:
    """The worst of the derivatives that are not what they should be, in words."""
    wrong = [
        (abs(got - expected) / abs(expected) if expected else math.inf, got, expected)
        for got, expected in pairs
        if not abs(got - expected) <= tolerance * abs(expected) + noise  # so written that NaN is wrong
    ]
    return [
        f"{name}: backward gives a derivative of {got:.6g}, central differences give {expected:.6g}: relative error {error:.2g}"
        for error, got, expected in sorted(wrong)[-1:]
    ]
