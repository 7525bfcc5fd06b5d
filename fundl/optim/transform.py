"""The contract of an optimizer: a transform of gradients, as a pure function of its state.

A transform is a frozen record of hyper-parameters. Whoever writes one writes two methods on flat tuples of tensors, `start`
and `change`; the walk over the tree of parameters, and all checks of what its user gives, are here.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Final, Generic, Self, TypeAlias, TypeVar, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import tree
from fundl._common import suggestions
from fundl._common.half import HALF
from fundl._common.listed import ListedABC
from fundl._common.modes import no_grad
from fundl._common.tape import refuse_tape
from fundl.optim._of_all import StateOfAll, state_of_all
from fundl.optim.flat import StateError, Tensors, all_narrowed, all_widened, cuts_along
from fundl.tree import describe

P = TypeVar("P")
S = TypeVar("S")

Rule: TypeAlias = Callable[[Tensors, S, Tensors], tuple[Tensors, S]]
"""From gradients, state and params to new tensors and the next state: what `Transform.change` and `Transform.move` are."""


_LEARNED: Final = HALF | {torch.float32, torch.float64}


@final
@attrs.frozen(eq=False)
class State(tree.Divided, Generic[P, S], metaclass=ListedABC):
    """What a transform remembers from step to step of optimizing params of type P.

    P is only for the type checker, which refuses the gradient or the state of another model by it.

    Args:
        inner: the memory proper, a tree of tensors, whose type S is the transform's.
        parts: what the trainable leaves of the params are parts of, where processes have parts of them, as of
            `distributed.shard`; so are the tensors that `inner` has for each. () where all are whole.
        of_all: what the memory is for all params, where other processes have some, as of `distributed.stages`.
    """

    inner: S
    parts: tuple[tree.Cuts, ...] = ()
    of_all: StateOfAll | None = None

    @override
    def splits(self) -> tree.Splits:
        return tuple([cuts[0] if cuts else None for cuts in cuts_along(self.inner, self.parts)])

    @override
    def summed_over(self) -> Sequence[tree.Division]:
        return ()

    @override
    def as_whole(self) -> "State[P, S]":
        if self.of_all is not None:
            return State(self.of_all.whole(self.inner))
        if not self.parts:
            return self
        whole = tree.with_whole_shapes(tree.trainable_leaves(self.inner), cuts_along(self.inner, self.parts))
        further = tuple([cuts[1:] for cuts in self.parts])
        return State(tree.with_trainable_leaves(self.inner, whole), further if any(further) else ())

    @override
    def pieces(self) -> Sequence[tree.Piece]:
        return super().pieces() if self.of_all is None else self.of_all.pieces(self.inner)


class Transform(Generic[S], metaclass=ListedABC):
    """A pure function from gradients to updates: a frozen record of hyper-parameters, comparable and hashable.

    ``state = transform.init(params)`` makes its state; ``updates, state = transform.update(grads, state, params)`` computes
    what is to be added to the params; ``params, state = transform.step(grads, state, params)`` adds it as well. params is a
    model, or any other tree of tensors; its buffers stay as they are.

    What is in the state is the state's: what was gathered so far, the count of steps, and what was settled in `init`, as which
    leaves decay. What is in the record is the record's: a transform may go on from the state that another one of its kind
    made, and its own rates, decays and bounds hold from there on. What the state holds and the record has no need of is kept up
    to date; what the record needs and the state lacks is a ValueError that says which hyper-parameter asks for it.

    Numbers of 16 bits are too short to gather anything: for bfloat16 and float16 params, all is computed, and every state
    kept, in float32, and the result is rounded once. `mixed_precision` keeps the params themselves in float32, so that small
    steps are not lost in them.

    Whoever derives from it decorates the class with ``@attrs.frozen``, and writes `start` and `change` out of place, on
    foreach kernels, without asking for the values of tensors: so that a step can be traced. Tensors of 16 bits come to both
    as float32. If each number changes by its own gradients alone, the class says ``elementwise = True``: an ensemble then
    applies it to all runs at once. Where nobody else holds a state, the next one may be written over it, by `change_over`.

    >>> from fundl import Tensors, Transform, chain, scale_by_learning_rate
    >>> @attrs.frozen
    ... class ScaleBySign(Transform[tuple[()]]):
    ...     def start(self, leaves: Tensors, paths: tuple[str, ...]) -> tuple[()]:
    ...         return ()
    ...
    ...     def change(self, grads: Tensors, state: tuple[()], params: Tensors) -> tuple[Tensors, tuple[()]]:
    ...         return torch._foreach_sign(grads), state
    >>> optimizer = chain(ScaleBySign(), scale_by_learning_rate(0.1))
    >>> params, grads = {"weight": torch.zeros(2)}, {"weight": torch.tensor([2.0, -3.0])}
    >>> optimizer.step(grads, optimizer.init(params), params)[0]
    {'weight': tensor([-0.1000,  0.1000])}
    """

    __slots__ = ()

    _is_contract: ClassVar[bool] = True  # see Listed

    if not TYPE_CHECKING:  # a checker knows what there is

        def __getattr__(self, name):
            raise suggestions.no_attribute(self, name)

    # --- What a transform's author writes ---

    @abstractmethod
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> S:
        """The first state, for the trainable leaves that are at these paths."""

    @abstractmethod
    def change(self, grads: Tensors, state: S, params: Tensors) -> tuple[Tensors, S]:
        """The updates, and the next state."""

    def move(self, grads: Tensors, state: S, params: Tensors) -> tuple[Tensors, S]:
        """The next params, and the next state: `change` and an addition, for whoever has no kernel that does both."""
        updates, state = self.change(grads, state, params)
        return torch._foreach_add(params, updates), state

    @property
    def writes_over(self) -> bool:
        """Whether there is a `change_over` that writes: whoever writes one says so by ``writes_over = True``."""
        return False

    def change_over(self, grads: Tensors, state: S, params: Tensors) -> tuple[Tensors, S]:
        """What `change` gives, to the bit, where nobody else holds the state: the next one may be written over it.

        What is written over is returned as it is, the same tuples and the same records.
        """
        return self.change(grads, state, params)

    def move_over(self, grads: Tensors, state: S, params: Tensors) -> tuple[Tensors, S]:
        """What `move` gives, to the bit, where nobody else holds the state and the params: both may be written over.

        It is `change_over` and an addition in place; whoever writes a `move` writes this as well.
        """
        if not self.writes_over:
            return self.move(grads, state, params)
        updates, state = self.change_over(grads, state, params)
        torch._foreach_add_(params, updates)
        return params, state

    @property
    def elementwise(self) -> bool:
        """Whether the change of each number depends only on its own gradients, and not on a norm, or on its path.

        An ensemble applies such a transform to all runs at once. A class says so by ``elementwise = True``.
        """
        return False

    @property
    def numbers(self) -> tuple[str, ...]:
        """The fields whose numbers may change from step to step: `adjustable` puts these into the state.

        A class that says ``numbers = ("factor",)`` computes with a tensor without axes in that field as with a number.
        """
        return ()

    @property
    def decides(self) -> tuple[str, ...]:
        """The names of numbers, of the transforms that this one is made of, that it gives at each step: nobody else may."""
        return ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the transforms that this one is made of, where it gives them any."""
        return ()

    def loss_scale(self, state: S) -> Tensor | None:  # noqa: ARG002  # most have none
        """What the loss' gradient is to be multiplied by for the next step; None for nothing. See `dynamic_loss_scale`."""
        return None

    def weighed(self, weight: float | Tensor) -> Self:  # noqa: ARG002  # most do not look at it
        """The transform for one step whose gradient has this weight, where that is gathered with others: see `accumulate`.

        What is made of other transforms asks them.
        """
        return self

    def divided(self, splits: tree.Splits) -> Self:
        """The transform for leaves of which some are parts, that processes have, of larger ones: see `distributed.shard`.

        If each number changes by its own gradients alone, it is all one. What looks at more overrides this, and looks at all
        parts; what is made of other transforms asks them.

        Raises:
            TypeError: the transform looks at more, and does not say how it goes on with parts.
        """
        if self.elementwise or not any(splits):
            return self
        raise TypeError(
            f"{type(self).__name__} would look at the rows that one process has as if they were all: it is for parameters that"
            " are not sharded. If it changes each number by its own gradients alone, say `elementwise = True` on its class;"
            " else write its method `divided`, as Transform tells"
        )

    def summing(self, among: tree.Division) -> Self | None:  # noqa: ARG002  # most do not
        """The transform that is given the gradients of each process, and sums them itself: see `distributed.shard_moments`.

        None for one that is given the sums.
        """
        return None

    def rest(self, state: S, params: Tensors) -> tuple[Tensors, S]:
        """The next params and state, once what was gathered and waits for more has been applied: see `accumulate`.

        What is made of other transforms asks them.
        """
        return params, state

    # --- What its user calls ---

    def init(self, params: P) -> State[P, S]:
        """The state before the first step.

        Args:
            params: a model, or any other tree of tensors.

        Raises:
            TypeError: a trainable leaf is not a real floating-point tensor.
            ValueError: there is no trainable leaf.
        """
        with no_grad():
            inner = self._start(params)
            return State(inner, tree.cuts_of(params), state_of_all(params, inner, self._start))

    def _start(self, params: object) -> S:
        leaves = flatten_params(params)
        return self._for(params).start(all_widened(leaves), tuple(tree.trainable_paths(params)))

    def update(self, grads: P, state: State[P, S], params: P) -> tuple[P, State[P, S]]:
        """The updates, to be added to the params with `apply_updates`, and the next state.

        Args:
            grads: the gradient with respect to the params.
            state: what `init` or the last step returned.
            params: where the gradient was computed.

        Raises:
            TypeError: grads and params are of different structures or dtypes.
            ValueError: they are of different shapes, on different devices, or the state belongs to other params.
        """
        own = self._for(params)
        return own._run(own.change, grads, state, params)

    def step(self, grads: P, state: State[P, S], params: P) -> tuple[P, State[P, S]]:
        """The next params, and the next state: `update` and `apply_updates` in one, and faster; it takes what that takes."""
        own = self._for(params)
        return own._run(own.move, grads, state, params)

    def step_over(self, grads: P, state: State[P, S], params: P) -> tuple[P, State[P, S]]:
        """`step`, for whoever alone holds the state and the params, and uses neither again: it may write over them.

        Nobody looks after that here. Use ``train_step(..., donate=True)``, which does, unless you know who holds what.
        """
        own = self._for(params)
        return own._run(own.move_over, grads, state, params, over=True)

    def finish(self, state: State[P, S], params: P) -> tuple[P, State[P, S]]:
        """The next params and state, once what `accumulate` has gathered is applied, in a window that is not full.

        The mean is that of the micro-batches that came, by their weights. Where none waits, all stays as it is.

        Args:
            state, params: what the last step returned.
        """
        own = self._for(params)
        return own._run(lambda _grads, inner, leaves: own.rest(inner, leaves), params, state, params)

    def _for(self, params: object) -> Self:
        """The transform for these params: for most, itself."""
        splits = tree.splits_of(params)
        return self.divided(splits) if splits else self

    def _run(self, rule: Rule[S], grads: P, state: State[P, S], params: P, *, over: bool = False) -> tuple[P, State[P, S]]:
        """Apply a rule for flat tuples of tensors to trees; the results may be `over` the params and the state."""
        with no_grad():
            flat_grads, flat_params, halves = flatten_alike(grads, params, name="grads")
            refuse_tape(flat_grads, flat_params)
            wide_params = all_widened(flat_params) if halves else flat_params
            try:
                results, inner = rule(all_widened(flat_grads) if halves else flat_grads, state.inner, wide_params)
            except StateError:
                raise
            except Exception as error:
                self._require_state(state, params, error)
                raise
            if over and results is wide_params:
                if halves:
                    torch._foreach_copy_(flat_params, results)
                return params, state if inner is state.inner else State(inner, state.parts, state.of_all)
            if halves:
                results = all_narrowed(results, flat_params)
            return tree.with_trainable_leaves(params, results), State(inner, state.parts, state.of_all)

    def _require_state(self, state: object, params: P, error: Exception) -> None:
        """Raise an error that tells where a state is not one for these params, if it is not."""
        if not isinstance(state, State):
            raise TypeError(f"state is what init(params) or the last step returned, not {describe(state)}") from error
        expected = self.init(params).inner
        try:
            tree.require_same_structure(state.inner, expected, names=("it", "init(params)"))
        except TypeError as difference:
            raise ValueError(
                f"the state is of another transform or of other params: {difference}; make a new one with init(params)"
            ) from error
        for path, old, new in zip(tree.paths(expected), tree.flatten(state.inner)[0], tree.flatten(expected)[0], strict=True):
            if old is not None and new is not None and (describe(old), old.device) != (describe(new), new.device):
                raise ValueError(
                    f"the state is of other params: its leaf at {path} is {describe(old)} on {old.device}, where"
                    f" {describe(new)} on {new.device} is expected; make a new one with init(params)"
                ) from error


