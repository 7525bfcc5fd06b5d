"""Hyper-parameters in the state, where they can be read, and set between two steps of a run, compiled or not."""

import functools
from collections.abc import Mapping
from typing import Generic, TypeVar, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.listed import Listed
from fundl._common.modes import is_untraced
from fundl._common.numbers import BY_WORDS, Bounds, number
from fundl.optim._numbers import WithNumbers, bounds_at, listed, number_at, numbers_of, replaced
from fundl.optim.flat import Number, Tensors
from fundl.optim.transform import S, Transform, require_transform
from fundl.tree import Record, describe

T = TypeVar("T")


@final
@attrs.frozen(eq=False)
class AdjustableState(Record, Generic[S], metaclass=Listed):
    """The state of `adjustable`.

    Args:
        numbers: the hyper-parameters, float64 without axes.
        inner: the state of the transform that has them.
        names: what each is called.
        bounds: what each must be, in words.
    """

    numbers: Tensors
    inner: S
    names: tuple[str, ...]
    bounds: tuple[str, ...]

    def by_name(self) -> dict[str, Tensor]:
        """Each number with its name."""
        return dict(zip(self.names, self.numbers, strict=True))


@final
@attrs.frozen
class Adjustable(WithNumbers[S, AdjustableState[S]]):
    """See `adjustable`."""

    @property
    @override
    def decides(self) -> tuple[str, ...]:
        return tuple(numbers_of(self.transform))

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> AdjustableState[S]:
        places, device = numbers_of(self.transform), "meta" if leaves[0].is_meta else "cpu"  # where nobody waits to read them
        values = [number_at(self.transform, path) for path in places.values()]
        numbers = tuple(torch.tensor(value, dtype=torch.float64, device=device) for value in values)
        bounds = tuple(bounds_at(self.transform, path) for path in places.values())
        return AdjustableState(numbers, self.transform.start(leaves, paths), tuple(places), bounds)

    @override
    def rest(self, state: AdjustableState[S], params: Tensors) -> tuple[Tensors, AdjustableState[S]]:
        results, inner = self._adjusted(state).rest(state.inner, params)
        return results, self._after(state, inner)

    @override
    def _inner(self, state: AdjustableState[S]) -> S:
        return state.inner

    @override
    def _after(self, state: AdjustableState[S], inner: S) -> AdjustableState[S]:
        if inner is state.inner:
            return state
        return AdjustableState(state.numbers, inner, state.names, state.bounds)

    @override
    def _after_over(self, state: AdjustableState[S], inner: S) -> AdjustableState[S]:
        return self._after(state, inner)

    @override
    def _adjusted(self, state: AdjustableState[S]) -> Transform[S]:
        """The transform with the numbers of the state: as numbers, where they can be looked at, else as tensors."""
        if type(state) is not AdjustableState:
            raise TypeError("the state is of another transform")
        numbers = state.numbers
        if all(map(is_untraced, numbers)) and not numbers[0].is_meta:
            return _with_values(self.transform, state.names, tuple(map(Tensor.item, numbers)))
        return _with_numbers(self.transform, state.by_name(), check=False)


# Steps between which nothing was set have the same numbers: the transform that has them is made once.
@functools.lru_cache(maxsize=64)
def _with_values(  # type: ignore[misc]  # a cache forgets the type of the state
    transform: Transform[S], names: tuple[str, ...], values: tuple[float, ...]
) -> Transform[S]:
    return _with_numbers(transform, dict(zip(names, values, strict=True)), check=True)


def _with_numbers(transform: Transform[S], numbers: Mapping[str, Number], *, check: bool) -> Transform[S]:
    places = numbers_of(transform)
    if places.keys() != numbers.keys():
        raise ValueError(
            f"the state is of another transform: it has the hyper-parameters {listed(numbers)}, but the optimizer"
            f" {listed(places)}"
        )
    return replaced(transform, {places[name]: value for name, value in numbers.items()}, check=check)


# --- What a user calls ---------------------------------------------------------------------------------------------------


