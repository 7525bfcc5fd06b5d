"""Ensembles: many runs at once, each with a key of its own, as one batched computation.

In an ensemble of R runs everything has a first axis of size R: parameters, keys, batches, losses. The functions here are
their namesakes for one run, for R of them, and give what R separate runs with these keys give:

    keys = split(key(0), 50)
    models = ensemble.initialize(keys, model)  # for a model of type P, an Ensemble[P]
    state = ensemble.train_state(keys, models, optimizer)
    step = ensemble.train_step(mse, optimizer)
    data = ensemble.share((points, labels), 50)
    state, histories = ensemble.fit(step, state, lambda keys: ensemble.minibatches(keys, data, 10), epochs=100)
    accuracies = [history[-1].train.metric for history in histories]
    first, *others = ensemble.unstack(state.model)

An `Ensemble` is a layer, so what takes a model takes one too: `apply`, `vjp`, `save`. And `each` makes of any pure function
of trees one that does the same for R runs.

Initial values, the order of batches and what dropout drops agree with those of separate runs to the bit. All else is
computed for all runs by one kernel, which may round a last bit differently: kernels do, by where in a tensor a number stands.
"""

import math
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar, TypeVarTuple, cast, final

import attrs
import torch
from torch import Tensor
from typing_extensions import override

from fundl import kernels, optim, random, training, tree
from fundl.data import Minibatches, count_rows
from fundl.data import minibatches as minibatches_of_one
from fundl.initialize import initialize as initialize_one
from fundl.kernels import no_grad
from fundl.layer import AnyLayer, Layer, Model
from fundl.layers.activation import ELU, GELU, SELU, Hardtanh, LeakyReLU, Mish, ReLU, Sigmoid, SiLU, Softplus, Tanh
from fundl.layers.dropout import Dropout, rekey
from fundl.layers.linear import Linear
from fundl.layers.structure import Identity
from fundl.model import Loss, backward_params, forward, run_backward, run_backward_params, run_forward
from fundl.optim.chain import AnyTransform
from fundl.optim.decay import AddDecayedWeights
from fundl.optim.flat import Tensors
from fundl.optim.transform import Rule, Transform
from fundl.progress import show
from fundl.training import Batches, Epoch, Evaluation, Interrupted, Metric, Report, Step, TrainState
from fundl.tree import describe

if TYPE_CHECKING:
    from rich.console import Console

P = TypeVar("P", bound=Model)
S = TypeVar("S")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Target = TypeVar("Target")

# --- Functions of each run --------------------------------------------------------------------------------------------


def each(function: Callable[[*Ts], T]) -> Callable[[*Ts], T]:
    """The function that does for each of R runs, all at once, what a function does for one.

    Args:
        function: pure, of trees of tensors to a tree of tensors, such as a loss. It sees what belongs to one run, and must
            not look at the values of tensors to decide what to do.

    Returns:
        A function of trees whose tensors have a first axis of size R, and so have those that it returns.

    Raises:
        ValueError: when called: a tensor lacks the axis, or the axes are of different sizes.

    Data of its own for each run:

    >>> from fundl import disk, ensemble, key, split
    >>> points, labels = ensemble.each(lambda key: disk(key, 100))(split(key(0), 3))
    >>> points.shape, labels.shape
    (torch.Size([3, 100, 2]), torch.Size([3, 100]))
    """

    def of_runs(*trees: *Ts) -> T:
        leaves, structure = tree.flatten(trees)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        _require_axis(tensors, trees, "what is given")
        made: list[tuple[list[Tensor | None], tree.Structure[T]]] = []

        def of_one(*tensors: Tensor) -> tuple[Tensor, ...]:
            made.append(tree.flatten(function(*tree.unflatten(structure, _filled(leaves, tensors)))))
            return tuple([leaf for leaf in made[0][0] if isinstance(leaf, Tensor)])

        outputs: tuple[Tensor, ...] = torch.vmap(of_one)(*tensors)
        return tree.unflatten(made[0][1], _filled(made[0][0], outputs))

    return of_runs


