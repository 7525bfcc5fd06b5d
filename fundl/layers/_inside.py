"""Layers made of layers: how they run the layers inside, and hand backward on to them.

Python cannot say that the types of a TypeVarTuple are layers. `residual`, `parallel` and their like accept nothing else, as
`compose` does, and each gradient takes the place of a layer of its type: so models inside are objects here, and become models
where they are run.
"""

from collections.abc import Callable, Sequence
from typing import Generic, Self, TypeAlias, cast, final

import attrs
from torch import Tensor
from typing_extensions import TypeVar, TypeVarTuple, Unpack, override

from fundl._common.running import (
    note_place,
    run_backward,
    run_backward_input,
    run_backward_params,
    run_forward,
    run_input_half,
    run_params_half,
)
from fundl.layer import AnyLayer, Layer, Model
from fundl.model import output_shape
from fundl.shapes import AnySize
from fundl.tree import Record, describe

T = TypeVar("T")
L = TypeVar("L", bound=AnyLayer)
Own = TypeVar("Own")
Residuals = TypeVar("Residuals")
X = TypeVar("X", default=Tensor)
Y = TypeVar("Y", default=Tensor)
XInside = TypeVar("XInside", default=Tensor)
Ts = TypeVarTuple("Ts", default=Unpack[tuple[AnySize, ...]])
"""The layers inside."""


@final
@attrs.frozen(eq=False)
class Sizes(Record):
    """Sizes that a layer keeps for backward: part of the structure of its residuals, which stay a tree of tensors."""

    sizes: tuple[int, ...]


_Backward: TypeAlias = Callable[[object, object, object], T]

_backward = cast("_Backward[tuple[object, object]]", run_backward)
_backward_params = cast("_Backward[object]", run_backward_params)
_backward_input = cast("_Backward[object]", run_backward_input)
_input_half = cast("_Backward[tuple[object, object]]", run_input_half)
_params_half = cast("Callable[[object, object], object]", run_params_half)


def forward_inside(model: object, x: object) -> tuple[Tensor, object]:
    """The output of a model, which must be a tensor, and its residuals."""
    output, residuals = run_forward(cast("Model", model), x)
    if not isinstance(output, Tensor):
        raise TypeError(f"the layers inside must give a tensor, not {describe(output)}")
    return output, residuals


def fitting(layer: L) -> L:
    """The layer, once the layers inside are found to fit together."""
    output_shape(layer)
    return layer


@attrs.frozen(eq=False)
class Around(Layer[tuple[object, Own], X, Y], Generic[Own, X, Y, XInside]):
    """A layer around a model f, which its first field holds.

    It is written as `forward`, which runs f, and keeps two things: what f kept, and something of its own, if only None. What
    it adds to the backward of f is said by the methods below. Backward is handed on to f with its halves alone where they are
    asked for alone, and what f kept is handed over with it, so that each layer's residuals are freed in turn: see `Pass`.
    """

    def _model(self, own: Own) -> object:  # noqa: ARG002  # a layer that says more overrides it
        """The f that was run: what the first field holds, unless a layer says more."""
        return getattr(self, self.children[0])

    def _kept_inside(self, kept: object) -> object:
        """The residuals of f: what was kept of them."""
        return kept

    def _grad_inside(self, own: Own, grad: Y) -> object:  # noqa: ARG002
        """The gradient with respect to the output of f: that of the layer."""
        return grad

    def _grad_x(self, own: Own, grad: Y, grad_inside: XInside) -> X:  # noqa: ARG002
        """The gradient with respect to the input: that of f."""
        return cast("X", grad_inside)  # a layer for whose input this is not so says what is

    def _gradient(self, own: Own, grads: object) -> Self:  # noqa: ARG002
        """The gradient with respect to the parameters: a layer around that of f."""
        return self.gradient(grads)

    @override
    def backward(self, residuals: tuple[object, Own], grad: Y) -> tuple[Self, X]:
        kept, own = [residuals[0]], residuals[1]
        del residuals
        grads, grad_inside = _backward(self._model(own), self._kept_inside(kept.pop()), self._grad_inside(own, grad))
        return self._gradient(own, grads), self._grad_x(own, grad, cast("XInside", grad_inside))

    @override
    def backward_params(self, residuals: tuple[object, Own], grad: Y) -> Self:
        kept, own = [residuals[0]], residuals[1]
        del residuals
        grads = _backward_params(self._model(own), self._kept_inside(kept.pop()), self._grad_inside(own, grad))
        return self._gradient(own, grads)

    @override
    def backward_input(self, residuals: tuple[object, Own], grad: Y) -> X:
        kept, own = [residuals[0]], residuals[1]
        del residuals
        grad_inside = _backward_input(self._model(own), self._kept_inside(kept.pop()), self._grad_inside(own, grad))
        return self._grad_x(own, grad, cast("XInside", grad_inside))

    # --- The halves of backward that a pipeline asks for, one long after the other ---

    def has_halves(self) -> bool:
        """Whether they are those of f: a layer that writes a backward of its own has others."""
        return type(self).backward is Around.backward

    def input_half(self, residuals: tuple[object, Own], grad: Y) -> tuple[X, object]:
        """The gradient with respect to the input, and what `params_half` needs."""
        kept, own = [residuals[0]], residuals[1]
        del residuals
        grad_inside, half = _input_half(self._model(own), self._kept_inside(kept.pop()), self._grad_inside(own, grad))
        return self._grad_x(own, grad, cast("XInside", grad_inside)), (half, own)

    def params_half(self, kept: tuple[object, Own]) -> Self:
        """The gradient with respect to the parameters."""
        half, own = kept
        return self._gradient(own, _params_half(self._model(own), half))