def adjustable(transform: Transform[S]) -> Adjustable[S]:
    """Keep the hyper-parameters of a transform in its state, where `hyperparameters` and `with_hyperparameters` find them.

    They are the numbers of the transform and of all that it is made of: rate, weight_decay, momentum, beta1, max_norm, ... A
    step takes them from the state, so one that is compiled is compiled once. In an eager step the bits are those of the
    transform with these numbers. A rate that is a schedule stays one; a momentum of 0 stays 0, as its state remembers nothing.
    In an ensemble, the runs share them where the transform is elementwise; else each has its own.

    Args:
        transform: an optimizer, or any other transform.

    Raises:
        TypeError: it is not a transform.
        ValueError: no number of it may be adjusted.

    >>> from fundl import adamw, adjustable, hyperparameters, with_hyperparameters
    >>> optimizer, params = adjustable(adamw(0.1)), torch.ones(2)
    >>> state = optimizer.init(params)
    >>> list(hyperparameters(state))
    ['beta1', 'beta2', 'epsilon', 'weight_decay', 'rate']
    >>> hyperparameters(state)["rate"]
    tensor(0.1000, dtype=torch.float64)
    >>> state = with_hyperparameters(state, rate=0.01, weight_decay=0.0)
    >>> optimizer.step(torch.tensor([1.0, -1.0]), state, params)[0]
    tensor([0.9900, 1.0100])
    """
    require_transform(transform)
    if not numbers_of(transform):
        raise ValueError(
            f"{transform!r} has no number that could be adjusted: a schedule decides by itself, and a transform of yours says"
            ' on its class which numbers it has, numbers = ("factor",)'
        )
    return Adjustable(transform)


def hyperparameters(state: object) -> dict[str, Tensor]:
    """The hyper-parameters in a state, by name: copies of them, float64 without axes.

    Args:
        state: of an `adjustable` optimizer; or what holds one, as a `TrainState` does.

    Raises:
        ValueError: there is no such state in it, or there are several.

    >>> from fundl import adjustable, hyperparameters, sgd
    >>> hyperparameters(adjustable(sgd(0.1)).init(torch.zeros(2)))
    {'weight_decay': tensor(0., dtype=torch.float64), 'rate': tensor(0.1000, dtype=torch.float64)}
    """
    return {name: value.clone() for name, value in _found_in(state).by_name().items()}


def with_hyperparameters(state: T, numbers: Mapping[str, float | Tensor] | None = None, /, **more: float | Tensor) -> T:
    """The state with other hyper-parameters; what is not given stays as it is.

        state = with_hyperparameters(state, rate=0.1 * hyperparameters(state)["rate"])

    Args:
        state: of an `adjustable` optimizer; or what holds one, as a `TrainState` does.
        numbers: by name, for names with a dot: ``{"head.rate": 0.1}``.
        more: by name.

    Returns:
        A new state.

    Raises:
        TypeError: what is given is no number.
        ValueError: it is out of the bounds that the optimizer has for it; or the state has no hyper-parameter of that name.

    >>> from fundl import adjustable, hyperparameters, sgd, with_hyperparameters
    >>> state = with_hyperparameters(adjustable(sgd(0.1)).init(torch.zeros(2)), rate=0.01)
    >>> hyperparameters(state)["rate"]
    tensor(0.0100, dtype=torch.float64)
    """
    if numbers is not None and not isinstance(numbers, Mapping):
        raise TypeError(f'numbers are a dict of them by name, such as {{"head.rate": 0.1}}, not {describe(numbers)}')
    found, given = _found_in(state), {**(numbers or {}), **more}
    old, bounds = found.by_name(), dict(zip(found.names, found.bounds, strict=True))
    for name in given:
        if name not in old:
            raise ValueError(f"the state has no hyper-parameter {name!r}: it has {listed(old)}")
    new = tuple(
        (old | {name: _as_like(name, value, old[name], BY_WORDS[bounds[name]]) for name, value in given.items()}).values()
    )
    return tree.map_records(
        lambda record: attrs.evolve(record, numbers=new) if isinstance(record, AdjustableState) else record, state
    )


def _as_like(name: str, value: float | Tensor, old: Tensor, bounds: Bounds) -> Tensor:
    """A number that is given, as the tensor that takes the place of another; in an ensemble it holds for all runs."""
    if isinstance(value, Tensor) and value.shape not in {old.shape, torch.Size()}:
        raise ValueError(f"{name} is one number, of shape {tuple(old.shape)}, not {describe(value)}")
    new = torch.as_tensor(value if isinstance(value, Tensor) else number(name, value), dtype=old.dtype, device=old.device)
    if is_untraced(new) and not new.is_meta:
        for one in new.flatten().tolist():
            bounds.require(name, one)
    return new.detach().expand(old.shape).clone()


def _found_in(state: object) -> AdjustableState[object]:
    found = [record for record in tree.records(state) if isinstance(record, AdjustableState)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"the state has {len(found)} sets of hyper-parameters: make one, adjustable(...) around all of it")
    raise ValueError(
        f"{describe(state)} has no hyper-parameters: the optimizer's are in its state if it is adjustable(optimizer)"
    )
