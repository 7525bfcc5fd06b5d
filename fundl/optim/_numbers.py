"""The numbers in a transform and in those that it is made of: where they are, and the transform with others there."""

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, Self, TypeAlias, cast

import attrs
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl import tree
from fundl._common.numbers import Bounds, finite, non_negative, number
from fundl.optim.chain import AnyTransform
from fundl.optim.flat import Number, Tensors
from fundl.optim.rate import learning_rate
from fundl.optim.transform import S, Transform

Path: TypeAlias = tuple[str | int, ...]
"""Where in a transform a number is: names of fields, and places in tuples of transforms."""

Own = TypeVar("Own")
"""The state of such a transform, with that of the other one inside."""


@attrs.frozen
class WithNumbers(Transform[Own], Generic[S, Own]):
    """A transform around another one, some of whose numbers it gives anew at each step.

    Args:
        transform: the other one.
    """

    transform: Transform[S]

    @abstractmethod
    def _adjusted(self, state: Own) -> Transform[S]:
        """The other transform, with the numbers of this step."""

    @abstractmethod
    def _inner(self, state: Own) -> S:
        """The other one's state, in this one's."""

    @abstractmethod
    def _after(self, state: Own, inner: S) -> Own:
        """The state after a step, made anew, with the other one's."""

    @abstractmethod
    def _after_over(self, state: Own, inner: S) -> Own:
        """The state after a step, which may be written over the one before."""

    @property
    @override
    def elementwise(self) -> bool:
        return self.transform.elementwise

    @property
    @override
    def writes_over(self) -> bool:
        return self.transform.writes_over

    @override
    def change(self, grads: Tensors, state: Own, params: Tensors) -> tuple[Tensors, Own]:
        results, inner = self._adjusted(state).change(grads, self._inner(state), params)
        return results, self._after(state, inner)

    @override
    def move(self, grads: Tensors, state: Own, params: Tensors) -> tuple[Tensors, Own]:
        results, inner = self._adjusted(state).move(grads, self._inner(state), params)
        return results, self._after(state, inner)

    @override
    def change_over(self, grads: Tensors, state: Own, params: Tensors) -> tuple[Tensors, Own]:
        results, inner = self._adjusted(state).change_over(grads, self._inner(state), params)
        return results, self._after_over(state, inner)

    @override
    def move_over(self, grads: Tensors, state: Own, params: Tensors) -> tuple[Tensors, Own]:
        results, inner = self._adjusted(state).move_over(grads, self._inner(state), params)
        return results, self._after_over(state, inner)

    @override
    def loss_scale(self, state: Own) -> Tensor | None:
        return self.transform.loss_scale(self._inner(state))

    @override
    def weighed(self, weight: float | Tensor) -> Self:
        transform = self.transform.weighed(weight)
        return self if transform is self.transform else attrs.evolve(self, transform=transform)

    @override
    def divided(self, splits: tree.Splits) -> Self:
        transform = self.transform.divided(splits)
        return self if transform is self.transform else attrs.evolve(self, transform=transform)


def numbers_of(transform: AnyTransform) -> dict[str, Path]:
    """The hyper-parameters of a transform that may be adjusted, by name, and where in it they are.

    Where several of its parts have the same, the name of the part comes before it: "1.rate" for that of a chain's second.
    What a transform decides at each step is not among them.
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
    return {name: path for name, path in found.items() if name not in transform.decides}


def replaced(transform: Transform[S], numbers: Mapping[Path, Number], *, check: bool) -> Transform[S]:
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
        return replaced(part, numbers, check=check)
    items: list[object] = list(cast("Sequence[object]", part))
    for place in dict.fromkeys(path[0] for path in numbers):
        below = {path[1:]: value for path, value in numbers.items() if path[0] == place}
        items[int(place)] = _replaced_in(items[int(place)], below, check=check)
    return tuple(items)


def _at(transform: AnyTransform, path: Path) -> object:
    value: object = transform
    for step in path:
        value = getattr(value, step) if isinstance(step, str) else cast("Sequence[object]", value)[step]
    return value


def number_at(transform: AnyTransform, path: Path) -> float:
    """The number in a place."""
    return number(str(path[-1]), cast("float", _at(transform, path)))


def bounds_at(transform: AnyTransform, path: Path) -> str:
    """What the validator of a field lets pass, in words; one that is not known here is asked by the next eager step."""
    record = cast("attrs.AttrsInstance", _at(transform, path[:-1]))
    validator: object = attrs.fields_dict(type(record))[str(path[-1])].validator
    if isinstance(validator, Bounds):
        return validator.words
    return non_negative.words if validator is learning_rate else finite.words


def listed(names: Mapping[str, object]) -> str:
    """Names, for a message."""
    return ", ".join(names) or "none"