class Stateless(Transform[tuple[()]]):
    """A transform that remembers nothing: whoever derives from it writes `updates`."""

    __slots__ = ()

    writes_over = True  # there is nothing to write

    @abstractmethod
    def updates(self, grads: Tensors) -> Tensors:
        """The updates."""

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> tuple[()]:
        return ()

    @override
    def change(self, grads: Tensors, state: tuple[()], params: Tensors) -> tuple[Tensors, tuple[()]]:
        given: object = state
        if given != ():
            raise TypeError("the state is of another transform: this one has none")
        return self.updates(grads), state


def require_transform(optimizer: object) -> None:
    """Raise an error that says what to write, unless this is a transform."""
    if isinstance(optimizer, Transform):
        return
    said = suggestions.hint(optimizer)
    if suggestions.is_function(optimizer):
        what = f"the function {suggestions.name_of(optimizer)}"
    else:
        what = suggestions.name_of(optimizer) if said else describe(optimizer)
    raise TypeError(f"an optimizer is what adam(0.001) makes, for example, not {what}{said}")


def apply_updates(params: P, updates: P) -> P:
    """The params with updates added, leaf by leaf; buffers stay as they are.

    Args:
        params: a model, or any other tree of tensors.
        updates: a tree of the same type, as from `Transform.update`.

    Raises:
        TypeError: params and updates are of different structures or dtypes.
        ValueError: they are of different shapes, or on different devices.

    >>> from fundl import apply_updates
    >>> apply_updates({"weight": torch.ones(2)}, {"weight": torch.tensor([0.5, -0.5])})
    {'weight': tensor([1.5000, 0.5000])}
    """
    with no_grad():
        flat_updates, flat_params, _ = flatten_alike(updates, params, name="updates")
        refuse_tape(flat_updates, flat_params)
        return tree.with_trainable_leaves(params, torch._foreach_add(flat_params, flat_updates))


