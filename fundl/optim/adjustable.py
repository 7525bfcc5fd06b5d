"""Hyper-parameters in the state, where they can be read, and set between two steps of a run, compiled or not."""

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Generic, Self, TypeAlias, TypeVar, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common.listed import Listed
from fundl._common.modes import is_untraced
from fundl._common.numbers import BY_WORDS, Bounds, finite, non_negative, number
from fundl.optim.chain import AnyTransform
from fundl.optim.flat import Number, Tensors
from fundl.optim.rate import learning_rate
from fundl.optim.transform import Rule, S, Transform, require_transform
from fundl.tree import Record, describe

T = TypeVar("T")
Path: TypeAlias = tuple[str | int, ...]
"""Where in a transform a number is: names of fields, and places in tuples of transforms."""


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
class Adjustable(Transform[AdjustableState[S]]):
    """See `adjustable`."""

    transform: Transform[S]

    @property
    @override
    def elementwise(self) -> bool:
        return self.transform.elementwise

    @property
    @override
    def writes_over(self) -> bool:
        return self.transform.writes_over

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> AdjustableState[S]:
        places, device = numbers_of(self.transform), "meta" if leaves[0].is_meta else "cpu"  # where nobody waits to read them
        values = [_number_at(self.transform, path) for path in places.values()]
        numbers = tuple(torch.tensor(value, dtype=torch.float64, device=device) for value in values)
        bounds = tuple(_bounds_at(self.transform, path) for path in places.values())
        return AdjustableState(numbers, self.transform.start(leaves, paths), tuple(places), bounds)

    @override
    def change(self, grads: Tensors, state: AdjustableState[S], params: Tensors) -> tuple[Tensors, AdjustableState[S]]:
        return self._by(self._adjusted(state).change, grads, state, params)

    @override
    def move(self, grads: Tensors, state: AdjustableState[S], params: Tensors) -> tuple[Tensors, AdjustableState[S]]:
        return self._by(self._adjusted(state).move, grads, state, params)

    @override
    def change_over(self, grads: Tensors, state: AdjustableState[S], params: Tensors) -> tuple[Tensors, AdjustableState[S]]:
        return self._by(self._adjusted(state).change_over, grads, state, params)

    @override
    def move_over(self, grads: Tensors, state: AdjustableState[S], params: Tensors) -> tuple[Tensors, AdjustableState[S]]:
        return self._by(self._adjusted(state).move_over, grads, state, params)

    @override
    def rest(self, state: AdjustableState[S], params: Tensors) -> tuple[Tensors, AdjustableState[S]]:
        adjusted = self._adjusted(state)
        return self._by(lambda _grads, inner, leaves: adjusted.rest(inner, leaves), params, state, params)

    @override
    def loss_scale(self, state: AdjustableState[S]) -> Tensor | None:
        return self.transform.loss_scale(state.inner)

    @override
    def weighed(self, weight: float | Tensor) -> Self:
        transform = self.transform.weighed(weight)
        return self if transform is self.transform else attrs.evolve(self, transform=transform)

    @override
    def divided(self, splits: tree.Splits) -> Self:
        transform = self.transform.divided(splits)
        return self if transform is self.transform else attrs.evolve(self, transform=transform)

    def _by(
        self, rule: Rule[S], grads: Tensors, state: AdjustableState[S], params: Tensors
    ) -> tuple[Tensors, AdjustableState[S]]:
        results, inner = rule(grads, state.inner, params)
        return results, state if inner is state.inner else AdjustableState(state.numbers, inner, state.names, state.bounds)

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
            f"the state is of another transform: it has the hyper-parameters {_listed(numbers)}, but the optimizer"
            f" {_listed(places)}"
        )
    return _replaced(transform, {places[name]: value for name, value in numbers.items()}, check=check)


def _replaced(transform: Transform[S], numbers: Mapping[Path, Number], *, check: bool) -> Transform[S]:
    """The transform with other numbers in some places; a tensor is put there past the checks of numbers."""
    changes: dict[str, object] = {}
    for name in dict.fromkeys(path[0] for path in numbers):
        below = {path[1:]: value for path, value in numbers.items() if path[0] == name}
        changes[str(name)] = _replaced_in(getattr(transform, str(name)), below, check=check)
    if check:
        return attrs.evolve(transform, **changes)  # type: ignore[misc]  # every transform is an attrs class
    new = copy.copy(transform)
    for name, value in changes.items():
        object.__setattr__(new, name, value)
    return new


def _replaced_in(part: object, numbers: Mapping[Path, Number], *, check: bool) -> object:
    if () in numbers:
        return numbers[()]
    if isinstance(part, Transform):
        return _replaced(part, numbers, check=check)
    items: list[object] = list(cast("Sequence[object]", part))
    for place in dict.fromkeys(path[0] for path in numbers):
        below = {path[1:]: value for path, value in numbers.items() if path[0] == place}
        items[int(place)] = _replaced_in(items[int(place)], below, check=check)
    return tuple(items)


def numbers_of(transform: AnyTransform) -> dict[str, Path]:
    """The hyper-parameters of a transform that may be adjusted, by name, and where in it they are.

    Where several of its parts have the same, the name of the part comes before it: "1.rate" for that of a chain's second.
    """
    found: dict[str, Path] = {name: (name,) for name in transform.numbers}
    inside: list[tuple[str, str, Path]] = []
    for field in attrs.fields(cast("type[attrs.AttrsInstance]", type(transform))):
        value: object = getattr(transform, field.name)
        if isinstance(value, Transform):
            inside += [(field.name, name, (field.name, *path)) for name, path in numbers_of(value).items()]
        elif isinstance(value, tuple):
            for place, (label, part) in enumerate(zip(transform.labels or map(str, range(len(value))), value, strict=False)):
                if isinstance(part, Transform):
                    inside += [(label, name, (field.name, place, *path)) for name, path in numbers_of(part).items()]
    names = [*found, *(name for _, name, _ in inside)]
    for label, name, path in inside:
        found[name if names.count(name) == 1 and not transform.labels else f"{label}.{name}"] = path
    return found


def _at(transform: AnyTransform, path: Path) -> object:
    value: object = transform
    for step in path:
        value = getattr(value, step) if isinstance(step, str) else cast("Sequence[object]", value)[step]
    return value


def _number_at(transform: AnyTransform, path: Path) -> float:
    return number(str(path[-1]), cast("float", _at(transform, path)))


def _bounds_at(transform: AnyTransform, path: Path) -> str:
    """What the validator of a field lets pass, in words; one that is not known here is asked by the next eager step."""
    record = cast("attrs.AttrsInstance", _at(transform, path[:-1]))
    validator: object = attrs.fields_dict(type(record))[str(path[-1])].validator
    if isinstance(validator, Bounds):
        return validator.words
    return non_negative.words if validator is learning_rate else finite.words


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names) or "none"


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
            raise ValueError(f"the state has no hyper-parameter {name!r}: it has {_listed(old)}")
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
