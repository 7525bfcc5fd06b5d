"""L-BFGS: steps along a direction that knows the curvature of the last steps, as far as a line search goes."""

from typing import Final, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl._common.listed import Listed
from fundl._common.modes import is_readable
from fundl._common.numbers import count_of_steps, proper_fraction
from fundl._common.suggestions import with_suggestions
from fundl.optim._wolfe import Line, Point, Wolfe
from fundl.optim.flat import Tensors, new_count
from fundl.optim.search import Evaluate, Search
from fundl.tree import Record

_CURVED: Final = 1e-10  # what of a step's curvature is more than rounding


@final
@attrs.frozen(eq=False)
class LbfgsState(Record, metaclass=Listed):
    """The state of `lbfgs`, of params that have N numbers together.

    Args:
        steps: s, the last steps, the newest last, (history, N).
        changes: y, by how much the gradient changed, (history, N).
        inverses: 1 / (s y), 0 where there was no step yet, (history).
        size: s y / (y y) of the newest, without axes; 1 in the beginning.
        count: the steps done, int64 without axes.
    """

    steps: Tensor
    changes: Tensor
    inverses: Tensor
    size: Tensor
    count: Tensor


@final
@attrs.frozen
class _Lbfgs(Search[LbfgsState]):
    history: int = attrs.field(validator=count_of_steps)
    decrease: float = attrs.field(validator=proper_fraction)
    curvature: float = attrs.field(validator=proper_fraction)
    evaluations: int = attrs.field(validator=count_of_steps)

    def __attrs_post_init__(self) -> None:
        if self.decrease >= self.curvature:
            raise ValueError(f"decrease must be less than curvature, not {self.decrease} and {self.curvature}")

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> LbfgsState:
        flat = _flat(leaves)
        memory, size = flat.new_zeros((self.history, len(flat))), flat.new_ones(())
        return LbfgsState(memory, memory.clone(), flat.new_zeros(self.history), size, new_count(leaves))

    @override
    def search(
        self, evaluate: Evaluate, value: Tensor, grads: Tensors, state: LbfgsState, params: Tensors
    ) -> tuple[Tensors, LbfgsState]:
        if not is_readable(value):
            raise TypeError(
                "lbfgs decides by the loss how often it evaluates it, which no compiled step can: leave the step as it is, and"
                " compile what it evaluates, jit(value_and_grad) in a step of your own, say"
            )
        if type(state) is not LbfgsState:
            raise TypeError("the state is of another transform")
        grad, origin = _flat(grads), _flat(params)
        if state.steps.shape[1:] != grad.shape or state.steps.dtype != grad.dtype:
            raise ValueError("the state is of params of another size")
        direction = _direction(grad, state)
        start = Point(0.0, float(value), float(grad @ direction), grad)
        if not start.slope < 0:  # at a minimum, or where there is no number
            return params, state

        def at(position: float) -> Point:
            found, found_grads = evaluate(_as_leaves(origin + position * direction, params))
            found_grad = _flat(found_grads)
            return Point(position, float(found), float(found_grad @ direction), found_grad)

        first = min(1.0, 1 / float(grad.abs().sum())) if not state.count else 1.0
        wolfe = Wolfe(self.decrease, self.curvature, self.evaluations)
        point = wolfe.search(Line(at, start, float(direction.abs().max())), first)
        if point is start:
            return params, state
        moved = origin + point.position * direction
        return _as_leaves(moved, params), _remembered(state, point.position * direction, point.grad - grad)


def _direction(grad: Tensor, state: LbfgsState) -> Tensor:
    """Downhill, by the inverse of the curvature that the last steps had."""
    rows = [*zip(state.steps, state.changes, state.inverses, strict=True)]
    direction, shares = -grad, list[Tensor]()
    for step, change, inverse in reversed(rows):
        shares.append((step @ direction) * inverse)
        direction = direction - shares[-1] * change
    direction = direction * state.size
    for (step, change, inverse), share in zip(rows, reversed(shares), strict=True):
        direction = direction + (share - (change @ direction) * inverse) * step
    return direction


def _remembered(state: LbfgsState, step: Tensor, change: Tensor) -> LbfgsState:
    """The state with one step more, if it was one of positive curvature."""
    curvature = step @ change
    if not curvature > _CURVED:
        return attrs.evolve(state, count=state.count + 1)
    return LbfgsState(
        steps=torch.cat((state.steps[1:], step.unsqueeze(0))),
        changes=torch.cat((state.changes[1:], change.unsqueeze(0))),
        inverses=torch.cat((state.inverses[1:], (1 / curvature).reshape(1))),
        size=curvature / (change @ change),
        count=state.count + 1,
    )


def _flat(tensors: Tensors) -> Tensor:
    """All numbers in a row, in the widest dtype."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _as_leaves(flat: Tensor, like: Tensors) -> Tensors:
    """The tensors of which the numbers are these."""
    parts = torch.split(flat, [tensor.numel() for tensor in like])
    return tuple(part.reshape(tensor.shape).to(tensor.dtype, copy=True) for part, tensor in zip(parts, like, strict=True))


@with_suggestions
def lbfgs(*, history: int = 10, decrease: float = 1e-4, curvature: float = 0.9, evaluations: int = 25) -> Search[LbfgsState]:
    """L-BFGS, for losses of which each step sees all data: few parameters, smooth, and no minibatches.

        p = p - t H g,    H the inverse of the curvature along the last steps,    t by a line search

    A line search tries steps until the loss at p has fallen, and its slope is flat enough, the strong Wolfe conditions, see
    below; the first is t = 1, but 1 / (sum of |g|) in the first step of all, if that is less. Most steps evaluate the loss once
    or twice beside the evaluation at p. Where no step leads downhill, at a minimum, the params stay as they are.

        state, report = train_step(mse, lbfgs())(state, (x, y))

    It decides by the values of the loss, so its step cannot be compiled as a whole, nor run in an ensemble; and it looks at all
    params together, which must not be sharded. It takes 2 history times the memory of the params.

    Args:
        history: how many of the last steps H is made of, 1 or more.
        decrease, curvature: f(p - t d) <= f - decrease t g d and |g(p - t d) d| <= curvature |g d| hold after a step along d,
            0 < decrease < curvature < 1.
        evaluations: how many t are tried at most, 1 or more; then the best of them is taken.

    Source:
        Liu and Nocedal, On the limited memory BFGS method for large scale optimization, 1989; Nocedal and Wright, Numerical
        optimization, 2006, chapters 3 and 7.

    >>> from fundl import initialize, key, lbfgs, linear, mse, train_state, train_step
    >>> x = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]])
    >>> optimizer = lbfgs()
    >>> state = train_state(key(1), initialize(key(0), linear(2, 1)), optimizer)
    >>> step = train_step(mse, optimizer)
    >>> for _ in range(12):
    ...     state, report = step(state, (x, x.sum(1, keepdim=True)))
    >>> bool(report.loss < 1e-6)
    True
    """
    return _Lbfgs(history, decrease, curvature, evaluations)
