"""Layers of recurrences, in one direction or in both: what all recurrent layers share."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, Self, TypeAlias, cast

import attrs
import torch
from torch import Tensor
from typing_extensions import TypedDict, TypeVar, override

from fundl import tree
from fundl._common.half import HALF, narrowed, widened
from fundl._common.numbers import finite
from fundl._common.place import Place
from fundl.fan import Fans
from fundl.initializers import Initializer, VarianceScaling, zeros
from fundl.layer import Layer
from fundl.layers._layout import require_sizes
from fundl.layers._refusals import require_at_least_one
from fundl.layers.linear import explain_misfit
from fundl.layers.recurrent.recurrence import Kept, Recurrence, States, Sweep, SweptBack
from fundl.random import Key
from fundl.shapes import AnySize, Batch, InFeatures, Product, Shape, Steps, expect
from fundl.tree import BUFFER

HiddenFeatures = TypeVar("HiddenFeatures", bound=int, covariant=True, default=AnySize)
Directions = TypeVar("Directions", bound=int, covariant=True, default=AnySize)

Residuals: TypeAlias = tuple[tuple[Tensor, ...], tuple[Kept, ...]]
"""The input of each layer, (T, B, ...), and what each recurrence keeps."""


@attrs.frozen(eq=False)
class Recurrent(Layer[Residuals], Generic[InFeatures, HiddenFeatures, Directions]):
    """What RNN, GRU and LSTM have in common: layers of recurrences, each layer over the output of the one before it."""

    parts_of_state: ClassVar[int] = 1
    """How many tensors the state of a recurrence is."""

    layers: tuple[tuple[Recurrence, ...], ...]
    mask: Tensor | None = attrs.field(default=None, metadata=BUFFER, kw_only=True)

    @abstractmethod
    def _sweep(self, sweep: Sweep) -> tuple[Tensor, States, Kept]:
        """The output of one recurrence (T, B, H), its state after the last step, and what backward needs."""

    @abstractmethod
    def _sweep_back(self, sweep: Sweep, kept: Kept, grad: Tensor, grad_last: States | None) -> SweptBack:
        """The gradients of one recurrence, given those with respect to its output and its state after the last step."""

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Residuals]:
        output, _, residuals = self.run(x, None)
        return output, residuals

    @override
    def first_cache(self, batch: int, length: int) -> object:
        if any(len(layer) > 1 for layer in self.layers):
            raise TypeError(
                f"a bidirectional {type(self).__name__} cannot be run a position at a time: it looks at later positions, too"
            )
        if self.mask is not None:
            raise ValueError(f"{type(self).__name__} has a mask, but is run a position at a time without: take it away")
        return self.first(batch)

    @override
    def step(self, x: Tensor, cache: object, place: Place) -> tuple[Tensor, object]:
        if place.is_padded:
            raise ValueError(
                f"the state of {type(self).__name__} behind padding would be that of the padding: give sequences of one length"
            )
        y, after, _ = self.run(x, cast("Sequence[States]", cache))
        return y, tuple(after)

    @override
    def backward(self, residuals: Residuals, grad: Tensor) -> tuple[Self, Tensor]:
        grads, grad_x, _ = self.run_back(residuals, None, grad, None)
        return grads(), grad_x()

    @override
    def backward_params(self, residuals: Residuals, grad: Tensor) -> Self:
        return self.run_back(residuals, None, grad, None)[0]()

    @override
    def backward_input(self, residuals: Residuals, grad: Tensor) -> Tensor:
        return self.run_back(residuals, None, grad, None)[1]()

    @override
    def output_shape(self, shape: Shape[Batch, Steps, InFeatures]) -> Shape[Batch, Steps, Product[HiddenFeatures, Directions]]:
        batch, steps, features = shape.exactly(3)
        layer = self.layers[0]
        expect("features", features, layer[0].weight_ih.shape[1])
        return Shape(batch, steps, layer[0].weight_hh.shape[1] * len(layer))

    def first(self, batch: int) -> tuple[States, ...]:
        """The state of each recurrence before the first step."""
        return tuple(recurrence.first(batch, self.parts_of_state) for layer in self.layers for recurrence in layer)

    def _learned(self, batch: int) -> Sequence[States] | None:
        """The same, if it is not zeros."""
        is_learned = any(recurrence.first_hidden is not None for layer in self.layers for recurrence in layer)
        return self.first(batch) if is_learned else None

    def run(self, x: Tensor, states: Sequence[States] | None) -> tuple[Tensor, list[States], Residuals]:
        """The output for an input and the state of each recurrence, their states after the last step, and the residuals."""
        self._require_sequences(x)
        if self._is_half(x):
            output, after, residuals = tree.cast_to(self, torch.float32).run(widened(x), _widened(states))
            return narrowed(output, x), _narrowed(after, x), residuals
        states = self._learned(x.shape[0]) if states is None else states
        sequence = x.transpose(0, 1)
        inputs: list[Tensor] = []
        kept: list[Kept] = []
        last: list[States] = []
        try:
            for index in range(len(self.layers)):
                inputs.append(sequence)
                results = [self._sweep(sweep) for sweep in self._sweeps(index, sequence, states)]
                sequence = results[0][0] if len(results) == 1 else torch.cat([output for output, _, _ in results], 2)
                last += [state for _, state, _ in results]
                kept += self._sharing(sequence, [own for _, _, own in results])
        except RuntimeError as error:
            explain_misfit(type(self).__name__, x, self.layers[0][0].weight_ih, error, are="weights are")
            raise
        return sequence.transpose(0, 1), last, (tuple(inputs), tuple(kept))

    def run_back(
        self, residuals: Residuals, states: Sequence[States] | None, grad: Tensor, grad_last: Sequence[States] | None
    ) -> tuple[Callable[[], Self], Callable[[], Tensor], list[States]]:
        """What computes the gradients with respect to the parameters and the input, and those with respect to the states."""
        if self._is_half(grad):
            wide = tree.cast_to(self, torch.float32)
            grads, grad_x, state = wide.run_back(residuals, _widened(states), widened(grad), _widened(grad_last))
            return lambda: tree.cast_to(grads(), grad.dtype), lambda: narrowed(grad_x(), grad), _narrowed(state, grad)
        inputs, kept = residuals
        steps, batch = inputs[0].shape[:2]
        is_given, states = states is not None, self._learned(batch) if states is None else states
        last = self.layers[-1]
        require_sizes(grad, (batch, steps, len(last) * last[0].weight_hh.shape[1]))  # the fused kernel does not ask
        every: list[list[SweptBack]] = []
        back: list[SweptBack] = []
        grad = grad.transpose(0, 1)
        for index, layer in reversed(list(enumerate(self.layers))):
            if back:
                grad = _grad_x(back)
            place = index * len(layer)
            runs = zip(self._sweeps(index, inputs[index], states), kept[place:], grad.chunk(len(layer), 2), strict=False)
            back = [
                self._sweep_back(*run, None if grad_last is None else grad_last[place + direction])
                for direction, run in enumerate(runs)
            ]
            every.insert(0, back)
        return (
            lambda: self.gradient(
                tuple(
                    tuple(found.grads().with_first(None if is_given else found.state) for found in of_layer)
                    for of_layer in every
                )
            ),
            lambda: _grad_x(every[0]).transpose(0, 1),
            [found.state for of_layer in every for found in of_layer],
        )

    def _is_half(self, x: Tensor) -> bool:
        """Whether to run in float32, and round what comes: what a state adds up over the steps, 16 bits do not hold."""
        return x.dtype in HALF and self.layers[0][0].weight_ih.dtype is x.dtype

    def _sweeps(self, index: int, x: Tensor, states: Sequence[States] | None) -> list[Sweep]:
        """Where the recurrences of a layer run: the first from the first step to the last, the second back."""
        mask = None if self.mask is None else self.mask.t().unsqueeze(2)
        layer = self.layers[index]
        return [
            Sweep(weights, x, None if states is None else states[index * len(layer) + direction], mask, reverse=direction == 1)
            for direction, weights in enumerate(layer)
        ]

    def _sharing(self, output: Tensor, kept: list[Kept]) -> list[Kept]:
        """What recurrences keep, with their hidden states in the layer's output, where they are as well without padding."""
        if self.mask is not None:
            return kept
        parts = output.chunk(len(kept), 2)
        return [(hidden, *own[1:]) for hidden, own in zip(parts, kept, strict=True)]

    def _require_sequences(self, x: Tensor) -> None:
        if x.ndim != 3 or (self.mask is not None and self.mask.shape != x.shape[:2]):
            wanted = "(B, T, F)" if self.mask is None else f"({', '.join(map(str, self.mask.shape))}, F) by its mask"
            raise ValueError(f"{type(self).__name__} expects an input of shape {wanted}, but it is of shape {tuple(x.shape)}")