def flatten_params(params: object) -> Tensors:
    """The trainable leaves of params, which must be some, and real floating-point tensors."""
    leaves = tree.trainable_leaves(params)
    if not leaves:
        raise ValueError(f"params have no trainable leaf, so there is nothing to optimize: {describe(params)}")
    for place, leaf in enumerate(leaves):
        if leaf.dtype not in _LEARNED:
            raise TypeError(
                f"params{tree.trainable_paths(params)[place]} is {describe(leaf)}, but optimizers update real"
                " floating-point tensors of 16 bits or more: if it is not to be learned, mark its field with"
                " attrs.field(metadata=tree.BUFFER)"
            )
    return tuple(leaves)


def flatten_alike(other: P, params: P, *, name: str) -> tuple[Tensors, Tensors, bool]:
    """The trainable leaves of a tree, and of params, which must be alike, and whether some are of 16 bits."""
    leaves, other_leaves = tree.trainable_leaves(params), tree.trainable_leaves(other)
    if not leaves or len(other_leaves) != len(leaves) or other_leaves[0].device != leaves[0].device:
        raise _mismatch(other, params, name)
    halves = False
    for one, leaf in zip(other_leaves, leaves, strict=True):
        dtype = leaf.dtype
        if one.shape != leaf.shape or one.dtype is not dtype:
            raise _mismatch(other, params, name)
        if dtype in HALF:
            halves = True
    return tuple(other_leaves), tuple(leaves), halves