@attrs.frozen(eq=False)
class Beside(Layer[Residuals, X, Y], Generic[Residuals, X, Y]):
    """A layer around models side by side, each of which takes and gives a tensor.

    As for `Around`, a layer says what it adds to the backward of its models: by itself it has a model in each field, takes a
    tuple of their inputs, gives one of their outputs, and keeps one of what they kept.
    """

    def _models(self) -> tuple[object, ...]:
        """The models."""
        return tuple(getattr(self, name) for name in self.children)

    def _place(self, index: int) -> str:
        """Where a model is, for the notes of errors."""
        return f".{self.children[index]}"

    def _apart(self, residuals: Residuals, grad: Y) -> tuple[Sequence[object], Sequence[Tensor]]:
        """What each model kept, and the gradients with respect to their outputs."""
        return cast("tuple[object, ...]", residuals), cast("tuple[Tensor, ...]", grad)

    def _grad_x(self, grads_x: Sequence[Tensor]) -> X:
        """The gradient with respect to the input, from those of the models."""
        return cast("X", tuple(grads_x))

    def _gradient(self, grads: Sequence[object]) -> Self:
        """The gradient with respect to the parameters, from those of the models."""
        return self.gradient(*grads)

    def _forward(self, *inputs: Tensor) -> tuple[Sequence[Tensor], tuple[object, ...]]:
        """The outputs of the models for their inputs, and their residuals."""
        given = iter(inputs)
        outputs, kept = zip(*self._each(lambda model: forward_inside(model, next(given))), strict=True)
        return outputs, kept

    @override
    def backward(self, residuals: Residuals, grad: Y) -> tuple[Self, X]:
        kept, outputs = self._taken(residuals, grad)
        del residuals
        grads, grads_x = zip(*self._each(lambda model: _backward(model, kept.pop(), outputs.pop())), strict=True)
        return self._gradient(grads), self._grad_x(grads_x)

    @override
    def backward_params(self, residuals: Residuals, grad: Y) -> Self:
        kept, outputs = self._taken(residuals, grad)
        del residuals
        return self._gradient(self._each(lambda model: _backward_params(model, kept.pop(), outputs.pop())))

    @override
    def backward_input(self, residuals: Residuals, grad: Y) -> X:
        kept, outputs = self._taken(residuals, grad)
        del residuals
        grads_x = self._each(lambda model: cast("Tensor", _backward_input(model, kept.pop(), outputs.pop())))
        return self._grad_x(grads_x)

    def _taken(self, residuals: Residuals, grad: Y) -> tuple[list[object], list[Tensor]]:
        """What the models kept, and the gradients with respect to their outputs: in lists, with the first at the end."""
        kept, outputs = self._apart(residuals, grad)
        return [*reversed(kept)], [*reversed(outputs)]

    def _each(self, run: Callable[[object], T]) -> list[T]:
        """What is found by running each model; an error in one is noted to be there."""
        found: list[T] = []
        try:
            for model in self._models():
                found.append(run(model))  # noqa: PERF401  # the place of an error is that of the next
        except Exception as error:
            note_place(error, self._place(len(found)))
            raise
        return found