def _widened(states: Sequence[States] | None) -> list[States] | None:
    return None if states is None else [tuple(map(widened, state)) for state in states]


def _narrowed(states: Sequence[States], like: Tensor) -> list[States]:
    return [tuple(narrowed(part, like) for part in state) for state in states]


def _grad_x(back: list[SweptBack]) -> Tensor:
    """The gradient with respect to the input of a layer, (T, B, in): the sum of those of its directions."""
    first, *others = (result.grad_x() for result in back)
    return first + others[0] if others else first


# --- Making the parameters ---------------------------------------------------------------------------------------------


class Options(TypedDict, total=False):
    """The options of `rnn`, `gru` and `lstm` on which no type depends."""

    depth: int
    bias: bool
    weight_ih_init: Initializer | None
    weight_hh_init: Initializer | None
    bias_init: Initializer | None
    learned_state: bool
    dtype: torch.dtype


@attrs.frozen
class BiasOfGate(Initializer):
    """As another initialiser, but for one of several gates, whose bias is a number."""

    others: Initializer
    gate: int
    gates: int
    value: float = attrs.field(validator=finite)

    @override
    def __call__(self, key: Key, shape: tuple[int, ...], fans: Fans, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        drawn = self.others(key, shape, fans, dtype=dtype, device=device)
        gates = torch.arange(shape[0], device=device) // (shape[0] // self.gates)
        return torch.where(gates == self.gate, torch.full((), self.value, dtype=dtype, device=device), drawn)


def layers_of(
    gates: int,
    in_features: int,
    hidden_features: int,
    *,
    depth: int,
    bidirectional: bool,
    bias: bool,
    inits: tuple[Initializer | None, Initializer | None, Initializer | None],
    dtype: torch.dtype,
    forget_bias: float | None = None,
    learned_state: bool = False,
) -> tuple[tuple[Recurrence, ...], ...]:
    """The recurrences of each layer, without values."""
    if forget_bias is not None and not bias:
        raise ValueError(f"forget_bias={forget_bias} is where a bias begins, but bias=False: leave out one of the two")
    require_at_least_one(in_features=in_features, hidden_features=hidden_features, depth=depth)
    rows, directions = gates * hidden_features, 2 if bidirectional else 1
    # U(-b, b), b = 1/sqrt(hidden), is of the variance 1/(3 hidden), and the fan out of each weight is gates hidden.
    weight_ih_init, weight_hh_init, bias_init = (given or VarianceScaling(gates / 3, "fan_out", "uniform") for given in inits)

    bias_ih_init = bias_hh_init = bias_init
    if forget_bias is not None:  # the two are added
        bias_ih_init, bias_hh_init = (BiasOfGate(bias_init, 1, gates, value) for value in (forget_bias, 0.0))

    def first(*, is_there: bool) -> Tensor | None:
        return torch.empty(hidden_features, dtype=dtype, device="meta") if is_there else None

    def recurrence(columns: int) -> Recurrence:
        return Recurrence(
            weight_ih=torch.empty(rows, columns, dtype=dtype, device="meta"),
            weight_hh=torch.empty(rows, hidden_features, dtype=dtype, device="meta"),
            bias_ih=torch.empty(rows, dtype=dtype, device="meta") if bias else None,
            bias_hh=torch.empty(rows, dtype=dtype, device="meta") if bias else None,
            first_hidden=first(is_there=learned_state),
            first_cell=first(is_there=learned_state and gates == 4),
            weight_ih_init=weight_ih_init,
            weight_hh_init=weight_hh_init,
            bias_ih_init=bias_ih_init,
            bias_hh_init=bias_hh_init,
            first_hidden_init=zeros() if learned_state else None,
            first_cell_init=zeros() if learned_state else None,
        )

    columns = [in_features, *[directions * hidden_features] * (depth - 1)]
    return tuple(tuple(recurrence(count) for _ in range(directions)) for count in columns)
