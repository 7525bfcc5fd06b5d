"""Transforms one after the other, as one transform."""

from typing import Any, Self, TypeAlias, TypeVar, cast, final, overload

import attrs
from torch import Tensor
from typing_extensions import override

from fundl._common.suggestions import name_of
from fundl.optim.flat import Tensors
from fundl.optim.loss_scale import DynamicLossScale
from fundl.optim.search import Search
from fundl.optim.transform import Rule, Transform
from fundl.tree import Splits

S1 = TypeVar("S1")
S2 = TypeVar("S2")
S3 = TypeVar("S3")
S4 = TypeVar("S4")
S5 = TypeVar("S5")
States = TypeVar("States", bound=tuple[object, ...])

# A chain holds transforms of any states, and no other type says so: Transform is invariant in its state, because `change`
# takes one and returns one.
AnyTransform: TypeAlias = Transform[Any]  # type: ignore[explicit-any]
"""A transform of any state, for what takes transforms of all kinds, such as a list of optimizers to compare."""

AnyRule: TypeAlias = Rule[Any]  # type: ignore[explicit-any]


@final
@attrs.frozen
class _Chain(Transform[States]):
    """Transforms in order. See `chain`.

    Its state is the tuple of theirs. `chain` says so to type checkers, which cannot follow a loop over transforms of all
    kinds: hence the casts.
    """

    transforms: tuple[AnyTransform, ...]

    @property
    @override
    def elementwise(self) -> bool:
        return all(transform.elementwise for transform in self.transforms)

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> States:
        return cast("States", tuple(transform.start(leaves, paths) for transform in self.transforms))

    @property
    @override
    def writes_over(self) -> bool:
        return all(transform.writes_over for transform in self.transforms)

    @override
    def change(self, grads: Tensors, state: States, params: Tensors) -> tuple[Tensors, States]:
        return self._through([transform.change for transform in self.transforms], grads, state, params)

    @override
    def move(self, grads: Tensors, state: States, params: Tensors) -> tuple[Tensors, States]:
        rules: list[AnyRule] = [transform.change for transform in self.transforms[:-1]]
        return self._through([*rules, self.transforms[-1].move], grads, state, params)

    @override
    def change_over(self, grads: Tensors, state: States, params: Tensors) -> tuple[Tensors, States]:
        return self._through([transform.change_over for transform in self.transforms], grads, state, params)

    @override
    def move_over(self, grads: Tensors, state: States, params: Tensors) -> tuple[Tensors, States]:
        rules: list[AnyRule] = [transform.change_over for transform in self.transforms[:-1]]
        return self._through([*rules, self.transforms[-1].move_over], grads, state, params)

    def _through(self, rules: list[AnyRule], grads: Tensors, state: States, params: Tensors) -> tuple[Tensors, States]:
        """What comes of one rule after the other: the last may be a kernel that moves the params."""
        states: list[object] = []
        results, same = grads, True
        for rule, inner in zip(rules, state, strict=True):
            results, next_inner = rule(results, inner, params)
            states.append(next_inner)
            same = same and next_inner is inner
        return results, state if same else cast("States", tuple(states))

    @override
    def rest(self, state: States, params: Tensors) -> tuple[Tensors, States]:
        for place, transform in enumerate(self.transforms[:-1]):
            if transform.weighed(1.0) is not transform:
                raise ValueError(
                    f"part {place} of the chain gathers micro-batches, but only the last can be finished in the middle of a"
                    " window: write chain(..., accumulate(...))"
                )
        params, last = self.transforms[-1].rest(state[-1], params)
        return params, state if last is state[-1] else cast("States", (*state[:-1], last))

    @override
    def weighed(self, weight: float | Tensor) -> Self:
        parts = tuple([transform.weighed(weight) for transform in self.transforms])
        unchanged = all(part is transform for part, transform in zip(parts, self.transforms, strict=True))
        return self if unchanged else attrs.evolve(self, transforms=parts)

    @override
    def divided(self, splits: Splits) -> Self:
        return attrs.evolve(self, transforms=tuple([transform.divided(splits) for transform in self.transforms]))


@overload
def chain(first: Transform[S1], /) -> Transform[tuple[S1]]: ...
@overload
def chain(first: Transform[S1], second: Transform[S2], /) -> Transform[tuple[S1, S2]]: ...
@overload
def chain(first: Transform[S1], second: Transform[S2], third: Transform[S3], /) -> Transform[tuple[S1, S2, S3]]: ...
@overload
def chain(
    first: Transform[S1], second: Transform[S2], third: Transform[S3], fourth: Transform[S4], /
) -> Transform[tuple[S1, S2, S3, S4]]: ...
@overload
def chain(
    first: Transform[S1], second: Transform[S2], third: Transform[S3], fourth: Transform[S4], fifth: Transform[S5], /
) -> Transform[tuple[S1, S2, S3, S4, S5]]: ...
@overload
def chain(*transforms: AnyTransform) -> Transform[tuple[object, ...]]: ...
def chain(*transforms: AnyTransform) -> AnyTransform:
    """The transform that applies others from left to right: each makes its updates from those of the one before.

    Args:
        transforms: at least one. The last of an optimizer is `scale_by_learning_rate`, or an optimizer.

    Raises:
        ValueError: there is no transform, or one of them is a `dynamic_loss_scale`, or a `sam` or `lbfgs`.
        TypeError: a part is not a transform (a function that makes one, say).

    >>> import torch
    >>> from fundl import chain, clip_by_value, scale
    >>> transform = chain(clip_by_value(1.0), scale(-0.5))
    >>> params, grads = {"bias": torch.zeros(2)}, {"bias": torch.tensor([0.5, 3.0])}
    >>> transform.update(grads, transform.init(params), params)[0]
    {'bias': tensor([-0.2500, -0.5000])}
    """
    if not transforms:
        raise ValueError("a chain needs at least one transform: chain(clip_by_global_norm(1.0), sgd(0.1)), say")
    parts: tuple[object, ...] = transforms
    for place, part in enumerate(parts):
        if not isinstance(part, Transform):
            if isinstance(part, tuple | list):
                raise TypeError(f"part {place} of the chain is a {name_of(part)}, not a transform: write chain(*transforms)")
            if callable(part):
                raise TypeError(f"part {place} of the chain is {name_of(part)}, not a transform: call it to make one")
            raise TypeError(f"part {place} of the chain is {part!r}, not a transform, such as sgd(0.1)")
        if isinstance(part, DynamicLossScale):
            raise ValueError("dynamic_loss_scale is the outermost of all transforms: write dynamic_loss_scale(chain(...))")
        if isinstance(part, Search):
            raise ValueError(
                f"part {place} of the chain evaluates the loss at other params, so it is the outermost of all transforms: write"
                " sam(chain(...)); lbfgs has no place for other transforms"
            )
    return _Chain(transforms)