def _filled(leaves: Sequence[Tensor | None], tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """The leaves with other tensors in the places of theirs; what is no tensor stays."""
    remaining = iter(tensors)
    return [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def share(data: T, runs: int) -> T:
    """The same data for each of R runs: its tensors behind a first axis of size R. Nothing is copied.

    Args:
        data: a tree of tensors.
        runs: R, at least 1.

    Raises:
        ValueError: there is less than 1 run.

    >>> from fundl import ensemble
    >>> ensemble.share(torch.tensor([1.0, 2.0]), 3)
    tensor([[1., 2.],
            [1., 2.],
            [1., 2.]])
    """
    if runs < 1:
        raise ValueError(f"an ensemble has 1 run or more, not {runs}")
    return tree.map(lambda leaf: leaf.expand(runs, *leaf.shape), data)


def _count_runs(values: object, name: str) -> int:
    """The size of the first axis, that of the runs, which all tensors of a tree must share."""
    return _require_axis(tree.leaves(values), values, name)


def _require_axis(tensors: Sequence[Tensor], values: object, name: str) -> int:
    sizes = {leaf.shape[:1] for leaf in tensors}
    if len(sizes) != 1 or not all(sizes):
        raise ValueError(
            f"in an ensemble, all tensors have a first axis of one size, that of the runs, but {name} is {describe(values)}:"
            " ensemble.share(data, runs) gives all runs the same"
        )
    return sizes.pop()[0]


def _of_each(values: T) -> list[T]:
    """A tree with the first axis taken apart: one for each run. The tensors are views."""
    leaves, structure = tree.flatten(values)
    tensors = [leaf.unbind() for leaf in leaves if isinstance(leaf, Tensor)]
    return [tree.unflatten(structure, _filled(leaves, column)) for column in zip(*tensors, strict=True)]


def _together(values: Sequence[T]) -> T:
    """Trees of one structure, one for each run, as one with a first axis of the runs."""
    leaves, structure = tree.flatten(values[0])
    columns = zip(*(tree.leaves(value) for value in values), strict=True)
    return tree.unflatten(structure, _filled(leaves, [torch.stack(column) for column in columns]))


# --- Models -----------------------------------------------------------------------------------------------------------


@final
@attrs.frozen(eq=False)
class Ensemble(Layer[object], Generic[P]):
    """R models of one structure as one layer: y[r] = f_r(x[r]) for the runs r = 0, ..., R - 1.

    Its vjp is that of each run: grads[r], grad_x[r] = vjp(f_r, x[r], grad[r]).

    Made by `ensemble.initialize` or `stack`; `unstack` gives the models back. What looks at the shapes of parameters, or at
    all of them together, must know of the runs: draw new ones by `ensemble.initialize`, train by `ensemble.train_step`.

    Args:
        models: a model whose tensors have a first axis of size R: ``ensemble.models[0].weight`` of shape (R, out, in), say.

    Shape:
        (R, ...) to (R, ...), as each of the models has it behind the first axis

    Residuals:
        Those of the models.

    Raises:
        ValueError: the input's first axis is not of size R.

    >>> from fundl import Linear, apply, ensemble
    >>> double, triple = (Linear(weight=torch.tensor([[factor]]), bias=None) for factor in (2.0, 3.0))
    >>> apply(ensemble.stack([double, triple]), torch.ones(2, 1, 1))
    tensor([[[2.]],
    <BLANKLINE>
            [[3.]]])
    """

    takes_integers = True  # if the models do

    models: P

    @property
    def runs(self) -> int:
        """R, how many models there are."""
        return tree.leaves(self.models)[0].shape[0]

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        output, residuals = run_forward(_batched(self.models), x)
        return cast("Tensor", output), residuals  # a model of tensors predicts tensors

    @override
    def backward(self, residuals: object, grad: Tensor) -> tuple["Ensemble[P]", Tensor]:
        grads, grad_x = run_backward(_batched(self.models), residuals, grad)
        return Ensemble(_as(self.models, grads)), cast("Tensor", grad_x)

    @override
    def backward_params(self, residuals: object, grad: Tensor) -> "Ensemble[P]":
        return Ensemble(_as(self.models, run_backward_params(_batched(self.models), residuals, grad)))


def initialize(
    keys: Tensor, model: P, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Ensemble[P]:
    """An ensemble of one model, with new parameters for each run: those of `initialize` with the run's key.

    Args:
        keys: one for each run, such as ``split(key(0), 50)``.
        model: a layer or a nested tuple of layers.
        device: where the parameters go, as for `initialize`.
        dtype: of the floating-point parameters, likewise.

    Shape:
        keys (R, 2)

    Raises:
        TypeError: the model cannot be initialised, or `keys` are not keys.
        ValueError: `keys` are not one or more keys, or the model has no tensors.

    >>> from fundl import ReLU, compose, ensemble, key, linear, split
    >>> models = ensemble.initialize(split(key(0), 50), compose(linear(2, 25), ReLU(), linear(25, 1)))
    >>> models.runs, models.models[0]
    (50, Linear(weight=float32[50, 25, 2], bias=float32[50, 25]))
    """
    _require_keys(keys)
    _require_tensors(model)
    with no_grad():
        models = each(lambda key: initialize_one(key, model, device=device, dtype=dtype))(keys)
        return Ensemble(tree.map(torch.Tensor.contiguous, models))


def stack(models: Sequence[P]) -> Ensemble[P]:
    """Models of one structure as an ensemble.

    Args:
        models: R of them, at least 1.

    Raises:
        ValueError: there is no model, the models have no tensors, or these are of different shapes or dtypes.
        TypeError: the models are of different structures.
    """
    if not models:
        raise ValueError("an ensemble needs at least 1 model, but here is none")
    _require_tensors(models[0])
    for place, model in enumerate(models):
        tree.require_same_structure(models[0], model, names=("model 0", f"model {place}"))
        for path, first, other in zip(tree.paths(model), tree.flatten(models[0])[0], tree.flatten(model)[0], strict=True):
            if describe(first) != describe(other):
                raise ValueError(
                    f"the models of an ensemble are alike, but at {path or 'its root'} model 0 has {describe(first)}, and"
                    f" model {place} has {describe(other)}"
                )
    with no_grad():
        return Ensemble(_together(models))


def unstack(models: Ensemble[P]) -> list[P]:
    """The models of an ensemble, one by one: to save one, to evaluate each.

    Their tensors are views of those of the ensemble.

    >>> from fundl import ensemble, key, linear, split
    >>> ensemble.unstack(ensemble.initialize(split(key(0), 2), linear(2, 1)))
    [Linear(weight=float32[1, 2], bias=float32[1]), Linear(weight=float32[1, 2], bias=float32[1])]
    """
    return _of_each(models.models)


def _require_keys(keys: Tensor) -> int:
    """Raise unless there is a key for each of one or more runs; how many there are."""
    if not isinstance(keys, Tensor):
        raise TypeError(f"the keys of an ensemble are a tensor, as split(key(0), runs) makes it, not {describe(keys)}")
    if keys.ndim != 2 or not keys.shape[0]:
        raise ValueError(
            "an ensemble needs a key for each of 1 run or more, a tensor of shape (runs, 2) as split(key(0), runs) makes it,"
            f" not one of shape {tuple(keys.shape)}"
        )
    random.require_key(keys[0])
    return keys.shape[0]


def _require_tensors(model: Model) -> None:
    if not tree.leaves(model):
        raise ValueError(f"the model has no parameters: all runs would be the same, {describe(model)}")


# --- Layers -----------------------------------------------------------------------------------------------------------

# What runs the models at once: for a `Linear` a product of batches of matrices; for an activation the activation itself; for
# any other layer what vmap makes of it. With vmap for all, a step of a small network would take 1.4 times as long.

_ELEMENTWISE: Final = frozenset((ELU, GELU, SELU, Hardtanh, Identity, LeakyReLU, Mish, ReLU, Sigmoid, SiLU, Softplus))


def _batched(models: Model) -> Model:
    """The layers that do for all runs what the models' layers do for each."""
    if isinstance(models, tuple):
        return tuple([_batched(part) for part in models])
    if isinstance(models, Linear):
        return _Linears(models.weight, models.bias)
    if isinstance(models, Tanh):
        return _Tanh()
    if type(models) in _ELEMENTWISE or (isinstance(models, Dropout) and models.key is None):
        return models
    return _Each(models)


def _as(models: P, grads: Model) -> P:
    """The gradients that the layers of `_batched` found, as those of the models."""
    return cast("P", _unbatched(models, grads))


def _unbatched(models: Model, grads: Model) -> Model:
    if isinstance(models, tuple) and isinstance(grads, tuple):
        return tuple([_unbatched(part, grad) for part, grad in zip(models, grads, strict=True)])
    if isinstance(models, Linear) and isinstance(grads, _Linears):
        return Linear(grads.weight, grads.bias, weight_init=models.weight_init, bias_init=models.bias_init)
    return grads.layer if isinstance(grads, _Each) else models


@final
@attrs.frozen(eq=False)
class _Linears(Layer[Tensor]):
    """R affine maps: y[r] = x[r] W[r]^T + b[r].

    Its vjp: grad_weight[r] = grad[r]^T x[r], grad_bias[r] = the sum over the rows of grad[r], grad_x[r] = grad[r] W[r].

    Args:
        weight: W, of shape (R, out, in).
        bias: b, of shape (R, out), or None.

    Shape:
        (R, ..., in) to (R, ..., out)

    Residuals:
        The input, as columns, shared, not copied.
    """

    weight: Tensor
    bias: Tensor | None

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        try:
            columns = self._rows(x).mT  # (R, in, B): the products of W with columns are the quickest
            bias = self.bias
            y = torch.bmm(self.weight, columns) if bias is None else torch.baddbmm(bias.unsqueeze(2), self.weight, columns)
        except RuntimeError as error:
            self._explain(x, error)
            raise
        return y.mT if x.ndim == 3 else y.mT.reshape(*x.shape[:-1], -1), columns

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple["_Linears", Tensor]:
        grad_x = torch.bmm(self.weight.mT, self._rows(grad).mT).mT  # (R, B, in)
        grads = self.backward_params(residuals, grad)
        return grads, grad_x if grad.ndim == 3 else grad_x.reshape(*grad.shape[:-1], -1)

    @override
    def backward_params(self, residuals: Tensor, grad: Tensor) -> "_Linears":
        rows = self._rows(grad)  # (R, B, out)
        grad_weight = torch.bmm(rows.mT, residuals.mT)  # (R, out, B) (R, B, in)
        return _Linears(grad_weight, None if self.bias is None else rows.sum(1))

    def _rows(self, x: Tensor) -> Tensor:
        """The rows of all further axes, one below the other: (R, B, ...)."""
        if x.ndim == 3:
            return x
        self._require_axis(x)
        return x.reshape(self.weight.shape[0], -1, x.shape[-1])

    def _require_axis(self, x: Tensor) -> None:
        runs = self.weight.shape[0]
        if x.ndim < 2 or x.shape[0] != runs:
            raise ValueError(
                f"an ensemble of {runs} models takes an input whose first axis is that of the runs, of size {runs}, but its"
                f" shape is {tuple(x.shape)}: ensemble.share(x, {runs}) is the same for all"
            )

    def _explain(self, x: Tensor, error: RuntimeError) -> None:
        """Say what is wrong with the input, after a kernel refused it: what one of the layers says."""
        try:
            self._require_axis(x)
            Linear(self.weight[0], None if self.bias is None else self.bias[0]).forward(x[0])
        except (TypeError, ValueError) as reason:
            raise reason from error


@final
@attrs.frozen(eq=False)
class _Tanh(Layer[Tensor]):
    """The hyperbolic tangent of many numbers: y = e / (e + 2), where e = exp(2 x) - 1.

    On CPUs these few kernels take half the time of the one for the tangent, and are as precise but for the last two bits.
    """

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not x.is_cpu or x.dtype != torch.float32:
            y = torch.tanh(x)
            return y, y
        e = torch.clamp(x, max=30.0).mul_(2.0).expm1_()  # beyond 9, y is 1; beyond 44, e would be inf
        y = e / (e + 2.0)
        return y, y

    @override
    def backward(self, residuals: Tensor, grad: Tensor) -> tuple[Self, Tensor]:
        return self, kernels.tanh_backward(grad, residuals)


@final
@attrs.frozen(eq=False)
class _Each(Layer[object]):
    """R layers of any kind, by way of `each`.

    Args:
        layer: whose tensors have a first axis of size R.
    """

    takes_integers = True  # if the layer does

    layer: AnyLayer

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        return each(_forward)(self.layer, x)

    @override
    def backward(self, residuals: object, grad: Tensor) -> tuple["_Each", Tensor]:
        grads, grad_x = each(_backward)(self.layer, residuals, grad)
        return _Each(grads), grad_x

    @override
    def backward_params(self, residuals: object, grad: Tensor) -> "_Each":
        return _Each(each(_backward_params)(self.layer, residuals, grad))


def _forward(layer: AnyLayer, x: Tensor) -> tuple[Tensor, object]:
    result: tuple[Tensor, object] = layer.forward(x)
    return result


def _backward(layer: AnyLayer, residuals: object, grad: Tensor) -> tuple[AnyLayer, Tensor]:
    return layer.backward(residuals, grad)


def _backward_params(layer: AnyLayer, residuals: object, grad: Tensor) -> AnyLayer:
    return layer.backward_params(residuals, grad)


# --- Optimizers -------------------------------------------------------------------------------------------------------

_ELEMENTWISE_TRANSFORMS: Final = frozenset(
    type(transform)
    for transform in (
        optim.accumulate(optim.scale(1.0), 1),
        optim.adam(0.1),
        optim.add_decayed_weights(0.1),
        optim.chain(optim.scale(1.0)),
        optim.clip_by_value(1.0),
        optim.scale(1.0),
        optim.scale_by_adagrad(),
        optim.scale_by_adam(),
        optim.scale_by_learning_rate(0.1),
        optim.scale_by_lion(),
        optim.scale_by_rms(),
        optim.trace(0.9),
    )
)


def _of_runs(transform: Transform[S]) -> Transform[S]:
    """The transform that does for an ensemble what a transform does for each run."""
    return transform if _is_elementwise(transform) else _EachRun(transform)


def _is_elementwise(transform: AnyTransform) -> bool:
    """Whether a transform is known to change each number by its own gradients alone, wherever it stands.

    Then it need not know of runs. A norm is one over all numbers; a predicate looks at paths and shapes.
    """
    if isinstance(transform, AddDecayedWeights):
        return transform.where is None
    cls = type(transform)
    if cls not in _ELEMENTWISE_TRANSFORMS or not attrs.has(cls):
        return False
    values = [getattr(transform, field.name) for field in attrs.fields(cls)]
    parts = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    return all(_is_elementwise(part) for part in parts if isinstance(part, Transform))


@final
@attrs.frozen
class _EachRun(Transform[S]):
    """Applies a transform to one run after the other. Its state is that of the transform, with a first axis of runs."""

    transform: Transform[S]

    @override
    def start(self, leaves: Tensors, paths: tuple[str, ...]) -> S:
        of_one = tuple(path.removeprefix(".models") for path in paths)
        states = [self.transform.start(leaves_of_one, of_one) for leaves_of_one in _of_each(leaves)]
        for run, state in enumerate(states):
            tree.require_same_structure(states[0], state, names=("the optimizer's state of run 0", f"that of run {run}"))
        return _together(states)

    @override
    def change(self, grads: Tensors, state: S, params: Tensors) -> tuple[Tensors, S]:
        return self._of_each(self.transform.change, grads, state, params)

    @override
    def move(self, grads: Tensors, state: S, params: Tensors) -> tuple[Tensors, S]:
        return self._of_each(self.transform.move, grads, state, params)

    def _of_each(self, rule: Rule[S], grads: Tensors, state: S, params: Tensors) -> tuple[Tensors, S]:
        states = _of_each(state) if tree.leaves(state) else [state] * params[0].shape[0]
        return _together([rule(*of_one) for of_one in zip(_of_each(grads), states, _of_each(params), strict=True)])


# --- Training ---------------------------------------------------------------------------------------------------------


def train_state(keys: Tensor, models: Ensemble[P], optimizer: Transform[S]) -> TrainState[Ensemble[P], S]:
    """The state that the training of an ensemble starts from.

    Args:
        keys: one for each run: where all its randomness comes from, as in `train_state`.
        models: with values, as `ensemble.initialize` gives them.
        optimizer: makes its own first state.

    Shape:
        keys (R, 2)

    Raises:
        TypeError: `keys` are not keys, or `models` is not an ensemble.
        ValueError: there are not as many keys as models, or these have no values yet.

    >>> from fundl import ensemble, key, linear, sgd, split
    >>> models = ensemble.initialize(split(key(0), 3), linear(2, 1))
    >>> ensemble.train_state(split(key(1), 3), models, sgd(0.1)).key.shape
    torch.Size([3, 2])
    """
    if not isinstance(models, Ensemble):
        raise TypeError(f"an ensemble is what ensemble.initialize or ensemble.stack makes, not {describe(models)}")
    if _require_keys(keys) != models.runs:
        raise ValueError(f"each run needs a key of its own, but the ensemble has {models.runs} runs, and keys are {len(keys)}")
    return attrs.evolve(training.train_state(keys[0], models, _of_runs(optimizer)), key=keys)


def train_step(loss: Loss[Tensor, Target], optimizer: Transform[S]) -> Step[Ensemble[P], S, Target]:
    """The step of all runs at once: of each what `train_step` does.

        state, report = step(state, (x, target))

    Args:
        loss: of one run; see `each` for what it may do.
        optimizer: that made the state. One that looks at more than each number by itself (`clip_by_global_norm`, a weight
            decay with a predicate, one of your own) takes the runs one after the other, and R times as long.

    Shape:
        x (R, B, ...), target (R, B, ...), `Report.loss` (R,), `Report.prediction` (R, B, ...)

    >>> from fundl import ensemble, key, linear, mse, sgd, split
    >>> optimizer = sgd(0.1)
    >>> state = ensemble.train_state(split(key(1), 3), ensemble.initialize(split(key(0), 3), linear(2, 1)), optimizer)
    >>> state, report = ensemble.train_step(mse, optimizer)(state, (torch.ones(3, 4, 2), torch.zeros(3, 4, 1)))
    >>> report
    Report(loss=float32[3], prediction=float32[3, 4, 1])
    """
    losses, optimizer = each(loss), _of_runs(optimizer)

    def step(state: TrainState[Ensemble[P], S], batch: tuple[Tensor, Target]) -> tuple[TrainState[Ensemble[P], S], Report]:
        x, target = training._pair(batch)
        model = _rekeyed(state) if training._draws(state.model) else state.model
        prediction, residuals = forward(model, x)
        with no_grad():
            values, grad = losses(prediction, target)
            grads = backward_params(model, residuals, grad)
            trained, optimizer_state = optimizer.step(grads, state.optimizer, state.model)
            return TrainState(trained, optimizer_state, state.key, state.step + 1), Report(values, prediction)

    return step


def _rekeyed(state: TrainState[Ensemble[P], S]) -> Ensemble[P]:
    """The models with the keys of the step, for each run its own."""
    step = state.step

    def of_one(models: P, key: Tensor) -> P:
        return rekey(models, random.fold_in(key, step))

    return Ensemble(each(of_one)(state.model.models, state.key))


def minibatches(keys: Tensor | None, data: T, batch_size: int, *, drop_last: bool = False) -> "RunMinibatches[T]":
    """The batches of one epoch for all runs at once: of each what `minibatches` gives for its key.

    Args:
        keys: one for each run, which decides the order of its batches; None keeps the data in order.
        data: a tree of tensors (R, N, ...), N examples for each run; `share` gives all runs the same, without copies.
        batch_size: B, how many examples of each run a batch holds, at least 1. The last batch holds what is left over.
        drop_last: whether to leave out a last batch that is smaller than the others.

    Returns:
        Something to iterate over, as often as one likes, that has a length. A batch is a tree like the data, of tensors
        (R, B, ...).

    Raises:
        ValueError: the data lacks the axis of the runs, or its size is not the number of keys; or as for `minibatches`.

    >>> from fundl import ensemble, key, split
    >>> data = ensemble.share(torch.arange(5), 2)
    >>> [batch.tolist() for batch in ensemble.minibatches(split(key(0), 2), data, 2)]
    [[[1, 3], [0, 2]], [[0, 4], [3, 4]], [[2], [1]]]
    """
    runs = _count_runs(data, "the data")
    if keys is not None and _require_keys(keys) != runs:
        raise ValueError(f"the data is of {runs} runs, but there are keys of {len(keys)}: its first axis is that of the runs")
    rows_of = tree.map(lambda leaf: leaf[0], data)
    rows = count_rows(rows_of)
    used = minibatches_of_one(None, rows_of, batch_size, drop_last=drop_last).rows

    order = torch.arange(rows).expand(runs, rows) if keys is None else each(lambda key: random.permutation(key, rows))(keys)
    is_shared = all(leaf.stride(0) == 0 for leaf in tree.leaves(data))
    if not is_shared:  # the rows of all runs, one run below the other
        order = order + rows * torch.arange(runs, device=order.device).unsqueeze(1)
        rows_of = tree.map(lambda leaf: leaf.flatten(0, 1), data)
    pieces = [
        piece.flatten() for piece in torch.split(order[:, :used], batch_size, 1)
    ]  # batch after batch, in each run after run
    return RunMinibatches(Minibatches(rows_of, torch.cat(pieces), used * runs, batch_size * runs), runs)


@final
@attrs.frozen(eq=False)
class RunMinibatches(Generic[T]):
    """The batches of one epoch for all runs at once; made by `ensemble.minibatches`."""

    rows: Minibatches[T]
    runs: int

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[T]:
        for batch in self.rows:
            yield tree.map(lambda leaf: leaf.reshape(self.runs, -1, *leaf.shape[1:]), batch)


# --- A run of runs ----------------------------------------------------------------------------------------------------


def fit(
    step: Step[Ensemble[P], S, Target],
    state: TrainState[Ensemble[P], S],
    batches: Batches[Target],
    *,
    epochs: int,
    metric: Metric[Target] | None = None,
    evaluate: Callable[[P], Evaluation] | None = None,
    evaluate_every: int = 1,
    progress: "bool | Console" = True,
) -> tuple[TrainState[Ensemble[P], S], tuple[tuple[Epoch, ...], ...]]:
    """The training of an ensemble: of each run what `fit` does.

    Args:
        step: makes the next state, as that of `ensemble.train_step` does.
        state: to begin with; it stays as it is.
        batches: of an epoch, for all runs. A function of the epoch's keys, one for each run:
            ``lambda keys: ensemble.minibatches(keys, data, 10)``; or anything that gives pairs (x, target) each time it is
            gone through.
        epochs: how often to go through the batches.
        metric: of one run, to be measured on the training batches as well.
        evaluate: measures one model, on other data; it is called for each.
        evaluate_every: after how many epochs to do so. After the last it is done in any case.
        progress: whether to show a bar (on a terminal) or some lines (elsewhere) on standard error, of the means over the
            runs; or where to show them.

    Returns:
        The state after the last step, and for each run its history, as `fit` gives it (`Epoch.seconds` is that of all runs
        together).

    Raises:
        ValueError: `epochs` is negative, `evaluate_every` less than 1, or an epoch has no batches.
        TypeError: what `batches` gives are not pairs.
        FloatingPointError: the loss of a run is no longer finite.
        Interrupted: Ctrl-C was pressed. Its history is that of the means over the runs.

    >>> from fundl import disk, ensemble, key, linear, mse, one_hot, sgd, split
    >>> points, labels = disk(key(0), 100)
    >>> data, optimizer = ensemble.share((points, one_hot(labels, 2)), 3), sgd(0.1)
    >>> state = ensemble.train_state(split(key(2), 3), ensemble.initialize(split(key(1), 3), linear(2, 2)), optimizer)
    >>> step = ensemble.train_step(mse, optimizer)
    >>> state, histories = ensemble.fit(
    ...     step, state, lambda keys: ensemble.minibatches(keys, data, 10), epochs=5, progress=False
    ... )
    >>> [history[-1].step for history in histories]
    [50, 50, 50]
    """
    if epochs < 0:
        raise ValueError(f"the number of epochs must be 0 or more, not {epochs}")
    if evaluate_every < 1:
        raise ValueError(f"evaluate_every must be 1 epoch or more, not {evaluate_every}")
    history: list[tuple[Epoch, ...]] = []
    means: list[Epoch] = []
    try:
        with torch.inference_mode(), show(progress, "epoch", epochs) as shown:
            steps = 0
            for number in range(1, epochs + 1):
                start, first_step, measured = time.perf_counter(), int(state.step), _Measured(metric)
                of_epoch = batches(_epoch_keys(state.key, first_step)) if callable(batches) else batches
                steps = operator.length_hint(of_epoch) or steps
                for batch in of_epoch:
                    state, report = step(state, batch)
                    measured.add(*batch, report)
                    shown.move(number - 1 + len(measured.losses) / max(steps, len(measured.losses)))
                steps = len(measured.losses)
                train = measured.results(number, first_step)
                seconds = time.perf_counter() - start
                is_due = number % evaluate_every == 0 or number == epochs
                test = [evaluate(model) for model in unstack(state.model)] if evaluate is not None and is_due else None
                history.append(
                    tuple(
                        Epoch(number, first_step + steps, of_run, None if test is None else test[run], seconds)
                        for run, of_run in enumerate(train)
                    )
                )
                means.append(Epoch(number, first_step + steps, _mean(train), None if test is None else _mean(test), seconds))
                speed = f"{len(train) * sum(measured.rows) / seconds:,.0f} examples/s"
                shown.finish(number, training._summary(means[-1], metric), speed)
    except KeyboardInterrupt as error:
        raise Interrupted(training._for_any_use(state), tuple(means)) from error
    return training._for_any_use(state), tuple(zip(*history, strict=True)) if history else ((),) * len(state.key)


def _epoch_keys(keys: Tensor, first_step: int) -> Tensor:
    """The keys of an epoch that begins with a step, as `fit` derives each from that of its run."""
    return each(lambda key: random.fold_in(key, training._EPOCHS + first_step))(keys)


def _mean(results: Sequence[Evaluation]) -> Evaluation:
    return Evaluation(fmean(result.loss for result in results), fmean(result.metric for result in results))


class _Measured(Generic[Target]):
    """The losses and metrics of the batches of an epoch, for each run."""

    def __init__(self, metric: Metric[Target] | None) -> None:
        self.losses: list[Tensor] = []  # (R,) each
        self.rows: list[int] = []
        self._metric = metric
        self._waiting: list[tuple[Tensor, Target]] = []
        self._metrics: list[Tensor] = []  # (R,) each
        self._metric_rows: list[int] = []

    def add(self, x: Tensor, target: Target, report: Report) -> None:
        self.losses.append(report.loss)
        self.rows.append(x.shape[1])
        if self._metric is not None:
            self._waiting.append((report.prediction, target))
            if len(self._waiting) * report.prediction.numel() > training._BUFFER_NUMBERS:
                self._measure(self._metric)

    def _measure(self, metric: Metric[Target]) -> None:
        of_runs = _of_each(each(training._concatenated)(self._waiting))
        self._metrics.append(torch.stack([metric(prediction, target) for prediction, target in of_runs]))
        self._metric_rows.append(sum(self.rows) - sum(self._metric_rows))
        self._waiting = []

    def results(self, epoch: int, first_step: int) -> list[Evaluation]:
        """The means of each run, if there were batches, and the losses finite."""
        if not self.losses:
            raise ValueError(
                f"epoch {epoch} has no batches: batches are a list, a DataLoader, or a function of the epoch's keys; an"
                " iterator can be gone through only once"
            )
        if self._metric is not None and self._waiting:
            self._measure(self._metric)
        losses = _means(self.losses, self.rows)
        for run, loss in enumerate(losses):
            if not math.isfinite(loss):
                step = next(step for step, values in enumerate(self.losses, 1) if not values[run].isfinite())
                raise FloatingPointError(
                    f"the loss of run {run} is {float(self.losses[step - 1][run])} in epoch {epoch}, at step"
                    f" {first_step + step}: its training diverges. Try a smaller learning rate, clip the gradients, or look for"
                    " NaN in the data"
                )
        metrics = _means(self._metrics, self._metric_rows) if self._metrics else [math.nan] * len(losses)
        return [Evaluation(loss, metric) for loss, metric in zip(losses, metrics, strict=True)]


def _means(numbers: Sequence[Tensor], weights: Sequence[int]) -> list[float]:
    """For each run the weighted mean of its numbers, which come as one tensor (R,) for each weight."""
    stacked = torch.stack([*numbers], 1)
    if stacked.ndim != 2:
        raise ValueError(
            "a loss and a metric are single numbers for each run, tensors without axes, but those of all runs are of shape"
            f" {tuple(numbers[0].shape)}"
        )
    of_runs: list[list[float]] = stacked.tolist()  # the one place that waits for the device
    return [sum(map(operator.mul, of_run, weights)) / sum(weights) for of_run in of_runs]
