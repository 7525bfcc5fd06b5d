"""Other optimizers for other parts of a model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Self, TypeAlias, TypeVar, final

import attrs
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import ListedABC
from fundl._common.suggestions import with_suggestions
from fundl.optim.chain import AnyRule, AnyTransform
from fundl.optim.decay import Predicate
from fundl.optim.flat import OfSome, Tensors
from fundl.optim.loss_scale import DynamicLossScale
from fundl.optim.transform import S, Transform, require_transform
from fundl.tree import Splits, beyond_of, describe

Chosen: TypeAlias = str | Predicate
"""Which leaves a part has: those at a path and below it, such as ".head" or "[2]", or those of which a function says so."""

T = TypeVar("T")

_States: TypeAlias = tuple[object, ...]


@final
@attrs.frozen(eq=False)
class PartitionState(OfSome, Generic[S], metaclass=ListedABC):
    """The state of `partition`.

    Args:
        inner: the states of the transforms, in their order.
        part: for each leaf, the place of the transform that it belongs to. It is static.
    """

    inner: S
    part: tuple[int, ...]

    @override
    def portions(self, parts: tuple[T, ...]) -> Sequence[tuple[object, tuple[T, ...]]]:
        states: object = self.inner
        assert isinstance(states, tuple)  # a state for each transform
        return [(one, _of(parts, self.part, place)) for place, one in enumerate(states)]


@final
@attrs.frozen
class Partition(Transform[PartitionState[_States]]):
    """See `partition`."""

    labels: tuple[str, ...]
    transforms: tuple[AnyTransform, ...]
    chosen: tuple[Chosen | None, ...]
    splits: Splits = attrs.field(default=(), repr=False)

    @property
    @override
    def writes_over(self) -> bool:
        return all(transform.writes_over for transform in self.transforms)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> PartitionState[_States]:
        part = self._parts(leaves, paths)
        for place, (label, chosen) in enumerate(zip(self.labels, self.chosen, strict=True)):
            if isinstance(chosen, str) and place not in part and beyond_of(self.splits) is None:
                raise ValueError(
                    f"there is no leaf at {chosen or 'the root'}, where the part {label!r} has its leaves: the params have"
                    f" some at {_listed(paths)}"
                )
        states: list[object] = []
        for place, transform in enumerate(self._for_parts(part)):
            its_paths = tuple([path for path, its in zip(paths, part, strict=True) if its == place])
            states.append(transform.start(_of(leaves, part, place), its_paths) if its_paths else ())
        return PartitionState(tuple(states), part)

    def _parts(self, leaves: Tensors, paths: tuple[str, ...]) -> tuple[int, ...]:
        """The place of the part that each leaf is in: of exactly one."""
        rest = self.chosen.index(None) if None in self.chosen else None
        found = [
            [place for place, chosen in enumerate(self.chosen) if chosen is not None and _is_chosen(chosen, path, leaf)]
            for path, leaf in zip(paths, leaves, strict=True)
        ]
        several = [
            f"{path or 'the root'} is in {' and '.join(repr(self.labels[place]) for place in places)}"
            for path, places in zip(paths, found, strict=True)
            if len(places) > 1
        ]
        if several:
            raise ValueError(f"each leaf is in one part, but {'; '.join(several)}")
        none = [path for path, places in zip(paths, found, strict=True) if not places]
        if none and rest is None:
            raise ValueError(
                f"each leaf is in one part, but in none of {_listed(self.labels)} is {_listed(none)}: a part that `where` does"
                " not name has all that the others have not"
            )
        return tuple([places[0] if places else (rest or 0) for places in found])

    @override
    def change(
        self, grads: Tensors, state: PartitionState[_States], params: Tensors
    ) -> tuple[Tensors, PartitionState[_States]]:
        return self._by([transform.change for transform in self._for_parts(state.part)], grads, state, params)

    @override
    def move(self, grads: Tensors, state: PartitionState[_States], params: Tensors) -> tuple[Tensors, PartitionState[_States]]:
        return self._by([transform.move for transform in self._for_parts(state.part)], grads, state, params)

    @override
    def change_over(
        self, grads: Tensors, state: PartitionState[_States], params: Tensors
    ) -> tuple[Tensors, PartitionState[_States]]:
        return self._by([transform.change_over for transform in self._for_parts(state.part)], grads, state, params)

    @override
    def move_over(
        self, grads: Tensors, state: PartitionState[_States], params: Tensors
    ) -> tuple[Tensors, PartitionState[_States]]:
        return self._by([transform.move_over for transform in self._for_parts(state.part)], grads, state, params)

    @override
    def rest(self, state: PartitionState[_States], params: Tensors) -> tuple[Tensors, PartitionState[_States]]:
        def rest_of(transform: AnyTransform) -> AnyRule:
            return lambda _grads, its_state, its_params: transform.rest(its_state, its_params)

        return self._by([rest_of(transform) for transform in self._for_parts(state.part)], params, state, params)

    @override
    def weighed(self, weight: float | Tensor) -> Self:
        parts = tuple([transform.weighed(weight) for transform in self.transforms])
        unchanged = all(part is transform for part, transform in zip(parts, self.transforms, strict=True))
        return self if unchanged else attrs.evolve(self, transforms=parts)

    @override
    def divided(self, splits: Splits) -> Self:
        if beyond_of(splits) is not None:
            for label, transform in zip(self.labels, self.transforms, strict=True):
                if not transform.elementwise:
                    raise TypeError(
                        f"the part {label!r} looks at more than each number by itself, and some stages of the pipeline may have"
                        " nothing of it: such transforms, as clip_by_global_norm, go around partition"
                    )
        return attrs.evolve(self, splits=splits)

    def _for_parts(self, part: tuple[int, ...]) -> Sequence[AnyTransform]:
        """The transforms, each for the leaves that it has."""
        if not self.splits:
            return self.transforms
        return [transform.divided(_of(self.splits, part, place)) for place, transform in enumerate(self.transforms)]

    def _by(
        self, rules: Sequence[AnyRule], grads: Tensors, state: PartitionState[_States], params: Tensors
    ) -> tuple[Tensors, PartitionState[_States]]:
        """What comes of a rule for each part."""
        part = state.part
        if len(part) != len(params) or len(state.inner) != len(rules):
            raise ValueError("the state is of other leaves, or of other parts")
        results: list[Tensor] = [*params]
        inner: list[object] = []
        same_params = same_state = True
        for place, (rule, its_state) in enumerate(zip(rules, state.inner, strict=True)):
            if place not in part:  # a function chose none, or there is no rest
                inner.append(its_state)
                continue
            its_params = _of(params, part, place)
            its_results, next_state = rule(_of(grads, part, place), its_state, its_params)
            inner.append(next_state)
            same_params, same_state = same_params and its_results is its_params, same_state and next_state is its_state
            filling = iter(its_results)
            results = [next(filling) if its == place else one for one, its in zip(results, part, strict=True)]
        next_states = state if same_state else PartitionState(tuple(inner), part)
        return params if same_params else tuple(results), next_states


def _of(tensors: tuple[T, ...], part: tuple[int, ...], place: int) -> tuple[T, ...]:
    return tuple([tensor for tensor, its in zip(tensors, part, strict=True) if its == place])


def _is_chosen(chosen: Chosen, path: str, leaf: Tensor) -> bool:
    if isinstance(chosen, str):
        return path == chosen or path.startswith((f"{chosen}.", f"{chosen}["))
    return bool(chosen(path, leaf))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name or "the root" for name in names)


@with_suggestions
def partition(transforms: Mapping[str, AnyTransform], *, where: Mapping[str, Chosen]) -> Partition:
    """Let each part of a model have a transform of its own; what a transform looks at, as a norm, is that of its part.

        optimizer = partition({"head": adamw(1e-3), "rest": sgd(1e-2)}, where={"head": ".head"})

    Each trainable leaf belongs to exactly one part, which `init` finds out once.

    Args:
        transforms: of the parts, by name: chains, or optimizers. ``scale(0.0)`` leaves a part as it is.
        where: for the parts which leaves they have: a path, such as ".head" or "[2]", for all that is there and below; or a
            function of a leaf's path and the leaf, such as `is_matrix`. One part may be left out: it has the rest.

    Raises:
        ValueError: there are fewer than two parts, `where` names another one, or leaves more than one out; a transform is a
            `dynamic_loss_scale`, which goes around; or, by `init`, a leaf is in no part or in several, or none
            is at a path.
        TypeError: what is given is no transform, or no path or function.

    >>> import torch
    >>> from fundl import partition, sgd
    >>> optimizer = partition({"head": sgd(0.5), "rest": sgd(0.1)}, where={"head": "['head']"})
    >>> params, grads = ({name: torch.full((2,), value) for name in ("body", "head")} for value in (0.0, 1.0))
    >>> optimizer.step(grads, optimizer.init(params), params)[0]
    {'body': tensor([-0.1000, -0.1000]), 'head': tensor([-0.5000, -0.5000])}
    """
    given: object = transforms
    if not isinstance(given, Mapping) or not isinstance(where, Mapping):
        raise TypeError(
            "partition takes transforms and where by the names of the parts:"
            ' partition({"head": adamw(1e-3), "rest": sgd(1e-2)}, where={"head": ".head"})'
        )
    if len(transforms) < 2:
        raise ValueError(f"a partition has two parts or more, not {_listed([*transforms]) if transforms else 'none'}")
    for label, transform in transforms.items():
        require_transform(transform)
        if isinstance(transform, DynamicLossScale):
            raise ValueError(
                f"dynamic_loss_scale, of the part {label!r}, is the outermost of all transforms: write"
                " dynamic_loss_scale(partition(...))"
            )
    for label, chosen in where.items():
        if label not in transforms:
            raise ValueError(f"where names the part {label!r}, but the transforms are of {_listed([*transforms])}")
        _require_chosen(label, chosen)
    left_out = [label for label in transforms if label not in where]
    if len(left_out) > 1:
        raise ValueError(
            f"where leaves out {_listed(left_out)}, but only one part can have the rest: say which leaves the others have"
        )
    return Partition(tuple(transforms), tuple(transforms.values()), tuple([where.get(label) for label in transforms]))


def _require_chosen(label: str, chosen: object) -> None:
    if not isinstance(chosen, str | Callable):
        raise TypeError(
            f"where[{label!r}] is a path, such as '.head', or a function of a path and a leaf, not {describe(chosen)}"
        )