def _mismatch(other: P, params: P, name: str) -> Exception:
    """An error that tells where a tree is not like params."""
    paths, other_paths = tree.trainable_paths(params), tree.trainable_paths(other)
    only = [f"params has a leaf at {path or 'its root'} that {name} lacks" for path in paths if path not in other_paths]
    only += [f"{name} has a leaf at {path or 'its root'} that params lacks" for path in other_paths if path not in paths]
    if only:
        return TypeError(f"{name} and params are not of the same structure: {only[0]}")
    for path, one, leaf in zip(paths, tree.trainable_leaves(other), flatten_params(params), strict=True):
        if one.is_meta is not leaf.is_meta:
            empty = name if one.is_meta else "params"
            return ValueError(f"{empty}{path} has no values, only a shape: train what initialize(key(0), model) returns")
        if one.device != leaf.device:
            return ValueError(f"{name}{path} is on {one.device}, but params{path} on {leaf.device}: move one of them")
        if one.dtype != leaf.dtype:
            return TypeError(f"{name}{path} is {one.dtype}, but params{path} is {leaf.dtype}: cast one with tree.cast_to")
        if one.shape != leaf.shape:
            return ValueError(f"{name}{path} is of shape {tuple(one.shape)}, but params{path} of {tuple(leaf.shape)}")
    return TypeError(f"{name} and params are not of the same structure")
